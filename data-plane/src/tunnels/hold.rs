//! Room for users' connections that wait for a client to come back. They are not read meanwhile, and their
//! number is bounded, so that a gateway without clients cannot fill the node.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// How long one connection waits.
const WAIT: Duration = Duration::from_secs(1);
/// How many may wait.
const PLACES: usize = 1024;

/// The places to wait.
#[derive(Debug, Clone)]
pub(crate) struct Hold(Arc<Semaphore>);

/// One place, taken.
#[derive(Debug)]
pub(crate) struct Held(#[allow(dead_code, reason = "held for its drop")] OwnedSemaphorePermit);

impl Hold {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Semaphore::new(PLACES)))
    }

    /// Takes a place; `None` when all are taken.
    pub(crate) fn enter(&self) -> Option<Held> {
        Arc::clone(&self.0).try_acquire_owned().ok().map(Held)
    }
}

impl Held {
    /// How long to wait in it.
    pub(crate) fn limit(&self) -> Duration {
        WAIT
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let hold = Hold::new();
        let mut held: Vec<_> = (0..PLACES).map(|_| hold.enter().unwrap()).collect();
        assert!(hold.enter().is_none());
        held.pop();
        assert!(hold.enter().is_some());
    }
}
