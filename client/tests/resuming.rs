//! How a client comes back to a tunnel whose connection was lost.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use node::{Arrival, Ca, Client, Node, Peer, echo, list, soon, until};
use sg_proto::tunnel::{Accepted, server_hello};
use sg_runtime::tls;
use sg_tunnel_io::resume::{EXPORTER_LABEL, Secret};
use sg_tunnel_io::transport::Stream;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

const SECRET: [u8; 32] = [1; 32];
const NEXT_SECRET: [u8; 32] = [2; 32];

/// An answer that makes or resumes a tunnel with this id.
fn resumable(node: &Node, acl: &str, id: u8, secret: [u8; 32]) -> Accepted {
    Accepted {
        tunnel_id: vec![id; 16],
        resume_secret: secret.to_vec(),
        resume_ms: 60_000,
        ..node.accepted(acl, &[])
    }
}

struct Connected {
    node: Node,
    client: Client,
    peer: Peer,
    acl: String,
}

async fn connected(ca: &Ca, resource: SocketAddr) -> Connected {
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!("dev -g {} --ca {}", node.address, ca.file()));
    let acl = format!("acl allow {resource}");
    let accepted = resumable(&node, &acl, 7, SECRET);
    let arrival = node.arrival().await;
    assert!(arrival.hello.resume.is_none());
    let peer = arrival.accept(accepted).await;
    Connected {
        node,
        client,
        peer,
        acl,
    }
}

/// Breaks the connection under a tunnel, without a word to the client.
async fn cut(peer: &Peer) {
    let (near, far) = tokio::io::duplex(64);
    drop(far);
    peer.tunnel
        .attach_with(Box::new(Stream::bare(near)))
        .unwrap();
    until("the node's end is detached", async || {
        peer.tunnel.is_detached()
    })
    .await;
}

/// That this client offers to resume, with a right proof for this connection.
fn check_offer(arrival: &Arrival, id: u8, secret: [u8; 32]) {
    let offer = arrival.hello.resume.as_ref().unwrap();
    assert_eq!(offer.tunnel_id, vec![id; 16]);
    let mut exported = [0; 32];
    tls::exporter(&arrival.stream, EXPORTER_LABEL, &mut exported).unwrap();
    assert!(Secret::new(secret).verify(&exported, &offer.proof));
}

async fn exchange(stream: &mut (impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin)) {
    stream.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    soon("the echo", stream.read_exact(&mut back))
        .await
        .unwrap();
    assert_eq!(&back, b"hello");
}

async fn tunnels(client: &Client) -> String {
    let ready = client.ready().await;
    let admin = ready["admin_listen"].as_str().unwrap().to_owned();
    Client::get(&admin, "/metrics").await
}

#[tokio::test]
async fn a_client_comes_back_at_once_and_with_each_new_secret() {
    let ca = Ca::new();
    let (resource, _echo) = echo().await;
    let Connected {
        mut node,
        client,
        peer,
        acl,
    } = connected(&ca, resource).await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream).await;
    let secrets = [SECRET, NEXT_SECRET, [3; 32]];
    for round in 0..2 {
        let started = Instant::now();
        cut(&peer).await;
        let mut arrival = node.arrival().await;
        assert!(started.elapsed() < Duration::from_secs(1));
        check_offer(&arrival, 7, secrets[round]);
        let accepted = Accepted {
            resumed: true,
            ..resumable(&node, &acl, 7, secrets[round + 1])
        };
        arrival
            .answer(server_hello::Answer::Accepted(accepted))
            .await;
        peer.tunnel.attach(arrival.stream).unwrap();
        exchange(&mut stream).await;
    }
    until("the resumptions are counted", async || {
        let metrics = tunnels(&client).await;
        metrics.contains("sg_tunnel_resumes_total{gateway=\"dev\",result=\"resumed\"} 2")
            && metrics.contains("sg_tunnels{gateway=\"dev\"} 1")
    })
    .await;
    assert!(node.nobody());
}

#[tokio::test]
async fn a_client_does_not_tire_while_there_is_something_to_come_back_to() {
    let ca = Ca::new();
    let (resource, _echo) = echo().await;
    let Connected {
        mut node,
        client,
        peer,
        acl,
    } = connected(&ca, resource).await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream).await;
    cut(&peer).await;
    let started = Instant::now();
    for _ in 0..4 {
        // Goes away in the middle of the hello; the offer stays the same.
        let arrival = node.arrival().await;
        check_offer(&arrival, 7, SECRET);
    }
    assert!(started.elapsed() < Duration::from_secs(5));
    assert!(
        tunnels(&client)
            .await
            .contains("sg_tunnels{gateway=\"dev\"} 0")
    );
    let mut arrival = node.arrival().await;
    let accepted = Accepted {
        resumed: true,
        ..resumable(&node, &acl, 7, NEXT_SECRET)
    };
    arrival
        .answer(server_hello::Answer::Accepted(accepted))
        .await;
    peer.tunnel.attach(arrival.stream).unwrap();
    exchange(&mut stream).await;
}

