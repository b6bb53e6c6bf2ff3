//! Nodes: how they join, what they say of themselves, and the tokens they join with.

mod delete;

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prost::Message as _;
use sg_model::{HostPort, Name, NodeId, Timestamp};
use sg_proto::convert::store::{NodeRecord, port_range};
use sg_proto::convert::{api, timestamp_from_wire, timestamp_to_wire};
use sg_proto::node as node_wire;
use sg_proto::store as wire;
use sg_runtime::backoff::Backoff;
use sg_runtime::crypto;
use sg_runtime::identity::{CertificateDer, PeerIdentity, PeerKind};
use sg_runtime::secret::Secret;

use super::change::{Call, Change, RETRIES};
use super::outcome::{Outcome, Replay};
use super::{Core, ServiceError};
use crate::authority::{self, IssueError};
use crate::ids;
use crate::keys;
use crate::store::KeyValue;
use crate::world::{Stored, epoch};

/// Life of a join token where none is asked for.
const DEFAULT_TTL: Duration = Duration::from_secs(3600);
/// Longest life of a join token.
const MAX_TTL: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long a node may repeat its join after the answer was lost.
const REJOIN: Duration = Duration::from_secs(3600);
/// Longest version text of a node that is kept.
const MAX_VERSION: usize = 64;
/// Longest address of a node.
const MAX_ADDRESS: usize = 300;

/// A node that has joined.
#[derive(Debug)]
pub struct Joined {
    /// Its id.
    pub id: NodeId,
    /// Leaf, root.
    pub chain: Vec<CertificateDer<'static>>,
}

impl From<IssueError> for ServiceError {
    fn from(error: IssueError) -> Self {
        match error {
            IssueError::Request(_) => Self::invalid("csr_der", error.to_string()),
            IssueError::Authority(_) => Self::Internal(error.to_string()),
        }
    }
}

