//! What a client was let in by, and for how long that keeps its tunnel. Pure but for the certificate's signature, which is
//! checked against the authorities at hand: no control plane is asked.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use sg_model::{CertificateRefusal, ClientCertificate, Gateway, Timestamp};
use sg_runtime::identity::{self, Life};
use sg_runtime::tls::{CertificateDer, IssuedError, Issuers, PeerInfo, PeerKind};

/// A client as its handshake proved it: by a key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ProvedKey {
    /// The key's hash in another form.
    pub(super) client_id: Arc<str>,
    pub(super) sha256: [u8; 32],
    /// SubjectPublicKeyInfo.
    pub(super) public_key_der: Box<[u8]>,
}

impl ProvedKey {
    /// The key of whoever is at the other end, if it has shown one.
    pub(super) fn of(peer: &PeerInfo) -> Option<Self> {
        let public_key_der = identity::public_key_der(peer.certificates.first()?).ok()?;
        let sha256 = sg_runtime::crypto::sha256(&public_key_der);
        Some(Self {
            client_id: identity::client_id(&sha256).into(),
            sha256,
            public_key_der: public_key_der.into(),
        })
    }
}

/// What a client was let in by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Nothing, where nothing is needed.
    None,
    /// A token, by its hash.
    Token([u8; 32]),
    /// A certificate, verified and bound to the client's key.
    Certificate(ClientCertificate),
}

impl Credential {
    /// The word for people.
    pub(crate) const fn as_str(&self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Token(_) => "token",
            Self::Certificate(_) => "certificate",
        }
    }

    /// When it ends, if it is a certificate.
    pub(crate) const fn certificate_ends(&self) -> Option<Timestamp> {
        match self {
            Self::Certificate(certificate) => Some(certificate.expires),
            Self::None | Self::Token(_) => None,
        }
    }

    /// Whether its holder may have a certificate: only who has shown something that holds at this moment. A tunnel may
    /// outlive its token; but it must not outlive it by way of a certificate.
    pub(super) fn may_exchange(&self, gateway: &Gateway, now: Timestamp) -> bool {
        match self {
            Self::None => false,
            Self::Token(hash) => {
                gateway.tokens.iter().any(|token| token.sha256 == *hash)
                    && gateway.admit(Some(hash), now).is_ok()
            }
            Self::Certificate(certificate) => gateway.admit_certificate(certificate, now).is_ok(),
        }
    }

    /// Why a tunnel that it opened may not stay under `gateway` as it is now, if it may not.
    pub(super) fn withdrawn(
        &self,
        gateway: &Gateway,
        client_id: &str,
        now: Timestamp,
    ) -> Option<&'static str> {
        const REVOKED: &str = "the gateway or its security token is no longer valid";
        if gateway.is_revoked(client_id) {
            return Some("the client is revoked");
        }
        if !gateway.enabled {
            return Some(REVOKED);
        }
        let token = match self {
            Self::Certificate(certificate) => {
                return match gateway.keeps_certificate(certificate, now) {
                    Ok(()) => None,
                    Err(CertificateRefusal::Expired) => {
                        Some("the client's certificate has expired")
                    }
                    Err(CertificateRefusal::Withdrawn | CertificateRefusal::Unauthenticated) => {
                        Some("the client's certificate was withdrawn")
                    }
                };
            }
            Self::Token(hash) => Some(hash),
            Self::None => None,
        };
        if gateway.keeps(token, now) {
            return None;
        }
        let known = token.is_some_and(|hash| gateway.tokens.iter().any(|t| t.sha256 == *hash));
        Some(match known {
            true => "the security token has expired",
            false => REVOKED,
        })
    }
}

/// A certificate that a client has shown, verified and bound to the key of its handshake.
///
/// # Errors
/// [`IssuedError`].
pub(super) fn certificate(
    issuers: &Issuers,
    chain: &[Vec<u8>],
    key: &ProvedKey,
    now: Timestamp,
) -> Result<ClientCertificate, IssuedError> {
    let chain: Vec<CertificateDer<'_>> = chain
        .iter()
        .map(|der| CertificateDer::from(der.as_slice()))
        .collect();
    let at: SystemTime = UNIX_EPOCH + Duration::from_millis(now.0);
    let identity = issuers.verify(&chain, PeerKind::Client, &key.sha256, at)?;
    let ends = chain
        .first()
        .ok_or(IssuedError::Unknown)
        .and_then(|leaf| Life::of(leaf).map_err(|_| IssuedError::Unknown))?
        .ends
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let expires = Timestamp(u64::try_from(ends.as_millis()).unwrap_or(u64::MAX));
    let parsed =
        ClientCertificate::parse(&identity.id, expires).map_err(|_| IssuedError::Unknown)?;
    // It follows from the key, and so must agree with it.
    match parsed.client.as_str() == &*key.client_id {
        true => Ok(parsed),
        false => Err(IssuedError::Key),
    }
}
