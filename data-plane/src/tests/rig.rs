//! The node, its clients, and the resource behind them.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use sg_model::{AclEntry, Action, Destination, Name, NodeConfig, NodeId, NodeObject, TokenHash};
use sg_proto::tunnel::{
    Accepted, AclApplied, ClientHello, Control, Refused, ServerHello, StreamOpen, control,
    server_hello,
};
use sg_relay::TunnelBoard;
use sg_relay::{JoinOptions, StreamMetrics, dial, join};
use sg_runtime::crypto;
use sg_runtime::identity::{KeyPair, self_signed};
use sg_runtime::metrics::Metrics;
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tasks::TaskPool;
use sg_runtime::tls::{
    self, CertificateDer, ClientAuth, ClientTls, Credentials, Issuers, PeerKind, ServerCertificate,
    ServerTls, Trust, client_config, server_config,
};
use sg_tunnel_io::{Closed, Config, Event, IncomingStream, Side, Tunnel, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::balancers::Balancers;
use crate::certificates::Desk;
use crate::cloud::{Cloud, CloudAllow};
use crate::edits::{Edit, EditDesk};
use crate::for_clients::ForClients;
use crate::log_limit::LogLimit;
use crate::metrics::NodeMetrics;
use crate::node::{Node, Opening};
use crate::receptions::Receptions;
use crate::reconcile::testing::{acl, config, destination, gateway};
use crate::reconcile::{Applied, Reconciler};
use crate::streams::OpenStreams;
use crate::tunnels::{Hold, Registry, acceptor};
use sg_runtime::places::Places;

pub(crate) const LIMIT: Duration = Duration::from_secs(20);
pub(crate) const TOKEN: &str = "sgt_0123";

/// A node without its surroundings.
pub(crate) fn node() -> (Arc<Node>, Metrics) {
    crypto::install();
    let (node, metrics, _) = node_behind(Balancers::default(), &Authority::new());
    (node, metrics)
}

fn node_behind(
    balancers: Balancers,
    authority: &Authority,
) -> (Arc<Node>, Metrics, mpsc::Receiver<Edit>) {
    let (desk, edits) = EditDesk::new();
    let metrics = Metrics::new("test", "0");
    let node_metrics = NodeMetrics::register(&metrics);
    let tunnel_config = Config::default();
    let node = Arc::new(Node {
        id: NodeId::new("n1").unwrap(),
        id_text: "n1".into(),
        name: Name::new("node-1").unwrap(),
        served: watch::Sender::default(),
        board: TunnelBoard::new(Arc::clone(&tunnel_config.budget)),
        registry: Arc::new(Registry::new(node_metrics.clone(), tunnel_config)),
        streams: OpenStreams::default(),
        receptions: Receptions::default(),
        for_clients: ForClients::default(),
        cloud_allow: CloudAllow::parse(&["127.0.0.0/8".to_owned()]).unwrap(),
        cloud: Cloud::new(100),
        hold: Hold::new(),
        half_open: Places::new(1000, 200),
        issuers: Issuers::new(std::slice::from_ref(&authority.root)).unwrap(),
        trust: watch::Sender::default(),
        // Whoever asks finds nobody there.
        desk: Desk::new().0,
        edits: desk,
        balancers,
        sources: Places::new(0, 0),
        metrics: node_metrics,
        stream_metrics: StreamMetrics::register(&metrics),
        connections: TaskPool::new("connections", 1000),
        opening: Opening::default(),
        full_lines: LogLimit::default(),
        shutdown: Shutdown::manual(Duration::from_secs(1)),
    });
    (node, metrics, edits)
}

pub(crate) struct Rig {
    pub(crate) node: Arc<Node>,
    pub(crate) metrics: Metrics,
    pub(crate) tunnels: TaskPool,
    pub(crate) tunnel_address: SocketAddr,
    /// Where users connect.
    pub(crate) port: u16,
    /// Answers every byte with itself.
    pub(crate) resource: SocketAddr,
    pub(crate) stop: CancellationToken,
    /// What connections to the tunnel listener begin with.
    pub(crate) header: &'static [u8],
    /// Issued the node's certificate, and vouches for those of clients.
    pub(crate) authority: Arc<Authority>,
    /// What clients want changed.
    pub(crate) edits: mpsc::Receiver<Edit>,
    desired: watch::Sender<Arc<NodeConfig>>,
    applied: watch::Receiver<Arc<Applied>>,
    client_tls: Box<dyn Fn(&Credentials) -> ClientTls>,
    _tasks: JoinSet<()>,
}

/// What a client does with streams.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Answer {
    /// Connects to the resource.
    Relay,
    /// Refuses with this code.
    Refuse(u32),
    /// Says nothing.
    Silence,
}

