//! The reconciler with real sockets.

use std::net::Ipv4Addr;
use std::time::Duration;

use sg_model::NodeObject;
use sg_runtime::net;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::testing::{acl, config, destination, gateway};
use super::*;
use crate::tests::rig;

struct Fixture {
    node: Arc<Node>,
    desired: watch::Sender<Arc<NodeConfig>>,
    applied: watch::Receiver<Arc<Applied>>,
    stop: CancellationToken,
    tasks: JoinSet<()>,
}

impl Fixture {
    fn start() -> Self {
        let (node, _) = rig::node();
        let (desired, desired_rx) = watch::channel(Arc::default());
        let (applied_tx, applied) = watch::channel(Arc::default());
        let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let reconciler = Reconciler::new(Arc::clone(&node), address, desired_rx, applied_tx);
        let stop = CancellationToken::new();
        let mut tasks = JoinSet::new();
        tasks.spawn(reconciler.run(stop.clone(), stop.clone()));
        Self {
            node,
            desired,
            applied,
            stop,
            tasks,
        }
    }

    async fn apply(&mut self, config: NodeConfig) -> Arc<Applied> {
        let revision = config.revision();
        self.desired.send_replace(Arc::new(config));
        self.wait(|applied| applied.revision == revision).await
    }

    async fn wait(&mut self, until: impl FnMut(&Arc<Applied>) -> bool) -> Arc<Applied> {
        let found = timeout(Duration::from_secs(10), self.applied.wait_for(until));
        Arc::clone(&found.await.unwrap().unwrap())
    }
}

async fn free_port() -> u16 {
    let listener = net::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    listener.local_addr().unwrap().port()
}

fn state(applied: &Applied, id: &str) -> State {
    applied
        .destinations
        .get(&DestinationId::new(id).unwrap())
        .unwrap()
        .state
        .clone()
}

async fn connects(port: u16) -> bool {
    TcpStream::connect(("127.0.0.1", port)).await.is_ok()
}

#[tokio::test]
async fn ports_open_move_and_close_with_the_configuration() {
    let mut f = Fixture::start();
    let (a, b) = (free_port().await, free_port().await);
    let applied = f
        .apply(config(1, [gateway("g1", true), destination("d1", "g1", a)]))
        .await;
    assert_eq!(state(&applied, "d1"), State::Listening);
    assert!(connects(a).await);

    f.apply(config(2, [gateway("g1", true), destination("d1", "g1", b)]))
        .await;
    assert!(connects(b).await && !connects(a).await);

    let applied = f
        .apply(config(
            3,
            [gateway("g1", false), destination("d1", "g1", b)],
        ))
        .await;
    assert_eq!(state(&applied, "d1"), State::Disabled);
    assert!(!connects(b).await);

    f.apply(config(4, [gateway("g1", true), destination("d1", "g1", b)]))
        .await;
    assert!(connects(b).await);
    f.stop.cancel();
    f.tasks.join_next().await.unwrap().unwrap();
    assert!(!connects(b).await);
}

#[tokio::test]
async fn two_destinations_can_swap_their_ports() {
    let mut f = Fixture::start();
    let (a, b) = (free_port().await, free_port().await);
    let both = |revision, one, two| {
        let objects = [
            gateway("g1", true),
            destination("d1", "g1", one),
            destination("d2", "g1", two),
        ];
        config(revision, objects)
    };
    f.apply(both(1, a, b)).await;
    let applied = f.apply(both(2, b, a)).await;
    for id in ["d1", "d2"] {
        assert_eq!(state(&applied, id), State::Listening);
    }
}

#[tokio::test]
async fn a_taken_port_is_a_status_and_is_tried_again() {
    let taken = net::bind_tcp("127.0.0.1:0".parse().unwrap()).unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut f = Fixture::start();
    let applied = f
        .apply(config(
            1,
            [gateway("g1", true), destination("d1", "g1", port)],
        ))
        .await;
    let State::Failed { reason, message } = state(&applied, "d1") else {
        panic!("the port is taken");
    };
    assert_eq!(reason, "address-in-use");
    assert!(message.contains(&port.to_string()), "{message}");
    drop(taken);
    f.wait(|applied| state(applied, "d1") == State::Listening)
        .await;
}

