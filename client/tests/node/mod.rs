//! A node played by the test, and a client started as its process would be.
//!
//! The played node does the handshake and reads the hello; everything after that is up to the test.
#![allow(clippy::unwrap_used, dead_code, clippy::disallowed_methods)]

use std::ffi::OsString;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, SanType};
use sg_client::app::{self, AppError};
use sg_client::options::Args;
use sg_proto::tunnel::{
    self as wire, Accepted, ClientHello, Control, Refused, ServerHello, StreamOpen, control,
    server_hello,
};
use sg_runtime::identity::{self, CertificateDer, KeyPair};
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tls::{self, ClientAuth, Credentials, ServerCertificate, ServerStream, ServerTls};
use sg_tunnel_io::{Config, Event, Incoming, OpenError, Side, Tunnel, TunnelStream};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;

/// Longer than anything takes on a busy machine.
const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    match tokio::time::timeout(DEADLINE, future).await {
        Ok(output) => output,
        Err(_) => panic!("not in time: {what}"),
    }
}

/// Asks again until the answer is yes.
pub(crate) async fn until(what: &str, mut yes: impl AsyncFnMut() -> bool) {
    soon(what, async {
        while !yes().await {
            tokio::task::yield_now().await;
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

/// A certificate authority in a directory of the test.
pub(crate) struct Ca {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
    directory: TempDir,
}

impl Ca {
    pub(crate) fn new() -> Self {
        sg_runtime::crypto::install();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).unwrap().der().clone();
        let directory = tempfile::tempdir().unwrap();
        let pem = identity::certificates_to_pem(std::slice::from_ref(&root));
        std::fs::write(directory.path().join("ca.pem"), pem).unwrap();
        Self {
            root,
            issuer: Issuer::new(params, key),
            directory,
        }
    }

    pub(crate) fn file(&self) -> String {
        self.directory.path().join("ca.pem").display().to_string()
    }

    pub(crate) fn pin(&self) -> String {
        let hash = identity::spki_sha256(&self.root).unwrap();
        format!("sha256:{}", sg_runtime::crypto::hex(&hash))
    }

    fn issue(&self, kind: &str, id: &str, protocol: &[u8]) -> ServerTls {
        let key = KeyPair::generate();
        let mut params = CertificateParams::default();
        let uri = format!("spiffe://secure-gateway/{kind}/{id}");
        params
            .subject_alt_names
            .push(SanType::URI(uri.as_str().try_into().unwrap()));
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params
            .signed_by(key.signing(), &self.issuer)
            .unwrap()
            .der()
            .clone();
        let credentials = Credentials::new(vec![leaf, self.root.clone()], key);
        let certificate = ServerCertificate::new(&credentials).unwrap();
        tls::server_config(&certificate, &ClientAuth::AnySelfSigned, &[protocol]).unwrap()
    }

    pub(crate) async fn node(&self, id: &str) -> Node {
        self.node_of_kind("node", id, "127.0.0.1:0".parse().unwrap())
            .await
    }

    /// A node's port that speaks something else.
    pub(crate) async fn without_tunnels(&self) -> (SocketAddr, AbortOnDropHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, _) = mpsc::channel(1);
        let accepting = tokio::spawn(accept(listener, self.issue("node", "n1", b"h2"), sender));
        (address, AbortOnDropHandle::new(accepting))
    }

    pub(crate) async fn node_at(&self, id: &str, address: SocketAddr) -> Node {
        self.node_of_kind("node", id, address).await
    }

    pub(crate) async fn node_of_kind(&self, kind: &str, id: &str, address: SocketAddr) -> Node {
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let (sender, arrivals) = mpsc::channel(64);
        let accepting = tokio::spawn(accept(
            listener,
            self.issue(kind, id, b"sg-tunnel/1"),
            sender,
        ));
        Node {
            id: id.to_owned(),
            address,
            arrivals,
            _accepting: AbortOnDropHandle::new(accepting),
        }
    }
}

async fn accept(listener: TcpListener, tls: ServerTls, arrivals: mpsc::Sender<Arrival>) {
    let mut handshakes = tokio::task::JoinSet::new();
    while let Ok((tcp, _)) = listener.accept().await {
        let (tls, arrivals) = (tls.clone(), arrivals.clone());
        handshakes.spawn(async move {
            let Ok((mut stream, peer)) = tls::accept(&tls, tcp).await else {
                return;
            };
            let Ok(length) = stream.read_u32().await else {
                return;
            };
            assert!(length <= 16 * 1024);
            let mut body = vec![0; usize::try_from(length).unwrap()];
            stream.read_exact(&mut body).await.unwrap();
            let hello = ClientHello::decode(body.as_slice()).unwrap();
            let client_id = peer.client_id().unwrap();
            let _full = arrivals
                .send(Arrival {
                    stream,
                    hello,
                    client_id,
                })
                .await;
        });
    }
}

/// A played node.
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    arrivals: mpsc::Receiver<Arrival>,
    _accepting: AbortOnDropHandle<()>,
}

impl Node {
    /// The next client that has said hello.
    pub(crate) async fn arrival(&mut self) -> Arrival {
        soon("a client's hello", self.arrivals.recv())
            .await
            .unwrap()
    }

    /// Accepts the next client, with these lines as the list.
    pub(crate) async fn tunnel(&mut self, acl: &str) -> Peer {
        let accepted = self.accepted(acl, &[]);
        self.arrival().await.accept(accepted).await
    }

    pub(crate) fn accepted(&self, acl: &str, group: &[(&str, SocketAddr)]) -> Accepted {
        Accepted {
            node_id: self.id.clone(),
            node_name: format!("name-of-{}", self.id),
            gateway_id: "g1".to_owned(),
            gateway_name: "dev".to_owned(),
            acl: Some(list(1, acl)),
            endpoints: Some(endpoints(group)),
            ..Accepted::default()
        }
    }

    /// That no client is waiting to be answered.
    pub(crate) fn nobody(&mut self) -> bool {
        self.arrivals.try_recv().is_err()
    }
}

pub(crate) fn endpoints(group: &[(&str, SocketAddr)]) -> wire::Endpoints {
    let endpoint = |(id, address): &(&str, SocketAddr)| wire::Endpoint {
        node_id: (*id).to_owned(),
        node_name: String::new(),
        address: address.to_string(),
    };
    wire::Endpoints {
        endpoints: group.iter().map(endpoint).collect(),
    }
}

/// An access control list out of the lines of a file.
pub(crate) fn list(generation: u64, lines: &str) -> wire::Acl {
    let mut acl = sg_model::AclFile::parse(lines).unwrap().acl;
    acl.version = sg_model::AclVersion {
        epoch: 1,
        generation,
    };
    wire::Acl::from(&acl)
}

/// A client that has said hello.
pub(crate) struct Arrival {
    pub(crate) stream: ServerStream,
    pub(crate) hello: ClientHello,
    pub(crate) client_id: String,
}

impl Arrival {
    pub(crate) async fn answer(&mut self, answer: server_hello::Answer) {
        let body = ServerHello {
            answer: Some(answer),
        }
        .encode_to_vec();
        self.stream
            .write_u32(u32::try_from(body.len()).unwrap())
            .await
            .unwrap();
        self.stream.write_all(&body).await.unwrap();
        self.stream.flush().await.unwrap();
    }

    pub(crate) async fn refuse(mut self, reason: &str, retry: bool) {
        let refused = Refused {
            reason: reason.to_owned(),
            message: "no".to_owned(),
            retry,
        };
        self.answer(server_hello::Answer::Refused(refused)).await;
        self.stream.shutdown().await.unwrap();
    }

    pub(crate) async fn accept(mut self, accepted: Accepted) -> Peer {
        let config = Config {
            resume_time: Duration::from_millis(accepted.resume_ms.into()),
            ..Config::default()
        };
        self.answer(server_hello::Answer::Accepted(accepted)).await;
        let (tunnel, incoming, driver) = sg_tunnel_io::start(self.stream, Side::Node, config);
        Peer {
            tunnel,
            incoming,
            hello: self.hello,
            client_id: self.client_id,
            driver: AbortOnDropHandle::new(tokio::spawn(async move { driver.await.to_string() })),
        }
    }
}

/// The client's end of a tunnel, as the node sees it. Dropping it drops the connection.
pub(crate) struct Peer {
    pub(crate) tunnel: Tunnel,
    pub(crate) incoming: Incoming,
    pub(crate) hello: ClientHello,
    pub(crate) client_id: String,
    driver: AbortOnDropHandle<String>,
}

impl Peer {
    pub(crate) async fn open(&self, resource: SocketAddr) -> Result<TunnelStream, OpenError> {
        self.open_with(stream_open(&resource.ip().to_string(), resource.port()))
            .await
    }

    pub(crate) async fn open_with(&self, open: StreamOpen) -> Result<TunnelStream, OpenError> {
        soon(
            "an answer to OPEN",
            self.tunnel.open(open.encode_to_vec().into()),
        )
        .await
    }

    /// The code that a stream is refused with.
    pub(crate) async fn refusal(&self, open: StreamOpen) -> u32 {
        match self.open_with(open).await {
            Err(OpenError::Reset { code }) => code,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(crate) fn send(&self, message: control::Message) {
        let message = Control {
            message: Some(message),
        }
        .encode_to_vec();
        self.tunnel.send_control(message.into()).unwrap();
    }

    /// The version that the client says it enforces next.
    pub(crate) async fn applied(&mut self) -> u64 {
        loop {
            match soon("an applied list", self.incoming.next()).await {
                Some(Event::Control(message)) => match Control::decode(message).unwrap().message {
                    Some(control::Message::AclApplied(applied)) => return applied.generation,
                    // It asks for one when it pleases.
                    Some(control::Message::CertificateRequest(_)) => {}
                    other => panic!("another message: {other:?}"),
                },
                other => panic!("another event: {other:?}"),
            }
        }
    }

    /// Waits until the client drains.
    pub(crate) async fn drained(&mut self) {
        loop {
            match soon("the client's drain", self.incoming.next()).await {
                Some(Event::PeerDraining) => return,
                Some(_) => {}
                None => panic!("the tunnel ended without a drain"),
            }
        }
    }

    /// Waits until the tunnel has ended.
    pub(crate) async fn ended(self) -> String {
        soon("the end of the tunnel", self.driver).await.unwrap()
    }
}

pub(crate) fn stream_open(host: &str, port: u16) -> StreamOpen {
    StreamOpen {
        destination_id: "d1".to_owned(),
        destination: "db".to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: host.to_owned(),
        resource_port: port.into(),
        connect_timeout_ms: 5000,
        acl_epoch: 1,
        acl_generation: 1,
        user_address: "192.0.2.1:4711".to_owned(),
        compression: String::new(),
        ..StreamOpen::default()
    }
}

/// A client in this process. Dropping it ends it the hard way.
pub(crate) struct Client {
    pub(crate) shutdown: Shutdown,
    pub(crate) directory: PathBuf,
    task: AbortOnDropHandle<Result<(), AppError>>,
    _own: Option<TempDir>,
}

impl Client {
    /// Starts a client with this command line, and a data directory, a ready file and an admin port.
    pub(crate) fn start(line: &str) -> Self {
        let own = tempfile::tempdir().unwrap();
        let mut client = Self::start_in(own.path().to_owned(), line);
        client._own = Some(own);
        client
    }

    pub(crate) fn start_in(directory: PathBuf, line: &str) -> Self {
        let line = format!(
            "sg-client {line} --data-dir {0}/data --ready-file {0}/ready.json --admin-listen 127.0.0.1:0 --no-console",
            directory.display()
        );
        let none = |_: &str| -> Option<OsString> { None };
        let args: Args = sg_runtime::config::load_from(line.split_whitespace(), &none)
            .unwrap_or_else(|error| panic!("{line}: {error}"));
        let settings = args.check().unwrap();
        let shutdown = Shutdown::manual(settings.drain_timeout);
        let task = AbortOnDropHandle::new(tokio::spawn(app::run(settings, shutdown.clone())));
        Self {
            shutdown,
            directory,
            task,
            _own: None,
        }
    }

    /// Waits until it has ended by itself, or after a shutdown.
    pub(crate) async fn ended(self) -> Result<(), AppError> {
        soon("the end of the client", self.task).await.unwrap()
    }

    /// What the ready file says, once it is there.
    pub(crate) async fn ready(&self) -> serde_json::Value {
        let path = self.directory.join("ready.json");
        until("the ready file", async || path.exists()).await;
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
    }

    pub(crate) async fn get(admin: &str, path: &str) -> String {
        let mut tcp = TcpStream::connect(admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: {admin}\r\nConnection: close\r\n\r\n");
        tcp.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        tcp.read_to_string(&mut answer).await.unwrap();
        answer
    }
}

/// A resource that sends back what it gets, and ends when its peer does.
pub(crate) async fn echo() -> (SocketAddr, AbortOnDropHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = tcp.split();
                if tokio::io::copy(&mut read, &mut write).await.is_ok() {
                    let _ended = write.shutdown().await;
                }
            });
        }
    });
    (address, AbortOnDropHandle::new(task))
}
