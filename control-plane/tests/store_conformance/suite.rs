//! What every store must do. Each case gets an empty store of its own.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use sg_control_plane::store::{
    Batch, Compare, Event, Revision, Store, StoreError, Txn, TxnOutcome, WatchError, limits,
};
use tokio::time::{Instant, timeout};

use crate::support::{SOON, commit, end, eventually, next, value, words};

pub(crate) async fn compare_and_swap(store: Arc<dyn Store>) {
    let store = &*store;
    let create = |value: &'static str| Txn::new().when_absent("a").put("a", value);
    let first = commit(store, create("1")).await;
    let (at, entry) = store.get("a").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!(
        (at, entry.mod_revision, entry.create_revision),
        (first, first, first)
    );
    assert_eq!(&entry.value[..], b"1");

    let again = store.txn(create("2")).await.unwrap();
    let TxnOutcome::Conflict { revision, current } = again else {
        panic!("created twice");
    };
    assert_eq!(revision, first);
    assert_eq!(current, [("a".to_owned(), Some(entry))]);

    let update =
        |at: Revision, value: &'static str| Txn::new().when_revision("a", at).put("a", value);
    let second = commit(store, update(first, "2")).await;
    assert!(
        store
            .txn(update(first, "3"))
            .await
            .unwrap()
            .committed()
            .is_none()
    );
    assert_eq!(value(store, "a").await.as_deref(), Some("2"));
    let (_, entry) = store.get("a").await.unwrap();
    let entry = entry.unwrap();
    assert_eq!((entry.mod_revision, entry.create_revision), (second, first));

    let present = Compare::Present {
        key: "a".to_owned(),
    };
    let third = commit(store, Txn::new().when(present.clone()).delete("a")).await;
    assert_eq!(value(store, "a").await, None);
    assert!(
        store
            .txn(Txn::new().when(present).put("b", "1"))
            .await
            .unwrap()
            .committed()
            .is_none()
    );
    assert!(
        store
            .txn(update(second, "3"))
            .await
            .unwrap()
            .committed()
            .is_none()
    );

    let fourth = commit(store, create("4")).await;
    assert!(fourth > third);
    let (_, entry) = store.get("a").await.unwrap();
    assert_eq!(
        entry.unwrap().create_revision,
        fourth,
        "history starts over after a delete"
    );

    // Revision 0 is the revision of what is absent.
    commit(
        store,
        Txn::new()
            .when_revision("new", Revision::NONE)
            .put("new", "1"),
    )
    .await;
    // All compares must hold, not one.
    let half = Txn::new()
        .when_revision("a", fourth)
        .when_absent("new")
        .put("c", "1");
    assert!(store.txn(half).await.unwrap().committed().is_none());
    assert_eq!(value(store, "c").await, None);
}

pub(crate) async fn revisions_rise_by_one(store: Arc<dyn Store>) {
    let store = &*store;
    assert_eq!(store.revision().await.unwrap(), Revision::FIRST);
    let first = commit(store, Txn::new().put("a", "1").put("b", "1").put("c", "1")).await;
    assert_eq!(first, Revision::new(2), "many writes are one revision");
    let (at, listed) = store.list("").await.unwrap();
    assert_eq!(at, first);
    assert!(listed.iter().all(|entry| entry.mod_revision == first));

    let same = commit(store, Txn::new().put("a", "1")).await;
    assert_eq!(same, first.next(), "the same value is a write too");
    let conflict = store
        .txn(Txn::new().when_absent("a").put("b", "2"))
        .await
        .unwrap();
    assert!(matches!(conflict, TxnOutcome::Conflict { revision, .. } if revision == same));
    let nothing = store.txn(Txn::new().delete("absent")).await.unwrap();
    assert_eq!(
        nothing,
        TxnOutcome::Committed(same),
        "deleting nothing changes nothing"
    );
    let empty = store
        .txn(Txn::new().when_revision("a", same))
        .await
        .unwrap();
    assert_eq!(empty, TxnOutcome::Committed(same));
    assert_eq!(store.revision().await.unwrap(), same);

    let mixed = commit(store, Txn::new().delete("absent").delete("b").put("c", "2")).await;
    assert_eq!(mixed, same.next());
    let (at, keys) = store.keys("").await.unwrap();
    assert_eq!(at, mixed);
    assert_eq!(keys, [("a".to_owned(), same), ("c".to_owned(), mixed)]);
}

