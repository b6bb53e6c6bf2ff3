//! From the transport into the receive buffer, and from there to the core as slices of it.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use sg_tunnel::Connection;

use crate::transport::Transport;

/// Size of a receive buffer. Larger ones are mapped and unmapped by the allocator each time.
const BUFFER: usize = 64 * 1024;
/// Less room than one TLS record: give the buffer to the core first.
const MIN_ROOM: usize = 16 * 1024;

#[derive(Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    /// Bytes since the last delivery.
    fresh: usize,
    end: Option<End>,
}

/// How the transport ended.
enum End {
    /// The peer said goodbye (protocol 4).
    Orderly,
    Failed(io::Error),
}

/// Why filling stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The transport has no more at present; we will be woken.
    Waiting,
    /// The buffer is full, or the transport has ended.
    Stopped,
}

impl Reader {
    pub(super) fn fill(&mut self, io: &mut dyn Transport, cx: &mut Context<'_>) -> Filled {
        while self.end.is_none() {
            if self.buffer.capacity() - self.buffer.len() < MIN_ROOM {
                if self.fresh > 0 {
                    return Filled::Stopped;
                }
                self.buffer.reserve(BUFFER);
            }
            match io.poll_read(cx, &mut self.buffer) {
                Poll::Pending => return Filled::Waiting,
                Poll::Ready(Ok(0)) => self.end = Some(End::Orderly),
                Poll::Ready(Ok(count)) => self.fresh += count,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => self.end = Some(End::Failed(error)),
            }
        }
        Filled::Stopped
    }

    /// Hands everything to the core: first the bytes, then the end of the transport.
    pub(super) fn deliver(&mut self, core: &mut Connection, now: std::time::Instant) {
        if self.fresh > 0 {
            core.handle_received(now, self.fresh);
            core.handle_input(now, &mut self.buffer);
            self.fresh = 0;
        }
        match &self.end {
            None => {}
            Some(End::Orderly) => core.transport_closed(now),
            Some(End::Failed(error)) => core.transport_lost(now, error.kind(), &error.to_string()),
        }
    }

    /// Reads and forgets until the transport ends.
    pub(super) fn discard(
        &mut self,
        io: &mut dyn Transport,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // The caller's deadline bounds the time, this the work of one turn.
        for _ in 0..16 {
            self.buffer.clear();
            self.buffer.reserve(MIN_ROOM);
            if self.end.is_some() || ready!(io.poll_read(cx, &mut self.buffer))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives back the memory of an empty buffer.
    pub(super) fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }
}