pub(crate) struct Client {
    pub(crate) tunnel: Tunnel,
    pub(crate) accepted: Accepted,
    /// Streams it was asked for.
    pub(crate) asked: Arc<AtomicUsize>,
    pub(crate) controls: mpsc::Receiver<control::Message>,
    tasks: JoinSet<()>,
}

/// Who connects, and with what.
#[derive(Clone)]
pub(crate) struct Offer {
    pub(crate) credentials: Credentials,
    pub(crate) hello: ClientHello,
}

impl Offer {
    /// A new client with the right token.
    pub(crate) fn new() -> Self {
        let key = KeyPair::generate();
        Self {
            credentials: Credentials::new(vec![self_signed(&key, "client")], key),
            hello: ClientHello {
                version: 1,
                boot_id: vec![1; 16],
                gateway: "g1".to_owned(),
                token: TOKEN.to_owned(),
                client_name: "test".to_owned(),
                ..ClientHello::default()
            },
        }
    }
}

impl Rig {
    pub(crate) async fn new() -> Self {
        Self::behind(Balancers::default()).await
    }

    /// A node in front of which these balancers are.
    pub(crate) async fn behind(balancers: Balancers) -> Self {
        crypto::install();
        let authority = Arc::new(Authority::new());
        let (node, metrics, edits) = node_behind(balancers, &authority);
        let mut tasks = JoinSet::new();
        let (desired, desired_rx) = watch::channel(Arc::default());
        let (applied_tx, applied) = watch::channel(Arc::default());
        let stop = CancellationToken::new();
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let reconciler = Reconciler::new(Arc::clone(&node), local, desired_rx, applied_tx);
        let end = CancellationToken::new();
        tasks.spawn(reconciler.run(stop.clone(), end));
        let (server, client_tls) = tls(&authority);
        let listener = TcpListener::bind((local, 0)).await.unwrap();
        let tunnel_address = listener.local_addr().unwrap();
        let tunnels = TaskPool::new("tunnels", 1000);
        let accept = acceptor::run(
            Arc::clone(&node),
            listener,
            server,
            tunnels.clone(),
            stop.clone(),
        );
        tasks.spawn(accept);
        let resource = echo(&mut tasks).await;
        let free = TcpListener::bind((local, 0)).await.unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let mut rig = Self {
            node,
            metrics,
            tunnels,
            tunnel_address,
            port,
            resource,
            stop,
            edits,
            header: b"",
            authority,
            desired,
            applied,
            client_tls,
            _tasks: tasks,
        };
        rig.apply(1, |objects| objects).await;
        rig
    }

    /// Hands over the usual configuration, changed.
    pub(crate) async fn apply(
        &mut self,
        revision: u64,
        change: impl FnOnce(Vec<NodeObject>) -> Vec<NodeObject>,
    ) {
        self.publish(revision, change);
        let applied = self
            .applied
            .wait_for(|applied| applied.revision == revision);
        drop(timeout(LIMIT, applied).await.unwrap().unwrap());
    }

    /// The same, without waiting until it is applied.
    pub(crate) fn publish(
        &self,
        revision: u64,
        change: impl FnOnce(Vec<NodeObject>) -> Vec<NodeObject>,
    ) {
        let objects = change(vec![
            open_gateway(true),
            NodeObject::Destination(self.destination()),
            self.allow(revision),
        ]);
        self.desired
            .send_replace(Arc::new(config(revision, objects)));
    }

    pub(crate) fn destination(&self) -> Destination {
        let NodeObject::Destination(mut d) = destination("d1", "g1", self.port) else {
            unreachable!("the helper makes a destination")
        };
        d.resource = self.resource.to_string().parse().unwrap();
        d
    }

    pub(crate) fn allow(&self, generation: u64) -> NodeObject {
        let entry = AclEntry::parse(Action::Allow, &self.resource.to_string()).unwrap();
        acl("g1", generation, [entry])
    }

