//! The node's own certificate: renewed from a third of its life on over any link, and taken into use without anybody noticing.
//! What is shown to clients and control planes changes for the connections that come after; those that are open stay.

use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use sg_model::NodeId;
use sg_runtime::identity::{
    CertificateDer, KeyPair, Life, PeerIdentity, PeerKind, certificates_to_pem, csr_der,
    spki_sha256,
};
use sg_runtime::tls::{
    ClientTls, Credentials, ServerCertificate, SetupError, Trust, client_config,
};
use sg_runtime::{crypto, files};
use tokio::sync::watch;
use tokio::time::Instant;

use super::channel;
use crate::certificates::Vouched;

/// Before a renewal that brought nothing is tried again.
const RETRY: Duration = Duration::from_secs(60);

/// Nodes that are to get certificates of another authority ask for them within this time.
const SPREAD: Duration = Duration::from_secs(30);

/// The node's certificate and where it is in use.
#[derive(Debug)]
pub(crate) struct Own {
    id: NodeId,
    data_dir: PathBuf,
    key: KeyPair,
    life: Life,
    renew: SystemTime,
    next: Instant,
    chain: Vec<CertificateDer<'static>>,
    /// The authorities that are accepted, as told in this run.
    roots: Vec<CertificateDer<'static>>,
    /// Epoch and revision of what was told last.
    told: (u64, u64),
    shown: ServerCertificate,
    links: watch::Sender<ClientTls>,
}

/// A certificate that was sent and cannot be used. Whoever sent it is to blame.
#[derive(Debug, thiserror::Error)]
pub(super) enum OwnError {
    #[error("it is for another node or another key")]
    Foreign,
    #[error(transparent)]
    Tls(#[from] SetupError),
}

impl Own {
    /// Takes the certificate of `credentials` into use, as it lies in the data directory.
    ///
    /// # Errors
    /// It cannot be used, or the CA beside it cannot.
    pub(crate) fn new(
        id: NodeId,
        data_dir: PathBuf,
        credentials: &Credentials,
    ) -> Result<Self, SetupError> {
        let tls = link_tls(&data_dir, credentials)?;
        let now = SystemTime::now();
        let life = credentials
            .chain()
            .first()
            .and_then(|leaf| Life::of(leaf).ok());
        // One that cannot be read is renewed at once.
        let life = life.unwrap_or(Life {
            issued: now,
            ends: now,
        });
        Ok(Self {
            id,
            data_dir,
            key: credentials.key().clone(),
            renew: life.draw_renewal(),
            life,
            next: Instant::now(),
            chain: credentials.chain().to_vec(),
            roots: Vec::new(),
            told: (0, 0),
            shown: ServerCertificate::new(credentials)?,
            links: watch::Sender::new(tls),
        })
    }

    /// What clients are shown.
    pub(crate) fn shown(&self) -> ServerCertificate {
        self.shown.clone()
    }

    /// How control planes are connected to.
    pub(super) fn links(&self) -> watch::Receiver<ClientTls> {
        self.links.subscribe()
    }

    /// SHA-256 of the key of the authority that has issued it.
    pub(super) fn issuer(&self) -> Option<[u8; 32]> {
        self.chain.get(1).and_then(|root| spki_sha256(root).ok())
    }

    /// The authorities that are accepted, as a control plane has told in this run.
    pub(super) fn trusted(&self) -> &[CertificateDer<'static>] {
        &self.roots
    }

    /// Whether what is told of this epoch and revision is not older than what was told before, by any control plane.
    pub(super) fn is_news(&mut self, version: (u64, u64)) -> bool {
        let news = version >= self.told;
        self.told = self.told.max(version);
        news
    }

    /// The same with the own chain, once that begins with a certificate of the one that issues.
    pub(super) fn vouched(&self) -> Option<Vouched> {
        let issuing = self.roots.first().and_then(|root| spki_sha256(root).ok());
        (issuing.is_some() && issuing == self.issuer()).then(|| Vouched {
            roots: self.roots.clone(),
            chain: self.chain.clone(),
        })
    }

