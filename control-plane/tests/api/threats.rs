//! Rows of the threat table that a control plane meets at its port, each by its number (docs/threats.md).

use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use prost_reflect::{DescriptorPool, MethodDescriptor};
use sg_proto::node::control_message::Message as Down;
use sg_proto::node::node_message::Message as Up;
use sg_proto::node::node_sync_client::NodeSyncClient;
use sg_proto::{api, node};
use sg_runtime::crypto;
use sg_runtime::identity::KeyPair;
use sg_runtime::tls::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use super::harness::{Admin, Plane, create_destination, fields, reason, within};
use super::roles::Raw;

/// Failed authentications that one address may have at a time, with room to spare (docs/security.md).
const BEFORE_THE_LIMIT: usize = 15;

async fn ask(
    channel: Channel,
    method: &MethodDescriptor,
    message: Bytes,
    headers: &[(&'static str, String)],
) -> Status {
    let path = format!("/{}/{}", method.parent_service().full_name(), method.name());
    let path = path.parse::<http::uri::PathAndQuery>().unwrap();
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let mut request = Request::new(message);
    for (name, value) in headers {
        request.metadata_mut().insert(*name, value.parse().unwrap());
    }
    let stream = grpc.server_streaming(request, path, Raw).await;
    match stream {
        Err(status) => status,
        Ok(stream) => match within("an end", stream.into_inner().message()).await {
            Err(status) => status,
            Ok(answer) => panic!("{} answers {answer:?}", method.full_name()),
        },
    }
}

/// Row 2: no header and no first message takes the place of an identity, whichever call it is.
#[tokio::test]
async fn threat_02_no_header_takes_the_place_of_an_identity() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let (node_id, _) = plane.join(&mut admin, "n").await;
    let lures: Vec<(&str, String)> = vec![
        (
            "x-forwarded-client-cert",
            format!("URI=spiffe://secure-gateway/node/{node_id}"),
        ),
        (
            "x-ssl-client-cert",
            "-----BEGIN CERTIFICATE-----".to_owned(),
        ),
        ("x-ssl-client-verify", "SUCCESS".to_owned()),
        ("x-client-id", node_id.clone()),
        ("x-node-id", node_id.clone()),
        ("node-id", node_id.clone()),
        ("x-remote-user", "admin".to_owned()),
        ("x-forwarded-user", "admin".to_owned()),
        ("x-forwarded-for", "127.0.0.1".to_owned()),
        ("x-real-ip", "127.0.0.1".to_owned()),
        ("x-forwarded-proto", "https".to_owned()),
        (
            "x-original-url",
            "/securegateway.v1.System/GetStatus".to_owned(),
        ),
        ("x-http-method-override", "GET".to_owned()),
        ("grpc-internal", "1".to_owned()),
        ("cookie", format!("token={}", plane.token())),
        ("proxy-authorization", format!("Bearer {}", plane.token())),
        ("x-authorization", format!("Bearer {}", plane.token())),
        ("authorization", "Bearer ".to_owned()),
    ];
    let pool = DescriptorPool::decode(sg_proto::DESCRIPTORS).unwrap();
    let methods: Vec<MethodDescriptor> = pool
        .services()
        .filter(|service| service.full_name().starts_with("securegateway."))
        .flat_map(|service| service.methods().collect::<Vec<_>>())
        .collect();
    assert!(methods.len() > 25);
    for method in &methods {
        // Of each call, once with everything; a connection of its own for each.
        let channel = plane.channel(None).await;
        let status = ask(channel, method, Bytes::new(), &lures).await;
        let expected = [
            Code::Unauthenticated,
            // So many failures from one address: it is not asked any more, and not served.
            Code::ResourceExhausted,
            Code::Unavailable,
        ];
        assert!(
            expected.contains(&status.code()) || reason(&status) == "NODE_CERTIFICATE_REQUIRED",
            "{}: {status:?}",
            method.full_name()
        );
    }
    // A node's first message says who it is, and nobody believes it.
    let mut client = NodeSyncClient::new(plane.channel(None).await);
    let (up, messages) = mpsc::channel(4);
    for message in [
        Up::Hello(node::Hello {
            boot_id: node_id,
            ..node::Hello::default()
        }),
        Up::Subscribe(node::Subscribe::default()),
    ] {
        let message = node::NodeMessage {
            message: Some(message),
        };
        up.send(message).await.unwrap();
    }
    let status = client
        .sync(ReceiverStream::new(messages))
        .await
        .err()
        .unwrap();
    assert_eq!(reason(&status), "NODE_CERTIFICATE_REQUIRED");
}

/// Row 35: there are no JWTs here. What looks like one is a token that nobody has, and is told nothing else, wherever a
/// token is asked for.
#[tokio::test]
async fn threat_35_a_jwt_is_an_unknown_token_everywhere() {
    let corpus: Vec<&str> = include_str!("../../../tests/data/jwts.txt")
        .lines()
        .collect();
    assert!(corpus.len() >= 60, "{}", corpus.len());
    for part in corpus.chunks(BEFORE_THE_LIMIT / 2) {
        let plane = Plane::start().await;
        let list = async |authorization: &str| {
            let mut admin = plane.admin_with(authorization).await;
            let request = api::ListGatewaysRequest::default();
            admin.gateways.list_gateways(request).await.unwrap_err()
        };
        // Whatever does not look like a token of ours.
        let unknown = list("Bearer x").await;
        let told = |status: &Status| (status.code(), reason(status), status.message().to_owned());
        let key = KeyPair::generate();
        let unknown_join = plane.join_with("x", "n", &key).await.unwrap_err();
        for token in part {
            let status = list(&format!("Bearer {token}")).await;
            assert_eq!(told(&status), told(&unknown), "{token}");
            let status = plane.join_with(token, "n", &key).await.unwrap_err();
            assert_eq!(told(&status), told(&unknown_join), "{token}");
        }
    }
}

/// Rows 12 and 51: an unknown and a wrong token are told the same; and so are all that do not look like a token, which
/// everybody can see without asking.
#[tokio::test]
async fn threat_12_who_proves_nothing_is_told_the_same() {
    let plane = Plane::start().await;
    let right = plane.token();
    let mut wrong = right.clone();
    wrong.replace_range(
        wrong.len() - 1..,
        if right.ends_with('0') { "1" } else { "0" },
    );
    let (mut told, mut told_of_form) = (Vec::new(), Vec::new());
    for token in [
        format!("sga_{}", "0".repeat(64)),
        wrong,
        format!("{right}0"),
        "sga_".to_owned(),
        right.replace("sga_", "sgt_"),
        right.trim_start_matches("sga_").to_owned(),
        "x".to_owned(),
        "x".repeat(1000),
    ] {
        let mut admin = plane.admin_with(&format!("Bearer {token}")).await;
        let request = api::ListGatewaysRequest::default();
        let status = admin.gateways.list_gateways(request).await.unwrap_err();
        let answers = match token.starts_with("sga_") {
            true => &mut told,
            false => &mut told_of_form,
        };
        answers.push((
            status.code(),
            reason(&status),
            status.message().to_owned(),
            status.details().to_vec(),
        ));
    }
    assert!(told.iter().all(|one| *one == told[0]), "{told:?}");
    assert!(
        told_of_form.iter().all(|one| *one == told_of_form[0]),
        "{told_of_form:?}"
    );
    assert_eq!(
        (told[0].1.as_str(), told_of_form[0].1.as_str()),
        ("TOKEN_UNKNOWN", "TOKEN_MALFORMED")
    );
}

/// Row 12: a message of somebody who has proved nothing has 16 KiB.
#[tokio::test]
async fn threat_12_a_first_message_has_sixteen_kibibytes() {
    let plane = Plane::start().await;
    let join = async |padding: usize| {
        let channel = plane.channel(None).await;
        let mut enrollment = node::enrollment_client::EnrollmentClient::new(channel);
        let request = node::JoinRequest {
            join_token: "sgj_00".to_owned(),
            csr_der: vec![0; padding],
            ..node::JoinRequest::default()
        };
        enrollment.join(request).await.unwrap_err()
    };
    let short = join(15 * 1024).await;
    assert_eq!(reason(&short), "JOIN_TOKEN_MALFORMED");
    let long = join(17 * 1024).await;
    assert_eq!(long.code(), Code::OutOfRange, "{long:?}");
    assert_eq!(reason(&long), "");
    // What needs a token is refused before its message is read.
    let mut nobody = plane.admin_with("Bearer sga_00").await;
    let mut request = create_destination("dev", "d");
    request.destination.as_mut().unwrap().description = "x".repeat(3 * 1024 * 1024);
    let status = nobody
        .destinations
        .create_destination(request)
        .await
        .unwrap_err();
    assert_eq!(reason(&status), "TOKEN_UNKNOWN");
}

/// Row 12: one address has so many connections that have proved nothing; others come in, and so does an operator from
/// elsewhere.
#[tokio::test]
async fn threat_12_one_address_has_so_many_connections_without_a_proof() {
    let plane = Plane::start().await;
    let mut silent = Vec::new();
    for _ in 0..256 {
        silent.push(TcpStream::connect(&plane.address).await.unwrap());
    }
    let mut turned_away = TcpStream::connect(&plane.address).await.unwrap();
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(Duration::from_secs(5), turned_away.read_to_end(&mut rest));
    drop(ended.await.expect("turned away at once"));
    assert!(rest.is_empty());
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
    let mut other = socket
        .connect(plane.address.parse().unwrap())
        .await
        .unwrap();
    other.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    // An alert: TLS has looked at it.
    let answer = within("an answer", other.read_u8()).await;
    assert!(answer.is_ok_and(|first| first == 0x15));
    drop(silent);
    within("a place", async {
        loop {
            let mut tcp = TcpStream::connect(&plane.address).await.unwrap();
            tcp.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
            if tcp.read_u8().await.is_ok() {
                return;
            }
        }
    })
    .await;
    plane.admin().await.gateway("dev").await;
}

/// Row 11: an odd spelling of an address is refused where a destination is described.
#[tokio::test]
async fn threat_11_an_odd_spelling_of_an_address_is_not_a_resource() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    admin.gateway("dev").await;
    let table = include_str!("../../../model/tests/data/special.txt");
    let mut refused = 0;
    for (number, written) in table
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .enumerate()
    {
        let mut request = create_destination("dev", &format!("d{number}"));
        request.destination.as_mut().unwrap().resource_host =
            written.trim_matches(['[', ']']).to_owned();
        match admin.destinations.create_destination(request).await {
            // An address as such: the lists decide, and none covers it by the way.
            Ok(made) => {
                let host = made.into_inner().resource_host;
                assert!(
                    host.parse::<std::net::IpAddr>().is_ok(),
                    "{written} became {host}"
                );
            }
            Err(status) => {
                assert!(
                    fields(&status)
                        .iter()
                        .any(|field| field.contains("resource")),
                    "{written}: {status:?}"
                );
                refused += 1;
            }
        }
    }
    assert!(refused > 20, "{refused}");
}

