//! The layout of the embedded store's file, and every write of it.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | number: `format`, `cluster`, `revision`, `compacted` |
//! | `kv` | key | create revision, mod revision (u64 BE each), then the value |
//! | `expiry` | key | deadline and ttl in milliseconds (u64 BE each), by the wall clock |
//! | `log` | (revision, index) | kind byte, create revision (u64 BE), key length (u32 BE), key, value |
//!
//! How rows are encoded is in [`super::rows`]; reads are in [`super::snapshot`]. Nothing here knows
//! of threads or channels.

use redb::{Database, ReadableTable, Table, TableDefinition, WriteTransaction};

use super::super::evaluate::{self, Present};
use super::super::types::{KeyValue, Revision, Txn, TxnOutcome, Write};
use super::rows;
use super::state::{Expiry, WriterState};

pub(super) const META: TableDefinition<'_, &str, u64> = TableDefinition::new("meta");
pub(super) const KV: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("kv");
pub(super) const LOG: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("log");
const EXPIRY: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("expiry");

/// The only layout so far; a file with a greater number was made by a newer version.
const FORMAT: u64 = 1;

/// What is known of an opened file.
pub(super) struct Opened {
    pub(super) cluster_id: u64,
    pub(super) state: WriterState,
}

/// Creates the tables of a new file, or checks and loads those of an old one.
pub(super) fn prepare(database: &Database, now_ms: u64) -> Result<Opened, redb::Error> {
    let txn = database.begin_write()?;
    let opened = {
        let mut meta = txn.open_table(META)?;
        txn.open_table(KV)?;
        let format = number(&meta, "format")?;
        if format > FORMAT {
            return Err(redb::Error::Corrupted(format!(
                "its layout {format} was made by a newer version; this one knows {FORMAT}"
            )));
        }
        if format == 0 {
            meta.insert("format", FORMAT)?;
            meta.insert("cluster", rand::random::<u64>())?;
            meta.insert("revision", Revision::FIRST.get())?;
        }
        let mut state = WriterState::at(
            Revision::new(number(&meta, "revision")?),
            Revision::new(number(&meta, "compacted")?),
        );
        for row in txn.open_table(LOG)?.iter()? {
            let (key, value) = row?;
            state.count_log(Revision::new(key.value().0), value.value().len() as u64);
        }
        for row in txn.open_table(EXPIRY)?.iter()? {
            let (key, value) = row?;
            state.rearm(key.value(), rows::decode_expiry(value.value())?, now_ms);
        }
        Opened {
            cluster_id: number(&meta, "cluster")?,
            state,
        }
    };
    txn.commit()?;
    Ok(opened)
}

pub(super) fn number(
    meta: &impl ReadableTable<&'static str, u64>,
    name: &str,
) -> Result<u64, redb::Error> {
    Ok(meta.get(name)?.map_or(0, |guard| guard.value()))
}

/// The tables inside one write transaction of the database, which may carry many of ours.
pub(super) struct Tables<'a> {
    meta: Table<'a, &'static str, u64>,
    kv: Table<'a, &'static str, &'static [u8]>,
    expiry: Table<'a, &'static str, &'static [u8]>,
    log: Table<'a, (u64, u32), &'static [u8]>,
}

impl<'a> Tables<'a> {
    pub(super) fn open(txn: &'a WriteTransaction) -> Result<Self, redb::Error> {
        Ok(Self {
            meta: txn.open_table(META)?,
            kv: txn.open_table(KV)?,
            expiry: txn.open_table(EXPIRY)?,
            log: txn.open_table(LOG)?,
        })
    }