    pub(crate) async fn user(&self) -> TcpStream {
        TcpStream::connect(("127.0.0.1", self.port)).await.unwrap()
    }

    /// A TLS connection to the tunnel listener.
    pub(crate) async fn tls(&self, credentials: &Credentials) -> tls::ClientStream {
        let mut tcp = TcpStream::connect(self.tunnel_address).await.unwrap();
        tcp.write_all(self.header).await.unwrap();
        let tls = (self.client_tls)(credentials);
        tls::connect(&tls, tcp, "localhost").await.unwrap().0
    }

    pub(crate) async fn client(&self, answer: Answer) -> Client {
        self.connect(&Offer::new(), answer).await.unwrap()
    }

    pub(crate) async fn connect(&self, offer: &Offer, answer: Answer) -> Result<Client, Refused> {
        let before = self.node.registry.all().len();
        let mut io = self.tls(&offer.credentials).await;
        let accepted = say_hello(&mut io, &offer.hello).await?;
        let config = Config {
            resume_time: Duration::from_millis(accepted.resume_ms.into()),
            ..Config::default()
        };
        let (tunnel, mut incoming, driver) = start(io, Side::Client, config);
        let asked = Arc::new(AtomicUsize::new(0));
        let (control, controls) = mpsc::channel(100);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop::<Closed>(driver.await) });
        let counted = Arc::clone(&asked);
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(event) = incoming.next().await {
                match event {
                    Event::Open(stream) => {
                        counted.fetch_add(1, Ordering::Relaxed);
                        streams.spawn(handle(stream, answer));
                    }
                    Event::Control(message) => {
                        let message = Control::decode(message).unwrap().message.unwrap();
                        control.send(message).await.unwrap();
                    }
                    Event::PeerDraining | Event::Detached | Event::Resumed => {}
                }
            }
        });
        // The hello comes before the registration.
        self.eventually(|rig| {
            let all = rig.node.registry.all();
            all.len() > before
                || all
                    .iter()
                    .any(|s| s.boot_id == crypto::hex(&offer.hello.boot_id))
        })
        .await;
        Ok(Client {
            tunnel,
            accepted,
            asked,
            controls,
            tasks,
        })
    }

    pub(crate) async fn eventually(&self, condition: impl Fn(&Self) -> bool) {
        let poll = async {
            while !condition(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(LIMIT, poll)
            .await
            .expect("the condition comes about");
    }

    /// The value of a series, by the text before it.
    pub(crate) fn series(&self, name: &str) -> Option<String> {
        let text = self.metrics.encode();
        let value = text
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        value.map(str::to_owned)
    }

    /// How many connections had this result.
    pub(crate) fn opened(&self, result: &str) -> u64 {
        let name = format!(
            "sg_streams_opened_total{{gateway=\"gateway-g1\",destination=\"d1\",protocol=\"tcp\",result=\"{result}\"}}"
        );
        self.series(&name).map_or(0, |value| value.parse().unwrap())
    }
}

impl Client {
    pub(crate) fn asked(&self) -> usize {
        self.asked.load(Ordering::Relaxed)
    }

    /// Goes away without a word.
    pub(crate) fn vanish(mut self) {
        self.tasks.abort_all();
    }

    pub(crate) async fn next_control(&mut self) -> control::Message {
        timeout(LIMIT, self.controls.recv()).await.unwrap().unwrap()
    }

    pub(crate) fn confirm(&self, epoch: u64, generation: u64) {
        let message = Control {
            message: Some(control::Message::AclApplied(AclApplied {
                epoch,
                generation,
            })),
        };
        self.tunnel
            .send_control(message.encode_to_vec().into())
            .unwrap();
    }

    pub(crate) async fn closed(&self) -> Closed {
        timeout(LIMIT, self.tunnel.closed()).await.unwrap()
    }
}

/// Says hello and reads the answer.
pub(crate) async fn say_hello(
    io: &mut tls::ClientStream,
    hello: &ClientHello,
) -> Result<Accepted, Refused> {
    let body = hello.encode_to_vec();
    io.write_u32(u32::try_from(body.len()).unwrap())
        .await
        .unwrap();
    io.write_all(&body).await.unwrap();
    let length = io.read_u32().await.unwrap();
    let mut body = vec![0; length as usize];
    io.read_exact(&mut body).await.unwrap();
    let answer = ServerHello::decode(body.as_slice()).unwrap().answer;
    match answer.unwrap() {
        server_hello::Answer::Accepted(accepted) => Ok(accepted),
        server_hello::Answer::Refused(refused) => Err(refused),
    }
}

async fn handle(stream: IncomingStream, answer: Answer) {
    let open = StreamOpen::decode(stream.metadata().clone()).unwrap();
    match answer {
        Answer::Refuse(code) => stream.refuse(code),
        Answer::Silence => std::future::pending().await,
        Answer::Relay => match dial(&open.resource().unwrap(), LIMIT, |_| true).await {
            Ok(tcp) => {
                join(tcp, stream.accept(), JoinOptions::default()).await;
            }
            Err(error) => stream.refuse(error.code()),
        },
    }
}

/// A gateway with the tests' token, whose tunnels end with their connection.
pub(crate) fn open_gateway(enabled: bool) -> NodeObject {
    let NodeObject::Gateway(mut g) = gateway("g1", enabled) else {
        unreachable!("the helper makes a gateway")
    };
    g.tokens = vec![TokenHash {
        sha256: crypto::sha256(TOKEN.as_bytes()),
        expires: None,
    }];
    g.resume_time = Duration::ZERO;
    NodeObject::Gateway(g)
}

async fn echo(tasks: &mut JoinSet<()>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tasks.spawn(async move {
        let mut connections = JoinSet::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            connections.spawn(async move {
                let (mut read, mut write) = tcp.split();
                drop(tokio::io::copy(&mut read, &mut write).await);
                drop(write.shutdown().await);
            });
        }
    });
    address
}

