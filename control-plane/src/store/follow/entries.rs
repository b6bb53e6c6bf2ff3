//! A sorted map of entries whose copies are cheap and share what they have in common.
//!
//! A change of one key must not cost a copy of 100,000: the map is a list of chunks behind `Arc`s,
//! and a change copies one chunk and the list of chunks. Comparing two versions skips the chunks
//! that they share. Not a general container: it holds [`KeyValue`]s by their keys.

use std::fmt;
use std::sync::Arc;

use super::super::types::{Event, KeyValue, Revision};

/// A chunk is split when it holds more than this.
const CHUNK: usize = 256;
/// A chunk smaller than this is merged with the next one.
const SMALL: usize = CHUNK / 8;

type Chunk = Arc<Vec<Arc<KeyValue>>>;

/// The entries under a prefix, sorted by key.
#[derive(Clone, Default)]
pub struct Entries {
    /// None is empty; their keys rise from chunk to chunk.
    chunks: Vec<Chunk>,
    len: usize,
}

/// A difference between two versions of a map.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The key is new or differs; this is the newer version.
    Put(Arc<KeyValue>),
    /// The key is gone; this is its last known version.
    Deleted(Arc<KeyValue>),
}

impl Change {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) | Self::Deleted(entry) => &entry.key,
        }
    }
}

impl Entries {
    /// Takes over a list that is sorted by key without duplicates.
    pub(super) fn from_sorted(sorted: Vec<KeyValue>) -> Self {
        let len = sorted.len();
        let mut chunks = Vec::with_capacity(len / CHUNK * 2 + 1);
        let mut rest = sorted.into_iter().map(Arc::new).peekable();
        while rest.peek().is_some() {
            chunks.push(Arc::new(rest.by_ref().take(CHUNK / 2).collect()));
        }
        Self { chunks, len }
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<KeyValue>> {
        let chunk = self.chunks.get(self.chunk_for(key))?;
        let position = chunk.binary_search_by(|e| e.key.as_str().cmp(key)).ok()?;
        chunk.get(position)
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The entries whose keys start with `prefix`, in order.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        let chunk = self.chunk_for(prefix);
        self.chunks
            .get(chunk..)
            .unwrap_or_default()
            .iter()
            .flat_map(|chunk| chunk.iter())
            .skip_while(move |entry| entry.key.as_str() < prefix)
            .take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// What turns `older` into this version, in the order of the keys.
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        let mut changes = Vec::new();
        let (mut old, mut new) = (Cursor::start(older), Cursor::start(self));
        loop {
            while old.skip_shared_chunk(&mut new) {}
            match (old.entry(), new.entry()) {
                (None, None) => return changes,
                (Some(gone), None) => {
                    changes.push(Change::Deleted(Arc::clone(gone)));
                    old.step();
                }
                (None, Some(added)) => {
                    changes.push(Change::Put(Arc::clone(added)));
                    new.step();
                }
                (Some(before), Some(after)) => match before.key.cmp(&after.key) {
                    std::cmp::Ordering::Less => {
                        changes.push(Change::Deleted(Arc::clone(before)));
                        old.step();
                    }
                    std::cmp::Ordering::Greater => {
                        changes.push(Change::Put(Arc::clone(after)));
                        new.step();
                    }
                    std::cmp::Ordering::Equal => {
                        if !Arc::ptr_eq(before, after) && before != after {
                            changes.push(Change::Put(Arc::clone(after)));
                        }
                        old.step();
                        new.step();
                    }
                },
            }
        }
    }

    /// The first key at which this map and a list of keys and mod revisions differ.
    pub(super) fn first_difference(&self, keys: &[(String, Revision)]) -> Option<String> {
        let mut expected = keys.iter();
        for entry in self.iter() {
            match expected.next() {
                Some((key, revision)) if *key == entry.key && *revision == entry.mod_revision => {}
                Some((key, _)) => return Some(key.min(&entry.key).clone()),
                None => return Some(entry.key.clone()),
            }
        }
        expected.next().map(|(key, _)| key.clone())
    }

    /// Applies one event.
    pub(super) fn apply(&mut self, event: Event) {
        match event {
            Event::Put(entry) => self.insert(entry),
            Event::Delete { key } => self.remove(&key),
        }
    }

    fn insert(&mut self, entry: KeyValue) {
        let index = self
            .chunk_for(&entry.key)
            .min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.push(Arc::new(vec![Arc::new(entry)]));
            self.len = 1;
            return;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|e| e.key.cmp(&entry.key)) {
            Ok(position) => {
                if let Some(slot) = chunk.get_mut(position) {
                    *slot = Arc::new(entry);
                }
            }
            Err(position) => {
                chunk.insert(position, Arc::new(entry));
                self.len += 1;
            }
        }
        if chunk.len() > CHUNK {
            let upper = chunk.split_off(CHUNK / 2);
            self.chunks.insert(index + 1, Arc::new(upper));
        }
    }

