//! Sockets as every part wants them. It knows nothing of what travels over them.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

/// Connections that the system holds for us until we accept them.
pub const BACKLOG: i32 = 1024;

/// Binds and listens. The port is ours alone: no `SO_REUSEPORT`, so a second process that wants
/// the same one is told so. `SO_REUSEADDR` only lets us have it back right after a restart.
///
/// # Errors
/// What the system answers: `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`.
pub fn bind_tcp(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_nonblocking(true)?;
    socket.set_reuse_address(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
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
pub fn set_keepalive(
    stream: &TcpStream,
    idle: Duration,
    interval: Duration,
    probes: u32,
) -> io::Result<()> {
    let keepalive = TcpKeepalive::new()
        .with_time(idle)
        .with_interval(interval)
        .with_retries(probes);
    SockRef::from(stream).set_tcp_keepalive(&keepalive)
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
