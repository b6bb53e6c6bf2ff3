//! The embedded store: one crash-safe file, for one control plane.
//!
//! What a first try and a small site run. The file is locked while open, so a second process is
//! refused; commits are fsynced before they are acknowledged, so a kill or a power cut loses none.
//!
//! - `tables` is the layout of the file and every write of it, `rows` the encoding, and
//!   `snapshot` every read;
//! - `writer` is the one thread that changes it, many transactions per fsync, with `state`;
//! - this module is the [`Store`] in front of both, and the watches.
//!
//! Watches pull from a log in the file, so a slow one holds no memory and misses nothing. The log
//! keeps the last 10,000 revisions or 64 MiB, whichever is less.

mod rows;
mod snapshot;
mod state;
mod tables;
mod writer;

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::Duration;

use async_trait::async_trait;
use futures_util::stream;
use redb::backends::FileBackend;
use redb::{Database, DatabaseError, StorageError};
use tokio::sync::watch;
use tokio::task;

use super::error::{StoreError, WatchError};
use super::types::{Batch, Health, KeyValue, Revision, Txn, TxnOutcome};
use super::watch::WatchStream;
use super::{Store, limits};
use snapshot::{Pulled, Snapshot};
use writer::{Clock, Writer};

/// Pages of the file kept in memory, at most.
const CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Batches that a watch reads from the file at once, at most, and their values' bytes.
const PULL_BATCHES: usize = 256;
const PULL_BYTES: usize = 4 * 1024 * 1024;
/// How long a call waits for the writer or for a reading thread, at most.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A store in one file.
pub struct EmbeddedStore {
    path: PathBuf,
    shared: Arc<Shared>,
    writer: Writer,
}

/// What watches and reading threads need. Watches hold it weakly: dropping the store closes the
/// file and releases its lock.
struct Shared {
    database: Arc<Database>,
    newest: watch::Receiver<Revision>,
    cluster_id: u64,
}

impl EmbeddedStore {
    /// Opens or creates the file; the folder must exist. Blocks for milliseconds, or longer when a
    /// file that was not closed has to be checked.
    ///
    /// # Errors
    /// Not retryable ones: the file is in use, is not a store, was made by a newer version, or
    /// cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let database = open_database(path)?;
        let clock = Clock::start();
        let opened =
            tables::prepare(&database, clock.now_ms()).map_err(|error| unusable(path, &error))?;
        let database = Arc::new(database);
        let (writer, newest) = Writer::start(Arc::clone(&database), opened.state, clock)
            .map_err(|error| StoreError::broken(format!("cannot start the writer: {error}")))?;
        Ok(Self {
            path: path.to_owned(),
            shared: Arc::new(Shared {
                database,
                newest,
                cluster_id: opened.cluster_id,
            }),
            writer,
        })
    }

    /// Reads a consistent snapshot on a thread that may block.
    async fn read<T: Send + 'static>(
        &self,
        read: impl FnOnce(&Snapshot) -> Result<T, redb::Error> + Send + 'static,
    ) -> Result<T, StoreError> {
        read_snapshot(Arc::clone(&self.shared), read).await
    }
}

