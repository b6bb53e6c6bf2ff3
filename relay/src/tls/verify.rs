//! What is checked of a peer's certificate. An uploaded certificate that equals the peer's own is accepted as
//! such, self-signed, CA:TRUE and X.509 version 1 included; its dates (and at a resource its name) still count.
//! Any other must chain to one that is trusted; the mathematics of that stays with webpki.
//!
//! rustls calls the verifiers in the middle of handling a message, on the same thread. What they know beyond
//! rustls' own error is left in a note for whoever handles that error.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::crypto::{verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};
use sg_runtime::tls::material::{self, Facts};

use super::error::Shown;
use super::provider::{accepting, algorithms, dialling};
use super::trust::Trusted;
use super::{TlsError, TlsSetupError};

thread_local! {
    static NOTE: RefCell<Option<TlsError>> = const { RefCell::new(None) };
    static ASKED: Cell<bool> = const { Cell::new(false) };
}

/// What a verifier has to say about the error that was just returned on this thread.
pub(super) fn take_note() -> Option<TlsError> {
    NOTE.take()
}

/// Before a session handles anything on this thread.
pub(super) fn clear_notes() {
    NOTE.set(None);
    ASKED.set(false);
}

/// The peer asked for our certificate since [`clear_notes`].
pub(super) fn certificate_was_asked() -> bool {
    ASKED.get()
}

/// Leaves a note about a refused certificate.
fn refuse(error: Error, leaf: &CertificateDer<'_>, asked: &str) -> Error {
    if let Error::InvalidCertificate(reason) = &error {
        let mut noted = TlsError::of_certificate(reason, &shown(leaf, asked));
        if material::is_version_1(leaf) && matches!(noted, TlsError::BadCertificate(_)) {
            noted = TlsError::BadCertificate(
                "it is of X.509 version 1: issue one of version 3, or upload this very certificate"
                    .to_owned(),
            );
        }
        NOTE.set(Some(noted));
    }
    error
}

fn shown(leaf: &CertificateDer<'_>, asked: &str) -> Shown {
    let Ok(facts) = Facts::of(leaf) else {
        return Shown::default();
    };
    let names = facts.names();
    Shown {
        asked: asked.to_owned(),
        names,
        subject: facts.subject,
        issuer: facts.issuer,
        self_issued: facts.self_issued,
    }
}

/// The dates of a certificate that is accepted as such.
pub(super) fn check_dates(facts: &Facts, now: UnixTime) -> Result<(), CertificateError> {
    let at = |seconds: i64| {
        let since = std::time::Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
        UnixTime::since_unix_epoch(since)
    };
    let (not_before, not_after) = (at(facts.not_before), at(facts.not_after));
    if now.as_secs() > not_after.as_secs() {
        return Err(CertificateError::ExpiredContext {
            time: now,
            not_after,
        });
    }
    if now.as_secs() < not_before.as_secs() {
        return Err(CertificateError::NotValidYetContext {
            time: now,
            not_before,
        });
    }
    Ok(())
}

/// Verifies a resource.
#[derive(Debug)]
pub(super) struct ResourceVerifier {
    pinned: Vec<CertificateDer<'static>>,
    chain: Option<Arc<WebPkiServerVerifier>>,
    /// Accept anything.
    insecure: bool,
}

impl ResourceVerifier {
    pub(super) fn new(trusted: &Trusted, insecure: bool) -> Result<Self, TlsSetupError> {
        let chain = chain_verifier(&trusted.roots, |roots| {
            WebPkiServerVerifier::builder_with_provider(roots, dialling()).build()
        })?;
        Ok(Self {
            pinned: trusted.pinned.clone(),
            chain,
            insecure,
        })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.pinned.contains(leaf) {
            let facts = Facts::of(leaf).map_err(|_| CertificateError::BadEncoding)?;
            check_dates(&facts, now)?;
            return match facts.is_for(&name.to_str()) {
                true => Ok(()),
                false => Err(CertificateError::NotValidForName.into()),
            };
        }
        let Some(chain) = &self.chain else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        chain
            .verify_server_cert(leaf, sent, name, ocsp, now)
            .map(drop)
    }
}

