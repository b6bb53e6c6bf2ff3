//! Follows a prefix: an always current copy of its keys in memory, that survives everything.
//!
//! This is the machine of list, watch, resume and list again that everybody uses who reads more
//! than one key. Reading from it never waits for the store: while the store is away the last
//! snapshot goes on being served, and [`Follower::state`] says since when it is stale.
//!
//! - a watch that ends is opened again from the last revision seen plus one;
//! - if that is compacted, the prefix is listed again; readers see nothing but the difference;
//! - every few minutes, and on demand, the keys are compared with the store's (a watch of an old
//!   etcd can lose events); a difference is counted, logged and repaired by listing;
//! - if another cluster answers, or history went back (a restored backup), the snapshot's
//!   [`Snapshot::epoch`] rises and the prefix is listed again.
//!
//! [`follow`] gives the handle and the [`FollowDriver`], which somebody must run and own.

mod check;
mod driver;
mod entries;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::Store;
use super::types::{KeyValue, Revision};

pub use driver::FollowDriver;
pub use entries::{Change, Entries};

/// How to follow.
#[derive(Debug, Clone)]
pub struct FollowOptions {
    /// How often to compare with the store, on average (± 10 %).
    pub check_every: Duration,
    /// The randomness of waits; random if not given.
    pub seed: Option<u64>,
}

impl Default for FollowOptions {
    fn default() -> Self {
        Self {
            check_every: Duration::from_secs(300),
            seed: None,
        }
    }
}

/// The keys under the prefix as of one revision. Immutable.
#[derive(Debug, Clone, Default)]
pub struct Snapshot {
    /// Everything up to this revision is in; [`Revision::NONE`] before the first list.
    pub revision: Revision,
    /// Rises when history broke (another cluster, a restored backup): revisions of different
    /// epochs cannot be compared. It counts within this process only.
    pub epoch: u64,
    /// The keys, sorted.
    pub entries: Entries,
}

impl Snapshot {
    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<KeyValue>> {
        self.entries.get(key)
    }

    /// The entries whose keys start with `prefix`, in order.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        self.entries.under(prefix)
    }

    /// What turns `older` into this snapshot; cheap if they are close.
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        self.entries.changes_since(&older.entries)
    }
}

/// How current the snapshots are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Nothing has been listed yet; the snapshot is empty.
    Loading,
    /// A watch is open.
    Fresh,
    /// No watch is open; snapshots are as old as this.
    Stale {
        /// Since when.
        since: Instant,
        /// Why, for people.
        reason: String,
    },
}

/// What a follower has lived through; all figures only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FollowStats {
    /// Times the whole prefix was listed, the first included.
    pub lists: u64,
    /// Times a watch was opened, the first included.
    pub watches: u64,
    /// Comparisons with the store that were completed.
    pub checks: u64,
    /// Comparisons that found a difference. Must stay 0.
    pub mismatches: u64,
    /// Times history broke.
    pub history_breaks: u64,
}

#[derive(Debug, Default)]
struct Counters {
    lists: AtomicU64,
    watches: AtomicU64,
    checks: AtomicU64,
    mismatches: AtomicU64,
    history_breaks: AtomicU64,
}

/// A wait for a revision took too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("revision {0} did not arrive in time")]
pub struct NotReached(pub Revision);

/// The handle; cheap to clone. The driver ends when the last one is dropped.
#[derive(Debug, Clone)]
pub struct Follower {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    state: watch::Receiver<State>,
    counters: Arc<Counters>,
    check_now: mpsc::Sender<()>,
}

/// Starts to follow all keys under `prefix`. Nothing happens until the driver is run.
pub fn follow(
    store: Arc<dyn Store>,
    prefix: impl Into<String>,
    options: FollowOptions,
) -> (Follower, FollowDriver) {
    let (snapshot_sender, snapshots) = watch::channel(Arc::new(Snapshot::default()));
    let (state_sender, state) = watch::channel(State::Loading);
    // One place: a check that is asked for while one is asked for already is the same check.
    let (check_now, check_requests) = mpsc::channel(1);
    let counters = Arc::new(Counters::default());
    let driver = FollowDriver::new(
        store,
        prefix.into(),
        &options,
        driver::Outlets {
            snapshots: snapshot_sender,
            state: state_sender,
            counters: Arc::clone(&counters),
            check_requests,
        },
    );
    let follower = Follower {
        snapshots,
        state,
        counters,
        check_now,
    };
    (follower, driver)
}

impl Follower {
    /// The newest snapshot; never waits.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.snapshots.borrow())
    }

    /// A receiver that is woken by every new snapshot. A slow reader sees only the newest, and
    /// gets what it missed from [`Snapshot::changes_since`].
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }

    /// How current the snapshot is.
    pub fn state(&self) -> State {
        self.state.borrow().clone()
    }

    /// A receiver that is woken when the state changes.
    pub fn subscribe_state(&self) -> watch::Receiver<State> {
        self.state.clone()
    }

    /// Waits until the prefix has been listed once. Never returns if the driver is not run.
    pub async fn loaded(&self) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        match snapshots.wait_for(|s| s.revision > Revision::NONE).await {
            Ok(snapshot) => Arc::clone(&snapshot),
            // The driver is gone: there will be nothing more.
            Err(_) => std::future::pending().await,
        }
    }

    /// Waits until the snapshot contains everything up to `revision`, which must be one that
    /// changed a key under the prefix (as the answer of a transaction that did).
    ///
    /// # Errors
    /// [`NotReached`] after `timeout`, or if the driver is gone.
    pub async fn reached(
        &self,
        revision: Revision,
        timeout: Duration,
    ) -> Result<Arc<Snapshot>, NotReached> {
        let mut snapshots = self.snapshots.clone();
        let reached = snapshots.wait_for(|s| s.revision >= revision);
        match tokio::time::timeout(timeout, reached).await {
            Ok(Ok(snapshot)) => Ok(Arc::clone(&snapshot)),
            Ok(Err(_)) | Err(_) => Err(NotReached(revision)),
        }
    }

    /// Asks for a comparison with the store soon. Its result is in [`Follower::stats`].
    pub fn check(&self) {
        if self.check_now.try_send(()).is_err() {
            // A full queue holds the same request; a closed one has nobody left to answer.
        }
    }

    /// What happened so far.
    pub fn stats(&self) -> FollowStats {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        FollowStats {
            lists: get(&self.counters.lists),
            watches: get(&self.counters.watches),
            checks: get(&self.counters.checks),
            mismatches: get(&self.counters.mismatches),
            history_breaks: get(&self.counters.history_breaks),
        }
    }
}
