//! What a client does with the streams of its nodes.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod node;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use node::{Ca, Client, Peer, echo, list, soon, stream_open, until};
use sg_proto::tunnel::control;
use sg_tunnel_io::{OpenError, StreamError, TunnelStream, code};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

const ALL: &str = "acl allow :";

/// A client with one tunnel, and the node's end of it.
async fn site(acl: &str, more: &str) -> (Client, Peer, node::Node, Ca) {
    let ca = Ca::new();
    let mut node = ca.node("n1").await;
    let client = Client::start(&format!(
        "dev -t sgt_1 -g {} --ca {} {more}",
        node.address,
        ca.file()
    ));
    let mut peer = node.tunnel(acl).await;
    assert_eq!(peer.applied().await, 1);
    (client, peer, node, ca)
}

async fn exchange(stream: &mut TunnelStream, text: &str) {
    stream.write_all(text.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut answer = vec![0; text.len()];
    soon("an echo", stream.read_exact(&mut answer))
        .await
        .unwrap();
    assert_eq!(answer, text.as_bytes());
}

async fn reset_code(stream: &mut TunnelStream) -> u32 {
    match soon("a reset", stream.read_chunk()).await {
        Err(StreamError::Reset { code }) => code,
        other => panic!("not reset: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_go_both_ways_and_each_direction_ends_on_its_own() {
    let (client, peer, _node, _ca) = site(ALL, "").await;
    let (resource, _echo) = echo().await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream, "hello").await;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| (n * 7 % 251) as u8).collect();
    let (mut read, mut write) = tokio::io::split(stream);
    let (received, ()) = soon("the echo of all bytes", async {
        tokio::join!(
            async {
                let mut received = Vec::new();
                read.read_to_end(&mut received).await.unwrap();
                received
            },
            async {
                write.write_all(&sent).await.unwrap();
                write.shutdown().await.unwrap();
            }
        )
    })
    .await;
    assert!(received == sent);
    drop((read, write));
    let admin = client.ready().await["admin_listen"]
        .as_str()
        .unwrap()
        .to_owned();
    until("the books of the stream", async || {
        let metrics = Client::get(&admin, "/metrics").await;
        [
            r#"sg_streams_opened_total{gateway="dev",destination="db",protocol="tcp",result="ok"} 1"#,
            r#"sg_streams_active{gateway="dev",destination="db"} 0"#,
            r#"sg_bytes_total{gateway="dev",destination="db",direction="to_resource"} 1000005"#,
            r#"sg_bytes_total{gateway="dev",destination="db",direction="to_user"} 1000005"#,
            r#"sg_acl_decisions_total{gateway="dev",decision="allow"} 1"#,
        ]
        .iter()
        .all(|line| metrics.contains(line))
    })
    .await;
}

#[tokio::test]
async fn every_refusal_has_its_code() {
    let silent = TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = silent.listen(0).unwrap();
    let silent = silent.local_addr().unwrap();
    let _fills_the_queue = TcpStream::connect(silent).await.unwrap();
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let lines =
        "acl allow :80\nacl allow 127.0.0.1:\nacl allow localhost:\nacl allow unknown.invalid:";
    let (client, peer, _node, _ca) = site(lines, "").await;

    let refused = |open| peer.refusal(open);
    assert_eq!(
        refused(stream_open("127.0.0.1", closed.port())).await,
        code::REFUSED
    );
    assert_eq!(
        refused(stream_open("unknown.invalid", 80)).await,
        code::NAME_UNKNOWN
    );
    assert_eq!(
        refused(stream_open("other.example", 81)).await,
        code::ACL_DENIED
    );
    // Allowed by its port, and special.
    assert_eq!(
        refused(stream_open("169.254.169.254", 80)).await,
        code::ACL_DENIED
    );
    assert_eq!(
        refused(stream_open("::ffff:169.254.169.254", 80)).await,
        code::ACL_DENIED
    );
    assert_eq!(refused(stream_open("0.0.0.0", 80)).await, code::ACL_DENIED);

    let mut open = stream_open("127.0.0.1", silent.port());
    open.connect_timeout_ms = 200;
    assert_eq!(refused(open).await, code::CONNECT_TIMEOUT);

    let mut open = stream_open("127.0.0.1", 80);
    open.protocol = "udp".to_owned();
    assert_eq!(refused(open).await, code::REFUSED_RETRY);
    assert_eq!(refused(stream_open("not a host", 80)).await, code::INTERNAL);
    assert_eq!(refused(stream_open("127.0.0.1", 0)).await, code::INTERNAL);
    let garbage = soon(
        "an answer",
        peer.tunnel.open(Bytes::from_static(&[0xff; 20])),
    )
    .await;
    assert_eq!(
        garbage.unwrap_err(),
        OpenError::Reset {
            code: code::INTERNAL
        }
    );

    // Its own listeners are not for users.
    let admin = client.ready().await["admin_listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let admin: SocketAddr = admin.parse().unwrap();
    assert_eq!(
        refused(stream_open("127.0.0.1", admin.port())).await,
        code::ACL_DENIED
    );
    assert_eq!(
        refused(stream_open("localhost", admin.port())).await,
        code::ACL_DENIED
    );
}

#[tokio::test]
async fn a_local_list_narrows_what_the_node_allows() {
    let (resource, _echo) = echo().await;
    let (other, _other) = echo().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("acl allow {resource}\n")).unwrap();
    for option in ["-F", "--local-acl"] {
        let (_client, peer, _node, _ca) =
            site(ALL, &format!("{option} {}", file.path().display())).await;
        exchange(&mut peer.open(resource).await.unwrap(), "x").await;
        assert_eq!(
            peer.refusal(stream_open("127.0.0.1", other.port())).await,
            code::ACL_DENIED
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_list_is_enforced_at_once_on_open_streams_too() {
    let (kept, _kept) = echo().await;
    let (lost, _lost) = echo().await;
    let (_client, mut peer, _node, _ca) =
        site(&format!("acl allow {kept}\nacl allow {lost}"), "").await;
    let mut kept_stream = peer.open(kept).await.unwrap();
    let mut lost_stream = peer.open(lost).await.unwrap();
    exchange(&mut kept_stream, "a").await;
    exchange(&mut lost_stream, "b").await;

    peer.send(control::Message::Acl(list(2, &format!("acl allow {kept}"))));
    assert_eq!(reset_code(&mut lost_stream).await, code::POLICY_CHANGED);
    assert_eq!(peer.applied().await, 2);
    assert_eq!(
        peer.refusal(stream_open("127.0.0.1", lost.port())).await,
        code::ACL_DENIED
    );
    exchange(&mut kept_stream, "c").await;

    // An older list changes nothing.
    peer.send(control::Message::Acl(list(1, ALL)));
    peer.send(control::Message::Acl(list(3, &format!("acl deny {kept}"))));
    assert_eq!(peer.applied().await, 3);
    assert_eq!(reset_code(&mut kept_stream).await, code::POLICY_CHANGED);
}

#[tokio::test]
async fn an_open_waits_for_the_list_that_its_node_decided_by() {
    let (resource, _echo) = echo().await;
    let (_client, peer, _node, _ca) = site("", "").await;
    let mut open = stream_open("127.0.0.1", resource.port());
    open.acl_generation = 2;
    let update = async {
        // On its way while the stream waits.
        peer.send(control::Message::Acl(list(
            2,
            &format!("acl allow {resource}"),
        )));
        std::future::pending::<()>().await;
    };
    let mut stream = tokio::select! {
        biased;
        stream = peer.open_with(open.clone()) => stream.unwrap(),
        () = update => unreachable!(),
    };
    exchange(&mut stream, "x").await;

    // A list that never comes is not waited for long.
    open.acl_generation = 9;
    let started = Instant::now();
    exchange(&mut peer.open_with(open).await.unwrap(), "y").await;
    assert!((Duration::from_millis(900)..Duration::from_secs(5)).contains(&started.elapsed()));
}

#[tokio::test]
async fn a_dial_ends_when_its_opener_gives_up() {
    let silent = TcpSocket::new_v4().unwrap();
    silent.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let silent = silent.listen(0).unwrap();
    let address = silent.local_addr().unwrap();
    let _fills_the_queue = TcpStream::connect(address).await.unwrap();
    let (client, peer, _node, _ca) = site(ALL, "").await;
    let admin = client.ready().await["admin_listen"]
        .as_str()
        .unwrap()
        .to_owned();
    let shows = async |line: &str| Client::get(&admin, "/metrics").await.contains(line);
    {
        let mut open = Box::pin(peer.open(address));
        tokio::select! {
            answer = &mut open => panic!("the resource is silent: {answer:?}"),
            () = until("the dial", async || shows(r#"sg_streams_active{gateway="dev",destination="db"} 1"#).await) => {}
        }
    }
    until("the end of the dial", async || {
        shows(r#"sg_streams_active{gateway="dev",destination="db"} 0"#).await
            && shows(r#"protocol="tcp",result="cancelled"} 1"#).await
    })
    .await;

    // The loss of the tunnel ends it too, and is called by its name.
    {
        let mut open = Box::pin(peer.open(address));
        tokio::select! {
            answer = &mut open => panic!("the resource is silent: {answer:?}"),
            () = until("the dial", async || shows(r#"sg_streams_active{gateway="dev",destination="db"} 1"#).await) => {}
        }
        peer.tunnel.close(code::close::NONE, "");
    }
    until("the end of the dial", async || {
        shows(r#"protocol="tcp",result="tunnel-lost"} 1"#).await
    })
    .await;
}

#[tokio::test]
async fn a_reset_of_the_resource_reaches_the_node_and_the_other_way_round() {
    let (_client, peer, _node, _ca) = site(ALL, "").await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let resource = listener.local_addr().unwrap();

    let (stream, accepted) = tokio::join!(peer.open(resource), listener.accept());
    sg_runtime::net::reset(accepted.unwrap().0).unwrap();
    assert_eq!(reset_code(&mut stream.unwrap()).await, code::PEER_RESET);

    let (stream, accepted) = tokio::join!(peer.open(resource), listener.accept());
    stream.unwrap().reset(code::PEER_RESET);
    let mut tcp = accepted.unwrap().0;
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    // And so does the loss of the tunnel.
    let (stream, accepted) = tokio::join!(peer.open(resource), listener.accept());
    drop((peer, stream));
    let mut tcp = accepted.unwrap().0;
    let error = soon("a reset", tcp.read_u8()).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draining_node_keeps_its_streams_and_gets_no_new_tunnel_for_them() {
    let (client, peer, mut node, _ca) = site(ALL, "").await;
    client.ready().await;
    let (resource, _echo) = echo().await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream, "a").await;
    peer.tunnel.goaway();
    let next = node.tunnel(ALL).await;
    exchange(&mut stream, "b").await;
    exchange(&mut next.open(resource).await.unwrap(), "c").await;
    stream.shutdown().await.unwrap();
    assert_eq!(soon("the end", stream.read_chunk()).await.unwrap(), None);
    drop(stream);
    // The client closes it when nothing is left.
    peer.ended().await;
    assert!(!next.tunnel.is_closed());
}

#[tokio::test]
async fn a_draining_client_lets_its_streams_end() {
    let (client, mut peer, _node, _ca) = site(ALL, "").await;
    let (resource, _echo) = echo().await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream, "a").await;
    client.shutdown.begin();
    peer.drained().await;
    exchange(&mut stream, "b").await;
    assert!(peer.open(resource).await.is_err());
    stream.shutdown().await.unwrap();
    assert_eq!(soon("the end", stream.read_chunk()).await.unwrap(), None);
    drop(stream);
    client.ended().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forced_client_resets_what_is_left_and_ends() {
    let (client, peer, _node, _ca) = site(ALL, "--drain-timeout 1h").await;
    let (resource, _echo) = echo().await;
    let mut stream = peer.open(resource).await.unwrap();
    exchange(&mut stream, "a").await;
    client.shutdown.begin();
    client.shutdown.force();
    let started = Instant::now();
    assert_eq!(reset_code(&mut stream).await, code::DRAINED);
    client.ended().await.unwrap();
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_resource_gets_everything_though_the_node_has_left() {
    for client_ends in [false, true] {
        let (client, mut peer, _node, _ca) = site(ALL, "").await;
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let resource = listener.local_addr().unwrap();
        let (stream, accepted) = tokio::join!(peer.open(resource), listener.accept());
        let (mut stream, mut tcp) = (stream.unwrap(), accepted.unwrap().0);

        // More than all sockets hold: the rest waits in the client, and the FIN behind it.
        let chunk = Bytes::from(vec![7; 64 * 1024]);
        let mut sent = 0;
        let patience = Duration::from_millis(300);
        loop {
            let mut rest = chunk.clone();
            let write = std::future::poll_fn(|cx| stream.poll_write_chunk(cx, &mut rest));
            match tokio::time::timeout(patience, write).await {
                Ok(written) => sent += written.unwrap(),
                Err(_) => break,
            }
        }
        stream.finish().unwrap();
        tcp.shutdown().await.unwrap();
        assert_eq!(soon("the FIN", stream.read_chunk()).await.unwrap(), None);
        drop(stream);
        until("all is sent", async || peer.tunnel.active_streams() == 0).await;
        if client_ends {
            client.shutdown.begin();
            peer.drained().await;
        }
        peer.tunnel.close(code::close::NONE, "");
        peer.ended().await;

        let mut received = Vec::new();
        let all = tcp.read_to_end(&mut received);
        assert_eq!(soon("all bytes", all).await.unwrap(), sent);
        if client_ends {
            client.ended().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_streams_share_a_tunnel() {
    let (_client, peer, _node, _ca) = site(ALL, "").await;
    let (resource, _echo) = echo().await;
    let mut streams = Vec::new();
    for _ in 0..200 {
        streams.push(peer.open(resource).await.unwrap());
    }
    for (n, stream) in streams.iter_mut().enumerate() {
        exchange(stream, &format!("stream {n}")).await;
    }
}
