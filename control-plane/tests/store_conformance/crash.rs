//! The process that holds the data is killed while it writes: nothing acknowledged is lost.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{RngExt as _, SeedableRng as _};
use sg_control_plane::store::embedded::EmbeddedStore;
use sg_control_plane::store::{Revision, Store, StoreError, Txn};

use crate::etcd_server::Cluster;
use crate::following;
use crate::support::{SOON, commit, end, eventually, next, value};

/// Set in the child process: the file to write into.
const CHILD_FILE: &str = "SG_TEST_STORE_FILE";
/// What the child says on a line of its own after each commit.
const ACKNOWLEDGED: &str = "acknowledged ";

/// The child process of the test below; passes at once when run as a test.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn child_writes_until_it_is_killed() {
    let Ok(file) = std::env::var(CHILD_FILE) else {
        return;
    };
    let store = EmbeddedStore::open(Path::new(&file)).unwrap();
    let (_, keys) = store.keys("n/").await.unwrap();
    for number in keys.len().. {
        let key = format!("n/{number:06}");
        let txn = Txn::new()
            .when_absent(&key)
            .put(&key, number.to_string())
            .put("last", number.to_string())
            .put_for(format!("ttl/{number}"), "1", Duration::from_secs(3600));
        commit(&store, txn).await;
        let mut out = std::io::stdout().lock();
        writeln!(out, "{ACKNOWLEDGED}{number}").unwrap();
        out.flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_loses_nothing_when_killed() {
    let seed: u64 = rand::random();
    println!("seed {seed}");
    let mut random = SmallRng::seed_from_u64(seed);
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let mut identity = None;
    for round in 0..8 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "crash::child_writes_until_it_is_killed",
                "--nocapture",
            ])
            .env(CHILD_FILE, &file)
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        let patience = random.random_range(5..60);
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged = lines
            .map_while(Result::ok)
            .filter_map(|line| line.strip_prefix(ACKNOWLEDGED)?.parse::<usize>().ok());
        let mut last = acknowledged.nth(patience).expect("the child writes");
        child.kill().unwrap();
        // What it said before it died counts as well.
        last = acknowledged.last().unwrap_or(last);
        child.wait().unwrap();

        let store = EmbeddedStore::open(&file).unwrap();
        let (revision, entries) = store.list("n/").await.unwrap();
        assert!(
            entries.len() > last,
            "round {round}: {} entries, {last} acknowledged",
            entries.len()
        );
        for (number, entry) in entries.iter().enumerate() {
            assert_eq!(entry.key, format!("n/{number:06}"));
            assert_eq!(entry.value, number.to_string());
        }
        // Whole transactions only, and the log agrees with the keys.
        let newest = entries.len() - 1;
        assert_eq!(value(&store, "last").await, Some(newest.to_string()));
        assert_eq!(store.keys("ttl/").await.unwrap().1.len(), entries.len());
        let mut watch = store.watch("", Revision::FIRST).await.unwrap();
        for at in 2..=revision.get() {
            let batch = next(&mut watch).await;
            assert_eq!((batch.revision.get(), batch.events.len()), (at, 3));
        }
        let cluster_id = store.health().await.unwrap().cluster_id;
        assert_eq!(*identity.get_or_insert(cluster_id), cluster_id);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_serves_one_process() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let store = EmbeddedStore::open(&file).unwrap();
    let mut watch = store.watch("", Revision::FIRST).await.unwrap();
    let error = EmbeddedStore::open(&file).unwrap_err();
    assert!(
        error.to_string().contains("in use by another process"),
        "{error}"
    );
    assert!(!error.retryable());
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = std::fs::metadata(&file).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
    drop(store);
    // An open watch does not keep the file.
    end(&mut watch).await;
    EmbeddedStore::open(&file).unwrap();

    std::fs::write(folder.path().join("other"), b"no database at all").unwrap();
    let error = EmbeddedStore::open(&folder.path().join("other")).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Unavailable {
                retryable: false,
                ..
            }
        ),
        "{error}"
    );
    let error = EmbeddedStore::open(&folder.path().join("no/such/folder")).unwrap_err();
    assert!(error.to_string().contains("no/such/folder"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_keys_expire_although_it_was_closed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.db");
    let store = EmbeddedStore::open(&file).unwrap();
    let put = Txn::new()
        .put_for("short", "1", Duration::from_secs(1))
        .put_for("long", "1", Duration::from_secs(3600))
        .put_for("lifted", "1", Duration::from_secs(1));
    let at = commit(&store, put).await;
    commit(&store, Txn::new().put("lifted", "2")).await;
    drop(store);

    let store = EmbeddedStore::open(&file).unwrap();
    eventually("it expires", SOON, || async {
        value(&store, "short").await.is_none().then_some(())
    })
    .await;
    let (now, keys) = store.keys("").await.unwrap();
    let keys: Vec<_> = keys.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(keys, ["lifted", "long"]);
    assert_eq!(now, at.next().next());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn embedded_keeps_a_bounded_log() {
    let folder = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&folder.path().join("store.db")).unwrap();
    // 64 MiB of log are kept; write more, in few commits.
    let first = store.revision().await.unwrap().next();
    for round in 0..80_u8 {
        commit(&store, Txn::new().put("k", vec![round; 1_000_000])).await;
    }
    let mut watch = store.watch("", first).await.unwrap();
    let sg_control_plane::store::WatchError::Compacted(oldest) = end(&mut watch).await else {
        panic!("the log grows without end");
    };
    assert!(oldest > first);
    let mut watch = store.watch("", oldest).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, oldest);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_loses_nothing_when_killed_and_the_follower_misses_nothing() {
    let mut cluster = Cluster::start(1).await;
    let store = cluster.store();
    let (follower, _driver) = following::start(cluster.store());
    follower.loaded().await;
    let mut written = 0;
    for _ in 0..3 {
        let writer = {
            let store = cluster.store();
            tokio::spawn(async move {
                let mut number = written;
                loop {
                    let key = format!("f/{number:06}");
                    let txn = Txn::new().when_absent(&key).put(&key, number.to_string());
                    match store.txn(txn).await {
                        Ok(outcome) => assert!(outcome.committed().is_some(), "{key} was there"),
                        Err(_) => return number,
                    }
                    number += 1;
                }
            })
        };
        let goal = format!("f/{:06}", written + 20);
        eventually("some are written", SOON, || async {
            follower.snapshot().get(&goal).map(drop)
        })
        .await;
        cluster.members[0].kill();
        let acknowledged = writer.await.unwrap();
        cluster.members[0].start();
        cluster.ready(&Default::default()).await;

        let (revision, entries) = store.list("f/").await.unwrap();
        assert!(
            entries.len() >= acknowledged,
            "{} < {acknowledged}",
            entries.len()
        );
        for (number, entry) in entries.iter().enumerate() {
            assert_eq!(entry.key, format!("f/{number:06}"));
        }
        written = entries.len();
        let snapshot = follower.reached(revision, SOON).await.unwrap();
        assert!(snapshot.entries.iter().map(|e| &**e).eq(&entries));
    }
    following::checked(&follower).await;
    let stats = follower.stats();
    assert_eq!(
        (stats.lists, stats.mismatches, stats.history_breaks),
        (1, 0, 0),
        "{stats:?}"
    );
}
