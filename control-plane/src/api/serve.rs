//! Takes connections, makes TLS of them, and hands them to tonic together with what the handshake
//! proved. Every number of connections, streams and bytes has a limit here.

use std::future::Future as _;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use sg_proto::api::acls_server::AclsServer;
use sg_proto::api::audit_server::AuditServer;
use sg_proto::api::certificate_authority_server::CertificateAuthorityServer;
use sg_proto::api::clients_server::ClientsServer;
use sg_proto::api::destinations_server::DestinationsServer;
use sg_proto::api::gateways_server::GatewaysServer;
use sg_proto::api::nodes_server::NodesServer;
use sg_proto::api::system_server::SystemServer;
use sg_proto::api::tokens_server::TokensServer;
use sg_proto::node::enrollment_server::EnrollmentServer;
use sg_proto::node::node_sync_server::NodeSyncServer;
use sg_runtime::identity::{PeerIdentity, PeerKind};
use sg_runtime::net;
use sg_runtime::places::{Place, Places};
use sg_runtime::tasks::TaskPool;
use sg_runtime::tls::{self, ServerStream, ServerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::time::{Sleep, sleep};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::transport::server::Connected;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::Api;
use super::auth::Guard;
use super::failures::Failures;
use super::refusals::Refusals;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 8192;
/// TLS handshakes at a time; each ends after ten seconds.
const MAX_HANDSHAKES: usize = 1024;
/// Connections at a time over which nobody has proved anything yet.
const MAX_STRANGERS: u32 = 2048;
/// The same of one address.
const MAX_STRANGERS_PER_ADDRESS: u32 = 256;
const MAX_MESSAGE: usize = 4 * 1024 * 1024;
/// A message of somebody who has proved nothing.
const MAX_FIRST_MESSAGE: usize = 16 * 1024;
/// A report of a node with very many tunnels.
const MAX_NODE_MESSAGE: usize = 16 * 1024 * 1024;
const MAX_STREAMS: u32 = 1024;
const MAX_HEADERS: u32 = 16 * 1024;

/// Services as health reports them; the empty name is the whole process.
const SERVICES: [&str; 12] = [
    "",
    "securegateway.v1.Gateways",
    "securegateway.v1.Destinations",
    "securegateway.v1.Acls",
    "securegateway.v1.Audit",
    "securegateway.v1.CertificateAuthority",
    "securegateway.v1.Clients",
    "securegateway.v1.Nodes",
    "securegateway.v1.Tokens",
    "securegateway.v1.System",
    "securegateway.node.v1.Enrollment",
    "securegateway.node.v1.NodeSync",
];

/// A connection over which nobody has proved anything for so long ends, so that strangers cannot
/// take all places.
const STRANGER: Duration = Duration::from_secs(30);

/// What is known of a connection; an extension of every request that came over it.
#[derive(Debug, Clone)]
pub struct ConnectionInfo {
    /// Where it comes from.
    pub remote: SocketAddr,
    /// Whether a certificate or a token was proved over it.
    pub proved: Arc<AtomicBool>,
    /// How often the caller was told that too much has failed; the second time ends the connection.
    pub strikes: Arc<AtomicUsize>,
    /// Whose certificate it proved, if one of ours.
    pub identity: Option<Arc<PeerIdentity>>,
}

/// A connection after its handshake. It gives its place back when dropped.
#[derive(Debug)]
pub struct Connection {
    stream: ServerStream,
    info: ConnectionInfo,
    /// When a stranger has to go, and the place it takes among strangers; `None` once it is none.
    stranger: Option<(Pin<Box<Sleep>>, Place)>,
    _place: OwnedSemaphorePermit,
}

impl Connection {
    /// Whether the time of a stranger is over. Wakes the reading task when it will be.
    fn expired(&mut self, cx: &mut Context<'_>) -> bool {
        if self.info.proved.load(Ordering::Relaxed) {
            self.stranger = None;
        }
        let timer = self.stranger.as_mut();
        timer.is_some_and(|(timer, _)| timer.as_mut().poll(cx).is_ready())
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionInfo;

    fn connect_info(&self) -> ConnectionInfo {
        self.info.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.info.strikes.load(Ordering::Relaxed) > 1 {
            let text = "too many failed authentications";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, text)));
        }
        if self.expired(cx) {
            let text = "nobody has proved anything over this connection";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, text)));
        }
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Accepts until `draining`; the connections come out of the receiver of `accepted`.
///
/// # Errors
/// The listener fails for good.
pub async fn accept(
    listener: TcpListener,
    tls: watch::Receiver<ServerTls>,
    accepted: mpsc::Sender<io::Result<Connection>>,
    draining: CancellationToken,
) -> io::Result<()> {
    let handshakes = TaskPool::new("TLS handshake", MAX_HANDSHAKES);
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Places::new(MAX_STRANGERS, MAX_STRANGERS_PER_ADDRESS);
    loop {
        // Cancel safe: a connection that was not taken stays in the system's queue.
        let result = tokio::select! {
            () = draining.cancelled() => return Ok(()),
            result = listener.accept() => result,
        };
        let (tcp, remote) = match result {
            Ok(connection) => connection,
            Err(error) if net::accept_error_is_transient(&error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(Duration::from_millis(20)).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let place = Arc::clone(&places).try_acquire_owned();
        let (Ok(place), Ok(slot)) = (place, handshakes.reserve()) else {
            tracing::warn!(%remote, "too many connections; one is turned away");
            continue;
        };
        let Some(stranger) = strangers.enter(remote.ip()) else {
            tracing::debug!(%remote, "too many connections that have proved nothing; one is turned away");
            continue;
        };
        // What holds at this moment: the authority may be another one than before.
        let (tls, accepted) = (tls.borrow().clone(), accepted.clone());
        slot.spawn(async move {
            match handshake(tcp, remote, &tls, place, stranger).await {
                // The server is gone only when the process ends.
                Ok(connection) => drop(accepted.send(Ok(connection)).await),
                Err(error) => tracing::debug!(%remote, %error, "TLS handshake failed"),
            }
        });
    }
}

async fn handshake(
    tcp: TcpStream,
    remote: SocketAddr,
    tls: &ServerTls,
    place: OwnedSemaphorePermit,
    stranger: Place,
) -> Result<Connection, tls::Error> {
    if let Err(error) = net::set_nodelay(&tcp) {
        tracing::debug!(%remote, %error, "cannot tune the connection");
    }
    let (stream, peer) = tls::accept(tls, tcp).await?;
    let info = ConnectionInfo {
        remote,
        // A certificate of a client is one of ours too, and opens nothing here.
        proved: Arc::new(AtomicBool::new(
            peer.identity
                .as_ref()
                .is_some_and(|identity| identity.kind == PeerKind::Node),
        )),
        strikes: Arc::default(),
        identity: peer.identity.map(Arc::new),
    };
    Ok(Connection {
        stream,
        info,
        stranger: Some((Box::pin(sleep(STRANGER)), stranger)),
        _place: place,
    })
}

/// Sets what the health service says of everything.
pub async fn set_health(reporter: &HealthReporter, serving: bool) {
    let status = if serving {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    };
    for service in SERVICES {
        reporter.set_service_status(service, status).await;
    }
}

/// Ends the streams of all who watch the health.
pub async fn end_health(reporter: &mut HealthReporter) {
    for service in SERVICES {
        reporter.clear_service_status(service).await;
    }
}

/// Serves what `connections` bring, until `draining` and then until all requests are answered.
///
/// # Errors
/// The descriptors cannot be read, or the server fails for good.
pub async fn serve(
    api: Api,
    reporter: HealthReporter,
    connections: mpsc::Receiver<io::Result<Connection>>,
    draining: CancellationToken,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let failures = Failures::default();
    let refusals = Refusals::default();
    macro_rules! public {
        ($server:ident) => {
            Guard::new(api.clone(), failures.clone(), refusals.clone(), |api| {
                $server::new(api).max_decoding_message_size(MAX_MESSAGE)
            })
        };
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sg_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?
        .max_decoding_message_size(MAX_FIRST_MESSAGE);
    // What Python's and older tools speak.
    let reflection_alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(sg_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?
        .max_decoding_message_size(MAX_FIRST_MESSAGE);
    let health = tonic_health::pb::health_server::HealthServer::new(
        tonic_health::server::HealthService::from_health_reporter(reporter),
    )
    .max_decoding_message_size(MAX_FIRST_MESSAGE);
    Server::builder()
        .max_concurrent_streams(MAX_STREAMS)
        .http2_max_header_list_size(MAX_HEADERS)
        .http2_keepalive_interval(Some(Duration::from_secs(10)))
        .http2_keepalive_timeout(Some(Duration::from_secs(10)))
        .initial_stream_window_size(1024 * 1024)
        .initial_connection_window_size(4 * 1024 * 1024)
        .add_service(public!(GatewaysServer))
        .add_service(public!(DestinationsServer))
        .add_service(public!(AclsServer))
        .add_service(public!(AuditServer))
        .add_service(public!(CertificateAuthorityServer))
        .add_service(public!(ClientsServer))
        .add_service(public!(NodesServer))
        .add_service(public!(TokensServer))
        .add_service(public!(SystemServer))
        .add_service(
            EnrollmentServer::new(api.clone()).max_decoding_message_size(MAX_FIRST_MESSAGE),
        )
        .add_service(NodeSyncServer::new(api.clone()).max_decoding_message_size(MAX_NODE_MESSAGE))
        .add_service(health)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .serve_with_incoming_shutdown(ReceiverStream::new(connections), draining.cancelled_owned())
        .await?;
    Ok(())
}