/// A certificate authority.
pub(crate) struct Authority {
    pub(crate) root: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    /// Leaf and root, as our processes send them.
    pub(crate) fn issue(&self, uri: &str) -> Credentials {
        let key = KeyPair::generate();
        let leaf = self.certify(uri, &key, Duration::from_secs(3600));
        Credentials::new(vec![leaf, self.root.clone()], key)
    }

    /// A certificate for this key that ends after so long.
    pub(crate) fn certify(
        &self,
        uri: &str,
        key: &KeyPair,
        life: Duration,
    ) -> CertificateDer<'static> {
        let mut params = CertificateParams::default();
        params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
        params.not_after = (SystemTime::now() + life).into();
        params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let leaf = params.signed_by(key.signing(), &self.issuer).unwrap();
        leaf.der().clone()
    }
}

type MakeClientTls = Box<dyn Fn(&Credentials) -> ClientTls>;

fn tls(authority: &Arc<Authority>) -> (ServerTls, MakeClientTls) {
    let authority = Arc::clone(authority);
    let credentials = authority.issue("spiffe://secure-gateway/node/n1");
    let certificate = ServerCertificate::new(&credentials).unwrap();
    let auth = ClientAuth::AnySelfSigned;
    let server = server_config(&certificate, &auth, &[acceptor::ALPN]).unwrap();
    let client = move |credentials: &Credentials| {
        let trust = Trust::Roots(vec![authority.root.clone()]);
        client_config(&trust, PeerKind::Node, Some(credentials), &[acceptor::ALPN]).unwrap()
    };
    (server, Box::new(client))
}

/// Sends and gets back the same.
pub(crate) async fn exchange(user: &mut TcpStream, text: &[u8]) {
    let mut back = vec![0; text.len()];
    let exchange = async {
        user.write_all(text).await?;
        user.read_exact(&mut back).await
    };
    timeout(LIMIT, exchange).await.unwrap().unwrap();
    assert_eq!(back, text);
}

/// Reads this text.
pub(crate) async fn expect(user: &mut TcpStream, text: &[u8]) {
    let mut got = vec![0; text.len()];
    timeout(LIMIT, user.read_exact(&mut got))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(got, text);
}

/// Waits for the reset that this connection should get.
pub(crate) async fn expect_reset(user: &mut TcpStream) {
    let result = timeout(LIMIT, user.read(&mut [0; 1])).await.unwrap();
    let kind = result.expect_err("a reset, not an end").kind();
    assert_eq!(kind, std::io::ErrorKind::ConnectionReset);
}
