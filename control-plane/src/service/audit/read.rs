//! Shows records. They are read from the store, a bucket at a time: a control plane does not hold
//! them all.

use prost::Message as _;
use sg_model::{GatewayId, Timestamp};
use sg_proto::convert::timestamp_from_wire;
use sg_proto::store as wire;

use super::{Mark, bucket};
use crate::keys;
use crate::service::{Core, ServiceError};
use crate::store::{KeyValue, Revision};

/// Records looked at for one page; a caller with a narrow filter asks again.
const LOOKED_AT: u64 = 5_000;

/// A record with where it lies.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// What was recorded.
    pub record: wire::Audit,
    /// Hash of its stored bytes.
    pub sha256: [u8; 32],
    /// The revision that the change made.
    pub revision: Revision,
}

/// Which records are wanted.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    /// Only those that concern this gateway.
    pub gateway: Option<GatewayId>,
    /// Only those of this time and later.
    pub since: Option<Timestamp>,
}

impl Filter {
    fn takes(&self, record: &wire::Audit) -> bool {
        self.gateway
            .as_ref()
            .is_none_or(|gateway| record.gateway_id == gateway.as_str())
            && !self.is_before(record)
    }

    fn is_before(&self, record: &wire::Audit) -> bool {
        let Some(since) = self.since else {
            return false;
        };
        let time = record.time.as_ref();
        let time = time.and_then(|time| timestamp_from_wire("time", time).ok());
        time.unwrap_or_default() < since
    }
}

impl Core {
    /// Records before number `before` (0: all), newest first, at most `limit`; and the number to go on
    /// before, or 0 at the end.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_records(
        &self,
        filter: &Filter,
        before: u64,
        limit: usize,
    ) -> Result<(Vec<Record>, u64), ServiceError> {
        let (anchor, _) = Mark::read(&*self.store, &self.key, keys::CHAIN_ANCHOR).await?;
        let (head, _) = Mark::read(&*self.store, &self.key, keys::CHAIN_HEAD).await?;
        let mut next = match before {
            0 => head.number,
            before => head.number.min(before - 1),
        };
        let lowest_looked_at = next.saturating_sub(LOOKED_AT);
        let mut found = Vec::new();
        while next > anchor.number {
            let mut older = 0;
            let mut entries = bucket(&*self.store, keys::audit_bucket_of(next)).await?;
            entries.retain(|(number, _)| *number <= next);
            let whole = entries.len();
            while let Some((number, entry)) = entries.pop() {
                if found.len() == limit {
                    return Ok((found, number + 1));
                }
                let record = parse(&entry)?;
                older += usize::from(filter.is_before(&record.record));
                if filter.takes(&record.record) && self.sees(&record.record) {
                    found.push(record);
                }
            }
            next = keys::audit_bucket_start(next).saturating_sub(1);
            // Clocks of control planes differ by little: a whole bucket that is too old ends it.
            if whole > 0 && older == whole {
                break;
            }
            if next <= lowest_looked_at && next > anchor.number {
                return Ok((found, next + 1));
            }
        }
        Ok((found, 0))
    }

    /// Records after number `after` up to `last`, oldest first, of one bucket at most; and the number
    /// that was looked at last.
    ///
    /// # Errors
    /// The store failed.
    pub async fn audit_records_after(
        &self,
        filter: &Filter,
        after: u64,
        last: u64,
    ) -> Result<(Vec<Record>, u64), ServiceError> {
        let first = after + 1;
        let entries = bucket(&*self.store, keys::audit_bucket_of(first)).await?;
        let mut found = Vec::new();
        for (number, entry) in entries {
            if number < first || number > last {
                continue;
            }
            let record = parse(&entry)?;
            if filter.takes(&record.record) && self.sees(&record.record) {
                found.push(record);
            }
        }
        let end = keys::audit_bucket_start(first) + keys::AUDIT_BUCKET - 1;
        Ok((found, end.min(last)))
    }

    fn sees(&self, record: &wire::Audit) -> bool {
        let scope = self.views.scope();
        scope.is_all() || (!record.gateway_id.is_empty() && scope.admits(&record.gateway_id))
    }
}

fn parse(entry: &KeyValue) -> Result<Record, ServiceError> {
    Ok(Record {
        record: wire::Audit::decode(entry.value.as_ref())?,
        sha256: sg_runtime::crypto::sha256(entry.value.as_ref()),
        revision: entry.mod_revision,
    })
}
