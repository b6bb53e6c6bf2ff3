//! Follows the chain from where it begins to where it ends.

use prost::Message as _;
use sg_proto::store as wire;

use super::{Mark, bucket};
use crate::keys;
use crate::service::{Core, ServiceError};

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verification {
    /// Number of the oldest record that is kept.
    pub first: u64,
    /// Records that hold.
    pub records: u64,
    /// Where the chain ends, according to the store.
    pub last: Mark,
    /// The record where it does not hold, and why.
    pub broken: Option<(u64, String)>,
}

impl Core {
    /// Reads the whole chain.
    ///
    /// # Errors
    /// The store failed. A chain that does not hold is no failure but a finding.
    pub async fn verify_audit(&self) -> Result<Verification, ServiceError> {
        // While it is read it may lose its beginning; then once more from the new one.
        loop {
            let (anchor, revision) =
                Mark::read(&*self.store, &self.key, keys::CHAIN_ANCHOR).await?;
            let found = self.verify_from(anchor).await?;
            let (_, now) = Mark::read(&*self.store, &self.key, keys::CHAIN_ANCHOR).await?;
            if found.broken.is_none() || now == revision {
                return Ok(found);
            }
        }
    }

    async fn verify_from(&self, anchor: Mark) -> Result<Verification, ServiceError> {
        let (last, _) = Mark::read(&*self.store, &self.key, keys::CHAIN_HEAD).await?;
        let mut found = Verification {
            first: anchor.number + 1,
            records: 0,
            last,
            broken: None,
        };
        let mut at = anchor;
        while at.number < last.number {
            let entries = bucket(&*self.store, keys::audit_bucket_of(at.number + 1)).await?;
            let end = keys::audit_bucket_start(at.number + 1) + keys::AUDIT_BUCKET - 1;
            let entries = entries.iter().filter(|(number, _)| *number <= last.number);
            for (number, entry) in entries.filter(|(number, _)| *number > anchor.number) {
                if *number != at.number + 1 {
                    found.broken = Some((at.number + 1, "the record is missing".to_owned()));
                    return Ok(found);
                }
                if let Some(problem) = problem(at, *number, entry.value.as_ref()) {
                    found.broken = Some((*number, problem));
                    return Ok(found);
                }
                at = at.next(entry.value.as_ref());
                found.records += 1;
            }
            if at.number < end.min(last.number) {
                found.broken = Some((at.number + 1, "the record is missing".to_owned()));
                return Ok(found);
            }
        }
        if at != last {
            let text = "the record is not the one that the chain ended with when it was written";
            found.broken = Some((at.number, text.to_owned()));
        }
        Ok(found)
    }
}

/// Why a record does not follow on `before`.
fn problem(before: Mark, number: u64, record: &[u8]) -> Option<String> {
    let Ok(record) = wire::Audit::decode(record) else {
        return Some("the record cannot be read".to_owned());
    };
    if record.number != number {
        return Some(format!(
            "the record says that it is number {}",
            record.number
        ));
    }
    let follows = record.previous_sha256 == before.sha256;
    (!follows).then(|| {
        format!(
            "it does not follow on record {}: one of the two was changed",
            before.number
        )
    })
}
