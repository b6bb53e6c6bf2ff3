//! What a tunnel needs of the connection beneath it, and the adapter for any byte stream.
//!
//! A tunnel outlives its connections, so the driver holds each behind this trait as a box; another
//! implementation (one that decrypts in place, say) needs no change of the driver. The trait is
//! polled by one task only and says how a connection ended, because that decides whether the tunnel
//! may go on over another one (protocol 4).

use std::collections::VecDeque;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// An established, ordered, reliable connection. Dropping it closes it at once, without a goodbye.
pub trait Transport: Send + Unpin {
    /// Appends received bytes to `pieces`, about 256 KiB at most in about 1,000 pieces at most, and returns how
    /// many bytes. Ready with 0 when the peer has ended the connection in order (TLS: `close_notify`).
    ///
    /// Pieces may share memory, in buffers of up to about 256 KiB: a tunnel limits how many of them its streams hold on to.
    ///
    /// # Errors
    ///
    /// The connection failed, or ended without a goodbye ([`io::ErrorKind::UnexpectedEof`]).
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>>;

    /// Takes bytes from the front of `slices`, and returns how many; at least 1, as the slices are
    /// never all empty.
    ///
    /// # Errors
    ///
    /// The connection failed.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>>;

    /// Ready when everything that was taken has left user space.
    ///
    /// # Errors
    ///
    /// The connection failed.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Ends the sending direction in order (TLS: `close_notify`, then FIN).
    ///
    /// # Errors
    ///
    /// The connection failed.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// A number that changes whenever the system has taken bytes, also of what this has not taken in full yet: while it
    /// does, a write that waits has not stalled. Constant by default, for a transport that holds little.
    fn progress(&self) -> u64 {
        0
    }

    /// Gives back the memory of empty buffers.
    fn release(&mut self);

    /// The link has turned out to be fast, or no longer: how much may wait in the system follows from that,
    /// because what waits there can no longer be overtaken. Nothing by default.
    fn set_fast(&mut self, _fast: bool) {}
}

/// Size of a receive buffer.
const BUFFER: usize = 64 * 1024;
/// With less room than this, the next buffer is begun.
const LEAST_ROOM: usize = 16 * 1024;

/// Any [`AsyncRead`] and [`AsyncWrite`] as a [`Transport`].
#[derive(Debug)]
pub struct Stream<T> {
    io: T,
    /// Empty, with room for what comes.
    buffer: BytesMut,
    /// What the end of the stream means.
    end_is_orderly: bool,
}

impl<T> Stream<T> {
    /// A stream that tells an orderly end (end of file) from a bare one
    /// ([`io::ErrorKind::UnexpectedEof`]), as those of `tokio-rustls` do.
    pub fn new(io: T) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            end_is_orderly: true,
        }
    }

    /// A stream that cannot tell, such as a bare TCP connection: every end of file counts as an
    /// end without a goodbye.
    pub fn bare(io: T) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            end_is_orderly: false,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for Stream<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        if self.buffer.capacity() < LEAST_ROOM {
            self.buffer.reserve(BUFFER);
        }
        let count = ready!(pin!(self.io.read_buf(&mut self.buffer)).poll(cx))?;
        if count > 0 {
            pieces.push_back(self.buffer.split());
        } else if !self.end_is_orderly {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        Poll::Ready(Ok(count))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn release(&mut self) {
        self.buffer = BytesMut::new();
    }
}
