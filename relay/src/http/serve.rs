//! The life of one connection: hyper's server, what runs beside it, and what may end both.

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use sg_tunnel_io::code;
use tokio::time::{Sleep, sleep};

use super::exchange::Exchanges;
use super::guard::{GuardHandle, Guarded};
use super::stop::Stop;
use super::tasks::Tasks;
use super::upstream::{MAX_CONNECTIONS, Pool, Upstream};
use super::wire::{Cell, Counted, DropCode, Wire};
use super::{HttpOptions, HttpVersion, Role, limits};
use crate::EndReason;
use crate::join::idle::Idle;

/// How long connections to the far side may take to end in order, after the served one has.
const END_TIME: Duration = Duration::from_secs(2);
/// How long answers may take that say that the idle time is over.
const IDLE_ANSWER: Duration = Duration::from_secs(1);
/// A user who has ended its direction while its request is served, and gets no byte for so long, is taken for gone:
/// from here a program that was closed looks the same.
const HALF_CLOSED: Duration = Duration::from_millis(1_500);

/// Serves one connection; answers how it ended. Dropping the future resets it and everything beside it.
pub(super) async fn serve<W: Wire, U: Upstream>(
    io: W,
    version: HttpVersion,
    options: HttpOptions,
    role: Role,
    upstream: U,
    first: Option<(U::Io, HttpVersion)>,
) -> EndReason {
    let code = DropCode::new();
    let counted = Counted(Arc::clone(&options.counters));
    let (near, far, head) = match &role {
        Role::Accepting(_) => (Some(counted), None, limits::HEAD),
        Role::Dialling => (None, Some(counted), limits::TUNNEL_HEAD),
    };
    let cell = Cell::new(io, near, code.clone());
    let tasks = Tasks::new();
    let stop = Arc::<Stop>::default();
    let (guard, connections) = match version {
        HttpVersion::Http1 => (GuardHandle::new(head, options.head_timeout), 1),
        HttpVersion::Http2 => (GuardHandle::off(), MAX_CONNECTIONS),
    };
    let pool = Pool::new(
        upstream,
        first,
        connections,
        tasks.spawner(),
        code.clone(),
        far,
        Arc::clone(&stop),
    );
    let served = Served {
        cell: cell.clone(),
        guard: guard.clone(),
        tasks,
        stop: Arc::clone(&stop),
        code,
        options: options.clone(),
    };
    let io = TokioIo::new(Guarded {
        cell,
        guard: guard.clone(),
    });
    let spawner = served.tasks.spawner();
    let exchanges = Arc::new(Exchanges {
        pool,
        options,
        role,
        guard,
        stop,
        spawner: spawner.clone(),
    });
    let service = service_fn(move |request| exchanges.call(request));
    match version {
        HttpVersion::Http1 => {
            let server = http1::Builder::new()
                .half_close(true)
                .preserve_header_case(true)
                .auto_date_header(false)
                .max_headers(head.headers + 16)
                .max_header_size(head.bytes + 1024)
                .max_buf_size(limits::BUFFER)
                .header_read_timeout(None)
                .timer(TokioTimer::new())
                .serve_connection(io, service)
                .with_upgrades();
            served
                .run(Box::pin(server), |server| server.graceful_shutdown())
                .await
        }
        HttpVersion::Http2 => {
            let server = http2::Builder::new(spawner)
                .timer(TokioTimer::new())
                .auto_date_header(false)
                .max_concurrent_streams(u32::try_from(limits::STREAMS).unwrap_or(u32::MAX))
                .max_header_list_size(u32::try_from(head.bytes).unwrap_or(u32::MAX))
                .initial_stream_window_size(limits::STREAM_WINDOW)
                .initial_connection_window_size(limits::CONNECTION_WINDOW)
                .max_send_buf_size(limits::SEND_BUFFER)
                .max_pending_accept_reset_streams(limits::PENDING_RESETS)
                .max_local_error_reset_streams(limits::LOCAL_RESETS)
                .serve_connection(io, service);
            served
                .run(Box::pin(server), |server| server.graceful_shutdown())
                .await
        }
    }
}

/// A connection that is served.
struct Served<W: Wire> {
    cell: Cell<W>,
    guard: GuardHandle,
    tasks: Tasks,
    stop: Arc<Stop>,
    code: DropCode,
    options: HttpOptions,
}

