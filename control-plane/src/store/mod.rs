//! The storage layer: a key-value store with revisions, transactions and watches.
//!
//! It holds bytes under keys and knows nothing of gateways, destinations or ACLs; those are made
//! of it in the services. There are three stores behind one trait: [`etcd`] for real deployments,
//! [`embedded`] for one process with one file, and [`memory`] with switchable faults for tests.
//! One conformance suite (`tests/store_conformance.rs`) holds all three to the same meaning.
//!
//! Start at [`Store`]; [`open`] makes one from a `--store` URL; [`follow`] keeps an always current
//! copy of a prefix in memory, and is what everything but a writing service should use.

mod error;
mod evaluate;
mod open;
mod types;
mod url;
mod watch;

pub mod embedded;
pub mod etcd;
pub mod follow;
pub mod limits;
pub mod memory;

use async_trait::async_trait;

pub use error::{StoreError, WatchError};
pub use open::{StoreOptions, open};
pub use types::{Batch, Compare, Event, Health, KeyValue, Revision, Txn, TxnOutcome, Write};
pub use url::{StoreUrl, StoreUrlError};
pub use watch::WatchStream;

/// A key-value store with one linear history.
///
/// Keys are text, ordered by their bytes. All methods are safe to call from many tasks and bound
/// their own time (a few seconds at most); dropping a call's future may leave a write to happen
/// or not. Limits are in [`limits`].
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Reads one key, linearizably: a write that was acknowledged before is seen.
    /// The revision is the store's at the time of reading.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`.
    async fn get(&self, key: &str) -> Result<(Revision, Option<KeyValue>), StoreError>;

    /// Reads all keys under a prefix, sorted, all as of the one revision returned.
    /// Large prefixes are read in pages inside.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`.
    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError>;

    /// As [`Store::list`], but only the keys and their mod revisions.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`.
    async fn keys(&self, prefix: &str) -> Result<(Revision, Vec<(String, Revision)>), StoreError>;

    /// Runs a transaction. `Committed` is durable.
    ///
    /// A key put with a `ttl` deletes itself when that time is over, at a revision of its own that
    /// watches see. It may live longer by a second, by a twentieth of its ttl, or in etcd by the
    /// whole ttl after a change of leader, but never shorter while clocks are not set; so an
    /// expiry is for cleaning up and never for failing over.
    ///
    /// # Errors
    /// [`StoreError::UnknownOutcome`] if it may have been written; after any other error it was not.
    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError>;

    /// Watches a prefix for all changes at revision `from` (inclusive) and later.
    ///
    /// `from` may lie in the past, which replays, or in the future. If it is compacted the stream
    /// says so as its first item.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`; a store may also report them in the stream.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError>;

    /// Forgets the history before `revision`: watches from before it end with
    /// [`WatchError::Compacted`]. The present state is untouched.
    ///
    /// # Errors
    /// [`StoreError::Compacted`] if it was forgotten already, [`StoreError::Future`] if it is
    /// still to come, and others.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// The newest revision, read linearizably.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// Which store this is, for logs: kind and place, never a secret.
    fn describe(&self) -> String;

    /// Asks the store for its identity and newest revision. A store that is full still answers.
    ///
    /// # Errors
    /// Any [`StoreError`] but `UnknownOutcome`.
    async fn health(&self) -> Result<Health, StoreError>;
}
