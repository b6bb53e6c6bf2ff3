//! Keeps the store from growing for ever: compacts history that no watch needs any more, and drops
//! the oldest audit records. Several control planes may do it at once; that harms nothing.
//! Also forgets reports of nodes that are no longer in the store.

use std::sync::Arc;
use std::time::Duration;

use sg_runtime::crypto;
use sg_runtime::sealed::KeyRing;
use tokio::time::{MissedTickBehavior, interval};

use crate::push::Observed;
use crate::service::audit::trim::{Kept, trim};
use crate::store::{Revision, Store, StoreError};
use crate::world::StoreHealth;
use crate::world::keeper::Views;

const PERIOD: Duration = Duration::from_secs(300);

/// Runs for ever. Leaves history to others unless it `compacts`.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    health: StoreHealth,
    views: Views,
    observed: Observed,
    ring: KeyRing,
    kept: Kept,
    compacts: bool,
) {
    // Not all control planes at the same moment.
    let spread = u64::from(u16::from_le_bytes(crypto::random_bytes()));
    tokio::time::sleep(Duration::from_millis(spread)).await;
    let mut timer = interval(PERIOD);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_round: Option<Revision> = None;
    loop {
        timer.tick().await;
        let view = views.now();
        observed.retain(|node| view.world.node(node).is_some());
        if compacts {
            match compact(&*store, last_round).await {
                Ok(newest) => last_round = Some(newest),
                Err(error) => {
                    health.bad(&error);
                    tracing::debug!(%error, "history could not be compacted");
                }
            }
        }
        match trim(&*store, &ring, kept).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "old audit records dropped"),
            Err(error) => tracing::debug!(%error, "old audit records could not be dropped"),
        }
    }
}

/// Forgets the history before the last round. Answers the newest revision, for the next round.
async fn compact(store: &dyn Store, last_round: Option<Revision>) -> Result<Revision, StoreError> {
    let newest = store.revision().await?;
    match last_round {
        Some(revision) if revision < newest => match store.compact(revision).await {
            // Another control plane was faster.
            Ok(()) | Err(StoreError::Compacted) => {}
            Err(error) => return Err(error),
        },
        _ => {}
    }
    Ok(newest)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::Txn;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn history_is_kept_for_a_round() {
        let store = MemoryStore::new();
        store.txn(Txn::new().put("a", "1")).await.unwrap();
        let first = compact(&store, None).await.unwrap();
        store.txn(Txn::new().put("a", "2")).await.unwrap();
        let second = compact(&store, Some(first)).await.unwrap();
        assert_eq!(second, first.next());
        // Another control plane did the same already.
        assert_eq!(compact(&store, Some(first)).await.unwrap(), second);
        assert!(
            store
                .watch("a", first.next())
                .await
                .unwrap()
                .next()
                .await
                .is_ok()
        );
    }
}
