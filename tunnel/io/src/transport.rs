//! What a tunnel needs of the connection beneath it, and the adapter for any byte stream.
//!
//! A tunnel outlives its connections, so the driver holds each behind this trait as a box; another
//! implementation (one that decrypts in place, say) needs no change of the driver. The trait is
//! polled by one task only and says how a connection ended, because that decides whether the tunnel
//! may go on over another one (protocol 4).

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// An established, ordered, reliable connection. Dropping it closes it at once, without a goodbye.
pub trait Transport: Send + Unpin {
    /// Appends received bytes to `buffer`, at most as many as it has spare capacity (which is never
    /// none), and returns how many. Ready with 0 when the peer has ended the connection in order
    /// (TLS: `close_notify`).
    ///
    /// # Errors
    ///
    /// The connection failed, or ended without a goodbye ([`io::ErrorKind::UnexpectedEof`]).
    fn poll_read(&mut self, cx: &mut Context<'_>, buffer: &mut BytesMut)
    -> Poll<io::Result<usize>>;

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
}

/// Any [`AsyncRead`] and [`AsyncWrite`] as a [`Transport`].
#[derive(Debug)]
pub struct Stream<T> {
    io: T,
    /// What the end of the stream means.
    end_is_orderly: bool,
}

impl<T> Stream<T> {
    /// A stream that tells an orderly end (end of file) from a bare one
    /// ([`io::ErrorKind::UnexpectedEof`]), as those of `tokio-rustls` do.
    pub fn new(io: T) -> Self {
        Self {
            io,
            end_is_orderly: true,
        }
    }

    /// A stream that cannot tell, such as a bare TCP connection: every end of file counts as an
    /// end without a goodbye.
    pub fn bare(io: T) -> Self {
        Self {
            io,
            end_is_orderly: false,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for Stream<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut BytesMut,
    ) -> Poll<io::Result<usize>> {
        let count = ready!(pin!(self.io.read_buf(buffer)).poll(cx))?;
        if count == 0 && !self.end_is_orderly {
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
}
