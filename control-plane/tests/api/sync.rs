//! Nodes: joining, configuration down, reports up; with one control plane and with two.

use std::collections::BTreeMap;
use std::time::Duration;

use sg_model::{Change, NodeConfig};
use sg_proto::convert::node::{object_from_wire, removal_from_wire};
use sg_proto::node::control_message::Message as Down;
use sg_proto::node::node_message::Message as Up;
use sg_proto::node::node_sync_client::NodeSyncClient;
use sg_proto::{api, node};
use sg_runtime::identity::KeyPair;
use sg_runtime::tls::Credentials;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

use super::harness::{Admin, Plane, reason, within};

/// A node as far as a control plane can tell.
pub(super) struct Node {
    up: mpsc::Sender<node::NodeMessage>,
    down: Streaming<node::ControlMessage>,
    config: NodeConfig,
}

fn hello() -> node::Hello {
    node::Hello {
        boot_id: "b1".to_owned(),
        version: "0.1.0".to_owned(),
        name: "node-1".to_owned(),
        group: "default".to_owned(),
        tunnel_address: "127.0.0.1:9000".to_owned(),
        destination_host: "127.0.0.1".to_owned(),
        port_first: 16000,
        port_last: 16999,
    }
}

impl Node {
    pub(super) async fn connect(
        plane: &Plane,
        credentials: Option<&Credentials>,
    ) -> Result<Self, Status> {
        Self::connect_on(plane.channel(credentials).await).await
    }

    pub(super) async fn connect_on(channel: Channel) -> Result<Self, Status> {
        let mut client = NodeSyncClient::new(channel);
        let (up, messages) = mpsc::channel(16);
        up.send(node::NodeMessage {
            message: Some(Up::Hello(hello())),
        })
        .await
        .unwrap();
        let down = client
            .sync(ReceiverStream::new(messages))
            .await?
            .into_inner();
        Ok(Self {
            up,
            down,
            config: NodeConfig::default(),
        })
    }

    pub(super) async fn say(&self, message: Up) {
        self.up
            .send(node::NodeMessage {
                message: Some(message),
            })
            .await
            .unwrap();
    }

    pub(super) async fn subscribe(&self) {
        self.say(Up::Subscribe(node::Subscribe {
            epoch: self.config.epoch(),
            revision: self.config.revision(),
            digest: self.config.digest(),
        }))
        .await;
    }

    pub(super) async fn message(&mut self) -> Result<Down, Status> {
        let message = within("a message for the node", self.down.message()).await?;
        Ok(message
            .expect("the stream goes on")
            .message
            .expect("a message has content"))
    }

    /// The next change of the configuration, applied but not acknowledged; whether it was complete.
    async fn take(&mut self) -> (u64, bool) {
        let mut objects = Vec::new();
        loop {
            match self.message().await.unwrap() {
                Down::Snapshot(part) => {
                    objects.extend(part.objects.iter().map(|o| object_from_wire(o).unwrap()));
                    if part.part + 1 < part.parts {
                        continue;
                    }
                    let (epoch, to) = (part.epoch, part.revision);
                    let change = Change {
                        epoch,
                        from: None,
                        to,
                        upserts: objects,
                        removals: vec![],
                    };
                    self.config.apply(change).unwrap();
                    assert_eq!(self.config.digest(), part.digest);
                    return (part.nonce, true);
                }
                Down::Delta(delta) => {
                    let change = Change {
                        epoch: delta.epoch,
                        from: Some(delta.from_revision),
                        to: delta.to_revision,
                        upserts: delta
                            .upserts
                            .iter()
                            .map(|o| object_from_wire(o).unwrap())
                            .collect(),
                        removals: delta
                            .removals
                            .iter()
                            .map(|r| removal_from_wire(r).unwrap())
                            .collect(),
                    };
                    self.config.apply(change).unwrap();
                    assert_eq!(self.config.digest(), delta.digest);
                    return (delta.nonce, false);
                }
                Down::Welcome(_)
                | Down::Heartbeat(_)
                | Down::Certificate(_)
                | Down::Trust(_)
                | Down::AclEditAnswer(_) => {}
            }
        }
    }

