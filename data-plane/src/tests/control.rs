//! The control task against control planes that say what the test wants.

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use sg_model::{GatewayId, HostPort, NodeConfig, NodeId};
use sg_proto::convert::node::object_to_wire;
use sg_proto::node::node_sync_server::{NodeSync, NodeSyncServer};
use sg_proto::node::{
    Ack, AclChange, AclEdit, AclEditAnswer, AclEditResult, ControlMessage, Delta,
    DestinationStates, Hello, NodeMessage, Snapshot, Welcome, control_message, node_message,
};
use sg_runtime::identity::certificates_to_pem;
use sg_runtime::tls::{
    self, ClientAuth, ServerCertificate, ServerStream, ServerTls, server_config,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic::{Request, Response, Status, Streaming};

use super::rig::{Authority, LIMIT, node};
use crate::control::{Control, Own, channel};
use crate::edits::{Edit, EditDesk};
use crate::reconcile::testing::{config, gateway};
use crate::reconcile::{Applied, Reconciler};

type Outgoing = mpsc::Sender<Result<ControlMessage, Status>>;

/// What a test sees of all its control planes: which one, and what came.
type Seen = mpsc::Receiver<(usize, node_message::Message)>;

struct Fake {
    number: usize,
    id: String,
    seen: mpsc::Sender<(usize, node_message::Message)>,
    outgoing: watch::Sender<Option<Outgoing>>,
    down: Arc<AtomicBool>,
}

#[tonic::async_trait]
impl NodeSync for Fake {
    type SyncStream = ReceiverStream<Result<ControlMessage, Status>>;

    async fn sync(
        &self,
        request: Request<Streaming<NodeMessage>>,
    ) -> Result<Response<Self::SyncStream>, Status> {
        if self.down.load(Ordering::Relaxed) {
            return Err(Status::unavailable("down"));
        }
        let (outgoing, queue) = mpsc::channel(64);
        let welcome = control_message::Message::Welcome(Welcome {
            control_plane_id: self.id.clone(),
            ..Welcome::default()
        });
        send(&outgoing, welcome).await;
        self.outgoing.send_replace(Some(outgoing));
        let (seen, number) = (self.seen.clone(), self.number);
        #[allow(clippy::disallowed_methods, reason = "ends with the stream")]
        tokio::spawn(async move {
            let mut incoming = request.into_inner();
            while let Ok(Some(message)) = incoming.message().await {
                if let Some(message) = message.message {
                    drop(seen.send((number, message)).await);
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(queue)))
    }
}

async fn send(outgoing: &Outgoing, message: control_message::Message) {
    let message = ControlMessage {
        message: Some(message),
    };
    outgoing.send(Ok(message)).await.unwrap();
}

struct Plane {
    address: HostPort,
    outgoing: watch::Receiver<Option<Outgoing>>,
    down: Arc<AtomicBool>,
    end: watch::Sender<Option<Outgoing>>,
}

impl Plane {
    async fn say(&self, message: control_message::Message) {
        let outgoing = self.outgoing.borrow().clone().unwrap();
        send(&outgoing, message).await;
    }

    /// Ends its streams and takes no new ones.
    fn die(&self) {
        self.down.store(true, Ordering::Relaxed);
        self.end.send_replace(None);
    }
}

struct World {
    planes: Vec<Plane>,
    seen: Seen,
    desired: watch::Receiver<Arc<NodeConfig>>,
    /// Subscriptions, acknowledgements and counts that went past while waiting for something else.
    statuses: HashMap<usize, usize>,
    /// What each was told of destinations since its stream began.
    states: HashMap<usize, Vec<DestinationStates>>,
    /// Where clients' changes are handed in.
    edits: EditDesk,
    _data: tempfile::TempDir,
    _tasks: JoinSet<()>,
}

impl World {
    /// A node whose control planes have these ids.
    async fn new(ids: &[&str]) -> Self {
        sg_runtime::crypto::install();
        let authority = Authority::new();
        let (seen_by, seen) = mpsc::channel(1000);
        let mut tasks = JoinSet::new();
        let mut planes = Vec::new();
        for (number, id) in ids.iter().enumerate() {
            planes.push(start(number, id, &authority, seen_by.clone(), &mut tasks).await);
        }
        let (node, _) = node();
        let (desk, edits) = EditDesk::new();
        let data = tempfile::tempdir().unwrap();
        let (desired_tx, desired) = watch::channel(Arc::default());
        let (applied_tx, applied) = watch::channel(Arc::<Applied>::default());
        let local = "127.0.0.1".parse().unwrap();
        let reconciler = Reconciler::new(Arc::clone(&node), local, desired.clone(), applied_tx);
        let never = CancellationToken::new();
        tasks.spawn(reconciler.run(never.clone(), never.clone()));
        let control = Control {
            node,
            own: own(&authority, data.path()),
            hello: Hello::default(),
            configured: planes.iter().map(|plane| plane.address.clone()).collect(),
            known_file: data.path().join("control-planes"),
            desired: desired_tx,
            applied,
            questions: mpsc::channel(1).1,
            edits,
        };
        tasks.spawn(control.run(never));
        Self {
            planes,
            seen,
            desired,
            statuses: HashMap::new(),
            states: HashMap::new(),
            edits: desk,
            _data: data,
            _tasks: tasks,
        }
    }

    /// The next message that is no hello and no status.
    async fn next(&mut self) -> (usize, node_message::Message) {
        let next = async {
            loop {
                let (plane, message) = self.seen.recv().await.unwrap();
                match message {
                    node_message::Message::Hello(_) => {}
                    node_message::Message::Status(_) => {
                        *self.statuses.entry(plane).or_default() += 1;
                    }
                    node_message::Message::DestinationStates(states) => {
                        let told = self.states.entry(plane).or_default();
                        if states.first {
                            told.clear();
                        }
                        told.push(states);
                    }
                    message => return (plane, message),
                }
            }
        };
        timeout(LIMIT, next).await.unwrap()
    }

    async fn ack(&mut self, from: usize) -> Ack {
        match self.next().await {
            (plane, node_message::Message::Ack(ack)) if plane == from => ack,
            other => panic!("no acknowledgement but {other:?}"),
        }
    }
}

async fn start(
    number: usize,
    id: &str,
    authority: &Authority,
    seen: mpsc::Sender<(usize, node_message::Message)>,
    tasks: &mut JoinSet<()>,
) -> Plane {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string().parse().unwrap();
    let (end, outgoing) = watch::channel(None);
    let down = Arc::new(AtomicBool::new(false));
    let fake = Fake {
        number,
        id: id.to_owned(),
        seen,
        outgoing: end.clone(),
        down: Arc::clone(&down),
    };
    let (connections, incoming) = mpsc::channel(16);
    let tls = server(authority);
    tasks.spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            if let Ok((stream, _)) = tls::accept(&tls, tcp).await {
                connections
                    .send(Ok::<_, std::io::Error>(Connection(stream)))
                    .await
                    .unwrap();
            }
        }
    });
    tasks.spawn(async move {
        let router = Server::builder().add_service(NodeSyncServer::new(fake));
        router
            .serve_with_incoming(ReceiverStream::new(incoming))
            .await
            .unwrap();
    });
    Plane {
        address,
        outgoing,
        down,
        end,
    }
}

