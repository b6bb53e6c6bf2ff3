//! From an address to an accepted tunnel: dial, TLS, identity, hello. Everything has a time limit,
//! and every failure one word and an opinion on whether trying again soon can help.

use std::io;
use std::time::Duration;

use prost::Message as _;
use sg_model::{HostPort, NodeId};
use sg_proto::tunnel::{Accepted, ClientHello, Refused, ServerHello, server_hello};
use sg_relay::{DialError, TunnelTransport};
use sg_runtime::telemetry::chain;
use sg_runtime::tls::{self, ClientTls, PeerInfo, RecordStream, RecordWise};
use sg_tunnel_io::Transport;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::proxy::{self, Carrier, Proxy, ProxyError};
use crate::supervisor::Retry;

/// The protocol that a node must agree on in the TLS handshake.
pub const ALPN: &[u8] = b"sg-tunnel/1";
/// Version that stands in the hello.
pub const VERSION: u32 = 1;
const DIAL_TIMEOUT: Duration = Duration::from_secs(10);
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// A client's hello may be so long.
const LONGEST_CLIENT_HELLO: usize = 16 * 1024;
/// A node's answer holds a whole access control list.
const LONGEST_SERVER_HELLO: u32 = 4 * 1024 * 1024;

/// A TLS connection to a node.
pub type NodeStream = tls::ClientStream<RecordWise<Carrier>>;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No TCP connection.
    #[error("cannot connect: {0}")]
    Dial(#[from] DialError),
    /// No way through the proxy.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// No TLS connection, or not to somebody trusted.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The connection is no good for a tunnel.
    #[error(transparent)]
    TakeOver(#[from] tls::TakeOverError),
    /// The other end is trusted and speaks another protocol.
    #[error("TLS works, but this is no tunnel port (9000 by default)")]
    Protocol,
    /// The node's certificate and its words do not agree on who it is, or it names nobody.
    #[error("the node's certificate does not say which node it is")]
    Identity,
    /// The node did not answer the hello in time.
    #[error("the node did not answer the hello in time")]
    HelloTimeout,
    /// The connection ended during the hello.
    #[error("the connection ended during the hello: {0}")]
    HelloLost(#[source] tls::Error),
    /// The hello cannot be sent or the answer cannot be understood.
    #[error("the hello failed: {0}")]
    Hello(&'static str),
    /// The node does not want this client.
    #[error("refused: {message}")]
    Refused {
        /// The node's word, one of a known set.
        reason: &'static str,
        /// Its sentence, made printable.
        message: String,
        /// Whether it asks to come back.
        retry: bool,
    },
    /// The node does not want this client's certificate, and is to see its token next.
    #[error("the node does not accept the client's certificate")]
    CertificateRefused,
    /// The tunnel is not wanted any more.
    #[error("not wanted any more")]
    Unwanted,
}

impl ConnectError {
    /// One stable word for the log.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Dial(error) => error.as_str(),
            Self::Proxy(error) => error.reason(),
            Self::Tls(error) | Self::HelloLost(error) => error.reason(),
            Self::TakeOver(_) => "tls-take-over",
            Self::Protocol => "wrong-protocol",
            Self::Identity => "no-identity",
            Self::HelloTimeout => "hello-timeout",
            Self::Hello(_) => "bad-hello",
            Self::Refused { reason, .. } => reason,
            Self::CertificateRefused => "certificate-refused",
            Self::Unwanted => "unwanted",
        }
    }

    /// Whether the same attempt can succeed soon.
    #[must_use]
    pub fn retry(&self) -> Retry {
        let soon = match self {
            Self::Dial(_)
            | Self::TakeOver(_)
            | Self::HelloTimeout
            | Self::CertificateRefused
            | Self::Unwanted => true,
            Self::Proxy(error) => error.retryable(),
            Self::Tls(error) | Self::HelloLost(error) => error.retryable(),
            Self::Protocol | Self::Identity | Self::Hello(_) => false,
            Self::Refused { retry, .. } => *retry,
        };
        if soon { Retry::Soon } else { Retry::Later }
    }

    /// The error with its causes, for the log.
    #[must_use]
    pub fn text(&self) -> String {
        chain(self)
    }
}

/// Dials, through the proxy if there is one, and runs the TLS handshake; answers who is at the other end.
///
/// # Errors
/// [`ConnectError`].
pub async fn connect(
    address: &HostPort,
    tls: &ClientTls,
    through: Option<&Proxy>,
) -> Result<(NodeStream, NodeId), ConnectError> {
    let carrier = match through {
        None => Carrier::Left(sg_relay::dial(address, DIAL_TIMEOUT, |_| true).await?),
        Some(proxy) => proxy.connect(address, DIAL_TIMEOUT).await?,
    };
    if let Err(error) = sg_tunnel_io::socket::tune(proxy::socket(&carrier)) {
        tracing::debug!(%address, %error, "the socket's options could not be set");
    }
    let (stream, peer) = tls::connect_records(tls, carrier, &address.host().to_string())
        .await
        .map_err(of_handshake)?;
    if peer.alpn.as_deref() != Some(ALPN) {
        return Err(ConnectError::Protocol);
    }
    let node = node_of(&peer).ok_or(ConnectError::Identity)?;
    Ok((stream, node))
}

/// Whoever speaks other protocols only says so by an alert.
fn of_handshake(error: tls::Error) -> ConnectError {
    match error {
        tls::Error::Alert("NoApplicationProtocol") => ConnectError::Protocol,
        error => error.into(),
    }
}

/// From here on the connection carries a tunnel.
///
/// # Errors
/// [`ConnectError::TakeOver`].
pub fn take_over(stream: NodeStream) -> Result<Box<dyn Transport>, ConnectError> {
    let records = RecordStream::take_over(stream)?;
    Ok(TunnelTransport::boxed(records, proxy::socket))
}

fn node_of(peer: &PeerInfo) -> Option<NodeId> {
    NodeId::new(peer.identity.as_ref()?.id.as_str()).ok()
}

/// Says hello and waits for the answer.
///
/// # Errors
/// [`ConnectError`]; also when the node calls itself something else than its certificate does.
pub async fn hello<T>(
    stream: &mut T,
    node: &NodeId,
    hello: &ClientHello,
) -> Result<Accepted, ConnectError>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let exchange = async {
        send(stream, hello).await?;
        receive(stream).await
    };
    let answer = timeout(HELLO_TIMEOUT, exchange)
        .await
        .map_err(|_| ConnectError::HelloTimeout)??;
    match answer.answer {
        Some(server_hello::Answer::Accepted(accepted)) if accepted.node_id == node.as_str() => {
            Ok(accepted)
        }
        Some(server_hello::Answer::Accepted(_)) => Err(ConnectError::Identity),
        Some(server_hello::Answer::Refused(refused)) => Err(refusal(&refused)),
        None => Err(ConnectError::Hello("the answer is empty")),
    }
}

