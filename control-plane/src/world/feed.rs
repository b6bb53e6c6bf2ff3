//! Everything under one prefix of the store, and then every change of it, for ever.
//!
//! List, then watch from the next revision; a lost watch is resumed where it ended, a compacted
//! one lists again. It never gives up; how the store does is in [`StoreHealth`].

use std::sync::Arc;
use std::time::Duration;

use sg_runtime::backoff::Backoff;
use sg_runtime::metrics::Counter;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use crate::store::{Batch, KeyValue, Revision, Store, StoreError, WatchError};

/// What a feed says.
#[derive(Debug)]
pub(super) enum Update {
    /// Everything under the prefix as of a revision.
    All { prefix: &'static str, revision: Revision, entries: Vec<KeyValue> },
    /// The next changes.
    Changes(Batch),
}

/// Whether the store answers, as its users see it. Clones share it.
#[derive(Debug, Clone)]
pub struct StoreHealth {
    problem: Arc<watch::Sender<Option<String>>>,
    errors: Counter,
}

impl StoreHealth {
    /// Unknown yet, which counts as a problem. `errors` counts failed calls.
    pub fn new(errors: Counter) -> Self {
        let problem = Some("the store was not reached yet".to_owned());
        Self { problem: Arc::new(watch::Sender::new(problem)), errors }
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// A call succeeded.
    pub fn good(&self) {
        let recovered = self.problem.send_if_modified(|problem| problem.take().is_some());
        if recovered {
            tracing::info!("the store answers");
        }
    }

    /// A call failed. Failures that say nothing about the store as such are only counted.
    pub fn bad(&self, error: &StoreError) {
        self.errors.inc();
        if let StoreError::Unavailable { .. } | StoreError::Auth(_) | StoreError::UnknownOutcome(_) =
            error
        {
            self.set(error.to_string());
        }
    }

    fn set(&self, text: String) {
        self.problem.send_if_modified(|problem| {
            let new = problem.is_none();
            if new {
                tracing::warn!(problem = text, "the store does not answer; what is known is served on");
            }
            *problem = Some(text);
            new
        });
    }
}

/// Feeds one prefix to the keeper until that is gone.
pub(super) async fn feed(
    store: Arc<dyn Store>,
    prefix: &'static str,
    updates: mpsc::Sender<Update>,
    health: StoreHealth,
) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let listed = match store.list(prefix).await {
            Ok(listed) => listed,
            Err(error) => {
                health.bad(&error);
                sleep(backoff.next_delay()).await;
                continue;
            }
        };
        health.good();
        backoff.reset();
        let (revision, entries) = listed;
        if updates.send(Update::All { prefix, revision, entries }).await.is_err() {
            return;
        }
        if watch_from(&*store, prefix, revision.next(), &updates, &health).await.is_err() {
            return;
        }
    }
}

/// The keeper is gone.
struct Gone;

/// Watches until everything has to be listed again.
async fn watch_from(
    store: &dyn Store,
    prefix: &'static str,
    mut next: Revision,
    updates: &mpsc::Sender<Update>,
    health: &StoreHealth,
) -> Result<(), Gone> {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
    loop {
        let mut stream = match store.watch(prefix, next).await {
            Ok(stream) => stream,
            Err(StoreError::Compacted | StoreError::Future) => return Ok(()),
            Err(error) => {
                health.bad(&error);
                sleep(backoff.next_delay()).await;
                continue;
            }
        };
        loop {
            match stream.next().await {
                Ok(batch) => {
                    health.good();
                    backoff.reset();
                    next = batch.revision.next();
                    updates.send(Update::Changes(batch)).await.map_err(|_| Gone)?;
                }
                Err(WatchError::Compacted(_)) => return Ok(()),
                Err(WatchError::Ended(reason)) => {
                    tracing::debug!(prefix, reason, "a watch ended and is resumed");
                    sleep(backoff.next_delay()).await;
                    break;
                }
            }
        }
        // A store that was restored is behind us: then everything has to be listed.
        match store.revision().await {
            Ok(newest) if newest.next() < next => return Ok(()),
            Ok(_) => health.good(),
            Err(error) => health.bad(&error),
        }
    }
}
