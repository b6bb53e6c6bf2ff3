//! The two certificate verifiers that rustls does not bring: one that trusts by identity instead
//! of by host name, and one that accepts any key whose possession is proved.
//! The mathematics (chain, dates, signatures) stays with webpki and the provider.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};

use super::provider::provider;
use crate::identity::{self, PeerIdentity, PeerKind};

/// A chain that is sound, but not of the peer that we want.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PeerMismatch {
    /// No certificate that the server sent has the pinned key.
    #[error("the server's chain does not contain the pinned CA key")]
    Pin,
    /// The certificate is one of ours, for another kind of process.
    #[error("expected a {expected} certificate, found one of a {found}")]
    Kind {
        /// What must answer.
        expected: PeerKind,
        /// What answered.
        found: PeerKind,
    },
    /// The certificate has no identity of ours.
    #[error("expected a {expected} certificate, found one without an identity")]
    NoIdentity {
        /// What must answer.
        expected: PeerKind,
    },
}

impl From<PeerMismatch> for Error {
    fn from(mismatch: PeerMismatch) -> Self {
        let other: Arc<dyn std::error::Error + Send + Sync> = Arc::new(mismatch);
        CertificateError::Other(OtherError(other)).into()
    }
}

/// Where a server's chain must end.
#[derive(Debug)]
pub(super) enum Anchor {
    Roots(RootCertStore),
    Pin([u8; 32]),
}

/// Verifies a server by chain, dates, purpose and kind.
#[derive(Debug)]
pub(super) struct IdentityVerifier {
    anchor: Anchor,
    expected: PeerKind,
    algorithms: WebPkiSupportedAlgorithms,
}

impl IdentityVerifier {
    pub(super) fn new(anchor: Anchor, expected: PeerKind) -> Self {
        let algorithms = provider().signature_verification_algorithms;
        Self {
            anchor,
            expected,
            algorithms,
        }
    }

    /// Whether it accepts a server that shows this chain at this moment.
    pub(super) fn accepts(&self, chain: &[CertificateDer<'_>]) -> bool {
        let Some((leaf, way)) = chain.split_first() else {
            return false;
        };
        let name = ServerName::try_from("secure-gateway.invalid");
        let name = name.expect("invariant: the constant is a DNS name");
        self.verify_server_cert(leaf, way, &name, &[], UnixTime::now())
            .is_ok()
    }

    fn check_kind(&self, leaf: &CertificateDer<'_>) -> Result<(), PeerMismatch> {
        let expected = self.expected;
        let identity =
            PeerIdentity::from_cert(leaf).map_err(|_| PeerMismatch::NoIdentity { expected })?;
        if identity.kind == expected {
            Ok(())
        } else {
            Err(PeerMismatch::Kind {
                expected,
                found: identity.kind,
            })
        }
    }
}

/// The certificate with the pinned key as the only root. Its own signature and dates do not
/// matter: the pin vouches for the key, and the key for what it signed.
fn pinned_root(pin: &[u8; 32], sent: &[CertificateDer<'_>]) -> Result<RootCertStore, Error> {
    let pinned = |certificate: &&CertificateDer<'_>| {
        identity::spki_sha256(certificate).is_ok_and(|hash| hash == *pin)
    };
    let root = sent.iter().find(pinned).ok_or(PeerMismatch::Pin)?;
    let mut roots = RootCertStore::empty();
    roots.add(root.clone().into_owned())?;
    Ok(roots)
}

impl ServerCertVerifier for IdentityVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(leaf)?;
        let found;
        let roots = match &self.anchor {
            Anchor::Roots(roots) => roots,
            Anchor::Pin(pin) => {
                found = pinned_root(pin, sent)?;
                &found
            }
        };
        let algorithms = self.algorithms.all;
        verify_server_cert_signed_by_trust_anchor(&parsed, roots, sent, now, algorithms)?;
        self.check_kind(leaf)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// Whether this root itself, with nothing between them, has issued a server's certificate of this kind.
pub fn issued_by(
    leaf: &CertificateDer<'_>,
    root: &CertificateDer<'static>,
    kind: PeerKind,
) -> bool {
    let mut roots = RootCertStore::empty();
    if roots.add(root.clone()).is_err() {
        return false;
    }
    IdentityVerifier::new(Anchor::Roots(roots), kind).accepts(std::slice::from_ref(leaf))
}

/// Accepts any client certificate that parses: the signature of the handshake proves the key, and
/// the key alone is what the client is known by. Names, issuer and dates mean nothing here.
#[derive(Debug)]
pub(super) struct AnyKeyVerifier {
    algorithms: WebPkiSupportedAlgorithms,
}

impl AnyKeyVerifier {
    pub(super) fn new() -> Self {
        Self {
            algorithms: provider().signature_verification_algorithms,
        }
    }
}

impl ClientCertVerifier for AnyKeyVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        _sent: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        identity::spki_sha256(leaf).map_err(|_| CertificateError::BadEncoding)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

fn no_tls12() -> Error {
    rustls::PeerIncompatible::Tls12NotOffered.into()
}
