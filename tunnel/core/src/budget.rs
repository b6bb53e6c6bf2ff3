//! Memory that all tunnels of a process share: what their streams may grow to and queue, and what their logs keep.
//!
//! Every tunnel and stream is sure of a little without asking. What is above that is taken from here
//! first, exactly, and comes back when it is not needed any more; a [`Share`] that is dropped returns
//! the rest of what it took. Windows get at most three quarters, and queues of bytes to send an eighth, so that a process
//! whose streams have all grown can still keep what its tunnels need to be resumed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes that the tunnels of a process may promise and keep in all, above what each is sure of.
#[derive(Debug)]
pub struct Budget {
    total: u64,
    /// Sum of those below, and of nothing else.
    used: AtomicU64,
    growth: AtomicU64,
    log: AtomicU64,
    queues: AtomicU64,
}

impl Budget {
    /// A budget of `bytes` for everything that shares it.
    #[must_use]
    pub const fn new(bytes: u64) -> Self {
        Self {
            total: bytes,
            used: AtomicU64::new(0),
            growth: AtomicU64::new(0),
            log: AtomicU64::new(0),
            queues: AtomicU64::new(0),
        }
    }

    /// A budget that never ends; the limits of the single tunnels hold.
    #[must_use]
    pub const fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Bytes that all tunnels together may take.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Bytes of credit that streams hold above what each is sure of.
    #[must_use]
    pub fn growth_used(&self) -> u64 {
        self.growth.load(Ordering::Relaxed)
    }

    /// Bytes that logs may keep above what each is sure of.
    #[must_use]
    pub fn log_used(&self) -> u64 {
        self.log.load(Ordering::Relaxed)
    }

    /// Bytes that streams may have queued to send above what each tunnel is sure of.
    #[must_use]
    pub fn queues_used(&self) -> u64 {
        self.queues.load(Ordering::Relaxed)
    }

    fn limit(&self, kind: Kind) -> u64 {
        match kind {
            Kind::Growth => self.total / 4 * 3,
            Kind::Log => self.total,
            Kind::Queues => self.total / 8,
        }
    }

    fn counter(&self, kind: Kind) -> &AtomicU64 {
        match kind {
            Kind::Growth => &self.growth,
            Kind::Log => &self.log,
            Kind::Queues => &self.queues,
        }
    }

    fn take(&self, kind: Kind, bytes: u64) -> bool {
        if !add(self.counter(kind), bytes, self.limit(kind)) {
            return false;
        }
        if add(&self.used, bytes, self.total) {
            return true;
        }
        self.counter(kind).fetch_sub(bytes, Ordering::Relaxed);
        false
    }

    fn give_back(&self, kind: Kind, bytes: u64) {
        // In this order `used` is never less than the parts that were granted.
        self.counter(kind).fetch_sub(bytes, Ordering::Relaxed);
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// Adds unless that would exceed `limit`.
fn add(counter: &AtomicU64, bytes: u64, limit: u64) -> bool {
    let more = |used: u64| used.checked_add(bytes).filter(|sum| *sum <= limit);
    counter
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
        .is_ok()
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Growth,
    Log,
    Queues,
}

/// What one tunnel has taken for one purpose.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    kind: Kind,
    used: u64,
}

impl Share {
    /// For credit above the base windows.
    pub(crate) fn growth(budget: Arc<Budget>) -> Self {
        Self::new(budget, Kind::Growth)
    }

    /// For logged bytes that are kept.
    pub(crate) fn log(budget: Arc<Budget>) -> Self {
        Self::new(budget, Kind::Log)
    }

    /// For bytes that are queued to send.
    pub(crate) fn queues(budget: Arc<Budget>) -> Self {
        Self::new(budget, Kind::Queues)
    }

    fn new(budget: Arc<Budget>, kind: Kind) -> Self {
        Self {
            budget,
            kind,
            used: 0,
        }
    }

    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// Takes all of `bytes`, or nothing and returns false.
    #[must_use]
    pub(crate) fn take(&mut self, bytes: u64) -> bool {
        let fits = self.budget.take(self.kind, bytes);
        if fits {
            self.used += bytes;
        }
        fits
    }

    pub(crate) fn give_back(&mut self, bytes: u64) {
        debug_assert!(bytes <= self.used);
        let bytes = bytes.min(self.used);
        self.used -= bytes;
        self.budget.give_back(self.kind, bytes);
    }

    /// Whether less than this part of what all tunnels may take for the purpose is left.
    pub(crate) fn is_scarcer_than(&self, parts: u64) -> bool {
        let limit = self.budget.limit(self.kind);
        let own = limit.saturating_sub(self.budget.counter(self.kind).load(Ordering::Relaxed));
        let all = self.budget.total - self.budget.used.load(Ordering::Relaxed);
        own.min(all) < limit / parts
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.budget.give_back(self.kind, self.used);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_exact_and_comes_back() {
        let budget = Arc::new(Budget::new(1000));
        let mut growth = Share::growth(Arc::clone(&budget));
        let mut log = Share::log(Arc::clone(&budget));
        assert!(growth.take(750));
        assert!(!growth.take(1), "windows leave a quarter to the logs");
        assert!(!growth.is_scarcer_than(u64::MAX) && growth.is_scarcer_than(4));
        assert!(log.take(250));
        assert!(!log.take(1));
        growth.give_back(100);
        assert!(!log.take(101));
        assert!(log.take(100));
        assert_eq!((budget.growth_used(), budget.log_used()), (650, 350));
        assert!(!growth.take(1), "the logs have what the windows left");
        drop(growth);
        assert_eq!((budget.growth_used(), budget.log_used()), (0, 350));
        drop(log);
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn many_threads_never_take_more_than_there_is() {
        let budget = Arc::new(Budget::new(10_000));
        std::thread::scope(|scope| {
            for thread in 0..4_u64 {
                let budget = &budget;
                scope.spawn(move || {
                    let mut share = match thread % 2 {
                        0 => Share::growth(Arc::clone(budget)),
                        _ => Share::log(Arc::clone(budget)),
                    };
                    for i in 0..5000_u64 {
                        let bytes = (i * 7919 + thread * 104_729) % 4000;
                        if share.take(bytes) {
                            assert!(budget.used.load(Ordering::Relaxed) <= 10_000);
                        } else {
                            share.give_back(share.used());
                        }
                    }
                });
            }
        });
        assert_eq!(budget.used.load(Ordering::Relaxed), 0);
        assert_eq!((budget.growth_used(), budget.log_used()), (0, 0));
    }

    #[test]
    fn an_unlimited_budget_counts_and_never_refuses() {
        let budget = Arc::new(Budget::unlimited());
        let mut share = Share::growth(Arc::clone(&budget));
        assert!(share.take(1 << 50));
        assert!(!share.is_scarcer_than(2));
        assert_eq!(budget.growth_used(), 1 << 50);
    }
}
