//! What the cases need again and again: waiting with a deadline, short transactions, watches.

use std::future::Future;
use std::time::Duration;

use sg_control_plane::store::{
    Batch, Event, Revision, Store, Txn, TxnOutcome, WatchError, WatchStream,
};
use tokio::time::{Instant, sleep, timeout};

/// The patience of everything that should happen at once; generous because machines are shared.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// Polls until `probe` gives something.
pub(crate) async fn eventually<T, F, Fut>(what: &str, limit: Duration, mut probe: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    loop {
        if let Some(found) = probe().await {
            return found;
        }
        assert!(Instant::now() < deadline, "not within {limit:?}: {what}");
        sleep(Duration::from_millis(10)).await;
    }
}

/// Commits, and returns the revision.
pub(crate) async fn commit(store: &dyn Store, txn: Txn) -> Revision {
    match store.txn(txn).await.unwrap() {
        TxnOutcome::Committed(revision) => revision,
        conflict @ TxnOutcome::Conflict { .. } => panic!("{conflict:?}"),
    }
}

/// The value of a key as text.
pub(crate) async fn value(store: &dyn Store, key: &str) -> Option<String> {
    let (_, entry) = store.get(key).await.unwrap();
    entry.map(|entry| String::from_utf8(entry.value.to_vec()).unwrap())
}

/// The next batch of a watch.
pub(crate) async fn next(watch: &mut WatchStream) -> Batch {
    match timeout(SOON, watch.next()).await {
        Ok(Ok(batch)) => batch,
        Ok(Err(error)) => panic!("the watch ended: {error}"),
        Err(_) => panic!("the watch is silent"),
    }
}

/// The error that ends a watch.
pub(crate) async fn end(watch: &mut WatchStream) -> WatchError {
    match timeout(SOON, watch.next()).await {
        Ok(Ok(batch)) => panic!("the watch goes on: {batch:?}"),
        Ok(Err(error)) => error,
        Err(_) => panic!("the watch neither ends nor goes on"),
    }
}

/// `key=value` and `-key`, in order.
pub(crate) fn words(batch: &Batch) -> Vec<String> {
    batch
        .events
        .iter()
        .map(|event| match event {
            Event::Put(entry) => {
                assert_eq!(entry.mod_revision, batch.revision);
                format!("{}={}", entry.key, String::from_utf8_lossy(&entry.value))
            }
            Event::Delete { key } => format!("-{key}"),
        })
        .collect()
}
