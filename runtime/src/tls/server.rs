//! The end that accepts a TLS connection.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::ServerConfig;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use super::error::{Error, SetupError};
use super::provider::{VERSIONS, provider};
use super::records::RecordWise;
use super::trust::{Credentials, root_store};
use super::verify::AnyKeyVerifier;
use super::{CertificateDer, HANDSHAKE_TIMEOUT, PeerInfo, protocols};

/// A TLS connection that this process accepted.
pub type ServerStream<T = TcpStream> = tokio_rustls::server::TlsStream<T>;

/// What a server asks of the other end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClientAuth {
    /// Nothing.
    NoneAsked,
    /// A certificate that chains to one of these roots, or none. One that does not chain, or is not
    /// for client authentication, ends the handshake.
    OptionalCa(Vec<CertificateDer<'static>>),
    /// Any certificate, necessarily one: it proves a key, by which the client is known.
    AnySelfSigned,
}

/// How to accept TLS connections; cheap to clone.
#[derive(Debug, Clone)]
pub struct ServerTls {
    config: Arc<ServerConfig>,
    certificates_are_issued: bool,
}

/// The certificate that a server shows. Clones share it: [`ServerCertificate::replace`] changes it
/// for all connections that come after.
#[derive(Clone)]
pub struct ServerCertificate(Arc<RwLock<Arc<CertifiedKey>>>);

impl ServerCertificate {
    /// Shows these credentials; the chain should end with the root, so that pins work.
    ///
    /// # Errors
    /// [`SetupError::Credentials`] when certificate and key do not belong together.
    pub fn new(credentials: &Credentials) -> Result<Self, SetupError> {
        Ok(Self(Arc::new(RwLock::new(certified(credentials)?))))
    }

    /// Shows these credentials from now on. On an error the old ones stay.
    ///
    /// # Errors
    /// As [`ServerCertificate::new`].
    pub fn replace(&self, credentials: &Credentials) -> Result<(), SetupError> {
        let new = certified(credentials)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }
}

impl fmt::Debug for ServerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServerCertificate").finish_non_exhaustive()
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

fn certified(credentials: &Credentials) -> Result<Arc<CertifiedKey>, SetupError> {
    let (chain, key) = (credentials.chain.clone(), credentials.key.private_der());
    CertifiedKey::from_der(chain, key, &provider())
        .map(Arc::new)
        .map_err(SetupError::Credentials)
}

/// Shows `certificate`, asks for `client_auth`, accepts the protocols of `alpn` (a client that
/// offers only others is refused; one that offers none is not).
///
/// # Errors
/// [`SetupError`].
pub fn server_config(
    certificate: &ServerCertificate,
    client_auth: &ClientAuth,
    alpn: &[&[u8]],
) -> Result<ServerTls, SetupError> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)
        .map_err(SetupError::Credentials)?;
    let builder = match client_auth {
        ClientAuth::NoneAsked => builder.with_no_client_auth(),
        ClientAuth::AnySelfSigned => {
            builder.with_client_cert_verifier(Arc::new(AnyKeyVerifier::new()))
        }
        ClientAuth::OptionalCa(roots) => {
            let roots = Arc::new(root_store(roots)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .allow_unauthenticated()
                .build()
                .map_err(|_| SetupError::NoRoot)?;
            builder.with_client_cert_verifier(verifier)
        }
    };
    let mut config = builder.with_cert_resolver(Arc::new(certificate.clone()));
    config.alpn_protocols = protocols(alpn);
    let certificates_are_issued = matches!(client_auth, ClientAuth::OptionalCa(_));
    Ok(ServerTls {
        config: Arc::new(config),
        certificates_are_issued,
    })
}

/// Runs the server's side of the handshake within [`HANDSHAKE_TIMEOUT`].
///
/// # Errors
/// [`Error`].
pub async fn accept<T>(tls: &ServerTls, io: T) -> Result<(ServerStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    accept_within(HANDSHAKE_TIMEOUT, tls, io).await
}

/// [`accept`] with a time limit of the caller's.
///
/// # Errors
/// [`Error`].
pub async fn accept_within<T>(
    limit: Duration,
    tls: &ServerTls,
    io: T,
) -> Result<(ServerStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    handshake(limit, tls, Arc::clone(&tls.config), io).await
}

/// [`accept`] for a connection whose records will be taken over by [`super::RecordStream`].
///
/// # Errors
/// [`Error`].
pub async fn accept_records<T>(
    tls: &ServerTls,
    io: T,
) -> Result<(ServerStream<RecordWise<T>>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let io = RecordWise::new(io);
    let mut config = ServerConfig::clone(&tls.config);
    config.key_log = io.key_log();
    config.enable_secret_extraction = true;
    handshake(HANDSHAKE_TIMEOUT, tls, Arc::new(config), io).await
}

async fn handshake<T>(
    limit: Duration,
    tls: &ServerTls,
    config: Arc<ServerConfig>,
    io: T,
) -> Result<(ServerStream<T>, PeerInfo), Error>
where
    T: AsyncRead + AsyncWrite + Unpin,
{
    let handshake = tokio_rustls::TlsAcceptor::from(config).accept(io);
    let stream = match tokio::time::timeout(limit, handshake).await {
        Err(_) => return Err(Error::Timeout),
        Ok(result) => result.map_err(Error::from_io)?,
    };
    let peer = PeerInfo::of(stream.get_ref().1, tls.certificates_are_issued);
    Ok((stream, peer))
}
