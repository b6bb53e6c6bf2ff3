//! The dialling end of a stream: how one destination's resource is reached, and how the stream is joined to it.
//!
//! ```text
//! stream ══▶ [HTTP] ─▶ [TLS] ─▶ [PROXY protocol] ─▶ [SOCKS] ─▶ TCP ─▶ resource
//! ```
//!
//! [`Approach`] is built once for each version of a destination; [`Approach::connect`] makes one connection;
//! [`Reached::carry`] relays over it. Who may reach what is decided by whoever calls: nothing here knows a policy.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use sg_model::{
    CanonicalPath, Destination, HostPort, Preface, ProxyProtocol, ResourceHttp,
    ResourceTls as Mode, UserFacts,
};
use sg_runtime::shutdown::CancellationToken;
use sg_tunnel_io::{TunnelStream, code};
use tokio::time::Instant;

use crate::dial::{Dial, DialError, Permit, Via};
use crate::http::{self, HttpOptions, HttpVersion, Refusal, Upstream};
use crate::material::{self, MaterialProblem};
use crate::proxy_protocol::{self, Facts, Version};
use crate::socks::Socks;
use crate::tls::{ResourceTls, ResourceTlsSettings, TlsError};
use crate::{EndReason, JoinOptions, Local, LocalIo, StreamIo, join};

/// Application protocols of HTTP, as ALPN names them.
const H2: &[u8] = b"h2";
const HTTP_1_1: &[u8] = b"http/1.1";

/// How a resource is reached.
#[derive(Debug, Clone)]
pub struct Approach(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    resource: HostPort,
    tls: Option<ResourceTls>,
    http: Option<ResourceHttp>,
    socks: Option<Socks>,
    proxy_protocol: ProxyProtocol,
    keepalive: Option<Duration>,
}

/// Why there is no connection to a resource.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    /// No TCP connection.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// No TLS over it.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// It broke while the PROXY protocol's header was sent.
    #[error("the connection broke before anything was said")]
    Broken,
}

impl ReachError {
    /// The reset code that tells the far side.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Dial(error) => error.code(),
            Self::Tls(error) => error.code(),
            Self::Broken => code::PEER_RESET,
        }
    }

    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Dial(error) => error.as_str(),
            Self::Tls(error) => error.as_str(),
            Self::Broken => code::word(code::PEER_RESET),
        }
    }
}

/// What one connection is made for.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations)]
pub struct Purpose<'a> {
    /// How long connecting may take, TLS included.
    pub limit: Duration,
    /// Which addresses of the resource may be tried.
    pub permit: &'a Permit<'a>,
    /// Which proxies, and which of their addresses, may be tried.
    pub permit_proxy: &'a (dyn Fn(&HostPort, &IpAddr) -> bool + Send + Sync),
    /// Who the user is, for the PROXY protocol.
    pub user: &'a UserFacts,
    /// Application protocols that the user offers, where they are mirrored.
    pub alpn: &'a [Vec<u8>],
    /// HTTP that the stream carries.
    pub http: Option<HttpVersion>,
}

/// A resource that is connected.
#[derive(Debug)]
pub struct Reached {
    /// The connection.
    pub local: Local,
    /// The resource's address; `None`: only a proxy knows it.
    pub address: Option<IpAddr>,
    /// The application protocol that it has chosen.
    pub alpn: Option<Vec<u8>>,
    /// The HTTP that it speaks; without meaning where no HTTP is carried.
    pub http: HttpVersion,
}

impl Approach {
    /// The way to the resource of a destination.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub fn new(destination: &Destination) -> Result<Self, MaterialProblem> {
        let end = &destination.resource_end;
        let tls = match end.tls {
            Mode::None => None,
            mode => {
                let pair = match (&end.client_pair, mode) {
                    (Some(pair), Mode::Mutual) => Some(material::pair(pair, "client pair")?),
                    _ => None,
                };
                let settings = ResourceTlsSettings {
                    sni: end.sni.as_ref().map(ToString::to_string),
                    certificates: material::certificates(&end.certificates),
                    pair,
                    verify: end.verify,
                    alpn: Vec::new(),
                    postgres: destination.user_end.preface == Preface::Postgres,
                    ..ResourceTlsSettings::new(destination.resource.host().to_string())
                };
                Some(ResourceTls::new(settings)?)
            }
        };
        Ok(Self(Arc::new(Inner {
            resource: destination.resource.clone(),
            tls,
            http: destination.protocol.is_http().then_some(end.http),
            socks: end.socks.as_ref().map(Socks::from),
            proxy_protocol: end.proxy_protocol,
            keepalive: destination.keepalive,
        })))
    }

    /// The way to a resource of which nothing else is to be known.
    #[must_use]
    pub fn plain(resource: HostPort, is_http: bool, keepalive: Option<Duration>) -> Self {
        Self(Arc::new(Inner {
            resource,
            tls: None,
            http: is_http.then_some(ResourceHttp::Auto),
            socks: None,
            proxy_protocol: ProxyProtocol::None,
            keepalive,
        }))
    }

    /// The resource.
    #[must_use]
    pub fn resource(&self) -> &HostPort {
        &self.0.resource
    }

    /// Whether requests are read on the way.
    #[must_use]
    pub fn is_http(&self) -> bool {
        self.0.http.is_some()
    }

    /// Connects.
    ///
    /// # Errors
    /// [`ReachError`].
    pub async fn connect(&self, purpose: Purpose<'_>) -> Result<Reached, ReachError> {
        let inner = &*self.0;
        let deadline = Instant::now() + purpose.limit;
        let permit_proxy = |ip: &IpAddr| {
            let proxy = inner.socks.as_ref();
            proxy.is_some_and(|proxy| (purpose.permit_proxy)(&proxy.address, ip))
        };
        let dial = Dial {
            resource: &inner.resource,
            limit: purpose.limit,
            permit: purpose.permit,
            via: inner.socks.as_ref().map(|socks| Via {
                socks,
                permit: &permit_proxy,
            }),
            keepalive: inner.keepalive,
        };
        let dialled = dial.run().await?;
        let mut tcp = dialled.tcp;
        let version = match inner.proxy_protocol {
            ProxyProtocol::None => None,
            ProxyProtocol::V1 => Some(Version::V1),
            ProxyProtocol::V2 => Some(Version::V2 { checksum: false }),
        };
        if let Some(version) = version {
            let left = deadline.saturating_duration_since(Instant::now());
            // Boxed, like the handshake below: most connections do without, and should not need the room for it.
            Box::pin(proxy_protocol::send(
                &mut tcp,
                &Facts::from(purpose.user),
                version,
                left,
            ))
            .await
            .map_err(|_| ReachError::Broken)?;
        }
        let Some(tls) = &inner.tls else {
            return Ok(Reached {
                local: tcp.into(),
                address: dialled.address,
                alpn: None,
                http: inner.without_alpn(),
            });
        };
        let offer = inner.offer(&purpose);
        let (stream, facts) = Box::pin(tls.connect_offering(tcp, offer, deadline)).await?;
        let http = match (inner.http, facts.alpn.as_deref()) {
            (_, Some(H2)) => HttpVersion::Http2,
            (Some(ResourceHttp::Two), None) => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        Ok(Reached {
            local: stream.into(),
            address: dialled.address,
            alpn: facts.alpn,
            http,
        })
    }

    /// What both ends of an HTTP connection are subject to.
    ///
    /// # Errors
    /// The resource's name cannot stand in a request.
    pub fn http_options(&self) -> Result<HttpOptions, Refusal> {
        HttpOptions::new(&self.0.resource, self.0.tls.is_some())
    }
}