pub(crate) async fn conflicts_name_the_keys(store: Arc<dyn Store>) {
    let store = &*store;
    commit(store, Txn::new().put("idx/port/15000", "billing")).await;
    let at = commit(store, Txn::new().put("obj/format", "1")).await;
    let mut txn = Txn::new()
        .when_absent("obj/web")
        .when_absent("idx/port/15000")
        .put("obj/web", "web")
        .put("idx/port/15000", "web");
    txn.read_on_conflict.push("obj/format".to_owned());
    let TxnOutcome::Conflict { revision, current } = store.txn(txn).await.unwrap() else {
        panic!("a port was given away twice");
    };
    assert_eq!(revision, at);
    let seen: Vec<_> = current
        .iter()
        .map(|(key, entry)| (key.as_str(), entry.as_ref().map(|e| &e.value[..])))
        .collect();
    assert_eq!(
        seen,
        [
            ("obj/web", None),
            ("idx/port/15000", Some(&b"billing"[..])),
            ("obj/format", Some(&b"1"[..])),
        ]
    );
    assert_eq!(value(store, "obj/web").await, None, "all or nothing");
}

pub(crate) async fn a_prefix_is_empty_or_not(store: Arc<dyn Store>) {
    let store = &*store;
    let empty = |prefix: &str| Compare::PrefixEmpty {
        prefix: prefix.to_owned(),
    };
    commit(
        store,
        Txn::new()
            .put("dst/gw", "x")
            .put("dst/gw0", "x")
            .put("dst/gx/1", "x"),
    )
    .await;
    commit(store, Txn::new().when(empty("dst/gw/")).put("gone", "1")).await;
    commit(store, Txn::new().put("dst/gw/1", "x")).await;
    let delete = || Txn::new().when(empty("dst/gw/")).delete("dst/gw");
    assert!(store.txn(delete()).await.unwrap().committed().is_none());
    commit(store, Txn::new().delete("dst/gw/1")).await;
    commit(store, delete()).await;
    let blank = store.txn(Txn::new().when(empty("")).put("x", "1")).await;
    assert!(matches!(blank, Err(StoreError::Invalid(_))));
}

pub(crate) async fn a_watch_is_ordered_and_whole(store: Arc<dyn Store>) {
    let store = &*store;
    let from = store.revision().await.unwrap().next();
    let mut watch = store.watch("w/", from).await.unwrap();
    let mut everything = store.watch("", from).await.unwrap();
    commit(
        store,
        Txn::new().put("v/1", "no").put("w", "no").put("w0", "no"),
    )
    .await;
    commit(
        store,
        Txn::new().put("w/b", "1").put("x", "no").put("w/a", "1"),
    )
    .await;
    commit(
        store,
        Txn::new().put("w/c", "1").delete("w/b").delete("w/absent"),
    )
    .await;
    let conflict = Txn::new().when_absent("w/a").put("w/z", "conflict");
    assert!(store.txn(conflict).await.unwrap().committed().is_none());
    let last = commit(store, Txn::new().delete("w/a").delete("w/c")).await;

    let batches = [
        next(&mut watch).await,
        next(&mut watch).await,
        next(&mut watch).await,
    ];
    assert_eq!(words(&batches[0]), ["w/b=1", "w/a=1"]);
    assert_eq!(words(&batches[1]), ["w/c=1", "-w/b"]);
    assert_eq!(words(&batches[2]), ["-w/a", "-w/c"]);
    assert!(
        batches
            .windows(2)
            .all(|pair| pair[0].revision < pair[1].revision)
    );
    assert_eq!(batches[2].revision, last);

    let first = next(&mut everything).await;
    assert_eq!(words(&first), ["v/1=no", "w=no", "w0=no"]);
    assert_eq!(first.revision, from);

    let many = 150;
    for index in 0..many {
        commit(store, Txn::new().put("w/n", index.to_string())).await;
    }
    for index in 0..many {
        assert_eq!(words(&next(&mut watch).await), [format!("w/n={index}")]);
    }
    let silence = timeout(Duration::from_millis(50), watch.next()).await;
    assert!(silence.is_err(), "{silence:?}");
}

