//! Why there is no way through the proxy, in one word each.

use sg_relay::tls::TlsError;
use sg_relay::{DialError, SocksError};

/// There is no connection to the node through the proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// There is no connection to the proxy.
    #[error("the proxy cannot be reached: {0}")]
    Unreachable(String),
    /// It does not answer.
    #[error("the proxy did not answer in time")]
    Timeout,
    /// It wants to know who asks, or has another opinion about it.
    #[error("the proxy does not let this client through: {0}")]
    Auth(String),
    /// It does not connect to the node.
    #[error("the proxy refused the connection to the node: {0}")]
    Refused(String),
    /// It does not speak like a proxy of this kind.
    #[error("the proxy does not speak as it should: {0}")]
    Protocol(String),
    /// There is no TLS with it, or not with somebody trusted.
    #[error("no TLS with the proxy: {0}")]
    Tls(#[from] TlsError),
    /// It has tried, and tells what is wrong with the node, or this machine is to blame.
    #[error("cannot connect through the proxy: {0}")]
    Node(#[source] DialError),
}

impl ProxyError {
    /// One stable word for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unreachable(_) => "proxy-unreachable",
            Self::Timeout => "proxy-timeout",
            Self::Auth(_) => "proxy-auth",
            Self::Refused(_) => "proxy-refused",
            Self::Protocol(_) => "proxy-protocol",
            Self::Tls(_) => "proxy-tls",
            Self::Node(error) => error.as_str(),
        }
    }

    /// Whether the same attempt can succeed soon, without anybody changing something.
    #[must_use]
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unreachable(_) | Self::Timeout | Self::Refused(_) | Self::Node(_) => true,
            Self::Auth(_) | Self::Protocol(_) | Self::Tls(_) => false,
        }
    }
}

/// Of the connection to the proxy itself.
impl From<DialError> for ProxyError {
    fn from(error: DialError) -> Self {
        match error {
            DialError::Timeout => Self::Timeout,
            DialError::Local(_) => Self::Node(error),
            other => Self::Unreachable(other.to_string()),
        }
    }
}

impl From<SocksError> for ProxyError {
    fn from(error: SocksError) -> Self {
        match error {
            SocksError::Unreachable(why) => Self::Unreachable(why.to_owned()),
            SocksError::Timeout => Self::Timeout,
            SocksError::Auth(why) => Self::Auth(why.to_owned()),
            SocksError::Refused(why) => Self::Refused(why.to_owned()),
            SocksError::Protocol(why) => Self::Protocol(why.to_owned()),
            SocksError::ResourceRefused | SocksError::ResourceUnreachable => {
                Self::Node(error.into())
            }
        }
    }
}
