//! The one lock of a tunnel: the core and who waits for what.
//!
//! Lock order: there is only this lock. No IO is done under it, and wakers are called after it is released;
//! except, once, those of [`crate::Tunnel::closed`], which only schedule a task.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use sg_tunnel::{Closed, Config, Connection, Event, Key, Side, StreamEnd};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::StreamError;

/// Waker slots that an idle tunnel may keep.
const KEEP_SLOTS: usize = 64;

pub(crate) struct Shared {
    state: Mutex<State>,
    closed: watch::Sender<Option<Closed>>,
}

pub(crate) struct State {
    pub(crate) core: Connection,
    /// By index of the stream's key.
    wakers: Vec<StreamWakers>,
    incoming: Option<Waker>,
    driver: Option<Waker>,
    /// The driver will look at the core again without being woken.
    driver_awake: bool,
}

#[derive(Default)]
struct StreamWakers {
    read: Option<Waker>,
    write: Option<Waker>,
    reset: Option<Waker>,
}

/// What a task waits for on a stream.
#[derive(Clone, Copy)]
pub(crate) enum Interest {
    /// Also the answer to an open.
    Read,
    Write,
    Reset,
}

impl Shared {
    pub(crate) fn new(side: Side, config: Config) -> Self {
        Self {
            state: Mutex::new(State {
                core: Connection::new(side, config, Instant::now().into_std()),
                wakers: Vec::new(),
                incoming: None,
                driver: None,
                // It has to be polled once anyway.
                driver_awake: true,
            }),
            closed: watch::Sender::new(None),
        }
    }

    /// Runs a command of a handle; wakes whom it concerns after the lock is released.
    pub(crate) fn command<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut wakes = Vec::new();
        let mut state = self.lock();
        let result = f(&mut state);
        self.dispatch(&mut state, &mut wakes);
        let driver = state.driver_to_wake();
        drop(state);
        if let Some(driver) = driver {
            driver.wake();
        }
        for waker in wakes {
            waker.wake();
        }
        result
    }

    /// Looks without changing anything that would have to be sent.
    pub(crate) fn look<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        f(&mut self.lock())
    }

    /// The driver's turn: like [`Self::command`], but collects the wakers for its own list.
    pub(crate) fn drive<R>(&self, wakes: &mut Vec<Waker>, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        let result = f(&mut state);
        self.dispatch(&mut state, wakes);
        result
    }

    pub(crate) fn subscribe_closed(&self) -> watch::Receiver<Option<Closed>> {
        self.closed.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic under the lock is a bug of ours; the others may at least find the tunnel closed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn dispatch(&self, state: &mut State, wakes: &mut Vec<Waker>) {
        while let Some(event) = state.core.poll_event() {
            match event {
                Event::Opened(key) | Event::Readable(key) => {
                    wakes.extend(state.waiting(key).and_then(|w| w.read.take()));
                }
                Event::Writable(key) => {
                    wakes.extend(state.waiting(key).and_then(|w| w.write.take()));
                }
                Event::Ended(key) => {
                    if let Some(waiting) = state.waiting(key) {
                        let all = [&mut waiting.read, &mut waiting.write, &mut waiting.reset];
                        wakes.extend(all.into_iter().filter_map(Option::take));
                    }
                }
                // The driver and the owners look at the core.
                Event::Detached | Event::Attached => {}
                Event::Incoming => wakes.extend(state.incoming.take()),
                Event::Closed => {
                    self.closed.send_replace(state.core.closed().cloned());
                }
            }
        }
    }
}

impl State {
    /// The driver goes to sleep until it is woken, or comes back by itself.
    pub(crate) fn park_driver(&mut self, cx: &Context<'_>, awake: bool) {
        self.driver_awake = awake;
        register(&mut self.driver, cx);
    }

    pub(crate) fn wait_incoming(&mut self, cx: &Context<'_>) {
        register(&mut self.incoming, cx);
    }

    pub(crate) fn wait(&mut self, key: Key, interest: Interest, cx: &Context<'_>) {
        let index = key.index();
        if self.wakers.len() <= index {
            self.wakers.resize_with(index + 1, StreamWakers::default);
        }
        let waiting = &mut self.wakers[index];
        let slot = match interest {
            Interest::Read => &mut waiting.read,
            Interest::Write => &mut waiting.write,
            Interest::Reset => &mut waiting.reset,
        };
        register(slot, cx);
    }

    /// Lets go of a stream; resets it with `code` unless it has finished.
    pub(crate) fn release(&mut self, key: Key, code: u32) {
        if let Some(waiting) = self.wakers.get_mut(key.index()) {
            *waiting = StreamWakers::default();
        }
        self.core.release(key, code);
        if self.core.streams() == 0 && self.wakers.len() > KEEP_SLOTS {
            self.wakers = Vec::new();
        }
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

    fn waiting(&mut self, key: Key) -> Option<&mut StreamWakers> {
        self.wakers.get_mut(key.index())
    }

    fn driver_to_wake(&mut self) -> Option<Waker> {
        // A closed tunnel wakes its driver even while that waits for the transport.
        let wanted = match self.core.closed() {
            Some(_) => true,
            None => !self.driver_awake && self.core.wants_transmit(),
        };
        if !wanted {
            return None;
        }
        self.driver_awake = true;
        self.driver.take()
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
