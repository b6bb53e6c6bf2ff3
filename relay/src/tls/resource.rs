//! The end that connects to a resource: what it must show, what we show it, and how a refusal is named.

use std::sync::Arc;
use std::time::Duration;

use rustls::ClientConfig;
use rustls::client::{Resumption, UnbufferedClientConnection};
use rustls::pki_types::ServerName;
use sg_runtime::identity::CertificateDer;
use sg_runtime::tls::material::Pair;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};

use super::engine::{Engine, Fault, LEAST_READ, Session};
use super::handshake::{self, farewell, within};
use super::preface::{SSL_REQUEST, banner};
use super::provider::{VERSIONS, dialling};
use super::trust::Trusted;
use super::user::check_resumed;
use super::verify::{OurCertificate, ResourceVerifier};
use super::{TlsError, TlsFacts, TlsSetupError, TlsStream};
use crate::local::RawEnd;

/// Sessions that can be taken up again, which all are of one resource.
const SESSIONS: usize = 16;
/// Bounds of how long the answer to our certificate is waited for.
const SHORTEST_WAIT: Duration = Duration::from_millis(10);
const LONGEST_WAIT: Duration = Duration::from_millis(250);

/// What the dialling end of a destination is built from.
#[derive(Debug, Clone)]
pub struct ResourceTlsSettings {
    /// The resource's host: a name or an address.
    pub host: String,
    /// The name to ask for and to check, if it is not the host.
    pub sni: Option<String>,
    /// Uploaded certificates: the resource's own, or of its issuers. Without any the system's roots count.
    pub certificates: Vec<CertificateDer<'static>>,
    /// What is shown to a resource that asks for a certificate.
    pub pair: Option<Pair>,
    /// Check the resource; otherwise anything is accepted.
    pub verify: bool,
    /// Application protocols to offer.
    pub alpn: Vec<Vec<u8>>,
    /// Asks first, as PostgreSQL clients do.
    pub postgres: bool,
}

impl ResourceTlsSettings {
    /// Everything else as it is unless asked for otherwise.
    #[must_use]
    pub fn new(host: impl Into<String>) -> Self {
        Self {
            host: host.into(),
            sni: None,
            certificates: Vec::new(),
            pair: None,
            verify: true,
            alpn: Vec::new(),
            postgres: false,
        }
    }
}

/// Connects to one resource with TLS; cheap to clone.
#[derive(Debug, Clone)]
pub struct ResourceTls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    verify: bool,
    postgres: bool,
}

