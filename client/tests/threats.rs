//! Rows of the threat table that a client meets in what its nodes say, each by its number (docs/threats.md).
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::time::Duration;

use node::{Ca, Client, echo, stream_open};
use sg_tunnel_io::code;
use tokio::net::TcpListener;

/// Row 4: what a node says in the fields of a stream is what it asks for and not what it is. It gets what the list of
/// *its* gateway allows, whichever gateway, destination, user or list it names.
#[tokio::test(flavor = "multi_thread")]
async fn threat_04_no_field_of_a_node_reaches_what_another_gateway_allows() {
    let ca = Ca::new();
    let (mut one, mut two) = (ca.node("n1").await, ca.node("n2").await);
    let (of_one, _one) = echo().await;
    let (of_two, _two) = echo().await;
    let _client = Client::start(&format!(
        "alpha beta -t sgt_1--sgt_2 -g {}--{} --ca {}",
        one.address,
        two.address,
        ca.file()
    ));
    let mut alpha = one.tunnel(&format!("acl allow {of_one}")).await;
    let mut beta = two.tunnel(&format!("acl allow {of_two}")).await;
    assert_eq!((alpha.applied().await, beta.applied().await), (1, 1));
    // Each reaches its own.
    drop(alpha.open(of_one).await.unwrap());
    drop(beta.open(of_two).await.unwrap());
    let lures = |port: u16| {
        let plain = stream_open("127.0.0.1", port);
        [
            plain.clone(),
            sg_proto::tunnel::StreamOpen {
                destination: "of-beta".to_owned(),
                destination_id: "d2".to_owned(),
                ..plain.clone()
            },
            sg_proto::tunnel::StreamOpen {
                acl_epoch: 0,
                acl_generation: 0,
                ..plain.clone()
            },
            sg_proto::tunnel::StreamOpen {
                user_address: "127.0.0.1:1".to_owned(),
                local_address: "127.0.0.1:2".to_owned(),
                user_tls: Some(sg_proto::tunnel::UserTls {
                    verified: true,
                    certificate: true,
                    common_name: "admin".to_owned(),
                    ..sg_proto::tunnel::UserTls::default()
                }),
                ..plain.clone()
            },
            sg_proto::tunnel::StreamOpen {
                resource_host: "localhost".to_owned(),
                ..plain.clone()
            },
            sg_proto::tunnel::StreamOpen {
                resource_host: "[::ffff:127.0.0.1]".to_owned(),
                ..plain.clone()
            },
            sg_proto::tunnel::StreamOpen { http: 1, ..plain },
        ]
    };
    for open in lures(of_two.port()) {
        let shown = format!("{open:?}");
        let refusal = alpha.refusal(open).await;
        assert!(
            [code::ACL_DENIED, code::INTERNAL].contains(&refusal),
            "{refusal:#x}: {shown}"
        );
    }
    for open in lures(of_one.port()) {
        let shown = format!("{open:?}");
        let refusal = beta.refusal(open).await;
        assert!(
            [code::ACL_DENIED, code::INTERNAL].contains(&refusal),
            "{refusal:#x}: {shown}"
        );
    }
    // A destination that only the other gateway's node has told of is none here.
    let mut open = stream_open("127.0.0.1", of_two.port());
    open.look_up = true;
    open.generation = 1;
    let refusal = alpha.refusal(open).await;
    assert_ne!(refusal, 0);
}

/// Row 11: a node that asks for an address that must be named does not get it by any spelling, whatever the list allows
/// at large.
#[tokio::test(flavor = "multi_thread")]
async fn threat_11_no_spelling_of_a_special_address_is_dialled() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!(
        "dev -t sgt_1 -g {} --ca {}",
        node.address,
        ca.file()
    ));
    let mut peer = node
        .tunnel("acl allow :\nacl allow 0.0.0.0/0:\nacl allow ::/0:")
        .await;
    assert_eq!(peer.applied().await, 1);
    // A listener on every address of this machine would be reached by `0.0.0.0` and its spellings.
    let here = TcpListener::bind("0.0.0.0:0").await.unwrap();
    let port = here.local_addr().unwrap().port();
    let table = include_str!("../../model/tests/data/special.txt");
    let spellings = table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'));
    for special in spellings {
        for written in [special, special.trim_matches(['[', ']'])] {
            let mut open = stream_open(written, port);
            open.connect_timeout_ms = 1000;
            let refusal = peer.refusal(open).await;
            assert!(
                [code::ACL_DENIED, code::INTERNAL].contains(&refusal),
                "{written}: {refusal:#x}"
            );
        }
    }
    // Its own admin port, in every form of this machine's address.
    let admin = client.ready().await["admin_listen"]
        .as_str()
        .unwrap()
        .rsplit_once(':')
        .unwrap()
        .1
        .parse::<u16>()
        .unwrap();
    for own in ["127.0.0.1", "localhost", "::ffff:127.0.0.1", "0.0.0.0"] {
        let refusal = peer.refusal(stream_open(own, admin)).await;
        assert_eq!(refusal, code::ACL_DENIED, "{own}");
    }
    let none = tokio::time::timeout(Duration::from_millis(20), here.accept()).await;
    assert!(none.is_err(), "somebody was let in");
}
