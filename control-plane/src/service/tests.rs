//! The use cases on the memory store: uniqueness under races, etags, repeated requests, unknown
//! outcomes, quarantine.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::{Name, NodeId, PortRange};
use sg_proto::api as wire;
use sg_proto::convert::api::{DestinationDraft, destination_draft, gateway_draft};
use sg_proto::convert::store::NodeRecord;
use sg_runtime::metrics::Counter;
use sg_runtime::tasks::TaskGroup;

use super::audit::chain::Chain;
use super::change::{Call, Change};
use super::gateways::TokenChoice;
use super::outcome::Outcome;
use super::{Core, ServiceError, nodes};
use crate::push::Observed;
use crate::store::memory::MemoryStore;
use crate::store::{Revision, Store};
use crate::vault::Vault;
use crate::world::StoreHealth;
use crate::world::keeper::Keeper;
use crate::{bootstrap, ids, keys};

/// A control plane without its network.
pub(super) struct Plane {
    pub(super) core: Core,
    _tasks: TaskGroup,
    _dir: Option<tempfile::TempDir>,
}

pub(super) async fn plane_on(
    store: &MemoryStore,
    dir: &std::path::Path,
    id: &str,
) -> (Core, TaskGroup) {
    let foundation = bootstrap::establish(store, dir, &dir.join("store.key"))
        .await
        .unwrap();
    let store: Arc<dyn Store> = Arc::new(store.clone());
    let health = StoreHealth::new(Counter::default());
    let (keeper, mut views) = Keeper::new(Vault::new(foundation.key.clone()));
    let mut tasks = TaskGroup::new();
    tasks.spawn("keeper", keeper.run(Arc::clone(&store), health.clone()));
    views.loaded().await;
    let (chain, following) = Chain::new(Arc::clone(&store), foundation.key.clone());
    tasks.spawn("chain", following.run());
    let core = Core {
        store,
        health,
        views,
        observed: Observed::default(),
        authority: super::authority::Current::new(foundation.authority).1,
        key: foundation.key,
        control_plane: id.to_owned(),
        format: foundation.format,
        chain,
    };
    (core, tasks)
}

pub(super) async fn plane(store: &MemoryStore) -> Plane {
    sg_runtime::crypto::install();
    let dir = tempfile::tempdir().unwrap();
    let (core, tasks) = plane_on(store, dir.path(), "C1").await;
    Plane {
        core,
        _tasks: tasks,
        _dir: Some(dir),
    }
}

pub(super) fn call(request_id: &str) -> Call {
    Call {
        principal: "tester".to_owned(),
        principal_id: "T1".to_owned(),
        principal_key: "t".to_owned(),
        source: String::new(),
        method: "Test",
        request_id: request_id.to_owned(),
        request_sha256: [7; 32],
        validate_only: false,
    }
}

pub(super) fn gateway(name: &str) -> sg_proto::convert::api::GatewayDraft {
    gateway_draft(&wire::Gateway {
        name: name.to_owned(),
        ..wire::Gateway::default()
    })
    .unwrap()
}

pub(super) fn destination(name: &str, cloud_port: u32) -> DestinationDraft {
    destination_draft(&wire::Destination {
        name: name.to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: "db".to_owned(),
        resource_port: 5432,
        cloud_port,
        ..wire::Destination::default()
    })
    .unwrap()
}

fn reason(error: &ServiceError) -> &'static str {
    match error {
        ServiceError::Taken { reason, .. }
        | ServiceError::Precondition { reason, .. }
        | ServiceError::Aborted { reason, .. }
        | ServiceError::Exhausted { reason, .. }
        | ServiceError::Denied { reason, .. }
        | ServiceError::Unauthenticated { reason, .. } => reason,
        ServiceError::NotFound { .. } => "NOT_FOUND",
        ServiceError::Invalid(_) => "INVALID",
        ServiceError::Store(_) => "STORE",
        ServiceError::Internal(_) => "INTERNAL",
    }
}

