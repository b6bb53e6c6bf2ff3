//! Whether the process is ready, and what it still waits for. Ready means: every latch is set.
//! It does not mean healthy: a process that is not ready is alive.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::sync::watch;

/// The latches of a process. Clones share them.
#[derive(Debug, Clone)]
pub struct Readiness {
    /// Names that are pending, with how many latches of that name are.
    pending: Arc<watch::Sender<BTreeMap<String, usize>>>,
}

impl Default for Readiness {
    fn default() -> Self {
        Self::new()
    }
}

impl Readiness {
    /// Without a latch: ready.
    #[must_use]
    pub fn new() -> Self {
        Self {
            pending: Arc::new(watch::Sender::new(BTreeMap::new())),
        }
    }

    /// One more thing to wait for, pending until [`Latch::set_ready`].
    #[must_use]
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        let latch = Latch {
            name: name.into(),
            ready: true,
            readiness: self.clone(),
        };
        latch.set(false)
    }

    /// True if nothing is pending.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.pending.borrow().is_empty()
    }

    /// The names of what is pending, sorted.
    #[must_use]
    pub fn pending(&self) -> Vec<String> {
        self.pending.borrow().keys().cloned().collect()
    }

    /// Waits until nothing is pending.
    pub async fn wait_ready(&self) {
        let mut pending = self.pending.subscribe();
        if pending.wait_for(BTreeMap::is_empty).await.is_err() {
            // The sender lives as long as `self`, so this cannot come about.
            tracing::debug!("the readiness was dropped while somebody waited for it");
        }
    }
}

/// One thing to wait for. A latch that is dropped while pending stays pending: whoever should have
/// set it has failed.
#[derive(Debug)]
pub struct Latch {
    name: String,
    ready: bool,
    readiness: Readiness,
}

impl Latch {
    /// It has come about.
    pub fn set_ready(&mut self) {
        self.change(true);
    }

    /// It is no longer so, as when the process drains.
    pub fn set_pending(&mut self) {
        self.change(false);
    }

    fn set(mut self, ready: bool) -> Self {
        self.change(ready);
        self
    }

    fn change(&mut self, ready: bool) {
        if std::mem::replace(&mut self.ready, ready) == ready {
            return;
        }
        self.readiness.pending.send_modify(|pending| {
            let count = pending.entry(self.name.clone()).or_default();
            *count = if ready {
                count.saturating_sub(1)
            } else {
                *count + 1
            };
            if *count == 0 {
                pending.remove(&self.name);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn ready_means_that_every_latch_is_set() {
        let readiness = Readiness::new();
        assert!(readiness.is_ready());
        let (mut store, mut listen) = (readiness.latch("store"), readiness.latch("listen"));
        assert_eq!(readiness.pending(), ["listen", "store"]);
        store.set_ready();
        store.set_ready();
        let waiting = readiness.wait_ready();
        let setting = async { listen.set_ready() };
        tokio::join!(waiting, setting);
        assert!(readiness.is_ready());
        store.set_pending();
        assert_eq!(readiness.pending(), ["store"]);
    }

    #[test]
    fn latches_of_one_name_count_and_a_dropped_one_stays_pending() {
        let readiness = Readiness::new();
        let (mut first, second) = (readiness.latch("node"), readiness.latch("node"));
        first.set_ready();
        drop(second);
        assert_eq!(readiness.pending(), ["node"]);
    }
}