pub(crate) async fn a_watch_starts_in_the_past_or_the_future(store: Arc<dyn Store>) {
    let store = &*store;
    let mut revisions = Vec::new();
    for index in 0..20 {
        revisions.push(commit(store, Txn::new().put("k", index.to_string())).await);
    }
    commit(store, Txn::new().put("other", "x")).await;

    let mut past = store.watch("k", revisions[5]).await.unwrap();
    for (index, revision) in revisions.iter().enumerate().skip(5) {
        let batch = next(&mut past).await;
        assert_eq!(words(&batch), [format!("k={index}")]);
        assert_eq!(batch.revision, *revision);
    }
    // Opened again where it was left: nothing twice, nothing lost.
    drop(past);
    let late = commit(store, Txn::new().put("k", "late")).await;
    let mut resumed = store.watch("k", revisions[19].next()).await.unwrap();
    assert_eq!(next(&mut resumed).await.revision, late);

    let mut future = store.watch("k", late.next().next()).await.unwrap();
    commit(store, Txn::new().put("k", "too early")).await;
    commit(store, Txn::new().put("k", "in time")).await;
    assert_eq!(words(&next(&mut future).await), ["k=in time"]);

    let zero = store.watch("k", Revision::NONE).await;
    assert!(matches!(zero, Err(StoreError::Invalid(_))));
}

pub(crate) async fn compaction_ends_old_watches_only(store: Arc<dyn Store>) {
    let store = &*store;
    let mut revisions = Vec::new();
    for index in 0..10 {
        revisions.push(commit(store, Txn::new().put("k", index.to_string())).await);
    }
    let mut open = store.watch("k", revisions[9].next()).await.unwrap();
    let at = revisions[5];
    store.compact(at).await.unwrap();
    assert_eq!(store.compact(at).await, Err(StoreError::Compacted));
    assert_eq!(
        store.compact(revisions[2]).await,
        Err(StoreError::Compacted)
    );
    assert_eq!(
        store.compact(revisions[9].next()).await,
        Err(StoreError::Future)
    );
    assert!(matches!(
        store.compact(Revision::NONE).await,
        Err(StoreError::Invalid(_))
    ));

    let mut old = store.watch("k", revisions[4]).await.unwrap();
    assert_eq!(end(&mut old).await, WatchError::Compacted(at));
    assert!(
        matches!(end(&mut old).await, WatchError::Ended(_)),
        "it ends once"
    );
    let mut oldest = store.watch("k", at).await.unwrap();
    assert_eq!(words(&next(&mut oldest).await), ["k=5"]);

    // List and resume, as one who was told that.
    let (listed_at, listed) = store.list("").await.unwrap();
    assert_eq!((listed_at, listed.len()), (revisions[9], 1));
    let mut resumed = store.watch("k", listed_at.next()).await.unwrap();
    commit(store, Txn::new().put("k", "after")).await;
    assert_eq!(words(&next(&mut resumed).await), ["k=after"]);
    assert_eq!(
        words(&next(&mut open).await),
        ["k=after"],
        "open watches do not notice"
    );
}

pub(crate) async fn keys_expire(store: Arc<dyn Store>) {
    let store = &*store;
    let ttl = Duration::from_secs(2);
    let started = Instant::now();
    let put = Txn::new()
        .put_for("t/a", "1", ttl)
        .put_for("t/b", "1", ttl)
        .put_for("t/kept", "1", ttl)
        .put_for("t/long", "1", Duration::from_secs(3600))
        .put("t/for-ever", "1");
    let at = commit(store, put).await;
    let mut watch = store.watch("t/", at.next()).await.unwrap();
    let kept = commit(store, Txn::new().put("t/kept", "2")).await;
    assert_eq!(next(&mut watch).await.revision, kept);

    // One revision or two, but as deletes that the watch sees.
    let mut gone = BTreeSet::new();
    while gone.len() < 2 {
        let batch = next(&mut watch).await;
        gone.extend(words(&batch));
    }
    assert!(started.elapsed() >= ttl, "expired early");
    assert_eq!(gone, BTreeSet::from(["-t/a".to_owned(), "-t/b".to_owned()]));
    let (_, keys) = store.keys("t/").await.unwrap();
    let left: Vec<_> = keys.iter().map(|(key, _)| key.as_str()).collect();
    assert_eq!(left, ["t/for-ever", "t/kept", "t/long"]);

    // What has expired can be created again.
    commit(
        store,
        Txn::new().when_absent("t/a").put_for("t/a", "2", ttl),
    )
    .await;
    assert_eq!(value(store, "t/a").await.as_deref(), Some("2"));
    eventually("the second life ends too", SOON, || async {
        value(store, "t/a").await.is_none().then_some(())
    })
    .await;
    // A delete before the time is no trouble later.
    let brief = Duration::from_secs(1);
    let both = Txn::new()
        .put_for("t/d", "1", brief)
        .put_for("t/e", "1", brief);
    commit(store, both).await;
    commit(store, Txn::new().delete("t/d")).await;
    commit(store, Txn::new().put("t/d", "stays")).await;
    eventually("the other one expires", SOON, || async {
        value(store, "t/e").await.is_none().then_some(())
    })
    .await;
    assert_eq!(value(store, "t/d").await.as_deref(), Some("stays"));
}

