//! How often a destination may open flows. Anybody can send datagrams from many addresses, and each address
//! costs an OPEN; those that come to nothing cost more.

use std::time::Duration;

use tokio::time::Instant;

/// Flows that a destination may open in a second.
const PER_SECOND: f64 = 2000.0;
/// Flows that it may open at once.
const BURST: f64 = 4000.0;
/// What a flow that came to nothing costs beside: at most 100 of these in a second.
const FAILURE: f64 = 19.0;

/// Counts what is left.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            at: now,
        }
    }

    /// Whether one more may be opened now, which is then counted.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed: Duration = now.saturating_duration_since(self.at);
        self.at = self.at.max(now);
        self.left = (self.left + passed.as_secs_f64() * PER_SECOND).min(BURST);
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }

    /// One that was opened has come to nothing.
    pub(super) fn failed(&mut self) {
        self.left = (self.left - FAILURE).max(-BURST);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many are opened in ten seconds of constant pressure after the burst is used up.
    fn opened(all_fail: bool) -> u32 {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let mut opened = 0;
        for tick in 0..20_000_u32 {
            let now = start + Duration::from_millis(tick.into());
            while pace.take(now) {
                opened += u32::from(tick >= 10_000);
                if all_fail {
                    pace.failed();
                }
            }
        }
        opened
    }

    #[test]
    fn flows_that_come_to_nothing_are_paced_harder() {
        let good = opened(false);
        assert!((19_900..=20_100).contains(&good), "{good}");
        let bad = opened(true);
        assert!((900..=1100).contains(&bad), "{bad}");
    }
}
