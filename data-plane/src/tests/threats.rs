//! Rows of the threat table that a node meets at its tunnel listener and in its tunnels, each by its number
//! (docs/threats.md).

use std::net::SocketAddr;
use std::time::Duration;

use prost::Message as _;
use sg_model::{Destination, GatewayId, Listen, NodeObject};
use sg_proto::node::DestinationState;
use sg_proto::tunnel::{
    AclApplied, ClientHello, Control, Listeners, Piece, ResumeOffer, ServerHello, StreamOpen,
    control, server_hello,
};
use sg_runtime::crypto;
use sg_tunnel_io::{OpenError, code};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::rig::{Answer, LIMIT, Offer, Rig, exchange, open_gateway, say_hello};
use crate::reconcile::testing::{acl, destination};

fn refused(rig: &Rig) -> u64 {
    let text = rig.metrics.encode();
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix("sg_tunnels_refused_total{")?;
        rest.rsplit_once(' ')?.1.parse::<u64>().ok()
    });
    values.sum()
}

/// Row 2: whatever comes first, it is read as a hello and as nothing else. There is no tunnel, and no stream, before one
/// was accepted.
#[tokio::test]
async fn threat_02_no_frame_is_taken_before_the_hello() {
    let rig = Rig::new().await;
    let untouched = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let open = StreamOpen {
        destination_id: "d1".to_owned(),
        resource_host: "127.0.0.1".to_owned(),
        resource_port: untouched.local_addr().unwrap().port().into(),
        protocol: "tcp".to_owned(),
        ..StreamOpen::default()
    }
    .encode_to_vec();
    let mut tried = 0;
    for record in 0..=4_u8 {
        for kind in 0..=0x41_u8 {
            // Type, flags, length, stream.
            let mut frame = vec![kind, 0];
            frame.extend_from_slice(&u16::try_from(open.len() + 4).unwrap().to_be_bytes());
            frame.extend_from_slice(&1_u32.to_be_bytes());
            // Credit, then metadata.
            frame.extend_from_slice(&65_536_u32.to_be_bytes());
            frame.extend_from_slice(&open);
            let mut bytes = vec![record, 0];
            bytes.extend_from_slice(&u16::try_from(frame.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(&frame);
            let mut io = rig.tls(&Offer::new().credentials).await;
            io.write_all(&bytes).await.unwrap();
            let mut answer = Vec::new();
            // An end or a reset: either way the node is done with it.
            drop(
                timeout(LIMIT, io.read_to_end(&mut answer))
                    .await
                    .unwrap_or_else(|_| panic!("record {record}, frame {kind:#x}: not closed")),
            );
            if let Some(body) = answer.get(4..) {
                let hello = ServerHello::decode(body).unwrap();
                let Some(server_hello::Answer::Refused(_)) = hello.answer else {
                    panic!("record {record}, frame {kind:#x}: accepted");
                };
            }
            tried += 1;
        }
    }
    rig.eventually(|rig| refused(rig) >= tried).await;
    assert!(rig.node.registry.all().is_empty());
    let none = timeout(Duration::from_millis(20), untouched.accept()).await;
    assert!(none.is_err(), "nothing was dialled");
}

/// A cloud destination of a gateway.
fn cloud(id: &str, gateway: &str, resource: SocketAddr) -> Destination {
    let NodeObject::Destination(mut d) = destination(id, gateway, 0) else {
        unreachable!("the helper makes a destination")
    };
    d.listen = Listen::ClientPort(7000);
    d.resource = resource.to_string().parse().unwrap();
    d
}

fn foreign_gateway() -> NodeObject {
    let NodeObject::Gateway(mut g) = open_gateway(true) else {
        unreachable!("the helper makes a gateway")
    };
    g.id = GatewayId::new("g2").unwrap();
    g.name = sg_model::Name::new("gateway-g2").unwrap();
    g.tokens[0].sha256 = crypto::sha256(b"sgt_of_g2");
    NodeObject::Gateway(g)
}

async fn open(client: &super::rig::Client, open: StreamOpen) -> u32 {
    let opened = client.tunnel.open(open.encode_to_vec().into());
    match timeout(LIMIT, opened).await.unwrap() {
        Err(OpenError::Reset { code }) => code,
        other => panic!("not refused: {other:?}"),
    }
}

/// Row 4: what a client says of itself and of others in any field changes nothing about who it is: its gateway is that of
/// its token, its id that of its key, and what it opens is looked up in the node's configuration.
#[tokio::test]
async fn threat_04_no_field_of_a_client_makes_it_somebody_else() {
    let mut rig = Rig::new().await;
    let foreign_resource = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let foreign = foreign_resource.local_addr().unwrap();
    let own = rig.resource;
    rig.apply(2, |mut objects| {
        objects.push(NodeObject::Destination(cloud("c1", "g1", own)));
        objects.push(foreign_gateway());
        objects.push(NodeObject::Destination(cloud("c2", "g2", foreign)));
        objects.push(acl("g2", 1, []));
        objects
    })
    .await;

    // The hello: another gateway with the own token, another client's tunnel id with a proof of nothing.
    let victim = Offer::new();
    let victim_client = rig.connect(&victim, Answer::Relay).await.unwrap();
    for gateway in ["g2", "gateway-g2", "G1", " g1", "g1/../g2", "gateways/g1"] {
        let mut offer = Offer::new();
        offer.hello.gateway = gateway.to_owned();
        let answer = rig.connect(&offer, Answer::Relay).await.err().unwrap();
        assert_eq!(answer.reason, "unauthenticated", "{gateway}");
    }
    let mut offer = Offer::new();
    offer.hello = ClientHello {
        boot_id: victim.hello.boot_id.clone(),
        client_name: rig.node.registry.all()[0].client_id.to_string(),
        resume: Some(ResumeOffer {
            tunnel_id: victim_client.accepted.tunnel_id.clone(),
            proof: vec![0; 32],
        }),
        ..offer.hello
    };
    let mut client = rig.connect(&offer, Answer::Relay).await.unwrap();
    assert!(!client.accepted.resumed, "it is another client's tunnel");
    assert_ne!(client.accepted.tunnel_id, victim_client.accepted.tunnel_id);
    let own_id = sg_runtime::tls::Credentials::key(&offer.credentials).client_id();
    rig.eventually(|rig| {
        rig.node
            .registry
            .all()
            .iter()
            .any(|s| *s.client_id == *own_id)
    })
    .await;

    // The opening: every field names what is the other gateway's, or nobody's.
    let lure = |id: &str| StreamOpen {
        destination_id: id.to_owned(),
        destination: "c1".to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: foreign.ip().to_string(),
        resource_port: foreign.port().into(),
        connect_timeout_ms: u32::MAX,
        acl_epoch: u64::MAX,
        acl_generation: u64::MAX,
        user_address: "127.0.0.1:1".to_owned(),
        generation: u64::MAX,
        look_up: false,
        ..StreamOpen::default()
    };
    for id in [
        "c2",
        "d1",
        "g2",
        "",
        "c1 ",
        "C1",
        "c1/../c2",
        "gateway-g2/c2",
    ] {
        assert_eq!(open(&client, lure(id)).await, code::NO_DESTINATION, "{id}");
    }
    // With the id of its own destination it reaches that one's resource, whatever it names.
    let mut stream = timeout(LIMIT, client.tunnel.open(lure("c1").encode_to_vec().into()))
        .await
        .unwrap()
        .unwrap();
    stream.write_all(b"hello").await.unwrap();
    stream.flush().await.unwrap();
    let mut back = [0; 5];
    timeout(LIMIT, stream.read_exact(&mut back))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"hello", "the node's own resource answers");

    // Control messages: reports about the other gateway's destinations count for nobody but the one who makes them.
    let listeners = Listeners {
        listeners: vec![DestinationState {
            destination_id: "c2".to_owned(),
            generation: 1,
            state: "listening".to_owned(),
            address: "192.0.2.1:1".to_owned(),
            ..DestinationState::default()
        }],
    };
    let messages = [
        control::Message::Listeners(Piece {
            piece: 0,
            pieces: 1,
            data: listeners.encode_to_vec(),
        }),
        control::Message::AclApplied(AclApplied {
            epoch: u64::MAX,
            generation: u64::MAX,
        }),
    ];
    for message in messages {
        let message = Control {
            message: Some(message),
        };
        client
            .tunnel
            .send_control(message.encode_to_vec().into())
            .unwrap();
    }
    rig.eventually(|rig| {
        let all = rig.node.registry.all();
        all.iter()
            .any(|s| *s.client_id == *own_id && !s.listeners().is_empty())
    })
    .await;
    let all = rig.node.registry.all();
    assert!(all.iter().all(|s| s.gateway.as_str() == "g1"));
    let of_victim = all.iter().find(|s| *s.client_id != *own_id).unwrap();
    assert!(of_victim.listeners().is_empty());
    assert_ne!(of_victim.acl_applied().generation, u64::MAX);

    // Messages that only a node may say change nothing at a node.
    for message in [
        control::Message::Acl(sg_proto::tunnel::Acl {
            epoch: u64::MAX,
            generation: u64::MAX,
            unlisted: "allow".to_owned(),
            ..Default::default()
        }),
        control::Message::Endpoints(sg_proto::tunnel::Endpoints::default()),
    ] {
        let message = Control {
            message: Some(message),
        };
        drop(client.tunnel.send_control(message.encode_to_vec().into()));
    }
    exchange(&mut rig.user().await, b"still").await;
    let allowed = rig
        .node
        .config()
        .acl(&GatewayId::new("g1").unwrap())
        .unwrap()
        .clone();
    assert_eq!(allowed.unlisted, sg_model::Action::Deny);
    let none = timeout(Duration::from_millis(20), foreign_resource.accept()).await;
    assert!(
        none.is_err(),
        "the other gateway's resource has seen nobody"
    );
    while client.controls.try_recv().is_ok() {}
}

/// Row 12: a first message has 16 KiB, and one that claims more is not waited for.
#[tokio::test]
async fn threat_12_a_first_message_has_sixteen_kibibytes() {
    let rig = Rig::new().await;
    // The longest that is read, and refused only for what is in it.
    let mut offer = Offer::new();
    offer.hello.gateway = "x".repeat(16 * 1024 - offer.hello.encoded_len() - 1);
    assert!((16 * 1024 - 8..=16 * 1024).contains(&offer.hello.encoded_len()));
    let mut io = rig.tls(&offer.credentials).await;
    let answer = say_hello(&mut io, &offer.hello).await.err().unwrap();
    assert_eq!(answer.reason, "unauthenticated");
    for length in [16 * 1024 + 1, 64 * 1024, u32::MAX, 0] {
        let mut io = rig.tls(&offer.credentials).await;
        // The length alone: the message itself never comes.
        io.write_u32(length).await.unwrap();
        let mut answer = Vec::new();
        let ended = timeout(Duration::from_secs(5), io.read_to_end(&mut answer)).await;
        drop(ended.expect("the length alone is enough to refuse it"));
        let hello = ServerHello::decode(answer.get(4..).unwrap()).unwrap();
        let Some(server_hello::Answer::Refused(refused)) = hello.answer else {
            panic!("accepted");
        };
        assert_eq!(refused.reason, "bad-request", "{length}");
    }
}

/// Row 12: one address has so many connections that have proved nothing, and others have theirs all the same.
#[tokio::test]
async fn threat_12_one_address_has_so_many_connections_without_a_hello() {
    let rig = Rig::new().await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(rig.tunnel_address).await.unwrap());
    }
    let mut turned_away = TcpStream::connect(rig.tunnel_address).await.unwrap();
    let mut rest = Vec::new();
    drop(
        timeout(Duration::from_secs(5), turned_away.read_to_end(&mut rest))
            .await
            .expect("turned away at once, and not after the time of a handshake"),
    );
    assert!(rest.is_empty());
    let name = "sg_tunnels_refused_total{reason=\"half-open-limit\"}";
    rig.eventually(|rig| rig.series(name).is_some_and(|n| n == "1"))
        .await;
    // Another address comes in.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket.connect(rig.tunnel_address).await.unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    drop(
        timeout(LIMIT, other.read_to_end(&mut answer))
            .await
            .unwrap(),
    );
    let name = "sg_tunnels_refused_total{reason=\"not-tls\"}";
    rig.eventually(|rig| rig.series(name).is_some_and(|n| n == "1"))
        .await;
    drop(silent);
    // And when they are gone, so does the first one.
    rig.eventually(|rig| refused(rig) >= 202).await;
    rig.client(Answer::Relay).await;
}

/// Row 35: what looks like a JWT is a token that nobody has, and is told nothing else.
#[tokio::test]
async fn threat_35_a_jwt_is_an_unknown_token_to_a_node() {
    let rig = Rig::new().await;
    let answer_to = async |token: &str| {
        let mut offer = Offer::new();
        offer.hello.token = token.to_owned();
        rig.connect(&offer, Answer::Relay).await.err().unwrap()
    };
    let unknown = answer_to("sgt_0000").await;
    for token in include_str!("../../../tests/data/jwts.txt").lines() {
        for token in [
            token.to_owned(),
            format!("Bearer {token}"),
            format!("sgt_{token}"),
        ] {
            assert_eq!(answer_to(&token).await, unknown, "{token}");
        }
    }
}
