//! The one task of a tunnel: moves bytes between the transport and the core.
//!
//! Each round reads what is there (up to 448 KiB), hands it to the core, takes one batch from the
//! core and writes it. Reading never waits for writing and writing never for reading; both get a turn
//! in every round, and after [`ROUNDS`] rounds the other tasks of the runtime get theirs.
//!
//! A new batch is built only when the last one has left user space, so that what is urgent goes into
//! the very next write.
//!
//! A tunnel may outlive its connection (protocol 801): then the driver has no [`Link`] and sleeps
//! until [`crate::Tunnel::attach`] brings one, or the tunnel ends. `link` is one connection, `reader` and
//! `writer` are its halves; this file knows the order.

mod gather;
#[cfg(test)]
mod idle;
mod link;
mod reader;
mod writer;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use sg_tunnel::{CloseReason, Closed, Config};
use tokio::time::{Instant, Sleep};

use crate::state::Shared;
use crate::transport::Transport;
use gather::Gather;
use link::Link;

/// Rounds before the driver lets other tasks run.
const ROUNDS: u32 = 4;

/// Drives one tunnel over all its connections; completes when the tunnel has ended for good. Its owner
/// spawns it and notices its end. Dropping it ends the tunnel: all streams and opens fail.
#[must_use = "a tunnel does nothing unless its driver runs"]
pub struct Driver {
    drive: Box<Drive>,
}

impl Driver {
    pub(crate) fn new(io: Box<dyn Transport>, shared: Arc<Shared>, config: &Config) -> Self {
        Self {
            drive: Box::new(Drive {
                link: Some(Link::new(io)),
                shared,
                timer: None,
                wakes: Vec::new(),
                write_stall: config.write_stall,
                linger: config.close_linger,
                gather: Gather::default(),
                busy: false,
                closing: None,
            }),
        }
    }
}