pub(super) async fn create(
    core: &Core,
    name: &str,
) -> Result<super::gateways::GatewayAnswer, ServiceError> {
    core.create_gateway(&call(""), gateway(name), TokenChoice::Days(1), true)
        .await
}

/// A node as after its hello.
pub(super) async fn joined(core: &Core, name: &str, ports: (u16, u16)) -> NodeId {
    let id = NodeId::new(ids::new_id('N', ids::now())).unwrap();
    let (named, group) = (Name::new(name).unwrap(), Name::new("default").unwrap());
    let record = NodeRecord {
        ports: PortRange::new(ports.0, ports.1).ok(),
        ..nodes::new_node(&id, &named, &group, "", ids::now())
    };
    let call = Call::internal("test", "Test");
    let change = Change::new(&call, format!("node/{id}"), id.as_str())
        .create(keys::node(&id), &sg_proto::store::Node::from(&record))
        .create(keys::node_name(&named), &nodes::reference(&record));
    let made = core.commit(change).await.unwrap();
    assert!(matches!(made, Outcome::Done(_)));
    id
}

#[tokio::test]
async fn of_many_who_want_a_name_one_gets_it() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let attempts = (0..50).map(|_| create(&plane.core, "dev"));
    let results = futures_util::future::join_all(attempts).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert_eq!(reason(error), "NAME_TAKEN");
    }
}

#[tokio::test]
async fn ports_are_given_once_and_conflicts_name_the_holder() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    create(&plane.core, "a").await.unwrap();
    create(&plane.core, "b").await.unwrap();
    let make = |gateway: &'static str, name: String, port| {
        let core = &plane.core;
        async move {
            core.create_destination(&call(""), gateway, &destination(&name, port), true)
                .await
        }
    };
    let many = (0..60).map(|n| make("a", format!("d{n}"), 0));
    let ports: BTreeSet<_> = futures_util::future::join_all(many)
        .await
        .into_iter()
        .map(|made| {
            made.unwrap()
                .destination
                .value
                .destination
                .listen
                .cloud_port()
                .unwrap()
        })
        .collect();
    assert_eq!(ports.len(), 60);
    assert!(ports.iter().all(|port| (15000..=19999).contains(port)));

    let asked = (0..20).map(|n| make(if n % 2 == 0 { "a" } else { "b" }, format!("x{n}"), 21000));
    let results = futures_util::future::join_all(asked).await;
    let (won, lost): (Vec<_>, Vec<_>) = results.into_iter().partition(Result::is_ok);
    assert_eq!(won.len(), 1);
    let winner = &won[0].as_ref().unwrap().destination.value.destination.name;
    for error in lost.into_iter().map(|result| result.err().unwrap()) {
        assert_eq!(reason(&error), "PORT_TAKEN");
        let text = error.to_string();
        assert!(
            text.starts_with(&format!(
                "port 21000 of group default is used by destination {winner} of gateway "
            )),
            "{text}"
        );
    }
}

#[tokio::test]
async fn client_ports_are_unique_in_a_gateway() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    create(&plane.core, "a").await.unwrap();
    create(&plane.core, "b").await.unwrap();
    let cloud = |name: &str| DestinationDraft {
        kind: sg_model::DestinationKind::Cloud,
        client_port: Some(3306),
        ..destination(name, 0)
    };
    plane
        .core
        .create_destination(&call(""), "a", &cloud("one"), true)
        .await
        .unwrap();
    plane
        .core
        .create_destination(&call(""), "b", &cloud("one"), true)
        .await
        .unwrap();
    let error = plane
        .core
        .create_destination(&call(""), "a", &cloud("two"), true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "CLIENT_PORT_TAKEN");
    assert_eq!(
        error.to_string(),
        "client port 3306 of gateway a is used by destination one"
    );
}