/// Everything that a control plane says to a node until it has this revision, as its bytes.
async fn told(plane: &Plane, credentials: &Credentials, group: &str, at_least: usize) -> Vec<u8> {
    let mut client = NodeSyncClient::new(plane.channel(Some(credentials)).await);
    let (up, messages) = mpsc::channel(16);
    let say = async |message: Up| {
        let message = node::NodeMessage {
            message: Some(message),
        };
        up.send(message).await.unwrap();
    };
    say(Up::Hello(node::Hello {
        boot_id: "b".to_owned(),
        version: "0.1.0".to_owned(),
        name: format!("node-{group}"),
        group: group.to_owned(),
        tunnel_address: format!("{group}.nodes.example:9000"),
        destination_host: format!("{group}.nodes.example"),
        port_first: 16000,
        port_last: 16999,
    }))
    .await;
    let mut down = client
        .sync(ReceiverStream::new(messages))
        .await
        .unwrap()
        .into_inner();
    say(Up::Subscribe(node::Subscribe::default())).await;
    let mut bytes = Vec::new();
    let mut destinations = 0;
    while destinations < at_least {
        let message = within("a message", down.message()).await.unwrap().unwrap();
        bytes.extend_from_slice(&message.encode_to_vec());
        let (nonce, revision, objects) = match message.message.unwrap() {
            Down::Snapshot(part) if part.part + 1 == part.parts => {
                (part.nonce, part.revision, part.objects)
            }
            Down::Delta(delta) => (delta.nonce, delta.to_revision, delta.upserts),
            _ => continue,
        };
        destinations += objects
            .iter()
            .filter(|object| matches!(object.object, Some(node::object::Object::Destination(_))))
            .count();
        say(Up::Ack(node::Ack {
            nonce,
            revision,
            rejected: Vec::new(),
            resync: false,
        }))
        .await;
    }
    bytes
}