    async fn ack(&self, nonce: u64, rejected: Vec<node::Rejection>) {
        let revision = self.config.revision();
        self.say(Up::Ack(node::Ack {
            nonce,
            revision,
            rejected,
            resync: false,
        }))
        .await;
    }

    pub(super) fn config(&self) -> &NodeConfig {
        &self.config
    }

    pub(super) async fn take_and_ack(&mut self) -> bool {
        let (nonce, complete) = self.take().await;
        self.ack(nonce, vec![]).await;
        complete
    }

    /// Takes what comes until the configuration has this many destinations.
    async fn until_destinations(&mut self, count: usize) {
        while self.config.destinations().count() != count {
            self.take_and_ack().await;
        }
    }

    pub(super) async fn end(mut self) -> Status {
        loop {
            match self.message().await {
                Ok(_) => {}
                Err(status) => return status,
            }
        }
    }
}

pub(super) async fn watch_until(
    admin: &mut Admin,
    name: &str,
    wanted: impl Fn(&api::Destination) -> bool,
) -> api::Destination {
    let request = api::WatchDestinationRequest {
        name: name.to_owned(),
    };
    let mut watch = admin
        .destinations
        .watch_destination(request)
        .await
        .unwrap()
        .into_inner();
    loop {
        let next = within("the status", watch.message())
            .await
            .unwrap()
            .unwrap();
        if wanted(&next) {
            return next;
        }
    }
}

pub(super) fn listening(id: &str, generation: u64) -> Up {
    Up::DestinationStates(node::DestinationStates {
        changed: vec![node::DestinationState {
            destination_id: id.to_owned(),
            generation,
            state: "listening".to_owned(),
            address: "127.0.0.1:16000".to_owned(),
            ..node::DestinationState::default()
        }],
        ..node::DestinationStates::default()
    })
}

#[tokio::test]
async fn a_join_token_lets_one_node_in() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let request = api::CreateJoinTokenRequest::default();
    let token = admin
        .tokens
        .create_join_token(request)
        .await
        .unwrap()
        .into_inner()
        .token;
    let key = KeyPair::generate();
    let joined = plane.join_with(&token, "n", &key).await.unwrap();
    // The same node may ask again: the answer may have been lost.
    let again = plane.join_with(&token, "n", &key).await.unwrap();
    assert_eq!(joined.node_id, again.node_id);
    let status = plane
        .join_with(&token, "n", &KeyPair::generate())
        .await
        .unwrap_err();
    assert_eq!(status.code(), Code::Unauthenticated);
    assert_eq!(reason(&status), "JOIN_TOKEN_UNKNOWN");
    assert!(!status.message().contains(&token));
    for bad in ["", "sgj_00", &format!("sgj_{}", "0".repeat(128))] {
        let status = plane.join_with(bad, "n", &key).await.unwrap_err();
        assert_eq!(status.code(), Code::Unauthenticated, "{bad}");
    }
    // Another node of the same name is told apart.
    plane.join(&mut admin, "n").await;
    let nodes = admin
        .nodes
        .list_nodes(api::ListNodesRequest::default())
        .await
        .unwrap()
        .into_inner();
    let names: Vec<_> = nodes.nodes.iter().map(|node| node.name.as_str()).collect();
    assert_eq!(names, ["n", "n-2"]);
    assert!(nodes.nodes.iter().all(|node| node.state == "disconnected"));
}

#[tokio::test]
async fn only_a_certificate_makes_a_node() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let status = Node::connect(&plane, None).await.err().unwrap();
    assert_eq!(reason(&status), "NODE_CERTIFICATE_REQUIRED");
    let (id, credentials) = plane.join(&mut admin, "n").await;
    let node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    // A node that is taken out of the store is cut off.
    use sg_control_plane::store::{Store as _, Txn};
    plane
        .store
        .txn(Txn::new().delete(format!("v1/obj/node/{id}")))
        .await
        .unwrap();
    let status = node.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::PermissionDenied, "NODE_REMOVED".to_owned())
    );
    let status = Node::connect(&plane, Some(&credentials))
        .await
        .err()
        .unwrap();
    assert_eq!(reason(&status), "NODE_REMOVED");
}

