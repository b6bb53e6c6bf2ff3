//! Certificates that are shown inside a connection and not in its handshake: a client's, in its first message. Nothing but the
//! certificate authorities at hand is asked.
//!
//! Such a certificate proves nothing by itself, for everybody may have seen it. It is bound to the key that the handshake
//! proved, and whoever has another one is refused.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::pki_types::UnixTime;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;

use super::CertificateDer;
use super::error::SetupError;
use super::provider::provider;
use super::trust::root_store;
use crate::identity::{self, PeerIdentity, PeerKind};

/// Longest certificate that is looked at, in bytes; those of ours have less than a thousand.
pub const LONGEST_ISSUED: usize = 4096;

/// Certificates between one and its authority.
const LONGEST_WAY: usize = 2;

/// The authorities whose certificates are accepted. Clones share them: [`Issuers::replace`] is seen by all.
#[derive(Clone)]
pub struct Issuers(Arc<RwLock<Arc<dyn ClientCertVerifier>>>);

/// Why a certificate is not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IssuedError {
    /// It is none, or none of our authorities has signed it for this purpose.
    #[error("no authority of ours has issued the certificate")]
    Unknown,
    /// Its time is over.
    #[error("the certificate has expired")]
    Expired,
    /// It is for another kind of process.
    #[error("the certificate is for another kind of process")]
    Kind,
    /// It is for another key than the handshake proved.
    #[error("the certificate is for another key")]
    Key,
}

impl Issuers {
    /// Accepts what these authorities have issued.
    ///
    /// # Errors
    /// There is none, or one cannot be used.
    pub fn new(roots: &[CertificateDer<'static>]) -> Result<Self, SetupError> {
        Ok(Self(Arc::new(RwLock::new(verifier(roots)?))))
    }

    /// Accepts what these have issued from now on. On an error it stays as it was.
    ///
    /// # Errors
    /// As [`Issuers::new`].
    pub fn replace(&self, roots: &[CertificateDer<'static>]) -> Result<(), SetupError> {
        let new = verifier(roots)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = new;
        Ok(())
    }

    /// Who the first certificate of a chain is for, if it is of this kind, holds now, and belongs to the key of this hash. The
    /// others are on the way from it to an authority.
    ///
    /// # Errors
    /// [`IssuedError`].
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        kind: PeerKind,
        key_sha256: &[u8; 32],
        now: SystemTime,
    ) -> Result<PeerIdentity, IssuedError> {
        let (certificate, way) = chain.split_first().ok_or(IssuedError::Unknown)?;
        if way.len() > LONGEST_WAY || chain.iter().any(|one| one.len() > LONGEST_ISSUED) {
            return Err(IssuedError::Unknown);
        }
        // The cheap questions first: no stranger makes us check a signature of somebody else's certificate.
        let key = identity::spki_sha256(certificate).map_err(|_| IssuedError::Unknown)?;
        if key != *key_sha256 {
            return Err(IssuedError::Key);
        }
        let identity = PeerIdentity::from_cert(certificate).map_err(|_| IssuedError::Unknown)?;
        if identity.kind != kind {
            return Err(IssuedError::Kind);
        }
        let since = now.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let verifier = Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner));
        verifier
            .verify_client_cert(certificate, way, UnixTime::since_unix_epoch(since))
            .map_err(|error| match error {
                rustls::Error::InvalidCertificate(
                    rustls::CertificateError::Expired
                    | rustls::CertificateError::ExpiredContext { .. },
                ) => IssuedError::Expired,
                _ => IssuedError::Unknown,
            })?;
        Ok(identity)
    }
}

impl fmt::Debug for Issuers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issuers").finish_non_exhaustive()
    }
}

fn verifier(roots: &[CertificateDer<'static>]) -> Result<Arc<dyn ClientCertVerifier>, SetupError> {
    let roots = Arc::new(root_store(roots)?);
    WebPkiClientVerifier::builder_with_provider(roots, provider())
        .build()
        .map_err(|_| SetupError::NoRoot)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::{
        BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType,
    };

    use super::*;
    use crate::crypto;
    use crate::identity::KeyPair;

    struct Ca(Issuer<'static, rcgen::KeyPair>, CertificateDer<'static>);

    impl Ca {
        fn new() -> Self {
            let key = rcgen::KeyPair::generate().unwrap();
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let root = params.self_signed(&key).unwrap().der().clone();
            Self(Issuer::new(params, key), root)
        }

        fn issue(
            &self,
            key: &KeyPair,
            uri: &str,
            purpose: ExtendedKeyUsagePurpose,
        ) -> CertificateDer<'static> {
            let mut params = CertificateParams::default();
            params.not_before = (SystemTime::now() - Duration::from_secs(60)).into();
            params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
            params.subject_alt_names = vec![SanType::URI(uri.try_into().unwrap())];
            params.extended_key_usages = vec![purpose];
            params
                .signed_by(key.signing(), &self.0)
                .unwrap()
                .der()
                .clone()
        }
    }

    #[test]
    fn a_certificate_counts_for_its_key_its_kind_its_time_and_its_authority() {
        crypto::install();
        let (ca, other, key) = (Ca::new(), Ca::new(), KeyPair::generate());
        let uri = "spiffe://secure-gateway/client/g1.0.c1";
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let good = ca.issue(&key, uri, purpose.clone());
        let issuers = Issuers::new(std::slice::from_ref(&ca.1)).unwrap();
        let (now, hash) = (SystemTime::now(), key.spki_sha256());
        let check = |certificate: &CertificateDer<'_>, hash: &[u8; 32], now| {
            issuers
                .verify(
                    std::slice::from_ref(certificate),
                    PeerKind::Client,
                    hash,
                    now,
                )
                .map(|i| i.id)
        };
        assert_eq!(check(&good, &hash, now), Ok("g1.0.c1".to_owned()));
        let another = KeyPair::generate().spki_sha256();
        assert_eq!(check(&good, &another, now), Err(IssuedError::Key));
        let late = now + Duration::from_secs(7200);
        assert_eq!(check(&good, &hash, late), Err(IssuedError::Expired));
        let node = ca.issue(&key, "spiffe://secure-gateway/node/n1", purpose.clone());
        assert_eq!(check(&node, &hash, now), Err(IssuedError::Kind));
        let foreign = other.issue(&key, uri, purpose);
        assert_eq!(check(&foreign, &hash, now), Err(IssuedError::Unknown));
        let server = ca.issue(&key, uri, ExtendedKeyUsagePurpose::ServerAuth);
        assert_eq!(check(&server, &hash, now), Err(IssuedError::Unknown));
        let own = identity::self_signed(&key, "c1");
        assert_eq!(check(&own, &hash, now), Err(IssuedError::Unknown));
        assert_eq!(
            check(&vec![0; 9000].into(), &hash, now),
            Err(IssuedError::Unknown)
        );

        issuers.replace(std::slice::from_ref(&other.1)).unwrap();
        assert_eq!(check(&good, &hash, now), Err(IssuedError::Unknown));
        assert_eq!(check(&foreign, &hash, now), Ok("g1.0.c1".to_owned()));
        assert!(issuers.replace(&[]).is_err());
        assert!(check(&foreign, &hash, now).is_ok());
    }
}