#[tokio::test]
async fn a_freed_port_is_kept_for_its_gateway() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    create(core, "b").await.unwrap();
    core.create_destination(&call(""), "a", &destination("d", 15012), true)
        .await
        .unwrap();
    core.delete_destination(&call(""), ("a", "d"), "", true)
        .await
        .unwrap();
    let error = core
        .create_destination(&call(""), "b", &destination("d", 15012), true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "PORT_QUARANTINED");
    core.create_destination(&call(""), "a", &destination("e", 15012), true)
        .await
        .unwrap();
    // Moving away frees it too.
    core.update_destination(&call(""), ("a", "e"), "", Some(true), |record| {
        let mut record = record.clone();
        record.destination.listen = sg_model::Listen::CloudPort(15013);
        Ok(record)
    })
    .await
    .unwrap();
    let error = core
        .create_destination(&call(""), "b", &destination("d", 15012), true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "PORT_QUARANTINED");
    core.create_destination(&call(""), "a", &destination("f", 15012), true)
        .await
        .unwrap();
}

#[tokio::test]
async fn etags_decide_between_two_editors() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    let made = create(core, "a").await.unwrap().gateway;
    let describe = |text: &'static str| {
        move |record: &mut sg_proto::convert::store::GatewayRecord| {
            record.description = text.to_owned();
            Ok(())
        }
    };
    let error = core
        .update_gateway(&call(""), "a", "", Some(false), describe("x"))
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "ETAG_REQUIRED");
    let first = core
        .update_gateway(&call(""), "a", &made.etag(), Some(false), describe("one"))
        .await
        .unwrap();
    assert_eq!(first.gateway.value.gateway.generation, 2);
    let error = core
        .update_gateway(&call(""), "a", &made.etag(), Some(false), describe("two"))
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "ETAG_MISMATCH");
    core.update_gateway(&call(""), "a", "", Some(true), describe("three"))
        .await
        .unwrap();
    let error = core
        .delete_gateway(&call(""), "a", &made.etag(), false, false)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "ETAG_MISMATCH");
    let error = core
        .delete_gateway(&call(""), "a", "nonsense", false, false)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "INVALID");
}

#[tokio::test]
async fn an_unforced_edit_is_applied_to_what_others_made_of_it() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    let entry = |n: u16| {
        move |acl: &mut sg_model::Acl| {
            let entry = sg_model::AclEntry::parse(sg_model::Action::Allow, &format!("h:{n}"))?;
            Ok(acl.add(entry)?)
        }
    };
    let call = call("");
    let edits = (1..=10).map(|n| core.change_acl(&call, "a", "", entry(n)));
    for result in futures_util::future::join_all(edits).await {
        result.unwrap();
    }
    let acl = core.acl("a").await.unwrap().acl.value;
    assert_eq!((acl.entries.len(), acl.version.generation), (10, 11));
}

#[tokio::test]
async fn a_repeated_request_gets_the_first_answer_with_its_secret() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    let ask = |id: &'static str| async move {
        core.create_gateway(&call(id), gateway("a"), TokenChoice::Days(1), true)
            .await
    };
    let first = ask("r1").await.unwrap();
    let again = ask("r1").await.unwrap();
    assert_eq!(first.gateway.value, again.gateway.value);
    assert_eq!(
        first.secret.unwrap().expose(),
        again.secret.unwrap().expose()
    );
    assert_eq!(reason(&ask("r2").await.unwrap_err()), "NAME_TAKEN");
    let other = Call {
        request_sha256: [8; 32],
        ..call("r1")
    };
    let error = core
        .create_gateway(&other, gateway("b"), TokenChoice::Days(1), true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "REQUEST_ID_REUSED");
    // The secret is in the store, and nobody can read it there.
    let secret = ask("r1").await.unwrap().secret.unwrap();
    let (_, everything) = store.list("").await.unwrap();
    let random = secret.expose().as_bytes();
    assert!(
        everything
            .iter()
            .all(|entry| !entry.value.windows(random.len()).any(|w| w == random))
    );
    // A deletion that is repeated is done, too.
    core.delete_gateway(&call("r3"), "a", "", true, false)
        .await
        .unwrap();
    core.delete_gateway(&call("r3"), "a", "", true, false)
        .await
        .unwrap();
    let error = core
        .delete_gateway(&call("r4"), "a", "", true, false)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "NOT_FOUND");
}

