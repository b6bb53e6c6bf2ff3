//! Keeps the store from growing for ever: compacts history that no watch needs any more, and drops
//! audit records of more than 90 days. Several control planes may do it at once; that harms nothing.
//! Also forgets reports of nodes that are no longer in the store.

use std::sync::Arc;
use std::time::Duration;

use sg_runtime::crypto;
use tokio::time::{MissedTickBehavior, interval};

use crate::ids;
use crate::keys;
use crate::push::Observed;
use crate::store::{Revision, Store, StoreError, Txn};
use crate::world::StoreHealth;
use crate::world::keeper::Views;

const PERIOD: Duration = Duration::from_secs(300);
const AUDIT_KEPT_MS: u64 = 90 * 24 * 3600 * 1000;
/// Records dropped in one transaction.
const BATCH: usize = 100;
/// One in so many rounds looks for old records.
const AUDIT_EVERY: u64 = 12;

/// Runs for ever.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    health: StoreHealth,
    views: Views,
    observed: Observed,
) {
    // Not all control planes at the same moment.
    let spread = u64::from(u16::from_le_bytes(crypto::random_bytes()));
    tokio::time::sleep(Duration::from_millis(spread)).await;
    let mut timer = interval(PERIOD);
    timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_round: Option<Revision> = None;
    let mut round = 0_u64;
    loop {
        timer.tick().await;
        let view = views.now();
        observed.retain(|node| view.world.node(node).is_some());
        match compact(&*store, last_round).await {
            Ok(newest) => last_round = Some(newest),
            Err(error) => {
                health.bad(&error);
                tracing::debug!(%error, "history could not be compacted");
            }
        }
        if round.is_multiple_of(AUDIT_EVERY)
            && let Err(error) = drop_old_records(&*store).await
        {
            health.bad(&error);
            tracing::debug!(%error, "old audit records could not be dropped");
        }
        round += 1;
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

async fn drop_old_records(store: &dyn Store) -> Result<(), StoreError> {
    let end = keys::audit_from(ids::now().0.saturating_sub(AUDIT_KEPT_MS));
    let (_, records) = store.keys(keys::AUDIT).await?;
    let old: Vec<String> = records
        .into_iter()
        .map(|(key, _)| key)
        .take_while(|key| *key < end)
        .collect();
    for batch in old.chunks(BATCH) {
        let txn = batch
            .iter()
            .fold(Txn::new(), |txn, key| txn.delete(key.as_str()));
        store.txn(txn).await?;
    }
    if !old.is_empty() {
        tracing::info!(
            count = old.len(),
            "audit records of more than 90 days dropped"
        );
    }
    Ok(())
}
