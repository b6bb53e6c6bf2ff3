//! Places that are bounded in all and for each source address, so that one address cannot keep the others out:
//! for connections that have not said yet who they are, and for users' streams.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Places, counted. Clones count together.
#[derive(Debug, Clone)]
pub struct Places(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// `None`: as many as there are.
    most: Option<usize>,
    most_per_address: Option<usize>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One taken place; dropping it gives it back. Small where there is no limit: each open stream holds one.
#[derive(Debug)]
pub struct Place(#[allow(dead_code, reason = "held for its drop")] Option<Box<Taken>>);

#[derive(Debug)]
struct Taken {
    address: IpAddr,
    places: Places,
}

impl Places {
    /// `most` places in all, `most_per_address` for one address; 0 is without limit.
    #[must_use]
    pub fn new(most: u32, most_per_address: u32) -> Self {
        let limit = |most: u32| (most > 0).then_some(most as usize);
        Self(Arc::new(Inner {
            most: limit(most),
            most_per_address: limit(most_per_address),
            counts: Mutex::default(),
        }))
    }

    /// Takes one more for this address; `None` when a limit is reached.
    #[must_use]
    pub fn enter(&self, address: IpAddr) -> Option<Place> {
        let Inner {
            most,
            most_per_address,
            counts,
        } = &*self.0;
        if most.is_none() && most_per_address.is_none() {
            return Some(Place(None));
        }
        let address = block(address);
        let mut counts = counts.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = counts.by_address.get(&address).copied().unwrap_or_default();
        if most.is_some_and(|most| counts.all >= most)
            || most_per_address.is_some_and(|most| of_address >= most)
        {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, of_address + 1);
        Some(Place(Some(Box::new(Taken {
            address,
            places: self.clone(),
        }))))
    }
}

/// What one customer of a provider has: an IPv6 host usually has a whole /64 to itself.
#[must_use]
pub fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut counts = self
            .places
            .0
            .counts
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

/// What one destination has now, counted: connections or flows. Clones count together.
#[derive(Debug, Clone, Default)]
pub struct Occupancy(Arc<AtomicU32>);

/// One counted connection; dropping it counts it off.
#[derive(Debug)]
pub struct Occupied(Arc<AtomicU32>);

impl Occupancy {
    /// Counts one more, unless there are `limit`.
    #[must_use]
    pub fn enter(&self, limit: Option<u32>) -> Option<Occupied> {
        let before = self.0.fetch_add(1, Ordering::Relaxed);
        let occupied = Occupied(Arc::clone(&self.0));
        limit.is_none_or(|limit| before < limit).then_some(occupied)
    }
}

impl Drop for Occupied {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_nothing_stays_counted() {
        let all = Places::new(10, 4);
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut places: Vec<_> = (0..4).map(|_| all.enter(address(1)).unwrap()).collect();
        assert!(all.enter(address(1)).is_none());
        places.extend((0..4).map(|_| all.enter(address(2)).unwrap()));
        places.extend((0..2).map(|_| all.enter(address(3)).unwrap()));
        assert!(all.enter(address(9)).is_none(), "no place is left");
        places.remove(0);
        assert!(all.enter(address(1)).is_some());
        drop(places);
        let counts = all.0.counts.lock().unwrap();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
    }

    #[test]
    fn without_limits_everybody_enters() {
        let all = Places::new(0, 0);
        let places: Vec<_> = (0..5000)
            .filter_map(|_| all.enter([1, 1, 1, 1].into()))
            .collect();
        assert_eq!(places.len(), 5000);
        assert!(Places::new(0, 1).enter([1, 1, 1, 1].into()).is_some());
    }

    #[test]
    fn hosts_of_one_ipv6_network_count_together() {
        let (a, b): (IpAddr, IpAddr) = (
            "2001:db8::1".parse().unwrap(),
            "2001:db8::2".parse().unwrap(),
        );
        assert_eq!(block(a), block(b));
        assert_eq!(
            block("::ffff:10.0.0.1".parse().unwrap()),
            IpAddr::from([10, 0, 0, 1])
        );
    }

    #[test]
    fn a_limit_counts_what_is_open_now() {
        let occupancy = Occupancy::default();
        let one = occupancy.enter(Some(2));
        let two = occupancy.enter(Some(2));
        assert!(one.is_some() && two.is_some());
        assert!(occupancy.enter(Some(2)).is_none());
        drop(one);
        assert!(occupancy.enter(Some(2)).is_some());
        assert!(occupancy.enter(None).is_some());
    }
}
