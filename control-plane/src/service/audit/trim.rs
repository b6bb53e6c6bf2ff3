//! Drops the oldest records, and moves the place where the chain begins along in the same
//! transaction.

use std::time::Duration;

use prost::Message as _;
use sg_model::Timestamp;
use sg_proto::convert::timestamp_from_wire;
use sg_proto::store as wire;
use sg_runtime::sealed::KeyRing;

use super::{Mark, bucket};
use crate::ids;
use crate::keys;
use crate::service::ServiceError;
use crate::store::{Store, Txn, TxnOutcome};

/// Records dropped in one transaction, which has a place for the beginning of the chain too.
const BATCH: usize = 90;
/// Transactions of one round.
const BATCHES: usize = 200;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// At most so many records.
    pub records: u64,
    /// None older than this.
    pub age: Duration,
}

/// Drops what is too much or too old; answers how many. The last record always stays.
///
/// # Errors
/// The store failed.
pub async fn trim(store: &dyn Store, ring: &KeyRing, kept: Kept) -> Result<u64, ServiceError> {
    let (head, _) = Mark::read(store, ring, keys::CHAIN_HEAD).await?;
    let age = u64::try_from(kept.age.as_millis()).unwrap_or(u64::MAX);
    let oldest = Timestamp(ids::now().0.saturating_sub(age));
    let too_many = head.number.saturating_sub(kept.records.max(1));
    let mut dropped = 0;
    for _ in 0..BATCHES {
        let (anchor, revision) = Mark::read(store, ring, keys::CHAIN_ANCHOR).await?;
        let mut at = anchor;
        let mut txn = Txn::new().when_revision(keys::CHAIN_ANCHOR, revision);
        let first = anchor.number + 1;
        if first >= head.number {
            break;
        }
        let entries = bucket(store, keys::audit_bucket_of(first)).await?;
        for (number, entry) in entries
            .into_iter()
            .filter(|(number, _)| *number >= first)
            .take(BATCH)
        {
            let goes = number <= too_many || is_before(entry.value.as_ref(), oldest);
            if !goes || number >= head.number {
                break;
            }
            if number != at.number + 1 {
                tracing::error!(
                    number = at.number + 1,
                    "the audit chain has a gap where its oldest records are dropped"
                );
            }
            at = Mark {
                number,
                ..at.next(entry.value.as_ref())
            };
            txn = txn.delete(entry.key);
        }
        if at == anchor {
            break;
        }
        let txn = txn.put(keys::CHAIN_ANCHOR, at.seal(ring, keys::CHAIN_ANCHOR));
        match store.txn(txn).await? {
            TxnOutcome::Committed(_) => dropped += at.number - anchor.number,
            // Another control plane does the same.
            TxnOutcome::Conflict { .. } => break,
        }
    }
    Ok(dropped)
}

fn is_before(record: &[u8], oldest: Timestamp) -> bool {
    let record = wire::Audit::decode(record).unwrap_or_default();
    let time = record
        .time
        .as_ref()
        .map(|time| timestamp_from_wire("time", time));
    time.and_then(Result::ok).unwrap_or_default() < oldest
}