async fn tenant(admin: &mut Admin, group: &str) -> (String, String) {
    let gateway = api::Gateway {
        name: format!("gateway-{group}"),
        description: format!("description-{group}"),
        group: group.to_owned(),
        ..api::Gateway::default()
    };
    let request = api::CreateGatewayRequest {
        gateway: Some(gateway),
        ..api::CreateGatewayRequest::default()
    };
    let made = admin
        .gateways
        .create_gateway(request)
        .await
        .unwrap()
        .into_inner();
    let key = KeyPair::generate();
    let certificate = sg_runtime::identity::self_signed(&key, &format!("{group}.example"));
    let mut request = create_destination(&made.name, &format!("destination-{group}"));
    let destination = request.destination.as_mut().unwrap();
    destination.protocol = "tls".to_owned();
    destination.resource_host = format!("resource-{group}.example");
    destination.user_end = Some(api::UserEnd {
        server_pairs: vec![api::KeyPair {
            certificates: vec![certificate.to_vec()],
            key: key.to_pem().expose().as_bytes().to_vec(),
            ..api::KeyPair::default()
        }],
        ..api::UserEnd::default()
    });
    destination.resource_end = Some(api::ResourceEnd {
        socks: Some(api::SocksProxy {
            version: "5".to_owned(),
            address: format!("socks-{group}.example:1080"),
            user: format!("user-{group}"),
            password: format!("password-{group}").into_bytes(),
        }),
        ..api::ResourceEnd::default()
    });
    admin
        .destinations
        .create_destination(request)
        .await
        .unwrap();
    let allow = api::AddAclEntryRequest {
        name: made.name.clone(),
        entry: Some(api::AclEntry {
            action: "allow".to_owned(),
            host: format!("resource-{group}.example"),
            ..api::AclEntry::default()
        }),
        ..api::AddAclEntryRequest::default()
    };
    admin.acls.add_acl_entry(allow).await.unwrap();
    (made.id, made.security_token)
}