#[tokio::test]
async fn a_node_gets_everything_and_then_what_changes() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    admin.destination("dev", "one").await;
    let (id, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    match node.message().await.unwrap() {
        Down::Welcome(welcome) => {
            assert_eq!(welcome.node_id, id);
            assert_eq!(welcome.control_planes, std::slice::from_ref(&plane.address));
        }
        other => panic!("expected a welcome, got {other:?}"),
    }
    node.subscribe().await;
    assert!(node.take_and_ack().await, "the first is complete");
    assert_eq!(node.config.gateways().count(), 1);
    node.until_destinations(1).await;
    // What it said of itself reaches its record, and new ports come from its range.
    within("the record", async {
        loop {
            let request = api::GetNodeRequest {
                name: "n".to_owned(),
            };
            let record = admin.nodes.get_node(request).await.unwrap().into_inner();
            if (record.port_first, record.state.as_str()) == (16000, "ready") {
                break assert_eq!(record.address, "127.0.0.1:9000");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let made = admin.destination("dev", "two").await;
    assert!((16000..17000).contains(&made.cloud_port));
    assert_eq!(made.cloud_host, "127.0.0.1");
    node.until_destinations(2).await;
    let delete = api::DeleteDestinationRequest {
        name: "dev/one".to_owned(),
        force: true,
        ..Default::default()
    };
    admin.destinations.delete_destination(delete).await.unwrap();
    node.until_destinations(1).await;

    // Two changes while one is unacknowledged come as one.
    let made = admin.destination("dev", "three").await;
    let (nonce, complete) = node.take().await;
    assert!(!complete);
    admin.destination("dev", "four").await;
    admin.destination("dev", "five").await;
    node.ack(nonce, vec![]).await;
    assert!(!node.take_and_ack().await);
    assert_eq!(node.config.destinations().count(), 4);

    node.say(listening(&made.id, 1)).await;
    let ready = watch_until(&mut admin, "dev/three", |d| {
        d.status.as_ref().unwrap().ready
    })
    .await;
    let row = &ready.status.unwrap().nodes[0];
    assert_eq!(
        (row.state.as_str(), row.address.as_str()),
        ("listening", "127.0.0.1:16000")
    );
    drop(node);
    let gone = watch_until(&mut admin, "dev/three", |d| {
        !d.status.as_ref().unwrap().ready
    })
    .await;
    assert_eq!(gone.status.unwrap().nodes[0].reason, "disconnected");
}

#[tokio::test]
async fn a_rejection_is_shown_and_a_gap_is_mended() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    node.take_and_ack().await;
    let made = admin.destination("dev", "db").await;
    loop {
        let (nonce, _) = node.take().await;
        if node.config.destinations().next().is_none() {
            node.ack(nonce, vec![]).await;
            continue;
        }
        let rejection = node::Rejection {
            object_id: made.id.clone(),
            generation: 1,
            reason: "too-odd".to_owned(),
            message: "not on this machine".to_owned(),
        };
        node.ack(nonce, vec![rejection]).await;
        break;
    }
    let shown = watch_until(&mut admin, "dev/db", |d| {
        d.status
            .as_ref()
            .unwrap()
            .nodes
            .iter()
            .any(|row| row.state == "failed")
    })
    .await;
    let row = &shown.status.unwrap().nodes[0];
    assert_eq!(
        (row.reason.as_str(), row.message.as_str()),
        ("too-odd", "not on this machine")
    );
    let status = admin.system.get_status(api::GetStatusRequest {}).await;
    assert_eq!(
        status.unwrap().into_inner().problems,
        ["node n rejects destination dev/db: not on this machine"]
    );
    node.say(Up::DestinationStates(node::DestinationStates {
        changed: vec![node::DestinationState {
            destination_id: made.id.clone(),
            generation: 1,
            state: "failed".to_owned(),
            message: "somebody has the port".to_owned(),
            ..node::DestinationState::default()
        }],
        ..node::DestinationStates::default()
    }))
    .await;
    within("a word of it", async {
        loop {
            let status = admin.system.get_status(api::GetStatusRequest {}).await;
            let problems = status.unwrap().into_inner().problems;
            if problems.contains(
                &"node n cannot serve destination dev/db: somebody has the port".to_owned(),
            ) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    let ack = node::Ack {
        resync: true,
        ..node::Ack::default()
    };
    node.say(Up::Ack(ack)).await;
    assert!(node.take_and_ack().await, "everything anew");
}

#[tokio::test]
async fn a_node_that_comes_back_gets_only_what_it_missed() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    node.take_and_ack().await;
    admin.destination("dev", "one").await;
    node.until_destinations(1).await;
    let had = node.config.clone();
    drop(node);
    admin.destination("dev", "two").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.config = had.clone();
    node.subscribe().await;
    assert!(!node.take_and_ack().await, "a delta is enough");
    assert_eq!(node.config.destinations().count(), 2);

    // Another control plane, started later, knows nothing of how it came about.
    let other = plane.another("two").await;
    let mut there = Node::connect(&other, Some(&credentials)).await.unwrap();
    there.config = node.config.clone();
    there.subscribe().await;
    admin.destination("dev", "three").await;
    assert!(!there.take_and_ack().await, "its state was recognised");
    assert_eq!(there.config.destinations().count(), 3);

    // One that claims a state it does not have gets everything.
    let mut liar = Node::connect(&plane, Some(&credentials)).await.unwrap();
    liar.say(Up::Subscribe(node::Subscribe {
        epoch: 1,
        revision: had.revision(),
        digest: 1,
    }))
    .await;
    assert!(liar.take_and_ack().await);
}

#[tokio::test]
async fn a_node_moves_to_the_other_control_plane_when_one_ends() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let other = plane.another("two").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    node.take_and_ack().await;
    // Both are told to the node sooner or later.
    within("both addresses", async {
        loop {
            if let Down::Heartbeat(beat) = node.message().await.unwrap()
                && beat.control_planes.len() == 2
            {
                break;
            }
        }
    })
    .await;
    let config = node.config.clone();
    plane.shutdown.begin();
    let status = node.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Unavailable, "DRAINING".to_owned())
    );
    let mut there = Node::connect(&other, Some(&credentials)).await.unwrap();
    there.config = config;
    there.subscribe().await;
    let mut admin = {
        let token = plane.token();
        within("the end", plane.task).await.unwrap().unwrap();
        other.admin_with(&format!("Bearer {token}")).await
    };
    admin.destination("dev", "db").await;
    there.until_destinations(1).await;
}

#[tokio::test]
async fn a_large_configuration_comes_in_parts() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    // Lists of 5,000 entries are the largest objects there are.
    for n in 0..8 {
        let name = format!("big-{n}");
        let gateway = admin.gateway(&name).await;
        use prost::Message as _;
        use sg_control_plane::store::{Store as _, Txn};
        let entries = (0..5_000).map(|i| sg_proto::store::AclEntry {
            action: "allow".to_owned(),
            host: format!("host-{i}.some-quite-long-domain.example"),
            port: 443,
            ..sg_proto::store::AclEntry::default()
        });
        let acl = sg_proto::store::Acl {
            gateway_id: gateway.id.clone(),
            generation: 2,
            entries: entries.collect(),
            unlisted: "deny".to_owned(),
            path_prefix: String::new(),
        };
        let key = format!("v1/obj/acl/{}", gateway.id);
        plane
            .store
            .txn(Txn::new().put(key, acl.encode_to_vec()))
            .await
            .unwrap();
    }
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    let mut sizes: BTreeMap<u32, usize> = BTreeMap::new();
    within("all parts", async {
        loop {
            if let Down::Snapshot(part) = node.message().await.unwrap() {
                use prost::Message as _;
                sizes.insert(part.part, part.encoded_len());
                if part.part + 1 == part.parts {
                    break;
                }
            }
        }
    })
    .await;
    assert!(
        sizes.len() > 1 && sizes.values().all(|size| *size <= 1024 * 1024 + 256),
        "{sizes:?}"
    );
}

#[tokio::test]
async fn clients_are_put_together_from_the_reports_of_all_nodes() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let tunnel = |boot: &str, rtt_ms, streams, generation| node::ClientTunnel {
        gateway_id: gateway.id.clone(),
        client_id: "c01".to_owned(),
        client_name: "plant".to_owned(),
        boot_id: boot.to_owned(),
        version: "0.1.0".to_owned(),
        address: "10.0.0.1:1".to_owned(),
        rtt_ms,
        active_streams: streams,
        acl_epoch: 1,
        acl_generation: generation,
        ..node::ClientTunnel::default()
    };
    let report = |tunnels: Vec<node::ClientTunnel>| {
        let acls = vec![node::AclState {
            gateway_id: gateway.id.clone(),
            epoch: 1,
            generation: 2,
        }];
        Up::Status(node::Status {
            revision: 1,
            streams: 3,
            tunnels,
            acls,
            ..node::Status::default()
        })
    };
    let (_, first) = plane.join(&mut admin, "n1").await;
    let (_, second) = plane.join(&mut admin, "n2").await;
    let one = Node::connect(&plane, Some(&first)).await.unwrap();
    let two = Node::connect(&plane, Some(&second)).await.unwrap();
    one.say(report(vec![tunnel("x", 2.0, 1, 2), tunnel("y", 1.0, 1, 2)]))
        .await;
    two.say(report(vec![tunnel("x", 1.5, 2, 1)])).await;
    let list = || api::ListClientsRequest {
        parent: "dev".to_owned(),
        ..Default::default()
    };
    let clients = within("the clients", async {
        loop {
            let found = admin
                .clients
                .list_clients(list())
                .await
                .unwrap()
                .into_inner()
                .clients;
            if found
                .iter()
                .map(|client| client.tunnels.len())
                .sum::<usize>()
                == 3
            {
                break found;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(clients.len(), 2, "one row per process");
    let x = &clients[0];
    assert_eq!((x.rtt_ms, x.active_streams, x.acl_generation), (1.5, 3, 1));
    let add = api::AddAclEntryRequest {
        name: "dev".to_owned(),
        entry: Some(api::AclEntry {
            action: "allow".to_owned(),
            host: "h".to_owned(),
            port: 1,
            ..api::AclEntry::default()
        }),
        ..api::AddAclEntryRequest::default()
    };
    let acl = admin.acls.add_acl_entry(add).await.unwrap().into_inner();
    assert_eq!(acl.generation, 2);
    assert!(
        !acl.status.unwrap().enforced,
        "a tunnel is still at generation 1"
    );
    two.say(report(vec![tunnel("x", 1.5, 2, 2)])).await;
    let request = api::WatchAclRequest {
        name: "dev".to_owned(),
    };
    let mut watch = admin.acls.watch_acl(request).await.unwrap().into_inner();
    within("enforcement", async {
        while !watch
            .message()
            .await
            .unwrap()
            .unwrap()
            .status
            .unwrap()
            .enforced
        {}
    })
    .await;
    drop(two);
    within("the other tunnels to go", async {
        loop {
            let found = admin
                .clients
                .list_clients(list())
                .await
                .unwrap()
                .into_inner()
                .clients;
            if found.iter().all(|client| client.tunnels.len() == 1) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    drop(one);
}

#[tokio::test]
async fn nodes_go_back_with_a_store_that_was_restored() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.subscribe().await;
    node.take_and_ack().await;
    admin.destination("dev", "kept").await;
    node.until_destinations(1).await;
    let backup = plane.store.faults().checkpoint();
    for name in ["lost-1", "lost-2", "lost-3"] {
        admin.destination("dev", name).await;
    }
    node.until_destinations(4).await;
    assert_eq!(node.config.epoch(), 1);
    plane.store.faults().restore(&backup);
    while node.config.epoch() == 1 {
        node.take_and_ack().await;
    }
    node.until_destinations(1).await;
    assert_eq!(node.config.epoch(), 2);
    // And life goes on.
    admin.destination("dev", "new").await;
    node.until_destinations(2).await;
}

#[tokio::test]
async fn a_node_that_knows_more_than_a_restored_store_is_taken_back() {
    // Its revision is one that the store has not reached, or has reached again by other writes;
    // or it comes out of a later epoch.
    taken_back(1, |newest| newest + 1_000_000).await;
    taken_back(1, |newest| newest - 5).await;
    taken_back(6, |_| 5).await;
}

/// As if the store had been restored while no control plane ran: only the node remembers.
async fn taken_back(epoch: u64, revision: fn(u64) -> u64) {
    use sg_control_plane::store::{Store as _, Txn};
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    within("the node's record", async {
        let ask = || api::GetNodeRequest {
            name: "n".to_owned(),
        };
        while admin
            .nodes
            .get_node(ask())
            .await
            .unwrap()
            .into_inner()
            .port_first
            == 0
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    for n in 0..10 {
        let write = Txn::new().put("elsewhere", n.to_string());
        plane.store.txn(write).await.unwrap();
    }
    let revision = revision(plane.store.revision().await.unwrap().get());
    let lost = node::Subscribe {
        epoch,
        revision,
        digest: 1,
    };
    node.say(Up::Subscribe(lost)).await;
    while node.config.epoch() != epoch + 1 {
        node.take_and_ack().await;
    }
    assert_eq!(node.config.gateways().count(), 1);
}

#[tokio::test]
async fn an_impossible_epoch_changes_nothing() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    node.say(Up::Subscribe(node::Subscribe {
        epoch: u64::MAX,
        revision: 5,
        digest: 1,
    }))
    .await;
    // Two heartbeats after it was found to be ahead.
    for _ in 0..4 {
        loop {
            match node.message().await.unwrap() {
                Down::Heartbeat(_) => break,
                Down::Welcome(_) | Down::Trust(_) => {}
                other => panic!("nothing should be sent, but {other:?} was"),
            }
        }
    }
    admin.gateway("dev").await;
    let acl = admin
        .acls
        .get_acl(api::GetAclRequest {
            name: "dev".to_owned(),
        })
        .await
        .unwrap();
    assert_eq!(acl.into_inner().epoch, 1);
}

#[tokio::test]
async fn nodes_that_may_still_come_back_are_waited_for() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (_, first) = plane.join(&mut admin, "n1").await;
    plane.join(&mut admin, "n2").await;
    let made = admin.destination("dev", "db").await;
    let acl = || api::GetAclRequest {
        name: "dev".to_owned(),
    };
    let now = admin.acls.get_acl(acl()).await.unwrap().into_inner();
    assert!(!now.status.unwrap().enforced, "nobody has reported yet");
    let node = Node::connect(&plane, Some(&first)).await.unwrap();
    node.say(listening(&made.id, 1)).await;
    let shown = watch_until(&mut admin, "dev/db", |d| {
        d.status
            .as_ref()
            .unwrap()
            .nodes
            .iter()
            .any(|row| row.state == "listening")
    })
    .await;
    assert!(
        !shown.status.unwrap().ready,
        "n2 may serve without our knowing"
    );
    // After a while it is taken to be away.
    let shown = watch_until(&mut admin, "dev/db", |d| d.status.as_ref().unwrap().ready).await;
    assert_eq!(shown.status.unwrap().nodes.len(), 2);
}

#[tokio::test]
async fn one_node_has_one_connection() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let (_, credentials) = plane.join(&mut admin, "n").await;
    let older = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let _newer = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let status = older.end().await;
    assert_eq!(
        (status.code(), reason(&status)),
        (Code::Aborted, "REPLACED".to_owned())
    );
    let request = api::GetNodeRequest {
        name: "n".to_owned(),
    };
    assert_eq!(
        admin
            .nodes
            .get_node(request)
            .await
            .unwrap()
            .into_inner()
            .state,
        "ready"
    );
}