impl Core {
    /// Makes a token with which one node can join.
    ///
    /// # Errors
    /// The time is out of range, or the store failed.
    pub async fn create_join_token(
        &self,
        call: &Call,
        ttl: Option<Duration>,
    ) -> Result<(Secret<String>, Timestamp), ServiceError> {
        let ttl = ttl.filter(|ttl| !ttl.is_zero()).unwrap_or(DEFAULT_TTL);
        if ttl > MAX_TTL || ttl < Duration::from_secs(1) {
            return Err(ServiceError::invalid("ttl", "must be 1s to 30 days"));
        }
        if let Some(replay) = self.replayed(call).await? {
            return replayed_token(replay);
        }
        let ttl_ms = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX);
        let expires = Timestamp(ids::now().0.saturating_add(ttl_ms));
        let pin = crypto::hex(self.authority.get().spki_sha256());
        let secret = ids::new_token(&format!("sgj_{pin}"));
        let hash = crypto::hex(&ids::token_hash(secret.expose()));
        let value = wire::JoinToken {
            expire_time: Some(timestamp_to_wire(expires)),
        };
        // The store forgets it some time after it has expired; it is the date that decides.
        let change = Change::new(call, "token/join", expires.0.to_string())
            .detail(format!("expires={}", expires.seconds()))
            .secret(Some(&secret))
            .put_for(
                keys::join_token(&hash),
                &value,
                ttl + Duration::from_secs(60),
            );
        match self.commit(change).await? {
            Outcome::Done(_) => Ok((secret, expires)),
            Outcome::Replayed(replay) => replayed_token(replay),
            Outcome::Conflict(_) => Err(ServiceError::contended()),
        }
    }

    /// Lets a node in for a join token, which is used up by it. A node whose answer was lost may
    /// ask again with the same token and the same key.
    ///
    /// # Errors
    /// The token does not hold, the request is not acceptable, or the store failed.
    pub async fn join(&self, request: &node_wire::JoinRequest) -> Result<Joined, ServiceError> {
        let token = parse_join_token(&request.join_token)?;
        let wanted = match request.name.as_str() {
            "" => None,
            name => Some(Name::new(name)?),
        };
        let group = api::group_from_api(&request.group)?;
        let token_hash = crypto::hex(&ids::token_hash(token));
        let token_key = keys::join_token(&token_hash);
        let used_key = keys::idempotency("join", &token_hash);
        // Who has no token costs us no look at the request.
        let Some(entry) = self.read(&token_key).await? else {
            return self.join_again(&used_key, &request.csr_der).await;
        };
        token_holds(&entry)?;
        let key_sha256 = authority::request_key_sha256(&request.csr_der)?;
        let now = ids::now();
        let id = NodeId::new(ids::new_id('N', now))?;
        let chain = self.issue(&id, &request.csr_der)?;
        let used = wire::Idempotency {
            method: "Enrollment.Join".to_owned(),
            id: id.to_string(),
            request_sha256: key_sha256.to_vec(),
            sealed_secret: Vec::new(),
        };
        let call = Call::internal(format!("node/{id}"), "Enrollment.Join");
        for attempt in 0..RETRIES {
            let name = attempted_name(wanted.as_ref(), &id, attempt)?;
            let record = new_node(&id, &name, &group, &request.version, now);
            let name_key = keys::node_name(&name);
            let change = Change::new(&call, format!("node/{id}"), id.as_str())
                .detail(format!("name={name} group={group}"))
                .remove(token_key.clone(), entry.mod_revision)
                .put_for(used_key.clone(), &used, REJOIN)
                .create(keys::node(&id), &wire::Node::from(&record))
                .create(name_key.clone(), &reference(&record));
            match self.commit(change).await? {
                Outcome::Done(_) | Outcome::Replayed(_) => return Ok(Joined { id, chain }),
                // The name belongs to another node: take the next one of the kind.
                Outcome::Conflict(conflict) if conflict.holder(&name_key).is_some() => {}
                // Somebody else used the token in between; perhaps this very node.
                Outcome::Conflict(_) => {
                    return self.join_again(&used_key, &request.csr_der).await;
                }
            }
        }
        Err(ServiceError::Taken {
            reason: "NAME_TAKEN",
            message: "many nodes have this name already; choose another with --name".to_owned(),
        })
    }

    async fn join_again(&self, used_key: &str, csr_der: &[u8]) -> Result<Joined, ServiceError> {
        let refused = || {
            ServiceError::Unauthenticated {
            reason: "JOIN_TOKEN_UNKNOWN",
            message: "the join token is unknown, used up or expired; make a new one with 'sgctl node token create'".to_owned(),
        }
        };
        let entry = self.read(used_key).await?.ok_or_else(refused)?;
        let used = wire::Idempotency::decode(entry.value.as_ref())?;
        let key_sha256 = authority::request_key_sha256(csr_der)?;
        if !crypto::equal(&used.request_sha256, &key_sha256) {
            return Err(refused());
        }
        let id = NodeId::new(used.id)?;
        // A node that was removed since has to join anew; its certificate would open nothing.
        if self.read_node(&id).await?.is_none() {
            return Err(refused());
        }
        let chain = self.issue(&id, csr_der)?;
        Ok(Joined { id, chain })
    }

    fn issue(&self, id: &NodeId, csr: &[u8]) -> Result<Vec<CertificateDer<'static>>, ServiceError> {
        let identity = PeerIdentity::new(PeerKind::Node, id.as_str())
            .map_err(|error| ServiceError::Internal(error.to_string()))?;
        Ok(self.authority.get().node(&identity, csr)?)
    }

    pub(super) async fn read_node(
        &self,
        id: &NodeId,
    ) -> Result<Option<Stored<NodeRecord>>, ServiceError> {
        let Some(entry) = self.read(&keys::node(id)).await? else {
            return Ok(None);
        };
        let wire = wire::Node::decode(entry.value.as_ref())?;
        let value = NodeRecord::try_from(&wire).map_err(super::unreadable)?;
        Ok(Some(Stored {
            value,
            revision: entry.mod_revision,
        }))
    }
}

fn replayed_token(replay: Replay) -> Result<(Secret<String>, Timestamp), ServiceError> {
    let broken = || ServiceError::Internal("a remembered answer cannot be read".to_owned());
    let expires = replay.id.parse().map(Timestamp).map_err(|_| broken())?;
    Ok((replay.secret.ok_or_else(broken)?, expires))
}

/// `sgj_` and 128 hexadecimal digits: the CA's hash, then the secret.
fn parse_join_token(token: &str) -> Result<&str, ServiceError> {
    let digits = token.strip_prefix("sgj_").unwrap_or_default();
    if digits.len() == 128 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Ok(token);
    }
    Err(ServiceError::Unauthenticated {
        reason: "JOIN_TOKEN_MALFORMED",
        message:
            "this is no join token; it begins with sgj_ and comes from 'sgctl node token create'"
                .to_owned(),
    })
}

