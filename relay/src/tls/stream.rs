//! An established TLS connection: for [`crate::join`] the socket and its records apart, for everybody else
//! [`AsyncRead`] and [`AsyncWrite`].
//!
//! Reading ends with 0 both after `close_notify` and after a bare end of the connection. Dropping resets the
//! connection, unless it was shut down before.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::engine::{Engine, Fault};
use crate::socket::{ResetOnDrop, poll_send, shutdown_write};

/// A TLS connection over TCP, as client or server.
pub struct TlsStream {
    tcp: ResetOnDrop,
    engine: Box<Engine>,
    /// Our FIN is sent.
    shut: bool,
}

impl TlsStream {
    pub(super) fn new(tcp: ResetOnDrop, engine: Engine) -> Self {
        Self {
            tcp,
            engine: Box::new(engine),
            shut: false,
        }
    }

    /// The connection under it: for its addresses and its error, not for its bytes.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.tcp.tcp()
    }

    pub(crate) fn into_parts(self) -> (ResetOnDrop, Box<Engine>) {
        (self.tcp, self.engine)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        poll_flush(cx, self.tcp.tcp(), &mut self.engine)
    }

    fn poll_seal<'p>(
        &mut self,
        cx: &mut Context<'_>,
        pieces: impl Iterator<Item = &'p [u8]>,
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_drain(cx))?;
        let tcp = self.tcp.tcp();
        let count = poll_write(cx, tcp, &mut self.engine, pieces)?;
        Poll::Ready(Ok(count))
    }
}

/// Writes what the engine has for the socket.
pub(crate) fn poll_flush(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    engine: &mut Engine,
) -> Poll<io::Result<()>> {
    while !engine.outgoing().is_empty() {
        let count = ready!(poll_send(cx, tcp, engine.outgoing()))?;
        engine.sent(count);
    }
    Poll::Ready(Ok(()))
}

/// Seals a good write's worth of plaintext and offers it to the socket; what that does not take is to be
/// flushed before the next. Answers how much plaintext was taken.
pub(crate) fn poll_write<'p>(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    engine: &mut Engine,
    pieces: impl Iterator<Item = &'p [u8]>,
) -> Result<usize, Fault> {
    engine.write(pieces, |sealed| match poll_send(cx, tcp, sealed) {
        Poll::Ready(result) => result,
        Poll::Pending => Ok(0),
    })
}

/// After a read: an answer of TLS itself, or an alert, leaves now if it can, else with the next write.
pub(crate) fn answer(engine: &mut Engine, tcp: &TcpStream) {
    if !engine.outgoing().is_empty()
        && let Ok(count) = tcp.try_write(engine.outgoing())
    {
        engine.sent(count);
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if buffer.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        while !this.engine.has_something() {
            let tcp = this.tcp.tcp_mut();
            let filled = ready!(this.engine.poll_fill(cx, tcp, buffer.remaining()));
            answer(&mut this.engine, this.tcp.tcp());
            filled?;
        }
        this.engine.take_into(buffer);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.poll_seal(cx, std::iter::once(bytes))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.poll_seal(cx, slices.iter().map(|slice| &**slice))
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
        self.engine.finish()?;
        ready!(self.poll_drain(cx))?;
        shutdown_write(self.tcp.tcp())?;
        self.shut = true;
        self.tcp.ended_well();
        Poll::Ready(Ok(()))
    }
}

impl fmt::Debug for TlsStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TlsStream")
            .field("tcp", &self.tcp)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::future::poll_fn;

    use sg_runtime::tls::material::Pair;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::time::{Duration, Instant};

    use super::TlsStream;
    use crate::tls::{ResourceTls, ResourceTlsSettings, UserTls, UserTlsSettings};

    /// Two ends that have shaken hands.
    async fn pair() -> (TlsStream, TlsStream) {
        let pair = Pair::self_signed("db.example", Duration::from_secs(3600)).unwrap();
        let mut settings = ResourceTlsSettings::new("db.example");
        settings.certificates = pair.chain().to_vec();
        let resource = ResourceTls::new(settings).unwrap();
        let user = UserTls::new(UserTlsSettings {
            servers: vec![pair],
            ..UserTlsSettings::default()
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let deadline = Instant::now() + Duration::from_secs(20);
        let near = async {
            let tcp = TcpStream::connect(address).await.unwrap();
            resource.connect(tcp, deadline).await.unwrap().0
        };
        let far = async {
            let (tcp, _) = listener.accept().await.unwrap();
            let hello = user.accept(tcp, deadline).await.unwrap();
            hello.finish(None, deadline).await.unwrap().0
        };
        tokio::join!(near, far)
    }

    #[tokio::test]
    async fn no_more_is_taken_than_was_asked_for() {
        let (mut near, mut far) = pair().await;
        let fill = async |far: &mut TlsStream, room| {
            let (tcp, engine) = (&mut far.tcp, &mut far.engine);
            poll_fn(|cx| engine.poll_fill(cx, tcp.tcp_mut(), room)).await
        };
        near.write_all(&[7; 10_000]).await.unwrap();
        near.flush().await.unwrap();
        while !far.engine.has_something() {
            fill(&mut far, 65_536).await.unwrap();
        }
        let taken = far.engine.take(4096);
        assert!(taken == vec![7; 4096]);
        assert_eq!(far.engine.take(65_536).len(), 10_000 - 4096);
        assert!(!far.engine.has_something());
    }

    #[tokio::test]
    async fn a_connection_keeps_no_buffer_while_nothing_moves() {
        let (mut near, mut far) = pair().await;
        let bytes = vec![7; 300_000];
        for _ in 0..2 {
            let mut received = vec![0; bytes.len()];
            let (sent, got) = tokio::join!(near.write_all(&bytes), far.read_exact(&mut received));
            sent.unwrap();
            got.unwrap();
            near.flush().await.unwrap();
            std::mem::swap(&mut near, &mut far);
        }
        assert_eq!((near.engine.buffered(), far.engine.buffered()), (0, 0));
        let size = size_of::<crate::tls::Engine>();
        assert!(size < 2048, "{size} bytes for each connection");
    }
}
