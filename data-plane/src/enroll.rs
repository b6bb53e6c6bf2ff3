//! The node's identity: key, certificate and CA in the data directory; on the first start got from a control
//! plane with a one-time join token.
//!
//! The token carries the hash of the CA's key, so that nothing is sent to a server that is not the right one.

use std::io;
use std::path::Path;
use std::time::Duration;

use sg_model::{HostPort, NodeId};
use sg_proto::node::enrollment_client::EnrollmentClient;
use sg_proto::node::{JoinRequest, JoinResponse};
use sg_runtime::backoff::Backoff;
use sg_runtime::files;
use sg_runtime::identity::{
    CertificateDer, KeyFileError, KeyPair, PeerIdentity, certificates_to_pem, csr_der, is_root,
    spki_sha256,
};
use sg_runtime::secret::{Secret, TokenKind};
use sg_runtime::tls::{Credentials, PeerKind, SetupError, Trust, client_config};
use tokio::time::{sleep, timeout};
use tonic::Code;

use crate::config::Settings;
use crate::control::channel;

const PREFIX: &str = "sgj_";
/// Hexadecimal digits of each half of a join token.
const HALF: usize = 64;
/// Keeps the name and the group that the node joined with, a line each.
const JOINED: &str = "joined";
/// Time for one attempt at one control plane.
const ATTEMPT: Duration = Duration::from_secs(10);

/// Who this node is, as proved by what lies in its data directory.
#[derive(Debug)]
pub(crate) struct Identity {
    pub(crate) id: NodeId,
    pub(crate) credentials: Credentials,
}

