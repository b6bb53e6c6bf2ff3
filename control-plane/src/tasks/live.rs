//! Says in the store that this control plane lives and where, so that nodes learn of it. The key
//! expires by itself; nothing waits for that.

use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_proto::store as wire;
use tokio_util::sync::CancellationToken;

use crate::keys;
use crate::store::{Store, Txn};
use crate::world::StoreHealth;

const PERIOD: Duration = Duration::from_secs(10);
const TTL: Duration = Duration::from_secs(30);

/// Renews until `draining`, then takes the key back.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    health: StoreHealth,
    live: wire::ControlPlane,
    draining: CancellationToken,
) {
    let key = keys::live(&live.id);
    let value = live.encode_to_vec();
    let mut pause = Duration::ZERO;
    loop {
        tokio::select! {
            () = draining.cancelled() => break,
            () = tokio::time::sleep(pause) => {}
        }
        pause = match store
            .txn(Txn::new().put_for(key.clone(), value.clone(), TTL))
            .await
        {
            Ok(_) => {
                health.good();
                PERIOD
            }
            Err(error) => {
                health.bad(&error);
                Duration::from_secs(1)
            }
        };
    }
    if let Err(error) = store.txn(Txn::new().delete(key)).await {
        tracing::debug!(%error, "the sign of life stays until it expires");
    }
}
