//! What stands behind the one lock of a tunnel: the core, the transport that comes next, and what
//! the owner has not been told yet.
//!
//! Lock order: there is only this lock. No IO is done under it, and transports are dropped outside
//! of it. Wakers are called after it is released; except, once, those of [`crate::Tunnel::closed`],
//! which only schedule a task. Who sleeps and how they are woken is in `handover`.

use std::sync::Arc;
use std::task::Context;

use sg_tunnel::{Closed, Config, Connection, Event, Key, Side, StreamEnd};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::StreamError;
use crate::handover::{Call, Desk, Handover, Interest, Machine, Wake};
use crate::transport::Transport;

pub(crate) type Shared = Handover<Parts>;
pub(crate) type State = Desk<Parts>;

pub(crate) struct Parts {
    pub(crate) core: Connection,
    /// A new connection, which the core has been told of and the driver has not taken yet.
    next: Option<Box<dyn Transport>>,
    news: News,
    /// Made for the first one who waits for the end: most tunnels live without.
    closed: Option<watch::Sender<Option<Closed>>>,
}

/// What the owner has to be told about the tunnel's connection: states, so that there is nothing to
/// bound.
#[derive(Default)]
struct News {
    told_detached: bool,
    /// There is a new connection since the owner was told.
    attached: bool,
}

/// What became of the tunnel's connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Detached,
    Resumed,
}

impl Shared {
    pub(crate) fn start(side: Side, config: Arc<Config>) -> Self {
        Self::new(Parts {
            core: Connection::new(side, config, Instant::now().into_std()),
            next: None,
            news: News::default(),
            closed: None,
        })
    }
}

impl Machine for Parts {
    fn poll_wake(&mut self) -> Option<Wake> {
        Some(match self.core.poll_event()? {
            Event::Opened(key) | Event::Readable(key) => Wake::One(key.index(), Interest::Read),
            Event::Writable(key) => Wake::One(key.index(), Interest::Write),
            Event::Ended(key) => Wake::All(key.index()),
            Event::Incoming | Event::Detached => Wake::Incoming,
            Event::Attached => {
                self.news.attached = true;
                Wake::Incoming
            }
            Event::Closed => {
                if let Some(closed) = &self.closed {
                    closed.send_replace(self.core.closed().cloned());
                }
                Wake::Incoming
            }
        })
    }

    fn call(&self) -> Call {
        if self.core.closed().is_some() || self.next.is_some() {
            Call::Now
        } else if self.core.wants_transmit() {
            Call::IfAsleep
        } else {
            Call::No
        }
    }
}

impl Parts {
    /// Attaches a new connection; the driver takes it before it tells the core anything else.
    /// Returns the connection that is of no use any more, to be dropped outside of the lock.
    pub(crate) fn attach(
        &mut self,
        io: Box<dyn Transport>,
    ) -> (Result<(), Closed>, Option<Box<dyn Transport>>) {
        match self.core.attach(Instant::now().into_std()) {
            Ok(()) => {
                // Should this one be lost before the owner has heard of it, that is a loss of its own.
                self.news.told_detached = false;
                (Ok(()), self.next.replace(io))
            }
            Err(closed) => (Err(closed), Some(io)),
        }
    }

    /// The connection that replaces the driver's.
    pub(crate) fn take_next(&mut self) -> Option<Box<dyn Transport>> {
        self.next.take()
    }

    /// What the owner should know about the tunnel's connection.
    pub(crate) fn poll_change(&mut self) -> Option<Change> {
        if self.core.closed().is_some() {
            return None;
        }
        if self.core.is_detached() {
            self.news.attached = false;
            let told = std::mem::replace(&mut self.news.told_detached, true);
            return (!told).then_some(Change::Detached);
        }
        if std::mem::take(&mut self.news.attached) {
            self.news.told_detached = false;
            return Some(Change::Resumed);
        }
        None
    }

    pub(crate) fn subscribe_closed(&mut self) -> watch::Receiver<Option<Closed>> {
        let now = || watch::Sender::new(self.core.closed().cloned());
        self.closed.get_or_insert_with(now).subscribe()
    }

    /// The error that a stream's user sees.
    pub(crate) fn error(&self, end: StreamEnd) -> StreamError {
        match (end, self.core.closed()) {
            (StreamEnd::Reset(code), _) => StreamError::Reset { code },
            (StreamEnd::Lost, Some(closed)) => StreamError::Lost(closed.clone()),
            // Writing after the own FIN: the caller's fault, and nothing was sent.
            (StreamEnd::Finished | StreamEnd::Lost, _) => StreamError::Reset {
                code: sg_tunnel::code::CANCEL,
            },
        }
    }
}

impl State {
    /// Whoever polls this waits for something on the stream.
    pub(crate) fn wait_for(&mut self, key: Key, interest: Interest, cx: &Context<'_>) {
        self.wait(key.index(), interest, cx);
    }

    /// Lets go of a stream; resets it with `code` unless it has finished.
    pub(crate) fn release(&mut self, key: Key, code: u32) {
        self.forget(key.index());
        self.core.release(key, code);
        if self.core.streams() == 0 {
            self.forget_all();
        }
    }
}
