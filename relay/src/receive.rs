//! The accepting end of a stream: how one destination's users are received, and how each is joined to a stream.
//!
//! ```text
//! user ─▶ source rules ─▶ [TLS] ─▶ bytes or [HTTP] ══▶ stream
//! ```
//!
//! [`Reception`] is built once for each version of a destination; [`Reception::serve`] serves one connection to its
//! end. Where streams come from, and who may have one, is the [`Opener`]'s.

use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use sg_model::{
    CanonicalPath, Destination, ForwardedHeaders, HostPort, Preface, ResourceTls, UserTlsFacts,
};
use sg_runtime::shutdown::CancellationToken;
use sg_tunnel_io::{TunnelStream, code};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::either::Either;

use crate::carrier_io::StreamIo;
use crate::compress::Grant;
use crate::http::{
    self, Forwarded, HttpOptions, HttpVersion, Refusal, Upstream, User, UserOptions,
};
use crate::material::{self, MaterialProblem};
use crate::socket::{ResetOnDrop, socket_error};
use crate::tls::{Alpn, HANDSHAKE_LIMIT, TlsError, TlsFacts, UserTls, UserTlsSettings};
use crate::{
    ByteCounters, DestinationMeter, EndReason, JoinOptions, Local, LocalIo, StreamEnd, join,
};

const H2: &str = "h2";
const HTTP_1_1: &str = "http/1.1";

/// How the users of one destination are received.
#[derive(Debug, Clone)]
pub struct Reception(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    tls: Option<UserTls>,
    http: Option<Http>,
    /// The application protocol of the resource is that of the user.
    mirror: bool,
    /// Those that may be agreed on, where they are not mirrored.
    alpn: Vec<String>,
}

#[derive(Debug)]
struct Http {
    resource: HostPort,
    resource_tls: bool,
    forwarded: Forwarded,
}

/// What a stream is asked for, beside what the opener knows of the destination.
#[derive(Debug, Clone, Default)]
pub struct Wish {
    /// What the user's handshake showed; not all of it is known before it ends.
    pub tls: Option<UserTlsFacts>,
    /// Application protocols to offer to the resource.
    pub alpn: Vec<Vec<u8>>,
    /// HTTP that the stream carries.
    pub http: Option<HttpVersion>,
}

/// A stream that was opened for a user.
#[derive(Debug)]
pub struct Opened {
    /// The stream.
    pub stream: TunnelStream,
    /// The compression that was agreed on.
    pub compression: Option<Grant>,
    /// The application protocol that the resource has chosen.
    pub alpn: Option<Vec<u8>>,
}

/// Opens streams for one user.
pub trait Opener: Send + Sync + 'static {
    /// Decides, and opens a stream whose far end is connected to the resource.
    ///
    /// # Errors
    /// The word that says why there is none.
    fn open(&self, wish: Wish) -> impl Future<Output = Result<Opened, &'static str>> + Send;

    /// Decides over the path of a request.
    ///
    /// # Errors
    /// The word that says why it is refused.
    fn permit_path(&self, path: &CanonicalPath) -> Result<(), &'static str>;
}

/// What a user's connection is subject to.
#[derive(Debug)]
pub struct ReceiveOptions {
    /// Who the user is.
    pub user: SocketAddr,
    /// Ends the connection when no byte has passed for so long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Where bytes are counted.
    pub counters: Arc<ByteCounters>,
    /// Lets somebody else end it.
    pub end: StreamEnd,
    /// After this no new request is taken.
    pub drain: CancellationToken,
    /// Where answers to requests are counted.
    pub meter: Option<Arc<DestinationMeter>>,
}

