//! The one task of a tunnel: moves bytes between the transport and the core.
//!
//! Each round reads what is there (up to one buffer), hands it to the core, takes one batch from the
//! core and writes it. Reading never waits for writing and writing never for reading; both get a turn
//! in every round, and after [`ROUNDS`] rounds the other tasks of the runtime get theirs.
//!
//! A new batch is built only when the last one has left user space, so that what is urgent goes into
//! the very next write. `reader` and `writer` know the transport; this file knows the order.

mod gather;
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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::{Instant, Sleep};

use crate::state::Shared;
use gather::Gather;
use reader::{Filled, Reader};
use writer::Writer;

/// Rounds before the driver lets other tasks run.
const ROUNDS: u32 = 4;

/// Drives one tunnel; completes when the tunnel has ended. Its owner spawns it and notices its end.
/// Dropping it ends the tunnel: all streams and opens fail.
#[must_use = "a tunnel does nothing unless its driver runs"]
pub struct Driver {
    inner: Pin<Box<dyn Future<Output = Closed> + Send>>,
}

impl Driver {
    pub(crate) fn new<T>(io: T, shared: Arc<Shared>, config: &Config) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        Self {
            inner: Box::pin(Drive {
                io,
                shared,
                reader: Reader::default(),
                writer: Writer::default(),
                timer: None,
                wakes: Vec::new(),
                write_stall: config.write_stall,
                linger: config.close_linger,
                gather: Gather::default(),
                closing: None,
            }),
        }
    }
}

impl Future for Driver {
    type Output = Closed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Closed> {
        self.inner.as_mut().poll(cx)
    }
}

impl fmt::Debug for Driver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

struct Drive<T> {
    io: T,
    shared: Arc<Shared>,
    reader: Reader,
    writer: Writer,
    timer: Option<Pin<Box<Sleep>>>,
    wakes: Vec<Waker>,
    write_stall: Duration,
    linger: Duration,
    gather: Gather,
    closing: Option<Closing>,
}

/// The tunnel has ended; its last words are on their way.
struct Closing {
    closed: Closed,
    deadline: Instant,
    shut_down: bool,
}

/// What one exchange with the core came to.
struct Exchange {
    closed: Option<Closed>,
    /// There is something to write.
    sending: bool,
    /// There will be: the tasks that are ready may add to it first.
    paused: bool,
    deadline: Option<Instant>,
}

impl<T: AsyncRead + AsyncWrite + Unpin> Future for Drive<T> {
    type Output = Closed;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Closed> {
        let this = self.get_mut();
        if this.closing.is_some() {
            return this.poll_closing(cx);
        }
        let mut read_waits = false;
        for _ in 0..ROUNDS {
            // A read that waits has registered us, and is tried again in the next turn.
            if !read_waits {
                read_waits = this.reader.fill(&mut this.io, cx) == Filled::Waiting;
            }
            let written = this.writer.drain(&mut this.io, cx);
            let write_waits = written.is_pending();
            let exchange = this.exchange(cx, written);
            if let Some(closed) = exchange.closed {
                this.start_closing(closed);
                return this.poll_closing(cx);
            }
            if exchange.paused {
                break;
            }
            if read_waits && (write_waits || !exchange.sending) {
                let deadline = this.with_write_stall(exchange.deadline);
                if this.sleep_until(deadline, cx).is_pending() {
                    return Poll::Pending;
                }
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Drive<T> {
    /// One turn with the core under the lock.
    fn exchange(&mut self, cx: &mut Context<'_>, written: Poll<io::Result<()>>) -> Exchange {
        let Self {
            reader,
            writer,
            gather,
            ..
        } = self;
        let mut paused = false;
        let time = Instant::now();
        let now = time.into_std();
        let stalled = writer.stalled_for(time) >= self.write_stall;
        let ready = matches!(written, Poll::Ready(Ok(())));
        if ready {
            writer.measure(time);
        }
        let exchange = self.shared.drive(&mut self.wakes, |state| {
            let core = &mut state.core;
            reader.deliver(core, now);
            match &written {
                Poll::Ready(Err(error)) => {
                    core.transport_lost(now, error.kind(), &error.to_string())
                }
                Poll::Pending if stalled => core.time_out(now),
                _ => {}
            }
            core.handle_timeout(now);
            if ready && core.closed().is_none() {
                paused = gather.pause(core);
                if !paused {
                    writer.take_batch(core, now);
                }
            }
            let sending = writer.has_work();
            let exchange = Exchange {
                closed: core.closed().cloned(),
                sending,
                paused,
                deadline: core.poll_timeout().map(Instant::from_std),
            };
            // While there is something to write the transport brings us back.
            state.park_driver(cx, sending || paused);
            exchange
        });
        for waker in self.wakes.drain(..) {
            waker.wake();
        }
        exchange
    }

    fn with_write_stall(&self, deadline: Option<Instant>) -> Option<Instant> {
        let stall = self.writer.stalled_since().map(|at| at + self.write_stall);
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
            self.reader.release();
            self.writer.release();
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
        Poll::Pending
    }

    fn start_closing(&mut self, closed: Closed) {
        let linger = match closed.reason {
            CloseReason::Lost { .. } | CloseReason::Timeout => Duration::ZERO,
            _ => self.linger,
        };
        self.closing = Some(Closing {
            closed,
            deadline: Instant::now() + linger,
            shut_down: false,
        });
        self.timer = None;
    }

    /// Delivers what was being written and the GOAWAY, says goodbye, and waits for the peer to do
    /// the same: closing a socket with unread bytes would reset it and lose the GOAWAY.
    fn poll_closing(&mut self, cx: &mut Context<'_>) -> Poll<Closed> {
        let Some(closing) = &self.closing else {
            return Poll::Pending;
        };
        let (deadline, lost) = (
            closing.deadline,
            matches!(closing.closed.reason, CloseReason::Lost { .. }),
        );
        let done = lost
            || matches!(self.poll_goodbye(cx), Poll::Ready(_))
            || self.sleep_until(Some(deadline), cx).is_ready();
        if !done {
            return Poll::Pending;
        }
        match self.closing.take() {
            Some(closing) => Poll::Ready(closing.closed),
            None => Poll::Pending,
        }
    }

    fn poll_goodbye(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let peer_closed = self
            .closing
            .as_ref()
            .is_some_and(|c| matches!(c.closed.reason, CloseReason::Peer { .. }));
        loop {
            std::task::ready!(self.writer.drain(&mut self.io, cx))?;
            let now = Instant::now().into_std();
            let Self { writer, .. } = self;
            self.shared
                .drive(&mut self.wakes, |s| writer.take_batch(&mut s.core, now));
            if !self.writer.has_work() {
                break;
            }
        }
        if let Some(closing) = self.closing.as_mut().filter(|c| !c.shut_down) {
            std::task::ready!(Pin::new(&mut self.io).poll_shutdown(cx))?;
            closing.shut_down = true;
        }
        if peer_closed {
            return Poll::Ready(Ok(()));
        }
        self.reader.discard(&mut self.io, cx)
    }
}

impl<T> Drop for Drive<T> {
    fn drop(&mut self) {
        // After a regular end this changes nothing.
        self.shared.command(|state| {
            state
                .core
                .lose(io::ErrorKind::Interrupted, "driver was dropped");
        });
    }
}