    /// These authorities are accepted from now on, of which the first one issues. If it has not issued the present
    /// certificate, another one is asked for soon.
    ///
    /// # Errors
    /// They cannot be used; then nothing is changed.
    pub(super) fn trust(&mut self, roots: &[CertificateDer<'static>]) -> Result<(), SetupError> {
        let issuing = roots.first().and_then(|root| spki_sha256(root).ok());
        let credentials = Credentials::new(self.to_show(roots), self.key.clone());
        let tls = client_config(
            &Trust::Roots(roots.to_vec()),
            PeerKind::ControlPlane,
            Some(&credentials),
            &[channel::ALPN],
        )?;
        let file = self.data_dir.join("ca.pem");
        let pem = certificates_to_pem(roots);
        if let Err(error) = files::write_atomic(&file, pem.as_bytes(), files::PRIVATE) {
            tracing::error!(%error, "the authorities' certificates are used in this run only");
        }
        self.shown.replace(&credentials)?;
        self.links.send_replace(tls);
        self.roots = roots.to_vec();
        if issuing != self.issuer() {
            let spread = SPREAD.min(self.life.length() / 10);
            let random = u32::from_be_bytes(crypto::random_bytes());
            let wait = spread.mul_f64(f64::from(random) / f64::from(u32::MAX));
            (self.renew, self.next) = (SystemTime::now() + wait, Instant::now());
        }
        Ok(())
    }

    /// The chain as others see it: once the authority before the issuing one is not trusted any more, nothing leads to it. What
    /// did is kept for clients that have missed something.
    fn to_show(&self, roots: &[CertificateDer<'static>]) -> Vec<CertificateDer<'static>> {
        let mut chain = self.chain.clone();
        let issuing = roots.first().and_then(|root| spki_sha256(root).ok());
        if roots.len() == 1 && issuing == self.issuer() {
            chain.truncate(2);
        }
        chain
    }

    /// The request for another one, when it is time.
    pub(super) fn due(&mut self) -> Option<Vec<u8>> {
        let now = Instant::now();
        if now < self.next || SystemTime::now() < self.renew {
            return None;
        }
        self.next = now + RETRY.min(self.life.length() / 10);
        Some(csr_der(&self.key))
    }

    /// Nobody has issued one.
    pub(super) fn refused(&self, reason: &str) {
        match self.life.is_half_over(SystemTime::now()) {
            true => tracing::warn!(
                reason,
                "the node's certificate is not renewed, and more than half of its life is over"
            ),
            false => tracing::info!(reason, "the node's certificate is not renewed yet"),
        }
    }

    /// Takes a new one into use, and then writes it down.
    ///
    /// # Errors
    /// It is not this node's, or cannot be used; the old one stays.
    pub(super) fn take(&mut self, chain: Vec<CertificateDer<'static>>) -> Result<(), OwnError> {
        let leaf = chain.first().ok_or(OwnError::Foreign)?;
        let wanted = PeerIdentity::new(PeerKind::Node, self.id.as_str());
        let same_key = spki_sha256(leaf).is_ok_and(|hash| hash == self.key.spki_sha256());
        if !same_key || PeerIdentity::from_cert(leaf) != wanted {
            return Err(OwnError::Foreign);
        }
        let life = Life::of(leaf).map_err(|_| OwnError::Foreign)?;
        let pem = certificates_to_pem(&chain);
        let credentials = Credentials::new(chain.clone(), self.key.clone());
        let tls = link_tls(&self.data_dir, &credentials)?;
        self.shown.replace(&credentials)?;
        self.links.send_replace(tls);
        (self.life, self.renew) = (life, life.draw_renewal());
        (self.next, self.chain) = (Instant::now(), chain);
        let file = self.data_dir.join("node.pem");
        // A few hundred bytes, a few times in the life of a process.
        match files::write_atomic(&file, pem.as_bytes(), files::PRIVATE) {
            Ok(()) => tracing::info!("the node's certificate is renewed"),
            Err(error) => {
                tracing::error!(%error, "the node's certificate is renewed for this run only");
            }
        }
        Ok(())
    }
}

fn link_tls(data_dir: &std::path::Path, own: &Credentials) -> Result<ClientTls, SetupError> {
    let trust = Trust::Ca(data_dir.join("ca.pem"));
    client_config(&trust, PeerKind::ControlPlane, Some(own), &[channel::ALPN])
}
