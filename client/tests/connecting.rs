//! How a client finds, checks and keeps its nodes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::time::{Duration, Instant};

use node::{Ca, Client, endpoints, soon, until};
use sg_client::app::AppError;
use sg_proto::tunnel::{control, server_hello};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpListener;

#[tokio::test]
async fn a_client_says_who_it_is_and_is_ready_with_its_first_tunnel() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let directory = tempfile::tempdir().unwrap();
    let line = format!(
        "dev -t sgt_1 -g {} --ca {} --name plant",
        node.address,
        ca.file()
    );
    let client = Client::start_in(directory.path().to_owned(), &line);
    let first = node.tunnel("").await;
    assert_eq!(first.hello.version, 1);
    assert_eq!(
        (first.hello.gateway.as_str(), first.hello.token.as_str()),
        ("dev", "sgt_1")
    );
    assert_eq!(
        (first.hello.client_name.as_str(), first.hello.connection),
        ("plant", 0)
    );
    assert_eq!(first.hello.boot_id.len(), 16);
    let ready = client.ready().await;
    assert_eq!(ready["client_id"], first.client_id.as_str());
    assert_eq!(ready["gateways"], serde_json::json!(["dev"]));
    let admin = ready["admin_listen"].as_str().unwrap();
    assert!(
        Client::get(admin, "/readyz")
            .await
            .starts_with("HTTP/1.1 200")
    );
    assert!(
        Client::get(admin, "/metrics")
            .await
            .contains("sg_tunnels{gateway=\"dev\"} 1")
    );

    // The same client after a restart: another run, the same id.
    client.shutdown.begin();
    client.ended().await.unwrap();
    let _client = Client::start_in(directory.path().to_owned(), &line);
    let second = node.tunnel("").await;
    assert_eq!(second.client_id, first.client_id);
    assert_ne!(second.hello.boot_id, first.hello.boot_id);
}

#[tokio::test]
async fn a_node_is_believed_by_ca_file_and_by_pin() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    for trust in [ca.file(), ca.pin()] {
        let _client = Client::start(&format!("dev -g {} --ca {trust}", node.address));
        node.tunnel("").await;
    }
}

/// Row 32: a server of another authority, or of ours and another kind, gets not a byte of the token.
#[tokio::test]
async fn threat_32_nothing_is_said_to_somebody_who_is_not_trusted() {
    let (ca, other) = (Ca::new(), Ca::new());
    let mut stranger = other.node("n1").await;
    let mut control_plane = ca
        .node_of_kind("control-plane", "n1", "127.0.0.1:0".parse().unwrap())
        .await;
    for (address, trust) in [
        (stranger.address, ca.file()),
        (stranger.address, ca.pin()),
        (control_plane.address, ca.file()),
        (control_plane.address, ca.pin()),
    ] {
        let client = Client::start(&format!("dev -t sgt_1 -g {address} --ca {trust} --once"));
        assert!(matches!(client.ended().await, Err(AppError::GivenUp(_))));
    }
    assert!(stranger.nobody() && control_plane.nobody());
}

#[tokio::test]
async fn once_ends_the_client_at_whatever_goes_wrong_first() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let once = |address| Client::start(&format!("dev -g {address} --ca {} --once", ca.file()));

    let nobody = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    assert!(matches!(
        once(nobody).ended().await,
        Err(AppError::GivenUp(_))
    ));

    let client = once(node.address);
    node.arrival().await.refuse("token-expired", false).await;
    let said = client.ended().await.unwrap_err().to_string();
    let refused = format!(
        "gateway dev: no tunnel to the node at {}: refused: no (token-expired); ending because of --once",
        node.address
    );
    assert_eq!(said, refused);

    let client = once(node.address);
    drop(node.tunnel("").await);
    let said = client.ended().await.unwrap_err().to_string();
    let lost = format!(
        "gateway dev: the tunnel to the node at {} ended: ",
        node.address
    );
    assert!(said.starts_with(&lost), "{said}");
    assert!(said.ends_with("; ending because of --once"), "{said}");
}