pub(crate) async fn limits_are_the_same_everywhere(store: Arc<dyn Store>) {
    let store = &*store;
    let mut full = Txn::new();
    for index in 0..limits::MAX_TXN_OPERATIONS {
        full = full
            .when_absent(format!("f/{index}"))
            .put(format!("f/{index}"), "1");
    }
    commit(store, full.clone()).await;
    let TxnOutcome::Conflict { current, .. } = store.txn(full.clone()).await.unwrap() else {
        panic!("created twice");
    };
    assert_eq!(current.len(), limits::MAX_TXN_OPERATIONS);
    assert!(current.iter().all(|(_, entry)| entry.is_some()));
    let before = store.revision().await.unwrap();

    let too_large = [
        full.put("f/more", "1"),
        Txn::new().put("big", vec![0; limits::MAX_VALUE_BYTES + 1]),
        Txn::new().put("k".repeat(limits::MAX_KEY_BYTES + 1), "1"),
        Txn::new()
            .put("big1", vec![0; limits::MAX_VALUE_BYTES])
            .put("big2", vec![0; limits::MAX_VALUE_BYTES]),
    ];
    for txn in too_large {
        let refused = store.txn(txn).await;
        assert!(
            matches!(refused, Err(StoreError::TooLarge(_))),
            "{refused:?}"
        );
    }
    let invalid = [
        Txn::new().put("", "1"),
        Txn::new().put("a", "1").delete("a"),
        Txn::new().put_for("a", "1", Duration::from_millis(10)),
    ];
    for txn in invalid {
        let refused = store.txn(txn).await;
        assert!(
            matches!(refused, Err(StoreError::Invalid(_))),
            "{refused:?}"
        );
    }
    assert!(matches!(store.get("").await, Err(StoreError::Invalid(_))));
    assert_eq!(
        store.revision().await.unwrap(),
        before,
        "refused is not written"
    );

    // The largest that is allowed is allowed by the store as well.
    let key = "k".repeat(limits::MAX_KEY_BYTES);
    let rest = limits::MAX_TXN_BYTES - limits::MAX_VALUE_BYTES - key.len() - 1;
    let largest = Txn::new()
        .put(key.clone(), vec![7; limits::MAX_VALUE_BYTES])
        .put("r", vec![7; rest]);
    commit(store, largest).await;
    let (_, entry) = store.get(&key).await.unwrap();
    assert_eq!(
        entry.unwrap().value,
        Bytes::from(vec![7; limits::MAX_VALUE_BYTES])
    );
}

pub(crate) async fn one_of_a_hundred_writers_wins(store: Arc<dyn Store>) {
    let before = store.revision().await.unwrap();
    let claims = (0..100).map(|writer| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let txn = Txn::new()
                .when_absent("idx/port/15000")
                .put("idx/port/15000", format!("{writer}"))
                .put(format!("obj/{writer}"), "1");
            (writer, store.txn(txn).await.unwrap())
        })
    });
    let outcomes: Vec<_> = join_all(claims)
        .await
        .into_iter()
        .map(Result::unwrap)
        .collect();
    let winners: Vec<_> = outcomes
        .iter()
        .filter_map(|(writer, outcome)| outcome.committed().map(|_| *writer))
        .collect();
    assert_eq!(winners.len(), 1, "{winners:?}");
    let winner = winners[0].to_string();
    for (_, outcome) in &outcomes {
        if let TxnOutcome::Conflict { current, .. } = outcome {
            let holder = current[0].1.as_ref().unwrap();
            assert_eq!(holder.value, winner, "losers learn who holds it");
        }
    }
    let (at, objects) = store.list("obj/").await.unwrap();
    assert_eq!(objects.len(), 1);
    assert_eq!(at, before.next());

    // A counter under the same crowd: every success counts once.
    commit(&*store, Txn::new().put("count", "0")).await;
    let adders = (0..10).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            let mut added = 0;
            while added < 5 {
                let (_, entry) = store.get("count").await.unwrap();
                let entry = entry.unwrap();
                let count: u64 = std::str::from_utf8(&entry.value).unwrap().parse().unwrap();
                let txn = Txn::new()
                    .when_revision("count", entry.mod_revision)
                    .put("count", (count + 1).to_string());
                added += u32::from(store.txn(txn).await.unwrap().committed().is_some());
            }
        })
    });
    join_all(adders).await.into_iter().for_each(Result::unwrap);
    assert_eq!(value(&*store, "count").await.as_deref(), Some("50"));
}