/// Why a node has no identity.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    /// The first start needs a token.
    #[error(
        "this node has not joined yet: give --join-token-file and --control-plane (sgctl node token create makes a token)"
    )]
    NoToken,
    /// The token file cannot be read.
    #[error("cannot read the join token file {path}")]
    TokenFile {
        /// The file.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The token is no join token.
    #[error("{0}")]
    NotOne(String),
    /// The control plane says no, and will say so again. Its words say what to do.
    #[error("the control plane refused the join token: {0}")]
    Refused(String),
    /// The control plane's answer cannot be used.
    #[error("the control plane's answer cannot be used: {0}")]
    Answer(&'static str),
    /// A file in the data directory cannot be used.
    #[error(transparent)]
    File(#[from] KeyFileError),
    /// A file in the data directory cannot be written.
    #[error("cannot write to the data directory")]
    Write(#[from] io::Error),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] SetupError),
}

impl EnrollError {
    /// Whether whoever started the node has to mend what was given.
    pub(crate) const fn is_usage(&self) -> bool {
        matches!(
            self,
            Self::NoToken | Self::TokenFile { .. } | Self::NotOne(_)
        )
    }
}

/// The identity in the data directory; `None` before the node has joined.
pub(crate) fn load(data_dir: &Path) -> Result<Option<Identity>, EnrollError> {
    let chain = data_dir.join("node.pem");
    if !chain.exists() {
        return Ok(None);
    }
    let credentials = Credentials::load(&chain, &data_dir.join("node.key"))?;
    let id = node_id(&credentials)?;
    Ok(Some(Identity { id, credentials }))
}

/// What of the flags does not count, because this node has joined already; whole sentences.
pub(crate) fn without_effect(settings: &Settings) -> Vec<String> {
    // Nodes that joined before this was kept have no such file.
    let joined = std::fs::read_to_string(settings.data_dir.join(JOINED)).unwrap_or_default();
    let mut lines = joined.lines();
    let flags = [
        ("name", settings.asked.name, &settings.name, "rename"),
        ("group", settings.asked.group, &settings.group, "move"),
    ];
    flags
        .into_iter()
        .filter_map(|(flag, asked, given, verb)| {
            let had = lines.next()?;
            (asked && had != given.as_str()).then(|| {
                format!("--{flag} {given} is not in effect: this node joined with {flag} {had}; to {verb} it, let it join anew")
            })
        })
        .collect()
}

/// Joins: tries the control planes in turn until one has answered for good.
pub(crate) async fn join(settings: &Settings) -> Result<Identity, EnrollError> {
    let file = settings.join_token_file.as_ref();
    let file = file.ok_or(EnrollError::NoToken)?;
    if settings.control_planes.is_empty() {
        return Err(EnrollError::NoToken);
    }
    let token = Secret::read(file).map_err(|source| EnrollError::TokenFile {
        path: file.display().to_string(),
        source,
    })?;
    let pin = pin_of(token.expose()).ok_or_else(|| {
        let shown = file.display();
        EnrollError::NotOne(match TokenKind::of(token.expose()) {
            Some(kind) if kind != TokenKind::Join => {
                format!("{shown} holds {kind}; a node needs {}", TokenKind::Join)
            }
            _ => format!("{shown} holds no join token: it is {PREFIX} and 128 hexadecimal digits"),
        })
    })?;
    let tls = client_config(
        &Trust::Pin(pin),
        PeerKind::ControlPlane,
        None,
        &[channel::ALPN],
    )?;
    let key = KeyPair::load_or_create(&settings.data_dir.join("node.key"))?;
    let request = JoinRequest {
        join_token: token.expose().clone(),
        csr_der: csr_der(&key),
        name: settings.name.to_string(),
        group: settings.group.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
    };
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    loop {
        for address in &settings.control_planes {
            let attempt = timeout(ATTEMPT, Box::pin(ask(address, &tls, request.clone())));
            match attempt.await {
                Ok(Ok(response)) => return keep(settings, key, pin, response),
                Ok(Err(Failed::Refused(message))) => return Err(EnrollError::Refused(message)),
                Ok(Err(Failed::Unavailable(error))) => {
                    tracing::warn!(control_plane = %address, error, "cannot join yet");
                }
                Err(_) => tracing::warn!(control_plane = %address, "no answer to the join"),
            }
        }
        sleep(backoff.next_delay()).await;
    }
}

/// The hash of the CA's key inside a join token.
fn pin_of(token: &str) -> Option<[u8; 32]> {
    let (pin, secret) = token.strip_prefix(PREFIX)?.split_at_checked(HALF)?;
    let is_half = |text: &str| text.len() == HALF && text.bytes().all(|b| b.is_ascii_hexdigit());
    if !is_half(pin) || !is_half(secret) {
        return None;
    }
    sg_runtime::crypto::unhex(pin)?.try_into().ok()
}

enum Failed {
    /// For good.
    Refused(String),
    /// Perhaps not the next time.
    Unavailable(String),
}

async fn ask(
    address: &HostPort,
    tls: &sg_runtime::tls::ClientTls,
    request: JoinRequest,
) -> Result<JoinResponse, Failed> {
    let channel = channel::connect(address, tls)
        .await
        .map_err(|error| Failed::Unavailable(sg_runtime::telemetry::chain(&error)))?;
    let answer = EnrollmentClient::new(channel).join(request).await;
    answer
        .map(tonic::Response::into_inner)
        .map_err(|status| match status.code() {
            Code::Unauthenticated
            | Code::PermissionDenied
            | Code::InvalidArgument
            | Code::NotFound
            | Code::AlreadyExists
            | Code::FailedPrecondition => Failed::Refused(status.message().to_owned()),
            _ => Failed::Unavailable(status.message().to_owned()),
        })
}

/// Checks the answer and writes it down; the certificate last, because its presence says that all is there.
fn keep(
    settings: &Settings,
    key: KeyPair,
    pin: [u8; 32],
    response: JoinResponse,
) -> Result<Identity, EnrollError> {
    let chain: Vec<_> = response
        .certificates_der
        .into_iter()
        .map(CertificateDer::from)
        .collect();
    let Some((leaf, behind)) = chain.split_first() else {
        return Err(EnrollError::Answer("it has no certificate"));
    };
    // While an authority takes the place of another there are two, and a certificate of the one by the other.
    let roots: Vec<_> = behind
        .iter()
        .filter(|one| is_root(one).is_ok_and(|is| is))
        .cloned()
        .collect();
    if !roots.iter().any(|root| spki_sha256(root).ok() == Some(pin)) {
        return Err(EnrollError::Answer("its root is not the one of the token"));
    }
    if spki_sha256(leaf).ok() != Some(key.spki_sha256()) {
        return Err(EnrollError::Answer("its certificate is for another key"));
    }
    let root_pem = certificates_to_pem(&roots);
    let chain_pem = certificates_to_pem(&chain);
    let credentials = Credentials::new(chain, key);
    let id = node_id(&credentials)?;
    if id.as_str() != response.node_id {
        return Err(EnrollError::Answer("its certificate is for another node"));
    }
    let dir = &settings.data_dir;
    files::write_atomic(&dir.join("ca.pem"), root_pem.as_bytes(), files::PRIVATE)?;
    let joined = format!("{}\n{}\n", settings.name, settings.group);
    files::write_atomic(&dir.join(JOINED), joined.as_bytes(), files::PRIVATE)?;
    files::write_atomic(&dir.join("node.pem"), chain_pem.as_bytes(), files::PRIVATE)?;
    tracing::info!(node = %id, name = %settings.name, group = %settings.group, "joined");
    Ok(Identity { id, credentials })
}

fn node_id(credentials: &Credentials) -> Result<NodeId, EnrollError> {
    let leaf = credentials.chain().first();
    let identity = leaf.and_then(|leaf| PeerIdentity::from_cert(leaf).ok());
    identity
        .filter(|identity| identity.kind == PeerKind::Node)
        .and_then(|identity| NodeId::new(identity.id).ok())
        .ok_or(EnrollError::Answer("the certificate is not that of a node"))
}

#[cfg(test)]
mod tests {
    use sg_model::HostPort;
    use sg_runtime::crypto;
    use sg_runtime::tls::{self, ClientAuth, ServerCertificate, server_config};
    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpListener;

    use super::*;
    use crate::tests::rig::Authority;

    /// Row 32: whoever is not of the authority that the token names gets not a byte of it, whatever it sends along.
    #[tokio::test]
    async fn threat_32_a_server_of_another_authority_sees_no_byte_of_a_join_token() {
        crypto::install();
        let (true_one, other) = (Authority::new(), Authority::new());
        let plain = other.issue("spiffe://secure-gateway/control-plane/C1");
        let mut filled = plain.chain().to_vec();
        filled.push(true_one.root.clone());
        let filled = Credentials::new(filled, plain.key().clone());
        // One of ours, but no control plane: a node, or a stranger with a node's certificate.
        let node = true_one.issue("spiffe://secure-gateway/node/n1");
        for shown in [plain, filled, node] {
            let shown = ServerCertificate::new(&shown).unwrap();
            let server = server_config(&shown, &ClientAuth::NoneAsked, &[channel::ALPN]).unwrap();
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address: HostPort = listener.local_addr().unwrap().to_string().parse().unwrap();
            let fake = async {
                let (tcp, _) = listener.accept().await.unwrap();
                let mut seen = Vec::new();
                if let Ok((mut io, _)) = tls::accept(&server, tcp).await {
                    drop(io.read_to_end(&mut seen).await);
                }
                seen
            };
            let pin = spki_sha256(&true_one.root).unwrap();
            let kind = PeerKind::ControlPlane;
            let tls = client_config(&Trust::Pin(pin), kind, None, &[channel::ALPN]).unwrap();
            let request = JoinRequest {
                join_token: format!("sgj_{}", "ab".repeat(64)),
                ..JoinRequest::default()
            };
            let (seen, asked) = tokio::join!(fake, ask(&address, &tls, request));
            assert!(matches!(asked, Err(Failed::Unavailable(_))));
            assert_eq!(seen, b"");
        }
    }

    #[test]
    fn what_to_do_about_a_refused_token_is_said_once() {
        let message = "the join token has expired; make a new one with 'sgctl node token create'";
        let said = EnrollError::Refused(message.to_owned()).to_string();
        assert_eq!(said.matches("make a new one").count(), 1, "{said}");
    }

    #[test]
    fn a_token_gives_the_pin_and_nothing_else_is_a_token() {
        let token = format!("sgj_{}{}", "ab".repeat(32), "12".repeat(32));
        assert_eq!(pin_of(&token), Some([0xab; 32]));
        let short = token.get(..token.len() - 1).unwrap();
        for bad in [
            "",
            "sgj_",
            short,
            &token.replace("sgj", "sgt"),
            &format!("{token}0"),
        ] {
            assert_eq!(pin_of(bad), None, "{bad}");
        }
        assert_eq!(pin_of(&token.replace("ab", "äb")), None);
    }
}
