//! The way to the resource: connections that one user's requests go over, and nobody else's. At the accepting end
//! that is a stream of a tunnel; at the dialling end it is the resource, and for an HTTP/2 user of an HTTP/1.1 resource
//! it is up to [`MAX_CONNECTIONS`] of them.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use http::{Method, Request, Response, Version};
use hyper::body::Incoming;
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioIo, TokioTimer};
use sg_model::CanonicalPath;
use sg_runtime::gate::{First, race};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::timeout;

use super::body::Body;
use super::refusal::Refusal;
use super::stop::Stop;
use super::tasks::Spawner;
use super::wire::{Cell, Counted, DropCode, Wire};
use super::{HttpVersion, limits};
use crate::EndReason;

/// Most connections that one HTTP/2 user has to a resource that speaks HTTP/1.1.
pub const MAX_CONNECTIONS: usize = 32;

/// How long a request waits for one of them.
const QUEUE_TIME: Duration = Duration::from_secs(10);
/// How long a connection may take to be ready for its next request.
const READY_TIME: Duration = Duration::from_secs(1);
/// A connection that was reset may hold the rest of an answer. After this time the user is told.
const BROKEN_TIME: Duration = Duration::from_millis(1_500);

/// Where requests of one user connection go.
pub trait Upstream: Send + Sync + 'static {
    /// A connection there.
    type Io: Wire;

    /// Opens a connection, within its own time limit: at the accepting end a stream of a tunnel, in the version that
    /// the user speaks; at the dialling end the resource, in the version that was negotiated.
    fn connect(&self) -> impl Future<Output = Result<(Self::Io, HttpVersion), Refusal>> + Send;

    /// Decides over one request by its path. `target` is path and query as the user sent them. What is
    /// forwarded is the answer's form; `None` leaves it as it is, for destinations on whose paths nothing depends.
    /// See [`canonical`](super::canonical).
    ///
    /// # Errors
    /// The request is refused.
    fn permit(&self, method: &Method, target: &str) -> Result<Option<CanonicalPath>, Refusal>;
}

/// The connections to the far side of one user connection.
pub(super) struct Pool<U: Upstream> {
    upstream: U,
    first: Mutex<Option<(U::Io, HttpVersion)>>,
    /// Connections of HTTP/1.1 that wait for a request.
    idle: Arc<Mutex<Vec<Http1>>>,
    /// The connection of HTTP/2, which takes all requests.
    http2: Mutex<Option<Http2>>,
    /// Whether a connection was of HTTP/1.1, so that more than one is needed.
    many: AtomicBool,
    connecting: tokio::sync::Mutex<()>,
    permits: Arc<Semaphore>,
    spawner: Spawner,
    code: DropCode,
    counted: Option<Counted>,
    stop: Arc<Stop>,
}

type Failed = Arc<OnceLock<EndReason>>;

struct Http1 {
    sender: http1::SendRequest<Body>,
    failed: Failed,
    link: Arc<Link>,
    used: bool,
}

/// What a connection's driver must know of its use.
#[derive(Default)]
struct Link {
    use_of: Mutex<Use>,
    changed: Notify,
    /// Ends when the bytes after an upgrade have.
    upgraded: Mutex<Option<oneshot::Receiver<()>>>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Use {
    #[default]
    None,
    /// An exchange is under way.
    Busy,
    /// An exchange was given up in the middle.
    GivenUp,
}

impl Link {
    fn set(&self, to: Use) {
        *lock(&self.use_of) = to;
        self.changed.notify_one();
    }

    /// Waits for the end of the exchange under way; tells whether it was whole.
    async fn settled(&self) -> bool {
        loop {
            let present = *lock(&self.use_of);
            match present {
                Use::None => return true,
                Use::GivenUp => return false,
                Use::Busy => self.changed.notified().await,
            }
        }
    }
}

#[derive(Clone)]
struct Http2 {
    sender: http2::SendRequest<Body>,
    failed: Failed,
}

/// A connection that is used for one exchange.
pub(super) struct Lease {
    kind: Kind,
    stop: Arc<Stop>,
}

enum Kind {
    One {
        connection: Option<Http1>,
        idle: Weak<Mutex<Vec<Http1>>>,
        _permit: OwnedSemaphorePermit,
    },
    Many(Http2),
}

/// Why a request got no answer.
pub(super) struct Unanswered {
    pub(super) refusal: Refusal,
    /// The request, if nothing of it was sent.
    pub(super) unsent: Option<Request<Body>>,
}

impl<U: Upstream> Pool<U> {
    pub(super) fn new(
        upstream: U,
        first: Option<(U::Io, HttpVersion)>,
        connections: usize,
        spawner: Spawner,
        code: DropCode,
        counted: Option<Counted>,
        stop: Arc<Stop>,
    ) -> Self {
        Self {
            upstream,
            first: Mutex::new(first),
            idle: Arc::default(),
            http2: Mutex::default(),
            many: AtomicBool::new(false),
            connecting: tokio::sync::Mutex::default(),
            permits: Arc::new(Semaphore::new(connections)),
            spawner,
            code,
            counted,
            stop,
        }
    }

