//! What a relayed TCP connection needs beyond reading and writing: its options, its error while nobody
//! reads it, and a close that is a reset unless both directions have ended well.

use std::future::poll_fn;
use std::io;
use std::net::{Shutdown, SocketAddr};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sg_runtime::net;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;
/// Whether a connection has the options of the socket that it was accepted from.
const INHERITED: bool = cfg!(target_os = "linux");

/// Sets the options of a relayed connection: no delay, and keepalive, which asks a peer that has been silent for so
/// long whether it is still there. By default after a minute, so that a peer that vanished is noticed after about
/// two.
///
/// # Errors
/// When the connection is gone already, or the system does not take the time (it takes whole seconds, at least one).
pub fn tune(tcp: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    set_options(SockRef::from(tcp), keepalive)
}

fn set_options(socket: SockRef<'_>, keepalive: Option<Duration>) -> io::Result<()> {
    let idle = keepalive.unwrap_or(KEEPALIVE_IDLE);
    // Who wants to know early also wants the further questions early.
    let interval = KEEPALIVE_INTERVAL.min(idle);
    socket.set_tcp_nodelay(true)?;
    net::set_keepalive(socket, idle, interval, KEEPALIVE_PROBES)
}

/// Listens for connections that have the usual options from the start, where the system hands them on.
///
/// # Errors
/// As [`net::bind_tcp`].
pub fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    net::bind_tcp_with(address, |socket| match INHERITED {
        true => set_options(socket, None),
        false => Ok(()),
    })
}

/// As [`tune`], for a connection that was accepted from [`listen`].
///
/// # Errors
/// As [`tune`].
pub fn tune_accepted(tcp: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    match keepalive {
        // Five system calls for each connection less.
        None if INHERITED => Ok(()),
        _ => tune(tcp, keepalive),
    }
}

/// Waits until the connection has failed: reset by its peer, or given up by keepalive. Notices it while
/// nobody reads, and with unread data before it. Cancel safe.
///
/// The error is taken from the socket: reads after that would give the rest of the data and then a
/// clean end. Whoever awaits this must treat the connection as reset from then on.
pub async fn socket_error(tcp: &TcpStream) -> io::Error {
    loop {
        if let Err(error) = tcp.ready(Interest::ERROR).await {
            return error;
        }
        match tcp.take_error() {
            Ok(Some(error)) | Err(error) => return error,
            Ok(None) => forget_readiness(tcp).await,
        }
    }
}

/// Readiness without an error behind it (a read or write has taken it first): without this, the next wait
/// would return at once, for ever.
async fn forget_readiness(tcp: &TcpStream) {
    let nothing: io::Result<()> =
        tcp.try_io(Interest::ERROR, || Err(io::ErrorKind::WouldBlock.into()));
    debug_assert!(nothing.is_err(), "the operation always would block");
    // Should the system report it again and again, other tasks still get their turn.
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// One write, as far as the socket takes it.
pub(crate) fn poll_send(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    bytes: &[u8],
) -> Poll<io::Result<usize>> {
    poll_send_with(cx, tcp, || {
        SockRef::from(tcp)
            .send(bytes)
            .map(|taken| (bytes.len(), taken))
    })
}

/// One write of the caller's making, which answers how many bytes were offered, and taken.
pub(crate) fn poll_send_with(
    cx: &mut Context<'_>,
    tcp: &TcpStream,
    mut send: impl FnMut() -> io::Result<(usize, usize)>,
) -> Poll<io::Result<usize>> {
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        let mut written = 0;
        let result = tcp.try_io(Interest::WRITABLE, || {
            let (offered, taken) = send()?;
            written = taken;
            // A socket that took less is full. Saying so here, with the readiness it had before, saves the
            // write that would only answer the same, and cannot lose a wake-up.
            if taken < offered {
                return Err(io::ErrorKind::WouldBlock.into());
            }
            Ok(())
        });
        match result {
            Ok(()) => return Poll::Ready(Ok(written)),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                return Poll::Ready(Err(error));
            }
            Err(_) if written > 0 => return Poll::Ready(Ok(written)),
            Err(_) => {}
        }
    }
}

/// Ends the sending direction (FIN).
pub(crate) fn shutdown_write(tcp: &TcpStream) -> io::Result<()> {
    SockRef::from(tcp).shutdown(Shutdown::Write)
}

/// A connection that is reset (RST) when it is dropped, unless it was closed on purpose. So a relay that
/// is aborted in the middle never looks like a clean end.
#[derive(Debug)]
pub struct ResetOnDrop {
    tcp: Option<TcpStream>,
    ended_well: bool,
}

impl ResetOnDrop {
    /// Takes over the connection.
    #[must_use]
    pub const fn new(tcp: TcpStream) -> Self {
        Self {
            tcp: Some(tcp),
            ended_well: false,
        }
    }

    /// The connection.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.tcp
            .as_ref()
            .expect("invariant: taken only by methods that consume self")
    }

    /// The connection, for changes.
    #[must_use]
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        self.tcp
            .as_mut()
            .expect("invariant: taken only by methods that consume self")
    }

    /// The connection, no longer to be reset.
    #[must_use]
    pub fn into_inner(mut self) -> TcpStream {
        self.tcp
            .take()
            .expect("invariant: taken only by methods that consume self")
    }

    /// From now on dropping closes the ordinary way: whoever used it has ended its direction in order.
    pub(crate) const fn ended_well(&mut self) {
        self.ended_well = true;
    }

    /// Closes the ordinary way.
    pub fn close(self) {
        drop(self.into_inner());
    }

    /// Resets now.
    pub fn reset(self) {
        drop(self);
    }
}

impl Drop for ResetOnDrop {
    fn drop(&mut self) {
        if let Some(tcp) = self.tcp.take()
            && !self.ended_well
            && let Err(error) = net::reset(tcp)
        {
            tracing::debug!(%error, "the connection could not be reset and was closed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn options(tcp: &TcpStream) -> (u64, u64) {
        let socket = SockRef::from(tcp);
        assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
        (
            socket.tcp_keepalive_time().unwrap().as_secs(),
            socket.tcp_keepalive_interval().unwrap().as_secs(),
        )
    }

    #[tokio::test]
    async fn accepted_connections_have_the_same_options() {
        let listener = listen("127.0.0.1:0".parse().unwrap()).unwrap();
        let address = listener.local_addr().unwrap();
        for (asked, expected) in [(None, (60, 15)), (Some(5), (5, 5))] {
            let _user = TcpStream::connect(address).await.unwrap();
            let (tcp, _) = listener.accept().await.unwrap();
            tune_accepted(&tcp, asked.map(Duration::from_secs)).unwrap();
            assert_eq!(options(&tcp), expected, "{asked:?}");
        }
    }

    #[tokio::test]
    async fn keepalive_is_as_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        for (asked, idle, interval) in [(None, 60, 15), (Some(5), 5, 5), (Some(7200), 7200, 15)] {
            tune(&tcp, asked.map(Duration::from_secs)).unwrap();
            assert_eq!(options(&tcp), (idle, interval), "{asked:?}");
        }
    }
}
