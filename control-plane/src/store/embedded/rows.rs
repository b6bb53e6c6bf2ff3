//! How rows of the store's file are encoded; the layout is drawn in [`super::tables`].
//!
//! Own bytes rather than the database's composed types, whose encoding a later major version of
//! it changes.

use bytes::Bytes;

use super::super::types::{Event, KeyValue, Revision};
use super::state::Expiry;

/// Bytes before the value in `kv`.
const KV_HEAD: usize = 16;
/// Bytes before the key in `log`.
const LOG_HEAD: usize = 13;

/// A row of `kv`.
pub(super) fn encode_entry(created: Revision, modified: Revision, value: &[u8]) -> Vec<u8> {
    let mut row = Vec::with_capacity(KV_HEAD + value.len());
    row.extend_from_slice(&created.get().to_be_bytes());
    row.extend_from_slice(&modified.get().to_be_bytes());
    row.extend_from_slice(value);
    row
}

pub(super) fn decode_entry(key: &str, row: &[u8]) -> Result<KeyValue, redb::Error> {
    Ok(KeyValue {
        key: key.to_owned(),
        create_revision: Revision::new(u64_at(row, 0)?),
        mod_revision: Revision::new(u64_at(row, 8)?),
        value: Bytes::copy_from_slice(row.get(KV_HEAD..).ok_or_else(malformed)?),
    })
}

/// The create revision in a row of `kv`.
pub(super) fn created(row: &[u8]) -> Result<Revision, redb::Error> {
    u64_at(row, 0).map(Revision::new)
}

/// The mod revision in a row of `kv`.
pub(super) fn modified(row: &[u8]) -> Result<Revision, redb::Error> {
    u64_at(row, 8).map(Revision::new)
}

/// A row of `log`: a put with its create revision and value, or a delete.
pub(super) fn encode_event(key: &str, put: Option<(Revision, &[u8])>) -> Vec<u8> {
    let (kind, created, value) = match put {
        Some((created, value)) => (1, created, value),
        None => (0, Revision::NONE, &[][..]),
    };
    let mut row = Vec::with_capacity(LOG_HEAD + key.len() + value.len());
    row.push(kind);
    row.extend_from_slice(&created.get().to_be_bytes());
    // Keys are at most `limits::MAX_KEY_BYTES` long.
    row.extend_from_slice(&u32::try_from(key.len()).unwrap_or(u32::MAX).to_be_bytes());
    row.extend_from_slice(key.as_bytes());
    row.extend_from_slice(value);
    row
}

pub(super) fn decode_event(revision: Revision, row: &[u8]) -> Result<Event, redb::Error> {
    let length: [u8; 4] = row
        .get(9..LOG_HEAD)
        .and_then(|bytes| bytes.try_into().ok())
        .ok_or_else(malformed)?;
    let length = usize::try_from(u32::from_be_bytes(length)).map_err(|_| malformed())?;
    let rest = row.get(LOG_HEAD..).ok_or_else(malformed)?;
    let (key, value) = rest.split_at_checked(length).ok_or_else(malformed)?;
    let key = std::str::from_utf8(key)
        .map_err(|_| malformed())?
        .to_owned();
    Ok(match row.first() {
        Some(0) => Event::Delete { key },
        _ => Event::Put(KeyValue {
            key,
            value: Bytes::copy_from_slice(value),
            mod_revision: revision,
            create_revision: Revision::new(u64_at(row, 1)?),
        }),
    })
}

/// A row of `expiry`.
pub(super) fn encode_expiry(expiry: Expiry) -> Vec<u8> {
    let mut row = Vec::with_capacity(16);
    row.extend_from_slice(&expiry.deadline_ms.to_be_bytes());
    row.extend_from_slice(&expiry.ttl_ms.to_be_bytes());
    row
}

pub(super) fn decode_expiry(row: &[u8]) -> Result<Expiry, redb::Error> {
    Ok(Expiry {
        deadline_ms: u64_at(row, 0)?,
        ttl_ms: u64_at(row, 8)?,
    })
}

fn u64_at(row: &[u8], at: usize) -> Result<u64, redb::Error> {
    row.get(at..at + 8)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes)
        .ok_or_else(malformed)
}

fn malformed() -> redb::Error {
    redb::Error::Corrupted("a row is shorter than its layout".to_owned())
}