impl Reception {
    /// How users of this destination are received.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub fn new(destination: &Destination) -> Result<Self, MaterialProblem> {
        let end = &destination.user_end;
        let protocol = destination.protocol;
        let resource_tls = destination.resource_end.tls != ResourceTls::None;
        let alpn: Vec<String> = match (protocol.is_http(), end.alpn.is_empty()) {
            (true, true) => vec![H2.to_owned(), HTTP_1_1.to_owned()],
            _ => end.alpn.clone(),
        };
        let tls = if protocol.is_encrypted() {
            let pairs = end.server_pairs.iter();
            let users = protocol
                .is_mutual()
                .then(|| material::certificates(&end.accepted_certificates()));
            Some(UserTls::new(UserTlsSettings {
                servers: pairs
                    .map(|pair| material::pair(pair, "server pair"))
                    .collect::<Result<_, _>>()?,
                users,
                alpn: if alpn.is_empty() {
                    Alpn::Mirror
                } else {
                    Alpn::Fixed(alpn.iter().map(|name| name.as_bytes().to_vec()).collect())
                },
                postgres: end.preface == Preface::Postgres,
            })?)
        } else {
            None
        };
        Ok(Self(Arc::new(Inner {
            tls,
            http: protocol.is_http().then(|| Http {
                resource: destination.resource.clone(),
                resource_tls,
                forwarded: match end.forwarded {
                    ForwardedHeaders::Set => Forwarded::Set,
                    ForwardedHeaders::Append => Forwarded::Append,
                    ForwardedHeaders::Off => Forwarded::Off,
                },
            }),
            // A user who must show a certificate is let to no resource before it has, and by then the application
            // protocol is agreed on.
            mirror: resource_tls && !protocol.is_mutual(),
            alpn,
        })))
    }

    /// Whether the bytes are passed on as they are.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.0.tls.is_none() && self.0.http.is_none()
    }

    /// Serves a user's connection to its end; answers the word for it.
    pub fn serve<O: Opener>(
        self,
        tcp: ResetOnDrop,
        opener: O,
        options: ReceiveOptions,
    ) -> impl Future<Output = &'static str> + Send {
        if self.0.http.is_some() {
            return Either::Left(Box::pin(self.serve_http(tcp, opener, options)));
        }
        let ReceiveOptions {
            idle_timeout,
            counters,
            end,
            ..
        } = options;
        // Boxed, so that an open stream does not keep the room that its opening needed.
        let begin: Beginning = match self.0.tls {
            None => Box::pin(begin_plain(tcp, opener, end.clone())),
            Some(_) => Box::pin(self.begin_tls(tcp, opener, end.clone())),
        };
        Either::Right(async move {
            let (local, opened) = match begin.await {
                Ok(begun) => begun,
                Err(word) => return word,
            };
            let joined = JoinOptions {
                idle_timeout,
                counters,
                end,
                compression: opened.compression,
            };
            // Boxed, so that it does not stand in those around it several times.
            Box::pin(join(local, opened.stream, joined))
                .await
                .reason
                .as_str()
        })
    }

    /// Everything before bytes flow, for users with TLS.
    async fn begin_tls<O: Opener>(
        self,
        tcp: ResetOnDrop,
        opener: O,
        end: StreamEnd,
    ) -> Result<(Local, Opened), &'static str> {
        let Some(tls) = &self.0.tls else {
            return Err(code::word(code::INTERNAL));
        };
        let hello = unless_ended(&end, tls.accept(tcp, deadline())).await?;
        if !self.0.mirror {
            // Nothing of the resource matters to the handshake, and much of the handshake does to the resource.
            let (stream, facts) = unless_ended(&end, hello.finish(None, deadline())).await?;
            let wish = Wish {
                alpn: facts.alpn.clone().into_iter().collect(),
                tls: Some(told_of(&facts)),
                http: None,
            };
            let local = Local::from(stream);
            let opening = pin!(opener.open(wish));
            let opened = unless_over(local.tcp(), &end, opening).await?;
            return Ok((local, opened));
        }
        let offered = hello.alpn();
        let fixed = self.0.alpn.iter().map(String::as_bytes);
        let alpn: Vec<Vec<u8>> = if self.0.alpn.is_empty() {
            offered.to_vec()
        } else {
            fixed
                .filter(|name| offered.iter().any(|one| one == name))
                .map(<[u8]>::to_vec)
                .take(1)
                .collect()
        };
        let wish = Wish {
            tls: Some(UserTlsFacts {
                sni: hello.sni().unwrap_or_default().to_owned(),
                ..UserTlsFacts::default()
            }),
            alpn,
            http: None,
        };
        let opening = pin!(opener.open(wish));
        let mut opened = unless_over(hello.tcp(), &end, opening).await?;
        let choice = opened.alpn.clone().unwrap_or_default();
        let finish = unless_ended(&end, hello.finish(Some(&choice), deadline()));
        let (stream, _) = tokio::select! {
            biased;
            error = poll_fn(|cx| opened.stream.poll_reset(cx)) => {
                return Err(EndReason::from(error).as_str());
            }
            finished = finish => finished?,
        };
        Ok((stream.into(), opened))
    }

    async fn serve_http<O: Opener>(
        self,
        tcp: ResetOnDrop,
        opener: O,
        options: ReceiveOptions,
    ) -> &'static str {
        let Some(http) = &self.0.http else {
            return code::word(code::INTERNAL);
        };
        let (local, facts) = match &self.0.tls {
            None => (Local::from(tcp), None),
            Some(tls) => {
                let handshake = async {
                    let hello = tls.accept(tcp, deadline()).await?;
                    hello.finish(None, deadline()).await
                };
                match unless_ended(&options.end, handshake).await {
                    Ok((stream, facts)) => (stream.into(), Some(facts)),
                    Err(word) => return word,
                }
            }
        };
        let version = match facts.as_ref().and_then(|facts| facts.alpn.as_deref()) {
            Some(b"h2") => HttpVersion::Http2,
            _ => HttpVersion::Http1,
        };
        let Ok(base) = HttpOptions::new(&http.resource, http.resource_tls) else {
            return code::word(code::INTERNAL);
        };
        let user = UserOptions {
            forwarded: http.forwarded,
            user: User {
                address: options.user.ip(),
                tls: facts.is_some(),
            },
            meter: options.meter,
        };
        let http_options = HttpOptions {
            idle_timeout: options.idle_timeout,
            counters: options.counters,
            end: options.end,
            drain: options.drain,
            ..base
        };
        let streams = Streams {
            opener,
            wish: Wish {
                tls: facts.as_ref().map(told_of),
                alpn: Vec::new(),
                http: Some(version),
            },
            version,
        };
        http::serve_user(LocalIo::from(local), version, http_options, user, streams)
            .await
            .as_str()
    }
}

