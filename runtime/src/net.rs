//! Sockets as every part wants them. It knows nothing of what travels over them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpSocket, TcpStream, UdpSocket};

/// Connections that the system holds for us until we accept them.
pub const BACKLOG: i32 = 1024;

/// Binds and listens. The port is ours alone: no `SO_REUSEPORT`, so a second process that wants
/// the same one is told so. `SO_REUSEADDR` only lets us have it back right after a restart.
///
/// # Errors
/// What the system answers: `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    bind_tcp_with(address, |_| Ok(()))
}

/// As [`bind_tcp`], with options that are set before the first connection can come.
///
/// # Errors
/// As [`bind_tcp`], and those of `options`.
pub fn bind_tcp_with(
    address: SocketAddr,
    options: impl FnOnce(SockRef<'_>) -> io::Result<()>,
) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    spare_pacing(SockRef::from(&socket), address);
    options(SockRef::from(&socket))?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

/// Connects to `address`. No time limit but the system's.
///
/// # Errors
/// What the system answers: `ConnectionRefused`, `HostUnreachable`, `TimedOut`.
pub async fn connect_tcp(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    spare_pacing(SockRef::from(&socket), address);
    socket.connect(address).await
}

/// Where the system's congestion control is bbr, a connection of a loopback address gets another one: bbr paces each
/// 64 KiB with a timer, which there costs up to two fifths of the CPU of a byte (`docs/decisions/0009`) and gives nothing. It
/// has to be said before there is a connection, because pacing is not taken back; those that a listener accepts have
/// it from the listener, so that one for all addresses leaves it as it is.
fn spare_pacing(socket: SockRef<'_>, address: SocketAddr) {
    #[cfg(target_os = "linux")]
    if address.ip().to_canonical().is_loopback()
        && socket
            .tcp_congestion()
            .is_ok_and(|name| name.starts_with(b"bbr"))
        && let Err(error) = socket.set_tcp_congestion(b"reno")
    {
        tracing::debug!(%error, "a loopback connection stays paced");
    }
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, address);
}

/// Binds a datagram socket, exclusively.
///
/// # Errors
/// As [`bind_tcp`].
pub fn bind_udp(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(Protocol::UDP),
    )?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

/// Switches Nagle's algorithm off: we write what should leave.
///
/// # Errors
/// The socket is no longer connected.
pub fn set_nodelay(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)
}

/// Lets the system ask a silent peer after `idle`, every `interval`, and give up after `probes`
/// unanswered questions.
///
/// # Errors
/// The socket is no longer connected.
pub fn set_keepalive<'s>(
    socket: impl Into<SockRef<'s>>,
    idle: Duration,
    interval: Duration,
    probes: u32,
) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(probes);
    socket.into().set_tcp_keepalive(&keepalive)
}

/// Closes the connection with a reset (RST), so that the other end sees an error and not an end.
///
/// # Errors
/// The option could not be set; the connection is then closed the ordinary way.
pub fn reset(stream: TcpStream) -> io::Result<()> {
    let result = stream.set_zero_linger();
    drop(stream);
    result
}

/// Raises the soft limit of open files to the hard one; answers the limit then in force.
/// A process that relays needs two descriptors for each connection.
///
/// # Errors
/// The system refuses, which it should not for the soft limit.
pub fn raise_nofile_limit() -> io::Result<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return Ok(current.unwrap_or(u64::MAX));
    }
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: maximum,
            maximum,
        },
    )?;
    Ok(maximum.unwrap_or(u64::MAX))
}

/// True for errors of `accept` after which the listener goes on: the connection in question is gone,
/// or the process is out of descriptors for the moment (then wait a little before the next one).
#[must_use]
pub fn accept_error_is_transient(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    let of_connection = matches!(
        error.kind(),
        K::ConnectionAborted | K::ConnectionReset | K::Interrupted | K::WouldBlock | K::TimedOut
    );
    let exhausted = [
        rustix::io::Errno::MFILE,
        rustix::io::Errno::NFILE,
        rustix::io::Errno::NOBUFS,
        rustix::io::Errno::NOMEM,
    ]
    .iter()
    .any(|errno| error.raw_os_error() == Some(errno.raw_os_error()));
    of_connection || exhausted
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    #[tokio::test]
    async fn a_port_belongs_to_one_listener_and_is_free_after_it() {
        let first = bind_tcp(ANY).unwrap();
        let address = first.local_addr().unwrap();
        assert_eq!(
            bind_tcp(address).unwrap_err().kind(),
            io::ErrorKind::AddrInUse
        );
        // A connection that the listener closed lingers in TIME_WAIT and must not hold the port.
        let near = TcpStream::connect(address).await.unwrap();
        drop(first.accept().await.unwrap());
        drop((near, first));
        bind_tcp(address).unwrap();
        let udp = bind_udp(ANY).unwrap();
        let taken = bind_udp(udp.local_addr().unwrap()).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn what_stays_on_this_machine_is_not_paced() {
        let listener = bind_tcp(ANY).unwrap();
        let address = listener.local_addr().unwrap();
        let (near, far) = tokio::join!(connect_tcp(address), listener.accept());
        for tcp in [near.unwrap(), far.unwrap().0] {
            let name = SockRef::from(&tcp).tcp_congestion().unwrap();
            assert!(!name.starts_with(b"bbr"), "{name:?}");
        }
        // Where the system has bbr, and lets us ask for it.
        let elsewhere = SocketAddr::from(([192, 0, 2, 1], 1));
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        if socket.set_tcp_congestion(b"bbr").is_ok() {
            for (address, paced) in [(elsewhere, true), (address, false)] {
                spare_pacing(SockRef::from(&socket), address);
                let name = socket.tcp_congestion().unwrap();
                assert_eq!(name.starts_with(b"bbr"), paced, "{address}");
            }
        }
    }

    #[tokio::test]
    async fn a_reset_is_seen_as_a_reset() {
        let listener = bind_tcp(ANY).unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (far, _) = listener.accept().await.unwrap();
        set_nodelay(&far).unwrap();
        set_keepalive(&far, Duration::from_secs(15), Duration::from_secs(5), 3).unwrap();
        reset(far).unwrap();
        let error = near.read(&mut [0; 1]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
    }

    #[test]
    fn the_limit_of_open_files_goes_up_to_the_hard_one() {
        let limit = raise_nofile_limit().unwrap();
        assert_eq!(raise_nofile_limit().unwrap(), limit);
        assert_eq!(
            getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
            limit
        );
    }

    #[test]
    fn running_out_of_descriptors_does_not_end_a_listener() {
        let exhausted = io::Error::from_raw_os_error(rustix::io::Errno::MFILE.raw_os_error());
        assert!(accept_error_is_transient(&exhausted));
        assert!(accept_error_is_transient(
            &io::ErrorKind::ConnectionAborted.into()
        ));
        assert!(!accept_error_is_transient(
            &io::ErrorKind::InvalidInput.into()
        ));
    }
}
