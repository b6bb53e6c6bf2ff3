//! The proxy between this client and its nodes, of `-x`: HTTP CONNECT, over TLS or not, or SOCKS 5.
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
use sg_relay::tls::{ResourceTls, ResourceTlsSettings, TlsSetupError, TlsStream};
use sg_relay::{Dial, DialError, Socks, SocksVersion, Via, dial};
use sg_runtime::secret::Secret;
use sg_runtime::tls::CertificateDer;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};
use tokio_util::either::Either;

pub use self::error::ProxyError;

/// What the bytes of a tunnel travel over: a connection to a node, or to a proxy that has one, with TLS or without.
pub type Carrier = Either<TcpStream, Box<TlsStream>>;

/// The TCP connection under it.
#[must_use]
pub fn socket(carrier: &Carrier) -> &TcpStream {
    match carrier {
        Either::Left(tcp) => tcp,
        Either::Right(tls) => tls.tcp(),
    }
}

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
    /// The same, inside TLS to the proxy; `None` before it is known whom to trust.
    Https(Option<ResourceTls>),
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

    /// Says whom an `https://` proxy's certificate must come from, or which one it must be; without any the system's
    /// authorities count. Of other proxies nothing is asked; answers whether this is one that is.
    ///
    /// # Errors
    /// The certificates cannot be used, or there are none at all.
    pub fn trust(
        &mut self,
        certificates: Vec<CertificateDer<'static>>,
    ) -> Result<bool, TlsSetupError> {
        let Kind::Https(tls) = &mut self.kind else {
            return Ok(false);
        };
        let settings = ResourceTlsSettings {
            certificates,
            ..ResourceTlsSettings::new(self.address.host().to_string())
        };
        *tls = Some(ResourceTls::new(settings)?);
        Ok(true)
    }

    /// Connects to `node` through the proxy, within `limit`.
    ///
    /// # Errors
    /// [`ProxyError`].
    pub async fn connect(&self, node: &HostPort, limit: Duration) -> Result<Carrier, ProxyError> {
        let tls = match &self.kind {
            Kind::Socks5 => return self.through_socks(node, limit).await.map(Either::Left),
            Kind::Http => None,
            Kind::Https(tls) => Some(tls),
        };
        let end = Instant::now() + limit;
        let tcp = dial(&self.address, limit, |_| true).await?;
        let asking = async {
            let login = self.login.as_ref();
            match tls {
                None => http::connect(tcp, node, login).await.map(Either::Left),
                Some(tls) => {
                    let untold = || ProxyError::Protocol("nobody said whom to trust".to_owned());
                    let tls = tls.as_ref().ok_or_else(untold)?;
                    let (stream, _) = tls.connect(tcp, end).await?;
                    let stream = http::connect(stream, node, login).await?;
                    Ok(Either::Right(Box::new(stream)))
                }
            }
        };
        timeout_at(end, asking)
            .await
            .unwrap_or(Err(ProxyError::Timeout))
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
