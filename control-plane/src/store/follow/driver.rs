//! The machine behind a [`super::Follower`].

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use sg_runtime::backoff::Backoff;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use super::super::error::WatchError;
use super::super::types::{Batch, Revision};
use super::super::watch::WatchStream;
use super::super::{Store, StoreError};
use super::check::{Check, Verdict};
use super::entries::Entries;
use super::{Counters, FollowOptions, Snapshot, State};

/// Waits between attempts to list or to watch.
const BACKOFF: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(5);
/// A watch that lived this long was a good one, whatever it delivered.
const GOOD_WATCH: Duration = Duration::from_secs(1);
/// After this many watches in a row that ended at once, list instead of resuming: what stands at
/// that revision may be what kills them.
const BAD_WATCHES: u32 = 5;

/// Keeps a follower's copy current; see [`super::follow`].
#[must_use = "a follower stays empty unless its driver is run"]
pub struct FollowDriver {
    store: Arc<dyn Store>,
    prefix: String,
    out: Outlets,
    check_every: Duration,
    next_check: Instant,
    random: SmallRng,
    backoff: Backoff,
    bad_watches: u32,
    /// What is published, and worked on.
    revision: Revision,
    epoch: u64,
    entries: Entries,
    /// Who answered last; none before the first answer.
    cluster_id: Option<u64>,
    must_list: bool,
}

/// Where the driver's findings go.
pub(super) struct Outlets {
    pub(super) snapshots: watch::Sender<Arc<Snapshot>>,
    pub(super) state: watch::Sender<State>,
    pub(super) counters: Arc<Counters>,
    pub(super) check_requests: mpsc::Receiver<()>,
}

/// Why a watch is over.
enum End {
    Resume(String),
    List(String),
}

impl FollowDriver {
    pub(super) fn new(
        store: Arc<dyn Store>,
        prefix: String,
        options: &FollowOptions,
        out: Outlets,
    ) -> Self {
        let seed = options.seed.unwrap_or_else(rand::random);
        let mut driver = Self {
            store,
            prefix,
            out,
            check_every: options.check_every,
            next_check: Instant::now(),
            random: SmallRng::seed_from_u64(seed),
            backoff: Backoff::with_seed(BACKOFF, BACKOFF_LONGEST, seed),
            bad_watches: 0,
            revision: Revision::NONE,
            epoch: 0,
            entries: Entries::default(),
            cluster_id: None,
            must_list: true,
        };
        driver.plan_check();
        driver
    }

    /// Runs until the last [`super::Follower`] is dropped. The store being away is no end.
    pub async fn run(mut self) {
        let snapshots = self.out.snapshots.clone();
        tokio::select! {
            () = snapshots.closed() => (),
            () = self.follow() => (),
        }
    }

    async fn follow(&mut self) {
        loop {
            if let Err(error) = self.connect_and_pump().await {
                self.stale(error.to_string());
            }
            sleep(self.backoff.next_delay()).await;
        }
    }

    /// One round: guard, list if needed, watch until that ends.
    async fn connect_and_pump(&mut self) -> Result<(), StoreError> {
        self.guard_history().await?;
        if self.must_list {
            self.list().await?;
        }
        let stream = self.store.watch(&self.prefix, self.revision.next()).await?;
        count(&self.out.counters.watches);
        self.fresh();
        let (opened, before) = (Instant::now(), self.revision);
        let end = self.pump(stream).await;
        if self.revision > before || opened.elapsed() >= GOOD_WATCH {
            self.backoff.reset();
            self.bad_watches = 0;
        } else {
            self.bad_watches += 1;
        }
        match end {
            End::Resume(reason) => {
                if self.bad_watches >= BAD_WATCHES {
                    tracing::warn!(store = %self, %reason, "watches keep ending; listing instead");
                    self.must_list = true;
                    self.bad_watches = 0;
                }
                self.stale(reason);
            }
            End::List(reason) => {
                tracing::info!(store = %self, %reason, revision = %self.revision, "listing again");
                self.must_list = true;
            }
        }
        Ok(())
    }

    /// Notices another cluster, and history that went back.
    async fn guard_history(&mut self) -> Result<(), StoreError> {
        let health = self.store.health().await?;
        let known = self.cluster_id.replace(health.cluster_id);
        if known.is_some_and(|known| known != health.cluster_id) {
            self.history_broke("another cluster answers", health.revision);
        } else if health.revision < self.revision {
            self.history_broke("the revision went back", health.revision);
        }
        Ok(())
    }

