//! Changes of configuration reach what is open: streams, tunnels, ports.

use std::time::{Duration, Instant};

use sg_model::{NodeObject, Timestamp, TokenExpiry};
use sg_proto::tunnel::control;
use sg_tunnel_io::CloseReason;
use sg_tunnel_io::code::close;
use tokio::net::TcpStream;

use super::rig::{Answer, Offer, Rig, exchange, expect_reset, open_gateway};
use crate::app::drain;
use crate::node;
use crate::reconcile::testing::acl;

#[tokio::test]
async fn a_tightened_list_ends_streams_and_reaches_the_client() {
    let mut rig = Rig::new().await;
    let mut client = rig.client(Answer::Relay).await;
    let mut user = rig.user().await;
    exchange(&mut user, b"x").await;
    let started = Instant::now();
    rig.apply(2, |mut objects| {
        objects.push(acl("g1", 2, []));
        objects
    })
    .await;
    expect_reset(&mut user).await;
    assert!(started.elapsed() < Duration::from_secs(2));
    let control::Message::Acl(told) = client.next_control().await else {
        panic!("the list comes first");
    };
    assert_eq!((told.generation, told.entries.len()), (2, 0));
    client.confirm(told.epoch, told.generation);
    rig.eventually(|rig| {
        let all = rig.node.registry.all();
        all.iter().all(|s| s.acl_applied().generation == 2)
    })
    .await;
    expect_reset(&mut rig.user().await).await;
    rig.eventually(|rig| rig.opened("acl-denied") == 1).await;
    let denied = "sg_acl_decisions_total{gateway=\"gateway-g1\",decision=\"deny\"}";
    assert_eq!(rig.series(denied).as_deref(), Some("1"));
}

#[tokio::test]
async fn a_widened_list_disturbs_nobody() {
    let mut rig = Rig::new().await;
    let _client = rig.client(Answer::Relay).await;
    let mut user = rig.user().await;
    exchange(&mut user, b"x").await;
    rig.apply(2, |objects| objects).await;
    exchange(&mut user, b"y").await;
}

#[tokio::test]
async fn a_disabled_gateway_loses_ports_streams_and_tunnels() {
    let mut rig = Rig::new().await;
    let offer = Offer::new();
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let mut user = rig.user().await;
    exchange(&mut user, b"x").await;
    rig.apply(2, |mut objects| {
        objects.push(open_gateway(false));
        objects
    })
    .await;
    expect_reset(&mut user).await;
    let CloseReason::Peer { code, .. } = client.closed().await.reason else {
        panic!("the node closes it");
    };
    assert_eq!(code, close::AUTH_REVOKED);
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
    let refused = rig.connect(&offer, Answer::Relay).await.err().unwrap();
    assert_eq!(refused.reason, "gateway-disabled");

    rig.apply(3, |objects| objects).await;
    let _client = rig.connect(&offer, Answer::Relay).await.unwrap();
    exchange(&mut rig.user().await, b"x").await;
}

#[tokio::test]
async fn a_rotated_token_ends_the_tunnels_of_the_old_one() {
    let mut rig = Rig::new().await;
    let client = rig.client(Answer::Relay).await;
    rig.apply(2, |mut objects| {
        let NodeObject::Gateway(mut g) = open_gateway(true) else {
            unreachable!("the helper makes a gateway")
        };
        g.tokens[0].sha256 = [9; 32];
        objects.push(NodeObject::Gateway(g));
        objects
    })
    .await;
    let closed = client.closed().await;
    assert!(matches!(
        closed.reason,
        CloseReason::Peer {
            code: close::AUTH_REVOKED,
            ..
        }
    ));
    let tunnels = "sg_tunnels{gateway=\"gateway-g1\"}";
    rig.eventually(|rig| rig.series(tunnels).as_deref() == Some("0"))
        .await;
}

