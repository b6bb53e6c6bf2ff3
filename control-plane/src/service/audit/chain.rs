//! The end of the chain. Every change takes it, one after the other within this process, and compares
//! it in its transaction, so that changes of several control planes are one row too.

use std::sync::Arc;

use sg_runtime::sealed::KeyRing;
use tokio::sync::{Mutex, MutexGuard, watch};

use super::Mark;
use crate::keys;
use crate::service::ServiceError;
use crate::store::follow::{self, FollowDriver, FollowOptions, Snapshot};
use crate::store::{KeyValue, Revision, Store};

/// The end of the chain, as far as it is known. Clones share it.
#[derive(Debug, Clone)]
pub struct Chain {
    own: Arc<Mutex<Option<Head>>>,
    followed: watch::Receiver<Arc<Snapshot>>,
    ring: KeyRing,
}

/// The last record, and the revision that wrote it.
#[derive(Debug, Clone, Copy)]
pub struct Head {
    pub(crate) mark: Mark,
    pub(crate) revision: Revision,
}

impl Chain {
    /// A chain in this store, and what keeps it up to date: run it as a task.
    pub fn new(store: Arc<dyn Store>, ring: KeyRing) -> (Self, FollowDriver) {
        let (follower, driver) = follow::follow(store, keys::CHAIN, FollowOptions::default());
        let chain = Self {
            own: Arc::default(),
            followed: follower.subscribe(),
            ring,
        };
        (chain, driver)
    }

    /// The last record that is known of.
    pub fn last(&self) -> Option<Mark> {
        let snapshot = Arc::clone(&self.followed.borrow());
        let entry = snapshot.get(keys::CHAIN_HEAD)?;
        Mark::open(&self.ring, entry).ok()
    }

    /// Is woken when the chain grows.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.followed.clone()
    }

    /// The end of the chain, kept from other changes of this process until it is dropped.
    ///
    /// # Errors
    /// The store failed.
    pub(crate) async fn take(&self, store: &dyn Store) -> Result<Taken<'_>, ServiceError> {
        let mut own = self.own.lock().await;
        let snapshot = Arc::clone(&self.followed.borrow());
        let newer = snapshot
            .get(keys::CHAIN_HEAD)
            .filter(|entry| own.is_none_or(|own| own.revision < entry.mod_revision));
        // While a change is under way nothing is known: it may be given up in the middle.
        let head = match (newer, own.take()) {
            (Some(entry), _) => self.head(entry)?,
            (None, Some(own)) => own,
            (None, None) => {
                let (mark, revision) = Mark::read(store, &self.ring, keys::CHAIN_HEAD).await?;
                Head { mark, revision }
            }
        };
        Ok(Taken { own, head })
    }

    /// What the store says the end is.
    pub(crate) fn head(&self, entry: &KeyValue) -> Result<Head, ServiceError> {
        Ok(Head {
            mark: Mark::open(&self.ring, entry)?,
            revision: entry.mod_revision,
        })
    }
}

/// The end of the chain in the hands of one change.
pub(crate) struct Taken<'a> {
    own: MutexGuard<'a, Option<Head>>,
    pub(crate) head: Head,
}

impl Taken<'_> {
    /// Remembers where the chain ends now.
    pub(crate) fn put_back(mut self, head: Head) {
        *self.own = Some(head);
    }
}
