//! One connection of a tunnel: the transport, and what belongs to it alone. Dropping it closes the
//! connection and forgets the bytes that stood in its buffers: a resumable core has them in its log.

use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use sg_tunnel::Connection;
use tokio::time::Instant;

use super::reader::{Filled, Reader};
use super::writer::Writer;
use crate::transport::Transport;

pub(super) struct Link {
    io: Box<dyn Transport>,
    reader: Reader,
    writer: Writer,
    /// In this turn of the driver: there is no more to read, and we will be woken.
    read_waits: bool,
    write_waits: bool,
    /// Writing failed. What the peer said before that is still to be read: it may be a GOAWAY.
    broken: Option<io::Error>,
    shut_down: bool,
}

impl Link {
    pub(super) fn new(io: Box<dyn Transport>) -> Self {
        Self {
            io,
            reader: Reader::default(),
            writer: Writer::default(),
            read_waits: false,
            write_waits: false,
            broken: None,
            shut_down: false,
        }
    }

    /// The driver has been polled: whoever registered before must do so again.
    pub(super) fn begin_turn(&mut self) {
        self.read_waits = false;
    }

    /// Reads what is there and writes what is left.
    pub(super) fn exchange(&mut self, cx: &mut Context<'_>) {
        // A read that waits has registered us, and is tried again in the next turn.
        if !self.read_waits {
            self.read_waits = self.reader.fill(&mut *self.io, cx) == Filled::Waiting;
        }
        if self.broken.is_some() {
            return;
        }
        match self.writer.drain(&mut *self.io, cx) {
            Poll::Pending => self.write_waits = true,
            Poll::Ready(Ok(())) => self.write_waits = false,
            Poll::Ready(Err(error)) => {
                self.write_waits = true;
                self.broken = Some(error);
                // What came meanwhile may say why.
                self.read_waits = false;
            }
        }
    }

    /// Tells the core what came, and how the connection ended if it has.
    pub(super) fn deliver(&mut self, core: &mut Connection, stall: Duration, time: Instant) {
        let now = time.into_std();
        self.reader.deliver(core, now);
        if let Some(error) = self.broken.as_ref().filter(|_| self.read_waits) {
            core.transport_lost(now, error.kind(), &error.to_string());
        } else if self.write_waits && self.writer.stalled_for(time) >= stall {
            core.time_out(now);
        }
        if !self.write_waits
            && let Some(fast) = self.writer.measure(time)
        {
            self.io.set_fast(fast);
        }
    }

    /// Whether everything that was taken has left user space: time for the next batch.
    pub(super) fn is_drained(&self) -> bool {
        !self.write_waits
    }

    pub(super) fn take_batch(&mut self, core: &mut Connection, now: std::time::Instant) {
        self.writer.take_batch(core, now);
    }

    /// Whether there is something to write.
    pub(super) fn has_work(&self) -> bool {
        self.writer.has_work()
    }

    /// Whether only the transport can bring us on.
    pub(super) fn is_waiting(&self) -> bool {
        self.read_waits && (self.write_waits || !self.writer.has_work())
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.writer.stalled_since()
    }

    /// Gives back the memory of empty buffers.
    pub(super) fn release(&mut self) {
        self.io.release();
        self.reader.release();
        self.writer.release();
    }

    /// Writes what was taken.
    pub(super) fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer.drain(&mut *self.io, cx)
    }

    /// Says goodbye, once.
    pub(super) fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.shut_down {
            std::task::ready!(self.io.poll_shutdown(cx))?;
            self.shut_down = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Reads and forgets until the connection ends.
    pub(super) fn poll_discard(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.reader.discard(&mut *self.io, cx)
    }
}
