//! A sorted map whose copies are cheap and share what they have in common.
//!
//! A change of one entry must not cost a copy of 100,000: the map is a list of chunks behind `Arc`s, and a
//! change copies one chunk and the list of chunks. Comparing two versions skips the chunks that they share.
//! Not a cache and not a queue: whoever keeps one bounds it.

use std::fmt;
use std::sync::Arc;

/// A chunk is split when it holds more than this.
const CHUNK: usize = 256;
/// A chunk smaller than this is merged with a neighbour.
const SMALL: usize = CHUNK / 8;

/// What can be an entry: it carries its key.
pub trait Keyed {
    /// What entries are sorted and found by.
    type Key: Ord + ?Sized;

    /// The key; never changes.
    fn key(&self) -> &Self::Key;
}

type Chunk<T> = Arc<Vec<Arc<T>>>;

/// Entries sorted by their keys.
pub struct SharedMap<T> {
    /// None is empty; their keys rise from chunk to chunk.
    chunks: Vec<Chunk<T>>,
    len: usize,
}

/// A difference between two versions of a map.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference<T> {
    /// The key is new.
    Added(Arc<T>),
    /// The key was there with another entry.
    Replaced {
        /// What was there.
        before: Arc<T>,
        /// What is there now.
        after: Arc<T>,
    },
    /// The key is gone; this is its last entry.
    Removed(Arc<T>),
}

impl<T> Difference<T> {
    /// The entry in the older version.
    #[must_use]
    pub fn before(&self) -> Option<&Arc<T>> {
        match self {
            Self::Added(_) => None,
            Self::Replaced { before, .. } | Self::Removed(before) => Some(before),
        }
    }

    /// The entry in the newer version.
    #[must_use]
    pub fn after(&self) -> Option<&Arc<T>> {
        match self {
            Self::Added(after) | Self::Replaced { after, .. } => Some(after),
            Self::Removed(_) => None,
        }
    }
}

impl<T: Keyed> Difference<T> {
    /// The key that changed.
    #[must_use]
    pub fn key(&self) -> &T::Key {
        match self {
            Self::Added(entry) | Self::Replaced { after: entry, .. } | Self::Removed(entry) => {
                entry.key()
            }
        }
    }
}

impl<T: Keyed> SharedMap<T> {
    /// Takes over a list that is sorted by key without duplicates.
    #[must_use]
    pub fn from_sorted(sorted: Vec<T>) -> Self {
        let len = sorted.len();
        let mut chunks = Vec::with_capacity(len / CHUNK * 2 + 1);
        let mut rest = sorted.into_iter().map(Arc::new).peekable();
        while rest.peek().is_some() {
            chunks.push(Arc::new(rest.by_ref().take(CHUNK / 2).collect()));
        }
        Self { chunks, len }
    }