fn token_holds(entry: &KeyValue) -> Result<(), ServiceError> {
    let token = wire::JoinToken::decode(entry.value.as_ref())?;
    let expires = token.expire_time.unwrap_or_default();
    let expires = timestamp_from_wire("expire_time", &expires).map_err(super::unreadable)?;
    if ids::now() < expires {
        return Ok(());
    }
    Err(ServiceError::Unauthenticated {
        reason: "JOIN_TOKEN_EXPIRED",
        message: "the join token has expired; make a new one with 'sgctl node token create'"
            .to_owned(),
    })
}

/// The wanted name, then the same with a number; a node that wants none is called by its id.
fn attempted_name(
    wanted: Option<&Name>,
    id: &NodeId,
    attempt: usize,
) -> Result<Name, ServiceError> {
    let base = match wanted {
        Some(name) => name.to_string(),
        None => format!("node-{}", id.as_str().to_lowercase()),
    };
    if attempt == 0 {
        return Ok(Name::new(base)?);
    }
    let suffix = format!("-{}", attempt + 1);
    let kept: String = base.chars().take(63 - suffix.len()).collect();
    Ok(Name::new(format!(
        "{}{suffix}",
        kept.trim_end_matches('-')
    ))?)
}

pub(super) fn new_node(
    id: &NodeId,
    name: &Name,
    group: &Name,
    version: &str,
    now: Timestamp,
) -> NodeRecord {
    NodeRecord {
        id: id.clone(),
        name: name.clone(),
        group: group.clone(),
        tunnel_address: String::new(),
        destination_host: String::new(),
        ports: None,
        version: version.chars().take(MAX_VERSION).collect(),
        created: now,
    }
}

pub(super) fn reference(record: &NodeRecord) -> wire::Reference {
    wire::Reference {
        kind: "node".to_owned(),
        id: record.id.to_string(),
        gateway_id: String::new(),
        name: record.name.to_string(),
    }
}

/// Nodes that are ahead of the store raise the epoch at most once in this time.
const EPOCH_PAUSE: Duration = Duration::from_secs(60);
/// Whether nodes are really ahead is looked into at most once in this time.
const CHECK_PAUSE: Duration = Duration::from_secs(2);
/// How far beyond the store's epoch a node is believed: each restored copy raises it by one.
const MAX_EPOCH_STEP: u64 = 1000;

/// What the store has to do with connected nodes: records what they say of themselves.
#[derive(Debug, Clone)]
pub struct NodeRegistry {
    core: Arc<Core>,
    /// When the next check may be made.
    checks: Arc<Mutex<Option<Instant>>>,
}