    pub(super) const fn upstream(&self) -> &U {
        &self.upstream
    }

    /// A connection for one request.
    pub(super) async fn lease(&self) -> Result<Lease, Refusal> {
        if let Some(shared) = self.shared() {
            return Ok(self.all(shared));
        }
        let permit = timeout(QUEUE_TIME, Arc::clone(&self.permits).acquire_owned()).await;
        let Ok(Ok(permit)) = permit else {
            return Err(Refusal::of("limit"));
        };
        loop {
            let waiting = lock(&self.idle).pop();
            let Some(mut connection) = waiting else {
                break;
            };
            if connection.is_ready().await {
                return Ok(self.one(connection, permit));
            }
        }
        if self.many.load(Ordering::Relaxed) {
            return self.connect(permit).await;
        }
        // Until it is known what is spoken there, one connection is made at a time: it may be enough.
        let _alone = self.connecting.lock().await;
        match self.shared() {
            Some(shared) => Ok(self.all(shared)),
            None => self.connect(permit).await,
        }
    }

    fn shared(&self) -> Option<Http2> {
        let mut shared = lock(&self.http2);
        if shared
            .as_ref()
            .is_some_and(|http2| http2.sender.is_closed())
        {
            *shared = None;
        }
        shared.clone()
    }

    fn one(&self, connection: Http1, permit: OwnedSemaphorePermit) -> Lease {
        Lease {
            kind: Kind::One {
                connection: Some(connection),
                idle: Arc::downgrade(&self.idle),
                _permit: permit,
            },
            stop: Arc::clone(&self.stop),
        }
    }

    fn all(&self, shared: Http2) -> Lease {
        Lease {
            kind: Kind::Many(shared),
            stop: Arc::clone(&self.stop),
        }
    }

    async fn connect(&self, permit: OwnedSemaphorePermit) -> Result<Lease, Refusal> {
        let first = lock(&self.first).take();
        let (io, version) = match first {
            Some(first) => first,
            None => self.upstream.connect().await?,
        };
        let cell = Cell::new(io, self.counted.clone(), self.code.clone());
        let failed = cell.failed();
        let bad = |error: hyper::Error| {
            tracing::debug!(%error, "HTTP could not begin");
            Refusal::of("bad-answer")
        };
        match version {
            HttpVersion::Http1 => {
                self.many.store(true, Ordering::Relaxed);
                let (sender, connection) = http1::Builder::new()
                    .preserve_header_case(true)
                    .max_headers(limits::TUNNEL_HEAD.headers)
                    .max_buf_size(limits::BUFFER)
                    .handshake(TokioIo::new(cell.clone()))
                    .await
                    .map_err(bad)?;
                let link = Arc::<Link>::default();
                self.spawner.spawn(drive_http1(
                    connection,
                    cell,
                    Arc::clone(&link),
                    self.code.clone(),
                    Arc::clone(&self.stop),
                ));
                let connection = Http1 {
                    sender,
                    failed,
                    link,
                    used: false,
                };
                Ok(self.one(connection, permit))
            }
            HttpVersion::Http2 => {
                let (sender, connection) = http2::Builder::new(self.spawner.clone())
                    .timer(TokioTimer::new())
                    .initial_stream_window_size(limits::STREAM_WINDOW)
                    .initial_connection_window_size(limits::CONNECTION_WINDOW)
                    .max_send_buf_size(limits::SEND_BUFFER)
                    .max_header_list_size(limits::ANSWER_HEAD)
                    .initial_max_send_streams(limits::STREAMS)
                    .handshake(TokioIo::new(cell.clone()))
                    .await
                    .map_err(bad)?;
                let code = self.code.clone();
                self.spawner.spawn(async move {
                    // Ends when the last request and the last sender are gone.
                    match connection.await {
                        Ok(()) => cell.finish().await,
                        Err(error) => {
                            tracing::debug!(%error, "connection of HTTP/2 failed");
                            cell.abort(code.get());
                        }
                    }
                });
                let shared = Http2 { sender, failed };
                *lock(&self.http2) = Some(shared.clone());
                Ok(self.all(shared))
            }
        }
    }
}

/// Runs one connection of HTTP/1.1 until it has ended, whichever side ends it.
async fn drive_http1<W: Wire>(
    connection: http1::Connection<TokioIo<Cell<W>>, Body>,
    cell: Cell<W>,
    link: Arc<Link>,
    code: DropCode,
    stop: Arc<Stop>,
) {
    let mut connection = pin!(connection.with_upgrades());
    let broken = pin!(poll_fn(|cx| cell.poll_broken(cx)));
    let result = match race(connection.as_mut(), broken).await {
        First::Main(result) => result,
        First::Seldom(reason) => {
            // What was read before is still passed on.
            let rest = timeout(BROKEN_TIME, connection).await;
            if rest.is_err() {
                stop.fail(reason);
            }
            cell.abort(code.get());
            return;
        }
    };
    let upgraded = lock(&link.upgraded).take();
    if let Err(error) = &result {
        tracing::debug!(%error, "connection of HTTP/1.1 failed");
        cell.abort(code.get());
        return;
    }
    if let Some(upgraded) = upgraded {
        let broken = pin!(poll_fn(|cx| cell.poll_broken(cx)));
        match race(pin!(upgraded), broken).await {
            First::Main(Ok(())) => cell.finish().await,
            First::Main(Err(_)) => cell.abort(code.get()),
            First::Seldom(reason) => stop.fail(reason),
        }
    } else if link.settled().await {
        // hyper ends well also when a body breaks off; only who used the connection knows.
        cell.finish().await;
    } else {
        cell.abort(code.get());
    }
}

impl Http1 {
    async fn is_ready(&mut self) -> bool {
        !self.sender.is_closed()
            && matches!(timeout(READY_TIME, self.sender.ready()).await, Ok(Ok(())))
    }
}

impl Lease {
    pub(super) const fn version(&self) -> Version {
        match &self.kind {
            Kind::One { .. } => Version::HTTP_11,
            Kind::Many(_) => Version::HTTP_2,
        }
    }