    /// How many entries there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The entry of a key.
    #[must_use]
    pub fn get(&self, key: &T::Key) -> Option<&Arc<T>> {
        let chunk = self.chunks.get(self.chunk_for(key))?;
        let position = chunk.binary_search_by(|e| e.key().cmp(key)).ok()?;
        chunk.get(position)
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<T>> {
        self.chunks.iter().flat_map(|chunk| chunk.iter())
    }

    /// The entries from the first one on whose key `is_before` is false of. It must be true of all keys up to
    /// some point, and of none after it.
    pub fn starting(&self, is_before: impl Fn(&T::Key) -> bool) -> impl Iterator<Item = &Arc<T>> {
        let chunk = self
            .chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| is_before(last.key())));
        let rest = self.chunks.get(chunk..).unwrap_or_default();
        let skipped = rest
            .first()
            .map_or(0, |chunk| chunk.partition_point(|e| is_before(e.key())));
        rest.iter().flat_map(|chunk| chunk.iter()).skip(skipped)
    }

    /// Adds an entry, or replaces the one of the same key; answers with that.
    pub fn insert(&mut self, entry: impl Into<Arc<T>>) -> Option<Arc<T>> {
        let entry = entry.into();
        let index = self
            .chunk_for(entry.key())
            .min(self.chunks.len().saturating_sub(1));
        let Some(chunk) = self.chunks.get_mut(index) else {
            self.chunks.push(Arc::new(vec![entry]));
            self.len = 1;
            return None;
        };
        let chunk = Arc::make_mut(chunk);
        match chunk.binary_search_by(|e| e.key().cmp(entry.key())) {
            Ok(position) => {
                return chunk
                    .get_mut(position)
                    .map(|slot| std::mem::replace(slot, entry));
            }
            Err(position) => {
                chunk.insert(position, entry);
                self.len += 1;
            }
        }
        if chunk.len() > CHUNK {
            let upper = chunk.split_off(CHUNK / 2);
            self.chunks.insert(index + 1, Arc::new(upper));
        }
        None
    }

    /// Takes the entry of a key off.
    pub fn remove(&mut self, key: &T::Key) -> Option<Arc<T>> {
        let index = self.chunk_for(key);
        let chunk = self.chunks.get_mut(index)?;
        let position = chunk.binary_search_by(|e| e.key().cmp(key)).ok()?;
        let chunk = Arc::make_mut(chunk);
        let removed = chunk.remove(position);
        self.len -= 1;
        let left = chunk.len();
        if left == 0 {
            self.chunks.remove(index);
        } else if left < SMALL {
            self.merge(index);
        }
        Some(removed)
    }

    /// Merges a small chunk with the next one or else the one before, if both fit into one.
    fn merge(&mut self, index: usize) {
        let fits = |first: usize| {
            let both = self.chunks.get(first..)?.get(..2)?;
            (both.iter().map(|chunk| chunk.len()).sum::<usize>() <= CHUNK).then_some(first)
        };
        let first = fits(index).or_else(|| fits(index.checked_sub(1)?));
        if let Some(first) = first {
            let second = self.chunks.remove(first + 1);
            if let Some(chunk) = self.chunks.get_mut(first) {
                Arc::make_mut(chunk).extend(second.iter().cloned());
            }
        }
    }

    /// The chunk that holds `key` if any does: the first whose last key is not before it.
    fn chunk_for(&self, key: &T::Key) -> usize {
        self.chunks
            .partition_point(|chunk| chunk.last().is_some_and(|last| last.key() < key))
    }
}

impl<T: Keyed + PartialEq> SharedMap<T> {
    /// What turns `older` into this version, in the order of the keys.
    pub fn differences<'a>(&'a self, older: &'a Self) -> impl Iterator<Item = Difference<T>> {
        let (mut old, mut new) = (Cursor::start(older), Cursor::start(self));
        std::iter::from_fn(move || {
            loop {
                while old.skip_shared_chunk(&mut new) {}
                let order = match (old.entry(), new.entry()) {
                    (None, None) => return None,
                    (Some(_), None) => std::cmp::Ordering::Less,
                    (None, Some(_)) => std::cmp::Ordering::Greater,
                    (Some(before), Some(after)) => before.key().cmp(after.key()),
                };
                match order {
                    std::cmp::Ordering::Less => return old.step().map(Difference::Removed),
                    std::cmp::Ordering::Greater => return new.step().map(Difference::Added),
                    std::cmp::Ordering::Equal => {}
                }
                let (before, after) = (old.step()?, new.step()?);
                if !Arc::ptr_eq(&before, &after) && before != after {
                    return Some(Difference::Replaced { before, after });
                }
            }
        })
    }
}

impl<T> Clone for SharedMap<T> {
    fn clone(&self) -> Self {
        Self {
            chunks: self.chunks.clone(),
            len: self.len,
        }
    }
}

impl<T> Default for SharedMap<T> {
    fn default() -> Self {
        Self {
            chunks: Vec::new(),
            len: 0,
        }
    }
}

impl<T: Keyed + PartialEq> PartialEq for SharedMap<T> {
    fn eq(&self, other: &Self) -> bool {
        self.len == other.len && self.differences(other).next().is_none()
    }
}

impl<T: Keyed + Eq> Eq for SharedMap<T> {}

impl<T: Keyed> FromIterator<T> for SharedMap<T> {
    /// Of entries with the same key the last one stays.
    fn from_iter<I: IntoIterator<Item = T>>(entries: I) -> Self {
        let mut map = Self::default();
        for entry in entries {
            map.insert(entry);
        }
        map
    }
}

impl<T: Keyed + fmt::Debug> fmt::Debug for SharedMap<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// A place in a map.
struct Cursor<'a, T> {
    chunks: &'a [Chunk<T>],
    position: usize,
}