impl NodeRegistry {
    /// A registry over the use cases.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            checks: Arc::default(),
        }
    }

    /// A node has a state that is newer than ours, and has had it for a while. Either we are behind,
    /// which passes; or the store was restored from an older copy while no control plane ran, and
    /// the node has to be taken back.
    pub async fn node_is_ahead(&self, id: &NodeId, epoch: u64, revision: u64) {
        let stored = self.core.views.now().world.epoch;
        if epoch > stored.saturating_add(MAX_EPOCH_STEP) {
            tracing::error!(node = %id, epoch, stored, "the node names an impossible epoch");
            return;
        }
        if !self.turn_to_check() {
            return;
        }
        let (_, objects) = match self.core.store.keys(keys::OBJECTS).await {
            Ok(listed) => listed,
            Err(error) => {
                self.core.health.bad(&error);
                return;
            }
        };
        // The view as it is after the store was read.
        if !self.core.views.now().world.has_exactly(&objects) {
            tracing::warn!(node = %id, revision, "the node has seen more of the store than we have");
            return;
        }
        tracing::error!(node = %id, epoch, revision, "the node has what the store has not");
        epoch::raise(&*self.core.store, &self.core.health, epoch).await;
        let mut last = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        *last = Some(Instant::now() + EPOCH_PAUSE);
    }

    /// Whether nobody else looks into this just now, or has done so lately.
    fn turn_to_check(&self) -> bool {
        let mut next = self.checks.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if next.is_some_and(|next| now < next) {
            return false;
        }
        *next = Some(now + CHECK_PAUSE);
        true
    }

    /// The authority in force.
    pub fn authority(&self) -> super::authority::Current {
        self.core.authority.clone()
    }

    /// The answer to a node that asks for a certificate.
    pub fn certify(
        &self,
        id: &NodeId,
        asked: node_wire::CertificateRequest,
    ) -> node_wire::Certificate {
        self.core.certify(id, asked)
    }

    /// Whether the node is in the store. While the store does not answer nobody is turned away
    /// whose certificate holds.
    pub async fn is_registered(&self, id: &NodeId) -> bool {
        match self.core.read_node(id).await {
            Ok(node) => node.is_some(),
            Err(error) => {
                tracing::debug!(%error, node = %id, "cannot look the node up");
                true
            }
        }
    }

    /// Writes down what a node said, as soon as the store lets us; then waits for ever. The group
    /// stays the one it joined, because it decides which gateways' secrets the node gets; so does
    /// the name, which may have got a number to tell it from another node's.
    pub async fn introduce(&self, id: &NodeId, hello: node_wire::Hello) -> Infallible {
        let mut backoff = Backoff::new(Duration::from_millis(500), Duration::from_secs(10));
        loop {
            match self.try_introduce(id, &hello).await {
                Ok(()) => break,
                Err(ServiceError::Invalid(faults)) => {
                    tracing::warn!(node = %id, ?faults, "the node introduces itself with unusable values; they are ignored");
                    break;
                }
                Err(error) => {
                    tracing::debug!(node = %id, %error, "cannot write down what the node says yet");
                    tokio::time::sleep(backoff.next_delay()).await;
                }
            }
        }
        std::future::pending().await
    }

    async fn try_introduce(
        &self,
        id: &NodeId,
        hello: &node_wire::Hello,
    ) -> Result<(), ServiceError> {
        let cached = self
            .core
            .views
            .now()
            .world
            .node(id)
            .map(|node| node.as_ref().clone());
        let mut current = match cached {
            Some(node) => node,
            None => match self.core.read_node(id).await? {
                Some(node) => node,
                None => return Ok(()),
            },
        };
        for attempt in 0..RETRIES {
            if attempt > 0 {
                match self.core.read_node(id).await? {
                    Some(node) => current = node,
                    None => return Ok(()),
                }
            }
            let record = introduced(&current.value, hello)?;
            if record == current.value {
                return Ok(());
            }
            let call = Call::internal(format!("node/{id}"), "NodeSync.Hello");
            let change = Change::new(&call, format!("node/{id}"), id.as_str())
                .detail(format!(
                    "tunnel={} version={}",
                    record.tunnel_address, record.version
                ))
                .replace(keys::node(id), current.revision, &wire::Node::from(&record));
            // On a conflict another control plane was faster, most likely with the same.
            if let Outcome::Done(_) = self.core.commit(change).await? {
                return Ok(());
            }
        }
        Err(ServiceError::contended())
    }
}

fn introduced(current: &NodeRecord, hello: &node_wire::Hello) -> Result<NodeRecord, ServiceError> {
    if hello.tunnel_address.len() > MAX_ADDRESS || hello.destination_host.len() > MAX_ADDRESS {
        return Err(ServiceError::invalid("tunnel_address", "is too long"));
    }
    if !hello.tunnel_address.is_empty() {
        hello
            .tunnel_address
            .parse::<HostPort>()
            .map_err(|e| e.in_field("tunnel_address"))?;
    }
    if !hello.destination_host.is_empty() {
        hello
            .destination_host
            .parse::<sg_model::Host>()
            .map_err(|e| e.in_field("destination_host"))?;
    }
    Ok(NodeRecord {
        tunnel_address: hello.tunnel_address.clone(),
        destination_host: hello.destination_host.clone(),
        ports: port_range("port_first", hello.port_first, hello.port_last)?,
        version: hello.version.chars().take(MAX_VERSION).collect(),
        ..current.clone()
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_that_are_taken_get_a_number() {
        let id = NodeId::new("N01").unwrap();
        let name = Name::new("x".repeat(63)).unwrap();
        let attempt = |wanted, n| attempted_name(wanted, &id, n).unwrap().to_string();
        assert_eq!(attempt(None, 0), "node-n01");
        assert_eq!(attempt(Some(&name), 0), "x".repeat(63));
        assert_eq!(attempt(Some(&name), 1), format!("{}-2", "x".repeat(61)));
        let dashed = Name::new(format!("{}-b", "a".repeat(60))).unwrap();
        assert_eq!(attempt(Some(&dashed), 10), format!("{}-11", "a".repeat(60)));
    }

    #[test]
    fn only_join_tokens_are_looked_up() {
        assert!(parse_join_token(&format!("sgj_{}", "a".repeat(128))).is_ok());
        for bad in [
            "",
            "sgj_",
            &format!("sga_{}", "a".repeat(128)),
            &format!("sgj_{}", "/".repeat(128)),
        ] {
            assert!(parse_join_token(bad).is_err(), "{bad}");
        }
    }
}
