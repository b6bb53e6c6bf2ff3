//! Bounds lines about things that strangers can cause as often as they like. All of them are counted; a few get a
//! line, and the next line says how many got none.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Lines per second.
const LINES: u32 = 20;

/// The lines of the present second.
#[derive(Debug, Default)]
pub(crate) struct LogLimit(Mutex<Second>);

#[derive(Debug, Default)]
struct Second {
    since: Option<Instant>,
    lines: u32,
    unlogged: u64,
}

impl LogLimit {
    /// Whether there is room for a line; with how many got none since the last one.
    pub(crate) fn may_log(&self, now: Instant) -> Option<u64> {
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
        let limit = LogLimit::default();
        let start = Instant::now();
        let logged = (0..1000).filter(|_| limit.may_log(start).is_some()).count();
        assert_eq!(logged, 20);
        assert_eq!(limit.may_log(start + Duration::from_secs(1)), Some(980));
        assert_eq!(limit.may_log(start + Duration::from_secs(1)), Some(0));
    }
}
