//! The end that accepts users: certificates by SNI, users' certificates if they are demanded, the application
//! protocol, and PostgreSQL's question before TLS.
//!
//! Two steps, because the application protocol may be that of the resource, which is known only when the
//! client has said what it can.

use std::sync::Arc;

use rustls::crypto::aws_lc_rs::Ticketer;
use rustls::server::{
    Acceptor, ClientHello, NoServerSessionStorage, ResolvesServerCert, UnbufferedServerConnection,
};
use rustls::sign::CertifiedKey;
use rustls::{CommonState, ServerConfig};
use sg_runtime::identity::CertificateDer;
use sg_runtime::tls::material::{Facts, Pair, host_matches};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::engine::{Engine, Session};
use super::handshake::{self, farewell, within};
use super::preface::{Begin, begin, not_tls};
use super::provider::{VERSIONS, accepting};
use super::trust::Trusted;
use super::verify::{UserVerifier, check_dates};
use super::{TlsError, TlsFacts, TlsSetupError, TlsStream};
use crate::local::RawEnd;

/// Longest first message of a client: several times what clients send that offer every algorithm there is. Anybody may send
/// one, and it is held twice.
const MOST_HELLO: usize = 16 * 1024;
/// Protocols of a client's offer that are looked at.
const MOST_OFFERED: usize = 32;

/// Which application protocol is agreed on (ALPN).
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Alpn {
    /// What the caller chooses; otherwise what the client offers, if that is one only.
    #[default]
    Mirror,
    /// The first of these that the client offers; a client that offers only others is refused.
    Fixed(Vec<Vec<u8>>),
}

/// What the accepting end of a destination is built from.
#[derive(Debug, Clone, Default)]
pub struct UserTlsSettings {
    /// Server certificates, at least one. The client's SNI chooses; the first is for everything else.
    pub servers: Vec<Pair>,
    /// Demands a certificate of each user: one of these, or one issued by one of these.
    pub users: Option<Vec<CertificateDer<'static>>>,
    /// The application protocol.
    pub alpn: Alpn,
    /// Answers PostgreSQL clients, which ask for TLS before they begin it.
    pub postgres: bool,
}

/// Accepts users with TLS; cheap to clone.
#[derive(Debug, Clone)]
pub struct UserTls(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    config: ServerConfig,
    alpn: Alpn,
    postgres: bool,
}

impl UserTls {
    /// # Errors
    /// [`TlsSetupError`].
    pub fn new(settings: UserTlsSettings) -> Result<Self, TlsSetupError> {
        let servers = Servers::new(&settings.servers)?;
        let builder =
            ServerConfig::builder_with_provider(accepting()).with_protocol_versions(VERSIONS)?;
        let builder = match &settings.users {
            None => builder.with_no_client_auth(),
            Some(users) => {
                let verifier = UserVerifier::new(&Trusted::uploaded(users)?)?;
                builder.with_client_cert_verifier(Arc::new(verifier))
            }
        };
        let mut config = builder.with_cert_resolver(Arc::new(servers));
        // Sessions are kept by the clients: nothing to remember here, and a new set of certificates, which comes
        // with a new key, takes none of them up again.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = Ticketer::new()?;
        if let Alpn::Fixed(protocols) = &settings.alpn {
            config.alpn_protocols.clone_from(protocols);
        }
        Ok(Self(Arc::new(Inner {
            config,
            alpn: settings.alpn,
            postgres: settings.postgres,
        })))
    }

    /// Reads the client's first message, and answers what may come before it.
    ///
    /// # Errors
    /// [`TlsError`]; the connection is closed then.
    pub async fn accept(
        &self,
        io: impl Into<RawEnd>,
        deadline: Instant,
    ) -> Result<Hello, TlsError> {
        let mut io = io.into();
        let mut bytes = std::mem::take(&mut io.front).to_vec();
        let refusal = match within(deadline, self.read_hello(io.tcp.tcp_mut(), &mut bytes)).await {
            Ok((sni, offered)) => {
                return Ok(Hello {
                    tls: self.clone(),
                    io,
                    bytes,
                    sni,
                    offered,
                });
            }
            Err(refusal) => refusal,
        };
        if let Some(alert) = refusal.alert {
            farewell(io.tcp.tcp_mut(), &alert).await;
            io.tcp.close();
        }
        Err(refusal.error)
    }

