//! The proxy between this client and its nodes, of `-x`: HTTP CONNECT or SOCKS 5.
//!
//! A proxy carries the tunnel's bytes and sees nothing of them: TLS to the node goes through it. It resolves the node's
//! name, so this machine needs to resolve nothing but the proxy's. Resources are never connected to through it.
//!
//! Start with [`Proxy::connect`]; how one is written is in `url`. Not here: TLS to the node.

mod error;
mod http;
mod url;

use std::fmt;
use std::time::Duration;

use sg_model::HostPort;
use sg_relay::{Dial, DialError, Socks, SocksVersion, Via, dial};
use sg_runtime::secret::Secret;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

pub use self::error::ProxyError;

/// Where the tunnels' connections go through.
#[derive(Clone)]
pub struct Proxy {
    kind: Kind,
    address: HostPort,
    login: Option<Login>,
}

#[derive(Debug, Clone)]
enum Kind {
    /// HTTP CONNECT.
    Http,
    /// SOCKS 5.
    Socks5,
}

/// Who this client is to the proxy.
#[derive(Debug, Clone)]
struct Login {
    user: String,
    password: Secret<Vec<u8>>,
}

impl Proxy {
    /// Where it is.
    #[must_use]
    pub fn address(&self) -> &HostPort {
        &self.address
    }

    /// Whether it was written with a password.
    #[must_use]
    pub fn has_password(&self) -> bool {
        let login = self.login.as_ref();
        login.is_some_and(|login| !login.password.expose().is_empty())
    }

    /// Connects to `node` through the proxy, within `limit`.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn connect(&self, node: &HostPort, limit: Duration) -> Result<TcpStream, ProxyError> {
        match &self.kind {
            Kind::Socks5 => self.through_socks(node, limit).await,
            Kind::Http => {
                let end = Instant::now() + limit;
                let tcp = dial(&self.address, limit, |_| true).await?;
                let left = end.saturating_duration_since(Instant::now());
                timeout(left, http::connect(tcp, node, self.login.as_ref()))
                    .await
                    .unwrap_or(Err(ProxyError::Timeout))
            }
        }
    }

    async fn through_socks(
        &self,
        node: &HostPort,
        limit: Duration,
    ) -> Result<TcpStream, ProxyError> {
        let login = self.login.as_ref();
        let socks = Socks {
            version: SocksVersion::V5,
            address: self.address.clone(),
            user: login.map(|login| login.user.clone()).unwrap_or_default(),
            password: login.map(|login| login.password.clone()),
        };
        let via = Via {
            socks: &socks,
            permit: &|_| true,
        };
        let dial = Dial {
            resource: node,
            limit,
            permit: &|_| true,
            via: Some(via),
            keepalive: None,
        };
        match dial.run().await {
            Ok(dialled) => Ok(dialled.tcp),
            Err(DialError::Socks(error)) => Err(error.into()),
            Err(error) => Err(ProxyError::Node(error)),
        }
    }
}

/// Shows who, and never by which password.
impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxy")
            .field("kind", &self.kind)
            .field("address", &self.address)
            .field("login", &self.login)
            .finish()
    }
}
