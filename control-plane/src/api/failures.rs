//! How many failed authentications an address may have. A token of 256 bits cannot be guessed; this
//! keeps trying from costing us anything, and the log readable.
//!
//! A token that holds is never refused here, whoever else fails from the same address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sg_runtime::places::block;

/// Failures in a row that nobody minds.
const BURST: u32 = 20;
/// One more is allowed after each of these.
const REFILL: Duration = Duration::from_secs(3);
/// Addresses remembered; beyond this the oldest are forgotten.
const ADDRESSES: usize = 4096;

/// The failures of all addresses. Clones share them.
#[derive(Debug, Clone, Default)]
pub(super) struct Failures(Arc<Mutex<HashMap<IpAddr, Bucket>>>);

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: u32,
    since: Instant,
}

impl Failures {
    /// Counts one failure; whether the address may go on.
    pub(super) fn note(&self, address: IpAddr) -> bool {
        self.note_at(address, Instant::now())
    }

    fn note_at(&self, address: IpAddr, now: Instant) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.len() >= ADDRESSES {
            // Who is full again has nothing to remember; if all are busy, begin anew.
            all.retain(|_, bucket| bucket.at(now).left < BURST);
            if all.len() >= ADDRESSES {
                all.clear();
            }
        }
        let full = Bucket {
            left: BURST,
            since: now,
        };
        let bucket = all.entry(block(address)).or_insert(full);
        *bucket = bucket.at(now);
        let allowed = bucket.left > 0;
        bucket.left = bucket.left.saturating_sub(1);
        allowed
    }
}

impl Bucket {
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.since);
        let more = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        if more == 0 {
            return self;
        }
        Self {
            left: self.left.saturating_add(more).min(BURST),
            since: now,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn an_address_runs_dry_and_recovers_and_others_do_not_notice() {
        let failures = Failures::default();
        let (bad, other) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let start = Instant::now();
        for _ in 0..BURST {
            assert!(failures.note_at(bad, start));
        }
        assert!(!failures.note_at(bad, start));
        assert!(failures.note_at(other, start));
        assert!(failures.note_at(bad, start + REFILL));
        assert!(!failures.note_at(bad, start + REFILL));
        for _ in 0..BURST {
            assert!(failures.note_at(bad, start + REFILL * 1000));
        }
    }

    #[test]
    fn a_network_of_ipv6_counts_as_one_and_memory_is_bounded() {
        let failures = Failures::default();
        let start = Instant::now();
        for host in 0..BURST {
            let address = format!("2001:db8::{host:x}").parse().unwrap();
            assert!(failures.note_at(address, start));
        }
        assert!(!failures.note_at("2001:db8::ffff".parse().unwrap(), start));
        for number in 0..10_000_u32 {
            failures.note_at(IpAddr::V4(number.into()), start);
        }
        assert!(failures.0.lock().unwrap().len() <= ADDRESSES);
    }
}
