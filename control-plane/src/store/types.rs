//! The words of the store: revisions, keys with values, transactions and watch events.
//!
//! Pure data; what a store does with them is in the trait in [`super`], what it refuses is in
//! [`super::limits`].

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;

/// A point in the history of a store.
///
/// An empty store is at revision 1, and every transaction that changes anything raises the
/// revision by exactly one. 0 means "none": no key has it and no watch may start there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Revision(u64);

impl Revision {
    /// Before all history: the mod revision of a key that does not exist.
    pub const NONE: Self = Self(0);
    /// The revision of an empty store.
    pub const FIRST: Self = Self(1);

    /// Wraps a raw number, as read from an etag or from the wire.
    pub const fn new(raw: u64) -> Self {
        Self(raw)
    }

    /// The raw number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The revision after this one.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// This revision moved back by `count`, not below [`Revision::NONE`].
    #[must_use]
    pub const fn back(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count))
    }
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Revision {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

/// A key as it stands at some revision.
///
/// `Debug` shows the length of the value only: values hold sealed secrets and token hashes.
#[derive(Clone, PartialEq, Eq)]
pub struct KeyValue {
    /// The key, without the store's own prefix.
    pub key: String,
    /// The value, at most [`super::limits::MAX_VALUE_BYTES`].
    pub value: Bytes,
    /// The revision of the last write; the etag of the object in the API.
    pub mod_revision: Revision,
    /// The revision that created the key since it was last absent.
    pub create_revision: Revision,
}

impl fmt::Debug for KeyValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value_bytes", &self.value.len())
            .field("mod_revision", &self.mod_revision.0)
            .field("create_revision", &self.create_revision.0)
            .finish()
    }
}

/// A condition of a transaction. All of them must hold for the writes to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key exists and was last written at exactly this revision.
    ModRevision {
        /// The key to look at.
        key: String,
        /// The revision it must have; [`Revision::NONE`] is the same as [`Compare::Absent`].
        revision: Revision,
    },
    /// The key does not exist.
    Absent {
        /// The key to look at.
        key: String,
    },
    /// The key exists, at whatever revision.
    Present {
        /// The key to look at.
        key: String,
    },
    /// No key starts with this prefix ("the gateway has no destinations").
    PrefixEmpty {
        /// The prefix; it must not be empty.
        prefix: String,
    },
}

impl Compare {
    /// The key, or the prefix, that this condition is about.
    pub fn subject(&self) -> &str {
        match self {
            Self::ModRevision { key, .. } | Self::Absent { key } | Self::Present { key } => key,
            Self::PrefixEmpty { prefix } => prefix,
        }
    }
}

/// One change of a transaction. A key may be written at most once per transaction.
#[derive(Clone, PartialEq, Eq)]
pub enum Write {
    /// Creates or replaces a key.
    Put {
        /// The key.
        key: String,
        /// The whole new value.
        value: Bytes,
        /// If set, the key deletes itself after this time (see [`super::Store::txn`]); if not,
        /// an earlier expiry of the key is lifted.
        ttl: Option<Duration>,
    },
    /// Deletes a key; deleting an absent key changes nothing.
    Delete {
        /// The key.
        key: String,
    },
}

impl Write {
    /// The key that this change is about.
    pub fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete { key } => key,
        }
    }
}

impl fmt::Debug for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Put { key, value, ttl } => f
                .debug_struct("Put")
                .field("key", key)
                .field("value_bytes", &value.len())
                .field("ttl", ttl)
                .finish(),
            Self::Delete { key } => f.debug_struct("Delete").field("key", key).finish(),
        }
    }
}

/// A transaction: if all compares hold, all writes happen at one new revision, else none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Txn {
    /// The conditions, judged together at one revision.
    pub compares: Vec<Compare>,
    /// The changes; none makes the transaction a consistent read of its compares.
    pub writes: Vec<Write>,
    /// Keys to read back, at the same revision, if a compare fails.
    pub read_on_conflict: Vec<String>,
}

impl Txn {
    /// An empty transaction, to be filled with the methods below.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a condition.
    #[must_use]
    pub fn when(mut self, compare: Compare) -> Self {
        self.compares.push(compare);
        self
    }

    /// Adds: `key` must be absent, and is read back on conflict.
    #[must_use]
    pub fn when_absent(mut self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.read_on_conflict.push(key.clone());
        self.when(Compare::Absent { key })
    }

    /// Adds: `key` must be at `revision`, and is read back on conflict.
    #[must_use]
    pub fn when_revision(mut self, key: impl Into<String>, revision: Revision) -> Self {
        let key = key.into();
        self.read_on_conflict.push(key.clone());
        self.when(Compare::ModRevision { key, revision })
    }

    /// Adds a put without expiry.
    #[must_use]
    pub fn put(self, key: impl Into<String>, value: impl Into<Bytes>) -> Self {
        self.write(Write::Put {
            key: key.into(),
            value: value.into(),
            ttl: None,
        })
    }

    /// Adds a put of a key that deletes itself after `ttl`.
    #[must_use]
    pub fn put_for(self, key: impl Into<String>, value: impl Into<Bytes>, ttl: Duration) -> Self {
        self.write(Write::Put {
            key: key.into(),
            value: value.into(),
            ttl: Some(ttl),
        })
    }

    /// Adds a delete.
    #[must_use]
    pub fn delete(self, key: impl Into<String>) -> Self {
        self.write(Write::Delete { key: key.into() })
    }

    /// Adds a change.
    #[must_use]
    pub fn write(mut self, write: Write) -> Self {
        self.writes.push(write);
        self
    }
}

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TxnOutcome {
    /// All writes happened. The revision is that of the writes, or the current one if they
    /// changed nothing.
    Committed(Revision),
    /// A compare failed and nothing was written.
    Conflict {
        /// The revision at which the compares were judged.
        revision: Revision,
        /// The keys of `read_on_conflict` in their order, as they were at that revision.
        current: Vec<(String, Option<KeyValue>)>,
    },
}

impl TxnOutcome {
    /// The revision of the commit, if it was one.
    pub fn committed(&self) -> Option<Revision> {
        match self {
            Self::Committed(revision) => Some(*revision),
            Self::Conflict { .. } => None,
        }
    }
}

/// One change of one key, seen by a watch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The key was created or replaced.
    Put(KeyValue),
    /// The key was deleted or has expired.
    Delete {
        /// The key.
        key: String,
    },
}

impl Event {
    /// The key that changed.
    pub fn key(&self) -> &str {
        match self {
            Self::Put(entry) => &entry.key,
            Self::Delete { key } => key,
        }
    }
}

/// All changes of one revision under the watched prefix, in the order of the transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision that made these changes.
    pub revision: Revision,
    /// The changes; never empty, at most one per key.
    pub events: Vec<Event>,
}

/// Which store this is and how it does; see [`super::Store::health`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// The identity of the stored history: it changes when another cluster or file answers.
    pub cluster_id: u64,
    /// The newest revision.
    pub revision: Revision,
    /// What answered, for people: the endpoint and its version, or the file. No secret.
    pub detail: String,
}
