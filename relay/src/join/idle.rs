//! Notices that no byte has passed for a time. Costs one comparison per poll, and nothing without a limit.

use std::future::Future as _;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

use crate::ByteCounters;

pub(crate) struct Idle(Option<Limit>);

struct Limit {
    timeout: Duration,
    timer: Pin<Box<Sleep>>,
    seen: u64,
    since: Instant,
}

impl Idle {
    pub(crate) fn new(timeout: Option<Duration>) -> Self {
        Self(timeout.map(|timeout| Limit {
            timeout,
            timer: Box::pin(sleep(timeout)),
            seen: 0,
            since: Instant::now(),
        }))
    }

    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, counters: &ByteCounters) -> Poll<()> {
        let Some(limit) = &mut self.0 else {
            return Poll::Pending;
        };
        let total = counters.from_tcp().wrapping_add(counters.to_tcp());
        if total != limit.seen {
            limit.seen = total;
            limit.since = Instant::now();
        }
        loop {
            ready!(limit.timer.as_mut().poll(cx));
            let end = limit.since + limit.timeout;
            if end <= Instant::now() {
                return Poll::Ready(());
            }
            limit.timer.as_mut().reset(end);
        }
    }
}
