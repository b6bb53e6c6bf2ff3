//! The socket that the users of a destination send to.
//!
//! Bound to all addresses of the machine, it notes for each datagram which of them the user sent to, and
//! answers from there: a user takes no answer from anywhere else.

use std::cell::RefCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsRawFd as _, RawFd};

use bytes::Bytes;
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrStorage, cmsg_space, recvmsg, sendmsg,
    setsockopt, sockopt,
};
use sg_runtime::net;
use tokio::io::Interest;
use tokio::net::UdpSocket;

use super::inbox;
use super::own::OwnPort;

/// Room for what comes while this process is busy, if the system gives so much.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// Room for what is said beside a datagram.
const CONTROL: usize = cmsg_space::<libc::in6_pktinfo>() + cmsg_space::<libc::in_pktinfo>();

thread_local! {
    // On the heap, where it is aligned for any message.
    static CONTROL_ROOM: RefCell<Vec<u8>> = RefCell::new(vec![0; CONTROL]);
}

/// One user, as the socket knows him.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Peer {
    /// Where the user sends from.
    pub user: SocketAddr,
    /// Which address of this machine he sends to; `None`: the one that the socket is bound to.
    pub at: Option<IpAddr>,
}

/// A bound socket.
#[derive(Debug)]
pub struct UserSocket {
    socket: UdpSocket,
    local: SocketAddr,
    _own: OwnPort,
}

impl UserSocket {
    /// Binds the socket, exclusively.
    ///
    /// # Errors
    /// What the system answers: `AddrInUse`, `PermissionDenied`, `AddrNotAvailable`.
    pub fn bind(address: SocketAddr) -> io::Result<Self> {
        let socket = net::bind_udp(address)?;
        enlarge(&socket);
        if address.ip().is_unspecified() {
            match address {
                SocketAddr::V4(_) => setsockopt(&socket, sockopt::Ipv4PacketInfo, &true)?,
                SocketAddr::V6(_) => setsockopt(&socket, sockopt::Ipv6RecvPacketInfo, &true)?,
            }
        }
        let local = socket.local_addr()?;
        Ok(Self {
            socket,
            local,
            _own: OwnPort::enter(local),
        })
    }

    /// Where it is bound.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local
    }

    /// Waits until a datagram may be there. Cancel safe.
    ///
    /// # Errors
    /// The runtime is shutting down.
    pub async fn readable(&self) -> io::Result<()> {
        self.socket.readable().await
    }

    /// Receives one datagram, if one is there.
    ///
    /// # Errors
    /// `WouldBlock` if none is; others are of one datagram only.
    pub fn try_receive(&self) -> io::Result<(Bytes, Peer)> {
        inbox::receive(|buffer| {
            if self.is_wildcard() {
                let fd = self.socket.as_raw_fd();
                let read = || receive_with_address(fd, buffer);
                self.socket.try_io(Interest::READABLE, read)
            } else {
                let (length, user) = self.socket.try_recv_from(buffer)?;
                Ok((length, Peer { user, at: None }))
            }
        })
    }

    /// Sends one datagram, if there is room for it.
    ///
    /// # Errors
    /// `WouldBlock` if there is none; others are of this datagram only.
    pub fn try_send(&self, datagram: &[u8], peer: &Peer) -> io::Result<()> {
        let Some(from) = peer.at else {
            return self.socket.try_send_to(datagram, peer.user).map(drop);
        };
        let fd = self.socket.as_raw_fd();
        let write = || send_from(fd, datagram, peer.user, from);
        self.socket.try_io(Interest::WRITABLE, write)
    }

    fn is_wildcard(&self) -> bool {
        self.local.ip().is_unspecified()
    }
}

/// Asks for a large receive buffer; what the system does not give is done without.
pub(super) fn enlarge(socket: &UdpSocket) {
    #[cfg(target_os = "linux")]
    if setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).is_ok() {
        return;
    }
    if let Err(error) = setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER) {
        tracing::debug!(%error, "the receive buffer stays as it is");
    }
}