    /// Whether the connection has carried a request before: then it may have been closed just now.
    pub(super) fn is_used(&self) -> bool {
        match &self.kind {
            Kind::One { connection, .. } => connection.as_ref().is_some_and(|one| one.used),
            Kind::Many(_) => false,
        }
    }

    /// Sends a request. An upgrade is wanted, if `upgraded` is there, which ends when its bytes have ended.
    pub(super) async fn send(
        &mut self,
        request: Request<Body>,
        upgraded: Option<oneshot::Receiver<()>>,
    ) -> Result<Response<Incoming>, Unanswered> {
        let (result, failed) = match &mut self.kind {
            Kind::One { connection, .. } => {
                let Some(connection) = connection else {
                    return Err(Unanswered {
                        refusal: Refusal::of("internal"),
                        unsent: Some(request),
                    });
                };
                connection.link.set(Use::Busy);
                if upgraded.is_some() {
                    *lock(&connection.link.upgraded) = upgraded;
                }
                (
                    connection.sender.try_send_request(request).await,
                    &connection.failed,
                )
            }
            Kind::Many(http2) => (http2.sender.try_send_request(request).await, &http2.failed),
        };
        result.map_err(|mut error| {
            let unsent = error.take_message();
            let error = error.into_error();
            tracing::debug!(%error, unsent = unsent.is_some(), "no answer");
            let refusal = match failed.get() {
                Some(reason) => Refusal::of(reason.as_str()),
                None if error.is_parse() => Refusal::of("bad-answer"),
                None if is_reset(&error) => Refusal::of("peer-reset"),
                None => Refusal::of("peer-closed"),
            };
            Unanswered { refusal, unsent }
        })
    }

    /// Notes why the answer under way breaks off.
    pub(super) fn note_failure(&self) {
        let failed = match &self.kind {
            Kind::One { connection, .. } => connection.as_ref().map(|one| &one.failed),
            // The connection may be well: only this exchange was reset.
            Kind::Many(_) => None,
        };
        let reason = failed.and_then(|failed| failed.get().copied());
        self.stop.note(reason.unwrap_or(EndReason::TcpReset));
    }

    /// Keeps the connection for the next request: its answer was read to the end.
    pub(super) fn give_back(mut self) {
        let Kind::One {
            connection, idle, ..
        } = &mut self.kind
        else {
            return;
        };
        let Some(mut connection) = connection.take() else {
            return;
        };
        connection.link.set(Use::None);
        if let Some(idle) = idle.upgrade()
            && !connection.sender.is_closed()
        {
            connection.used = true;
            lock(&idle).push(connection);
        }
    }

    /// Lets go of a connection that is no longer one of HTTP.
    pub(super) fn upgraded(mut self) {
        if let Kind::One { connection, .. } = &mut self.kind
            && let Some(connection) = connection.take()
        {
            connection.link.set(Use::None);
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Kind::One {
            connection: Some(connection),
            ..
        } = &self.kind
        {
            connection.link.set(Use::GivenUp);
        }
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("version", &self.version())
            .finish_non_exhaustive()
    }
}

/// Whether the far side has reset the one exchange, and not the connection.
fn is_reset(error: &hyper::Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error
            .downcast_ref::<std::io::Error>()
            .is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        {
            return true;
        }
        source = error.source();
    }
    false
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
