//! Bounds the dials of the process: each holds a descriptor and, for a name, a place at the resolver.

use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, timeout};

/// Streams that may wait for a dial to begin.
const MOST_WAITING: usize = 4096;

/// Bounds the dials of the process.
#[derive(Debug)]
pub struct DialGate {
    places: Semaphore,
    running: Semaphore,
}

impl DialGate {
    /// At most `most` dials at a time; each holds a descriptor and, for a name, a place at the resolver.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let most = most as usize;
        Self {
            places: Semaphore::new(most + MOST_WAITING),
            running: Semaphore::new(most),
        }
    }
}

impl DialGate {
    /// Waits for permission to dial, in order of arrival; what is left of `limit` is for the dial.
    /// `None` when too many wait already, or the wait takes all of `limit`.
    pub(crate) async fn enter(&self, limit: Duration) -> Option<Permission<'_>> {
        let end = Instant::now() + limit;
        let place = self.places.try_acquire().ok()?;
        let running = timeout(limit, self.running.acquire()).await.ok()?.ok()?;
        let left = end.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(Permission {
            left,
            _held: (running, place),
        })
    }
}

/// Permission to dial while it is held.
#[derive(Debug)]
pub(crate) struct Permission<'a> {
    /// How long the dial may take.
    pub(crate) left: Duration,
    _held: (SemaphorePermit<'a>, SemaphorePermit<'a>),
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_dial_and_the_dial_share_one_limit() {
        let gate = DialGate {
            places: Semaphore::new(10),
            running: Semaphore::new(1),
        };
        let limit = Duration::from_secs(10);
        let first = gate.enter(limit).await.unwrap();
        assert_eq!(first.left, limit);
        let hold = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(gate.enter(limit), hold);
        let second = second.unwrap();
        assert!(
            second.left <= Duration::from_secs(1),
            "{:?} left of {limit:?}",
            second.left
        );
        // Nothing is left for the third.
        assert!(gate.enter(limit).await.is_none());
    }
}
