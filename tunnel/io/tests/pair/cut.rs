//! Connections that end after a number of bytes, each in its own way.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};

use bytes::BytesMut;
use sg_tunnel_io::Transport;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// An error here; whatever a dropped stream does there.
    Error,
    /// Our side of the stream is dropped; here nothing comes any more.
    Vanish,
    /// Nothing comes and nothing goes, at both ends.
    Silence,
}

/// A transport that carries `left` bytes, both ways together, and then ends.
pub struct Cut<T> {
    io: Option<T>,
    left: usize,
    how: How,
    dead: Arc<AtomicBool>,
    carried: Arc<AtomicUsize>,
}

impl<T> Cut<T> {
    pub fn after(io: T, left: usize, how: How) -> Self {
        Self {
            io: Some(io),
            left,
            how,
            dead: Arc::default(),
            carried: Arc::default(),
        }
    }

    /// Set when the connection has been cut.
    pub fn is_dead(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.dead)
    }

    /// Bytes so far, both ways together.
    pub fn carried(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.carried)
    }

    fn count(&mut self, bytes: usize) {
        self.left -= bytes;
        self.carried.fetch_add(bytes, Ordering::Relaxed);
    }

    fn cut<R>(&mut self) -> Poll<io::Result<R>> {
        self.dead.store(true, Ordering::Relaxed);
        match self.how {
            How::Error => {
                self.io = None;
                Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
            }
            How::Vanish => {
                self.io = None;
                Poll::Pending
            }
            How::Silence => Poll::Pending,
        }
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for Cut<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        let left = self.left;
        let Some(io) = self.io.as_mut().filter(|_| left > 0) else {
            return self.cut();
        };
        let mut piece = io.take(left as u64);
        let mut buffer = BytesMut::with_capacity(64 * 1024);
        let read = std::task::ready!(pin!(piece.read_buf(&mut buffer)).poll(cx))?;
        if read == 0 {
            return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
        }
        pieces.push_back(buffer);
        self.count(read);
        Poll::Ready(Ok(read))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let left = self.left;
        let Some(io) = self.io.as_mut().filter(|_| left > 0) else {
            return self.cut();
        };
        let Some(first) = slices.iter().find(|slice| !slice.is_empty()) else {
            return Poll::Ready(Ok(0));
        };
        let piece = &first[..first.len().min(left)];
        let written = std::task::ready!(Pin::new(io).poll_write(cx, piece))?;
        self.count(written);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_flush(cx),
            None => self.cut(),
        }
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.io {
            Some(io) => Pin::new(io).poll_shutdown(cx),
            None => self.cut(),
        }
    }

    fn release(&mut self) {}
}
