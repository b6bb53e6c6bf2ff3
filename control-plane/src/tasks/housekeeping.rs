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
const AUDIT_KEPT_DAYS: u64 = 90;
/// Days before those that are looked at for records at the start, in case nobody ran for a while.
const AUDIT_AT_START: u64 = 400;
/// The same, later.
const AUDIT_LATER: u64 = 3;
/// Records dropped in one transaction.
const BATCH: usize = 100;
/// One in so many rounds looks for old records.
const AUDIT_EVERY: u64 = 12;

/// Runs for ever. Leaves history to others unless it `compacts`.
pub(crate) async fn run(
    store: Arc<dyn Store>,
    health: StoreHealth,
    views: Views,
    observed: Observed,
    compacts: bool,
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
        if compacts {
            match compact(&*store, last_round).await {
                Ok(newest) => last_round = Some(newest),
                Err(error) => {
                    health.bad(&error);
                    tracing::debug!(%error, "history could not be compacted");
                }
            }
        }
        let days = if round == 0 {
            AUDIT_AT_START
        } else {
            AUDIT_LATER
        };
        if round.is_multiple_of(AUDIT_EVERY)
            && let Err(error) = drop_old_records(&*store, days).await
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

/// Drops the records of `days` days, the youngest of which is just too old to be kept. A day
/// without records costs one small read.
async fn drop_old_records(store: &dyn Store, days: u64) -> Result<(), StoreError> {
    let youngest = (ids::now().0 / keys::DAY_MS).saturating_sub(AUDIT_KEPT_DAYS + 1);
    for day in youngest.saturating_sub(days - 1)..=youngest {
        let (_, old) = store.keys(&keys::audit_day(day)).await?;
        for batch in old.chunks(BATCH) {
            let delete = |txn: Txn, (key, _): &(String, Revision)| txn.delete(key.as_str());
            store.txn(batch.iter().fold(Txn::new(), delete)).await?;
        }
        if !old.is_empty() {
            tracing::info!(count = old.len(), "old audit records dropped");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::store::memory::MemoryStore;

    #[tokio::test]
    async fn only_records_that_are_too_old_are_dropped() {
        let store = MemoryStore::new();
        let now = ids::now().0;
        let at = |days: u64| keys::audit(now - days * keys::DAY_MS, "C1", days);
        for days in [0, 1, 89, 90, 91, 92, 95] {
            store.txn(Txn::new().put(at(days), "x")).await.unwrap();
        }
        for number in 0..250 {
            let key = keys::audit(now - 93 * keys::DAY_MS, "C2", number);
            store.txn(Txn::new().put(key, "x")).await.unwrap();
        }
        drop_old_records(&store, 30).await.unwrap();
        let (_, left) = store.keys(keys::AUDIT).await.unwrap();
        let mut expected: Vec<_> = [0, 1, 89, 90].map(at).into();
        expected.sort_unstable();
        assert_eq!(
            left.into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
            expected
        );
    }

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