#[tokio::test]
async fn a_connection_without_a_client_is_reset_at_once() {
    let mut f = Fixture::start();
    let port = free_port().await;
    let entry = sg_model::AclEntry::parse(sg_model::Action::Allow, "127.0.0.1:5432").unwrap();
    let objects: [NodeObject; 3] = [
        gateway("g1", true),
        destination("d1", "g1", port),
        acl("g1", 1, [entry]),
    ];
    f.apply(config(1, objects)).await;
    let started = Instant::now();
    let mut tcp = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let error = tcp.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    assert!(started.elapsed() < Duration::from_millis(500));
    assert!(f.node.connections.wait_idle(Duration::from_secs(5)).await);
    assert_eq!(f.node.streams.len(), 0);
}

#[tokio::test]
async fn a_cloud_destination_is_served_where_the_operator_allows_it() {
    let mut f = Fixture::start();
    let cloud = |resource: &str| {
        let NodeObject::Destination(mut d) = destination("d1", "g1", 1) else {
            unreachable!("the helper makes a destination")
        };
        d.listen = sg_model::Listen::ClientPort(3306);
        d.resource = resource.parse().unwrap();
        NodeObject::Destination(d)
    };
    let allowed = [gateway("g1", true), cloud("127.0.0.1:5432")];
    let applied = f.apply(config(1, allowed)).await;
    assert_eq!(state(&applied, "d1"), State::Listening);
    let other = [gateway("g1", true), cloud("10.9.9.9:5432")];
    let applied = f.apply(config(2, other)).await;
    assert!(matches!(
        state(&applied, "d1"),
        State::Failed {
            reason: "cloud-denied",
            ..
        }
    ));
}

/// However busy the node is when a rule ends: the timer need not have been the one that noticed.
#[tokio::test]
async fn a_source_rule_that_ends_during_other_work_takes_its_connections_along() {
    let (node, _) = rig::node();
    let (_desired, desired) = watch::channel(Arc::default());
    let (applied, _applied) = watch::channel(Arc::default());
    let address = IpAddr::V4(Ipv4Addr::LOCALHOST);
    let mut reconciler = Reconciler::new(Arc::clone(&node), address, desired, applied);
    let with_rule = |ends: Timestamp| {
        let NodeObject::Destination(mut d) = destination("d1", "g1", 1) else {
            unreachable!("the helper makes a destination")
        };
        d.enabled = true;
        d.listen = sg_model::Listen::ClientPort(3306);
        d.user_end.sources.restrict = true;
        let rule = sg_model::SourceRule {
            spec: "127.0.0.1".parse().unwrap(),
            owner: None,
            expires: Some(ends),
        };
        d.user_end.sources.add(rule, now()).unwrap();
        NodeObject::Destination(d)
    };
    let ends = Timestamp(now().0 + 150);
    let first = Arc::new(config(1, [gateway("g1", true), with_rule(ends)]));
    reconciler.step(&first, BTreeSet::new()).await;
    let user = "127.0.0.1:7".parse().unwrap();
    let stream = node
        .streams
        .register(DestinationId::new("d1").unwrap(), user);
    assert!(reconciler.expire(&first).is_some(), "it waits for the end");
    assert_eq!(stream.end().code(), None);
    tokio::time::sleep(Duration::from_millis(200)).await;
    // Another change comes first, and concerns another destination.
    let mut second = NodeConfig::clone(&first);
    let change = sg_model::Change {
        epoch: 1,
        from: Some(1),
        to: 2,
        upserts: vec![(2, destination("d2", "g1", free_port().await))],
        removals: vec![],
    };
    second.apply(change).unwrap();
    let second = Arc::new(second);
    reconciler.step(&second, BTreeSet::new()).await;
    assert_eq!(reconciler.expire(&second), None, "there is no other rule");
    let policy_changed = Some(sg_tunnel_io::code::POLICY_CHANGED);
    assert_eq!(stream.end().code(), policy_changed);
}
