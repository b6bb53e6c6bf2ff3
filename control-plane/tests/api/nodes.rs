//! Nodes as operators see and remove them.

use std::time::Duration;

use sg_proto::api;
use sg_proto::node::node_message::Message as Up;
use sg_runtime::identity::{CertificateDer, KeyPair};
use sg_runtime::tls::Credentials;
use tonic::Code;

use super::audit::{auditor, records};
use super::harness::{Admin, Plane, reason, within};
use super::sync::{Node, listening, watch_until};

fn delete(name: &str, force: bool) -> api::DeleteNodeRequest {
    api::DeleteNodeRequest {
        name: format!("nodes/{name}"),
        force,
        ..api::DeleteNodeRequest::default()
    }
}

async fn get(admin: &mut Admin, name: &str) -> api::Node {
    let request = api::GetNodeRequest {
        name: name.to_owned(),
    };
    admin.nodes.get_node(request).await.unwrap().into_inner()
}

#[tokio::test]
async fn a_node_that_is_removed_is_out_at_once_and_its_name_is_free() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let request = api::CreateJoinTokenRequest::default();
    let token = admin.tokens.create_join_token(request).await;
    let token = token.unwrap().into_inner().token;
    let key = KeyPair::generate();
    let joined = plane.join_with(&token, "n", &key).await.unwrap();
    let (id, chain) = (joined.node_id, joined.certificates_der);
    let chain = chain.into_iter().map(CertificateDer::from).collect();
    let credentials = Credentials::new(chain, key.clone());
    let (_, other) = plane.join(&mut admin, "other").await;
    let mut other = Node::connect(&plane, Some(&other)).await.unwrap();
    other.subscribe().await;
    while other.config().peers().count() != 2 {
        other.take_and_ack().await;
    }
    let node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    // Its hello is written down beside this, which changes the etag.
    let known = within("the hello", async {
        loop {
            let known = get(&mut admin, "n").await;
            if !known.address.is_empty() {
                break known;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;

    let request = api::DeleteNodeRequest {
        etag: known.etag,
        ..delete("n", false)
    };
    let refused = admin.nodes.delete_node(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(reason(&refused), "NODE_CONNECTED");
    assert!(refused.message().contains("stop it first, or set force"));

    let forced = api::DeleteNodeRequest {
        request_id: "remove-1".to_owned(),
        ..delete("n", true)
    };
    admin.nodes.delete_node(forced.clone()).await.unwrap();
    admin.nodes.delete_node(forced).await.unwrap();
    let status = node.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::PermissionDenied, "NODE_REMOVED".to_owned())
    );
    for _ in 0..2 {
        let again = Node::connect(&plane, Some(&credentials)).await;
        assert_eq!(reason(&again.err().unwrap()), "NODE_REMOVED");
    }
    // Nor does what let it in do so once more.
    let again = plane.join_with(&token, "n", &key).await.unwrap_err();
    assert_eq!(reason(&again), "JOIN_TOKEN_UNKNOWN");
    // Clients are told of it no more.
    while other.config().peers().count() != 1 {
        other.take_and_ack().await;
    }
    let status = admin.system.get_status(api::GetStatusRequest {}).await;
    let problems = status.unwrap().into_inner().problems;
    assert!(
        !problems.iter().any(|p| p.contains("node n ")),
        "{problems:?}"
    );

    let (new, _) = plane.join(&mut admin, "n").await;
    assert_ne!(new, id);
    assert_eq!(get(&mut admin, "n").await.id, new);
    let all = records(&mut auditor(&plane, &plane.token()).await, "").await;
    let removals: Vec<_> = all
        .iter()
        .filter(|record| record.method == "Nodes.DeleteNode")
        .collect();
    assert_eq!(removals.len(), 1);
    let removal = removals[0];
    assert_eq!(
        (removal.object.as_str(), removal.detail.as_str()),
        (format!("node/{id}").as_str(), "name=n group=default")
    );
    assert_eq!(removal.principal, "admin");
    // By name, whether it is there now, or only the record tells of it.
    let by_name = |method: &str, object: &str| -> Vec<(String, String)> {
        let of = all
            .iter()
            .filter(|r| r.method == method && r.object == format!("node/{object}"));
        of.map(|r| (r.object_name.clone(), r.principal_name.clone()))
            .collect()
    };
    let is = |object: &str, principal: &str| vec![(object.to_owned(), principal.to_owned())];
    assert_eq!(by_name("Nodes.DeleteNode", &id), is("node/n", "admin"));
    assert_eq!(by_name("Enrollment.Join", &id), is("node/n", "node/n"));
    assert_eq!(by_name("Enrollment.Join", &new), is("node/n", "node/n"));
    let gone = format!("node/{id}");
    assert_eq!(by_name("NodeSync.Hello", &id), is(&gone, &gone));
}

#[tokio::test]
async fn what_is_disabled_is_applied_and_not_ready() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let made = admin.destination("dev", "db").await;
    let node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let says = async |state: &str| {
        let Up::DestinationStates(mut states) = listening(&made.id, 1) else {
            unreachable!("that is what it makes");
        };
        state.clone_into(&mut states.changed[0].state);
        node.say(Up::DestinationStates(states)).await;
    };
    let shown = |d: &api::Destination| {
        let status = d.status.as_ref().unwrap();
        (status.applied, status.ready)
    };
    says("listening").await;
    let is = |wanted| move |d: &api::Destination| shown(d) == wanted;
    watch_until(&mut admin, "dev/db", is((true, true))).await;
    let change = api::DisableGatewayRequest {
        name: "dev".to_owned(),
        ..api::DisableGatewayRequest::default()
    };
    admin.gateways.disable_gateway(change).await.unwrap();
    // The port is still open: that is not what should be.
    watch_until(&mut admin, "dev/db", is((false, false))).await;
    says("disabled").await;
    let closed = watch_until(&mut admin, "dev/db", is((true, false))).await;
    assert!(closed.enabled, "it is its gateway that is disabled");
    let change = api::EnableGatewayRequest {
        name: "dev".to_owned(),
        ..api::EnableGatewayRequest::default()
    };
    admin.gateways.enable_gateway(change).await.unwrap();
    watch_until(&mut admin, "dev/db", is((false, false))).await;
    says("listening").await;
    watch_until(&mut admin, "dev/db", is((true, true))).await;
}

#[tokio::test]
async fn a_removed_node_gets_no_longer_life_while_the_store_is_away() {
    use sg_proto::node::certificate_request::Holder;
    use sg_proto::node::control_message::Message as Down;

    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    admin.nodes.delete_node(delete("n", true)).await.unwrap();
    // Nobody can look it up now, so it is not turned away.
    plane.store.faults().fail_reads(1000);
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.say(Up::CertificateRequest(sg_proto::node::CertificateRequest {
        id: 1,
        holder: Some(Holder::NodeCsrDer(sg_runtime::identity::csr_der(
            credentials.key(),
        ))),
    }))
    .await;
    let answer = within("the answer", async {
        loop {
            if let Down::Certificate(answer) = node.message().await.unwrap() {
                break answer;
            }
        }
    })
    .await;
    assert_eq!(answer.reason, "node-unknown");
    assert!(answer.certificates_der.is_empty());
    // It is, as soon as the store answers.
    plane.store.faults().fail_reads(0);
    assert_eq!(reason(&node.end().await), "NODE_REMOVED");
}
