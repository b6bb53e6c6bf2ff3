//! Three members of etcd: one is killed or stopped under writes, and a dead cluster fails in time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::process::Signal;
use sg_control_plane::store::etcd::EtcdStore;
use sg_control_plane::store::{Store, StoreError, StoreOptions, Txn, TxnOutcome};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::etcd_server::Cluster;
use crate::support::{SOON, eventually};
use crate::{following, suite};

/// The longest that writes may stall when a member fails.
const GAP: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_are_one_store() {
    let cluster = Cluster::start(3).await;
    suite::compare_and_swap(cluster.store_under("a")).await;
    suite::a_watch_is_ordered_and_whole(cluster.store_under("b")).await;
    suite::one_of_a_hundred_writers_wins(cluster.store_under("c")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_under_writes() {
    let mut cluster = Cluster::start(3).await;
    let load = Load::start(cluster.store());
    let (follower, _driver) = following::start(cluster.store());
    load.written(20).await;
    let leader = cluster.leader().await;
    cluster.members[leader].kill();
    load.written(20).await;
    cluster.members[leader].start();
    cluster.ready(&StoreOptions::default()).await;
    load.written(5).await;
    load.finish(&*cluster.store(), &follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_is_stopped_under_writes() {
    let cluster = Cluster::start(3).await;
    let load = Load::start(cluster.store());
    let (follower, _driver) = following::start(cluster.store());
    load.written(20).await;
    // The leader first, then the member that is asked first.
    let leader = cluster.leader().await;
    for stopped in [leader, 0] {
        cluster.members[stopped].signal(Signal::STOP);
        load.written(20).await;
        cluster.members[stopped].signal(Signal::CONT);
        cluster.ready(&StoreOptions::default()).await;
        load.written(5).await;
    }
    load.finish(&*cluster.store(), &follower).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_calls_fail_in_time_and_recover() {
    let mut cluster = Cluster::start(3).await;
    let store = cluster.store();
    let (follower, _driver) = following::start(cluster.store());
    follower.loaded().await;
    let at = crate::support::commit(&*store, Txn::new().put("f/a", "1")).await;
    follower.reached(at, SOON).await.unwrap();
    cluster.members[1].kill();
    cluster.members[2].kill();
    let started = Instant::now();
    let txn = || Txn::new().when_absent("f/b").put("f/b", "1");
    let error = store.txn(txn()).await.unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Unavailable { .. } | StoreError::UnknownOutcome(_)
        ),
        "{error}"
    );
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
    let error = store.get("f/a").await.unwrap_err();
    assert!(error.retryable(), "{error}");
    // What is known stays readable, and says that it is old.
    eventually("stale", SOON, || async {
        matches!(follower.state(), following::State::Stale { .. }).then_some(())
    })
    .await;
    assert_eq!(following::content(&follower.snapshot()), ["f/a=1"]);

    cluster.members[1].start();
    let outcome = eventually("writes again", Duration::from_secs(20), || async {
        store.txn(txn()).await.ok()
    })
    .await;
    // The first one may have happened after all, but not twice.
    let at = match outcome {
        TxnOutcome::Committed(at) => at,
        TxnOutcome::Conflict { revision, .. } => revision,
    };
    follower.reached(at, SOON).await.unwrap();
    assert_eq!(follower.snapshot().get("f/b").unwrap().value, "1");
}

#[tokio::test]
async fn nobody_there_is_said_in_time() {
    sg_runtime::crypto::install();
    // Bound but never accepting, and a port where nobody listens.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let refused = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = |listener: &std::net::TcpListener| listener.local_addr().unwrap().to_string();
    let endpoints = [address(&silent), address(&refused)];
    drop(refused);
    let store = EtcdStore::new(&endpoints, "p", &StoreOptions::default()).unwrap();
    let started = Instant::now();
    let error = store.get("a").await.unwrap_err();
    assert!(error.retryable(), "{error}");
    assert!(error.to_string().contains("127.0.0.1"), "{error}");
    assert!(
        started.elapsed() < Duration::from_secs(8),
        "{:?}",
        started.elapsed()
    );
}

/// A writer that creates `f/000000`, `f/000001`, ... one after the other, and keeps count.
struct Load {
    count: tokio::sync::watch::Receiver<usize>,
    stop: Arc<AtomicBool>,
    task: JoinHandle<Report>,
}

#[derive(Default)]
struct Report {
    /// Keys of which the store said that they are written, with the revision.
    acknowledged: BTreeMap<String, u64>,
    longest_gap: Duration,
}

impl Load {
    fn start(store: Arc<dyn Store>) -> Self {
        let (count_sender, count) = tokio::sync::watch::channel(0);
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let task = tokio::spawn(async move {
            let mut report = Report::default();
            let mut last_success = Instant::now();
            for number in 0.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let key = format!("f/{number:06}");
                // Another key is changed by every write: what it says last must be ours as well.
                let txn = Txn::new()
                    .when_absent(&key)
                    .put(&key, number.to_string())
                    .put("f/last", number.to_string());
                match store.txn(txn).await {
                    Ok(TxnOutcome::Committed(at)) => {
                        report.acknowledged.insert(key, at.get());
                        report.longest_gap = report.longest_gap.max(last_success.elapsed());
                        last_success = Instant::now();
                        count_sender.send_replace(report.acknowledged.len());
                    }
                    Ok(TxnOutcome::Conflict { .. }) => {
                        panic!("{key}: a conflict with itself, so a retry was not recognised")
                    }
                    Err(error) => println!("{key}: {error}"),
                }
            }
            report
        });
        Self { count, stop, task }
    }

    /// Waits for so many more writes.
    async fn written(&self, more: usize) {
        let mut count = self.count.clone();
        let goal = *count.borrow() + more;
        let reached = count.wait_for(|count| *count >= goal);
        let in_time = tokio::time::timeout(Duration::from_secs(20), reached).await;
        in_time.expect("writes go on").expect("the writer lives");
    }

    /// Stops, and holds what was acknowledged against the store and against the follower.
    async fn finish(self, store: &dyn Store, follower: &following::Follower) {
        self.stop.store(true, Ordering::Relaxed);
        let report = self.task.await.unwrap();
        println!(
            "{} writes, longest gap {:?}",
            report.acknowledged.len(),
            report.longest_gap
        );
        assert!(report.longest_gap < GAP, "{:?}", report.longest_gap);
        let (revision, entries) = store.list("f/").await.unwrap();
        let stored: BTreeMap<_, _> = entries
            .iter()
            .map(|entry| (entry.key.as_str(), entry))
            .collect();
        for (key, at) in &report.acknowledged {
            let entry = stored
                .get(key.as_str())
                .expect("an acknowledged write is lost");
            assert_eq!(entry.mod_revision.get(), *at, "{key} was written twice");
        }
        let snapshot = follower.reached(revision, SOON).await.unwrap();
        assert!(snapshot.entries.iter().map(|e| &**e).eq(&entries));
        following::checked(follower).await;
        let stats = follower.stats();
        assert_eq!(
            (stats.lists, stats.mismatches, stats.history_breaks),
            (1, 0, 0),
            "{stats:?}"
        );
    }
}
