//! A destination: where its users connect and which resource they reach.

use std::time::Duration;

use crate::words::words;
use crate::{
    Compression, DestinationId, GatewayId, HostPort, Invalid, Name, Protocol, ResourceEnd, UserEnd,
};

/// Connect timeout where none is given.
pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Longest time without a byte before TCP asks after the other side.
pub const MAX_KEEPALIVE: Duration = Duration::from_secs(2 * 3600);
/// Longest connect timeout.
pub const MAX_CONNECT_TIMEOUT: Duration = Duration::from_secs(300);

words!(
    /// On which side the users of a destination are.
    DestinationKind, "kind" {
        /// Users connect to a node; the client connects to the resource.
        OnPremises = "on-premises",
        /// Users connect to the client; a node connects to the resource.
        Cloud = "cloud",
    }
);

/// Where the users of a destination connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Listen {
    /// On the nodes, on this port.
    CloudPort(u16),
    /// On the client, on this port.
    ClientPort(u16),
}

impl Listen {
    /// Chooses by kind and checks that the port of the other kind is not set. A port of 0 means absent.
    ///
    /// # Errors
    /// When the port the kind needs is absent or the other one is present.
    pub fn new(kind: DestinationKind, cloud_port: u16, client_port: u16) -> Result<Self, Invalid> {
        match (kind, cloud_port, client_port) {
            (DestinationKind::OnPremises, 0, _) => {
                Err(Invalid::new("cloud_port", "must be 1 to 65535"))
            }
            (DestinationKind::OnPremises, port, 0) => Ok(Self::CloudPort(port)),
            (DestinationKind::OnPremises, _, _) => Err(Invalid::new(
                "client_port",
                "belongs to cloud destinations; leave it out or set kind to cloud",
            )),
            (DestinationKind::Cloud, _, 0) => Err(Invalid::new(
                "client_port",
                "a cloud destination needs the port that the client listens on, 1 to 65535",
            )),
            (DestinationKind::Cloud, 0, port) => Ok(Self::ClientPort(port)),
            (DestinationKind::Cloud, _, _) => Err(Invalid::new(
                "cloud_port",
                "belongs to on-premises destinations; leave it out or set kind to on-premises",
            )),
        }
    }

    /// The kind of destination that listens so.
    #[must_use]
    pub fn kind(self) -> DestinationKind {
        match self {
            Self::CloudPort(_) => DestinationKind::OnPremises,
            Self::ClientPort(_) => DestinationKind::Cloud,
        }
    }

    /// The port on the nodes, of an on-premises destination.
    #[must_use]
    pub fn cloud_port(self) -> Option<u16> {
        match self {
            Self::CloudPort(port) => Some(port),
            Self::ClientPort(_) => None,
        }
    }

    /// The port on the client, of a cloud destination.
    #[must_use]
    pub fn client_port(self) -> Option<u16> {
        match self {
            Self::ClientPort(port) => Some(port),
            Self::CloudPort(_) => None,
        }
    }
}

/// How to reach one resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// Never changes.
    pub id: DestinationId,
    /// The gateway it belongs to.
    pub gateway: GatewayId,
    /// Unique in its gateway.
    pub name: Name,
    /// Where users connect.
    pub listen: Listen,
    /// What users speak.
    pub protocol: Protocol,
    /// What they reach.
    pub resource: HostPort,
    /// A disabled destination has no open port and no streams.
    pub enabled: bool,
    /// How long connecting to the resource may take: 1 ms to [`MAX_CONNECT_TIMEOUT`].
    pub connect_timeout: Duration,
    /// Streams without a byte for so long are closed; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Streams open at a time on each node; `None`: no limit.
    pub max_connections: Option<u32>,
    /// How its streams' bytes are compressed inside tunnels; see [`Destination::checked_compression`].
    pub compression: Compression,
    /// Time without a byte after which TCP asks whether the other side is still there; `None`: the default.
    pub keepalive: Option<Duration>,
    /// How users are received.
    pub user_end: UserEnd,
    /// How the resource is connected to.
    pub resource_end: ResourceEnd,
    /// Counts the changes of this destination.
    pub generation: u64,
}

