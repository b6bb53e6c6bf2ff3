//! HTTP destinations: both ends of a user's connection whose bytes are HTTP.
//!
//! ```text
//! user ══▶ serve_user ══ stream of a tunnel ══▶ serve_stream ══▶ resource
//! ```
//!
//! Both ends read requests with hyper and write them anew, so that nothing passes that could be read in two ways;
//! both decide over the path; and what is forwarded is what was decided over. There is no parser here: hyper is
//! the one. In front of it stands a [`guard`] that only refuses.
//!
//! One connection of a user is one task. It has the streams or connections that its requests need to itself, and they
//! end with it.
//!
//! Not here: TLS, sockets, tunnels ([`Wire`] is whatever carries the bytes), who decides ([`Upstream::permit`]).
//! Caches, pools across users, changed answers (`Location`, cookies): nowhere.
//!
//! Where to start: [`serve`] is the life of one connection; [`exchange`] that of one request; [`rewrite`] says what
//! is changed in it.

mod body;
mod chunks;
mod exchange;
mod forwarded;
mod guard;
mod head;
mod limits;
mod refusal;
mod rewrite;
mod serve;
mod stop;
mod tasks;
mod upstream;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use http::Method;
use http::uri::{Authority, Scheme};
use sg_model::{CanonicalPath, HostPort, PathRefusal};
use sg_runtime::shutdown::CancellationToken;

pub use forwarded::{Forwarded, User};
pub use refusal::{ERROR_HEADER, Refusal};
pub use upstream::{MAX_CONNECTIONS, Upstream};
pub use wire::Wire;

use crate::{ByteCounters, DestinationMeter, EndReason, StreamEnd};

/// How long a request line and headers may take.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// Which version of HTTP a connection speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HttpVersion {
    /// HTTP/1.1, and HTTP/1.0 from users.
    Http1,
    /// HTTP/2, agreed by ALPN or known before.
    Http2,
}

/// What both ends of a connection are subject to.
#[derive(Debug, Clone)]
pub struct HttpOptions {
    /// What `Host` or `:authority` says to the resource; see [`authority`].
    pub authority: Authority,
    /// Scheme towards the resource.
    pub scheme: Scheme,
    /// Ends the connection when no byte has passed for so long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// How long a request line and headers may take, from the first byte of them; on a new connection from its
    /// beginning. [`HEAD_TIMEOUT`] unless set.
    pub head_timeout: Duration,
    /// Where bytes are counted: those of the user's connection at the accepting end, those of the
    /// resource's at the dialling end.
    pub counters: Arc<ByteCounters>,
    /// Lets somebody else end the connection.
    pub end: StreamEnd,
    /// After this no new request is taken: the connection ends with the answers under way.
    pub drain: CancellationToken,
}

/// What only the accepting end does.
#[derive(Debug, Clone)]
pub struct UserOptions {
    /// What becomes of the headers that say who the user is.
    pub forwarded: Forwarded,
    /// Who the user is.
    pub user: User,
    /// Where answers are counted.
    pub meter: Option<Arc<DestinationMeter>>,
}

#[derive(Debug)]
enum Role {
    Accepting(UserOptions),
    Dialling,
}

impl HttpVersion {
    /// How a stream's opening says it; 0 says that there is none.
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Http1 => 1,
            Self::Http2 => 2,
        }
    }

    /// The version that a stream's opening says.
    #[must_use]
    pub const fn of_number(number: u32) -> Option<Self> {
        match number {
            1 => Some(Self::Http1),
            2 => Some(Self::Http2),
            _ => None,
        }
    }
}

impl HttpOptions {
    /// Options for a resource, with nothing limited.
    ///
    /// # Errors
    /// The resource's name cannot stand in a request.
    pub fn new(resource: &HostPort, tls: bool) -> Result<Self, Refusal> {
        Ok(Self {
            authority: authority(resource, tls)?,
            scheme: if tls { Scheme::HTTPS } else { Scheme::HTTP },
            idle_timeout: None,
            head_timeout: HEAD_TIMEOUT,
            counters: Arc::default(),
            end: StreamEnd::new(),
            drain: CancellationToken::new(),
        })
    }
}

/// What a request says of whom it is for: the resource's host, and its port unless that is the scheme's own.
///
/// # Errors
/// The name cannot stand in a request.
pub fn authority(resource: &HostPort, tls: bool) -> Result<Authority, Refusal> {
    let text = match (resource.port(), tls) {
        (80, false) | (443, true) => resource.host().bracketed(),
        _ => resource.to_string(),
    };
    text.parse()
        .map_err(|_| Refusal::bad("the resource's name cannot stand in a request"))
}

/// The one form of a request's path, for [`Upstream::permit`].
///
/// # Errors
/// Different servers could read it differently; it is answered with 400.
pub fn canonical(method: &Method, target: &str) -> Result<CanonicalPath, Refusal> {
    CanonicalPath::parse_for(method.as_str(), target).map_err(|refusal| {
        Refusal::bad(match refusal {
            PathRefusal::NoLeadingSlash => "path: it does not begin with a slash",
            PathRefusal::Asterisk => "path: * is for OPTIONS only",
            PathRefusal::Fragment => "path: a fragment",
            PathRefusal::EncodedSlash => "path: an encoded slash",
            PathRefusal::Backslash => "path: a backslash",
            PathRefusal::ControlCharacter => "path: a control character",
            PathRefusal::BadEncoding => "path: a broken percent-encoding",
            PathRefusal::DoubleEncoding => "path: encoded twice",
            PathRefusal::DotSegment => "path: a dot segment with something attached",
            PathRefusal::BeyondRoot => "path: it leads out of the root",
            PathRefusal::NotUtf8 => "path: not UTF-8",
            PathRefusal::TooLong => "path: too long",
        })
    })
}

/// The accepting end: serves a user's connection until it ends. Requests go over streams of a tunnel that
/// `upstream` opens, at the first request and whenever the last stream has ended in between.
pub async fn serve_user<W: Wire, U: Upstream>(
    io: W,
    version: HttpVersion,
    options: HttpOptions,
    user: UserOptions,
    upstream: U,
) -> EndReason {
    let role = Role::Accepting(user);
    serve::serve(io, version, options, role, upstream, None).await
}

/// The dialling end: serves a stream of a tunnel until it ends. Requests go to the resource: over `first`, which
/// was connected before the stream was accepted, and over what `upstream` connects when that is not enough.
pub async fn serve_stream<W: Wire, U: Upstream>(
    io: W,
    version: HttpVersion,
    options: HttpOptions,
    upstream: U,
    first: Option<(U::Io, HttpVersion)>,
) -> EndReason {
    serve::serve(io, version, options, Role::Dialling, upstream, first).await
}
