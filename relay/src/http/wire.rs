//! The connections under HTTP, whatever they are: TCP, TLS, the stream of a tunnel. [`Cell`] keeps one where both
//! hyper, which reads and writes it, and its owner, who must notice a reset and must be able to end it, can reach it.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sg_tunnel_io::{TunnelStream, code};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::timeout;

use crate::carrier::end_reason;
use crate::{ByteCounters, EndReason, LocalIo, StreamBroken, StreamIo};

/// How long a connection that is over may take to say so: what still comes is thrown away. A reset in this time
/// could destroy an answer that the far side has not read yet.
const LINGER: Duration = Duration::from_secs(2);

/// How much is thrown away then.
const LINGER_BYTES: usize = 4 * 1024 * 1024;

/// A connection that HTTP runs over. Dropping it in any other way than [`Wire::close`] must be seen as a reset by
/// the far side.
pub trait Wire: AsyncRead + AsyncWrite + Unpin + Send + 'static {
    /// Completes when the connection has failed, also while nobody reads it.
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<EndReason>;

    /// What an error of a read or write means.
    fn reason(error: &io::Error) -> EndReason;

    /// Ends both directions at once; the far side is told this code where the connection can carry one.
    fn abort(self, code: u32);

    /// Lets go of a connection whose writing direction was shut down.
    fn close(self);
}

impl Wire for TunnelStream {
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        self.poll_reset(cx).map(EndReason::from)
    }

    fn reason(error: &io::Error) -> EndReason {
        end_reason(error)
    }

    fn abort(self, code: u32) {
        self.reset(code);
    }

    fn close(self) {}
}

impl Wire for StreamIo {
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        self.poll_reset(cx).map(EndReason::from)
    }

    fn reason(error: &io::Error) -> EndReason {
        StreamBroken::reason_of(error).unwrap_or(EndReason::TunnelLost)
    }

    fn abort(self, code: u32) {
        self.reset(code);
    }

    fn close(self) {}
}

impl Wire for LocalIo {
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        self.poll_failed(cx).map(|_| EndReason::TcpReset)
    }

    fn reason(error: &io::Error) -> EndReason {
        Self::reason(error)
    }

    fn abort(self, _: u32) {
        // Dropping resets it.
    }

    fn close(self) {
        Self::close(self);
    }
}

/// Which way bytes of a connection are counted.
#[derive(Debug, Clone)]
pub(super) struct Counted(pub(super) Arc<ByteCounters>);

/// The code that connections are reset with when their owner is dropped.
#[derive(Debug, Clone)]
pub(super) struct DropCode(Arc<AtomicU32>);

impl DropCode {
    pub(super) fn new() -> Self {
        Self(Arc::new(AtomicU32::new(code::CANCEL)))
    }

    pub(super) fn set(&self, code: u32) {
        self.0.store(code, Ordering::Relaxed);
    }

