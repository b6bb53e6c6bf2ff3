//! Between the socket and rustls during the handshake: reads much, and gives one record at a time, so that rustls
//! never holds a part of a record when the connection is taken over.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::io::poll_read_buf;

use super::HEADER;
use super::keys::Capture;

/// Bytes that one read may take.
const ROOM: usize = 4 * 1024;

/// A connection whose handshake is still rustls' business and whose records are to be taken over afterwards.
#[derive(Debug)]
pub struct RecordWise<T> {
    pub(super) io: T,
    /// Read, and not yet given.
    pub(super) buffer: BytesMut,
    /// Bytes of the present record that were not yet given; none between two records.
    pub(super) left: usize,
    pub(super) capture: Arc<Capture>,
}

impl<T> RecordWise<T> {
    pub(in crate::tls) fn new(io: T) -> Self {
        Self {
            io,
            buffer: BytesMut::new(),
            left: 0,
            capture: Arc::default(),
        }
    }

    /// What is beneath.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    pub(in crate::tls) fn key_log(&self) -> Arc<dyn rustls::KeyLog> {
        Arc::clone(&self.capture) as Arc<dyn rustls::KeyLog>
    }

    /// How many bytes of what was read may be given now.
    fn available(&mut self) -> usize {
        if self.left == 0
            && let Some([_, _, _, high, low]) = self.buffer.first_chunk::<HEADER>()
        {
            self.left = HEADER + usize::from(u16::from_be_bytes([*high, *low]));
        }
        self.left.min(self.buffer.len())
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for RecordWise<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if out.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        loop {
            let count = this.available().min(out.remaining());
            if count > 0 {
                out.put_slice(&this.buffer[..count]);
                this.buffer.advance(count);
                this.left -= count;
                return Poll::Ready(Ok(()));
            }
            this.buffer.reserve(ROOM);
            let read = ready!(poll_read_buf(Pin::new(&mut this.io), cx, &mut this.buffer))?;
            if read == 0 {
                // What is no whole header is for rustls to judge, too.
                if this.buffer.is_empty() {
                    return Poll::Ready(Ok(()));
                }
                this.left = this.buffer.len();
            }
        }
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for RecordWise<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}
