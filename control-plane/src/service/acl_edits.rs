//! Changes of access control lists by people at clients, whose nodes pass them on.
//!
//! A node may speak for the gateways of its group only, and for a client that it has let in: who that is it has read from
//! the client's connection. That the gateway lets its clients change the list is required by the very transaction that changes
//! it, so that a change that was forbidden meanwhile is not made. A request that is repeated, by whichever node, is made once.
//!
//! Start with [`ClientEdits::answer`].

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::{AclEdit, AclEdits, AclVersion, ClientId, GatewayId, NodeId};
use sg_proto::convert::acl_edit::REQUEST_ID;
use sg_proto::convert::store::{GatewayRecord, acl_to_store};
use sg_proto::node::{self as node_wire, AclEditResult};
use sg_runtime::crypto;
use tokio::time::timeout;

use super::change::{Call, Change, RETRIES};
use super::outcome::Outcome;
use super::refusals::RefusedLines;
use super::{Core, ServiceError};
use crate::keys;
use crate::store::StoreError;
use crate::world::Stored;

/// Time for one change; the node waits a little longer.
const LIMIT: Duration = Duration::from_secs(8);
/// For the record.
const METHOD: &str = "NodeSync.AclEdit";

/// Why a client's change was not made.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// There is no such gateway, or not for this node or this client.
    #[error("the gateway does not exist any more, or this client may not be there")]
    Unknown,
    /// Nobody but operators may.
    #[error(
        "this gateway's list is changed by operators only: ask one of them (sgctl acl), or for sgctl gateway update {0} --acl-edits clients"
    )]
    OperatorsOnly(String),
    /// The change makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The store, or others who change the same.
    #[error(transparent)]
    Failed(#[from] ServiceError),
    /// It takes too long.
    #[error(
        "the store did not answer in time; the change may or may not have happened: look with S before trying again"
    )]
    Late,
}

impl Refused {
    /// The word, and whether the same again can help.
    fn word(&self) -> (&'static str, bool) {
        match self {
            Self::Unknown => ("gateway-unknown", false),
            Self::OperatorsOnly(_) => ("operators-only", false),
            Self::Invalid(_) | Self::Failed(ServiceError::Invalid(_)) => ("invalid", false),
            Self::Failed(ServiceError::Aborted { .. }) => ("contended", true),
            Self::Failed(ServiceError::Store(StoreError::Unavailable { .. })) => {
                ("store-unavailable", true)
            }
            Self::Late | Self::Failed(ServiceError::Store(StoreError::UnknownOutcome(_))) => {
                ("outcome-unknown", true)
            }
            Self::Failed(_) => ("internal", false),
        }
    }

    /// What the person is told: of faults of ours, and of the store, in general words only.
    fn text(&self) -> String {
        match (self.word().0, self) {
            ("store-unavailable", _) => {
                "the control plane's store does not answer; nothing was changed".to_owned()
            }
            ("outcome-unknown", _) => Self::Late.to_string(),
            ("internal", _) => "internal error; the log of the control plane says more".to_owned(),
            (_, refused) => refused.to_string(),
        }
    }
}

/// Answers nodes. Clones share it.
#[derive(Debug, Clone)]
pub struct ClientEdits {
    core: Arc<Core>,
    refused: RefusedLines,
}

impl ClientEdits {
    /// Over the use cases.
    pub fn new(core: Arc<Core>) -> Self {
        Self {
            core,
            refused: RefusedLines::default(),
        }
    }

    /// Makes the change that a client of `node` asks for, or says why not.
    pub async fn answer(
        &self,
        node: NodeId,
        asked: node_wire::AclEdit,
    ) -> node_wire::AclEditAnswer {
        let made = timeout(LIMIT, self.core.edit_acl(&node, &asked)).await;
        let result = match made.unwrap_or(Err(Refused::Late)) {
            Ok((version, changed)) => AclEditResult::done(version, changed),
            Err(refused) => {
                let (word, retry) = refused.word();
                if let Refused::Failed(error) = &refused {
                    tracing::warn!(%node, %error, "a client's change of a list failed");
                }
                let text = refused.text();
                self.refused.tell(
                    METHOD,
                    &format!("client/{} via node/{node}", asked.client_id),
                    &asked.client_address,
                    word,
                    &text,
                );
                AclEditResult::refused(word, text, retry)
            }
        };
        node_wire::AclEditAnswer {
            number: asked.number,
            result: Some(result),
        }
    }
}

impl Core {
    async fn edit_acl(
        &self,
        node: &NodeId,
        asked: &node_wire::AclEdit,
    ) -> Result<(AclVersion, bool), Refused> {
        let gateway = GatewayId::new(&asked.gateway_id).map_err(|_| Refused::Unknown)?;
        let client = ClientId::new(&asked.client_id).map_err(|_| Refused::Unknown)?;
        let invalid = |fault: sg_model::Invalid| Refused::Invalid(fault.to_string());
        let change = asked.change.clone().unwrap_or_default();
        let edit = AclEdit::try_from(&change).map_err(invalid)?;
        if asked.request_id.len() != REQUEST_ID {
            let text = format!("a request id has {REQUEST_ID} bytes");
            return Err(Refused::Invalid(text));
        }
        let Some(speaker) = self.read_node(node).await? else {
            return Err(Refused::Unknown);
        };
        let source = asked.client_address.parse::<IpAddr>().ok();
        let call = Call {
            principal: format!("client/{client} via node/{node} ({})", speaker.value.name),
            principal_id: client.to_string(),
            principal_key: format!("client/{gateway}/{client}"),
            source: source.map(|ip| ip.to_string()).unwrap_or_default(),
            method: METHOD,
            request_id: crypto::hex(&asked.request_id),
            request_sha256: crypto::sha256(&change.encode_to_vec()),
            validate_only: false,
        };
        for _ in 0..RETRIES {
            let permitted = self
                .read_gateway(&gateway)
                .await?
                .filter(|record| record.value.group == speaker.value.group)
                .ok_or(Refused::Unknown)?;
            permits(&permitted, &client)?;
            let current = self.read_acl(&gateway).await?;
            // Found after the list was read: whatever the request did is in it.
            if self.replayed(&call).await?.is_some() {
                return Ok((current.value.version, true));
            }
            let mut acl = current.value.clone();
            if !acl.edit(&edit).map_err(invalid)? {
                return Ok((acl.version, false));
            }
            acl.version.generation += 1;
            let change = Change::new(&call, format!("acl/{gateway}"), gateway.as_str())
                .detail(format!(
                    "generation={} entries={}",
                    acl.version.generation,
                    acl.entries.len()
                ))
                .require(keys::gateway(&gateway), permitted.revision)
                .replace(
                    keys::acl(&gateway),
                    current.revision,
                    &acl_to_store(&gateway, &acl),
                );
            match self.commit(change).await? {
                Outcome::Done(_) => return Ok((acl.version, true)),
                Outcome::Replayed(_) | Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended().into())
    }
}

/// Whether a client may change the list.
fn permits(record: &Stored<GatewayRecord>, client: &ClientId) -> Result<(), Refused> {
    let gateway = &record.value.gateway;
    if !gateway.enabled || gateway.is_revoked(client.as_str()) {
        return Err(Refused::Unknown);
    }
    match record.value.acl_edits {
        AclEdits::Clients => Ok(()),
        AclEdits::Operators => Err(Refused::OperatorsOnly(gateway.name.to_string())),
    }
}
