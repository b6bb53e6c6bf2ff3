//! The follower: over faults in memory, where everything can be provoked, and over the stores.

use std::sync::Arc;
use std::time::Duration;

use sg_control_plane::store::embedded::EmbeddedStore;
use sg_control_plane::store::follow::{Change, FollowOptions, Snapshot, follow};
pub(crate) use sg_control_plane::store::follow::{Follower, State};
use sg_control_plane::store::memory::MemoryStore;
use sg_control_plane::store::{Revision, Store, StoreError, Txn};
use tokio::task::JoinHandle;

use crate::support::{SOON, commit, eventually, value};

/// A follower of `f/` whose driver runs until it is dropped.
pub(crate) fn start(store: Arc<dyn Store>) -> (Follower, JoinHandle<()>) {
    let options = FollowOptions {
        seed: Some(7),
        ..FollowOptions::default()
    };
    let (follower, driver) = follow(store, "f/", options);
    (follower, tokio::spawn(driver.run()))
}

/// `key=value` of all entries.
pub(crate) fn content(snapshot: &Snapshot) -> Vec<String> {
    let show = |e: &Arc<sg_control_plane::store::KeyValue>| {
        format!("{}={}", e.key, String::from_utf8_lossy(&e.value))
    };
    snapshot.entries.iter().map(show).collect()
}

/// Asks for a comparison and waits until it was made.
pub(crate) async fn checked(follower: &Follower) {
    let before = follower.stats().checks;
    eventually("a comparison", SOON, || async {
        follower.check();
        (follower.stats().checks > before).then_some(())
    })
    .await;
}

async fn fresh(follower: &Follower) {
    eventually("a watch is open", SOON, || async {
        (follower.state() == State::Fresh).then_some(())
    })
    .await;
}