fn receive_with_address(fd: RawFd, buffer: &mut [u8]) -> io::Result<(usize, Peer)> {
    CONTROL_ROOM.with_borrow_mut(|control| {
        let mut slices = [IoSliceMut::new(buffer)];
        let message =
            recvmsg::<SockaddrStorage>(fd, &mut slices, Some(control), MsgFlags::empty())?;
        let user = message
            .address
            .as_ref()
            .and_then(to_std)
            .ok_or(io::ErrorKind::InvalidData)?;
        let at = message.cmsgs()?.find_map(|control| match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => {
                let octets = info.ipi_spec_dst.s_addr.to_ne_bytes();
                Some(IpAddr::V4(Ipv4Addr::from(octets)))
            }
            ControlMessageOwned::Ipv6PacketInfo(info) => {
                Some(IpAddr::V6(Ipv6Addr::from(info.ipi6_addr.s6_addr)))
            }
            _ => None,
        });
        Ok((message.bytes, Peer { user, at }))
    })
}

fn send_from(fd: RawFd, datagram: &[u8], user: SocketAddr, from: IpAddr) -> io::Result<()> {
    let slices = [IoSlice::new(datagram)];
    let to = SockaddrStorage::from(user);
    let send = |control: ControlMessage<'_>| {
        sendmsg(fd, &slices, &[control], MsgFlags::empty(), Some(&to))
    };
    match from {
        IpAddr::V4(ip) => send(ControlMessage::Ipv4PacketInfo(&libc::in_pktinfo {
            ipi_ifindex: 0,
            ipi_spec_dst: libc::in_addr {
                s_addr: u32::from_ne_bytes(ip.octets()),
            },
            ipi_addr: libc::in_addr { s_addr: 0 },
        })),
        IpAddr::V6(ip) => send(ControlMessage::Ipv6PacketInfo(&libc::in6_pktinfo {
            ipi6_addr: libc::in6_addr {
                s6_addr: ip.octets(),
            },
            // A link-local address is of one link only.
            ipi6_ifindex: match user {
                SocketAddr::V6(user) if ip.is_unicast_link_local() => user.scope_id(),
                _ => 0,
            },
        })),
    }?;
    Ok(())
}

fn to_std(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().map(|v4| SocketAddr::from(*v4));
    v4.or_else(|| address.as_sockaddr_in6().map(|v6| SocketAddr::from(*v6)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::time::timeout;

    use super::*;

    async fn received(socket: &UserSocket) -> (Bytes, Peer) {
        let receive = async {
            loop {
                socket.readable().await.unwrap();
                if let Ok(received) = socket.try_receive() {
                    return received;
                }
            }
        };
        timeout(Duration::from_secs(5), receive).await.unwrap()
    }

    async fn answers_come_from_where_the_user_sent(bound: &str, asked: &[&str], user: &str) {
        let socket = UserSocket::bind(bound.parse().unwrap()).unwrap();
        let port = socket.local_addr().port();
        for ip in asked {
            // Connected, so that it takes answers from nowhere else.
            let asking = UdpSocket::bind(user).await.unwrap();
            let at: IpAddr = ip.parse().unwrap();
            asking.connect((at, port)).await.unwrap();
            asking.send(b"question").await.unwrap();
            let (datagram, peer) = received(&socket).await;
            assert_eq!(&datagram[..], b"question");
            assert_eq!(peer.user.port(), asking.local_addr().unwrap().port());
            while let Err(error) = socket.try_send(b"answer", &peer) {
                assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "{error}");
                socket.socket.writable().await.unwrap();
            }
            let mut buffer = [0; 16];
            let answer = timeout(Duration::from_secs(5), asking.recv(&mut buffer)).await;
            assert_eq!(&buffer[..answer.unwrap().unwrap()], b"answer", "asked {ip}");
        }
    }

    #[tokio::test]
    async fn a_user_is_answered_from_the_address_that_was_asked() {
        let asked = ["127.0.0.1", "127.0.0.2", "127.9.9.9"];
        answers_come_from_where_the_user_sent("0.0.0.0:0", &asked, "127.0.0.1:0").await;
        answers_come_from_where_the_user_sent("127.0.0.2:0", &["127.0.0.2"], "127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn both_families_reach_a_socket_on_all_addresses() {
        // Not every machine has IPv6.
        if UserSocket::bind("[::1]:0".parse().unwrap()).is_err() {
            return;
        }
        answers_come_from_where_the_user_sent("[::]:0", &["::1"], "[::1]:0").await;
        answers_come_from_where_the_user_sent("[::]:0", &["127.0.0.3"], "127.0.0.1:0").await;
    }

    #[tokio::test]
    async fn a_port_belongs_to_one_socket() {
        let first = UserSocket::bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let second = UserSocket::bind(first.local_addr());
        assert_eq!(second.unwrap_err().kind(), io::ErrorKind::AddrInUse);
    }
}