async fn send<T>(stream: &mut T, hello: &ClientHello) -> Result<(), ConnectError>
where
    T: AsyncWrite + Unpin,
{
    let body = hello.encode_to_vec();
    let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
    if body.len() > LONGEST_CLIENT_HELLO {
        return Err(ConnectError::Hello("it is too long"));
    }
    let mut message = length.to_be_bytes().to_vec();
    message.extend_from_slice(&body);
    stream.write_all(&message).await.map_err(lost)?;
    stream.flush().await.map_err(lost)
}

async fn receive<T>(stream: &mut T) -> Result<ServerHello, ConnectError>
where
    T: AsyncRead + Unpin,
{
    let length = stream.read_u32().await.map_err(lost)?;
    if length > LONGEST_SERVER_HELLO {
        return Err(ConnectError::Hello("the answer is too long"));
    }
    // Grows with what arrives, not with what was announced.
    let mut body = Vec::new();
    stream
        .take(length.into())
        .read_to_end(&mut body)
        .await
        .map_err(lost)?;
    if body.len() as u64 != u64::from(length) {
        return Err(lost(io::ErrorKind::UnexpectedEof.into()));
    }
    ServerHello::decode(body.as_slice())
        .map_err(|_| ConnectError::Hello("the answer cannot be understood"))
}

/// With TLS 1.3 a node's refusal of the handshake arrives only here.
fn lost(error: io::Error) -> ConnectError {
    ConnectError::HelloLost(tls::Error::from_io(error))
}

fn refusal(refused: &Refused) -> ConnectError {
    const WORDS: [&str; 12] = [
        "unauthenticated",
        "token-expired",
        "gateway-disabled",
        "client-revoked",
        "certificate-expired",
        "certificate-withdrawn",
        "unknown-gateway",
        "version",
        "draining",
        "limit",
        "resume-proof",
        "bad-request",
    ];
    let reason = WORDS
        .into_iter()
        .find(|word| *word == refused.reason)
        .unwrap_or("refused");
    let message = refused
        .message
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    ConnectError::Refused {
        reason,
        message,
        retry: refused.retry,
    }
}