#[tokio::test]
async fn a_token_that_expires_ends_its_tunnels_only_if_asked_to() {
    for (expiry, ends) in [(TokenExpiry::Cut, true), (TokenExpiry::Keep, false)] {
        let mut rig = Rig::new().await;
        let client = rig.client(Answer::Relay).await;
        let end = Timestamp(node::now().0 + 1200);
        rig.apply(2, |mut objects| {
            let NodeObject::Gateway(mut g) = open_gateway(true) else {
                unreachable!("the helper makes a gateway")
            };
            g.tokens[0].expires = Some(end);
            g.token_expiry = expiry;
            objects.push(NodeObject::Gateway(g));
            objects
        })
        .await;
        let mut user = rig.user().await;
        exchange(&mut user, b"x").await;
        if ends {
            let closed = client.closed().await;
            assert!(node::now() >= end && node::now() < Timestamp(end.0 + 2000));
            let CloseReason::Peer { code, .. } = closed.reason else {
                panic!("the node closes it");
            };
            assert_eq!(code, close::AUTH_REVOKED);
            expect_reset(&mut user).await;
        } else {
            rig.eventually(|_| node::now() > Timestamp(end.0 + 1200))
                .await;
            exchange(&mut user, b"y").await;
        }
    }
}

#[tokio::test]
async fn a_deleted_destination_takes_its_series_along() {
    let mut rig = Rig::new().await;
    let _client = rig.client(Answer::Relay).await;
    exchange(&mut rig.user().await, b"x").await;
    rig.eventually(|rig| rig.node.streams.len() == 0).await;
    assert!(rig.metrics.encode().contains("destination=\"d1\""));
    rig.apply(2, |objects| vec![objects[0].clone()]).await;
    assert!(!rig.metrics.encode().contains("destination=\"d1\""));
    assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
}

#[tokio::test]
async fn a_newer_connection_of_a_client_replaces_the_older() {
    let rig = Rig::new().await;
    let offer = Offer::new();
    let first = rig.connect(&offer, Answer::Relay).await.unwrap();
    let second = rig.connect(&offer, Answer::Relay).await.unwrap();
    let closed = first.closed().await;
    assert!(matches!(
        closed.reason,
        CloseReason::Peer {
            code: close::REPLACED,
            ..
        }
    ));
    rig.eventually(|rig| rig.node.registry.all().len() == 1)
        .await;
    exchange(&mut rig.user().await, b"x").await;
    assert_eq!(second.asked(), 1);
}

#[tokio::test]
async fn a_drain_waits_for_streams_and_then_resets_the_rest() {
    let rig = Rig::new().await;
    let client = rig.client(Answer::Relay).await;
    let mut user = rig.user().await;
    exchange(&mut user, b"x").await;
    rig.node.shutdown.begin();
    let drained = drain::run(&rig.node, &rig.tunnels, &rig.stop);
    let watched = async {
        rig.eventually(|_| client.tunnel.is_draining()).await;
        assert!(TcpStream::connect(("127.0.0.1", rig.port)).await.is_err());
        exchange(&mut user, b"still here").await;
        assert!(rig.node.shutdown.is_draining());
        expect_reset(&mut user).await;
        client.closed().await
    };
    let ((), closed) = tokio::join!(drained, watched);
    assert!(
        matches!(closed.reason, CloseReason::Peer { .. }),
        "{closed}"
    );
    assert_eq!(rig.node.connections.active(), 0);
}

#[tokio::test]
async fn a_policy_is_still_enforced_while_the_node_drains() {
    let rig = Rig::new().await;
    let mut client = rig.client(Answer::Relay).await;
    let mut user = rig.user().await;
    exchange(&mut user, b"x").await;
    rig.node.shutdown.begin();
    let drained = drain::run(&rig.node, &rig.tunnels, &rig.stop);
    let watched = async {
        rig.eventually(|_| client.tunnel.is_draining()).await;
        rig.publish(2, |mut objects| {
            objects.push(acl("g1", 2, []));
            objects
        });
        expect_reset(&mut user).await;
        let told = client.next_control().await;
        assert!(matches!(told, control::Message::Acl(acl) if acl.entries.is_empty()));
    };
    let started = Instant::now();
    tokio::join!(drained, watched);
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "the drain ends with its last stream"
    );
}

#[tokio::test]
async fn what_the_system_has_accepted_before_a_drain_is_still_served() {
    let rig = Rig::new().await;
    let _client = rig.client(Answer::Relay).await;
    let mut users = Vec::new();
    for _ in 0..20 {
        users.push(rig.user().await);
    }
    rig.node.shutdown.begin();
    let drained = drain::run(&rig.node, &rig.tunnels, &rig.stop);
    let served = async {
        for mut user in users {
            exchange(&mut user, b"x").await;
        }
    };
    tokio::join!(drained, served);
}