    fn history_broke(&mut self, what: &str, now: Revision) {
        tracing::error!(
            store = %self, before = %self.revision, %now,
            "{what}; taking over what the store has now"
        );
        count(&self.out.counters.history_breaks);
        self.epoch += 1;
        self.revision = Revision::NONE;
        self.must_list = true;
    }

    async fn list(&mut self) -> Result<(), StoreError> {
        let (revision, listed) = self.store.list(&self.prefix).await?;
        if revision < self.revision {
            self.history_broke("the revision went back", revision);
        }
        count(&self.out.counters.lists);
        self.entries = Entries::from_sorted(listed);
        self.revision = revision;
        self.must_list = false;
        self.publish();
        Ok(())
    }

    /// Applies what the watch delivers, and compares now and then, until the watch ends.
    async fn pump(&mut self, mut stream: WatchStream) -> End {
        let mut check: Option<Check> = None;
        loop {
            tokio::select! {
                biased;
                item = stream.next() => match item {
                    Ok(batch) => {
                        self.apply(batch);
                        if let Some(check) = &mut check {
                            check.moved(self.revision, &self.entries);
                        }
                    }
                    Err(WatchError::Compacted(oldest)) => {
                        return End::List(format!("compacted up to revision {oldest}"));
                    }
                    Err(WatchError::Ended(reason)) => return End::Resume(reason),
                },
                verdict = verdict_of(&mut check) => {
                    check = None;
                    self.plan_check();
                    if let Some(end) = self.judged(verdict) {
                        return end;
                    }
                }
                () = sleep_until(self.next_check), if check.is_none() => {
                    check = Some(self.start_check());
                }
                Some(()) = self.out.check_requests.recv(), if check.is_none() => {
                    check = Some(self.start_check());
                }
            }
        }
    }

    fn apply(&mut self, batch: Batch) {
        if batch.revision <= self.revision {
            // Already in by a list or a check that ran ahead of the watch.
            return;
        }
        for event in batch.events {
            self.entries.apply(event);
        }
        self.revision = batch.revision;
        self.publish();
    }

    fn start_check(&self) -> Check {
        let (store, prefix) = (Arc::clone(&self.store), self.prefix.clone());
        let read = Box::pin(async move { store.keys(&prefix).await });
        Check::start(read, self.revision, &self.entries)
    }

    fn judged(&mut self, verdict: Verdict) -> Option<End> {
        match verdict {
            Verdict::Equal(revision) => {
                count(&self.out.counters.checks);
                if revision > self.revision {
                    self.revision = revision;
                    self.publish();
                }
                None
            }
            Verdict::Differs(key) => {
                count(&self.out.counters.checks);
                count(&self.out.counters.mismatches);
                tracing::error!(
                    store = %self, key, revision = %self.revision,
                    "the copy differs from the store: the watch has lost an event"
                );
                Some(End::List("the copy differed from the store".to_owned()))
            }
            Verdict::GivenUp(reason) => {
                tracing::debug!(store = %self, reason, "comparison with the store given up");
                None
            }
        }
    }

    fn plan_check(&mut self) {
        let spread = self.random.random_range(0.9..=1.1);
        self.next_check = Instant::now() + self.check_every.mul_f64(spread);
    }

    fn publish(&self) {
        self.out.snapshots.send_replace(Arc::new(Snapshot {
            revision: self.revision,
            epoch: self.epoch,
            entries: self.entries.clone(),
        }));
    }

    fn fresh(&self) {
        let before = self.out.state.send_replace(State::Fresh);
        if let State::Stale { since, .. } = before {
            tracing::info!(store = %self, stale = ?since.elapsed(), "following again");
        }
    }

    fn stale(&self, reason: String) {
        self.out.state.send_if_modified(|state| match state {
            // Nothing was ever listed, so there is nothing that could be stale.
            State::Loading => {
                tracing::warn!(store = %self, %reason, "cannot read the store yet");
                false
            }
            State::Fresh => {
                tracing::warn!(store = %self, %reason, "the watch is lost; serving what is known");
                let since = Instant::now();
                *state = State::Stale { since, reason };
                true
            }
            State::Stale { reason: known, .. } => {
                *known = reason;
                true
            }
        });
    }
}

async fn verdict_of(check: &mut Option<Check>) -> Verdict {
    match check {
        Some(check) => check.verdict().await,
        None => std::future::pending().await,
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::Relaxed);
}

/// Which store and prefix, for logs.
impl fmt::Display for FollowDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} prefix {:?}", self.store.describe(), self.prefix)
    }
}

impl fmt::Debug for FollowDriver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("FollowDriver")
            .field("prefix", &self.prefix)
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}