/// Row 44: a node has what its group serves. Of another group it is told no name, no id, no address, no key, no
/// password and no hash of a token, neither at first nor when something changes there.
#[tokio::test]
async fn threat_44_a_node_is_told_nothing_of_another_group() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let (own_id, own_token) = tenant(&mut admin, "group-x").await;
    let (foreign_id, foreign_token) = tenant(&mut admin, "group-y").await;
    let join = async |admin: &mut Admin, group: &str| {
        let token = admin
            .tokens
            .create_join_token(api::CreateJoinTokenRequest::default())
            .await
            .unwrap()
            .into_inner()
            .token;
        let key = KeyPair::generate();
        let channel = plane.channel(None).await;
        let mut enrollment = node::enrollment_client::EnrollmentClient::new(channel);
        let request = node::JoinRequest {
            join_token: token,
            csr_der: sg_runtime::identity::csr_der(&key),
            name: format!("node-{group}"),
            group: group.to_owned(),
            version: "0.1.0".to_owned(),
        };
        let answer = enrollment.join(request).await.unwrap().into_inner();
        let chain = answer
            .certificates_der
            .into_iter()
            .map(Into::into)
            .collect();
        Credentials::new(chain, key)
    };
    let x = join(&mut admin, "group-x").await;
    let y = join(&mut admin, "group-y").await;
    // The other group's node has everything of its own: the search does find what is there.
    let of_y = told(&plane, &y, "group-y", 1).await;
    let of_x = told(&plane, &x, "group-x", 1).await;
    let holds = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).any(|part| part == what);
    let hash = |token: &str| crypto::sha256(token.as_bytes());
    for (bytes, id, token, group, other) in [
        (&of_x, &own_id, &own_token, "group-x", "group-y"),
        (&of_y, &foreign_id, &foreign_token, "group-y", "group-x"),
    ] {
        for what in [
            "destination-",
            "resource-",
            "socks-",
            "user-",
            "password-",
            "gateway-",
        ] {
            assert!(
                holds(bytes, format!("{what}{group}").as_bytes()),
                "{what}{group}"
            );
        }
        assert!(holds(bytes, id.as_bytes()) && holds(bytes, &hash(token)));
        assert!(!holds(bytes, other.as_bytes()), "{group} hears of {other}");
    }
    for what in [foreign_id.as_bytes(), &hash(&foreign_token)] {
        assert!(!holds(&of_x, what));
    }
    // What a node says of its group later changes nothing about which one it is of.
    let lured = told(&plane, &x, "group-y", 1).await;
    let foreign_secrets = ["password-group-y", "gateway-group-y", "resource-group-y"];
    for secret in foreign_secrets {
        assert!(
            !holds(&lured, secret.as_bytes()),
            "a node has moved itself: {secret}"
        );
    }
}