#[tokio::test]
async fn an_unknown_outcome_is_resolved_and_happens_once() {
    for applied in [true, false] {
        let store = MemoryStore::new();
        let plane = plane(&store).await;
        store.faults().unknown_outcomes(1, applied);
        let made = create(&plane.core, "a").await.unwrap();
        assert_eq!(made.gateway.value.gateway.name.as_str(), "a");
        let (_, records) = store.list(keys::AUDIT).await.unwrap();
        let of_gateway = records.iter().filter(|entry| {
            let audit = sg_proto::store::Audit::decode(entry.value.as_ref()).unwrap();
            audit.method == "Test"
        });
        assert_eq!(of_gateway.count(), 1, "applied: {applied}");
    }
}

#[tokio::test]
async fn a_store_that_is_away_stops_writes_and_not_reads() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    create(&plane.core, "a").await.unwrap();
    store.faults().fail_writes(1000);
    store.faults().fail_reads(1000);
    let error = create(&plane.core, "b").await.unwrap_err();
    assert_eq!(reason(&error), "STORE");
    assert!(plane.core.health.problem().is_some());
    plane.core.gateway("a").await.unwrap();
    plane.core.acl("a").await.unwrap();
    store.faults().fail_writes(0);
    store.faults().fail_reads(0);
    create(&plane.core, "b").await.unwrap();
    assert_eq!(plane.core.health.problem(), None);
}

#[tokio::test]
async fn a_gateway_goes_only_with_all_that_it_has() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    for n in 0..45 {
        let draft = destination(&format!("d{n}"), 0);
        core.create_destination(&call(""), "a", &draft, true)
            .await
            .unwrap();
    }
    let error = core
        .delete_gateway(&call(""), "a", "", true, false)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "GATEWAY_NOT_EMPTY");
    let regroup = |record: &mut sg_proto::convert::store::GatewayRecord| {
        record.group = Name::new("other")?;
        Ok(())
    };
    let error = core
        .update_gateway(&call(""), "a", "", Some(true), regroup)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "GATEWAY_NOT_EMPTY");
    core.delete_gateway(&call(""), "a", "", true, true)
        .await
        .unwrap();
    let names = [
        "v1/idx/name/gateway/",
        "v1/idx/name/destination/",
        "v1/idx/cloudport/",
    ];
    for prefix in [keys::OBJECTS].into_iter().chain(names) {
        assert_eq!(store.list(prefix).await.unwrap().1, [], "{prefix}");
    }
}

#[tokio::test]
async fn checking_only_writes_nothing() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    let before = store.revision().await.unwrap();
    let check = Call {
        validate_only: true,
        ..call("")
    };
    core.create_gateway(&check, gateway("b"), TokenChoice::None, true)
        .await
        .unwrap();
    let error = core
        .create_gateway(&check, gateway("a"), TokenChoice::None, true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "NAME_TAKEN");
    core.create_destination(&check, "a", &destination("d", 0), true)
        .await
        .unwrap();
    core.delete_gateway(&check, "a", "", true, true)
        .await
        .unwrap();
    assert_eq!(store.revision().await.unwrap(), before);
}

#[tokio::test]
async fn two_control_planes_see_each_others_changes_at_once() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let dir = plane._dir.as_ref().unwrap();
    let (other, _tasks) = plane_on(&store, dir.path(), "C2").await;
    // The other one's watch is slow: it must look in the store for what it has not seen yet.
    store.faults().delay_watches(Duration::from_millis(300));
    create(&plane.core, "a").await.unwrap();
    other
        .create_destination(&call(""), "a", &destination("d", 15500), true)
        .await
        .unwrap();
    let error = plane
        .core
        .create_destination(&call(""), "a", &destination("e", 15500), true)
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "PORT_TAKEN");
    let gateway = plane.core.gateway("a").await.unwrap();
    plane.core.destination(&gateway, "d").await.unwrap();
    assert!(
        other
            .views
            .reach(Revision::new(1), Duration::from_secs(1))
            .await
    );
}