impl ServerCertVerifier for ResourceVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if !self.insecure {
            self.check(leaf, sent, name, ocsp, now)
                .map_err(|error| refuse(error, leaf, &name.to_str()))?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, cert, signature, verify_tls12_signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, cert, signature, verify_tls13_signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// Verifies a user, who must show a certificate.
#[derive(Debug)]
pub(super) struct UserVerifier {
    pinned: Vec<CertificateDer<'static>>,
    chain: Option<Arc<dyn ClientCertVerifier>>,
}

impl UserVerifier {
    pub(super) fn new(trusted: &Trusted) -> Result<Self, TlsSetupError> {
        let chain = chain_verifier(&trusted.roots, |roots| {
            WebPkiClientVerifier::builder_with_provider(roots, accepting()).build()
        })?;
        Ok(Self {
            pinned: trusted.pinned.clone(),
            chain,
        })
    }

    fn check(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.pinned.contains(leaf) {
            let facts = Facts::of(leaf).map_err(|_| CertificateError::BadEncoding)?;
            return Ok(check_dates(&facts, now)?);
        }
        let Some(chain) = &self.chain else {
            return Err(CertificateError::UnknownIssuer.into());
        };
        chain.verify_client_cert(leaf, sent, now).map(drop)
    }
}

impl ClientCertVerifier for UserVerifier {
    /// No hints: a program that has one certificate should show it, whoever issued it.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        sent: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.check(leaf, sent, now)
            .map_err(|error| refuse(error, leaf, ""))?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, cert, signature, verify_tls12_signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        signed(message, cert, signature, verify_tls13_signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        algorithms().supported_schemes()
    }
}

/// webpki refuses to be built without roots; then only pinned certificates count.
fn chain_verifier<V, E: std::fmt::Display>(
    roots: &Arc<RootCertStore>,
    build: impl FnOnce(Arc<RootCertStore>) -> Result<V, E>,
) -> Result<Option<V>, TlsSetupError> {
    if roots.is_empty() {
        return Ok(None);
    }
    build(Arc::clone(roots))
        .map(Some)
        .map_err(|error| TlsSetupError::Root(error.to_string()))
}

type Verify = fn(
    &[u8],
    &CertificateDer<'_>,
    &DigitallySignedStruct,
    &rustls::crypto::WebPkiSupportedAlgorithms,
) -> Result<HandshakeSignatureValid, Error>;

/// The proof that the peer has the key. webpki does not look at certificates of version 1, which get here only
/// when they are accepted as such: for them the key alone is taken.
fn signed(
    message: &[u8],
    cert: &CertificateDer<'_>,
    signature: &DigitallySignedStruct,
    verify: Verify,
) -> Result<HandshakeSignatureValid, Error> {
    let algorithms = algorithms();
    if !material::is_version_1(cert) {
        return verify(message, cert, signature, &algorithms);
    }
    let key = material::public_key_bits(cert).map_err(|_| CertificateError::BadEncoding)?;
    let (_, candidates) = algorithms
        .mapping
        .iter()
        .find(|(scheme, _)| *scheme == signature.scheme)
        .ok_or(rustls::PeerMisbehaved::SignedHandshakeWithUnadvertisedSigScheme)?;
    let valid = candidates.iter().any(|algorithm| {
        algorithm
            .verify_signature(&key, message, signature.signature())
            .is_ok()
    });
    match valid {
        true => Ok(HandshakeSignatureValid::assertion()),
        false => Err(CertificateError::BadSignature.into()),
    }
}

/// The certificate that we show to a resource that asks for one, if there is one.
#[derive(Debug)]
pub(super) struct OurCertificate(pub(super) Option<Arc<CertifiedKey>>);

impl ResolvesClientCert for OurCertificate {
    fn resolve(
        &self,
        _issuers: &[&[u8]],
        schemes: &[SignatureScheme],
    ) -> Option<Arc<CertifiedKey>> {
        ASKED.set(true);
        let pair = self.0.as_ref()?;
        pair.key.choose_scheme(schemes)?;
        Some(Arc::clone(pair))
    }

    fn has_certs(&self) -> bool {
        self.0.is_some()
    }
}