impl<'a, T> Cursor<'a, T> {
    fn start(map: &'a SharedMap<T>) -> Self {
        Self {
            chunks: &map.chunks,
            position: 0,
        }
    }

    fn entry(&self) -> Option<&'a Arc<T>> {
        self.chunks.first()?.get(self.position)
    }

    /// The entry here; moves on.
    fn step(&mut self) -> Option<Arc<T>> {
        let entry = self.entry().map(Arc::clone);
        self.position += 1;
        if self
            .chunks
            .first()
            .is_some_and(|chunk| self.position >= chunk.len())
        {
            self.next_chunk();
        }
        entry
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
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Entry {
        key: String,
        value: u64,
    }

    impl Keyed for Entry {
        type Key = str;

        fn key(&self) -> &str {
            &self.key
        }
    }

    fn entry(key: u16, value: u64) -> Entry {
        Entry {
            key: format!("k/{key:05}"),
            value,
        }
    }

    type Model = BTreeMap<String, Entry>;

    /// Plays `changes` (a key, and whether to put it) onto a map and onto a plain model.
    fn play(map: &mut SharedMap<Entry>, model: &mut Model, changes: &[(u16, bool)], from: u64) {
        for (index, (key, put)) in changes.iter().enumerate() {
            let entry = entry(*key, from + index as u64);
            if *put {
                let before = model.insert(entry.key.clone(), entry.clone());
                assert_eq!(map.insert(entry).as_deref(), before.as_ref());
            } else {
                let before = model.remove(&entry.key);
                assert_eq!(map.remove(&entry.key).as_deref(), before.as_ref());
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
            let mut model: Model = (0..loaded).map(|k| (entry(k, 1).key, entry(k, 1))).collect();
            let mut map = SharedMap::from_sorted(model.values().cloned().collect());
            play(&mut map, &mut model, &first, 2);
            let (older, older_model) = (map.clone(), model.clone());
            play(&mut map, &mut model, &second, 10_000);

            prop_assert_eq!(map.len(), model.len());
            prop_assert!(map.iter().map(|e| &**e).eq(model.values()));
            prop_assert!(older.iter().map(|e| &**e).eq(older_model.values()), "a copy never changes");
            for key in ["k/00000", "k/00777", "k/01999", "none"] {
                prop_assert_eq!(map.get(key).map(|e| &**e), model.get(key));
                prop_assert!(map.starting(|k| k < key).map(|e| &**e).eq(model.range(key.to_owned()..).map(|(_, e)| e)));
            }
            prop_assert_eq!(map == older, model == older_model);
            prop_assert_eq!(model.values().cloned().collect::<SharedMap<_>>(), map.clone());

            let mut replayed = older_model;
            for difference in map.differences(&older) {
                let before = match difference.after() {
                    Some(after) => replayed.insert(after.key.clone(), (**after).clone()),
                    None => replayed.remove(difference.key()),
                };
                prop_assert_eq!(difference.before().map(|e| &**e), before.as_ref());
                prop_assert_ne!(difference.before(), difference.after());
            }
            prop_assert_eq!(&replayed, &model);
        }
    }

    #[test]
    fn what_little_is_left_of_many_entries_is_held_in_few_chunks() {
        let all = || SharedMap::from_sorted((0..10_000).map(|key| entry(key, 1)).collect());
        let leaves = |keys: Vec<u16>| {
            let mut map = all();
            for key in keys.into_iter().filter(|key| key % 128 != 64) {
                map.remove(&entry(key, 1).key);
            }
            assert_eq!(map.len(), 78);
            map.chunks.len()
        };
        // From either end.
        assert!(leaves((0..10_000).collect()) < 10);
        assert!(leaves((0..10_000).rev().collect()) < 10);
    }

    #[test]
    fn a_change_shares_all_other_chunks() {
        let older = SharedMap::from_sorted((0..10_000).map(|key| entry(key, 1)).collect());
        let mut newer = older.clone();
        newer.insert(entry(5_000, 2));
        let shared = newer
            .chunks
            .iter()
            .zip(&older.chunks)
            .filter(|(a, b)| Arc::ptr_eq(a, b))
            .count();
        assert_eq!(shared, older.chunks.len() - 1);
        assert_eq!(newer.differences(&older).count(), 1);
    }
}
