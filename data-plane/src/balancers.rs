//! Balancers in front of this node, which say who really connects.
//!
//! A connection from a trusted one begins with a PROXY header, and the addresses in it count for everything after: for
//! rules, limits, logs, and what the resource is told. Without the header the connection is refused: otherwise whoever
//! finds a way around the header passes for the balancer. From everybody else the bytes are the user's own.

use std::net::{IpAddr, SocketAddr};

use sg_model::IpRange;
use sg_relay::proxy_protocol::{self, Conveyed, HEADER_LIMIT, HeaderError};
use tokio::net::TcpStream;

/// Who is trusted to say it.
#[derive(Debug, Default)]
pub(crate) struct Balancers(Vec<IpRange>);

/// Both addresses of a user's connection, as the user sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ends {
    /// From where the user connects.
    pub(crate) user: SocketAddr,
    /// What the user has connected to; `None`: the connection is gone already.
    pub(crate) local: Option<SocketAddr>,
}

impl Balancers {
    pub(crate) fn new(trusted: Vec<IpRange>) -> Self {
        Self(trusted)
    }

    fn trusts(&self, address: IpAddr) -> bool {
        self.0.iter().any(|range| range.contains(address))
    }

    /// Who is at the other end of a new connection, of which nothing has been read yet.
    pub(crate) async fn ends(
        &self,
        tcp: &mut TcpStream,
        peer: SocketAddr,
    ) -> Result<Ends, HeaderError> {
        let direct = Ends {
            user: peer,
            local: tcp.local_addr().ok(),
        };
        if !self.trusts(peer.ip()) {
            return Ok(direct);
        }
        // Boxed, so that connections without it keep no room for it.
        match Box::pin(proxy_protocol::receive(tcp, HEADER_LIMIT)).await? {
            Conveyed::Addresses {
                source,
                destination,
            } => Ok(Ends {
                user: source,
                local: Some(destination),
            }),
            // The balancer itself, or it does not know.
            Conveyed::Nothing => Ok(direct),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpListener;

    use super::*;

    async fn ends(trusted: &[&str], sent: &str) -> Result<(Ends, SocketAddr), HeaderError> {
        let ranges = trusted.iter().map(|range| range.parse().unwrap()).collect();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut near = TcpStream::connect(listener.local_addr().unwrap())
            .await
            .unwrap();
        let (mut tcp, peer) = listener.accept().await.unwrap();
        near.write_all(sent.as_bytes()).await.unwrap();
        let ends = Balancers::new(ranges).ends(&mut tcp, peer).await?;
        Ok((ends, peer))
    }

    const HEADER: &str = "PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n";

    #[tokio::test]
    async fn only_the_word_of_a_trusted_one_counts() {
        let (ends_of_user, _) = ends(&["10.0.0.0/8", "127.0.0.1"], HEADER).await.unwrap();
        assert_eq!(ends_of_user.user.to_string(), "192.0.2.7:51000");
        assert_eq!(ends_of_user.local.unwrap().to_string(), "198.51.100.1:443");
        for trusted in [&[][..], &["10.0.0.0/8"]] {
            let (ends_of_user, peer) = ends(trusted, HEADER).await.unwrap();
            assert_eq!(ends_of_user.user, peer);
        }
        let (itself, peer) = ends(&["127.0.0.1"], "PROXY UNKNOWN\r\n").await.unwrap();
        assert_eq!(itself.user, peer);
        let error = ends(&["127.0.0.1"], "GET / HTTP/1.1\r\n")
            .await
            .unwrap_err();
        assert_eq!(error.as_str(), "proxy-header-missing");
    }
}
