//! Changes that were refused: to the log, under the target `audit`, and never to the store, where
//! strangers could fill it. So many a second; the rest is counted.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::access::{self, Need};
use crate::service::change::AUDIT;

/// Lines at once.
const BURST: u32 = 50;
/// One more line is allowed after each of these.
const REFILL: Duration = Duration::from_millis(200);
/// Longest text of a refusal that is told, in characters.
const MAX_TEXT: usize = 200;

/// What was refused lately. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(Arc<Mutex<Lines>>);

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

impl Refusals {
    /// Writes down that a call was refused, if it would have changed something.
    pub(super) fn note(
        &self,
        path: &str,
        principal: Option<&str>,
        source: Option<IpAddr>,
        refused: &Status,
    ) {
        let changes = match access::rule(path).map(|rule| rule.need) {
            Some(Need::Operator { changes, .. }) => changes,
            _ => false,
        };
        let by_caller = matches!(
            refused.code(),
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::ResourceExhausted
        );
        if !changes || !by_caller {
            return;
        }
        let taken = {
            let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            lines.take(Instant::now())
        };
        let Some(untold) = taken else {
            return;
        };
        let details = refused.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        // Callers choose parts of the text: it is cut and escaped.
        let text: String = refused.message().chars().take(MAX_TEXT).collect();
        tracing::warn!(
            target: AUDIT,
            method = path.trim_start_matches('/'),
            principal = principal.unwrap_or_default(),
            source = source.map(|ip| ip.to_string()).unwrap_or_default(),
            reason = reason.unwrap_or_default(),
            text = %text.escape_debug(),
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