async fn follows_any_store(store: Arc<dyn Store>) {
    commit(&*store, Txn::new().put("f/a", "1").put("g", "no")).await;
    let (follower, driver) = start(Arc::clone(&store));
    assert_eq!(content(&*follower.loaded().await), ["f/a=1"]);
    let before = follower.snapshot();
    commit(&*store, Txn::new().put("f/b", "1").put("f/c", "1")).await;
    let at = commit(&*store, Txn::new().delete("f/a").put("f/b", "2")).await;
    let snapshot = follower.reached(at, SOON).await.unwrap();
    assert_eq!(content(&snapshot), ["f/b=2", "f/c=1"]);
    assert_eq!(snapshot.revision, at);
    let changes = snapshot.changes_since(&before);
    let changed: Vec<_> = changes
        .iter()
        .map(|change| (change.key(), matches!(change, Change::Put(_))))
        .collect();
    assert_eq!(changed, [("f/a", false), ("f/b", true), ("f/c", true)]);
    checked(&follower).await;
    assert_eq!(follower.stats().mismatches, 0);
    assert_eq!(follower.stats().lists, 1);
    drop(follower);
    tokio::time::timeout(SOON, driver)
        .await
        .expect("the driver ends")
        .unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_memory() {
    follows_any_store(Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_embedded() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("store.db")).unwrap();
    follows_any_store(Arc::new(store)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn follows_etcd() {
    let cluster = crate::etcd_server::Cluster::start(1).await;
    follows_any_store(cluster.store()).await;
}

#[tokio::test]
async fn a_lost_watch_is_resumed_without_listing() {
    let store = MemoryStore::new();
    let (follower, _driver) = start(Arc::new(store.clone()));
    fresh(&follower).await;
    for round in 0..20 {
        store.faults().drop_watches();
        let at = commit(&store, Txn::new().put("f/n", round.to_string())).await;
        let snapshot = follower.reached(at, SOON).await.unwrap();
        assert_eq!(content(&snapshot), [format!("f/n={round}")]);
    }
    let stats = follower.stats();
    assert_eq!(
        (stats.lists, stats.mismatches, stats.history_breaks),
        (1, 0, 0)
    );
    assert!(stats.watches > 1, "{stats:?}");
}

#[tokio::test]
async fn while_the_store_is_away_the_last_snapshot_is_served_as_stale() {
    let store = MemoryStore::new();
    commit(&store, Txn::new().put("f/a", "1")).await;
    store.faults().fail_reads(3);
    let (follower, _driver) = start(Arc::new(store.clone()));
    assert_eq!(follower.state(), State::Loading);
    assert_eq!(follower.snapshot().revision, Revision::NONE);
    fresh(&follower).await;

    store.faults().fail_reads(u32::MAX);
    store.faults().drop_watches();
    let since = eventually("stale", SOON, || async {
        match follower.state() {
            State::Stale { since, .. } => Some(since),
            State::Loading | State::Fresh => None,
        }
    })
    .await;
    let at = commit(&store, Txn::new().put("f/b", "1")).await;
    assert_eq!(content(&follower.snapshot()), ["f/a=1"]);
    assert!(
        follower
            .reached(at, Duration::from_millis(100))
            .await
            .is_err()
    );
    eventually("tried in vain for a while", SOON, || async {
        (since.elapsed() > Duration::from_millis(200)).then_some(())
    })
    .await;
    assert!(
        matches!(follower.state(), State::Stale { since: still, .. } if still == since),
        "the time of the loss stays"
    );

    store.faults().fail_reads(0);
    let snapshot = follower.reached(at, SOON).await.unwrap();
    assert_eq!(content(&snapshot), ["f/a=1", "f/b=1"]);
    assert_eq!(follower.stats().lists, 1);
    fresh(&follower).await;
}

#[tokio::test]
async fn after_a_compaction_only_the_difference_shows() {
    let store = MemoryStore::new();
    commit(
        &store,
        Txn::new().put("f/a", "1").put("f/b", "1").put("f/c", "1"),
    )
    .await;
    let (follower, _driver) = start(Arc::new(store.clone()));
    fresh(&follower).await;
    let before = follower.snapshot();

    store.faults().fail_reads(u32::MAX);
    store.faults().drop_watches();
    eventually("stale", SOON, || async {
        matches!(follower.state(), State::Stale { .. }).then_some(())
    })
    .await;
    commit(&store, Txn::new().delete("f/b")).await;
    commit(&store, Txn::new().put("f/c", "2")).await;
    let at = commit(&store, Txn::new().put("f/d", "1")).await;
    store.faults().fail_reads(0);
    store.compact(at).await.unwrap();

    let snapshot = follower.reached(at, SOON).await.unwrap();
    let changes = snapshot.changes_since(&before);
    let changed: Vec<_> = changes.iter().map(Change::key).collect();
    assert_eq!(changed, ["f/b", "f/c", "f/d"]);
    let stats = follower.stats();
    assert_eq!(
        (stats.lists, stats.mismatches, stats.history_breaks),
        (2, 0, 0)
    );
    assert_eq!(snapshot.epoch, 0);
}

#[tokio::test]
async fn a_lost_event_is_found_counted_and_repaired() {
    let store = MemoryStore::new();
    commit(&store, Txn::new().put("f/a", "1").put("f/b", "1")).await;
    let (follower, _driver) = start(Arc::new(store.clone()));
    fresh(&follower).await;
    checked(&follower).await;
    assert_eq!(follower.stats().mismatches, 0);

    let losses = [
        Txn::new().put("f/new", "1"),
        Txn::new().put("f/a", "2"),
        Txn::new().delete("f/b"),
    ];
    for (count, loss) in (1..).zip(losses) {
        store.faults().lose_events(1);
        commit(&store, loss).await;
        commit(&store, Txn::new().put("f/later", count.to_string())).await;
        checked(&follower).await;
        assert_eq!(follower.stats().mismatches, count);
        let (_, expected) = store.list("f/").await.unwrap();
        eventually("repaired", SOON, || async {
            let snapshot = follower.snapshot();
            snapshot
                .entries
                .iter()
                .map(|e| &**e)
                .eq(&expected)
                .then_some(())
        })
        .await;
        fresh(&follower).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn comparing_while_everything_changes_raises_no_alarm() {
    let store = MemoryStore::new();
    store.faults().delay_watches(Duration::from_millis(1));
    let (follower, _driver) = start(Arc::new(store.clone()));
    fresh(&follower).await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for round in 0..1500 {
                let txn = Txn::new()
                    .put(format!("f/{}", round % 50), round.to_string())
                    .delete(format!("f/{}", (round * 7) % 50 + 50))
                    .put(format!("f/{}", (round * 7 + 1) % 50 + 50), "x");
                commit(&store, txn).await;
                if round % 5 == 0 {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
            }
        })
    };
    while !writer.is_finished() {
        follower.check();
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    writer.await.unwrap();
    store.faults().delay_watches(Duration::ZERO);
    checked(&follower).await;
    let stats = follower.stats();
    assert!(stats.checks > 2, "{stats:?}");
    assert_eq!((stats.mismatches, stats.lists), (0, 1), "{stats:?}");
}

#[tokio::test]
async fn history_that_breaks_raises_the_epoch() {
    let store = MemoryStore::new();
    commit(&store, Txn::new().put("f/a", "old")).await;
    let backup = store.faults().checkpoint();
    commit(&store, Txn::new().put("f/a", "new")).await;
    let at = commit(&store, Txn::new().put("f/b", "new")).await;
    let (follower, _driver) = start(Arc::new(store.clone()));
    fresh(&follower).await;
    assert_eq!(follower.snapshot().revision, at);

    store.faults().restore(&backup);
    let snapshot = eventually("the backup is taken over", SOON, || async {
        Some(follower.snapshot()).filter(|snapshot| snapshot.epoch == 1)
    })
    .await;
    assert_eq!(content(&snapshot), ["f/a=old"]);
    assert!(snapshot.revision < at);

    store.faults().change_cluster(42);
    eventually("the other cluster is taken over", SOON, || async {
        (follower.snapshot().epoch == 2).then_some(())
    })
    .await;
    assert_eq!(follower.stats().history_breaks, 2);
    assert_eq!(follower.stats().mismatches, 0);
}

#[tokio::test]
async fn writes_fail_as_they_are_told_to() {
    let store = MemoryStore::new();
    let txn = || Txn::new().when_absent("a").put("a", "1");
    store.faults().fail_writes(1);
    assert!(store.txn(txn()).await.unwrap_err().retryable());
    store.faults().unknown_outcomes(1, false);
    let unknown = store.txn(txn()).await.unwrap_err();
    assert!(matches!(unknown, StoreError::UnknownOutcome(_)));
    assert!(!unknown.retryable(), "the same call could write twice");
    assert_eq!(store.revision().await.unwrap(), Revision::FIRST);
    store.faults().unknown_outcomes(1, true);
    store.txn(txn()).await.unwrap_err();
    assert_eq!(value(&store, "a").await.as_deref(), Some("1"));
    assert!(store.txn(txn()).await.unwrap().committed().is_none());
}
