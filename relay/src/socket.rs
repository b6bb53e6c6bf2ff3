//! What a relayed TCP connection needs beyond reading and writing: its options, its error while nobody
//! reads it, and a close that is a reset unless both directions have ended well.

use std::future::poll_fn;
use std::io;
use std::time::Duration;

use sg_runtime::net;
use tokio::io::Interest;
use tokio::net::TcpStream;

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);
const KEEPALIVE_PROBES: u32 = 4;

/// Sets the options of a relayed connection: no delay, and keepalive, which asks a peer that has been silent for so
/// long whether it is still there. By default after a minute, so that a peer that vanished is noticed after about
/// two.
///
/// # Errors
/// When the connection is gone already, or the system does not take the time (it takes whole seconds, at least one).
pub fn tune(tcp: &TcpStream, keepalive: Option<Duration>) -> io::Result<()> {
    let idle = keepalive.unwrap_or(KEEPALIVE_IDLE);
    // Who wants to know early also wants the further questions early.
    let interval = KEEPALIVE_INTERVAL.min(idle);
    net::set_nodelay(tcp)?;
    net::set_keepalive(tcp, idle, interval, KEEPALIVE_PROBES)
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
            return std::task::Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        std::task::Poll::Pending
    })
    .await;
}

/// A connection that is reset (RST) when it is dropped, unless it was closed on purpose. So a relay that
/// is aborted in the middle never looks like a clean end.
#[derive(Debug)]
pub struct ResetOnDrop(Option<TcpStream>);

impl ResetOnDrop {
    /// Takes over the connection.
    #[must_use]
    pub const fn new(tcp: TcpStream) -> Self {
        Self(Some(tcp))
    }

    /// The connection.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.0
            .as_ref()
            .expect("invariant: taken only by methods that consume self")
    }

    /// The connection, for changes.
    #[must_use]
    pub fn tcp_mut(&mut self) -> &mut TcpStream {
        self.0
            .as_mut()
            .expect("invariant: taken only by methods that consume self")
    }

    /// The connection, no longer to be reset.
    #[must_use]
    pub fn into_inner(mut self) -> TcpStream {
        self.0
            .take()
            .expect("invariant: taken only by methods that consume self")
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
        if let Some(tcp) = self.0.take()
            && let Err(error) = net::reset(tcp)
        {
            tracing::debug!(%error, "the connection could not be reset and was closed");
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn keepalive_is_as_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let socket = SockRef::from(&tcp);
        for (asked, idle, interval) in [(None, 60, 15), (Some(5), 5, 5), (Some(7200), 7200, 15)] {
            tune(&tcp, asked.map(Duration::from_secs)).unwrap();
            assert!(socket.keepalive().unwrap() && socket.tcp_nodelay().unwrap());
            let found = (
                socket.tcp_keepalive_time().unwrap().as_secs(),
                socket.tcp_keepalive_interval().unwrap().as_secs(),
            );
            assert_eq!(found, (idle, interval), "{asked:?}");
        }
    }
}
