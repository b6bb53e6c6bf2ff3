//! From the transport into the receive buffer, and from there to the core as slices of it.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use sg_tunnel::Connection;
use tokio::io::{AsyncRead, AsyncReadExt};

/// Size of a receive buffer. Larger ones are mapped and unmapped by the allocator each time.
const BUFFER: usize = 64 * 1024;
/// Less room than one TLS record: give the buffer to the core first.
const MIN_ROOM: usize = 16 * 1024;

#[derive(Default)]
pub(super) struct Reader {
    buffer: BytesMut,
    /// Bytes since the last delivery.
    fresh: usize,
    end: Option<io::Error>,
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
    pub(super) fn fill<T>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Filled
    where
        T: AsyncRead + Unpin,
    {
        while self.end.is_none() {
            if self.buffer.capacity() - self.buffer.len() < MIN_ROOM {
                if self.fresh > 0 {
                    return Filled::Stopped;
                }
                self.buffer.reserve(BUFFER);
            }
            match pin!(io.read_buf(&mut self.buffer)).poll(cx) {
                Poll::Pending => return Filled::Waiting,
                Poll::Ready(Ok(0)) => {
                    self.end = Some(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "the peer's side of the connection ended",
                    ));
                }
                Poll::Ready(Ok(count)) => self.fresh += count,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => self.end = Some(error),
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
        if let Some(error) = &self.end {
            core.transport_lost(now, error.kind(), &error.to_string());
        }
    }

    /// Reads and forgets until the transport ends.
    pub(super) fn discard<T>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<io::Result<()>>
    where
        T: AsyncRead + Unpin,
    {
        // The caller's deadline bounds the time, this the work of one turn.
        for _ in 0..16 {
            self.buffer.clear();
            self.buffer.reserve(MIN_ROOM);
            if self.end.is_some() || ready!(pin!(io.read_buf(&mut self.buffer)).poll(cx))? == 0 {
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