    /// Runs one transaction at `now_ms` by the wall clock.
    pub(super) fn txn(
        &mut self,
        state: &mut WriterState,
        txn: &Txn,
        now_ms: u64,
    ) -> Result<TxnOutcome, redb::Error> {
        if !evaluate::all_hold(self, &txn.compares)? {
            let mut current = Vec::with_capacity(txn.read_on_conflict.len());
            for key in &txn.read_on_conflict {
                current.push((key.clone(), read_entry(&self.kv, key)?));
            }
            return Ok(TxnOutcome::Conflict {
                revision: state.revision,
                current,
            });
        }
        let revision = state.revision.next();
        let mut index = 0;
        for write in &txn.writes {
            match write {
                Write::Put { key, value, ttl } => {
                    let ttl_ms = ttl.map(|ttl| u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX));
                    let expiry = ttl_ms.map(|ttl_ms| Expiry {
                        deadline_ms: now_ms.saturating_add(ttl_ms),
                        ttl_ms,
                    });
                    self.put(state, key, value, revision, index)?;
                    self.set_expiry(state, key, expiry)?;
                    index += 1;
                }
                Write::Delete { key } => index += self.delete(state, key, revision, index)?,
            }
        }
        self.finish(state, revision, index)?;
        Ok(TxnOutcome::Committed(state.revision))
    }

    /// Deletes `keys`, whose time is over, at one revision.
    pub(super) fn expire(
        &mut self,
        state: &mut WriterState,
        keys: &[String],
    ) -> Result<(), redb::Error> {
        let revision = state.revision.next();
        let mut index = 0;
        for key in keys {
            index += self.delete(state, key, revision, index)?;
        }
        self.finish(state, revision, index)
    }

    /// Forgets the log before `revision`.
    pub(super) fn compact(
        &mut self,
        state: &mut WriterState,
        revision: Revision,
    ) -> Result<(), redb::Error> {
        self.log
            .retain_in((0, 0)..(revision.get(), 0), |_, _| false)?;
        state.compact_to(revision);
        self.meta.insert("compacted", revision.get())?;
        Ok(())
    }

    fn put(
        &mut self,
        state: &mut WriterState,
        key: &str,
        value: &[u8],
        revision: Revision,
        index: u32,
    ) -> Result<(), redb::Error> {
        let created = match self.kv.get(key)? {
            Some(guard) => rows::created(guard.value())?,
            None => revision,
        };
        let row = rows::encode_entry(created, revision, value);
        self.kv.insert(key, row.as_slice())?;
        let event = rows::encode_event(key, Some((created, value)));
        self.append(state, (revision, index), &event)
    }

    /// Returns how many events that made: 0 if the key was absent.
    fn delete(
        &mut self,
        state: &mut WriterState,
        key: &str,
        revision: Revision,
        index: u32,
    ) -> Result<u32, redb::Error> {
        if self.kv.remove(key)?.is_none() {
            return Ok(0);
        }
        self.set_expiry(state, key, None)?;
        self.append(state, (revision, index), &rows::encode_event(key, None))?;
        Ok(1)
    }

    fn set_expiry(
        &mut self,
        state: &mut WriterState,
        key: &str,
        expiry: Option<Expiry>,
    ) -> Result<(), redb::Error> {
        let changed = state.set_expiry(key, expiry);
        match expiry {
            Some(expiry) => {
                self.expiry
                    .insert(key, rows::encode_expiry(expiry).as_slice())?;
            }
            None if changed => {
                self.expiry.remove(key)?;
            }
            None => (),
        }
        Ok(())
    }

    fn append(
        &mut self,
        state: &mut WriterState,
        (revision, index): (Revision, u32),
        event: &[u8],
    ) -> Result<(), redb::Error> {
        self.log.insert((revision.get(), index), event)?;
        state.count_log(revision, event.len() as u64);
        Ok(())
    }

    /// Takes `revision` if any event was made at it.
    fn finish(
        &mut self,
        state: &mut WriterState,
        revision: Revision,
        events: u32,
    ) -> Result<(), redb::Error> {
        if events > 0 {
            self.meta.insert("revision", revision.get())?;
            state.revision = revision;
        }
        Ok(())
    }
}

impl Present for Tables<'_> {
    type Error = redb::Error;

    fn mod_revision(&self, key: &str) -> Result<Revision, redb::Error> {
        match self.kv.get(key)? {
            Some(guard) => rows::modified(guard.value()),
            None => Ok(Revision::NONE),
        }
    }

    fn any_under(&self, prefix: &str) -> Result<bool, redb::Error> {
        match self.kv.range(prefix..)?.next() {
            Some(row) => Ok(row?.0.value().starts_with(prefix)),
            None => Ok(false),
        }
    }
}

pub(super) fn read_entry(
    kv: &impl ReadableTable<&'static str, &'static [u8]>,
    key: &str,
) -> Result<Option<KeyValue>, redb::Error> {
    kv.get(key)?
        .map(|guard| rows::decode_entry(key, guard.value()))
        .transpose()
}
