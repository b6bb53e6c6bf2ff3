//! How long to wait before the next attempt: full jitter, so that many processes that lost the
//! same peer do not come back together. It does not sleep itself.

use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};

/// The first attempt after a loss comes within this time.
pub const FIRST: Duration = Duration::from_millis(50);

/// The waits of one repeated attempt. Each failed attempt doubles the upper bound of the next wait;
/// a success starts over.
#[derive(Debug, Clone)]
pub struct Backoff {
    base: Duration,
    longest: Duration,
    failures: u32,
    random: SmallRng,
}

impl Backoff {
    /// Waits of up to `base` after the second failure, doubling up to `longest`.
    /// The very first wait is up to 50 ms, or `base` if that is less.
    #[must_use]
    pub fn new(base: Duration, longest: Duration) -> Self {
        Self::with_seed(
            base,
            longest,
            u64::from_le_bytes(crate::crypto::random_bytes()),
        )
    }

    /// As [`Backoff::new`], with the randomness given, so that a run can be repeated.
    #[must_use]
    pub fn with_seed(base: Duration, longest: Duration, seed: u64) -> Self {
        Self {
            base,
            longest,
            failures: 0,
            random: SmallRng::seed_from_u64(seed),
        }
    }

    /// How long to wait before the next attempt: between nothing and the present bound.
    pub fn next_delay(&mut self) -> Duration {
        let bound = self.bound();
        self.failures = self.failures.saturating_add(1);
        bound.mul_f64(self.random.random_range(0.0..=1.0))
    }

    /// To be called when an attempt succeeded.
    pub const fn reset(&mut self) {
        self.failures = 0;
    }

    /// Attempts since the last success.
    #[must_use]
    pub const fn failures(&self) -> u32 {
        self.failures
    }

    /// Lowers or raises the longest wait from now on, as while streams can still be resumed.
    pub const fn set_longest(&mut self, longest: Duration) {
        self.longest = longest;
    }

    fn bound(&self) -> Duration {
        match self.failures {
            0 => FIRST.min(self.base),
            n => self
                .base
                .saturating_mul(2_u32.saturating_pow((n - 1).min(30))),
        }
        .min(self.longest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(200);
    const LONGEST: Duration = Duration::from_secs(5);

    #[test]
    fn waits_stay_under_a_doubling_bound() {
        for seed in 0..200 {
            let mut backoff = Backoff::with_seed(BASE, LONGEST, seed);
            for bound in [50, 200, 400, 800, 1600, 3200, 5000, 5000, 5000] {
                let delay = backoff.next_delay();
                assert!(
                    delay <= Duration::from_millis(bound),
                    "seed {seed}: {delay:?} > {bound}"
                );
            }
        }
    }

    #[test]
    fn waits_fill_the_range_and_do_not_repeat() {
        let mut delays: Vec<_> = (0..100)
            .map(|seed| {
                let mut backoff = Backoff::with_seed(BASE, LONGEST, seed);
                backoff.next_delay();
                backoff.next_delay()
            })
            .collect();
        delays.sort_unstable();
        delays.dedup();
        assert!(delays.len() > 90);
        assert!(delays[0] < BASE / 4 && delays[delays.len() - 1] > BASE * 3 / 4);
    }

    #[test]
    fn success_starts_over_and_no_number_of_failures_overflows() {
        let mut backoff = Backoff::with_seed(BASE, LONGEST, 1);
        for _ in 0..1000 {
            assert!(backoff.next_delay() <= LONGEST);
        }
        assert_eq!(backoff.failures(), 1000);
        backoff.reset();
        assert!(backoff.next_delay() <= FIRST);
    }
}
