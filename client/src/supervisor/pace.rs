//! How long one connection waits before its next attempt. Pure: the time and the random number are
//! given.
//!
//! * After good service ([`GOOD_SERVICE`] or longer) a lost tunnel comes back at once.
//! * A node that accepts and drops at once is met with growing waits, or two machines would spin.
//! * Failed attempts double the wait, but in the first minute of an outage it stays within a
//!   second and for ten minutes within five, so that a restarted node has its clients soon.
//! * After a refusal that only an operator can lift, waits begin at some seconds; the first one is
//!   short, because the node may just not have heard of a new gateway or token yet.

use std::time::Duration;

/// The first attempt after a loss comes within this time.
pub(super) const FIRST: Duration = Duration::from_millis(50);
/// A tunnel that lived so long was no mistake: its loss counts as the first.
pub(super) const GOOD_SERVICE: Duration = Duration::from_secs(10);
const BASE: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(30);
const REFUSED_FIRST: Duration = Duration::from_secs(1);
const REFUSED_BASE: Duration = Duration::from_secs(5);
const REFUSED_LONGEST: Duration = Duration::from_secs(60);

/// Whether the same attempt can succeed soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Retry {
    /// The node or the way to it is away, or it asks to come back.
    Soon,
    /// Somebody has to change something first: a token, a certificate, a gateway.
    Later,
}

/// The history of one connection, as far as waits depend on it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Pace {
    /// Attempts that failed since the last tunnel.
    failures: u32,
    /// Of these, the ones that were refused for good.
    refusals: u32,
    /// Tunnels in a row that were lost soon after they came up.
    short_lives: u32,
    /// When this outage began.
    since: Option<Duration>,
}

impl Pace {
    /// Attempts in a row that failed.
    pub(super) const fn failures(&self) -> u32 {
        self.failures
    }

    /// A tunnel is up.
    pub(super) const fn up(&mut self) {
        self.failures = 0;
        self.refusals = 0;
        self.since = None;
    }

    /// A tunnel that was up for `served` is gone; answers the wait.
    pub(super) fn lost(&mut self, now: Duration, served: Duration, random: f64) -> Duration {
        self.since = Some(now);
        if served >= GOOD_SERVICE {
            self.short_lives = 0;
        }
        let bound = match self.short_lives {
            0 => FIRST,
            n => doubled(BASE, n - 1, LONGEST),
        };
        self.short_lives = self.short_lives.saturating_add(1);
        bound.mul_f64(random)
    }

    /// An attempt failed; answers the wait.
    pub(super) fn failed(&mut self, now: Duration, retry: Retry, random: f64) -> Duration {
        self.failures = self.failures.saturating_add(1);
        let since = *self.since.get_or_insert(now);
        match retry {
            Retry::Soon => self.soon(now.saturating_sub(since)).mul_f64(random),
            Retry::Later => {
                self.refusals = self.refusals.saturating_add(1);
                self.refused().mul_f64(0.5 + random / 2.0)
            }
        }
    }

    /// The wait before an attempt that nothing has just happened to, as of a connection that was
    /// not needed for a while.
    pub(super) fn resumed(&self, now: Duration, random: f64) -> Duration {
        let bound = match (self.refusals, self.failures) {
            (0, 0) => FIRST,
            (0, _) => self.soon(now.saturating_sub(self.since.unwrap_or(now))),
            _ => self.refused(),
        };
        bound.mul_f64(random)
    }

    fn refused(&self) -> Duration {
        match self.refusals {
            0 | 1 => REFUSED_FIRST,
            n => doubled(REFUSED_BASE, n - 2, REFUSED_LONGEST),
        }
    }

    fn soon(&self, outage: Duration) -> Duration {
        let longest = match outage.as_secs() {
            0..60 => Duration::from_secs(1),
            60..600 => Duration::from_secs(5),
            _ => LONGEST,
        };
        // Short lives count as well: a node that accepts, drops and refuses in turn is no better.
        doubled(
            BASE,
            self.failures
                .saturating_sub(1)
                .max(self.short_lives.saturating_sub(1)),
            longest,
        )
    }
}

/// `base` times two to the power of `times`, at most `longest`.
fn doubled(base: Duration, times: u32, longest: Duration) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(times.min(30)))
        .min(longest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    #[test]
    fn a_loss_after_good_service_is_followed_at_once() {
        let mut pace = Pace::default();
        for now in (100..1000).step_by(100) {
            assert!(pace.lost(secs(now), GOOD_SERVICE, 1.0) <= FIRST);
            pace.up();
        }
    }

    #[test]
    fn a_node_that_drops_every_tunnel_at_once_is_met_with_growing_waits() {
        let mut pace = Pace::default();
        let mut waits = Vec::new();
        for _ in 0..20 {
            waits.push(pace.lost(secs(1), Duration::ZERO, 1.0));
            pace.up();
        }
        assert_eq!(waits[0], FIRST);
        assert!(waits.is_sorted(), "{waits:?}");
        assert_eq!(waits[19], LONGEST);
    }

    #[test]
    fn waits_of_an_outage_grow_with_its_age() {
        let mut pace = Pace::default();
        pace.up();
        pace.lost(secs(0), secs(100), 1.0);
        let bounds: Vec<_> = (0..6)
            .map(|_| pace.failed(secs(1), Retry::Soon, 1.0).as_millis())
            .collect();
        assert_eq!(bounds, [200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(pace.failed(secs(70), Retry::Soon, 1.0), secs(5));
        pace.failed(secs(690), Retry::Soon, 1.0);
        assert_eq!(pace.failed(secs(700), Retry::Soon, 1.0), LONGEST);
        assert!(pace.failed(secs(700), Retry::Soon, 0.0) <= LONGEST);
        pace.up();
        assert_eq!(pace.failures(), 0);
    }

    #[test]
    fn refusals_wait_a_second_and_then_from_five_to_sixty() {
        let mut pace = Pace::default();
        for bound in [1, 5, 10, 20, 40, 60, 60] {
            let mut low = pace;
            assert_eq!(low.failed(secs(1), Retry::Later, 0.0), secs(bound) / 2);
            assert_eq!(pace.failed(secs(1), Retry::Later, 1.0), secs(bound));
        }
    }

    #[test]
    fn a_connection_that_was_set_aside_comes_back_at_its_own_pace() {
        let mut pace = Pace::default();
        assert!(pace.resumed(secs(1), 1.0) <= FIRST);
        pace.failed(secs(1), Retry::Later, 1.0);
        assert_eq!(pace.resumed(secs(1), 1.0), REFUSED_FIRST);
    }

    #[test]
    fn no_number_of_failures_overflows() {
        let mut pace = Pace {
            failures: u32::MAX,
            refusals: u32::MAX,
            short_lives: u32::MAX,
            since: None,
        };
        for retry in [Retry::Soon, Retry::Later] {
            assert!(pace.failed(Duration::MAX, retry, 1.0) <= REFUSED_LONGEST);
        }
        assert!(pace.lost(Duration::MAX, Duration::ZERO, 1.0) <= LONGEST);
    }
}