    async fn read_hello(
        &self,
        tcp: &mut TcpStream,
        bytes: &mut Vec<u8>,
    ) -> Result<(Option<String>, Vec<Vec<u8>>), Refusal> {
        let (mut tls_asked, mut gss_asked) = (false, false);
        loop {
            let question: Option<(&[u8], &mut bool)> = match begin(bytes) {
                Begin::Tls => break,
                Begin::Short => None,
                Begin::PostgresTls if self.0.postgres => Some((b"S", &mut tls_asked)),
                Begin::PostgresGss if self.0.postgres => Some((b"N", &mut gss_asked)),
                Begin::PostgresTls | Begin::PostgresGss => {
                    return Err(TlsError::PostgresPreface.into());
                }
                Begin::Other => return Err(not_tls(bytes).into()),
            };
            if let Some((answer, asked)) = question {
                let found = if std::mem::replace(asked, true) {
                    Some("a PostgreSQL client's question for the second time")
                } else if bytes.len() > 8 {
                    // Nothing may come before the answer: whoever put it there wants it read as if it were secured.
                    Some("bytes right behind a PostgreSQL client's question")
                } else {
                    None
                };
                if let Some(found) = found {
                    let found = found.to_owned();
                    return Err(TlsError::NotTls { found }.into());
                }
                bytes.clear();
                let written = tcp.write_all(answer).await;
                written.map_err(|error| TlsError::of_io(&error))?;
            }
            handshake::read(tcp, bytes).await?;
        }
        let mut acceptor = Acceptor::default();
        let mut seen = 0;
        loop {
            let mut new = &bytes[seen..];
            while !new.is_empty() {
                let failed = |error: std::io::Error| TlsError::Failed(error.to_string());
                if acceptor.read_tls(&mut new).map_err(failed)? == 0 {
                    break;
                }
                match acceptor.accept() {
                    Ok(Some(accepted)) => return Ok(asked(&accepted.client_hello())),
                    Ok(None) => {}
                    Err((error, mut alert)) => {
                        let mut bytes = Vec::new();
                        let written = alert.write_all(&mut bytes);
                        return Err(Refusal {
                            error: TlsError::of_rustls(error, false),
                            alert: written.is_ok().then_some(bytes),
                        });
                    }
                }
            }
            seen = bytes.len();
            if seen > MOST_HELLO || announced(bytes) > MOST_HELLO {
                return Err(TlsError::Failed("the first message is too long".to_owned()).into());
            }
            handshake::read(tcp, bytes).await?;
        }
    }
}

/// Why a client got no further than its first message.
struct Refusal {
    error: TlsError,
    alert: Option<Vec<u8>>,
}

impl From<TlsError> for Refusal {
    fn from(error: TlsError) -> Self {
        Self { error, alert: None }
    }
}

/// How long the first handshake message says it is, once the beginning of its record is there.
fn announced(bytes: &[u8]) -> usize {
    match bytes {
        // A record of fewer bytes than a message's header is allowed, and its rest is in the next one.
        [_, _, _, high, low, _, a, b, c, ..] if u16::from_be_bytes([*high, *low]) >= 4 => [a, b, c]
            .iter()
            .fold(0, |sum, byte| sum << 8 | usize::from(**byte)),
        _ => 0,
    }
}

fn asked(hello: &ClientHello<'_>) -> (Option<String>, Vec<Vec<u8>>) {
    let sni = hello.server_name().map(str::to_owned);
    let offered = hello.alpn().into_iter().flatten();
    let offered = offered.take(MOST_OFFERED).map(<[u8]>::to_vec).collect();
    (sni, offered)
}

/// A client that has said what it asks for, and waits. Dropping it resets the connection.
#[derive(Debug)]
pub struct Hello {
    tls: UserTls,
    io: RawEnd,
    /// What was read, from the first record on.
    bytes: Vec<u8>,
    sni: Option<String>,
    offered: Vec<Vec<u8>>,
}

impl Hello {
    /// The name that it asks for.
    #[must_use]
    pub fn sni(&self) -> Option<&str> {
        self.sni.as_deref()
    }

    /// The application protocols that it offers, in its order.
    #[must_use]
    pub fn alpn(&self) -> &[Vec<u8>] {
        &self.offered
    }

    /// The connection, for its error while the caller does something else.
    #[must_use]
    pub fn tcp(&self) -> &TcpStream {
        self.io.tcp.tcp()
    }