#[tokio::test]
async fn a_token_that_is_rotated_in_its_file_is_taken_when_the_old_one_is_refused() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let own = tempfile::tempdir().unwrap();
    let tokens = own.path().join("tokens");
    std::fs::write(&tokens, "sgt_other\nsgt_old\n").unwrap();
    let _client = Client::start(&format!(
        "other dev -g {0}--{0} --ca {1} --token-file {2}",
        node.address,
        ca.file(),
        tokens.display()
    ));
    let mut shown = Vec::new();
    for refuses in [true, false, true] {
        // One stays for the other gateway.
        let arrival = loop {
            let arrival = node.arrival().await;
            if arrival.hello.gateway == "dev" {
                break arrival;
            }
        };
        shown.push(arrival.hello.token.clone());
        match refuses {
            true => std::fs::write(&tokens, "sgt_other\nsgt_new\n").unwrap(),
            // It is not read for any other refusal.
            false => std::fs::write(&tokens, "sgt_other\nsgt_third\n").unwrap(),
        }
        let reason = if refuses {
            "unauthenticated"
        } else {
            "draining"
        };
        arrival.refuse(reason, !refuses).await;
    }
    assert_eq!(shown, ["sgt_old", "sgt_new", "sgt_new"]);
}

#[tokio::test]
async fn a_port_that_is_no_tunnel_port_is_named() {
    sg_runtime::crypto::install();
    let ca = Ca::new();
    let (address, _server) = ca.without_tunnels().await;
    let client = Client::start(&format!("dev -g {address} --ca {} --once", ca.file()));
    let said = client.ended().await.unwrap_err().to_string();
    let named = "TLS works, but this is no tunnel port (9000 by default) (wrong-protocol)";
    assert!(said.contains(named), "{said}");
}

#[tokio::test]
async fn garbage_on_the_port_is_refused() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let client = Client::start(&format!("dev -g {address} --ca {} --once", ca.file()));
    let (mut tcp, _) = soon("a connection", listener.accept()).await.unwrap();
    tcp.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        .await
        .unwrap();
    assert!(matches!(client.ended().await, Err(AppError::GivenUp(_))));
}

#[tokio::test]
async fn attempts_go_on_whatever_a_node_does_in_the_hello() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let _client = Client::start(&format!("dev -g {} --ca {}", node.address, ca.file()));
    // Dies after the hello.
    drop(node.arrival().await);
    // Dies in the middle of its answer.
    let mut arrival = node.arrival().await;
    arrival
        .stream
        .write_all(&[0, 0, 1, 0, 1, 2, 3])
        .await
        .unwrap();
    arrival.stream.flush().await.unwrap();
    drop(arrival);
    // Asks to come back.
    node.arrival().await.refuse("draining", true).await;
    node.tunnel("").await;
}

#[tokio::test]
async fn after_a_refusal_for_good_the_client_takes_its_time() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let _client = Client::start(&format!("dev -g {} --ca {}", node.address, ca.file()));
    node.arrival().await.refuse("gateway-disabled", false).await;
    // The first one may be a matter of a moment.
    node.arrival().await.refuse("gateway-disabled", false).await;
    let refused = Instant::now();
    node.arrival().await;
    assert!(
        refused.elapsed() >= Duration::from_secs(2),
        "{:?}",
        refused.elapsed()
    );
}

#[tokio::test]
async fn an_answer_that_is_too_long_or_from_another_node_is_not_taken() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!(
        "dev -g {} --ca {} --once",
        node.address,
        ca.file()
    ));
    let mut arrival = node.arrival().await;
    arrival.stream.write_u32(u32::MAX).await.unwrap();
    arrival.stream.flush().await.unwrap();
    assert!(matches!(client.ended().await, Err(AppError::GivenUp(_))));

    let client = Client::start(&format!(
        "dev -g {} --ca {} --once",
        node.address,
        ca.file()
    ));
    let mut arrival = node.arrival().await;
    let mut accepted = node.accepted("", &[]);
    accepted.node_id = "n2".to_owned();
    arrival
        .answer(server_hello::Answer::Accepted(accepted))
        .await;
    assert!(matches!(client.ended().await, Err(AppError::GivenUp(_))));
}

#[tokio::test]
async fn a_lost_tunnel_comes_back_at_once_and_to_the_same_address() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!("dev -g {} --ca {}", node.address, ca.file()));
    let first = node.tunnel("").await;
    let (boot, lost) = (first.hello.boot_id.clone(), Instant::now());
    drop(first);
    let second = node.tunnel("").await;
    assert!(
        lost.elapsed() < Duration::from_secs(1),
        "{:?}",
        lost.elapsed()
    );
    assert_eq!(second.hello.boot_id, boot);
    assert_eq!(
        (second.hello.acl_epoch, second.hello.acl_generation),
        (1, 1)
    );

    // A node that is gone for a while finds its client soon after it is back.
    let address = node.address;
    drop((second, node));
    let admin = client.ready().await["admin_listen"]
        .as_str()
        .unwrap()
        .to_owned();
    until("some failed attempts", async || {
        let metrics = Client::get(&admin, "/metrics").await;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("sg_reconnects_total{"))
            .unwrap_or_default();
        line.rsplit_once(' ')
            .is_some_and(|(_, count)| count.parse::<u32>().unwrap() >= 5)
    })
    .await;
    assert!(Client::get(&admin, "/readyz").await.contains("gateway dev"));
    let mut node = ca.node_at("n1", address).await;
    let back = Instant::now();
    node.tunnel("").await;
    assert!(
        back.elapsed() < Duration::from_secs(3),
        "{:?}",
        back.elapsed()
    );
}