#[tokio::test]
async fn as_it_is_already_is_never_said_from_memory() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let here = &plane.core;
    let dir = plane._dir.as_ref().unwrap();
    let (there, _tasks) = plane_on(&store, dir.path(), "C2").await;
    let set = |action: sg_model::Action| {
        move |acl: &mut sg_model::Acl| Ok(acl.add(sg_model::AclEntry::parse(action, "db:1")?)?)
    };
    create(here, "a").await.unwrap();
    here.change_acl(&call(""), "a", "", set(sg_model::Action::Deny))
        .await
        .unwrap();
    here.update_gateway(&call(""), "a", "", None, |r| {
        r.gateway.enabled = false;
        Ok(())
    })
    .await
    .unwrap();
    let newest = store.revision().await.unwrap();
    assert!(there.views.reach(newest, Duration::from_secs(5)).await);
    // From now on neither sees at once what the other does.
    store.faults().delay_watches(Duration::from_millis(700));
    here.change_acl(&call(""), "a", "", set(sg_model::Action::Allow))
        .await
        .unwrap();
    here.update_gateway(&call(""), "a", "", None, |r| {
        r.gateway.enabled = true;
        Ok(())
    })
    .await
    .unwrap();
    let denied = there
        .change_acl(&call(""), "a", "", set(sg_model::Action::Deny))
        .await
        .unwrap();
    assert_eq!(denied.acl.value.version.generation, 4, "it was written");
    let disabled = there
        .update_gateway(&call(""), "a", "", None, |r| {
            r.gateway.enabled = false;
            Ok(())
        })
        .await
        .unwrap();
    assert_eq!(disabled.gateway.value.gateway.generation, 4);
    let record = here
        .read_gateway(&disabled.gateway.value.gateway.id)
        .await
        .unwrap()
        .unwrap();
    assert!(!record.value.gateway.enabled);
}

#[tokio::test]
async fn checking_an_update_looks_at_names_and_ports() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    create(core, "b").await.unwrap();
    core.create_destination(&call(""), "a", &destination("x", 21001), true)
        .await
        .unwrap();
    core.create_destination(&call(""), "a", &destination("y", 21002), true)
        .await
        .unwrap();
    let check = Call {
        validate_only: true,
        ..call("")
    };
    let error = core
        .update_gateway(&check, "a", "", Some(true), |record| {
            record.gateway.name = Name::new("b")?;
            Ok(())
        })
        .await
        .unwrap_err();
    assert_eq!(reason(&error), "NAME_TAKEN");
    for (name, port, expected) in [("x", 21002, "PORT_TAKEN"), ("y", 21001, "NAME_TAKEN")] {
        let result = core
            .update_destination(&check, ("a", "x"), "", Some(true), |record| {
                let mut record = record.clone();
                record.destination.name = Name::new(name)?;
                record.destination.listen = sg_model::Listen::CloudPort(port);
                Ok(record)
            })
            .await;
        assert_eq!(reason(&result.unwrap_err()), expected);
    }
}

#[tokio::test]
async fn a_deletion_that_stops_half_way_says_so() {
    let store = MemoryStore::new();
    let plane = plane(&store).await;
    let core = &plane.core;
    create(core, "a").await.unwrap();
    for n in 0..25 {
        let draft = destination(&format!("d{n}"), 0);
        core.create_destination(&call(""), "a", &draft, true)
            .await
            .unwrap();
    }
    // The store goes away as soon as the first batch of deletions is seen.
    let mut views = core.views.clone();
    views.mark_seen();
    let cut = async {
        views.changed().await;
        store.faults().fail_writes(1000);
    };
    let call = call("");
    let (result, ()) = tokio::join!(core.delete_gateway(&call, "a", "", true, true), cut);
    let error = result.unwrap_err();
    assert_eq!(reason(&error), "PARTLY_DELETED", "{error}");
    store.faults().fail_writes(0);
    core.delete_gateway(&call, "a", "", true, true)
        .await
        .unwrap();
}