async fn read_snapshot<T: Send + 'static>(
    shared: Arc<Shared>,
    read: impl FnOnce(&Snapshot) -> Result<T, redb::Error> + Send + 'static,
) -> Result<T, StoreError> {
    let work = task::spawn_blocking(move || read(&Snapshot::begin(&shared.database)?));
    match tokio::time::timeout(CALL_TIMEOUT, work).await {
        Ok(Ok(result)) => result.map_err(|error| broken(&error)),
        Ok(Err(error)) => Err(StoreError::Internal(format!("a read died: {error}"))),
        Err(_) => Err(StoreError::unavailable(format!(
            "a read took longer than {CALL_TIMEOUT:?}"
        ))),
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<(Revision, Option<KeyValue>), StoreError> {
        limits::check_key(key)?;
        let key = key.to_owned();
        self.read(move |snapshot| Ok((snapshot.revision()?, snapshot.get(&key)?)))
            .await
    }

    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        limits::check_prefix(prefix)?;
        let prefix = prefix.to_owned();
        self.read(move |snapshot| Ok((snapshot.revision()?, snapshot.list(&prefix)?)))
            .await
    }

    async fn keys(&self, prefix: &str) -> Result<(Revision, Vec<(String, Revision)>), StoreError> {
        limits::check_prefix(prefix)?;
        let prefix = prefix.to_owned();
        self.read(move |snapshot| Ok((snapshot.revision()?, snapshot.keys(&prefix)?)))
            .await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        limits::check_txn(&txn)?;
        self.writer.txn(txn).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        limits::check_prefix(prefix)?;
        limits::check_revision(from)?;
        let watcher = Watcher {
            shared: Arc::downgrade(&self.shared),
            newest: self.shared.newest.clone(),
            prefix: prefix.to_owned(),
            next: from,
            ready: Vec::new().into_iter(),
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
        self.writer.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.read(Snapshot::revision).await
    }

    fn describe(&self) -> String {
        format!("embedded:{}", self.path.display())
    }

    async fn health(&self) -> Result<Health, StoreError> {
        self.writer.alive()?;
        Ok(Health {
            cluster_id: self.shared.cluster_id,
            revision: self.revision().await?,
            detail: self.describe(),
        })
    }
}

impl fmt::Debug for EmbeddedStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EmbeddedStore")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

/// One open watch.
struct Watcher {
    shared: Weak<Shared>,
    newest: watch::Receiver<Revision>,
    prefix: String,
    /// Where to read on in the log.
    next: Revision,
    /// Read but not yet delivered.
    ready: std::vec::IntoIter<Batch>,
}

impl Watcher {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if let Some(batch) = self.ready.next() {
                return Ok(batch);
            }
            self.newest.mark_unchanged();
            match self.pull().await? {
                Pulled::Compacted(oldest) => return Err(WatchError::Compacted(oldest)),
                Pulled::Read {
                    batches,
                    next,
                    more,
                } => {
                    self.next = next;
                    self.ready = batches.into_iter();
                    if more || self.ready.len() > 0 {
                        continue;
                    }
                }
            }
            if self.newest.changed().await.is_err() {
                return Err(closed());
            }
        }
    }

    async fn pull(&self) -> Result<Pulled, WatchError> {
        let shared = self.shared.upgrade().ok_or_else(closed)?;
        let (prefix, from) = (self.prefix.clone(), self.next);
        read_snapshot(shared, move |snapshot| {
            snapshot.pull(&prefix, from, PULL_BATCHES, PULL_BYTES)
        })
        .await
        .map_err(|error| WatchError::Ended(error.to_string()))
    }
}

fn closed() -> WatchError {
    WatchError::Ended("the store was closed".to_owned())
}

/// Opens the file with mode 0600 if new, and locks it.
fn open_database(path: &Path) -> Result<Database, StoreError> {
    let unusable = |error: &dyn fmt::Display| unusable(path, error);
    let file = open_file(path).map_err(|error| unusable(&error))?;
    let backend = FileBackend::new(file).map_err(|error| unusable(&error))?;
    redb::Builder::new()
        .set_cache_size(CACHE_BYTES)
        .create_with_backend(backend)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
                StoreError::broken(format!(
                    "{} is in use by another process; an embedded store serves one control plane: \
                     stop the other one, choose another file, or use etcd",
                    path.display()
                ))
            }
            DatabaseError::UpgradeRequired(version) => {
                unusable(&format!("its format {version} is too old"))
            }
            DatabaseError::Storage(StorageError::Io(error))
                if error.kind() == io::ErrorKind::InvalidData =>
            {
                unusable(&"this file is not a store of the control plane")
            }
            other => unusable(&other),
        })
}

fn open_file(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let is_new = !path.exists();
    let file = options.open(path)?;
    if is_new {
        // A new file survives a power cut only when its folder has reached the disk too.
        let folder = path.parent().filter(|p| !p.as_os_str().is_empty());
        File::open(folder.unwrap_or(Path::new(".")))?.sync_all()?;
    }
    Ok(file)
}

fn unusable(path: &Path, error: &dyn fmt::Display) -> StoreError {
    StoreError::broken(format!("cannot use {}: {error}", path.display()))
}

/// A read or a write of an open file failed: nothing that trying again would mend.
fn broken(error: &redb::Error) -> StoreError {
    StoreError::broken(format!("the store file fails: {error}"))
}
