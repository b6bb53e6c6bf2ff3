//! The end that opens a TLS connection.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::error::{Error, SetupError};
use super::provider::{VERSIONS, provider};
use super::records::RecordWise;
use super::trust::{Credentials, Trust, root_store};
use super::verify::{Anchor, IdentityVerifier};
use super::{CertificateDer, HANDSHAKE_TIMEOUT, PeerInfo, protocols};
use crate::identity::{self, PeerKind};

/// A TLS connection that this process opened.
pub type ClientStream<T = TcpStream> = tokio_rustls::client::TlsStream<T>;

/// How to open TLS connections; cheap to clone, and clones share their session tickets.
#[derive(Debug, Clone)]
pub struct ClientTls(Arc<ClientConfig>);

impl ClientTls {
    pub(super) fn of(config: ClientConfig) -> Self {
        Self(Arc::new(config))
    }
}

/// Whether a server of this kind that shows this chain would be trusted, apart from proving that the key is its own.
///
/// # Errors
/// [`SetupError`]: the CA file cannot be used.
pub fn would_trust(
    trust: &Trust,
    kind: PeerKind,
    chain: &[CertificateDer<'_>],
) -> Result<bool, SetupError> {
    let verifier = IdentityVerifier::new(anchor(trust)?, kind);
    Ok(verifier.accepts(chain))
}

fn anchor(trust: &Trust) -> Result<Anchor, SetupError> {
    Ok(match trust {
        Trust::Ca(path) => Anchor::Roots(root_store(&identity::read_certificates(path)?)?),
        Trust::Roots(roots) => Anchor::Roots(root_store(roots)?),
        Trust::Pin(pin) => Anchor::Pin(*pin),
    })
}

/// Trusts servers of kind `expected` under `trust`; shows `credentials` if the server asks; offers
/// the protocols of `alpn` (none if empty).
///
/// # Errors
/// [`SetupError`]: a CA file or the credentials cannot be used.
pub fn client_config(
    trust: &Trust,
    expected: PeerKind,
    credentials: Option<&Credentials>,
    alpn: &[&[u8]],
) -> Result<ClientTls, SetupError> {
    let anchor = anchor(trust)?;
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(SetupError::Credentials)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(IdentityVerifier::new(anchor, expected)));
    let mut config = match credentials {
        None => builder.with_no_client_auth(),
        Some(credentials) => builder
            .with_client_auth_cert(credentials.chain.clone(), credentials.key.private_der())
            .map_err(SetupError::Credentials)?,
    };
    config.alpn_protocols = protocols(alpn);
    Ok(ClientTls::of(config))
}

/// Runs the client's side of the handshake within [`HANDSHAKE_TIMEOUT`].
///
/// `server_name` is sent as a hint (SNI) if it is a DNS name; it is never verified.
///
/// # Errors
/// [`Error`].
pub async fn connect<T>(
    tls: &ClientTls,
    io: T,
    server_name: &str,
) -> Result<(ClientStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    connect_within(HANDSHAKE_TIMEOUT, tls, io, server_name).await
}

/// [`connect`] with a time limit of the caller's.
///
/// # Errors
/// [`Error`].
pub async fn connect_within<T>(
    limit: Duration,
    tls: &ClientTls,
    io: T,
    server_name: &str,
) -> Result<(ClientStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    handshake(limit, Arc::clone(&tls.0), io, server_name).await
}

/// [`connect`] for a connection whose records will be taken over by [`super::RecordStream`].
///
/// # Errors
/// [`Error`].
pub async fn connect_records<T>(
    tls: &ClientTls,
    io: T,
    server_name: &str,
) -> Result<(ClientStream<RecordWise<T>>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let io = RecordWise::new(io);
    let mut config = ClientConfig::clone(&tls.0);
    config.key_log = io.key_log();
    config.enable_secret_extraction = true;
    handshake(HANDSHAKE_TIMEOUT, Arc::new(config), io, server_name).await
}

async fn handshake<T>(
    limit: Duration,
    config: Arc<ClientConfig>,
    io: T,
    server_name: &str,
) -> Result<(ClientStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    // A name that is no DNS name (an underscore, say) can be dialled all the same.
    let name = ServerName::try_from(server_name.to_owned())
        .or_else(|_| ServerName::try_from("secure-gateway.invalid"))
        .expect("invariant: the constant is a DNS name");
    let handshake = tokio_rustls::TlsConnector::from(config).connect(name, io);
    let stream = match tokio::time::timeout(limit, handshake).await {
        Err(_) => return Err(Error::Timeout),
        Ok(result) => result.map_err(Error::from_io)?,
    };
    let peer = PeerInfo::of(stream.get_ref().1, true);
    Ok((stream, peer))
}
