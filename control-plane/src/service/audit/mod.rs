//! The audit trail: one record for each change, written in its transaction, each carrying the hash of
//! the one before. A change without a record, or a record that is missing or altered, shows.
//!
//! [`chain`] is the end of the chain, which every change moves on; [`diff`] works out what a change
//! changes, from the stored values alone; [`read`] shows records, [`names`] by name too; [`verify`] follows the chain;
//! [`trim`] drops the oldest. The chain's end and the place where it now begins are sealed under the
//! store's key, so that whoever can write the store alone cannot make a chain of his own. Not shown
//! is a store that was put back as a whole: note the number and the hash of a verification elsewhere.

pub mod chain;
pub mod diff;
pub mod names;
pub mod read;
#[cfg(test)]
mod tests;
pub mod trim;
pub mod verify;

use prost::Message as _;
use sg_proto::store as wire;
use sg_runtime::crypto;
use sg_runtime::sealed::KeyRing;

use super::ServiceError;
use crate::keys;
use crate::store::{KeyValue, Revision, Store};

/// A place in the chain: a record's number and the hash of its stored bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// 0: before the first record.
    pub number: u64,
    /// SHA-256; zeros before the first record.
    pub sha256: [u8; 32],
}

impl Mark {
    /// Before the first record.
    pub const NONE: Self = Self {
        number: 0,
        sha256: [0; 32],
    };

    /// The place of a record that follows this one.
    #[must_use]
    pub fn next(&self, record: &[u8]) -> Self {
        Self {
            number: self.number + 1,
            sha256: crypto::sha256(record),
        }
    }

    /// As it is stored under `key`.
    #[must_use]
    pub fn seal(&self, ring: &KeyRing, key: &str) -> Vec<u8> {
        let mark = wire::AuditMark {
            number: self.number,
            sha256: self.sha256.to_vec(),
        };
        let ciphertext = ring.seal(key.as_bytes(), &mark.encode_to_vec());
        wire::SealedSecret { ciphertext }.encode_to_vec()
    }

    /// Reads what [`Mark::seal`] made.
    ///
    /// # Errors
    /// It was not made here, or for another key.
    pub fn open(ring: &KeyRing, entry: &KeyValue) -> Result<Self, ServiceError> {
        let broken = || {
            ServiceError::Internal(format!(
                "the audit chain's mark {} does not open",
                entry.key
            ))
        };
        let sealed = wire::SealedSecret::decode(entry.value.as_ref())?;
        let bytes = ring
            .open(entry.key.as_bytes(), &sealed.ciphertext)
            .map_err(|_| broken())?;
        let mark = wire::AuditMark::decode(bytes.expose().as_slice())?;
        Ok(Self {
            number: mark.number,
            sha256: mark.sha256.try_into().map_err(|_| broken())?,
        })
    }

    /// The mark under `key`, and its revision.
    ///
    /// # Errors
    /// It does not open, or the store failed.
    pub async fn read(
        store: &dyn Store,
        ring: &KeyRing,
        key: &str,
    ) -> Result<(Self, Revision), ServiceError> {
        match store.get(key).await?.1 {
            None => Ok((Self::NONE, Revision::NONE)),
            Some(entry) => Ok((Self::open(ring, &entry)?, entry.mod_revision)),
        }
    }
}

/// The records of one bucket, oldest first.
async fn bucket(store: &dyn Store, bucket: u64) -> Result<Vec<(u64, KeyValue)>, ServiceError> {
    let (_, entries) = store.list(&keys::audit_bucket(bucket)).await?;
    let numbered = |entry: KeyValue| Some((keys::audit_number(&entry.key)?, entry));
    Ok(entries.into_iter().filter_map(numbered).collect())
}