    fn remove(&mut self, key: &str) {
        let index = self.chunk_for(key);
        let Some(chunk) = self.chunks.get_mut(index) else {
            return;
        };
        let Ok(position) = chunk.binary_search_by(|e| e.key.as_str().cmp(key)) else {
            return;
        };
        let chunk = Arc::make_mut(chunk);
        chunk.remove(position);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            self.chunks.remove(index);
        } else if left < SMALL
            && self
                .chunks
                .get(index + 1)
                .is_some_and(|next| next.len() + left <= CHUNK)
        {
            let next = self.chunks.remove(index + 1);
            if let Some(chunk) = self.chunks.get_mut(index) {
                Arc::make_mut(chunk).extend(next.iter().cloned());
            }
        }
    }

    /// The chunk that holds `key` if any does: the first whose last key is not before it.
    fn chunk_for(&self, key: &str) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last.key.as_str() < key))
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A place in a map.
struct Cursor<'a> {
    chunks: &'a [Chunk],
    position: usize,
}

impl<'a> Cursor<'a> {
    fn start(entries: &'a Entries) -> Self {
        Self {
            chunks: &entries.chunks,
            position: 0,
        }
    }

    fn entry(&self) -> Option<&'a Arc<KeyValue>> {
        self.chunks.first()?.get(self.position)
    }

    fn step(&mut self) {
        self.position += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.position >= chunk.len())
        {
            self.next_chunk();
        }
    }

    fn next_chunk(&mut self) {
        self.chunks = self.chunks.get(1..).unwrap_or_default();
        self.position = 0;
    }

    /// Moves both past a chunk that both begin with. False if there is none.
    fn skip_shared_chunk(&mut self, other: &mut Self) -> bool {
        let shared = self.position == 0
            && other.position == 0
            && match (self.chunks.first(), other.chunks.first()) {
                (Some(mine), Some(theirs)) => Arc::ptr_eq(mine, theirs),
                _ => false,
            };
        if shared {
            self.next_chunk();
            other.next_chunk();
        }
        shared
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::BTreeMap;

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::*;

    fn entry(key: u16, revision: u64) -> KeyValue {
        KeyValue {
            key: format!("k/{key:05}"),
            value: Bytes::from(revision.to_string()),
            mod_revision: Revision::new(revision),
            create_revision: Revision::new(1),
        }
    }

    /// Plays `changes` (a key, and whether to put it) onto a map and onto a plain model.
    fn play(
        entries: &mut Entries,
        model: &mut BTreeMap<String, KeyValue>,
        changes: &[(u16, bool)],
        from: u64,
    ) {
        for (index, (key, put)) in changes.iter().enumerate() {
            let entry = entry(*key, from + index as u64);
            if *put {
                model.insert(entry.key.clone(), entry.clone());
                entries.apply(Event::Put(entry));
            } else {
                model.remove(&entry.key);
                entries.apply(Event::Delete { key: entry.key });
            }
        }
    }

    proptest! {
        #[test]
        fn behaves_like_a_btree_map(
            first in prop::collection::vec((0u16..2000, any::<bool>()), 0..3000),
            second in prop::collection::vec((0u16..2000, any::<bool>()), 0..300),
            loaded in 0u16..2000,
        ) {
            let mut model: BTreeMap<_, _> = (0..loaded).map(|k| (entry(k, 1).key, entry(k, 1))).collect();
            let mut entries = Entries::from_sorted(model.values().cloned().collect());
            play(&mut entries, &mut model, &first, 2);
            let (older, older_model) = (entries.clone(), model.clone());
            play(&mut entries, &mut model, &second, 10_000);

            prop_assert_eq!(entries.len(), model.len());
            prop_assert!(entries.iter().map(|e| &**e).eq(model.values()));
            prop_assert!(older.iter().map(|e| &**e).eq(older_model.values()), "a copy never changes");
            for key in ["k/00000", "k/00777", "k/01999", "none"] {
                prop_assert_eq!(entries.get(key).map(|e| &**e), model.get(key));
            }
            let under: Vec<_> = entries.under("k/007").map(|e| (**e).clone()).collect();
            let expected: Vec<_> = model.values().filter(|e| e.key.starts_with("k/007")).cloned().collect();
            prop_assert_eq!(under, expected);

            let mut replayed = older_model;
            for change in entries.changes_since(&older) {
                match change {
                    Change::Put(e) => { prop_assert_ne!(replayed.insert(e.key.clone(), (*e).clone()), Some((*e).clone())); }
                    Change::Deleted(e) => { prop_assert!(replayed.remove(&e.key).is_some()); }
                }
            }
            prop_assert_eq!(&replayed, &model);

            let keys: Vec<_> = model.values().map(|e| (e.key.clone(), e.mod_revision)).collect();
            prop_assert_eq!(entries.first_difference(&keys), None);
            if let Some((missing, rest)) = keys.split_first() {
                prop_assert_eq!(entries.first_difference(rest), Some(missing.0.clone()));
            }
        }
    }

    #[test]
    fn a_change_shares_all_other_chunks() {
        let all = (0..10_000).map(|key| entry(key, 1)).collect();
        let older = Entries::from_sorted(all);
        let mut newer = older.clone();
        newer.apply(Event::Put(entry(5_000, 2)));
        let shared = newer
            .chunks
            .iter()
            .zip(&older.chunks)
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(shared, older.chunks.len() - 1);
        assert_eq!(newer.changes_since(&older).len(), 1);
    }
}
