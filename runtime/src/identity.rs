//! Keys and certificates of this process, and who a certificate says its holder is.
//!
//! An identity is one URI in the certificate's subject alternative names,
//! `spiffe://secure-gateway/<kind>/<id>`. It counts only if the certificate was verified; that is
//! done in [`crate::tls`]. Issuing certificates is the control plane's work and not here.
//! A client has no issued certificate at first: its identity is the hash of its own key
//! ([`client_id`]), which it proves in the handshake with a self-signed certificate.

mod key;
mod life;
mod peer;

use std::path::Path;

pub use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::prelude::{FromDer as _, X509Certificate};

pub use self::key::{KeyFileError, KeyPair, NotAKey};
pub use self::life::{EARLY, Life};
pub use self::peer::{PeerIdentity, PeerKind, URI_PREFIX};
use crate::crypto;

/// A certificate that cannot be used. Whoever sent or stored it is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// It is no X.509 certificate in DER.
    #[error("the certificate cannot be parsed")]
    Malformed,
    /// It names nobody, several, or nobody of ours.
    #[error("the certificate has no identity {URI_PREFIX}<kind>/<id>")]
    Identity,
}
/// SHA-256 of a certificate's SubjectPublicKeyInfo in DER: what a pin compares.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn spki_sha256(certificate: &CertificateDer<'_>) -> Result<[u8; 32], CertificateError> {
    Ok(crypto::sha256(parse(certificate)?.public_key().raw))
}

/// A certificate's SubjectPublicKeyInfo in DER.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn public_key_der(certificate: &CertificateDer<'_>) -> Result<Vec<u8>, CertificateError> {
    Ok(parse(certificate)?.public_key().raw.to_vec())
}

/// Whether a certificate names this one as its issuer. The signature is not checked: for certificates of one's own.
#[must_use]
pub fn names_issuer(certificate: &CertificateDer<'_>, issuer: &CertificateDer<'_>) -> bool {
    match (parse(certificate), parse(issuer)) {
        (Ok(certificate), Ok(issuer)) => certificate.issuer().as_raw() == issuer.subject().as_raw(),
        _ => false,
    }
}

/// Whether a certificate names itself as its issuer, as roots do.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn is_root(certificate: &CertificateDer<'_>) -> Result<bool, CertificateError> {
    let certificate = parse(certificate)?;
    Ok(certificate.is_ca() && certificate.issuer().as_raw() == certificate.subject().as_raw())
}

/// The client id of whoever holds the key with this SPKI hash: `c` and 24 hexadecimal digits.
#[must_use]
pub fn client_id(spki_sha256: &[u8; 32]) -> String {
    format!(
        "c{}",
        crypto::hex(spki_sha256.first_chunk::<12>().unwrap_or(&[0; 12]))
    )
}

/// When a certificate stops being valid, in seconds since 1970.
///
/// # Errors
/// [`CertificateError::Malformed`].
pub fn not_after(certificate: &CertificateDer<'_>) -> Result<i64, CertificateError> {
    Ok(parse(certificate)?.validity().not_after.timestamp())
}

pub(crate) fn parse<'a>(
    certificate: &'a CertificateDer<'_>,
) -> Result<X509Certificate<'a>, CertificateError> {
    match X509Certificate::from_der(certificate.as_ref()) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Malformed),
    }
}

/// Every certificate of a PEM file, in its order.
///
/// # Errors
/// [`KeyFileError`] when it cannot be read or holds none.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KeyFileError> {
    let at = |source| KeyFileError::Read {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read(path).map_err(at)?;
    certificates_from_pem(&text).ok_or_else(|| KeyFileError::Malformed {
        path: path.to_owned(),
        expected: "a PEM certificate",
    })
}

/// Every certificate of a PEM text; `None` if there is none or one is damaged.
#[must_use]
pub fn certificates_from_pem(text: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    let found: Vec<_> = CertificateDer::pem_slice_iter(text)
        .collect::<Result<_, _>>()
        .ok()?;
    (!found.is_empty() && found.iter().all(|certificate| parse(certificate).is_ok()))
        .then_some(found)
}

/// Certificates as PEM text, in their order.
#[must_use]
pub fn certificates_to_pem(chain: &[CertificateDer<'_>]) -> String {
    let blocks: Vec<_> = chain
        .iter()
        .map(|certificate| pem::Pem::new("CERTIFICATE", certificate.as_ref()))
        .collect();
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_many_config(&blocks, config)
}

/// A self-signed certificate for `key`: it proves the key and claims nothing, so it does not
/// expire. `name` (the common name) is for whoever reads it.
///
/// # Panics
/// Never: names of any text are allowed there.
#[must_use]
pub fn self_signed(key: &KeyPair, name: &str) -> CertificateDer<'static> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.self_signed(key.signing());
    certificate
        .expect("invariant: a P-256 key signs")
        .der()
        .clone()
}