impl<W: Wire> Served<W> {
    async fn run<S>(mut self, server: Pin<Box<S>>, end_gracefully: fn(Pin<&mut S>)) -> EndReason
    where
        S: Future<Output = hyper::Result<()>>,
    {
        let mut server = Some(server);
        let reason = self.until_end(&mut server, end_gracefully).await;
        let code = code_of(reason);
        self.code.set(code);
        // hyper has ended by itself: then what it wrote is whole.
        let in_order = server.is_none()
            && match reason {
                EndReason::Finished => true,
                EndReason::IdleTimeout => !self.guard.is_raw(),
                _ => false,
            };
        drop(server);
        drop(self.tasks);
        if in_order {
            self.cell.finish().await;
        } else {
            self.cell.abort(code);
        }
        reason
    }

    async fn until_end<S>(
        &mut self,
        server: &mut Option<Pin<Box<S>>>,
        end_gracefully: fn(Pin<&mut S>),
    ) -> EndReason
    where
        S: Future<Output = hyper::Result<()>>,
    {
        let Self {
            cell,
            guard,
            tasks,
            stop,
            options,
            ..
        } = self;
        let mut ended = pin!(options.end.ended());
        let mut failed = pin!(stop.failed());
        let mut drained = pin!(options.drain.cancelled());
        let mut draining = false;
        let mut idle = Idle::new(options.idle_timeout);
        let mut idle_answer = Timer::default();
        let mut ending = Timer::default();
        let mut gone = Gone::default();
        poll_fn(|cx| {
            if let Poll::Ready(code) = ended.as_mut().poll(cx) {
                return Poll::Ready(EndReason::Ended(code));
            }
            if let Poll::Ready(reason) = cell.poll_broken(cx) {
                return Poll::Ready(reason);
            }
            if !draining && drained.as_mut().poll(cx).is_ready() {
                draining = true;
                if let Some(server) = server.as_mut() {
                    end_gracefully(server.as_mut());
                }
            }
            if let Some(running) = server.as_mut()
                && let Poll::Ready(result) = running.as_mut().poll(cx)
            {
                *server = None;
                if let Err(error) = result {
                    tracing::debug!(%error, "connection of HTTP ended");
                    return Poll::Ready(why(cell, stop));
                }
                if !guard.is_raw() {
                    ending.start(END_TIME);
                }
            }
            let alone = tasks.poll(cx).is_ready();
            // One of them may have ended because of this.
            if let Poll::Ready(reason) = failed.as_mut().poll(cx) {
                return Poll::Ready(reason);
            }
            if server.is_none() && (alone || ending.poll(cx).is_ready()) {
                return Poll::Ready(if idle_answer.is_started() {
                    EndReason::IdleTimeout
                } else {
                    EndReason::Finished
                });
            }
            if server.is_some() {
                guard.poll_ahead(cx, cell);
                if guard.is_half_closed() && gone.poll(cx, cell.written()).is_ready() {
                    return Poll::Ready(EndReason::Ended(code::CANCEL));
                }
            }
            if idle_answer.is_started() {
                return idle_answer.poll(cx).map(|()| EndReason::IdleTimeout);
            }
            if idle.poll(cx, &options.counters).is_ready() {
                let Some(server) = server.as_mut() else {
                    return Poll::Ready(EndReason::IdleTimeout);
                };
                // Whoever waits for an answer gets one.
                stop.idle();
                end_gracefully(server.as_mut());
                idle_answer.start(IDLE_ANSWER);
                cx.waker().wake_by_ref();
            }
            Poll::Pending
        })
        .await
    }
}

/// Why hyper's server gave up: its own connection, or an answer that broke off.
fn why<W: Wire>(cell: &Cell<W>, stop: &Stop) -> EndReason {
    let own = cell.failed().get().copied();
    own.or_else(|| stop.reason())
        .unwrap_or(EndReason::Ended(code::CANCEL))
}

/// What the far side of a stream is told.
const fn code_of(reason: EndReason) -> u32 {
    match reason {
        EndReason::Finished | EndReason::TunnelLost => code::CANCEL,
        EndReason::TcpReset => code::PEER_RESET,
        EndReason::StreamReset(code) | EndReason::Ended(code) => code,
        EndReason::IdleTimeout => code::IDLE_TIMEOUT,
    }
}

/// A time limit that may not run yet.
#[derive(Default)]
struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    fn start(&mut self, time: Duration) {
        self.0 = Some(Box::pin(sleep(time)));
    }

    const fn is_started(&self) -> bool {
        self.0.is_some()
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.0 {
            Some(sleep) => sleep.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Notices that a user who has ended its direction gets nothing any more.
#[derive(Default)]
struct Gone {
    timer: Timer,
    seen: u64,
}

impl Gone {
    fn poll(&mut self, cx: &mut Context<'_>, written: u64) -> Poll<()> {
        if !self.timer.is_started() || self.seen != written {
            self.seen = written;
            self.timer.start(HALF_CLOSED);
        }
        self.timer.poll(cx)
    }
}
