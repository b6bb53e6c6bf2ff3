//! The only writer of the world: takes what the feeds say, works out the plans, publishes both.
//!
//! World and plans are published together, so whoever sees a revision sees its plans.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_proto::store as wire;
use sg_runtime::tasks::TaskGroup;
use tokio::sync::{mpsc, watch};

use super::feed::{self, Update};
use super::{StoreHealth, Touched, World};
use crate::keys;
use crate::plan::{Planner, Plans};
use crate::store::{Event, KeyValue, Revision, Store, StoreError, Txn};

/// Updates taken into one published world, at most.
const BATCH: usize = 256;
const FEEDS: [&str; 4] = [keys::META, keys::ADMIN_TOKENS, keys::LIVE, keys::OBJECTS];

/// The world with the plans that follow from it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the store says.
    pub world: World,
    /// What each group should serve.
    pub plans: Plans,
}

/// Where everybody reads the newest view. Clones share it.
#[derive(Debug, Clone)]
pub struct Views(watch::Receiver<Option<Arc<View>>>);

impl Views {
    /// The newest view; an empty one before the store was read for the first time.
    pub fn now(&self) -> Arc<View> {
        self.0.borrow().clone().unwrap_or_default()
    }

    /// Waits for a view that is newer than those seen through this handle.
    /// Pending for ever once the keeper is gone; then the process ends anyway.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets [`Views::changed`] wait for what comes after the newest view.
    pub fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }

    /// Waits until the store was read for the first time.
    pub async fn loaded(&mut self) {
        if self.0.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the view has reached `revision`, or the time is over; tells which.
    pub async fn reach(&self, revision: Revision, limit: Duration) -> bool {
        let mut views = self.0.clone();
        let reached = views
            .wait_for(|view| view.as_ref().is_some_and(|view| view.world.revision >= revision));
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}

/// Keeps the view; run it as a task.
#[derive(Debug)]
pub struct Keeper {
    published: watch::Sender<Option<Arc<View>>>,
    planner: Planner,
    view: View,
    loaded: HashSet<&'static str>,
}

impl Keeper {
    /// A keeper that has read nothing yet, and where to read what it publishes.
    pub fn new() -> (Self, Views) {
        let (published, views) = watch::channel(None);
        let keeper = Self {
            published,
            planner: Planner::default(),
            view: View::default(),
            loaded: HashSet::new(),
        };
        (keeper, Views(views))
    }

    /// Follows the store for ever. Returns only if one of its feeds dies.
    ///
    /// # Errors
    /// Which feed died, and how.
    pub async fn run(mut self, store: Arc<dyn Store>, health: StoreHealth) -> Result<(), String> {
        let (sender, mut updates) = mpsc::channel(BATCH);
        let mut feeds = TaskGroup::new();
        for prefix in FEEDS {
            let feed = feed::feed(Arc::clone(&store), prefix, sender.clone(), health.clone());
            feeds.spawn(prefix, feed);
        }
        drop(sender);
        let mut batch = Vec::with_capacity(BATCH);
        loop {
            tokio::select! {
                // Both are cancel safe: what is not returned stays where it is.
                ended = feeds.join_next() => {
                    let (name, how) = ended.unwrap_or_else(|| ("all feeds".to_owned(), sg_runtime::tasks::Ended::Finished));
                    return Err(format!("the feed of {name} {how}"));
                }
                _ = updates.recv_many(&mut batch, BATCH) => {}
            }
            let went_back = self.take(batch.drain(..));
            if went_back {
                raise_epoch(&*store, &health).await;
            }
        }
    }

    /// Takes updates over and publishes. Tells whether the store went back in time.
    fn take(&mut self, updates: impl Iterator<Item = Update>) -> bool {
        let mut touched: Vec<Touched> = Vec::new();
        let mut went_back = false;
        for update in updates {
            match update {
                Update::Changes(batch) => {
                    let objects = batch.events.iter().any(|e| e.key().starts_with(keys::OBJECTS));
                    if objects {
                        self.view.world.revision = self.view.world.revision.max(batch.revision);
                    }
                    for event in &batch.events {
                        touched.extend(self.view.world.apply(event));
                    }
                }
                Update::All { prefix, revision, entries } => {
                    if prefix == keys::OBJECTS {
                        went_back |= revision < self.view.world.revision;
                        self.view.world.revision = revision;
                    }
                    touched.extend(self.view.world.replace(prefix, entries));
                    self.loaded.insert(prefix);
                }
            }
        }
        if self.loaded.len() == FEEDS.len() {
            self.view.plans = self.planner.advance(&self.view.world, &touched);
            self.published.send_replace(Some(Arc::new(self.view.clone())));
        } else {
            // Plans need everything; until then what is touched is worked out from scratch.
            self.planner.advance(&self.view.world, &touched);
        }
        went_back
    }
}

impl World {
    /// Makes everything under `prefix` what `entries` say.
    fn replace(&mut self, prefix: &str, entries: Vec<KeyValue>) -> Vec<Touched> {
        let present: HashSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone = self.keys(prefix).into_iter().filter(|key| !present.contains(key.as_str()));
        let deletes: Vec<_> = gone.map(|key| Event::Delete { key }).collect();
        let puts = entries.into_iter().filter(|entry| !self.has(entry)).map(Event::Put);
        let puts: Vec<_> = puts.collect();
        deletes.iter().chain(&puts).flat_map(|event| self.apply(event)).collect()
    }
}

/// Makes nodes take a state that is older than theirs: the store was restored from a copy.
async fn raise_epoch(store: &dyn Store, health: &StoreHealth) {
    tracing::error!("the store went back in time; the epoch is raised so that nodes follow");
    let attempt = async {
        let (_, entry) = store.get(keys::META_EPOCH).await?;
        let entry = entry.ok_or_else(|| StoreError::Internal("there is no epoch".to_owned()))?;
        let epoch = wire::Epoch::decode(entry.value.as_ref())
            .map_err(|error| StoreError::Internal(error.to_string()))?
            .epoch
            .saturating_add(1);
        let txn = Txn::new()
            .when_revision(keys::META_EPOCH, entry.mod_revision)
            .put(keys::META_EPOCH, wire::Epoch { epoch }.encode_to_vec());
        // Of several control planes that notice, one raises it; that is enough.
        store.txn(txn).await.map(|_| ())
    };
    if let Err(error) = attempt.await {
        health.bad(&error);
        tracing::error!(%error, "the epoch could not be raised; nodes keep the newer state they have");
    }
}