    /// Finishes the handshake. With [`Alpn::Mirror`] `choice` is agreed on if the client offers it; without a
    /// choice it is what the client offers, if that is one only. A fixed list leaves no choice.
    ///
    /// # Errors
    /// [`TlsError`]; the connection is closed then.
    pub async fn finish(
        self,
        choice: Option<&[u8]>,
        deadline: Instant,
    ) -> Result<(TlsStream, TlsFacts), TlsError> {
        let mut config = self.tls.0.config.clone();
        if self.tls.0.alpn == Alpn::Mirror {
            let offers = |wanted: &&[u8]| self.offered.iter().any(|one| one == wanted);
            // Of several nobody knows which one the bytes will be of.
            let only = match self.offered.as_slice() {
                [only] => Some(only.as_slice()),
                _ => None,
            };
            let chosen = choice.map_or(only, |wanted| Some(wanted).filter(offers));
            config.alpn_protocols = chosen.into_iter().map(<[u8]>::to_vec).collect();
        }
        let session = UnbufferedServerConnection::new(Arc::new(config))
            .map_err(|error| TlsError::Failed(error.to_string()))?;
        let mut engine = Engine::new(Session::Server(session), self.bytes);
        let mut tcp = self.io.tcp;
        let run = async {
            handshake::run(tcp.tcp_mut(), &mut engine, |_| Ok(())).await?;
            check_resumed(engine.state())
        };
        match within(deadline, run).await {
            Ok(()) => {
                let facts = TlsFacts::of(engine.state(), self.sni, true);
                Ok((TlsStream::new(tcp, engine), facts))
            }
            Err(error) => {
                // Everything else is the peer's doing, or over.
                if !matches!(
                    error,
                    TlsError::Io(_) | TlsError::Timeout | TlsError::Closed
                ) {
                    farewell(tcp.tcp_mut(), &[]).await;
                    tcp.close();
                }
                Err(error)
            }
        }
    }
}

/// A session that is taken up again shows no certificate; that of the first time has its dates still.
pub(super) fn check_resumed(state: &CommonState) -> Result<(), TlsError> {
    let resumed = state.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
    let Some(leaf) = state.peer_certificates().and_then(<[_]>::first) else {
        return Ok(());
    };
    let Ok(facts) = Facts::of(leaf) else {
        return Ok(());
    };
    if !resumed {
        return Ok(());
    }
    check_dates(&facts, rustls::pki_types::UnixTime::now()).map_err(|_| TlsError::Expired {
        subject: facts.subject,
        not_after: facts.not_after,
    })
}

/// Server certificates by name.
#[derive(Debug)]
struct Servers(Vec<Server>);

#[derive(Debug)]
struct Server {
    names: Vec<String>,
    pair: Arc<CertifiedKey>,
}

impl Servers {
    fn new(pairs: &[Pair]) -> Result<Self, TlsSetupError> {
        if pairs.is_empty() {
            return Err(TlsSetupError::NoPair);
        }
        let server = |pair: &Pair| {
            let facts = pair.facts();
            let names = match facts.dns_names.is_empty() {
                true => vec![facts.common_name.clone()],
                false => facts.dns_names.clone(),
            };
            let pair = Arc::new(pair.certified()?);
            Ok(Server { names, pair })
        };
        pairs.iter().map(server).collect::<Result<_, _>>().map(Self)
    }

    /// Those that are for a name: the exact ones, else those with a star, else the first.
    fn for_name(&self, name: Option<&str>) -> Vec<&Server> {
        let of = |matches: &dyn Fn(&String) -> bool| -> Vec<&Server> {
            let servers = self.0.iter();
            servers
                .filter(|server| server.names.iter().any(matches))
                .collect()
        };
        if let Some(name) = name {
            let exact = of(&|one: &String| !one.starts_with('*') && host_matches(one, name));
            if !exact.is_empty() {
                return exact;
            }
            let starred = of(&|one: &String| host_matches(one, name));
            if !starred.is_empty() {
                return starred;
            }
        }
        self.0.iter().take(1).collect()
    }
}

impl ResolvesServerCert for Servers {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let found = self.for_name(hello.server_name());
        // Of several, one whose key the client can verify: a destination may have an RSA and an ECDSA one.
        let schemes = hello.signature_schemes();
        let usable = found
            .iter()
            .find(|server| server.pair.key.choose_scheme(schemes).is_some());
        let chosen = usable.or(found.first())?;
        Some(Arc::clone(&chosen.pair))
    }
}