impl Future for Driver {
    type Output = Closed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Closed> {
        self.drive.poll(cx)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

struct Drive {
    /// `None` while the tunnel is detached.
    link: Option<Link>,
    shared: Arc<Shared>,
    timer: Option<Pin<Box<Sleep>>>,
    wakes: Vec<Waker>,
    write_stall: Duration,
    linger: Duration,
    gather: Gather,
    /// There were streams since the timer rang last: memory that they used is kept for the next ones.
    busy: bool,
    closing: Option<Closing>,
}

/// The tunnel has ended; its last words are on their way.
struct Closing {
    closed: Closed,
    deadline: Instant,
}

/// What one exchange with the core came to.
struct Exchange {
    closed: Option<Closed>,
    /// There will be something to write: the tasks that are ready may add to it first.
    paused: bool,
    /// The tunnel is at rest; the core has given back its memory.
    resting: bool,
    deadline: Option<Instant>,
}

impl Drive {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        if self.closing.is_some() {
            return self.poll_closing(cx);
        }
        if let Some(link) = &mut self.link {
            link.begin_turn();
        }
        for _ in 0..ROUNDS {
            if let Some(link) = &mut self.link {
                link.exchange(cx);
            }
            let exchange = self.exchange(cx);
            if let Some(closed) = exchange.closed {
                self.start_closing(closed);
                return self.poll_closing(cx);
            }
            if exchange.paused {
                break;
            }
            if self.link.as_ref().is_none_or(Link::is_waiting) {
                let deadline = self.with_write_stall(exchange.deadline);
                if self.sleep_until(deadline, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// One turn with the core under the lock.
    fn exchange(&mut self, cx: &mut Context<'_>) -> Exchange {
        let Self {
            link,
            gather,
            busy,
            write_stall,
            ..
        } = self;
        // Connections that are of no use any more; closed when the lock is released.
        let mut gone = [None, None];
        let time = Instant::now();
        let now = time.into_std();
        let exchange = self.shared.drive(&mut self.wakes, |state| {
            if let Some(io) = state.take_next() {
                // What the old one had read or was writing is void (protocol 804).
                gone[0] = link.replace(Link::new(io));
            }
            let core = &mut state.core;
            if let Some(link) = link {
                link.deliver(core, *write_stall, time);
            }
            core.handle_timeout(now);
            if core.is_detached() {
                gone[1] = link.take();
            }
            let mut paused = false;
            if let Some(link) = link.as_mut().filter(|link| link.is_drained())
                && core.closed().is_none()
            {
                paused = gather.pause(core);
                if !paused {
                    link.take_batch(core, now);
                }
            }
            *busy |= core.streams() > 0;
            let resting = !*busy && !paused && link.as_ref().is_none_or(Link::is_waiting);
            if resting {
                // Pings and messages alone are too seldom to keep memory for.
                core.release_memory();
            }
            let exchange = Exchange {
                closed: core.closed().cloned(),
                paused,
                resting,
                deadline: core.poll_timeout().map(Instant::from_std),
            };
            // While there is something to write the transport brings us back.
            let sending = link.as_ref().is_some_and(Link::has_work);
            state.park_driver(cx, sending || paused);
            exchange
        });
        drop(gone);
        if exchange.resting
            && let Some(link) = &mut self.link
        {
            link.release();
        }
        for waker in self.wakes.drain(..) {
            waker.wake();
        }
        if !self.busy {
            self.wakes = Vec::new();
        }
        exchange
    }

    fn with_write_stall(&self, deadline: Option<Instant>) -> Option<Instant> {
        let since = self.link.as_ref().and_then(Link::stalled_since);
        let stall = since.map(|at| at + self.write_stall);
        match (deadline, stall) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        }
    }

    /// Registers for `deadline`; ready when it has passed. The timer is moved only when it would
    /// ring too late, not on every sign of life.
    fn sleep_until(&mut self, deadline: Option<Instant>, cx: &mut Context<'_>) -> Poll<()> {
        let Some(deadline) = deadline else {
            return Poll::Pending;
        };
        let timer = self
            .timer
            .get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if timer.deadline() > deadline {
            timer.as_mut().reset(deadline);
        }
        while timer.as_mut().poll(cx).is_ready() {
            // Rings now and then on an idle tunnel: a good time to give back memory.
            self.busy = false;
            if let Some(link) = &mut self.link {
                link.release();
            }
            self.shared.look(|state| state.core.release_memory());
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn start_closing(&mut self, closed: Closed) {
        let linger = match closed.reason {
            CloseReason::Local { .. } | CloseReason::Peer { .. } | CloseReason::Protocol { .. } => {
                self.linger
            }
            CloseReason::Timeout => Duration::ZERO,
            CloseReason::Lost { .. } | CloseReason::Expired | CloseReason::Abandoned => {
                // Nobody there to say goodbye to.
                self.link = None;
                Duration::ZERO
            }
        };
        self.closing = Some(Closing {
            closed,
            deadline: Instant::now() + linger,
        });
        self.timer = None;
    }

    /// Delivers what was being written and the GOAWAY, says goodbye, and waits for the peer to do
    /// the same: closing a socket with unread bytes would reset it and lose the GOAWAY.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let Some(deadline) = self.closing.as_ref().map(|closing| closing.deadline) else {
            return Poll::Pending;
        };
        let done =
            self.poll_goodbye(cx).is_ready() || self.sleep_until(Some(deadline), cx).is_ready();
        match self.closing.take_if(|_| done) {
            Some(closing) => Poll::Ready(closing.closed),
            None => Poll::Pending,
        }
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let (Some(link), Some(closing)) = (&mut self.link, &self.closing) else {
            return Poll::Ready(Ok(()));
        };
        loop {
            std::task::ready!(link.poll_drain(cx))?;
            let now = Instant::now().into_std();
            self.shared.drive(&mut self.wakes, |state| {
                link.take_batch(&mut state.core, now);
            });
            if !link.has_work() {
                break;
            }
        }
        debug_assert!(self.wakes.is_empty(), "a closed core has told everybody");
        std::task::ready!(link.poll_shutdown(cx))?;
        if matches!(closing.closed.reason, CloseReason::Peer { .. }) {
            return Poll::Ready(Ok(()));
        }
        link.poll_discard(cx)
    }
}

impl Drop for Drive {
    fn drop(&mut self) {
        // After a regular end this changes nothing.
        let next = self.shared.command(|state| {
            state
                .core
                .lose(io::ErrorKind::Interrupted, "driver was dropped");
            state.take_next()
        });
        drop(next);
    }
}
