//! Lines about changes that were refused: to the log, under the target `audit`, and never to the store, where strangers could
//! fill it. So many a second; the rest is counted.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::change::AUDIT;

/// Lines at once.
const BURST: u32 = 50;
/// One more line is allowed after each of these.
const REFILL: Duration = Duration::from_millis(200);
/// Longest text of a refusal that is told, in characters.
const MAX_TEXT: usize = 200;

/// What was refused lately. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct RefusedLines(Arc<Mutex<Lines>>);

#[derive(Debug, Default)]
struct Lines {
    /// Used up of the burst, as of `since`.
    used: u32,
    since: Option<Instant>,
    untold: u64,
}

impl Lines {
    /// Whether a line may be written, and how many were not before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let since = *self.since.get_or_insert(now);
        let passed = now.saturating_duration_since(since).as_millis() / REFILL.as_millis();
        if passed > 0 {
            let back = u32::try_from(passed).unwrap_or(u32::MAX);
            self.used = self.used.saturating_sub(back);
            self.since = Some(now);
        }
        if self.used >= BURST {
            self.untold += 1;
            return None;
        }
        self.used += 1;
        Some(std::mem::take(&mut self.untold))
    }
}

impl RefusedLines {
    /// Writes down that a change was refused, if there is room.
    pub fn tell(&self, method: &str, principal: &str, source: &str, reason: &str, text: &str) {
        let taken = {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.take(Instant::now())
        };
        let Some(untold) = taken else {
            return;
        };
        // Callers choose parts of these: they are cut and escaped.
        let shown = |text: &str| {
            let cut: String = text.chars().take(MAX_TEXT).collect();
            cut.escape_debug().to_string()
        };
        tracing::warn!(
            target: AUDIT,
            method,
            principal = shown(principal),
            source = shown(source),
            reason,
            text = shown(text),
            untold,
            "refused"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_bounded_and_the_rest_is_counted() {
        let mut lines = Lines::default();
        let start = Instant::now();
        for _ in 0..BURST {
            assert_eq!(lines.take(start), Some(0));
        }
        for _ in 0..7 {
            assert_eq!(lines.take(start), None);
        }
        assert_eq!(lines.take(start + REFILL), Some(7));
        assert_eq!(lines.take(start + REFILL), None);
    }
}
