//! Row 42 of the threat table: a process that dies at any step of a write leaves the change with its record, or neither.
//!
//! Every call to the store is a step. One plane after the other dies at the first, the second, the third ... step of a
//! use case, before the call has had its effect and after it; another one starts on what is left.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use sg_model::{AclEntry, Action, Role};
use sg_runtime::tasks::TaskGroup;
use tokio_util::sync::CancellationToken;

use super::change::Call;
use super::gateways::TokenChoice;
use super::tests::{call, destination, gateway, joined, plane_on};
use super::tokens::TokenDraft;
use super::{Core, ServiceError};
use crate::keys;
use crate::store::memory::MemoryStore;
use crate::store::{
    Batch, Event, Health, KeyValue, Revision, Store, StoreError, Txn, TxnOutcome, WatchStream,
};

/// A store whose caller dies at one of its calls.
#[derive(Debug)]
struct Dying {
    store: MemoryStore,
    /// Calls before the one at which it dies.
    left: AtomicUsize,
    /// Whether that one still has its effect.
    effect: bool,
    dead: CancellationToken,
}

impl Dying {
    /// Goes on, or never returns.
    async fn step<T>(&self, work: impl Future<Output = T>) -> T {
        let before = self
            .left
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
                left.checked_sub(1)
            });
        if before.is_ok() && !self.dead.is_cancelled() {
            return work.await;
        }
        if self.effect && !self.dead.is_cancelled() {
            drop(work.await);
        }
        self.dead.cancel();
        std::future::pending().await
    }
}

