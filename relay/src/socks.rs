//! Reaches a resource through a SOCKS proxy: versions 4, 4a and 5, the latter with user and password.
//!
//! One connection to the proxy is one connection to the resource. With 4a and 5 the proxy resolves the resource's
//! name, with 4 whoever dials does, and there is only IPv4. Nothing is read beyond the proxy's last answer, so the
//! first byte after it is the resource's.
//!
//! Start with [`crate::Via`], which [`crate::Dial`] takes; `handshake` is the talk with the proxy. Not here: connecting
//! to the proxy, and the time limit, which is that of the dial.

mod handshake;

use sg_model::HostPort;
use sg_runtime::secret::Secret;
use sg_tunnel_io::code;

pub(crate) use self::handshake::{Stage, Target, handshake};

/// Which SOCKS a proxy speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SocksVersion {
    /// Addresses of IPv4 only.
    V4,
    /// Addresses of IPv4, and names, which the proxy resolves.
    V4a,
    /// Addresses of both families, and names, which the proxy resolves.
    V5,
}

impl SocksVersion {
    /// Whether the proxy resolves names.
    pub(crate) fn resolves(self) -> bool {
        self != Self::V4
    }

    /// Whether the proxy can be asked for addresses of IPv6.
    pub(crate) fn carries_v6(self) -> bool {
        self == Self::V5
    }
}

/// A SOCKS proxy.
#[derive(Debug, Clone)]
pub struct Socks {
    /// What it speaks.
    pub version: SocksVersion,
    /// Where it is.
    pub address: HostPort,
    /// Who is to be let through; empty: nobody in particular. With 4 and 4a it is a name that nobody proves.
    pub user: String,
    /// Proves who it is, with 5.
    pub password: Option<Secret<Vec<u8>>>,
}

/// Why there is no way through the proxy.
#[derive(Debug, thiserror::Error)]
pub enum SocksError {
    /// There is no connection to the proxy.
    #[error("the SOCKS proxy cannot be reached: {0}")]
    Unreachable(&'static str),
    /// The proxy does not answer.
    #[error("the SOCKS proxy did not answer in time")]
    Timeout,
    /// The proxy wants to know who asks, or has another opinion about it.
    #[error("the SOCKS proxy does not let this user through: {0}")]
    Auth(&'static str),
    /// The proxy does not connect to this resource, and says no more than that.
    #[error("the SOCKS proxy refused the connection: {0}")]
    Refused(&'static str),
    /// What answers is not this kind of proxy.
    #[error("the SOCKS proxy does not speak as it should: {0}")]
    Protocol(&'static str),
    /// The proxy has tried, and the resource's host refused.
    #[error("connection refused, by the SOCKS proxy's account")]
    ResourceRefused,
    /// The proxy has no route to the resource, or cannot find its name.
    #[error("no route to the host, by the SOCKS proxy's account")]
    ResourceUnreachable,
}

impl SocksError {
    /// The reset code that tells the far side.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Unreachable(_) => code::SOCKS_UNREACHABLE,
            Self::Timeout => code::SOCKS_TIMEOUT,
            Self::Auth(_) => code::SOCKS_AUTH,
            Self::Refused(_) => code::SOCKS_REFUSED,
            Self::Protocol(_) => code::SOCKS_PROTOCOL,
            Self::ResourceRefused => code::REFUSED,
            Self::ResourceUnreachable => code::UNREACHABLE,
        }
    }
}

impl From<&sg_model::Socks> for Socks {
    fn from(socks: &sg_model::Socks) -> Self {
        Self {
            version: match socks.version {
                sg_model::SocksVersion::V4 => SocksVersion::V4,
                sg_model::SocksVersion::V4a => SocksVersion::V4a,
                sg_model::SocksVersion::V5 => SocksVersion::V5,
            },
            address: socks.address.clone(),
            user: socks.user.clone(),
            password: socks
                .password
                .as_ref()
                .map(|password| Secret::new(password.expose().to_vec())),
        }
    }
}
