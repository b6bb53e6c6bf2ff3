//! The way of every write: one transaction with the change itself, the record of it, and the key
//! that makes a repeated request find its first answer.
//!
//! Every change moves the end of the audit trail on, which it requires to be where it was. So a
//! transaction whose outcome is unknown is simply sent again: if the first attempt happened, the
//! second finds its own record and knows; if it did not, the second does it, and the first can no
//! longer. If only the end of the trail was not where it was thought to be, another control plane was
//! faster with something else, and the same change is written behind that.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message;
use sg_proto::convert::timestamp_to_wire;
use sg_proto::store as wire;
use sg_runtime::backoff::Backoff;
use sg_runtime::secret::Secret;
use tokio::time::Instant;

use super::audit::chain::Head;
use super::audit::diff;
use super::outcome::{Conflict, Outcome, Replay};
use super::{Core, ServiceError, scope};
use crate::ids;
use crate::keys;
use crate::store::{Compare, KeyValue, Revision, StoreError, Txn, TxnOutcome, Write};

/// How long the answer to a request is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);
/// How long a write is tried whose outcome is unknown.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a writer waits to see its own change in memory.
pub(super) const OWN_CHANGE: Duration = Duration::from_millis(500);
/// How long to wait for the view before a change is worked out anew that was made from it.
pub(super) const MOMENT: Duration = Duration::from_millis(20);
/// How often a change is written behind one of another control plane that was faster.
const CHAIN_RETRIES: usize = 200;
/// Target of what is logged for auditors.
pub use sg_runtime::telemetry::AUDIT;
/// How often a change is worked out anew because others came in between.
pub(super) const RETRIES: usize = 16;
/// Longest request id, in characters.
pub const MAX_REQUEST_ID: usize = 64;

/// Who asks for what; comes with every change.
#[derive(Debug, Clone)]
pub struct Call {
    /// For the record: the name of the administrator, or `node/<id>`.
    pub principal: String,
    /// Id of the administrator's token.
    pub principal_id: String,
    /// Tells principals apart in keys.
    pub principal_key: String,
    /// Address that the request came from.
    pub source: String,
    /// `Service.Method`.
    pub method: &'static str,
    /// As the caller sent it; empty: none.
    pub request_id: String,
    /// Digest of the whole request.
    pub request_sha256: [u8; 32],
    /// Check everything and write nothing.
    pub validate_only: bool,
}

impl Call {
    /// A change by the control plane or a node, which nobody repeats under an id.
    pub fn internal(principal: impl Into<String>, method: &'static str) -> Self {
        Self {
            principal: principal.into(),
            principal_id: String::new(),
            principal_key: String::new(),
            source: String::new(),
            method,
            request_id: String::new(),
            request_sha256: [0; 32],
            validate_only: false,
        }
    }

    fn idempotency_key(&self) -> Option<String> {
        let named = !self.request_id.is_empty();
        named.then(|| keys::idempotency(&self.principal_key, &self.request_id))
    }
}

/// A change under construction.
#[derive(Debug)]
pub struct Change<'a> {
    call: &'a Call,
    txn: Txn,
    object: String,
    detail: String,
    id: String,
    secret: Option<&'a Secret<String>>,
}

impl<'a> Change<'a> {
    /// A change of `object` (for the record), whose answer is known by `id`.
    pub fn new(call: &'a Call, object: impl Into<String>, id: impl Into<String>) -> Self {
        Self {
            call,
            txn: Txn::new(),
            object: object.into(),
            detail: String::new(),
            id: id.into(),
            secret: None,
        }
    }

    /// What changed, for the record. No secrets.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    /// A secret of the answer, to be given again to a repeated request.
    #[must_use]
    pub const fn secret(mut self, secret: Option<&'a Secret<String>>) -> Self {
        self.secret = secret;
        self
    }

    /// The key must be absent and gets this value.
    #[must_use]
    pub fn create(mut self, key: String, value: &impl Message) -> Self {
        self.txn = self
            .txn
            .when_absent(key.clone())
            .put(key, value.encode_to_vec());
        self
    }