#[tokio::test]
async fn other_nodes_are_learned_and_a_reached_one_gets_no_second_tunnel() {
    let ca = Ca::new();
    let (mut first, mut second) = (ca.node("n1").await, ca.node("n2").await);
    // What the first node advertises is not what the operator gave.
    let mut advertised = ca.node("n1").await;
    let _client = Client::start(&format!("dev -g {} --ca {}", first.address, ca.file()));
    let accepted = first.accepted("", &[("n1", advertised.address), ("n2", second.address)]);
    let peer = first.arrival().await.accept(accepted).await;
    let other = second.tunnel("").await;
    assert_eq!(other.hello.boot_id, peer.hello.boot_id);
    drop(peer);
    let peer = first.tunnel("").await;

    // A node that comes to the group later.
    let mut third = ca.node("n3").await;
    let group = [
        ("n1", advertised.address),
        ("n2", second.address),
        ("n3", third.address),
    ];
    peer.send(control::Message::Endpoints(endpoints(&group)));
    third.tunnel("").await;
    assert!(advertised.nobody() && first.nobody() && second.nobody());
}

#[tokio::test]
async fn two_addresses_of_one_node_get_one_tunnel() {
    let ca = Ca::new();
    let mut first = ca.node("n1").await;
    let mut second = ca.node("n1").await;
    let line = format!(
        "dev -g {},{} --ca {}",
        first.address,
        second.address,
        ca.file()
    );
    let client = Client::start(&line);
    let peer = tokio::select! {
        arrival = first.arrival() => arrival.accept(first.accepted("", &[])).await,
        arrival = second.arrival() => arrival.accept(second.accepted("", &[])).await,
    };
    client.ready().await;
    assert!(first.nobody() && second.nobody());
    // When it is lost, either address will do.
    drop(peer);
    tokio::select! {
        _ = first.arrival() => {}
        _ = second.arrival() => {}
    }
}

#[tokio::test]
async fn every_connection_asked_for_is_made_to_every_node() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let _client = Client::start(&format!(
        "dev -g {} --ca {} --connections 3",
        node.address,
        ca.file()
    ));
    let peers = [
        node.tunnel("").await,
        node.tunnel("").await,
        node.tunnel("").await,
    ];
    let mut numbers = peers.each_ref().map(|peer| peer.hello.connection);
    numbers.sort_unstable();
    assert_eq!(numbers, [0, 1, 2]);
    assert!(
        peers
            .iter()
            .all(|peer| peer.client_id == peers[0].client_id)
    );
}

#[tokio::test]
async fn trouble_of_one_gateway_is_not_the_others() {
    let ca = Ca::new();
    let (mut good, mut bad) = (ca.node("n1").await, ca.node("n2").await);
    let line = format!(
        "good bad -t sgt_1--sgt_2 -g {}--{} --ca {}",
        good.address,
        bad.address,
        ca.file()
    );
    let client = Client::start(&line);
    let refused = bad.arrival().await;
    assert_eq!(
        (refused.hello.gateway.as_str(), refused.hello.token.as_str()),
        ("bad", "sgt_2")
    );
    refused.refuse("unauthenticated", false).await;
    let peer = good.tunnel("").await;
    assert_eq!(
        (peer.hello.gateway.as_str(), peer.hello.token.as_str()),
        ("good", "sgt_1")
    );
    assert!(!client.directory.join("ready.json").exists());
    bad.tunnel("").await;
    client.ready().await;
    assert!(!peer.tunnel.is_closed());
}

#[tokio::test]
async fn a_limited_number_of_attempts_ends_the_client() {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!("dev -g {} --ca {} -r 2", node.address, ca.file()));
    for _ in 0..3 {
        node.arrival().await.refuse("draining", true).await;
    }
    assert!(matches!(client.ended().await, Err(AppError::GivenUp(_))));
}

#[tokio::test]
async fn a_client_that_is_still_connecting_ends_at_once() {
    let ca = Ca::new();
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = silent.local_addr().unwrap();
    let client = Client::start(&format!("dev -g {address} --ca {}", ca.file()));
    let _handshake = soon("a connection", silent.accept()).await.unwrap();
    let started = Instant::now();
    client.shutdown.begin();
    client.ended().await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(1),
        "{:?}",
        started.elapsed()
    );
}
