//! A store in memory, for tests, simulation and `--store memory:`.
//!
//! It means the same as the durable ones (the conformance suite holds it to that) and forgets
//! everything when dropped. [`Faults`] lets a test break it on purpose. Expiry follows tokio's
//! clock, so a paused test clock drives it.

mod faults;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use futures_util::stream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

use super::error::{StoreError, WatchError};
use super::types::{Batch, Health, KeyValue, Revision, Txn, TxnOutcome};
use super::watch::WatchStream;
use super::{Store, limits};

pub use faults::{Checkpoint, Faults};
use faults::{ReadFault, WriteFault};
use state::{Pulled, State};

/// The store; cheap to clone, all clones are the same store.
#[derive(Debug, Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Carries the newest revision; watches wait on it.
    newest: watch::Sender<Revision>,
    faults: Mutex<faults::Plan>,
    /// Raised to end all open watches.
    watch_generation: watch::Sender<u64>,
}

impl Default for MemoryStore {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryStore {
    /// An empty store with a random identity.
    pub fn new() -> Self {
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(State::new(rand::random())),
                newest: watch::Sender::new(Revision::FIRST),
                faults: Mutex::new(faults::Plan::default()),
                watch_generation: watch::Sender::new(0),
            }),
        }
    }

    /// The switches that make this store misbehave.
    pub fn faults(&self) -> Faults {
        Faults::new(Arc::clone(&self.shared))
    }
}

impl Shared {
    /// The state with everything expired that is due.
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing in this module panics while holding the lock, so poison carries no meaning.
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.expire(Instant::now()) {
            self.newest.send_replace(state.revision());
        }
        state
    }

    fn plan(&self) -> MutexGuard<'_, faults::Plan> {
        self.faults.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<(), StoreError> {
        match self.plan().next_read() {
            Some(ReadFault::Unavailable) => Err(StoreError::unavailable("reads are switched off")),
            None => Ok(()),
        }
    }

    fn apply(&self, txn: &Txn) -> TxnOutcome {
        let lose_events = self.plan().lose_next_events();
        let mut state = self.state();
        let before = state.revision();
        let outcome = state.txn(txn, Instant::now(), lose_events);
        if state.revision() > before {
            self.newest.send_replace(state.revision());
        }
        outcome
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &str) -> Result<(Revision, Option<KeyValue>), StoreError> {
        limits::check_key(key)?;
        self.shared.readable()?;
        let state = self.shared.state();
        Ok((state.revision(), state.get(key)))
    }

    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        limits::check_prefix(prefix)?;
        self.shared.readable()?;
        let state = self.shared.state();
        Ok((state.revision(), state.list(prefix)))
    }

    async fn keys(&self, prefix: &str) -> Result<(Revision, Vec<(String, Revision)>), StoreError> {
        let (revision, entries) = self.list(prefix).await?;
        let keys = entries
            .into_iter()
            .map(|entry| (entry.key, entry.mod_revision))
            .collect();
        Ok((revision, keys))
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check_txn(&txn)?;
        let fault = self.shared.plan().next_write();
        match fault {
            None => Ok(self.shared.apply(&txn)),
            Some(WriteFault::Unavailable) => {
                Err(StoreError::unavailable("writes are switched off"))
            }
            Some(WriteFault::UnknownOutcome { applied }) => {
                if applied {
                    self.shared.apply(&txn);
                }
                Err(StoreError::UnknownOutcome(
                    "the answer was dropped on purpose".to_owned(),
                ))
            }
        }
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        limits::check_prefix(prefix)?;
        limits::check_revision(from)?;
        self.shared.readable()?;
        let mut newest = self.shared.newest.subscribe();
        newest.mark_unchanged();
        let mut ended = self.shared.watch_generation.subscribe();
        ended.mark_unchanged();
        let watcher = Watcher {
            shared: Arc::clone(&self.shared),
            prefix: prefix.to_owned(),
            next: from,
            newest,
            ended,
        };
        Ok(WatchStream::new(stream::unfold(
            watcher,
            |mut watcher| async move {
                let item = watcher.next().await;
                Some((item, watcher))
            },
        )))
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        limits::check_revision(revision)?;
        self.shared.readable()?;
        self.shared.state().compact(revision)?;
        // Wakes watches that wait below the compaction.
        self.shared.newest.send_modify(|_| ());
        Ok(())
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.shared.readable()?;
        Ok(self.shared.state().revision())
    }

    fn describe(&self) -> String {
        "memory: (lost at exit)".to_owned()
    }

    async fn health(&self) -> Result<Health, StoreError> {
        self.shared.readable()?;
        let state = self.shared.state();
        Ok(Health {
            cluster_id: state.cluster_id(),
            revision: state.revision(),
            detail: self.describe(),
        })
    }
}

/// One open watch: a loop that pulls from the log, so a slow reader holds no memory.
struct Watcher {
    shared: Arc<Shared>,
    prefix: String,
    next: Revision,
    newest: watch::Receiver<Revision>,
    ended: watch::Receiver<u64>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if self.ended.has_changed().unwrap_or(true) {
                return Err(WatchError::Ended("dropped on purpose".to_owned()));
            }
            self.newest.mark_unchanged();
            let pulled = self.shared.state().pull(&self.prefix, self.next);
            match pulled {
                Pulled::Compacted(oldest) => return Err(WatchError::Compacted(oldest)),
                Pulled::Batch(batch) => {
                    let delay = self.shared.plan().watch_delay();
                    if !delay.is_zero() {
                        sleep(delay).await;
                    }
                    self.next = batch.revision.next();
                    return Ok(batch);
                }
                Pulled::Nothing { next, expiry } => {
                    self.next = next;
                    self.wait(expiry).await;
                }
            }
        }
    }

    /// Waits until something may have changed. Both channels live as long as `shared`.
    async fn wait(&mut self, expiry: Option<Instant>) {
        let expired = async {
            match expiry {
                Some(at) => sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.newest.changed() => (),
            _ = self.ended.changed() => self.ended.mark_changed(),
            () = expired => (),
        }
    }
}
