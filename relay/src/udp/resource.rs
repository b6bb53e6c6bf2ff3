//! The dialling end's socket towards a resource: connected, so that only the resource answers and the network's
//! verdict about it is heard.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use sg_model::HostPort;
use sg_runtime::net;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use super::own;
use super::user_socket::enlarge;
use crate::dial::{DialError, interleave, resolve};

/// A socket connected to `resource` within `limit`, name resolution included. The first address is taken that
/// `permit` lets through and this machine has a route to; whether anybody listens is not known yet.
///
/// # Errors
/// [`DialError`].
pub async fn dial_udp(
    resource: &HostPort,
    limit: Duration,
    permit: impl Fn(&IpAddr) -> bool + Send,
) -> Result<UdpSocket, DialError> {
    let attempt = async {
        let found = resolve(resource).await?;
        let permitted = found.into_iter().filter(|a| permit(&a.ip())).collect();
        let mut telling = DialError::NotPermitted;
        for address in interleave(permitted) {
            match connect(address).await {
                Ok(socket) => return Ok(socket),
                Err(error) if error.weight() >= telling.weight() => telling = error,
                Err(_) => {}
            }
        }
        Err(telling)
    };
    timeout(limit, attempt)
        .await
        .unwrap_or(Err(DialError::Timeout))
}

async fn connect(address: SocketAddr) -> Result<UdpSocket, DialError> {
    let any: IpAddr = match address {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = net::bind_udp(SocketAddr::new(any, 0)).map_err(DialError::Local)?;
    enlarge(&socket);
    socket
        .connect(address)
        .await
        .map_err(DialError::from_connect)?;
    let ends = socket
        .local_addr()
        .and_then(|local| Ok((local, socket.peer_addr()?)));
    let (local, peer) = ends.map_err(DialError::Local)?;
    // A free port of this machine that the system happened to give to this very socket.
    if local == peer {
        return Err(DialError::Refused);
    }
    if own::leads_here(local, peer) {
        return Err(DialError::Loop);
    }
    // Known to be writable from the first datagram on.
    socket.writable().await.map_err(DialError::Local)?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::DialError;
    use crate::udp::UserSocket;

    const LIMIT: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_resource_is_reached_by_address_and_by_name_and_only_where_permitted() {
        let server = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let port = server.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let resource = format!("{host}:{port}").parse().unwrap();
            let socket = dial_udp(&resource, LIMIT, IpAddr::is_ipv4).await.unwrap();
            socket.try_send(b"x").unwrap();
            let (_, from) = server.recv_from(&mut [0; 8]).await.unwrap();
            assert_eq!(from, socket.local_addr().unwrap());
        }
        let resource = format!("127.0.0.1:{port}").parse().unwrap();
        let error = dial_udp(&resource, LIMIT, |_| false).await.unwrap_err();
        assert!(matches!(error, DialError::NotPermitted), "{error}");
        let nobody = "does-not-exist.invalid:53".parse().unwrap();
        let error = dial_udp(&nobody, LIMIT, |_| true).await.unwrap_err();
        assert!(matches!(error, DialError::NameUnknown), "{error}");
    }

    #[tokio::test]
    async fn the_ports_of_this_process_are_no_resources() {
        for bound in ["127.0.0.1:0", "0.0.0.0:0"] {
            let own = UserSocket::bind(bound.parse().unwrap()).unwrap();
            let port = own.local_addr().port();
            for host in ["127.0.0.1", "localhost", "0.0.0.0"] {
                let resource = format!("{host}:{port}").parse().unwrap();
                let error = dial_udp(&resource, LIMIT, IpAddr::is_ipv4).await;
                let error = error.unwrap_err();
                assert!(matches!(error, DialError::Loop), "{host}: {error}");
            }
        }
    }
}
