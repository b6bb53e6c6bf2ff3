//! Changes of access control lists that nodes pass on for their clients: what is made of them, and what is refused to whom.

use prost::Message as _;
use sg_control_plane::store::{Store as _, Txn};
use sg_model::{AclCommand, AclEdit, GatewayId};
use sg_proto::api::audit_client::AuditClient;
use sg_proto::node::control_message::Message as Down;
use sg_proto::node::node_message::Message as Up;
use sg_proto::{api, node};
use sg_runtime::identity::KeyPair;
use tonic::service::interceptor::InterceptedService;

use super::harness::{Admin, Bearer, Plane, within};
use super::sync::Node;

fn change(line: &str) -> node::AclChange {
    let command = AclCommand::parse(line).unwrap().unwrap();
    (&AclEdit::of(&command).unwrap()).into()
}

fn asked(gateway: &str, client: &str, request: u8, line: &str) -> node::AclEdit {
    node::AclEdit {
        number: u64::from(request),
        gateway_id: gateway.to_owned(),
        client_id: client.to_owned(),
        client_address: "192.0.2.7".to_owned(),
        request_id: vec![request; 16],
        change: Some(change(line)),
    }
}

/// Asks over the node's stream, and takes the answer.
async fn edit(node: &mut Node, asked: node::AclEdit) -> node::AclEditResult {
    let number = asked.number;
    node.say(Up::AclEdit(asked)).await;
    loop {
        if let Down::AclEditAnswer(said) = node.message().await.unwrap() {
            assert_eq!(said.number, number);
            return said.result.unwrap();
        }
    }
}

async fn list(admin: &mut Admin, gateway: &str) -> api::Acl {
    let request = api::GetAclRequest {
        name: gateway.to_owned(),
    };
    admin.acls.get_acl(request).await.unwrap().into_inner()
}

async fn update(admin: &mut Admin, gateway: &str, change: api::Gateway) {
    let request = api::UpdateGatewayRequest {
        name: gateway.to_owned(),
        gateway: Some(change),
        force: true,
        ..api::UpdateGatewayRequest::default()
    };
    admin.gateways.update_gateway(request).await.unwrap();
}

async fn records(plane: &Plane) -> Vec<api::AuditRecord> {
    let bearer = Bearer(format!("Bearer {}", plane.token()).parse().unwrap());
    let channel = InterceptedService::new(plane.channel(None).await, bearer);
    let request = api::ListAuditRecordsRequest {
        page_size: 1000,
        ..api::ListAuditRecordsRequest::default()
    };
    let answer = AuditClient::new(channel).list_audit_records(request).await;
    answer.unwrap().into_inner().records
}

#[tokio::test]
async fn a_clients_change_is_made_once_and_recorded_with_node_and_client() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    assert_eq!(gateway.acl_edits, "clients");
    let (node_id, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let client = KeyPair::generate().client_id();

    let first = asked(&gateway.id, &client, 1, "allow db:5432");
    let made = edit(&mut node, first.clone()).await;
    assert_eq!((made.reason.as_str(), made.changed), ("", true));
    assert_eq!(made.generation, 2);
    let now = list(&mut admin, "dev").await;
    assert_eq!((now.generation, now.entries.len()), (2, 1));

    // Another node, or the same one again: the same request is the same change.
    let other = asked(&gateway.id, &client, 2, "no acl");
    assert_eq!(edit(&mut node, other).await.generation, 3);
    let again = edit(&mut node, first.clone()).await;
    assert_eq!((again.reason.as_str(), again.generation), ("", 3));
    assert_eq!(list(&mut admin, "dev").await.entries.len(), 0);
    // Of another client it is another one.
    let theirs = KeyPair::generate().client_id();
    let theirs = asked(&gateway.id, &theirs, 1, "allow db:5432");
    assert_eq!(edit(&mut node, theirs).await.generation, 4);
    // What is so already is no change.
    let same = asked(&gateway.id, &client, 3, "allow db:5432");
    let same = edit(&mut node, same).await;
    assert_eq!((same.changed, same.generation), (false, 4));

    let all = records(&plane).await;
    let edits: Vec<_> = all
        .iter()
        .filter(|r| r.method == "NodeSync.AclEdit")
        .collect();
    assert_eq!(edits.len(), 3, "one for each change: {edits:?}");
    let record = edits.last().unwrap();
    assert_eq!(
        record.principal,
        format!("client/{client} via node/{node_id} (node-1)")
    );
    assert_eq!(record.principal_id, client);
    assert_eq!(record.source, "192.0.2.7");
    assert_eq!(record.request_id, "01".repeat(16));
    assert_eq!(record.changes[0].fields[1].name, "entries");
    assert!(
        record.changes[0].fields[1]
            .after
            .contains("host=db port=5432")
    );
}