    pub(super) fn get(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A connection with several holders. When the last one goes, a connection that was not closed is reset.
pub(super) struct Cell<W: Wire>(Arc<Shared<W>>);

struct Shared<W: Wire> {
    inner: Mutex<Inner<W>>,
    /// Why the connection failed, once it has.
    failed: Arc<OnceLock<EndReason>>,
}

struct Inner<W: Wire> {
    wire: Option<W>,
    shut: bool,
    eof: bool,
    written: u64,
    counted: Option<Counted>,
    code: DropCode,
}

impl<W: Wire> Clone for Cell<W> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<W: Wire> Drop for Inner<W> {
    fn drop(&mut self) {
        if let Some(wire) = self.wire.take() {
            wire.abort(self.code.get());
        }
    }
}

impl<W: Wire> Cell<W> {
    pub(super) fn new(wire: W, counted: Option<Counted>, code: DropCode) -> Self {
        Self(Arc::new(Shared {
            inner: Mutex::new(Inner {
                wire: Some(wire),
                shut: false,
                eof: false,
                written: 0,
                counted,
                code,
            }),
            failed: Arc::default(),
        }))
    }

    /// Where the reason of a failure appears.
    pub(super) fn failed(&self) -> Arc<OnceLock<EndReason>> {
        Arc::clone(&self.0.failed)
    }

    /// Bytes written so far.
    pub(super) fn written(&self) -> u64 {
        self.lock().written
    }

    /// Completes when the connection has failed. From then on only what has arrived before can be read, and its
    /// end is an error: it is never taken for a clean one.
    pub(super) fn poll_broken(&self, cx: &mut Context<'_>) -> Poll<EndReason> {
        if let Some(reason) = self.0.failed.get() {
            return Poll::Ready(*reason);
        }
        let mut inner = self.lock();
        let Some(wire) = &mut inner.wire else {
            return Poll::Pending;
        };
        let reason = ready!(wire.poll_broken(cx));
        Poll::Ready(*self.0.failed.get_or_init(|| reason))
    }

    /// Resets it now, unless it is closed already.
    pub(super) fn abort(&self, code: u32) {
        if let Some(wire) = self.lock().wire.take() {
            wire.abort(code);
        }
    }

    /// Ends it in order: says that nothing more comes, waits a little for the far side to say the same.
    pub(super) async fn finish(&self) {
        let mut this = self.clone();
        let done = timeout(LINGER, async {
            this.shutdown().await?;
            let mut waste = vec![0; 16 * 1024];
            let mut thrown = 0;
            while thrown < LINGER_BYTES {
                match this.read(&mut waste).await? {
                    0 => break,
                    n => thrown += n,
                }
            }
            Ok::<_, io::Error>(())
        })
        .await;
        tracing::trace!(?done, "connection finished");
        let (wire, shut, code) = {
            let mut inner = self.lock();
            (inner.wire.take(), inner.shut, inner.code.get())
        };
        match wire {
            Some(wire) if shut && self.0.failed.get().is_none() => wire.close(),
            Some(wire) => wire.abort(code),
            None => {}
        }
    }

    /// Reads what a connection that has failed still holds.
    fn poll_rest(&self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        if let Some(wire) = &mut self.lock().wire
            && let Poll::Ready(Ok(())) = Pin::new(wire).poll_read(cx, buf)
            && buf.filled().len() > before
        {
            return Poll::Ready(Ok(()));
        }
        Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()))
    }

    fn lock(&self) -> MutexGuard<'_, Inner<W>> {
        self.0.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Uses the connection, and notes it when that fails.
    fn with<T>(
        &self,
        operation: impl FnOnce(&mut Inner<W>) -> Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if self.0.failed.get().is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let result = operation(&mut self.lock());
        if let Poll::Ready(Err(error)) = &result {
            self.0.failed.get_or_init(|| W::reason(error));
        }
        result
    }
}

impl<W: Wire> AsyncRead for Cell<W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.0.failed.get().is_some() {
            return self.poll_rest(cx, buf);
        }
        self.with(|inner| {
            if inner.eof {
                return Poll::Ready(Ok(()));
            }
            let Some(wire) = &mut inner.wire else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let before = buf.filled().len();
            ready!(Pin::new(wire).poll_read(cx, buf))?;
            let read = buf.filled().len() - before;
            if read == 0 && buf.remaining() > 0 {
                inner.eof = true;
            }
            if let Some(Counted(counters)) = &inner.counted {
                counters.add_from_tcp(read as u64);
            }
            Poll::Ready(Ok(()))
        })
    }
}

impl<W: Wire> AsyncWrite for Cell<W> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[io::IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.with(|inner| {
            let Some(wire) = &mut inner.wire else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            let written = ready!(Pin::new(wire).poll_write_vectored(cx, bufs))?;
            inner.written = inner.written.wrapping_add(written as u64);
            if let Some(Counted(counters)) = &inner.counted {
                counters.add_to_tcp(written as u64);
            }
            Poll::Ready(Ok(written))
        })
    }

    fn is_write_vectored(&self) -> bool {
        self.lock()
            .wire
            .as_ref()
            .is_some_and(AsyncWrite::is_write_vectored)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|inner| match &mut inner.wire {
            Some(wire) => Pin::new(wire).poll_flush(cx),
            None => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        })
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|inner| {
            if inner.shut {
                return Poll::Ready(Ok(()));
            }
            let Some(wire) = &mut inner.wire else {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            };
            ready!(Pin::new(wire).poll_shutdown(cx))?;
            inner.shut = true;
            Poll::Ready(Ok(()))
        })
    }
}
