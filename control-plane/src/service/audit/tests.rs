//! The trail under races, lost answers, tampering and trimming, on the memory store.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use super::read::Filter;
use super::trim::{Kept, trim};
use super::*;
use crate::service::Core;
use crate::service::tests::{Plane, create, plane, plane_on};
use crate::store::Txn;
use crate::store::memory::MemoryStore;

const MANY: usize = 10_000;

async fn numbers(core: &Core) -> Vec<u64> {
    let (found, next) = core
        .audit_records(&Filter::default(), 0, MANY)
        .await
        .unwrap();
    assert_eq!(next, 0);
    let mut numbers: Vec<_> = found.iter().map(|r| r.record.number).collect();
    numbers.reverse();
    numbers
}

async fn made(plane: &Plane, count: usize) {
    for number in 0..count {
        create(&plane.core, &format!("g{number}")).await.unwrap();
    }
}

#[tokio::test]
async fn every_change_has_one_record_that_says_what_changed() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let answer = create(&plane.core, "dev").await.unwrap();
    create(&plane.core, "dev").await.unwrap_err();
    let (found, _) = plane
        .core
        .audit_records(&Filter::default(), 0, MANY)
        .await
        .unwrap();
    assert_eq!(
        found.len(),
        2,
        "the first start and one change; none of what was refused"
    );
    let record = &found[0].record;
    assert_eq!(found[0].revision, answer.gateway.revision);
    assert_eq!(
        (record.principal.as_str(), record.principal_id.as_str()),
        ("tester", "T1")
    );
    let id = answer.gateway.value.gateway.id.to_string();
    assert_eq!(
        (record.gateway_id.as_str(), record.object.clone()),
        (id.as_str(), format!("gateway/{id}"))
    );
    let objects: Vec<_> = record.changes.iter().map(|c| c.object.clone()).collect();
    assert_eq!(objects, [format!("gateway/{id}"), format!("acl/{id}")]);
    let fields = &record.changes[0].fields;
    assert!(
        fields
            .iter()
            .any(|f| f.name == "name" && f.before.is_empty() && f.after == "dev")
    );
    let hidden = fields.iter().find(|f| f.name == "token_sha256").unwrap();
    assert_eq!(hidden.after, "<redacted>");
    assert_eq!(record.previous_sha256, found[1].sha256);
}

/// Row 42, too: a change exists exactly if its record does, whatever the store answered.
#[tokio::test]
async fn a_lost_answer_neither_loses_nor_doubles_a_record() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    for (number, happened) in [true, false, true, true, false, false]
        .into_iter()
        .enumerate()
    {
        store.faults().unknown_outcomes(1, happened);
        create(&plane.core, &format!("g{number}")).await.unwrap();
    }
    assert_eq!(plane.core.views.now().world.gateways().count(), 6);
    assert_eq!(numbers(&plane.core).await, [1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(plane.core.verify_audit().await.unwrap().broken, None);
}

#[tokio::test]
async fn changes_of_three_control_planes_are_one_chain() {
    crypto::install();
    let store = MemoryStore::new();
    let dir = tempfile::tempdir().unwrap();
    let mut planes = Vec::new();
    for id in ["C1", "C2", "C3"] {
        planes.push(plane_on(&store, dir.path(), id).await);
    }
    let work = planes.iter().enumerate().flat_map(|(index, (core, _))| {
        (0..30).map(move |number| async move {
            create(core, &format!("g-{index}-{number}"))
                .await
                .map(|_| ())
        })
    });
    let results = futures_util::future::join_all(work).await;
    for result in &results {
        assert!(result.is_ok(), "{result:?}");
    }
    assert_eq!(numbers(&planes[0].0).await, (1..=91).collect::<Vec<_>>());
    let found = planes[1].0.verify_audit().await.unwrap();
    assert_eq!(
        (found.broken, found.records, found.last.number),
        (None, 91, 91)
    );
}

#[tokio::test]
async fn whatever_is_done_to_the_records_shows() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    made(&plane, 5).await;
    let entry = async |key: &str| store.get(key).await.unwrap().1.unwrap().value;
    let broken = async || {
        let found = plane.core.verify_audit().await.unwrap();
        found.broken.map(|(number, _)| number)
    };
    assert_eq!(broken().await, None);
    let key = keys::audit(3);
    let kept = entry(&key).await;
    let head = entry(keys::CHAIN_HEAD).await;

    // A name is changed in it.
    let mut forged = wire::Audit::decode(kept.as_ref()).unwrap();
    forged.principal = "somebody".to_owned();
    let put = |key: &str, value: Vec<u8>| Txn::new().put(key, value);
    store.txn(put(&key, forged.encode_to_vec())).await.unwrap();
    assert_eq!(broken().await, Some(4), "the next one no longer follows");
    // It is taken out.
    store.txn(Txn::new().delete(key.as_str())).await.unwrap();
    assert_eq!(broken().await, Some(3));
    store.txn(put(&key, kept.to_vec())).await.unwrap();
    assert_eq!(broken().await, None);
    // The last one is changed, which nothing follows.
    let last = keys::audit(6);
    let kept = entry(&last).await;
    let mut forged = wire::Audit::decode(kept.as_ref()).unwrap();
    forged.method = "Nothing.Happened".to_owned();
    store.txn(put(&last, forged.encode_to_vec())).await.unwrap();
    assert_eq!(broken().await, Some(6));
    // It is taken out, and the end of the chain is left.
    store.txn(Txn::new().delete(last.as_str())).await.unwrap();
    assert_eq!(broken().await, Some(6));
    store.txn(put(&last, kept.to_vec())).await.unwrap();
    assert_eq!(broken().await, None);
    // Two change places.
    let (a, b) = (entry(&keys::audit(2)).await, entry(&keys::audit(4)).await);
    let swapped = put(&keys::audit(2), b.to_vec()).put(keys::audit(4), a.to_vec());
    store.txn(swapped).await.unwrap();
    assert_eq!(broken().await, Some(2));
    let restored = put(&keys::audit(2), a.to_vec()).put(keys::audit(4), b.to_vec());
    store.txn(restored).await.unwrap();
    // The end of the chain cannot be made by whoever has no key, nor moved to where it begins.
    store
        .txn(put(keys::CHAIN_ANCHOR, head.to_vec()))
        .await
        .unwrap();
    assert!(plane.core.verify_audit().await.is_err());
}