    /// The key must be at `revision` and gets this value.
    #[must_use]
    pub fn replace(mut self, key: String, revision: Revision, value: &impl Message) -> Self {
        self.txn = self
            .txn
            .when_revision(key.clone(), revision)
            .put(key, value.encode_to_vec());
        self
    }

    /// The key must be at `revision` and goes.
    #[must_use]
    pub fn remove(mut self, key: String, revision: Revision) -> Self {
        self.txn = self.txn.when_revision(key.clone(), revision).delete(key);
        self
    }

    /// The key gets this value for a while, whatever it had.
    #[must_use]
    pub fn put_for(mut self, key: String, value: &impl Message, ttl: Duration) -> Self {
        self.txn = self.txn.put_for(key, value.encode_to_vec(), ttl);
        self
    }

    /// The key goes, if it is there.
    #[must_use]
    pub fn delete(mut self, key: String) -> Self {
        self.txn = self.txn.delete(key);
        self
    }

    /// The key must be at `revision`.
    #[must_use]
    pub fn require(mut self, key: String, revision: Revision) -> Self {
        self.txn = self.txn.when_revision(key, revision);
        self
    }

    /// The key must be absent.
    #[must_use]
    pub fn require_absent(mut self, key: String) -> Self {
        self.txn = self.txn.when_absent(key);
        self
    }

    /// Nothing may lie under the prefix.
    #[must_use]
    pub fn require_empty(mut self, prefix: String) -> Self {
        self.txn = self.txn.when(Compare::PrefixEmpty { prefix });
        self
    }
}

impl Core {
    /// What the same request was answered with, if it came before.
    ///
    /// # Errors
    /// Another request came under this id, or the store failed.
    pub async fn replayed(&self, call: &Call) -> Result<Option<Replay>, ServiceError> {
        let Some(key) = call.idempotency_key() else {
            return Ok(None);
        };
        let entry = self.read(&key).await?;
        entry
            .map(|entry| self.replay(call, &key, &entry))
            .transpose()
    }

    fn replay(&self, call: &Call, key: &str, entry: &KeyValue) -> Result<Replay, ServiceError> {
        let first = wire::Idempotency::decode(entry.value.as_ref())?;
        if first.method != call.method || first.request_sha256 != call.request_sha256 {
            return Err(ServiceError::Precondition {
                reason: "REQUEST_ID_REUSED",
                message: "another request was made under this request_id; choose a new one"
                    .to_owned(),
            });
        }
        let open = |sealed: &[u8]| {
            let secret = self.key.open(key.as_bytes(), sealed).ok()?;
            Some(Secret::new(
                String::from_utf8(secret.expose().clone()).ok()?,
            ))
        };
        let secret = match first.sealed_secret.as_slice() {
            [] => None,
            sealed => Some(open(sealed).ok_or_else(|| {
                ServiceError::Internal("a remembered answer does not open".to_owned())
            })?),
        };
        Ok(Replay {
            id: first.id,
            secret,
        })
    }

    /// Writes a change, and waits (a little) until it can be read here.
    ///
    /// # Errors
    /// The store failed; or the layout of the store was changed by a newer version.
    pub async fn commit(&self, change: Change<'_>) -> Result<Outcome, ServiceError> {
        scope::check(self.views.scope(), &change.txn)?;
        let call = change.call;
        let idempotency_key = call.idempotency_key();
        let mut written = change.txn.writes.iter().map(Write::key);
        let follows = written.any(|key| key.starts_with(keys::OBJECTS));
        let (txn, audit) = self.prepared(change, idempotency_key.as_deref()).await?;
        let current = match self.append(txn, audit).await? {
            Sent::Committed(revision) => {
                // A caller who reads next from here should find what it wrote. If this process is
                // behind by more, it is told what was written all the same.
                if follows {
                    self.views.reach(revision, OWN_CHANGE).await;
                }
                return Ok(Outcome::Done(revision));
            }
            Sent::Conflict(current) => current,
        };
        let shown = |entry: Option<KeyValue>| scope::shown(self.views.scope(), entry?);
        let current = current
            .into_iter()
            .map(|(key, entry)| (key, shown(entry)))
            .collect();
        let conflict = Conflict { current };
        if let Some(key) = &idempotency_key
            && let Some(entry) = conflict.entry(key)
        {
            return self.replay(call, key, entry).map(Outcome::Replayed);
        }
        if conflict
            .entry(keys::META_FORMAT)
            .is_none_or(|e| e.mod_revision != self.format)
        {
            return Err(ServiceError::Precondition {
                reason: "STORE_FORMAT_CHANGED",
                message: "the store was taken over by another version; update this control plane"
                    .to_owned(),
            });
        }
        Ok(Outcome::Conflict(conflict))
    }