impl ResourceTls {
    /// # Errors
    /// [`TlsSetupError`].
    pub fn new(settings: ResourceTlsSettings) -> Result<Self, TlsSetupError> {
        let name = settings.sni.as_ref().unwrap_or(&settings.host);
        let bare = name.trim_matches(['[', ']']).trim_end_matches('.');
        let server_name =
            ServerName::try_from(bare.to_owned()).map_err(|_| TlsSetupError::Name(name.clone()))?;
        let trusted = if settings.certificates.is_empty() && settings.verify {
            Trusted::system()?
        } else {
            Trusted::uploaded(&settings.certificates)?
        };
        let verifier = ResourceVerifier::new(&trusted, !settings.verify)?;
        let pair = match &settings.pair {
            None => None,
            Some(pair) => Some(Arc::new(pair.certified()?)),
        };
        let mut config = ClientConfig::builder_with_provider(dialling())
            .with_protocol_versions(VERSIONS)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(OurCertificate(pair)));
        config.alpn_protocols = settings.alpn;
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        Ok(Self(Arc::new(Inner {
            config: Arc::new(config),
            name: server_name,
            verify: settings.verify,
            postgres: settings.postgres,
        })))
    }

    /// Does the handshake and checks the resource.
    ///
    /// # Errors
    /// [`TlsError`]; the connection is closed then.
    pub async fn connect(
        &self,
        io: impl Into<RawEnd>,
        deadline: Instant,
    ) -> Result<(TlsStream, TlsFacts), TlsError> {
        let offer = self.0.config.alpn_protocols.clone();
        self.connect_offering(io, offer, deadline).await
    }

    /// [`ResourceTls::connect`] with application protocols of the caller's, for a user's that are mirrored.
    ///
    /// # Errors
    /// As [`ResourceTls::connect`].
    pub async fn connect_offering(
        &self,
        io: impl Into<RawEnd>,
        alpn: Vec<Vec<u8>>,
        deadline: Instant,
    ) -> Result<(TlsStream, TlsFacts), TlsError> {
        let inner = &*self.0;
        let session = UnbufferedClientConnection::new_with_alpn(
            Arc::clone(&inner.config),
            inner.name.clone(),
            alpn,
        )
        .map_err(|error| TlsError::Failed(error.to_string()))?;
        let io = io.into();
        let mut tcp = io.tcp;
        let mut engine = Engine::new(Session::Client(session), io.front.to_vec());
        match within(deadline, self.handshake(tcp.tcp_mut(), &mut engine)).await {
            Ok(()) => {
                let sni = match &inner.name {
                    ServerName::DnsName(name) => Some(name.as_ref().to_owned()),
                    _ => None,
                };
                let facts = TlsFacts::of(engine.state(), sni, inner.verify);
                Ok((TlsStream::new(tcp, engine), facts))
            }
            Err(error) => {
                let is_ours = !matches!(
                    error,
                    TlsError::Io(_)
                        | TlsError::Timeout
                        | TlsError::Closed
                        | TlsError::PlainText { .. }
                        | TlsError::Refused { .. }
                );
                if is_ours {
                    farewell(tcp.tcp_mut(), &[]).await;
                    tcp.close();
                }
                Err(error)
            }
        }
    }

    async fn handshake(&self, tcp: &mut TcpStream, engine: &mut Engine) -> Result<(), TlsError> {
        if self.0.postgres {
            ask_postgres(tcp).await?;
        }
        let started = Instant::now();
        handshake::run(tcp, engine, check_first).await?;
        let took = started.elapsed();
        check_resumed(engine.state())?;
        let is_13 = engine.state().protocol_version() == Some(rustls::ProtocolVersion::TLSv1_3);
        if engine.was_asked() && is_13 {
            // Only now does it look at our certificate, or the lack of one, and its refusal would come where
            // nobody expects one any more. Usually something comes at once: tickets, or the alert.
            let wait = (took * 2).clamp(SHORTEST_WAIT, LONGEST_WAIT);
            return match timeout(wait, hear(tcp, engine)).await {
                Ok(result) => result,
                Err(_) => Ok(()),
            };
        }
        Ok(())
    }
}

/// Waits for the first bytes after the handshake.
async fn hear(tcp: &mut TcpStream, engine: &mut Engine) -> Result<(), TlsError> {
    std::future::poll_fn(|cx| engine.poll_fill(cx, tcp, LEAST_READ))
        .await
        .map_err(|fault| match fault {
            Fault::Io(error) => TlsError::of_io(&error),
            Fault::Tls(error) => error,
        })
}

/// The first bytes of a resource that speaks TLS are a handshake or an alert.
fn check_first(bytes: &[u8]) -> Result<(), TlsError> {
    match bytes {
        [] | [0x15 | 0x16] | [0x15 | 0x16, 3, ..] => Ok(()),
        _ => Err(TlsError::PlainText {
            found: banner(bytes),
        }),
    }
}

/// PostgreSQL's question, and its one-byte answer.
async fn ask_postgres(tcp: &mut TcpStream) -> Result<(), TlsError> {
    let io = |error: std::io::Error| TlsError::of_io(&error);
    tcp.write_all(&SSL_REQUEST).await.map_err(io)?;
    match tcp.read_u8().await.map_err(io)? {
        b'S' => Ok(()),
        b'N' => Err(TlsError::PlainText {
            found: "N (this PostgreSQL server has TLS switched off)".to_owned(),
        }),
        other => Err(TlsError::PlainText {
            found: banner(&[other]),
        }),
    }
}
