//! The same over the stream of a real tunnel.

use std::sync::Arc;

use bytes::Bytes;
use http::Method;
use sg_model::CanonicalPath;
use sg_relay::EndReason;
use sg_relay::http::{
    Forwarded, HttpOptions, HttpVersion, Refusal, Upstream, User, UserOptions, serve_stream,
    serve_user,
};
use sg_tunnel_io::{Config, Event, OpenError, Side, Tunnel, TunnelStream, code, start};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::pipe::{Pipe, pipe};
use crate::rig::{SOON, read_to_end, read_until};

struct Opener(Tunnel);

impl Upstream for Opener {
    type Io = TunnelStream;

    async fn connect(&self) -> Result<(TunnelStream, HttpVersion), Refusal> {
        match self.0.open(Bytes::new()).await {
            Ok(stream) => Ok((stream, HttpVersion::Http1)),
            Err(OpenError::Reset { code }) => Err(Refusal::of(code::word(code))),
            Err(_) => Err(Refusal::of("tunnel-lost")),
        }
    }

    fn permit(&self, _: &Method, _: &str) -> Result<Option<CanonicalPath>, Refusal> {
        Ok(None)
    }
}

struct Connector(mpsc::UnboundedSender<Pipe>);

impl Upstream for Connector {
    type Io = Pipe;

    async fn connect(&self) -> Result<(Pipe, HttpVersion), Refusal> {
        let (near, far) = pipe(64 * 1024);
        self.0.send(far).unwrap();
        Ok((near, HttpVersion::Http1))
    }

    fn permit(&self, _: &Method, _: &str) -> Result<Option<CanonicalPath>, Refusal> {
        Ok(None)
    }
}

struct Rig {
    user: Pipe,
    resources: mpsc::UnboundedReceiver<Pipe>,
    served: JoinHandle<EndReason>,
    dialled: mpsc::UnboundedReceiver<EndReason>,
    refuse: Arc<std::sync::atomic::AtomicBool>,
}

fn options() -> HttpOptions {
    HttpOptions::new(&"resource.test:443".parse().unwrap(), true).unwrap()
}

fn rig() -> Rig {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (node, mut node_events, node_driver) = start(near, Side::Node, Config::default());
    let (client, mut events, client_driver) = start(far, Side::Client, Config::default());
    tokio::spawn(node_driver);
    tokio::spawn(client_driver);
    tokio::spawn(async move { while node_events.next().await.is_some() {} });
    let (resources, connected) = mpsc::unbounded_channel();
    let (ended, dialled) = mpsc::unbounded_channel();
    let refuse = Arc::<std::sync::atomic::AtomicBool>::default();
    let refuses = Arc::clone(&refuse);
    tokio::spawn(async move {
        let _client = client;
        while let Some(event) = events.next().await {
            let Event::Open(incoming) = event else {
                continue;
            };
            if refuses.load(std::sync::atomic::Ordering::Relaxed) {
                incoming.refuse(code::REFUSED);
                continue;
            }
            let (ended, connector) = (ended.clone(), Connector(resources.clone()));
            tokio::spawn(async move {
                let first = connector.connect().await.ok();
                let stream = incoming.accept();
                let version = HttpVersion::Http1;
                let reason = serve_stream(stream, version, options(), connector, first).await;
                let _ = ended.send(reason);
            });
        }
    });
    let (user, near) = pipe(64 * 1024);
    let user_options = UserOptions {
        forwarded: Forwarded::Set,
        user: User {
            address: "192.0.2.7".parse().unwrap(),
            tls: true,
        },
        meter: None,
    };
    let served = tokio::spawn(serve_user(
        near,
        HttpVersion::Http1,
        options(),
        user_options,
        Opener(node),
    ));
    Rig {
        user,
        resources: connected,
        served,
        dialled,
        refuse,
    }
}

impl Rig {
    async fn resource(&mut self) -> Pipe {
        timeout(SOON, self.resources.recv()).await.unwrap().unwrap()
    }

    async fn dialled(&mut self) -> EndReason {
        timeout(SOON, self.dialled.recv()).await.unwrap().unwrap()
    }
}

const GET: &[u8] = b"GET /a HTTP/1.1\r\nHost: shop.test\r\n\r\n";

#[tokio::test]
async fn exchanges_end_in_order_at_both_ends() {
    let mut rig = rig();
    for _ in 0..3 {
        rig.user.write_all(GET).await.unwrap();
    }
    let mut resource = rig.resource().await;
    for _ in 0..3 {
        let head = read_until(&mut resource, "\r\n\r\n").await.to_lowercase();
        assert!(head.contains("host: resource.test\r\n"), "{head}");
        assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");
        resource
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfine")
            .await
            .unwrap();
        read_until(&mut rig.user, "fine").await;
    }
    rig.user.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut rig.user).await.unwrap(), "");
    assert_eq!(rig.dialled().await, EndReason::Finished);
    assert_eq!(read_to_end(&mut resource).await.unwrap(), "");
    assert_eq!(rig.served.await.unwrap(), EndReason::Finished);
}

#[tokio::test]
async fn resets_carry_their_code_through_the_tunnel() {
    let mut one = rig();
    one.user.write_all(GET).await.unwrap();
    let mut resource = one.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    one.user.reset(code::PEER_RESET);
    assert!(read_to_end(&mut resource).await.is_err());
    assert_eq!(
        timeout(SOON, one.dialled.recv()).await.unwrap(),
        Some(EndReason::StreamReset(code::PEER_RESET))
    );

    let mut other = rig();
    other.user.write_all(GET).await.unwrap();
    let mut resource = other.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        .await
        .unwrap();
    read_until(&mut other.user, "half").await;
    resource.reset(code::PEER_RESET);
    assert!(read_to_end(&mut other.user).await.is_err());
    assert_eq!(
        other.served.await.unwrap(),
        EndReason::StreamReset(code::PEER_RESET)
    );
}

#[tokio::test]
async fn a_refused_stream_is_an_answer_and_the_next_request_tries_again() {
    let mut rig = rig();
    rig.refuse.store(true, std::sync::atomic::Ordering::Relaxed);
    rig.user.write_all(GET).await.unwrap();
    let answer = read_until(&mut rig.user, "\r\n\r\nrefused: ").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    rig.refuse
        .store(false, std::sync::atomic::Ordering::Relaxed);
    rig.user.write_all(GET).await.unwrap();
    let mut resource = rig.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
}

#[tokio::test]
async fn a_large_body_keeps_its_bytes() {
    const LENGTH: usize = 32 << 20;
    let rig = rig();
    let head = format!("POST /a HTTP/1.1\r\nHost: shop.test\r\nContent-Length: {LENGTH}\r\n\r\n");
    let bytes: Vec<u8> = (0..LENGTH).map(|n| ((n * 31) >> 3) as u8).collect();
    let sent = bytes.clone();
    let (mut user, mut resources) = (rig.user, rig.resources);
    let uploads = tokio::spawn(async move {
        user.write_all(head.as_bytes()).await.unwrap();
        user.write_all(&sent).await.unwrap();
        user
    });
    let mut resource = timeout(SOON, resources.recv()).await.unwrap().unwrap();
    let mut read = Vec::new();
    while read.len() < LENGTH {
        let mut piece = vec![0; 64 * 1024];
        let count = timeout(SOON, resource.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0);
        read.extend_from_slice(&piece[..count]);
        if read.starts_with(b"POST ")
            && let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n")
        {
            read.drain(..end + 4);
        }
    }
    assert!(read == bytes, "{} bytes", read.len());
    let _user = uploads.await.unwrap();
}