#[async_trait]
impl Store for Dying {
    async fn get(&self, key: &str) -> Result<(Revision, Option<KeyValue>), StoreError> {
        self.step(self.store.get(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<(Revision, Vec<KeyValue>), StoreError> {
        self.step(self.store.list(prefix)).await
    }

    async fn keys(&self, prefix: &str) -> Result<(Revision, Vec<(String, Revision)>), StoreError> {
        self.step(self.store.keys(prefix)).await
    }

    async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        self.step(self.store.txn(txn)).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<WatchStream, StoreError> {
        self.store.watch(prefix, from).await
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.store.compact(revision).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.step(self.store.revision()).await
    }

    fn describe(&self) -> String {
        self.store.describe()
    }

    async fn health(&self) -> Result<Health, StoreError> {
        self.store.health().await
    }
}

/// What an operator asks for.
#[derive(Debug, Clone, Copy)]
enum Wish {
    CreateGateway,
    UpdateGateway,
    RotateToken,
    ChangeAcl,
    CreateDestination,
    DeleteDestination,
    CreateAdminToken,
    CreateJoinToken,
    DeleteGateway,
    DeleteNode,
}

const WISHES: [Wish; 10] = [
    Wish::CreateGateway,
    Wish::UpdateGateway,
    Wish::RotateToken,
    Wish::ChangeAcl,
    Wish::CreateDestination,
    Wish::DeleteDestination,
    Wish::CreateAdminToken,
    Wish::CreateJoinToken,
    Wish::DeleteGateway,
    Wish::DeleteNode,
];

async fn ask(core: &Core, wish: Wish, call: &Call) -> Result<(), ServiceError> {
    match wish {
        Wish::CreateGateway => core
            .create_gateway(call, gateway("new"), TokenChoice::Days(1), true)
            .await
            .map(drop),
        Wish::UpdateGateway => core
            .update_gateway(call, "base", "", None, |record| {
                record.gateway.enabled = false;
                Ok(())
            })
            .await
            .map(drop),
        Wish::RotateToken => core
            .rotate_token(call, "base", TokenChoice::Days(1))
            .await
            .map(drop),
        Wish::ChangeAcl => core
            .change_acl(call, "base", "", |acl| {
                Ok(acl.add(AclEntry::parse(Action::Allow, "db:1")?)?)
            })
            .await
            .map(drop),
        Wish::CreateDestination => core
            .create_destination(call, "base", &destination("new", 0), true)
            .await
            .map(drop),
        Wish::DeleteDestination => {
            core.delete_destination(call, ("base", "old"), "", true)
                .await
        }
        Wish::CreateAdminToken => {
            let draft = TokenDraft {
                name: sg_model::Name::new("new").unwrap(),
                role: Role::Viewer,
                gateways: Vec::new(),
                days: 1,
            };
            core.create_admin_token(call, draft).await.map(drop)
        }
        Wish::CreateJoinToken => core.create_join_token(call, None).await.map(drop),
        Wish::DeleteGateway => core.delete_gateway(call, "base", "", true, true).await,
        Wish::DeleteNode => core.delete_node(call, "node-1", "", true).await,
    }
}

/// All of the history.
async fn history(store: &MemoryStore) -> Vec<Batch> {
    let newest = store.revision().await.unwrap();
    let mut watch = store.watch("", Revision::FIRST).await.unwrap();
    let mut batches = Vec::new();
    while batches
        .last()
        .is_none_or(|batch: &Batch| batch.revision < newest)
    {
        batches.push(watch.next().await.unwrap());
    }
    batches
}

/// In every transaction that ever was: a change has one record, and a record has a change.
fn one_record_for_each_change(history: &[Batch], what: &str) -> usize {
    let mut records = 0;
    for batch in history {
        let of = |prefix: &str| {
            let found = batch
                .events
                .iter()
                .filter(|event| event.key().starts_with(prefix));
            found.count()
        };
        let changes = of(keys::OBJECTS) + of("v1/token/") + of(keys::META_CA);
        let written = batch
            .events
            .iter()
            .filter(
                |event| matches!(event, Event::Put(entry) if entry.key.starts_with(keys::AUDIT)),
            )
            .count();
        assert_eq!(written, usize::from(changes > 0), "{what}: {batch:?}");
        records += written;
    }
    records
}

async fn plane_that_dies(
    store: &MemoryStore,
    dir: &Path,
    (step, effect): (usize, bool),
) -> (Core, TaskGroup, CancellationToken) {
    let (mut core, tasks) = plane_on(store, dir, "C2").await;
    let dead = CancellationToken::new();
    core.store = Arc::new(Dying {
        store: store.clone(),
        left: AtomicUsize::new(step),
        effect,
        dead: dead.clone(),
    });
    (core, tasks, dead)
}

#[tokio::test]
async fn threat_42_a_crash_at_any_step_of_a_write_leaves_both_change_and_record_or_neither() {
    sg_runtime::crypto::install();
    let mut deaths = 0;
    for wish in WISHES {
        let mut died_after_the_write = false;
        for effect in [false, true] {
            for step in 0.. {
                let what = format!("{wish:?}, step {step}, with effect: {effect}");
                let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
                let (first, first_tasks) = plane_on(&store, dir.path(), "C1").await;
                first
                    .create_gateway(&call(""), gateway("base"), TokenChoice::None, true)
                    .await
                    .unwrap();
                first
                    .create_destination(&call(""), "base", &destination("old", 0), true)
                    .await
                    .unwrap();
                joined(&first, "node-1", (15_000, 19_999)).await;
                first_tasks.abort().await;
                let before = one_record_for_each_change(&history(&store).await, &what);

                let request = call("the-request");
                let (core, tasks, dead) = plane_that_dies(&store, dir.path(), (step, effect)).await;
                let died = tokio::select! {
                    biased;
                    () = dead.cancelled() => true,
                    done = ask(&core, wish, &request) => {
                        done.unwrap_or_else(|error| panic!("{what}: {error}"));
                        false
                    }
                };
                drop(core);
                tasks.abort().await;
                if !died {
                    assert!(step > 0, "{what}: there was no step");
                    break;
                }
                deaths += 1;
                let left = one_record_for_each_change(&history(&store).await, &what);
                died_after_the_write |= left > before;

                // Another one starts on what is left, and whoever asked asks again.
                let (next, next_tasks) = plane_on(&store, dir.path(), "C3").await;
                let found = next.verify_audit().await.unwrap();
                assert_eq!((found.broken, found.records), (None, left as u64), "{what}");
                ask(&next, wish, &request)
                    .await
                    .unwrap_or_else(|error| panic!("{what}: asked again: {error}"));
                let after = one_record_for_each_change(&history(&store).await, &what);
                assert!(after > before, "{what}: it has happened");
                if left > before && !matches!(wish, Wish::DeleteGateway) {
                    assert_eq!(after, left, "{what}: it happens once");
                }
                let found = next.verify_audit().await.unwrap();
                assert_eq!(
                    (found.broken, found.records),
                    (None, after as u64),
                    "{what}"
                );
                next_tasks.abort().await;
            }
        }
        assert!(
            died_after_the_write,
            "{wish:?}: no crash came after the write"
        );
    }
    assert!(deaths > 40, "only {deaths} crashes");
}