pub(crate) async fn a_list_is_one_revision_over_many_pages(store: Arc<dyn Store>) {
    for page in 0..25 {
        let txn = (0..100).fold(Txn::new(), |txn, index| {
            txn.put(format!("l/{page:02}/{index:02}"), "0")
        });
        commit(&*store, txn).await;
    }
    // The first and the last key always change together.
    let writer = {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for round in 1..=60 {
                let both = round.to_string();
                let txn = Txn::new().put("l/00/00", both.clone()).put("l/24/99", both);
                commit(&*store, txn).await;
            }
        })
    };
    let mut lists = 0;
    while !writer.is_finished() || lists == 0 {
        let (revision, entries) = store.list("l/").await.unwrap();
        assert_eq!(entries.len(), 2500);
        assert_eq!(
            entries[0].value, entries[2499].value,
            "torn at revision {revision}"
        );
        assert!(entries.iter().all(|entry| entry.mod_revision <= revision));
        assert!(entries.is_sorted_by(|a, b| a.key < b.key));
        lists += 1;
    }
    writer.await.unwrap();
    let (revision, entries) = store.list("l/").await.unwrap();
    let (keys_at, keys) = store.keys("l/").await.unwrap();
    assert_eq!(keys_at, revision);
    let listed = entries
        .into_iter()
        .map(|entry| (entry.key, entry.mod_revision));
    assert!(listed.eq(keys));
}

pub(crate) async fn large_values_are_listed_and_replayed(store: Arc<dyn Store>) {
    let store = &*store;
    let count: u8 = 36;
    let mut first = None;
    for index in 0..count {
        let value = vec![index; limits::MAX_VALUE_BYTES];
        let at = commit(store, Txn::new().put(format!("big/{index:02}"), value)).await;
        first.get_or_insert(at);
    }
    let whole = |value: &Bytes, index: u8| {
        value.len() == limits::MAX_VALUE_BYTES && value.iter().all(|byte| *byte == index)
    };
    let (_, entries) = store.list("big/").await.unwrap();
    assert_eq!(entries.len(), usize::from(count));
    for (index, entry) in (0..count).zip(&entries) {
        assert!(whole(&entry.value, index), "{}", entry.key);
    }
    // A conflict may read all of them back.
    let mut conflict = Txn::new().when(Compare::Absent {
        key: "big/00".to_owned(),
    });
    let keys = entries.iter().map(|entry| entry.key.clone());
    conflict.read_on_conflict.extend(keys);
    let TxnOutcome::Conflict { current, .. } = store.txn(conflict).await.unwrap() else {
        panic!("big/00 is there");
    };
    for (index, (_, entry)) in (0..count).zip(&current) {
        assert!(whole(&entry.as_ref().unwrap().value, index));
    }
    let mut watch = store.watch("big/", first.unwrap()).await.unwrap();
    for index in 0..count {
        let Batch { events, .. } = next(&mut watch).await;
        let [Event::Put(entry)] = &events[..] else {
            panic!("{events:?}");
        };
        assert!(whole(&entry.value, index), "{}", entry.key);
    }
}

pub(crate) async fn keys_are_sorted_by_their_bytes(store: Arc<dyn Store>) {
    let store = &*store;
    let keys = [
        "k/",
        "k/ ",
        "k/A",
        "k/a",
        "k/a/b",
        "k/a0",
        "k/z",
        "k/é",
        "k/日本",
        "k/\u{10ffff}",
    ];
    let txn = keys
        .iter()
        .rev()
        .fold(Txn::new(), |txn, key| txn.put(*key, "v"));
    let outside = ["k", "k.", "k0", "l"];
    let txn = outside.iter().fold(txn, |txn, key| txn.put(*key, "v"));
    let at = commit(store, txn).await;
    let (_, listed) = store.list("k/").await.unwrap();
    let listed: Vec<_> = listed.iter().map(|entry| entry.key.as_str()).collect();
    assert_eq!(listed, keys);
    let (_, under) = store.keys("k/\u{10ffff}").await.unwrap();
    assert_eq!(under.len(), 1);
    let mut watch = store.watch("k/a", at).await.unwrap();
    let mut seen = words(&next(&mut watch).await);
    seen.sort();
    assert_eq!(seen, ["k/a/b=v", "k/a0=v", "k/a=v"]);
}

pub(crate) async fn a_store_knows_itself(store: Arc<dyn Store>) {
    let at = commit(&*store, Txn::new().put("a", "1")).await;
    let health = store.health().await.unwrap();
    assert_eq!(health.revision, at);
    assert_eq!(store.health().await.unwrap().cluster_id, health.cluster_id);
    assert!(!store.describe().is_empty());
}
