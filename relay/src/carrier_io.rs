//! A stream of a tunnel, compressed or not, as [`AsyncRead`] and [`AsyncWrite`]: for whoever needs more of its
//! bytes than to pass them on.
//!
//! Shutting down ends the sending direction. Dropping it before both directions have ended resets the stream.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use sg_tunnel_io::{StreamError, TunnelStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::EndReason;
use crate::carrier::{Carrier as _, end_reason};
use crate::compress::{Compressed, Grant};

/// Bytes that one write takes at most.
const MOST_WRITTEN: usize = 64 * 1024;

/// One stream of a tunnel, to be read and written.
pub struct StreamIo {
    carrier: Either,
    /// Taken from the writer, and not yet by the stream.
    pending: Bytes,
}

enum Either {
    Plain(TunnelStream),
    Compressed(Box<Compressed>),
}

/// The end of a stream, inside an [`io::Error`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the stream has ended: {}", .0.as_str())]
pub struct StreamBroken(pub EndReason);

impl StreamBroken {
    /// Why the stream ended, if that is what this error is about.
    #[must_use]
    pub fn reason_of(error: &io::Error) -> Option<EndReason> {
        let inner = error.get_ref()?.downcast_ref::<Self>()?;
        Some(inner.0)
    }
}

impl From<EndReason> for StreamBroken {
    fn from(reason: EndReason) -> Self {
        Self(reason)
    }
}

fn broken(reason: EndReason) -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionReset, StreamBroken(reason))
}

/// Calls the method of whichever it is.
macro_rules! carrier {
    ($self:expr, $method:ident ( $($argument:expr),* )) => {
        match &mut $self.carrier {
            Either::Plain(stream) => crate::carrier::Carrier::$method(stream, $($argument),*),
            Either::Compressed(stream) => stream.$method($($argument),*),
        }
    };
}

impl StreamIo {
    /// A stream whose bytes are compressed as both ends have agreed.
    #[must_use]
    pub fn new(stream: TunnelStream, compression: Option<Grant>) -> Self {
        let carrier = match compression {
            None => Either::Plain(stream),
            Some(grant) => Either::Compressed(Box::new(Compressed::new(stream, grant))),
        };
        Self {
            carrier,
            pending: Bytes::new(),
        }
    }

    /// Completes when the far side has reset the stream or the tunnel has ended, even while nobody reads.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        carrier!(self, poll_reset(cx))
    }

    /// Resets both directions with a code of [`sg_tunnel_io::code`].
    pub fn reset(self, code: u32) {
        match self.carrier {
            Either::Plain(stream) => stream.reset(code),
            Either::Compressed(stream) => stream.reset(code),
        }
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.pending.is_empty() {
            ready!(carrier!(self, poll_write_chunk(cx, &mut self.pending))).map_err(broken)?;
        }
        self.pending = Bytes::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for StreamIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match &mut self.carrier {
            Either::Plain(stream) => Pin::new(stream)
                .poll_read(cx, buffer)
                .map_err(|error| broken(end_reason(&error))),
            Either::Compressed(stream) => stream.poll_read(cx, buffer).map_err(broken),
        }
    }
}

impl AsyncWrite for StreamIo {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_drain(cx))?;
        let budget = ready!(carrier!(this, poll_write_ready(cx))).map_err(broken)?;
        let count = bytes.len().min(budget.clamp(1, MOST_WRITTEN));
        this.pending = Bytes::copy_from_slice(&bytes[..count]);
        match this.poll_drain(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes with the next write or flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(count)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(this.poll_drain(cx))?;
        carrier!(this, poll_finish(cx)).map_err(broken)
    }
}

impl fmt::Debug for StreamIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamIo").finish_non_exhaustive()
    }
}
