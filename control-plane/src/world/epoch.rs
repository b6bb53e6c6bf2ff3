//! The epoch: raised when the store has gone back in time (a restored backup), so that nodes take
//! a state that is older than theirs.

use prost::Message as _;
use sg_proto::store as wire;

use super::StoreHealth;
use crate::keys;
use crate::store::{Store, StoreError, Txn};

/// Raises the epoch above what it is and above `known`. Of several control planes that notice, one
/// does; that is enough.
pub async fn raise(store: &dyn Store, health: &StoreHealth, known: u64) {
    tracing::error!("the store has gone back in time; the epoch is raised so that nodes follow");
    if let Err(error) = try_raise(store, known).await {
        health.bad(&error);
        tracing::error!(%error, "the epoch could not be raised; nodes keep the newer state they have");
    }
}

async fn try_raise(store: &dyn Store, known: u64) -> Result<(), StoreError> {
    let (_, entry) = store.get(keys::META_EPOCH).await?;
    let entry = entry.ok_or_else(|| StoreError::Internal("there is no epoch".to_owned()))?;
    let epoch = wire::Epoch::decode(entry.value.as_ref())
        .map_err(|error| StoreError::Internal(error.to_string()))?
        .epoch
        .max(known)
        .saturating_add(1);
    let txn = Txn::new()
        .when_revision(keys::META_EPOCH, entry.mod_revision)
        .put(keys::META_EPOCH, wire::Epoch { epoch }.encode_to_vec());
    store.txn(txn).await.map(|_| ())
}