/// A resource that the test plays, and its end of the stream.
async fn resource() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

async fn is_reset(served: &mut TcpStream) {
    let end = soon("the end", served.read(&mut [0; 1])).await;
    assert_eq!(end.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn where_nobody_knows_the_tunnel_its_streams_end_and_another_begins() {
    let ca = Ca::new();
    let (listener, address) = resource().await;
    let Connected {
        mut node,
        client,
        peer,
        acl,
    } = connected(&ca, address).await;
    let _stream = peer.open(address).await.unwrap();
    let (mut served, _) = listener.accept().await.unwrap();
    cut(&peer).await;
    let arrival = node.arrival().await;
    check_offer(&arrival, 7, SECRET);
    let fresh = resumable(&node, &acl, 8, NEXT_SECRET);
    let second = arrival.accept(fresh).await;
    is_reset(&mut served).await;
    let _stream = second.open(address).await.unwrap();
    listener.accept().await.unwrap();
    // And it is the second one that the client comes back to.
    cut(&second).await;
    check_offer(&node.arrival().await, 8, NEXT_SECRET);
    let refused = "sg_tunnel_resumes_total{gateway=\"dev\",result=\"refused\"} 1";
    assert!(tunnels(&client).await.contains(refused));
}

#[tokio::test]
async fn a_client_that_is_refused_gives_the_tunnel_up_and_asks_for_a_new_one() {
    let ca = Ca::new();
    let (listener, address) = resource().await;
    let Connected {
        mut node,
        client: _client,
        peer,
        acl,
    } = connected(&ca, address).await;
    let _stream = peer.open(address).await.unwrap();
    let (mut served, _) = listener.accept().await.unwrap();
    cut(&peer).await;
    node.arrival().await.refuse("draining", true).await;
    is_reset(&mut served).await;
    let arrival = node.arrival().await;
    assert!(arrival.hello.resume.is_none());
    let fresh = resumable(&node, &acl, 8, NEXT_SECRET);
    let second = arrival.accept(fresh).await;
    let _stream = second.open(address).await.unwrap();
}

#[tokio::test]
async fn a_list_in_the_answer_is_in_force_before_the_streams_go_on() {
    let ca = Ca::new();
    let ((kept, kept_at), (lost, lost_at)) = (resource().await, resource().await);
    let Connected {
        mut node,
        client: _client,
        mut peer,
        ..
    } = connected(&ca, kept_at).await;
    let both = format!("acl allow {kept_at}\nacl allow {lost_at}");
    peer.send(sg_proto::tunnel::control::Message::Acl(list(2, &both)));
    while peer.applied().await < 2 {}
    let mut staying = peer.open(kept_at).await.unwrap();
    let mut going = peer.open(lost_at).await.unwrap();
    let ((mut kept, _), (mut lost, _)) =
        (kept.accept().await.unwrap(), lost.accept().await.unwrap());
    cut(&peer).await;
    // Under way to both when the list comes.
    staying.write_all(b"late").await.unwrap();
    going.write_all(b"late").await.unwrap();
    let mut arrival = node.arrival().await;
    let accepted = Accepted {
        resumed: true,
        acl: Some(list(3, &format!("acl allow {kept_at}"))),
        ..resumable(&node, "", 7, NEXT_SECRET)
    };
    arrival
        .answer(server_hello::Answer::Accepted(accepted))
        .await;
    peer.tunnel.attach(arrival.stream).unwrap();
    is_reset(&mut lost).await;
    let mut late = [0; 4];
    soon("what was under way", kept.read_exact(&mut late))
        .await
        .unwrap();
    assert_eq!(&late, b"late");
}

#[tokio::test]
async fn a_client_that_is_told_to_end_does_not_wait_for_a_node_that_is_away() {
    let ca = Ca::new();
    let (resource, _echo) = echo().await;
    let Connected {
        mut node,
        client,
        peer,
        ..
    } = connected(&ca, resource).await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream).await;
    cut(&peer).await;
    let _unanswered = node.arrival().await;
    let started = Instant::now();
    client.shutdown.begin();
    client.ended().await.unwrap();
    assert!(started.elapsed() < Duration::from_secs(3));
}
