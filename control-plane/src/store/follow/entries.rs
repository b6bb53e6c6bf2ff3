//! The entries under a prefix, in versions that share what they have in common.
//!
//! Copies, changes and comparisons cost as little as those of [`SharedMap`] do; here are only keys that are paths.

use std::fmt;
use std::sync::Arc;

use sg_model::{Difference, Keyed, SharedMap};

use super::super::types::{Event, KeyValue, Revision};

impl Keyed for KeyValue {
    type Key = str;

    fn key(&self) -> &str {
        &self.key
    }
}

/// The entries under a prefix, sorted by key.
#[derive(Clone, Default)]
pub struct Entries(SharedMap<KeyValue>);

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
        Self(SharedMap::from_sorted(sorted))
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The entry of a key.
    pub fn get(&self, key: &str) -> Option<&Arc<KeyValue>> {
        self.0.get(key)
    }

    /// All entries in the order of their keys.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<KeyValue>> {
        self.0.iter()
    }

    /// The entries whose keys start with `prefix`, in order.
    pub fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<KeyValue>> {
        self.0
            .starting(move |key| key < prefix)
            .take_while(move |entry| entry.key.starts_with(prefix))
    }

    /// What turns `older` into this version, in the order of the keys.
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        let differences = self.0.differences(&older.0);
        let changes = differences.map(|difference| match difference {
            Difference::Added(after) | Difference::Replaced { after, .. } => Change::Put(after),
            Difference::Removed(before) => Change::Deleted(before),
        });
        changes.collect()
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
            Event::Put(entry) => self.0.insert(entry),
            Event::Delete { key } => self.0.remove(&key),
        };
    }
}

impl fmt::Debug for Entries {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;

    use super::*;

    fn entry(key: &str, revision: u64) -> KeyValue {
        KeyValue {
            key: key.to_owned(),
            value: Bytes::from(revision.to_string()),
            mod_revision: Revision::new(revision),
            create_revision: Revision::new(1),
        }
    }

    fn some() -> Entries {
        Entries::from_sorted(["a", "b/1", "b/2", "c"].map(|key| entry(key, 1)).into())
    }

    #[test]
    fn a_prefix_selects_the_keys_that_start_with_it() {
        let entries = some();
        let under = |prefix| {
            let keys = entries.under(prefix).map(|e| e.key.clone());
            keys.collect::<Vec<_>>()
        };
        assert_eq!(under("b/"), ["b/1", "b/2"]);
        assert_eq!(under("").len(), 4);
        assert!(under("b/3").is_empty() && under("d").is_empty());
    }

    #[test]
    fn changes_lead_from_one_version_to_the_next() {
        let older = some();
        let mut newer = older.clone();
        newer.apply(Event::Put(entry("b/1", 2)));
        newer.apply(Event::Put(entry("b/3", 3)));
        newer.apply(Event::Delete { key: "a".into() });
        let put = |key, revision| Change::Put(Arc::new(entry(key, revision)));
        let gone = |key| Change::Deleted(Arc::new(entry(key, 1)));
        assert_eq!(
            newer.changes_since(&older),
            [gone("a"), put("b/1", 2), put("b/3", 3)]
        );
        assert_eq!(newer.get("b/3").unwrap().mod_revision, Revision::new(3));
        assert_eq!((older.len(), newer.len()), (4, 4));
    }

    #[test]
    fn the_first_key_that_differs_from_a_list_is_found() {
        let entries = some();
        let keys = |changed: &str, revision| {
            let keys = entries.iter().map(|e| e.key.clone());
            let one = |key: String| {
                let at = if key == changed { revision } else { 1 };
                (key, Revision::new(at))
            };
            keys.map(one).collect::<Vec<_>>()
        };
        assert_eq!(entries.first_difference(&keys("", 1)), None);
        assert_eq!(
            entries.first_difference(&keys("b/2", 2)).as_deref(),
            Some("b/2")
        );
        let all = keys("", 1);
        assert_eq!(entries.first_difference(&all[1..]).as_deref(), Some("a"));
        assert_eq!(entries.first_difference(&all[..3]).as_deref(), Some("c"));
    }
}
