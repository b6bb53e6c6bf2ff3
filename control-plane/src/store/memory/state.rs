//! The keys and the log of the memory store: a plain machine without locks, tasks or clocks.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use super::super::error::StoreError;
use super::super::evaluate::{self, Present};
use super::super::types::{Batch, Event, KeyValue, Revision, Txn, TxnOutcome, Write};

/// How many revisions the log keeps before the oldest are compacted by themselves.
const KEEP_REVISIONS: usize = 10_000;

#[derive(Debug, Clone)]
pub(super) struct State {
    cluster_id: u64,
    revision: Revision,
    /// The oldest revision that can be watched.
    compacted: Revision,
    entries: BTreeMap<String, Entry>,
    expiries: BTreeSet<(Instant, String)>,
    /// One element per revision, without gaps, the newest last.
    log: VecDeque<Batch>,
}

#[derive(Debug, Clone)]
struct Entry {
    value: Bytes,
    mod_revision: Revision,
    create_revision: Revision,
    expiry: Option<Instant>,
}

/// What a watch finds in the log.
pub(super) enum Pulled {
    Batch(Batch),
    Compacted(Revision),
    Nothing {
        /// Where to look next time.
        next: Revision,
        /// When the next key expires.
        expiry: Option<Instant>,
    },
}

impl State {
    pub(super) fn new(cluster_id: u64) -> Self {
        Self {
            cluster_id,
            revision: Revision::FIRST,
            compacted: Revision::NONE,
            entries: BTreeMap::new(),
            expiries: BTreeSet::new(),
            log: VecDeque::new(),
        }
    }

    pub(super) fn cluster_id(&self) -> u64 {
        self.cluster_id
    }

    pub(super) fn set_cluster_id(&mut self, cluster_id: u64) {
        self.cluster_id = cluster_id;
    }

    pub(super) fn revision(&self) -> Revision {
        self.revision
    }

    pub(super) fn get(&self, key: &str) -> Option<KeyValue> {
        self.entries.get(key).map(|entry| entry.read(key))
    }

    pub(super) fn list(&self, prefix: &str) -> Vec<KeyValue> {
        self.entries
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .map(|(key, entry)| entry.read(key))
            .collect()
    }

    /// Runs a transaction; `lose_events` keeps the change from every watch.
    pub(super) fn txn(&mut self, txn: &Txn, now: Instant, lose_events: bool) -> TxnOutcome {
        let Ok(holds) = evaluate::all_hold(self, &txn.compares);
        if !holds {
            let current = txn
                .read_on_conflict
                .iter()
                .map(|key| (key.clone(), self.get(key)))
                .collect();
            return TxnOutcome::Conflict {
                revision: self.revision,
                current,
            };
        }
        let revision = self.revision.next();
        let mut events = Vec::with_capacity(txn.writes.len());
        for write in &txn.writes {
            match write {
                Write::Put { key, value, ttl } => {
                    events.push(Event::Put(self.put(key, value, *ttl, revision, now)));
                }
                Write::Delete { key } => {
                    if self.remove(key) {
                        events.push(Event::Delete { key: key.clone() });
                    }
                }
            }
        }
        if !events.is_empty() {
            if lose_events {
                events.clear();
            }
            self.append(Batch { revision, events });
        }
        TxnOutcome::Committed(self.revision)
    }

    /// Deletes, in one revision, every key whose time is over. True if there was one.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let mut events = Vec::new();
        while self.expiries.first().is_some_and(|(at, _)| *at <= now) {
            if let Some((_, key)) = self.expiries.pop_first() {
                self.entries.remove(&key);
                events.push(Event::Delete { key });
            }
        }
        if events.is_empty() {
            return false;
        }
        let revision = self.revision.next();
        self.append(Batch { revision, events });
        true
    }

    pub(super) fn compact(&mut self, revision: Revision) -> Result<(), StoreError> {
        if revision > self.revision {
            return Err(StoreError::Future);
        }
        if revision <= self.compacted {
            return Err(StoreError::Compacted);
        }
        self.compacted = revision;
        while self
            .log
            .front()
            .is_some_and(|batch| batch.revision < revision)
        {
            self.log.pop_front();
        }
        Ok(())
    }

    /// The first batch at `from` or later with events under the prefix.
    pub(super) fn pull(&self, prefix: &str, from: Revision) -> Pulled {
        if from < self.compacted {
            return Pulled::Compacted(self.compacted);
        }
        let oldest = self.log.front().map_or(Revision::NONE, |b| b.revision);
        let skip = usize::try_from(from.get().saturating_sub(oldest.get())).unwrap_or(usize::MAX);
        for batch in self.log.iter().skip(skip) {
            let events: Vec<Event> = batch
                .events
                .iter()
                .filter(|event| event.key().starts_with(prefix))
                .cloned()
                .collect();
            if !events.is_empty() {
                return Pulled::Batch(Batch {
                    revision: batch.revision,
                    events,
                });
            }
        }
        Pulled::Nothing {
            next: from.max(self.revision.next()),
            expiry: self.expiries.first().map(|(at, _)| *at),
        }
    }

    fn put(
        &mut self,
        key: &str,
        value: &Bytes,
        ttl: Option<Duration>,
        revision: Revision,
        now: Instant,
    ) -> KeyValue {
        let old = self.entries.get(key);
        let create_revision = old.map_or(revision, |entry| entry.create_revision);
        if let Some(at) = old.and_then(|entry| entry.expiry) {
            self.expiries.remove(&(at, key.to_owned()));
        }
        let expiry = ttl.map(|ttl| now + ttl);
        if let Some(at) = expiry {
            self.expiries.insert((at, key.to_owned()));
        }
        let entry = Entry {
            value: value.clone(),
            mod_revision: revision,
            create_revision,
            expiry,
        };
        let read = entry.read(key);
        self.entries.insert(key.to_owned(), entry);
        read
    }

    fn remove(&mut self, key: &str) -> bool {
        let Some(old) = self.entries.remove(key) else {
            return false;
        };
        if let Some(at) = old.expiry {
            self.expiries.remove(&(at, key.to_owned()));
        }
        true
    }

    fn append(&mut self, batch: Batch) {
        self.revision = batch.revision;
        self.log.push_back(batch);
        if self.log.len() > KEEP_REVISIONS {
            self.log.pop_front();
            self.compacted = self.log.front().map_or(self.revision, |b| b.revision);
        }
    }
}

impl Entry {
    fn read(&self, key: &str) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: self.value.clone(),
            mod_revision: self.mod_revision,
            create_revision: self.create_revision,
        }
    }
}

impl Present for State {
    type Error = Infallible;

    fn mod_revision(&self, key: &str) -> Result<Revision, Infallible> {
        Ok(self
            .entries
            .get(key)
            .map_or(Revision::NONE, |entry| entry.mod_revision))
    }

    fn any_under(&self, prefix: &str) -> Result<bool, Infallible> {
        Ok(self
            .entries
            .range(prefix.to_owned()..)
            .next()
            .is_some_and(|(key, _)| key.starts_with(prefix)))
    }
}