/// An opening, and what it comes to: the user's end and a stream, or the word for why there is none.
type Beginning = Pin<Box<dyn Future<Output = Result<(Local, Opened), &'static str>> + Send>>;

/// Streams for the requests of one user.
struct Streams<O> {
    opener: O,
    wish: Wish,
    version: HttpVersion,
}

impl<O: Opener> Upstream for Streams<O> {
    type Io = StreamIo;

    async fn connect(&self) -> Result<(StreamIo, HttpVersion), Refusal> {
        let opened = self
            .opener
            .open(self.wish.clone())
            .await
            .map_err(Refusal::of)?;
        Ok((
            StreamIo::new(opened.stream, opened.compression),
            self.version,
        ))
    }

    fn permit(
        &self,
        method: &::http::Method,
        target: &str,
    ) -> Result<Option<CanonicalPath>, Refusal> {
        let path = http::canonical(method, target)?;
        self.opener.permit_path(&path).map_err(Refusal::of)?;
        Ok(Some(path))
    }
}

fn told_of(facts: &TlsFacts) -> UserTlsFacts {
    UserTlsFacts {
        version: facts.version.to_owned(),
        cipher: facts.cipher.to_owned(),
        sni: facts.sni.clone().unwrap_or_default(),
        alpn: facts.alpn.clone().unwrap_or_default(),
        common_name: facts.peer.as_ref().map(|peer| peer.common_name.clone()),
        verified: facts.peer.as_ref().is_some_and(|peer| peer.verified),
    }
}

fn deadline() -> Instant {
    Instant::now() + HANDSHAKE_LIMIT
}

/// The word for a handshake that failed.
fn told(error: &TlsError) -> &'static str {
    tracing::debug!(reason = error.as_str(), %error, "TLS of a user failed");
    error.as_str()
}

/// Everything before bytes flow, for users whose bytes are taken as they are.
async fn begin_plain<O: Opener>(
    tcp: ResetOnDrop,
    opener: O,
    end: StreamEnd,
) -> Result<(Local, Opened), &'static str> {
    let opening = pin!(opener.open(Wish::default()));
    let opened = unless_over(tcp.tcp(), &end, opening).await?;
    Ok((tcp.into(), opened))
}

/// A step of a handshake, which has a limit of its own and notices the user's reset; an end from outside ends it.
async fn unless_ended<T>(
    end: &StreamEnd,
    step: impl Future<Output = Result<T, TlsError>>,
) -> Result<T, &'static str> {
    tokio::select! {
        biased;
        code = end.ended() => Err(code::word(code)),
        done = step => done.map_err(|error| told(&error)),
    }
}

/// Ends from outside and the user's own reset end every wait of an opening; none of them loses anything.
async fn unless_over<T>(
    tcp: &TcpStream,
    end: &StreamEnd,
    opening: Pin<&mut impl Future<Output = Result<T, &'static str>>>,
) -> Result<T, &'static str> {
    tokio::select! {
        biased;
        code = end.ended() => Err(code::word(code)),
        _ = socket_error(tcp) => Err(EndReason::TcpReset.as_str()),
        opened = opening => opened,
    }
}
