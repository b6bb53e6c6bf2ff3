//! Takes connections at the tunnel listener: TLS, hello, admission; then the session of a new tunnel, or the hand-over to
//! the tunnel that the client resumes.
//!
//! Whatever goes wrong before that is counted by reason, logged without a secret, and
//! ends only the connection in question. Every step has a time limit.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sg_model::{AclVersion, Gateway};
use sg_proto::tunnel::{Accepted, ClientHello, Refused, ServerHello, server_hello};
use sg_relay::proxy_protocol::HeaderError;
use sg_relay::{ByteCounters, TunnelTransport};
use sg_runtime::crypto;
use sg_runtime::tasks::TaskPool;
use sg_runtime::tls::{self, RecordStream, RecordWise, ServerStream, ServerTls};
use sg_tunnel_io::resume::Secret;
use sg_tunnel_io::{Side, Transport, socket, start_with};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use super::Session;
use super::admit::{Admitted, Refusal, admit, printable, withdrawn};
use super::credential::ProvedKey;
use super::hello::{self, HelloError};
use super::refusals::Refusals;
use super::resume::{self, Decision, Resumption, Ticket};
use super::session::{self, Live, Presence, Told};
use super::updates::acl_of;
use crate::listener::of_one_connection;
use crate::metrics::Resume;
use crate::node::{self, Node};
use sg_runtime::places::Place;

/// A connection that may become one of a tunnel.
type Connection = ServerStream<RecordWise<TcpStream>>;