impl Inner {
    /// Application protocols to offer to the resource.
    fn offer(&self, purpose: &Purpose<'_>) -> Vec<Vec<u8>> {
        let owned = |names: &[&[u8]]| names.iter().map(|name| name.to_vec()).collect();
        match (self.http, purpose.http) {
            (None, _) => purpose.alpn.to_vec(),
            (Some(ResourceHttp::One), _) => owned(&[HTTP_1_1]),
            (Some(ResourceHttp::Two), _) => owned(&[H2]),
            // Upgrades exist in HTTP/1.1 only: who speaks that gets it.
            (Some(ResourceHttp::Auto), Some(HttpVersion::Http2)) => owned(&[H2, HTTP_1_1]),
            (Some(ResourceHttp::Auto), _) => owned(&[HTTP_1_1]),
        }
    }

    fn without_alpn(&self) -> HttpVersion {
        match self.http {
            Some(ResourceHttp::Two) => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        }
    }
}

impl Reached {
    /// The connection for HTTP.
    #[must_use]
    pub fn into_http(self) -> (LocalIo, HttpVersion) {
        (self.local.into(), self.http)
    }
}

/// A stream on its way to its end, and then the word for that. Boxed, since streams that only wait are most of
/// what a process holds, and the future would stand in those around it several times.
pub type Relaying = Pin<Box<dyn Future<Output = &'static str> + Send>>;

/// Makes further connections for the requests of one stream, and decides over them.
pub trait Redial: Send + Sync + 'static {
    /// Decides, and connects anew.
    ///
    /// # Errors
    /// The word that says why there is no connection.
    fn connect(&self) -> impl Future<Output = Result<Reached, &'static str>> + Send;

    /// Decides over the path of a request.
    ///
    /// # Errors
    /// The word that says why it is refused.
    fn permit_path(&self, path: &CanonicalPath) -> Result<(), &'static str>;
}

impl Approach {
    /// Relays a stream to the resource until its end; answers the word for it. `http` is what the stream carries,
    /// and `reached` the connection that was made before it was accepted; `redial` and `drain`,
    /// after which no new request is taken, are for HTTP only.
    pub fn carry<R: Redial>(
        &self,
        stream: TunnelStream,
        reached: Reached,
        http: Option<HttpVersion>,
        options: JoinOptions,
        redial: Option<R>,
        drain: CancellationToken,
    ) -> Relaying {
        let Some((version, redial)) = http.zip(redial) else {
            let join = join(reached.local, stream, options);
            return Box::pin(join.map(|ended| ended.reason.as_str()));
        };
        let Ok(base) = self.http_options() else {
            stream.reset(code::INTERNAL);
            return Box::pin(std::future::ready(code::word(code::INTERNAL)));
        };
        let http_options = HttpOptions {
            idle_timeout: options.idle_timeout,
            counters: options.counters,
            end: options.end,
            drain,
            ..base
        };
        let io = StreamIo::new(stream, options.compression);
        let upstream = Resources(redial);
        let first = Some(reached.into_http());
        let serve = http::serve_stream(io, version, http_options, upstream, first);
        Box::pin(serve.map(EndReason::as_str))
    }
}

/// Connections to the resource for the requests of one stream.
struct Resources<R>(R);

impl<R: Redial> Upstream for Resources<R> {
    type Io = LocalIo;

    async fn connect(&self) -> Result<(LocalIo, HttpVersion), Refusal> {
        let reached = self.0.connect().await.map_err(Refusal::of)?;
        Ok(reached.into_http())
    }

    fn permit(
        &self,
        method: &::http::Method,
        target: &str,
    ) -> Result<Option<CanonicalPath>, Refusal> {
        let path = http::canonical(method, target)?;
        self.0.permit_path(&path).map_err(Refusal::of)?;
        Ok(Some(path))
    }
}