/// A certificate signing request (DER) that proves possession of `key`. It asks for no name: the
/// issuer decides all of it.
#[must_use]
pub fn csr_der(key: &KeyPair) -> Vec<u8> {
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    let request = params.serialize_request(key.signing());
    request
        .expect("invariant: a P-256 key signs")
        .der()
        .to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rcgen::PublicKeyData as _;

    use super::*;
    use crate::files;

    fn with_uris(uris: &[&str]) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| rcgen::SanType::URI((*uri).try_into().unwrap()))
            .collect();
        params
            .self_signed(KeyPair::generate().signing())
            .unwrap()
            .der()
            .clone()
    }

    #[test]
    fn an_identity_is_read_from_exactly_one_uri() {
        let one = with_uris(&["spiffe://secure-gateway/node/n-1"]);
        let identity = PeerIdentity::from_cert(&one).unwrap();
        assert_eq!(identity, PeerIdentity::new(PeerKind::Node, "n-1").unwrap());
        assert_eq!(identity.to_string(), "spiffe://secure-gateway/node/n-1");
        for uris in [
            &[][..],
            &[
                "spiffe://secure-gateway/node/a",
                "spiffe://secure-gateway/control-plane/b",
            ],
            &["https://secure-gateway/node/a"],
        ] {
            assert_eq!(
                PeerIdentity::from_cert(&with_uris(uris)),
                Err(CertificateError::Identity)
            );
        }
    }

    #[test]
    fn malformed_identities_are_refused() {
        for uri in [
            "",
            "spiffe://secure-gateway/",
            "spiffe://secure-gateway/node",
            "spiffe://secure-gateway/node/",
            "spiffe://secure-gateway/nodes/a",
            "spiffe://secure-gateway/node/a/b",
            "spiffe://secure-gateway/node/a b",
            "spiffe://other/node/a",
            "SPIFFE://secure-gateway/node/a",
        ] {
            assert_eq!(
                uri.parse::<PeerIdentity>(),
                Err(CertificateError::Identity),
                "{uri}"
            );
        }
        assert!(PeerIdentity::new(PeerKind::Node, "x".repeat(129)).is_err());
    }

    #[test]
    fn bytes_that_are_no_certificate_are_an_error() {
        let mut bytes = self_signed(&KeyPair::generate(), "c").to_vec();
        bytes.push(0);
        for der in [bytes, vec![], vec![0x30, 0x80], b"hello".to_vec()] {
            let der = CertificateDer::from(der);
            assert_eq!(spki_sha256(&der), Err(CertificateError::Malformed));
            assert_eq!(
                PeerIdentity::from_cert(&der),
                Err(CertificateError::Malformed)
            );
        }
    }

    #[test]
    fn key_and_certificate_agree_on_the_client_id() {
        let key = KeyPair::generate();
        let certificate = self_signed(&key, "client");
        let hash = spki_sha256(&certificate).unwrap();
        assert_eq!(hash, key.spki_sha256());
        assert_eq!(key.client_id(), client_id(&hash));
        assert_eq!(key.client_id().len(), 25);
        assert_eq!(key.client_id(), format!("c{}", crypto::hex(&hash[..12])));
    }

    #[test]
    fn a_key_file_is_made_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.key");
        let made = KeyPair::load_or_create(&path).unwrap();
        let read = KeyPair::load_or_create(&path).unwrap();
        assert_eq!(made.spki_sha256(), read.spki_sha256());
        assert!(!files::readable_by_others(&path).unwrap());
        assert!(!format!("{made:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_malformed_key_file_is_named_and_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("client.key");
        std::fs::write(&path, "no key").unwrap();
        let error = KeyPair::load_or_create(&path).unwrap_err();
        assert!(matches!(error, KeyFileError::Malformed { .. }));
        assert!(error.to_string().contains("client.key"), "{error}");
        assert_eq!(std::fs::read(&path).unwrap(), b"no key");
    }

    #[test]
    fn several_certificates_survive_a_pem_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ca.pem");
        let chain = [
            self_signed(&KeyPair::generate(), "a"),
            self_signed(&KeyPair::generate(), "b"),
        ];
        std::fs::write(&path, certificates_to_pem(&chain)).unwrap();
        assert_eq!(read_certificates(&path).unwrap(), chain);
        std::fs::write(&path, "nothing").unwrap();
        assert!(matches!(
            read_certificates(&path),
            Err(KeyFileError::Malformed { .. })
        ));
    }

    #[test]
    fn a_request_proves_its_key() {
        let key = KeyPair::generate();
        let request = csr_der(&key).into();
        let parsed = rcgen::CertificateSigningRequestParams::from_der(&request).unwrap();
        assert_eq!(
            crypto::sha256(&parsed.public_key.subject_public_key_info()),
            key.spki_sha256()
        );
    }
}
