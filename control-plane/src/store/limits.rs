//! What every store refuses, checked before a request reaches one, so that all refuse the same.
//!
//! The figures lie under those of etcd's defaults (128 operations and 1.5 MiB per request), which
//! leaves room for the namespace prefix and for the reads that resolve an unknown outcome.

use std::collections::HashSet;
use std::time::Duration;

use super::error::StoreError;
use super::types::{Compare, Revision, Txn, Write};

/// Most compares, writes, or reads on conflict of one transaction (each, not their sum).
pub const MAX_TXN_OPERATIONS: usize = 100;
/// Longest value, in bytes.
pub const MAX_VALUE_BYTES: usize = 1024 * 1024;
/// Longest key, in bytes.
pub const MAX_KEY_BYTES: usize = 1024;
/// Largest transaction: the sum of its keys and values, in bytes.
pub const MAX_TXN_BYTES: usize = 1_400_000;
/// Shortest expiry of a key.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// Longest expiry of a key: two years.
pub const MAX_TTL: Duration = Duration::from_secs(2 * 366 * 24 * 3600);

/// Checks a transaction.
///
/// # Errors
/// [`StoreError::Invalid`] or [`StoreError::TooLarge`], naming the offending key.
pub fn check_txn(txn: &Txn) -> Result<(), StoreError> {
    for (what, count) in [
        ("compares", txn.compares.len()),
        ("writes", txn.writes.len()),
        ("reads on conflict", txn.read_on_conflict.len()),
    ] {
        if count > MAX_TXN_OPERATIONS {
            return Err(StoreError::TooLarge(format!(
                "{count} {what} in one transaction; at most {MAX_TXN_OPERATIONS} are allowed"
            )));
        }
    }
    let mut bytes = 0;
    for compare in &txn.compares {
        check_compare(compare)?;
        bytes += compare.subject().len();
    }
    for key in &txn.read_on_conflict {
        check_key(key)?;
        bytes += key.len();
    }
    let mut written = HashSet::with_capacity(txn.writes.len());
    for write in &txn.writes {
        check_key(write.key())?;
        if !written.insert(write.key()) {
            return Err(StoreError::Invalid(format!(
                "key {:?} is written twice in one transaction",
                write.key()
            )));
        }
        bytes += write.key().len() + check_write(write)?;
    }
    if bytes > MAX_TXN_BYTES {
        return Err(StoreError::TooLarge(format!(
            "a transaction of {bytes} bytes; at most {MAX_TXN_BYTES} are allowed"
        )));
    }
    Ok(())
}

/// Checks a key.
///
/// # Errors
/// [`StoreError::Invalid`] or [`StoreError::TooLarge`].
pub fn check_key(key: &str) -> Result<(), StoreError> {
    if key.is_empty() {
        return Err(StoreError::Invalid("the key is empty".to_owned()));
    }
    check_prefix(key)
}

/// Checks a prefix to list or watch; the empty one stands for all keys.
///
/// # Errors
/// [`StoreError::TooLarge`].
pub fn check_prefix(prefix: &str) -> Result<(), StoreError> {
    if prefix.len() > MAX_KEY_BYTES {
        return Err(StoreError::TooLarge(format!(
            "a key of {} bytes; at most {MAX_KEY_BYTES} are allowed",
            prefix.len()
        )));
    }
    Ok(())
}

/// Checks the revision of a watch or of a compaction.
///
/// # Errors
/// [`StoreError::Invalid`] for [`Revision::NONE`].
pub fn check_revision(revision: Revision) -> Result<(), StoreError> {
    if revision == Revision::NONE {
        return Err(StoreError::Invalid(
            "revision 0 does not exist; the first one is 1".to_owned(),
        ));
    }
    Ok(())
}

fn check_compare(compare: &Compare) -> Result<(), StoreError> {
    if compare.subject().is_empty() {
        return Err(StoreError::Invalid(
            "a compare names an empty key or prefix".to_owned(),
        ));
    }
    check_prefix(compare.subject())
}

/// Checks value and expiry, and returns the length of the value.
fn check_write(write: &Write) -> Result<usize, StoreError> {
    let Write::Put { key, value, ttl } = write else {
        return Ok(0);
    };
    if value.len() > MAX_VALUE_BYTES {
        return Err(StoreError::TooLarge(format!(
            "the value of {key:?} has {} bytes; at most {MAX_VALUE_BYTES} are allowed",
            value.len()
        )));
    }
    if let Some(ttl) = ttl
        && !(MIN_TTL..=MAX_TTL).contains(ttl)
    {
        return Err(StoreError::Invalid(format!(
            "the expiry of {key:?} is {ttl:?}; it must be between {MIN_TTL:?} and {MAX_TTL:?}"
        )));
    }
    Ok(value.len())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn limits_are_inclusive() {
        let full = (0..MAX_TXN_OPERATIONS).fold(Txn::new(), |txn, index| {
            txn.put(format!("k/{index}"), vec![0; 8])
        });
        check_txn(&full).unwrap();
        assert!(matches!(
            check_txn(&full.put("one-more", vec![])),
            Err(StoreError::TooLarge(_))
        ));
        check_txn(&Txn::new().put("k", vec![0; MAX_VALUE_BYTES])).unwrap();
        assert!(matches!(
            check_txn(&Txn::new().put("k", vec![0; MAX_VALUE_BYTES + 1])),
            Err(StoreError::TooLarge(_))
        ));
        check_key(&"k".repeat(MAX_KEY_BYTES)).unwrap();
        assert!(check_key(&"k".repeat(MAX_KEY_BYTES + 1)).is_err());
    }

    #[test]
    fn malformed_transactions_name_the_key() {
        let twice = Txn::new().put("same", vec![1]).delete("same");
        let Err(StoreError::Invalid(text)) = check_txn(&twice) else {
            panic!("a duplicate key must be refused");
        };
        assert!(text.contains("\"same\""), "{text}");
        for txn in [
            Txn::new().put("", vec![1]),
            Txn::new().when_absent(""),
            Txn::new().put_for("k", vec![], Duration::from_millis(999)),
            Txn::new().put_for("k", vec![], MAX_TTL + Duration::from_secs(1)),
        ] {
            assert!(
                matches!(check_txn(&txn), Err(StoreError::Invalid(_))),
                "{txn:?}"
            );
        }
    }
}
