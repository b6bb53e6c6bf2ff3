//! Options of the TCP socket beneath a tunnel.

use std::io;
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::TcpStream;

/// Unsent bytes that the kernel may hold before it stops taking more. Small, because what is in the
/// kernel can no longer be overtaken by an interactive stream; not smaller, because each refill
/// costs a system call: 16 KiB cost a sixth to a third more CPU per byte, 128 KiB saved nothing.
#[cfg(target_os = "linux")]
const NOTSENT_LOWAT: u32 = 64 * 1024;
/// The same on a link that takes 192 KiB within 4 ms, 128 KiB of them off the machine: it carries these in 8 ms.
#[cfg(target_os = "linux")]
const FAST_NOTSENT_LOWAT: u32 = 256 * 1024;
/// Silence before the kernel probes; the tunnel's own pings are faster, this is the backstop.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long sent bytes may stay unacknowledged.
#[cfg(target_os = "linux")]
const USER_TIMEOUT: Duration = Duration::from_secs(30);

/// Sets what a tunnel's socket needs: no Nagle, keepalive, and on Linux a short send queue and a
/// timeout for unacknowledged bytes.
///
/// # Errors
///
/// An option that the platform has but refuses.
pub fn tune(socket: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(socket);
    socket.set_tcp_nodelay(true)?;
    let keepalive = TcpKeepalive::new()
        .with_time(KEEPALIVE)
        .with_interval(KEEPALIVE / 3);
    socket.set_tcp_keepalive(&keepalive)?;
    #[cfg(target_os = "linux")]
    {
        socket.set_tcp_notsent_lowat(NOTSENT_LOWAT)?;
        socket.set_tcp_user_timeout(Some(USER_TIMEOUT))?;
    }
    Ok(())
}

/// Says how much may wait unsent in the system: more on a fast link. Nothing where the system has no such limit.
///
/// # Errors
///
/// The socket is of no use any more.
pub fn set_fast(socket: &TcpStream, fast: bool) -> io::Result<()> {
    #[cfg(target_os = "linux")]
    SockRef::from(socket).set_tcp_notsent_lowat(match fast {
        true => FAST_NOTSENT_LOWAT,
        false => NOTSENT_LOWAT,
    })?;
    #[cfg(not(target_os = "linux"))]
    let _ = (socket, fast);
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn every_option_is_in_force_on_both_ends() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let connect = TcpStream::connect(listener.local_addr().unwrap());
        let (accepted, connected) = tokio::join!(listener.accept(), connect);
        for stream in [accepted.unwrap().0, connected.unwrap()] {
            tune(&stream).unwrap();
            let socket = SockRef::from(&stream);
            assert!(socket.tcp_nodelay().unwrap());
            assert!(socket.keepalive().unwrap());
            assert_eq!(socket.tcp_keepalive_time().unwrap(), KEEPALIVE);
            assert_eq!(socket.tcp_keepalive_interval().unwrap(), KEEPALIVE / 3);
            #[cfg(target_os = "linux")]
            {
                assert_eq!(socket.tcp_notsent_lowat().unwrap(), NOTSENT_LOWAT);
                assert_eq!(socket.tcp_user_timeout().unwrap(), Some(USER_TIMEOUT));
                for (fast, limit) in [(true, FAST_NOTSENT_LOWAT), (false, NOTSENT_LOWAT)] {
                    set_fast(&stream, fast).unwrap();
                    assert_eq!(socket.tcp_notsent_lowat().unwrap(), limit);
                }
            }
        }
    }
}
