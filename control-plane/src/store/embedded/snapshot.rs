//! Reads of the embedded store's file: the present state, and the log for watches.

use redb::{Database, ReadOnlyTable, ReadableDatabase};

use super::super::types::{Batch, KeyValue, Revision};
use super::rows;
use super::tables::{self, KV, LOG, META};

/// What a watch finds in the log.
pub(super) enum Pulled {
    Compacted(Revision),
    Read {
        batches: Vec<Batch>,
        /// Where to read on.
        next: Revision,
        /// Whether there is more to read already.
        more: bool,
    },
}

/// A consistent view of the last commit.
pub(super) struct Snapshot {
    meta: ReadOnlyTable<&'static str, u64>,
    kv: ReadOnlyTable<&'static str, &'static [u8]>,
    log: ReadOnlyTable<(u64, u32), &'static [u8]>,
}

impl Snapshot {
    pub(super) fn begin(database: &Database) -> Result<Self, redb::Error> {
        let txn = database.begin_read()?;
        Ok(Self {
            meta: txn.open_table(META)?,
            kv: txn.open_table(KV)?,
            log: txn.open_table(LOG)?,
        })
    }

    pub(super) fn revision(&self) -> Result<Revision, redb::Error> {
        tables::number(&self.meta, "revision").map(Revision::new)
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<KeyValue>, redb::Error> {
        tables::read_entry(&self.kv, key)
    }

    pub(super) fn list(&self, prefix: &str) -> Result<Vec<KeyValue>, redb::Error> {
        self.scan(prefix, rows::decode_entry)
    }

    pub(super) fn keys(&self, prefix: &str) -> Result<Vec<(String, Revision)>, redb::Error> {
        self.scan(prefix, |key, bytes| {
            Ok((key.to_owned(), rows::modified(bytes)?))
        })
    }

    fn scan<T>(
        &self,
        prefix: &str,
        decode: impl Fn(&str, &[u8]) -> Result<T, redb::Error>,
    ) -> Result<Vec<T>, redb::Error> {
        let mut found = Vec::new();
        for row in self.kv.range(prefix..)? {
            let (key, value) = row?;
            if !key.value().starts_with(prefix) {
                break;
            }
            found.push(decode(key.value(), value.value())?);
        }
        Ok(found)
    }

    /// Reads the log from `from` on, whole revisions only, until about `max_batches` or
    /// `max_bytes` are found.
    pub(super) fn pull(
        &self,
        prefix: &str,
        from: Revision,
        max_batches: usize,
        max_bytes: usize,
    ) -> Result<Pulled, redb::Error> {
        let compacted = Revision::new(tables::number(&self.meta, "compacted")?);
        if from < compacted {
            return Ok(Pulled::Compacted(compacted));
        }
        let mut batches: Vec<Batch> = Vec::new();
        let mut bytes = 0;
        for row in self.log.range((from.get(), 0)..)? {
            let (key, value) = row?;
            let revision = Revision::new(key.value().0);
            let is_new = batches.last().is_none_or(|last| last.revision != revision);
            if is_new && (batches.len() >= max_batches || bytes >= max_bytes) {
                return Ok(Pulled::Read {
                    batches,
                    next: revision,
                    more: true,
                });
            }
            let event = rows::decode_event(revision, value.value())?;
            if !event.key().starts_with(prefix) {
                continue;
            }
            bytes += value.value().len();
            match batches.last_mut() {
                Some(last) if !is_new => last.events.push(event),
                _ => batches.push(Batch {
                    revision,
                    events: vec![event],
                }),
            }
        }
        Ok(Pulled::Read {
            batches,
            next: from.max(self.revision()?.next()),
            more: false,
        })
    }
}