impl Destination {
    /// The kind, from where it listens.
    #[must_use]
    pub fn kind(&self) -> DestinationKind {
        self.listen.kind()
    }

    /// Checks a connect timeout; `None` and zero mean the default.
    ///
    /// # Errors
    /// When it is longer than [`MAX_CONNECT_TIMEOUT`].
    pub fn checked_connect_timeout(timeout: Option<Duration>) -> Result<Duration, Invalid> {
        match timeout {
            None | Some(Duration::ZERO) => Ok(DEFAULT_CONNECT_TIMEOUT),
            Some(t) if t <= MAX_CONNECT_TIMEOUT => Ok(t),
            Some(_) => Err(Invalid::new("connect_timeout", "must be at most 5m")),
        }
    }

    /// Checks a keepalive time; `None` and zero mean the default.
    ///
    /// # Errors
    /// When it is not of whole seconds from 1 s to [`MAX_KEEPALIVE`].
    pub fn checked_keepalive(time: Option<Duration>) -> Result<Option<Duration>, Invalid> {
        match time {
            None | Some(Duration::ZERO) => Ok(None),
            Some(t) if t.subsec_nanos() == 0 && t <= MAX_KEEPALIVE => Ok(Some(t)),
            Some(_) => Err(Invalid::new(
                "keepalive",
                "must be whole seconds from 1s to 2h; 0 means the default, 60s",
            )),
        }
    }

    /// Checks that what users speak may be compressed.
    ///
    /// # Errors
    /// Where users encrypt, since the length of what is compressed tells something of its content; and for
    /// datagrams, which travel each on its own.
    pub fn checked_compression(
        protocol: Protocol,
        compression: Compression,
    ) -> Result<Compression, Invalid> {
        let refused = |why: String| Err(Invalid::new("compression", why));
        match protocol {
            _ if compression == Compression::None => Ok(compression),
            Protocol::Udp => refused(
                "datagrams are not compressed; leave it at none for protocol udp".to_owned(),
            ),
            protocol if protocol.is_encrypted() => refused(format!(
                "must be none for protocol {protocol}: whoever can see how long the encrypted bytes are, and \
                 can get the user to send text of his choice beside a secret, learns the secret from how \
                 well both compress together"
            )),
            _ => Ok(compression),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kind_decides_which_port_is_needed() {
        use DestinationKind::{Cloud, OnPremises};
        assert_eq!(
            Listen::new(OnPremises, 15000, 0),
            Ok(Listen::CloudPort(15000))
        );
        assert_eq!(Listen::new(Cloud, 0, 3306), Ok(Listen::ClientPort(3306)));
        let field = |r: Result<Listen, Invalid>| r.map_err(|e| e.field);
        assert_eq!(field(Listen::new(OnPremises, 0, 0)), Err("cloud_port"));
        assert_eq!(field(Listen::new(OnPremises, 1, 2)), Err("client_port"));
        assert_eq!(field(Listen::new(Cloud, 0, 0)), Err("client_port"));
        assert_eq!(field(Listen::new(Cloud, 1, 2)), Err("cloud_port"));
    }

    #[test]
    fn what_users_encrypt_and_datagrams_are_not_compressed() {
        for &protocol in Protocol::ALL {
            let check = |compression| Destination::checked_compression(protocol, compression);
            assert_eq!(check(Compression::None), Ok(Compression::None));
            let may = matches!(protocol, Protocol::Tcp | Protocol::Http);
            for compression in [Compression::Zstd, Compression::Lz4] {
                assert_eq!(check(compression).is_ok(), may, "{protocol} {compression}");
            }
        }
    }

    #[test]
    fn connect_timeouts_have_a_default_and_an_end() {
        assert_eq!(
            Destination::checked_connect_timeout(None),
            Ok(DEFAULT_CONNECT_TIMEOUT)
        );
        assert_eq!(
            Destination::checked_connect_timeout(Some(Duration::ZERO)),
            Ok(DEFAULT_CONNECT_TIMEOUT)
        );
        assert!(Destination::checked_connect_timeout(Some(Duration::from_secs(301))).is_err());
    }
}
