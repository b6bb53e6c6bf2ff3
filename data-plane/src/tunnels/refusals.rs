//! Connections that did not become tunnels: all are counted by reason, and logged as long as they are few, so
//! that whoever knocks all the time cannot fill the log.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::node::Node;

/// Lines per second.
const LINES: u32 = 20;

/// The lines of the present second.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Second>);

#[derive(Debug, Default)]
struct Second {
    since: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl Refusals {
    /// Counts and logs one. `detail` must hold no secret.
    pub(super) fn note(
        &self,
        node: &Node,
        reason: &'static str,
        address: SocketAddr,
        detail: Option<&str>,
    ) {
        node.metrics.tunnel_refused(reason);
        if let Some(unlogged) = self.may_log(Instant::now()) {
            tracing::warn!(reason, %address, detail, unlogged, "tunnel refused");
        }
    }

    /// Whether there is room for a line; with how many got none since the last one.
    fn may_log(&self, now: Instant) -> Option<u64> {
        let mut second = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = second
            .since
            .is_none_or(|since| now.duration_since(since) >= Duration::from_secs(1));
        if is_new {
            second.since = Some(now);
            second.lines = 0;
        }
        if second.lines >= LINES {
            second.unlogged += 1;
            return None;
        }
        second.lines += 1;
        Some(std::mem::take(&mut second.unlogged))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_gets_few_lines_and_the_next_one_says_how_many_are_missing() {
        let refusals = Refusals::default();
        let start = Instant::now();
        let logged = (0..1000)
            .filter(|_| refusals.may_log(start).is_some())
            .count();
        assert_eq!(logged, 20);
        assert_eq!(refusals.may_log(start + Duration::from_secs(1)), Some(980));
        assert_eq!(refusals.may_log(start + Duration::from_secs(1)), Some(0));
    }
}