    /// Adds to a change what every change has, and what the record says of it.
    async fn prepared(
        &self,
        change: Change<'_>,
        idempotency_key: Option<&str>,
    ) -> Result<(Txn, wire::Audit), ServiceError> {
        let changes = self.differences(&change.txn).await?;
        let Change {
            call,
            txn,
            object,
            detail,
            id,
            secret,
        } = change;
        let mut gateways = txn.writes.iter().filter_map(|w| keys::gateway_of(w.key()));
        let audit = wire::Audit {
            principal: call.principal.clone(),
            principal_id: call.principal_id.clone(),
            source: call.source.clone(),
            method: call.method.to_owned(),
            object,
            gateway_id: gateways.next().unwrap_or_default().to_owned(),
            request_id: call.request_id.clone(),
            detail,
            changes,
            control_plane_id: self.control_plane.clone(),
            ..wire::Audit::default()
        };
        let txn = txn.when_revision(keys::META_FORMAT, self.format);
        let Some(key) = idempotency_key else {
            return Ok((txn, audit));
        };
        let seal =
            |secret: &Secret<String>| self.key.seal(key.as_bytes(), secret.expose().as_bytes());
        let answer = wire::Idempotency {
            method: call.method.to_owned(),
            id,
            request_sha256: call.request_sha256.to_vec(),
            sealed_secret: secret.map(seal).unwrap_or_default(),
        };
        let txn = txn
            .when_absent(key)
            .put_for(key, answer.encode_to_vec(), REMEMBERED);
        Ok((txn, audit))
    }

    /// What a transaction changes of objects. The values from before come from memory; the store is
    /// asked only for what is newer there.
    async fn differences(&self, txn: &Txn) -> Result<Vec<wire::AuditChange>, ServiceError> {
        let view = self.views.whole();
        let mut room = diff::MAX_RECORD;
        let mut changes = Vec::new();
        for write in &txn.writes {
            let key = write.key();
            let Some((object, kind)) = keys::recorded(key) else {
                continue;
            };
            let expected = txn.compares.iter().find_map(|compare| match compare {
                Compare::ModRevision { key: of, revision } if of == key => Some(*revision),
                Compare::Absent { key: of } if of == key => Some(Revision::NONE),
                _ => None,
            });
            let known = view.stored(key).map(|entry| KeyValue::clone(entry));
            let before = match expected {
                Some(Revision::NONE) => None,
                Some(revision) if known.as_ref().is_none_or(|k| k.mod_revision != revision) => {
                    self.store.get(key).await?.1
                }
                _ => known,
            };
            let before = before.as_ref().map(|entry| entry.value.as_ref());
            let after = match write {
                Write::Put { value, .. } => Some(value.as_ref()),
                Write::Delete { .. } => None,
            };
            changes.push(diff::change(object, kind, before, after, &mut room));
        }
        Ok(changes)
    }