#[tokio::test]
async fn what_is_left_after_trimming_can_still_be_verified() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    made(&plane, 220).await;
    let year = Duration::from_secs(366 * 24 * 3600);
    let kept = Kept {
        records: 15,
        age: year,
    };
    assert_eq!(trim(&store, &plane.core.key, kept).await.unwrap(), 206);
    assert_eq!(trim(&store, &plane.core.key, kept).await.unwrap(), 0);
    assert_eq!(numbers(&plane.core).await, (207..=221).collect::<Vec<_>>());
    let found = plane.core.verify_audit().await.unwrap();
    assert_eq!(
        (found.broken.clone(), found.first, found.records),
        (None, 207, 15)
    );
    create(&plane.core, "after").await.unwrap();
    assert_eq!(plane.core.verify_audit().await.unwrap().broken, None);
    // A record that was dropped in order is not missing; one that is dropped otherwise is.
    store
        .txn(Txn::new().delete(keys::audit(207)))
        .await
        .unwrap();
    let found = plane.core.verify_audit().await.unwrap();
    assert_eq!(found.broken.map(|(number, _)| number), Some(207));
    // By age everything goes but the last.
    let kept = Kept {
        records: 1000,
        age: Duration::ZERO,
    };
    tokio::time::sleep(Duration::from_millis(2)).await;
    trim(&store, &plane.core.key, kept).await.unwrap();
    let left = numbers(&plane.core).await;
    assert_eq!(left.last(), Some(&222));
}

#[tokio::test]
async fn pages_and_filters_go_through_all_buckets() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    made(&plane, 210).await;
    let mut before = 0;
    let mut seen = Vec::new();
    loop {
        let page = plane
            .core
            .audit_records(&Filter::default(), before, 50)
            .await;
        let (found, next) = page.unwrap();
        assert!(found.len() <= 50);
        seen.extend(found.iter().map(|r| r.record.number));
        if next == 0 {
            break;
        }
        before = next;
    }
    assert_eq!(seen, (1..=211).rev().collect::<Vec<_>>());
    let one = plane.core.gateway("g3").await.unwrap().value.gateway.id;
    let filter = Filter {
        gateway: Some(one.clone()),
        since: None,
    };
    let (found, _) = plane.core.audit_records(&filter, 0, MANY).await.unwrap();
    assert_eq!(found.len(), 1);
    let scoped = plane
        .core
        .for_scope(sg_model::TokenScope::Gateways([one].into()));
    let (found, _) = scoped
        .audit_records(&Filter::default(), 0, MANY)
        .await
        .unwrap();
    assert_eq!(found.len(), 1, "a scope shows what concerns its gateways");
    let late = Filter {
        since: Some(sg_model::Timestamp(u64::MAX)),
        gateway: None,
    };
    assert!(
        plane
            .core
            .audit_records(&late, 0, MANY)
            .await
            .unwrap()
            .0
            .is_empty()
    );
    // Oldest first, a bucket at a time.
    let mut after = 0;
    let mut seen = Vec::new();
    while after < 211 {
        let read = plane
            .core
            .audit_records_after(&Filter::default(), after, 211)
            .await;
        let (found, looked_at) = read.unwrap();
        seen.extend(found.iter().map(|r| r.record.number));
        assert!(looked_at > after);
        after = looked_at;
    }
    assert_eq!(seen, (1..=211).collect::<Vec<_>>());
}