/// The application protocol of tunnels.
pub(crate) const ALPN: &[u8] = b"sg-tunnel/1";
/// Time for the hello of either side.
const HELLO_LIMIT: Duration = Duration::from_secs(10);
/// Time for the end of a refused connection.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes connections until `stop` is cancelled. Their tunnels live on in `tunnels`.
pub(crate) async fn run(
    node: Arc<Node>,
    listener: TcpListener,
    tls: ServerTls,
    tunnels: TaskPool,
    stop: CancellationToken,
) {
    let refusals = Arc::new(Refusals::default());
    loop {
        // Accepting loses nothing when it is cancelled.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, address)) => {
                let Some(place) = node.half_open.enter(address.ip()) else {
                    refusals.note(&node, "half-open-limit", address, None);
                    continue;
                };
                let owned = (Arc::clone(&node), Arc::clone(&refusals));
                let connection = connection(owned.0, owned.1, tls.clone(), tcp, address, place);
                if tunnels.spawn(connection).is_err() {
                    refusals.note(&node, "limit", address, None);
                }
            }
            Err(error) => {
                node.metrics.accept_error();
                tracing::warn!(%error, "cannot accept at the tunnel listener");
                if !of_one_connection(&error) {
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }
}

async fn connection(
    node: Arc<Node>,
    refusals: Arc<Refusals>,
    tls: ServerTls,
    mut tcp: TcpStream,
    peer: SocketAddr,
    place: Place,
) {
    let address = match node.balancers.ends(&mut tcp, peer).await {
        Ok(ends) => ends.user,
        Err(HeaderError::Probe) => return,
        Err(error) => {
            let detail = error.to_string();
            return refusals.note(&node, error.as_str(), peer, Some(&detail));
        }
    };
    let place = if address == peer {
        Some(place)
    } else {
        // Those behind a balancer are many, and each has a share of its own.
        drop(place);
        node.half_open.enter(address.ip())
    };
    let Some(place) = place else {
        return refusals.note(&node, "half-open-limit", address, None);
    };
    match Box::pin(handshake(&node, &tls, tcp, address)).await {
        Ok(Outcome::New(live)) => {
            drop(place);
            session::run(&node, *live).await;
        }
        // The tunnel's own task goes on with it.
        Ok(Outcome::Resumed) => {}
        Err(failure) => refusals.note(&node, failure.reason, address, failure.detail.as_deref()),
    }
}

/// What a connection became.
enum Outcome {
    New(Box<Live>),
    Resumed,
}

/// Why a connection did not become a tunnel.
struct Failure {
    reason: &'static str,
    /// For the log; never a secret.
    detail: Option<String>,
}

impl Failure {
    fn new(reason: &'static str, detail: impl ToString) -> Self {
        Self {
            reason,
            detail: Some(detail.to_string()),
        }
    }
}

async fn handshake(
    node: &Node,
    tls: &ServerTls,
    tcp: TcpStream,
    address: SocketAddr,
) -> Result<Outcome, Failure> {
    socket::tune(&tcp).map_err(|error| Failure::new("io", error))?;
    let (mut io, peer) = tls::accept_records(tls, tcp)
        .await
        .map_err(|error| Failure::new(error.reason(), error))?;
    if peer.alpn.as_deref() != Some(ALPN) {
        return Err(Failure::new("no-alpn", "the client offers no sg-tunnel/1"));
    }
    let key =
        ProvedKey::of(&peer).ok_or(Failure::new("no-certificate", "no client certificate"))?;
    let hello = match timeout(HELLO_LIMIT, hello::read(&mut io)).await {
        Err(_) => return Err(Failure::new("hello-timeout", "no hello in time")),
        Ok(Err(error @ HelloError::Io(_))) => return Err(Failure::new("hello-closed", error)),
        Ok(Err(error)) => {
            answer_refusal(&mut io, Refusal::BadRequest.answer()).await;
            return Err(Failure::new("bad-request", error));
        }
        Ok(Ok(hello)) => hello,
    };
    let config = node.config();
    let admitted = if node.shutdown.is_draining() {
        Err(Refusal::Draining)
    } else {
        admit(&hello, &key, &node.issuers, &config, node::now())
    };
    let Admitted {
        gateway,
        credential,
    } = match admitted {
        Ok(admitted) => admitted,
        Err(refusal) => return Err(refuse(&mut io, refusal, &hello, &key.client_id).await),
    };
    let acl = acl_of(&config, &gateway.id);
    let presence = Presence {
        address,
        connected: node::now(),
        credential,
        told: Told {
            // The first update tells it.
            trust: Arc::default(),
            acl: acl.version,
            endpoints: node.for_clients.endpoints(),
        },
    };
    let answer = Accepted {
        node_id: node.id.to_string(),
        node_name: node.name.to_string(),
        gateway_id: gateway.id.to_string(),
        gateway_name: gateway.name.to_string(),
        acl: Some((&acl).into()),
        endpoints: Some((*presence.told.endpoints).clone()),
        ..Accepted::default()
    };
    let offer = hello.resume.as_ref();
    let decision = offer.map_or(Decision::New, |offer| {
        resume::decide(
            &node.registry,
            &gateway.id,
            &key.client_id,
            &hello,
            offer,
            &io,
        )
    });
    if offer.is_some() && !matches!(decision, Decision::Resume(..)) {
        node.registry.count_resume(&gateway.id, Resume::Refused);
    }
    match decision {
        Decision::WrongProof => {
            Err(refuse(&mut io, Refusal::ResumeProof, &hello, &key.client_id).await)
        }
        Decision::Resume(session, ticket) => {
            let enforced = enforced(&hello);
            resume_on(node, io, answer, &session, &ticket, presence, enforced).await
        }
        Decision::New => {
            let live = begin(node, io, answer, &hello, gateway, key, presence).await?;
            Ok(Outcome::New(Box::new(live)))
        }
    }
}

/// Tells the client that it is refused, and why in as many words as are good for it.
async fn refuse(
    io: &mut Connection,
    refusal: Refusal,
    hello: &ClientHello,
    client_id: &str,
) -> Failure {
    answer_refusal(io, refusal.answer()).await;
    let gateway = named(&hello.gateway);
    let detail = format!("gateway {gateway:?}, client {client_id}");
    Failure::new(refusal.as_str(), detail)
}

/// Begins a tunnel on a connection.
async fn begin(
    node: &Node,
    mut io: Connection,
    answer: Accepted,
    hello: &ClientHello,
    gateway: &Gateway,
    key: ProvedKey,
    presence: Presence,
) -> Result<Live, Failure> {
    let (resumption, secret) = Resumption::new();
    let resume_time = gateway.resume_time;
    let answer = with_secret(answer, &resumption, &secret, resume_time);
    answer_within(&mut io, server_hello::Answer::Accepted(answer))
        .await
        .map_err(|error| Failure::new("hello-closed", error))?;
    let config = node.registry.settings.of(resume_time);
    let io = take_over(io).map_err(|error| Failure::new("tls-take-over", error))?;
    let (tunnel, incoming, driver) = start_with(io, Side::Node, config);
    let session = Session {
        number: node.registry.next_number(),
        gateway: gateway.id.clone(),
        gateway_name: gateway.name.clone(),
        client_id: Arc::clone(&key.client_id),
        key,
        client_name: printable(&hello.client_name),
        boot_id: crypto::hex(&hello.boot_id),
        connection: hello.connection,
        software: printable(&hello.software),
        presence: Mutex::new(presence),
        resumption,
        resume_time,
        tunnel,
        bytes: Arc::new(ByteCounters::new()),
        acl_applied: Mutex::new(enforced(hello)),
        listeners: Mutex::default(),
        active: AtomicU32::new(0),
    };
    Ok(Live {
        session: Arc::new(session),
        incoming,
        driver,
        served: node.served.subscribe(),
    })
}

/// Goes on with a tunnel on a new connection.
async fn resume_on(
    node: &Node,
    mut io: Connection,
    answer: Accepted,
    session: &Session,
    ticket: &Ticket,
    presence: Presence,
    enforced: AclVersion,
) -> Result<Outcome, Failure> {
    let answer = Accepted {
        resumed: true,
        ..with_secret(
            answer,
            &session.resumption,
            &ticket.secret,
            session.resume_time,
        )
    };
    answer_within(&mut io, server_hello::Answer::Accepted(answer))
        .await
        .map_err(|error| Failure::new("hello-closed", error))?;
    // What was admitted by the hello may have been withdrawn while the answer was on its way.
    let config = node.config();
    let gateway = config.gateway(&session.gateway);
    if let Some(why) = withdrawn(
        gateway,
        &session.client_id,
        &presence.credential,
        node::now(),
    ) {
        return Err(Failure::new("resume-too-late", why));
    }
    let io = take_over(io).map_err(|error| Failure::new("tls-take-over", error))?;
    session
        .resume(ticket, presence, enforced, io)
        .map_err(|error| Failure::new("resume-too-late", error))?;
    node.registry
        .count_resume(&session.gateway, Resume::Resumed);
    if node.shutdown.is_draining() {
        // Admitted just before the drain began, and handed over after all tunnels were told of it.
        session.drain();
    }
    Ok(Outcome::Resumed)
}

/// From here on the connection carries a tunnel.
fn take_over(io: Connection) -> Result<Box<dyn Transport>, tls::TakeOverError> {
    RecordStream::take_over(io).map(|records| TunnelTransport::boxed(records, |tcp| tcp))
}

fn with_secret(
    answer: Accepted,
    resumption: &Resumption,
    secret: &Secret,
    resume_time: Duration,
) -> Accepted {
    Accepted {
        tunnel_id: resumption.id.as_bytes().to_vec(),
        resume_secret: secret.expose().to_vec(),
        resume_ms: u32::try_from(resume_time.as_millis()).unwrap_or(u32::MAX),
        ..answer
    }
}

/// The gateway that a refused client asked for, for the log. People put tokens into the wrong place.
fn named(gateway: &str) -> String {
    if gateway.contains("sgt_") || gateway.contains("sga_") || gateway.contains("sgj_") {
        return "[a token]".to_owned();
    }
    printable(gateway)
}

/// The version that the client has from an earlier tunnel and enforces meanwhile.
fn enforced(hello: &ClientHello) -> AclVersion {
    AclVersion {
        epoch: hello.acl_epoch,
        generation: hello.acl_generation,
    }
}

async fn answer_within(io: &mut Connection, answer: server_hello::Answer) -> io::Result<()> {
    let hello = ServerHello {
        answer: Some(answer),
    };
    timeout(HELLO_LIMIT, hello::write(io, &hello))
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

/// Tells the client why, and ends the connection so that it can read that.
async fn answer_refusal(io: &mut Connection, refused: Refused) {
    let told = answer_within(io, server_hello::Answer::Refused(refused)).await;
    if told.is_ok() {
        // A failure here changes nothing: the connection ends in any case.
        drop(timeout(CLOSE_LIMIT, io.shutdown()).await);
    }
}