#[tokio::test]
async fn what_a_client_may_not_is_refused_with_a_word() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let foreign = api::CreateGatewayRequest {
        gateway: Some(api::Gateway {
            name: "foreign".to_owned(),
            group: "other".to_owned(),
            ..api::Gateway::default()
        }),
        ..api::CreateGatewayRequest::default()
    };
    let foreign = admin.gateways.create_gateway(foreign).await.unwrap();
    let foreign = foreign.into_inner();
    let (_, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let client = KeyPair::generate().client_id();
    let good = |request| asked(&gateway.id, &client, request, "allow db:1");

    let mut garbled = good(1);
    garbled.change = None;
    let mut short = good(2);
    short.request_id.pop();
    let mut strange = good(3);
    strange.change = Some(node::AclChange {
        change: Some(node::acl_change::Change::Add(node::AclEntry {
            action: "allow-on-mondays".to_owned(),
            ..node::AclEntry::default()
        })),
    });
    for (wish, word) in [
        (
            asked(&foreign.id, &client, 4, "allow db:1"),
            "gateway-unknown",
        ),
        (asked("nope", &client, 5, "allow db:1"), "gateway-unknown"),
        (
            asked(&gateway.id, "a/b", 6, "allow db:1"),
            "gateway-unknown",
        ),
        (garbled, "invalid"),
        (short, "invalid"),
        (strange, "invalid"),
    ] {
        let refused = edit(&mut node, wish.clone()).await;
        assert_eq!(refused.reason, word, "{wish:?}");
        assert!(!refused.message.is_empty() && !refused.retry);
    }

    let operators = |word: &str| api::Gateway {
        acl_edits: word.to_owned(),
        ..api::Gateway::default()
    };
    update(&mut admin, "dev", operators("operators")).await;
    let refused = edit(&mut node, good(7)).await;
    assert_eq!(refused.reason, "operators-only");
    assert!(refused.message.contains("sgctl acl"), "{refused:?}");
    update(&mut admin, "dev", operators("clients")).await;
    assert_eq!(edit(&mut node, good(8)).await.reason, "");

    let revoke = api::RevokeClientRequest {
        name: format!("gateways/dev/clients/{client}"),
        request_id: String::new(),
    };
    admin.clients.revoke_client(revoke).await.unwrap();
    let wish = asked(&gateway.id, &client, 9, "no acl");
    assert_eq!(edit(&mut node, wish).await.reason, "gateway-unknown");
    assert_eq!(list(&mut admin, "dev").await.generation, 2);
    assert_eq!(list(&mut admin, "foreign").await.generation, 1);

    let nonsense = api::UpdateGatewayRequest {
        name: "dev".to_owned(),
        gateway: Some(operators("nobody")),
        force: true,
        ..api::UpdateGatewayRequest::default()
    };
    let nonsense = admin.gateways.update_gateway(nonsense).await.unwrap_err();
    assert_eq!(super::harness::fields(&nonsense), ["acl_edits"]);
}

#[tokio::test]
async fn changes_at_the_same_time_are_all_made() {
    let plane = Plane::start().await;
    let second = plane.another("two").await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let mut nodes = Vec::new();
    for (name, plane) in [("node-1", &plane), ("node-2", &second)] {
        let (_, credentials) = plane.join(&mut admin, name).await;
        nodes.push(Node::connect(plane, Some(&credentials)).await.unwrap());
    }
    let client = KeyPair::generate().client_id();
    let work = nodes.iter_mut().zip(1..).map(|(node, which)| {
        let (gateway, client) = (gateway.id.clone(), client.clone());
        async move {
            for port in 1..6_u8 {
                let line = format!("allow host-{which}:{port}");
                let wish = asked(&gateway, &client, which * 10 + port, &line);
                let made = edit(node, wish).await;
                assert_eq!(made.reason, "", "{made:?}");
            }
        }
    });
    within("all changes", futures_util::future::join_all(work)).await;
    let now = list(&mut admin, "dev").await;
    assert_eq!((now.generation, now.entries.len()), (11, 10));
}

/// As a newer version may write it.
#[tokio::test]
async fn a_list_that_this_version_cannot_read_denies_and_is_not_changed() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let client = KeyPair::generate().client_id();
    let made = edit(&mut node, asked(&gateway.id, &client, 1, "allow db:1")).await;
    assert_eq!(made.generation, 2);
    node.subscribe().await;
    let id = GatewayId::new(&gateway.id).unwrap();
    let entries = |node: &Node| node.config().acl(&id).map(|acl| acl.entries.len());
    while entries(&node) != Some(1) {
        node.take_and_ack().await;
    }

    let key = format!("v1/obj/acl/{}", gateway.id);
    let (_, stored) = plane.store.get(&key).await.unwrap();
    let mut strange = sg_proto::store::Acl::decode(stored.unwrap().value.as_ref()).unwrap();
    strange.generation += 1;
    strange.entries[0].action = "allow-on-mondays".to_owned();
    let strange = strange.encode_to_vec();
    let write = Txn::new().put(key.clone(), strange.clone());
    plane.store.txn(write).await.unwrap();
    while entries(&node).is_some() {
        node.take_and_ack().await;
    }
    for (request, line) in [(2, "allow db:2"), (3, "no acl")] {
        let refused = edit(&mut node, asked(&gateway.id, &client, request, line)).await;
        assert_eq!(refused.reason, "internal");
    }
    let (_, stored) = plane.store.get(&key).await.unwrap();
    assert_eq!(stored.unwrap().value.as_ref(), strange);
}

#[tokio::test]
async fn a_store_that_is_away_is_told_of() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let client = KeyPair::generate().client_id();
    plane.store.faults().fail_reads(1000);
    let refused = edit(&mut node, asked(&gateway.id, &client, 1, "allow db:1")).await;
    assert_eq!(
        (refused.reason.as_str(), refused.retry),
        ("store-unavailable", true)
    );
    plane.store.faults().fail_reads(0);
    let made = edit(&mut node, asked(&gateway.id, &client, 1, "allow db:1")).await;
    assert_eq!((made.reason.as_str(), made.changed), ("", true));
}