fn server(authority: &Authority) -> ServerTls {
    let credentials = authority.issue("spiffe://secure-gateway/control-plane/c1");
    let certificate = ServerCertificate::new(&credentials).unwrap();
    let auth = ClientAuth::OptionalCa(vec![authority.root.clone()]);
    server_config(&certificate, &auth, &[channel::ALPN]).unwrap()
}

fn own(authority: &Authority, data: &Path) -> Own {
    let credentials = authority.issue("spiffe://secure-gateway/node/n1");
    let pem = certificates_to_pem(std::slice::from_ref(&authority.root));
    std::fs::write(data.join("ca.pem"), pem).unwrap();
    let id = NodeId::new("n1").unwrap();
    Own::new(id, data.to_owned(), &credentials).unwrap()
}

struct Connection(ServerStream);

impl Connected for Connection {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

fn snapshot(config: &NodeConfig, nonce: u64) -> control_message::Message {
    control_message::Message::Snapshot(Snapshot {
        nonce,
        epoch: config.epoch(),
        revision: config.revision(),
        part: 0,
        parts: 1,
        objects: config
            .objects()
            .map(|(r, o)| object_to_wire(r, o))
            .collect(),
        digest: config.digest(),
    })
}

#[tokio::test]
async fn one_control_plane_is_the_source_and_the_other_takes_over_at_once() {
    let mut world = World::new(&["one", "two"]).await;
    let (source, message) = world.next().await;
    assert!(matches!(message, node_message::Message::Subscribe(s) if s.revision == 0));
    let other = 1 - source;

    let five = config(5, [gateway("g1", true)]);
    world.planes[source].say(snapshot(&five, 1)).await;
    let ack = world.ack(source).await;
    assert_eq!((ack.nonce, ack.revision, ack.resync), (1, 5, false));
    assert_eq!(**world.desired.borrow(), five);

    let lost = std::time::Instant::now();
    world.planes[source].die();
    let (plane, message) = world.next().await;
    let node_message::Message::Subscribe(subscribe) = message else {
        panic!("it subscribes elsewhere");
    };
    assert_eq!(
        (plane, subscribe.revision, subscribe.digest),
        (other, 5, five.digest())
    );
    assert!(
        lost.elapsed() < Duration::from_secs(1),
        "{:?}",
        lost.elapsed()
    );
    assert!(world.statuses.contains_key(&source), "both get the status");
    assert!(
        world.states[&source][0].first,
        "and hear of destinations first"
    );

    // It lags behind: what is older does not go backwards.
    let four = config(4, []);
    world.planes[other].say(snapshot(&four, 2)).await;
    let ack = world.ack(other).await;
    assert_eq!((ack.nonce, ack.revision), (2, 5));
    assert_eq!(**world.desired.borrow(), five);

    let gap = control_message::Message::Delta(Delta {
        nonce: 3,
        epoch: 1,
        from_revision: 7,
        to_revision: 8,
        ..Delta::default()
    });
    world.planes[other].say(gap).await;
    let ack = world.ack(other).await;
    assert!(ack.resync);
    assert_eq!(world.desired.borrow().revision(), 5);
}

/// One whose digests this node cannot follow, because it is of another version: it has everything to send each time.
#[tokio::test]
async fn a_control_plane_whose_state_never_fits_is_not_asked_all_the_time() {
    let mut world = World::new(&["one"]).await;
    assert!(matches!(
        world.next().await.1,
        node_message::Message::Subscribe(_)
    ));
    let begun = std::time::Instant::now();
    for nonce in 1..=6 {
        let control_message::Message::Snapshot(mut wrong) =
            snapshot(&config(5, [gateway("g1", true)]), nonce)
        else {
            panic!("a snapshot");
        };
        wrong.digest ^= 1;
        world.planes[0]
            .say(control_message::Message::Snapshot(wrong))
            .await;
        let ack = world.ack(0).await;
        assert_eq!((ack.nonce, ack.resync), (nonce, true));
    }
    assert!(
        begun.elapsed() > Duration::from_millis(50),
        "{:?}",
        begun.elapsed()
    );
    let good = config(5, [gateway("g1", true)]);
    world.planes[0].say(snapshot(&good, 7)).await;
    let ack = world.ack(0).await;
    assert_eq!((ack.nonce, ack.revision, ack.resync), (7, 5, false));
}

#[tokio::test]
async fn a_second_address_of_the_same_control_plane_is_not_a_second_one() {
    let mut world = World::new(&["same", "same"]).await;
    let (source, message) = world.next().await;
    assert!(matches!(message, node_message::Message::Subscribe(_)));
    let other = 1 - source;
    // The other address is given up: its stream ends, seen by its queue being closed.
    let outgoing = async {
        loop {
            let there = world.planes[other].outgoing.borrow().clone();
            match there {
                Some(outgoing) => return outgoing,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    };
    let outgoing = timeout(LIMIT, outgoing).await.unwrap();
    timeout(LIMIT, outgoing.closed()).await.unwrap();
    // And taken up when the first one is lost.
    world.planes[source].die();
    let (plane, message) = world.next().await;
    assert_eq!(plane, other);
    assert!(matches!(message, node_message::Message::Subscribe(_)));
}

/// Hands in a change, as a tunnel does.
fn wish(world: &World) -> oneshot::Receiver<AclEditResult> {
    let (answer, answered) = oneshot::channel();
    world
        .edits
        .hand_in(Edit {
            gateway: GatewayId::new("g1").unwrap(),
            client: "c1".into(),
            address: "192.0.2.1".parse().unwrap(),
            request_id: vec![1; 16],
            change: AclChange::default(),
            answer,
        })
        .unwrap();
    answered
}

impl World {
    /// The next change that a control plane is asked for.
    async fn asked(&mut self) -> (usize, AclEdit) {
        loop {
            match self.next().await {
                (plane, node_message::Message::AclEdit(asked)) => return (plane, asked),
                (_, node_message::Message::Subscribe(_)) => {}
                other => panic!("no change but {other:?}"),
            }
        }
    }

    async fn answer_edit(&self, plane: usize, number: u64, generation: u64) {
        let answer = AclEditAnswer {
            number,
            result: Some(AclEditResult {
                generation,
                ..AclEditResult::default()
            }),
        };
        self.planes[plane]
            .say(control_message::Message::AclEditAnswer(answer))
            .await;
    }
}

#[tokio::test]
async fn a_change_goes_up_and_to_another_control_plane_when_the_first_is_lost() {
    let mut world = World::new(&["one", "two"]).await;
    let (source, message) = world.next().await;
    assert!(matches!(message, node_message::Message::Subscribe(_)));
    let other = 1 - source;
    let answered = wish(&world);
    let (plane, asked) = world.asked().await;
    assert_eq!(plane, source);
    assert_eq!(
        (asked.gateway_id.as_str(), asked.client_id.as_str()),
        ("g1", "c1")
    );
    // An answer to what was not asked is for nobody.
    world.answer_edit(plane, asked.number + 1, 7).await;
    world.planes[source].die();
    let (plane, again) = world.asked().await;
    assert_eq!(
        (plane, &again),
        (other, &asked),
        "the same, so that it is made once"
    );
    world.answer_edit(plane, asked.number, 9).await;
    let answer = timeout(LIMIT, answered).await.unwrap().unwrap();
    assert_eq!((answer.reason.as_str(), answer.generation), ("", 9));
}

#[tokio::test]
async fn a_node_that_is_cut_off_says_so_and_one_without_answer_in_time() {
    let mut world = World::new(&["one"]).await;
    let (_, message) = world.next().await;
    assert!(matches!(message, node_message::Message::Subscribe(_)));
    let unanswered = wish(&world);
    world.asked().await;
    world.planes[0].die();
    let cut_off = async {
        loop {
            let answer = wish(&world).await.unwrap();
            if answer.reason == "cut-off" {
                return answer;
            }
        }
    };
    // What is handed in before the loss is noticed waits as the first one does.
    let answer = tokio::select! {
        answer = timeout(LIMIT, cut_off) => answer.unwrap(),
        first = unanswered => {
            let first = first.unwrap();
            assert_eq!((first.reason.as_str(), first.retry), ("outcome-unknown", true));
            let answer = wish(&world).await.unwrap();
            assert_eq!(answer.reason, "cut-off");
            answer
        }
    };
    assert!(answer.retry && answer.message.contains("nothing was changed"));
}
