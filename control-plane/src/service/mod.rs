//! The use cases: what an operator or a node asks for, done to the store in one transaction each.
//!
//! [`Core`] is what all of them share; each file adds one noun. Domain words in, domain words out:
//! gRPC begins in [`crate::api`]. Start with [`change`], through which every write goes.

pub mod acl_edits;
pub mod acls;
pub mod audit;
pub mod authority;
pub mod certificates;
pub mod change;
pub mod clients;
#[cfg(test)]
mod crashes;
pub mod destinations;
pub mod error;
mod etag;
pub mod gateways;
pub mod nodes;
pub mod outcome;
mod ports;
pub mod refusals;
mod scope;
pub mod status;
#[cfg(test)]
mod tests;
pub mod tokens;

use std::sync::Arc;

use prost::Message as _;
use sg_model::{DestinationId, GatewayId, Name};
use sg_proto::convert::store::{DestinationRecord, GatewayRecord};
use sg_proto::store as wire;
use sg_runtime::sealed;

pub use error::ServiceError;

use crate::keys;
use crate::push::Observed;
use crate::store::{KeyValue, Revision, Store};
use crate::vault::Vault;
use crate::world::keeper::Views;
use crate::world::{StoreHealth, Stored};

/// What all use cases share. Clones share it.
#[derive(Clone)]
pub struct Core {
    /// The store, for writes and for reads that must not be old.
    pub store: Arc<dyn Store>,
    /// Whether the store answers.
    pub health: StoreHealth,
    /// The world, for all other reads.
    pub views: Views,
    /// What the nodes report.
    pub observed: Observed,
    /// Issues certificates.
    pub authority: authority::Current,
    /// Seals secrets.
    pub key: sealed::KeyRing,
    /// Id of this control plane.
    pub control_plane: String,
    /// Revision of `meta/format`, which no write may find changed.
    pub format: Revision,
    /// The end of the audit trail.
    pub chain: audit::chain::Chain,
}

impl std::fmt::Debug for Core {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Core")
            .field("store", &self.store.describe())
            .finish_non_exhaustive()
    }
}

impl Core {
    /// Reads a key linearizably. What is out of scope is not there.
    async fn read(&self, key: &str) -> Result<Option<KeyValue>, ServiceError> {
        match self.store.get(key).await {
            Ok((_, entry)) => {
                self.health.good();
                Ok(entry.and_then(|entry| scope::shown(self.views.scope(), entry)))
            }
            Err(error) => {
                self.health.bad(&error);
                Err(error.into())
            }
        }
    }

    /// A gateway by id or name: from memory, or else from the store, where it may be brand-new.
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], or the store failed.
    pub async fn gateway(&self, id_or_name: &str) -> Result<Stored<GatewayRecord>, ServiceError> {
        let view = self.views.now();
        if let Some((gateway, _)) = view.world.find_gateway(id_or_name) {
            return Ok(gateway.clone());
        }
        let missing = || ServiceError::not_found("gateway", id_or_name);
        let id = match Name::new(id_or_name) {
            Ok(name) => match self.read(&keys::gateway_name(&name)).await? {
                Some(entry) => wire::Reference::decode(entry.value.as_ref())?.id,
                None => return Err(missing()),
            },
            Err(_) => id_or_name.to_owned(),
        };
        let id = GatewayId::new(id).map_err(|_| missing())?;
        self.read_gateway(&id).await?.ok_or_else(missing)
    }

    async fn read_gateway(
        &self,
        id: &GatewayId,
    ) -> Result<Option<Stored<GatewayRecord>>, ServiceError> {
        self.read(&keys::gateway(id))
            .await?
            .map(|entry| parse_gateway(&entry))
            .transpose()
    }

    /// A destination of a gateway by id or name, as [`Core::gateway`].
    ///
    /// # Errors
    /// [`ServiceError::NotFound`], or the store failed.
    pub async fn destination(
        &self,
        gateway: &Stored<GatewayRecord>,
        id_or_name: &str,
    ) -> Result<Stored<DestinationRecord>, ServiceError> {
        let gateway_id = &gateway.value.gateway.id;
        let view = self.views.now();
        if let Some((_, entry)) = view.world.gateway(gateway_id) {
            let by_id = DestinationId::new(id_or_name)
                .ok()
                .and_then(|id| entry.destination(&id));
            let found = by_id.or_else(|| {
                entry
                    .destinations()
                    .find(|d| d.value.destination.name.as_str() == id_or_name)
            });
            if let Some(found) = found {
                return Ok(found.as_ref().clone());
            }
        }
        let missing = || {
            let name = format!("{}/{id_or_name}", gateway.value.gateway.name);
            ServiceError::not_found("destination", name)
        };
        let id = match Name::new(id_or_name) {
            Ok(name) => match self
                .read(&keys::destination_name(gateway_id, &name))
                .await?
            {
                Some(entry) => wire::Reference::decode(entry.value.as_ref())?.id,
                None => return Err(missing()),
            },
            Err(_) => id_or_name.to_owned(),
        };
        let id = DestinationId::new(id).map_err(|_| missing())?;
        self.read_destination(gateway_id, &id)
            .await?
            .ok_or_else(missing)
    }

    async fn read_destination(
        &self,
        gateway: &GatewayId,
        id: &DestinationId,
    ) -> Result<Option<Stored<DestinationRecord>>, ServiceError> {
        let entry = self.read(&keys::destination(gateway, id)).await?;
        entry
            .map(|entry| self.parse_destination(&entry))
            .transpose()
    }

    fn parse_destination(
        &self,
        entry: &KeyValue,
    ) -> Result<Stored<DestinationRecord>, ServiceError> {
        let wire = wire::Destination::decode(entry.value.as_ref())?;
        let vault = Vault::new(self.key.clone());
        let open = |place: &str, sealed: &[u8]| vault.open(&entry.key, place, sealed);
        let value = DestinationRecord::from_store(&wire, &open).map_err(unreadable)?;
        Ok(Stored {
            value,
            revision: entry.mod_revision,
        })
    }

    /// A destination as it is stored, its secrets sealed.
    fn sealed_destination(&self, record: &DestinationRecord) -> wire::Destination {
        let d = &record.destination;
        let key = keys::destination(&d.gateway, &d.id);
        let vault = Vault::new(self.key.clone());
        record.to_store(&|place, secret| vault.seal(&key, place, secret))
    }
}

fn parse_gateway(entry: &KeyValue) -> Result<Stored<GatewayRecord>, ServiceError> {
    let wire = wire::Gateway::decode(entry.value.as_ref())?;
    let value = GatewayRecord::try_from(&wire).map_err(unreadable)?;
    Ok(Stored {
        value,
        revision: entry.mod_revision,
    })
}

fn unreadable(fault: sg_model::Invalid) -> ServiceError {
    ServiceError::Internal(format!("a stored value cannot be read: {fault}"))
}