    /// Writes a transaction with its record at the end of the audit trail.
    async fn append(&self, txn: Txn, mut audit: wire::Audit) -> Result<Sent, ServiceError> {
        let mut taken = self.chain.take(&*self.store).await?;
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(50));
        for attempt in 0..CHAIN_RETRIES {
            let end = taken.head;
            audit.number = end.mark.number + 1;
            audit.previous_sha256 = end.mark.sha256.to_vec();
            audit.time = Some(timestamp_to_wire(ids::now()));
            let record = audit.encode_to_vec();
            let mark = end.mark.next(&record);
            let audit_key = keys::audit(mark.number);
            let whole = txn
                .clone()
                .when_revision(keys::CHAIN_HEAD, end.revision)
                .when_absent(audit_key.clone())
                .put(audit_key.clone(), record.clone())
                .put(keys::CHAIN_HEAD, mark.seal(&self.key, keys::CHAIN_HEAD));
            let current = match self.send(&whole, &audit_key, &record).await? {
                Sent::Committed(revision) => {
                    taken.put_back(Head { mark, revision });
                    told(&audit);
                    return Ok(Sent::Committed(revision));
                }
                Sent::Conflict(current) => current,
            };
            let Some(Some(entry)) = current.get(keys::CHAIN_HEAD) else {
                let text = "the end of the audit trail is missing in the store";
                return Err(ServiceError::Internal(text.to_owned()));
            };
            taken.head = self.chain.head(entry)?;
            let moved = taken.head.revision != end.revision;
            if !moved || !holds(&txn, &current) {
                let head = taken.head;
                taken.put_back(head);
                return Ok(Sent::Conflict(current));
            }
            if Instant::now() >= deadline {
                break;
            }
            // The first time at once: who lost a race knows now where the end is.
            if attempt > 0 {
                tokio::time::sleep(backoff.next_delay()).await;
            }
        }
        Err(ServiceError::contended())
    }

    /// Sends a transaction, again as long as its outcome is unknown.
    async fn send(&self, txn: &Txn, audit_key: &str, record: &[u8]) -> Result<Sent, ServiceError> {
        let deadline = Instant::now() + PATIENCE;
        let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_millis(500));
        let mut unknown: Option<StoreError> = None;
        loop {
            let error = match self.store.txn(txn.clone()).await {
                Ok(TxnOutcome::Committed(revision)) => {
                    self.health.good();
                    return Ok(Sent::Committed(revision));
                }
                Ok(TxnOutcome::Conflict { current, .. }) => {
                    self.health.good();
                    let current: HashMap<_, _> = current.into_iter().collect();
                    // Our own record: an earlier attempt had happened.
                    let own = current.get(audit_key).and_then(Option::as_ref);
                    return Ok(match own.filter(|entry| entry.value.as_ref() == record) {
                        Some(entry) => Sent::Committed(entry.mod_revision),
                        None => Sent::Conflict(current),
                    });
                }
                Err(error) => error,
            };
            self.health.bad(&error);
            match error {
                StoreError::UnknownOutcome(_) => unknown = Some(error),
                // After an attempt with an unknown outcome, only a definite answer will do.
                _ if unknown.is_some() && error.retryable() => {}
                _ => return Err(unknown.unwrap_or(error).into()),
            }
            if Instant::now() >= deadline {
                return Err(unknown.map_or_else(ServiceError::contended, ServiceError::Store));
            }
            tokio::time::sleep(backoff.next_delay()).await;
        }
    }
}

/// Whether everything a change requires of single keys was so. What it requires of prefixes shows
/// when it is tried again.
fn holds(txn: &Txn, current: &HashMap<String, Option<KeyValue>>) -> bool {
    let at = |key: &String| {
        let entry = current.get(key)?.as_ref();
        Some(entry.map_or(Revision::NONE, |entry| entry.mod_revision))
    };
    txn.compares.iter().all(|compare| match compare {
        Compare::ModRevision { key, revision } => at(key).is_none_or(|at| at == *revision),
        Compare::Absent { key } => at(key).is_none_or(|at| at == Revision::NONE),
        Compare::Present { key } => at(key).is_none_or(|at| at != Revision::NONE),
        Compare::PrefixEmpty { .. } => true,
    })
}

/// The same for whoever collects logs: a copy of the trail that no control plane can alter.
fn told(audit: &wire::Audit) {
    tracing::info!(
        target: AUDIT,
        number = audit.number,
        principal = audit.principal,
        source = audit.source,
        method = audit.method,
        object = audit.object,
        request_id = audit.request_id,
        "changed"
    );
}

enum Sent {
    Committed(Revision),
    Conflict(HashMap<String, Option<KeyValue>>),
}
