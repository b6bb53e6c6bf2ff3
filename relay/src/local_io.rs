//! The local end of a connection as [`AsyncRead`] and [`AsyncWrite`], with or without TLS: for whoever needs more
//! of its bytes than to pass them on.
//!
//! Reading ends with 0 at a FIN, at `close_notify`, and at a FIN without it. Dropping resets the connection,
//! unless it was shut down and then closed with [`LocalIo::close`].

use std::fmt;
use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::socket::{poll_send_with, shutdown_write, socket_error};
use crate::tls::{self, Engine, TlsError};
use crate::{EndReason, Local};

/// A local end, to be read and written.
pub struct LocalIo {
    tcp: Arc<TcpStream>,
    layer: Layer,
    failure: Option<Failure>,
    shut: bool,
    closed: bool,
}

enum Layer {
    /// Bytes as they are, and those that were read before.
    Raw(Bytes),
    Tls(Box<Engine>),
}

/// Waits for the connection's error. It has the socket, too, because it lives as long.
type Failure = Pin<Box<dyn Future<Output = io::Error> + Send>>;

/// A socket that is read through a shared reference.
struct Shared<'a>(&'a TcpStream);

impl From<Local> for LocalIo {
    fn from(local: Local) -> Self {
        let (tcp, layer) = match local {
            Local::Tcp(raw) => (raw.tcp, Layer::Raw(raw.front)),
            Local::Tls(tls) => {
                let (tcp, engine) = tls.into_parts();
                (tcp, Layer::Tls(engine))
            }
        };
        Self {
            tcp: Arc::new(tcp.into_inner()),
            layer,
            failure: None,
            shut: false,
            closed: false,
        }
    }
}

impl LocalIo {
    /// The connection: for its addresses, not for its bytes.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        &self.tcp
    }

    /// Completes when the connection has failed, also while nobody reads it. Whoever has seen that must not read
    /// on: what comes then looks like an end in order.
    pub fn poll_failed(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let failure = self.failure.get_or_insert_with(|| {
            let tcp = Arc::clone(&self.tcp);
            Box::pin(async move { socket_error(&tcp).await })
        });
        failure.as_mut().poll(cx)
    }

    /// What an error of a read or write means for the stream.
    #[must_use]
    pub fn reason(error: &io::Error) -> EndReason {
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        match inner {
            Some(TlsError::Io(_)) | None => EndReason::TcpReset,
            Some(error) => EndReason::Ended(error.code()),
        }
    }

    /// Lets go of a connection that was shut down, in order; of any other it resets it, as dropping does.
    pub fn close(mut self) {
        self.closed = true;
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.layer {
            Layer::Raw(_) => Poll::Ready(Ok(())),
            Layer::Tls(engine) => tls::poll_flush(cx, &self.tcp, engine),
        }
    }
}

impl Drop for LocalIo {
    fn drop(&mut self) {
        if self.shut && self.closed {
            return;
        }
        let reset = SockRef::from(&*self.tcp).set_linger(Some(std::time::Duration::ZERO));
        if let Err(error) = reset {
            tracing::debug!(%error, "the connection could not be reset and is closed");
        }
    }
}

impl AsyncRead for Shared<'_> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read(buffer.initialize_unfilled()) {
                Ok(count) => {
                    buffer.advance(count);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

impl AsyncRead for LocalIo {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        match &mut this.layer {
            Layer::Raw(front) if front.is_empty() => {
                Pin::new(&mut Shared(&this.tcp)).poll_read(cx, buffer)
            }
            Layer::Raw(front) => {
                let count = front.len().min(buffer.remaining());
                buffer.put_slice(&front[..count]);
                front.advance(count);
                Poll::Ready(Ok(()))
            }
            Layer::Tls(engine) => {
                while !engine.has_something() {
                    let mut tcp = Shared(&this.tcp);
                    let filled = ready!(engine.poll_fill(cx, &mut tcp, buffer.remaining()));
                    tls::answer(engine, &this.tcp);
                    filled?;
                }
                engine.take_into(buffer);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for LocalIo {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let offered = slices.iter().map(|slice| slice.len()).sum();
        if offered == 0 {
            return Poll::Ready(Ok(0));
        }
        ready!(this.poll_drain(cx))?;
        let tcp = &*this.tcp;
        match &mut this.layer {
            Layer::Raw(_) => poll_send_with(cx, tcp, || {
                let taken = SockRef::from(tcp).send_vectored(slices)?;
                Ok((offered, taken))
            }),
            Layer::Tls(engine) => {
                let pieces = slices.iter().map(|slice| &**slice);
                Poll::Ready(tls::poll_write(cx, tcp, engine, pieces).map_err(io::Error::from))
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.poll_drain(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.shut {
            return Poll::Ready(Ok(()));
        }
        if let Layer::Tls(engine) = &mut self.layer {
            engine.finish()?;
        }
        ready!(self.poll_drain(cx))?;
        shutdown_write(&self.tcp)?;
        self.shut = true;
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for LocalIo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalIo")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}
