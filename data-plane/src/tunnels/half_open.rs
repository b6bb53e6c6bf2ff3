//! Bounds the connections to the tunnel listener that have not said yet who they are, in all and per address,
//! so that slow or silent ones cannot keep others out.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Half-open connections in all.
const MOST: usize = 1000;
/// Half-open connections of one address.
const MOST_PER_ADDRESS: usize = 200;

/// The half-open connections, counted.
#[derive(Debug, Clone, Default)]
pub(super) struct HalfOpen(Arc<Mutex<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    all: usize,
    by_address: HashMap<IpAddr, usize>,
}

/// One half-open connection; dropping it counts it off.
#[derive(Debug)]
pub(super) struct Place {
    address: IpAddr,
    counts: HalfOpen,
}

impl HalfOpen {
    /// Counts one more of this address; `None` when a limit is reached.
    pub(super) fn enter(&self, address: IpAddr) -> Option<Place> {
        let address = block(address);
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let of_address = counts.by_address.get(&address).copied().unwrap_or_default();
        if counts.all >= MOST || of_address >= MOST_PER_ADDRESS {
            return None;
        }
        counts.all += 1;
        counts.by_address.insert(address, of_address + 1);
        Some(Place {
            address,
            counts: self.clone(),
        })
    }
}

/// An IPv6 host usually has a whole /64 to itself.
fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 => v4,
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.counts.0.lock().unwrap_or_else(PoisonError::into_inner);
        counts.all = counts.all.saturating_sub(1);
        if let Some(count) = counts.by_address.get_mut(&self.address) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                counts.by_address.remove(&self.address);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_all_places_and_nothing_stays_counted() {
        let half_open = HalfOpen::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut places: Vec<_> = (0..MOST_PER_ADDRESS)
            .map(|_| half_open.enter(address(1)).unwrap())
            .collect();
        assert!(half_open.enter(address(1)).is_none());
        for n in 2..=5 {
            places.extend((0..MOST_PER_ADDRESS).map(|_| half_open.enter(address(n)).unwrap()));
        }
        assert_eq!(places.len(), MOST);
        assert!(half_open.enter(address(9)).is_none());
        drop(places);
        let counts = half_open.0.lock().unwrap();
        assert_eq!((counts.all, counts.by_address.len()), (0, 0));
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
}
