//! The node's half of a flow: between one address of a user and the tunnel.
//!
//! Two tasks share it. Whoever reads the socket of the destination hands the user's datagrams to
//! [`UserFlow::push`]; the flow's own task sends the answers and watches over its end
//! ([`UserFlow::run`]). Neither ever waits for the other.

use std::future::{Future as _, poll_fn};
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use sg_tunnel_io::{Flow, code};
use tokio::time::{Instant, sleep_until};

use super::{AnswerLimit, BATCH, Direction, Fate, Peer, UserSocket};
use crate::{ByteCounters, DestinationMeter, EndReason, StreamEnd};

/// How long a flow may be idle, unless its destination says otherwise.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a flow to which nothing came back may be idle.
pub const UNANSWERED_TIMEOUT: Duration = Duration::from_secs(30);
const A_YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// One user's flow.
#[derive(Debug)]
pub struct UserFlow {
    flow: Flow,
    peer: Peer,
    meter: Arc<DestinationMeter>,
    counters: Arc<ByteCounters>,
    answers: AnswerLimit,
    end: StreamEnd,
    began: Instant,
    /// When the last datagram passed, either way: milliseconds since it began.
    active: AtomicU64,
    over: AtomicBool,
}

impl UserFlow {
    /// A flow that was just opened for this user; bytes are counted in `counters`, datagrams in `meter`, and
    /// `end` ends it from outside.
    #[must_use]
    pub fn new(
        flow: Flow,
        peer: Peer,
        meter: Arc<DestinationMeter>,
        counters: Arc<ByteCounters>,
        end: StreamEnd,
    ) -> Self {
        Self {
            flow,
            peer,
            meter,
            counters,
            answers: AnswerLimit::default(),
            end,
            began: Instant::now(),
            active: AtomicU64::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Passes on a datagram of the user. False when the flow is over: the datagram was not taken.
    pub fn push(&self, now: Instant, datagram: &Bytes) -> bool {
        if self.is_over() {
            return false;
        }
        let length = datagram.len();
        if self.flow.send(datagram.clone()).is_err() {
            self.over.store(true, Ordering::Relaxed);
            return false;
        }
        self.answers.received(length);
        self.touch(now);
        self.counters.add_from_tcp(length as u64);
        self.meter.datagram(Direction::ToResource, Fate::Passed);
        true
    }

    /// Ends it with a code.
    pub fn end(&self, code: u32) {
        self.end.end(code);
    }

    /// Whether it takes nothing any more.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }

    /// Whether anything came back from the resource.
    #[must_use]
    pub fn is_answered(&self) -> bool {
        self.answers.is_answered()
    }

    /// Sends answers until the flow is reset, its tunnel is lost, it was idle for too long (`idle`, or
    /// [`UNANSWERED_TIMEOUT`] if that is shorter and nothing came back), or somebody ends it; the flow is
    /// then reset. Calls `opened` when the client has accepted it.
    pub async fn run(
        &self,
        socket: &UserSocket,
        idle: Duration,
        mut opened: impl FnMut() + Send,
    ) -> EndReason {
        let _over = SetOnDrop(&self.over);
        let mut is_open = false;
        let mut batch = Vec::new();
        let mut ended = pin!(self.end.ended());
        let mut timer = pin!(sleep_until(self.began + idle.min(UNANSWERED_TIMEOUT)));
        let reason = poll_fn(|cx| {
            if let Poll::Ready(code) = ended.as_mut().poll(cx) {
                return Poll::Ready(EndReason::Ended(code));
            }
            if let Poll::Ready(reason) = self.poll_answers(cx, socket, &mut batch) {
                return Poll::Ready(reason);
            }
            if !is_open && self.flow.is_open() {
                is_open = true;
                opened();
            }
            while timer.as_mut().poll(cx).is_ready() {
                let until = self.idle_until(idle);
                if until <= Instant::now() {
                    return Poll::Ready(EndReason::IdleTimeout);
                }
                timer.as_mut().reset(until);
            }
            Poll::Pending
        })
        .await;
        match reason {
            EndReason::Ended(code) => self.flow.reset(code),
            EndReason::IdleTimeout => self.flow.reset(code::IDLE_TIMEOUT),
            _ => {}
        }
        reason
    }

    /// Sends what has come, up to [`BATCH`] datagrams. Ready when the flow has ended.
    fn poll_answers(
        &self,
        cx: &mut Context<'_>,
        socket: &UserSocket,
        batch: &mut Vec<Bytes>,
    ) -> Poll<EndReason> {
        match self.flow.poll_recv_many(cx, batch, BATCH) {
            Poll::Ready(Ok(_)) => {}
            Poll::Ready(Err(error)) => return Poll::Ready(error.into()),
            Poll::Pending => {
                // An idle flow keeps nothing.
                batch.shrink_to_fit();
                return Poll::Pending;
            }
        }
        self.touch(Instant::now());
        for answer in batch.drain(..) {
            self.answer(socket, &answer);
        }
        // There may be more, and this task has had its turn.
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn answer(&self, socket: &UserSocket, answer: &[u8]) {
        let fate = if !self.answers.permits(answer.len()) {
            Fate::Amplification
        } else {
            match socket.try_send(answer, &self.peer) {
                Ok(()) => {
                    self.counters.add_to_tcp(answer.len() as u64);
                    Fate::Passed
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => Fate::SocketFull,
                Err(error) => {
                    tracing::trace!(%error, user = %self.peer.user, "answer not sent");
                    Fate::NotSent
                }
            }
        };
        self.meter.datagram(Direction::ToUser, fate);
    }

    fn touch(&self, now: Instant) {
        let since = now.saturating_duration_since(self.began).as_millis();
        let since = u64::try_from(since).unwrap_or(u64::MAX);
        self.active.fetch_max(since, Ordering::Relaxed);
    }

    fn idle_until(&self, idle: Duration) -> Instant {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        let limit = if self.is_answered() {
            idle
        } else {
            idle.min(UNANSWERED_TIMEOUT)
        };
        // A limit beyond what clocks can tell is as good as a year, which is looked at again then.
        let at = self.began + active;
        at.checked_add(limit).unwrap_or(at + A_YEAR)
    }
}

/// However the flow's task ends, the flow takes nothing afterwards.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}
