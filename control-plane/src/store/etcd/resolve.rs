//! What became of a transaction whose answer was lost.
//!
//! The rule has two halves.
//!
//! 1. A transaction is sent again only if it is *guarded*: one of its compares cannot hold any more
//!    once it was applied (it creates a key that must be absent, or changes one that must be at a
//!    revision). So it is never applied twice, and success of the second attempt means that the
//!    first never happened.
//! 2. If the second attempt conflicts, or a transaction was not guarded, its keys are read back. It
//!    was ours if every put is there byte for byte, all at the same revision, newer than anything
//!    seen before the first attempt, and every delete is absent. It was not if a key is older than
//!    that. Otherwise the outcome stays unknown, and the caller decides (an idempotency key tells).
//!
//! Two writers that put the same bytes under the same keys cannot be told apart; values therefore
//! carry the id of what they stand for.

use super::super::types::{Compare, KeyValue, Revision, Txn, Write};

/// What reading back showed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trace {
    Committed(Revision),
    NotCommitted,
    Unclear,
}

/// Whether applying the transaction makes one of its own compares fail.
pub(super) fn guarded(txn: &Txn) -> bool {
    let puts = |key: &str| {
        txn.writes
            .iter()
            .any(|write| matches!(write, Write::Put { .. }) && write.key() == key)
    };
    let deletes = |key: &str| {
        txn.writes
            .iter()
            .any(|write| matches!(write, Write::Delete { .. }) && write.key() == key)
    };
    txn.compares.iter().any(|compare| match compare {
        Compare::Absent { key } => puts(key),
        Compare::ModRevision { key, revision } => {
            puts(key) || (*revision != Revision::NONE && deletes(key))
        }
        Compare::Present { key } => deletes(key),
        Compare::PrefixEmpty { prefix } => txn.writes.iter().any(|write| {
            matches!(write, Write::Put { .. }) && write.key().starts_with(prefix.as_str())
        }),
    })
}

/// Judges what was read back: `current` holds the written keys in the order of the writes, and
/// `before` is the newest revision seen before the first attempt.
pub(super) fn trace(writes: &[Write], current: &[Option<KeyValue>], before: Revision) -> Trace {
    let untouched = current
        .iter()
        .flatten()
        .any(|entry| entry.mod_revision <= before);
    if untouched {
        return Trace::NotCommitted;
    }
    let mut revision = None;
    for (write, entry) in writes.iter().zip(current) {
        let fits = match (write, entry) {
            (Write::Put { value, .. }, Some(entry)) => {
                *value == entry.value
                    && *revision.get_or_insert(entry.mod_revision) == entry.mod_revision
            }
            (Write::Delete { .. }, None) => true,
            (Write::Put { .. }, None) | (Write::Delete { .. }, Some(_)) => false,
        };
        if !fits {
            return Trace::Unclear;
        }
    }
    // Deletes alone leave nothing that could be recognised.
    revision.map_or(Trace::Unclear, Trace::Committed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;

    fn entry(value: &'static str, revision: u64) -> Option<KeyValue> {
        Some(KeyValue {
            key: String::new(),
            value: Bytes::from(value),
            mod_revision: Revision::new(revision),
            create_revision: Revision::new(1),
        })
    }

    #[test]
    fn a_guard_is_a_compare_that_the_writes_break() {
        let at = Revision::new(7);
        let present = |key: &str| Compare::Present {
            key: key.to_owned(),
        };
        for (txn, expected) in [
            (Txn::new().put("a", "1"), false),
            (Txn::new().when_absent("a").put("a", "1"), true),
            (Txn::new().when_absent("a").put("b", "1"), false),
            (Txn::new().when_absent("a").delete("a"), false),
            (Txn::new().when_revision("a", at).put("a", "1"), true),
            (Txn::new().when_revision("a", at).delete("a"), true),
            (
                Txn::new().when_revision("a", Revision::NONE).delete("a"),
                false,
            ),
            (Txn::new().when_revision("format", at).put("a", "1"), false),
            (Txn::new().when(present("a")).put("a", "1"), false),
            (Txn::new().when(present("a")).delete("a"), true),
        ] {
            assert_eq!(guarded(&txn), expected, "{txn:?}");
        }
    }

    #[test]
    fn a_trace_needs_every_byte_at_one_new_revision() {
        let txn = Txn::new().put("a", "1").put("b", "2").delete("c");
        let before = Revision::new(10);
        let judge = |current: [Option<KeyValue>; 3]| trace(&txn.writes, &current, before);
        assert_eq!(
            judge([entry("1", 12), entry("2", 12), None]),
            Trace::Committed(Revision::new(12))
        );
        assert_eq!(
            judge([entry("1", 10), entry("2", 12), None]),
            Trace::NotCommitted
        );
        assert_eq!(judge([None, None, entry("x", 3)]), Trace::NotCommitted);
        assert_eq!(
            judge([entry("1", 11), entry("2", 12), None]),
            Trace::Unclear
        );
        assert_eq!(
            judge([entry("x", 12), entry("2", 12), None]),
            Trace::Unclear
        );
        assert_eq!(judge([None, entry("2", 12), None]), Trace::Unclear);
        assert_eq!(
            judge([entry("1", 12), entry("2", 12), entry("3", 13)]),
            Trace::Unclear
        );
        let only_delete = Txn::new().delete("c");
        assert_eq!(trace(&only_delete.writes, &[None], before), Trace::Unclear);
    }
}
