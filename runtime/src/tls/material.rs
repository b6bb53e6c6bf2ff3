//! Certificates and keys that people hand over for their destinations: read, checked, described, made.
//!
//! Everything is a plain value, and nothing here opens a connection: the control plane refuses with it what
//! could not be used later, and the relay's TLS ends are built from it. What a peer's certificate must fulfil
//! is decided there, not here.
//!
//! Where to start: [`certificates`] and [`Pair::parse`] read, [`Facts::of`] describes, [`Pair::self_signed`]
//! and [`Pair::issue`] make.

mod facts;
mod make;
mod read;

use std::fmt;

use rustls::crypto::aws_lc_rs::sign::any_supported_type;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{
    CertificateDer, PrivateKeyDer, PrivatePkcs1KeyDer, PrivatePkcs8KeyDer, PrivateSec1KeyDer,
};

pub use self::facts::{Facts, date, host_matches, is_version_1, public_key_bits};
pub use self::make::IssueError;
pub use self::read::{LONGEST, MOST_CERTIFICATES, certificates};
use super::error::SetupError;
use crate::secret::Secret;

/// Material that cannot be used. Whoever handed it over is to blame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct MaterialError {
    /// The field or file that it was given in.
    pub field: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a certificate or a key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// Nothing at all.
    #[error("it is empty")]
    Empty,
    /// Longer than anything of the kind is.
    #[error("it is longer than {LONGEST} bytes")]
    TooLong,
    /// More certificates than may be in one field.
    #[error("it holds more than {MOST_CERTIFICATES} certificates")]
    TooMany,
    /// Damaged PEM.
    #[error("it is damaged PEM text: {0}")]
    DamagedPem(String),
    /// PEM text of something else.
    #[error("it holds no certificate, only {0}")]
    OnlyOther(String),
    /// Neither PEM nor DER.
    #[error("it is neither PEM text nor a certificate in DER")]
    NotACertificate,
    /// One certificate of several is damaged.
    #[error("certificate {0} in it is damaged")]
    DamagedCertificate(usize),
    /// A key with a passphrase.
    #[error("the private key is encrypted; decrypt it first (openssl pkey -in KEY -out PLAIN)")]
    EncryptedKey,
    /// No key.
    #[error("it holds no private key (PKCS#8, PKCS#1 or SEC1; PEM or DER)")]
    NoKey,
    /// More than one key.
    #[error("it holds {0} private keys, and one is needed")]
    SeveralKeys(usize),
    /// A key of a kind that TLS cannot be done with here.
    #[error(
        "the private key is of a kind that cannot be used (RSA of 2048 bits or more, ECDSA P-256, P-384, P-521 and Ed25519 can)"
    )]
    UnusableKey,
    /// Not one pair.
    #[error("the private key does not belong to the certificate \"{0}\"")]
    Mismatch(String),
}

impl MaterialError {
    pub(super) fn new(field: &str, problem: Problem) -> Self {
        Self {
            field: field.to_owned(),
            problem,
        }
    }
}

/// A private key of one of the three usual forms.
#[derive(Clone)]
pub struct PrivateKey {
    form: KeyForm,
    der: Secret<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum KeyForm {
    Pkcs8,
    Pkcs1,
    Sec1,
}

impl PrivateKey {
    fn borrowed(&self) -> PrivateKeyDer<'_> {
        let der = self.der.expose().as_slice();
        match self.form {
            KeyForm::Pkcs8 => PrivatePkcs8KeyDer::from(der).into(),
            KeyForm::Pkcs1 => PrivatePkcs1KeyDer::from(der).into(),
            KeyForm::Sec1 => PrivateSec1KeyDer::from(der).into(),
        }
    }

    /// PEM text.
    #[must_use]
    pub fn to_pem(&self) -> Secret<String> {
        let label = match self.form {
            KeyForm::Pkcs8 => "PRIVATE KEY",
            KeyForm::Pkcs1 => "RSA PRIVATE KEY",
            KeyForm::Sec1 => "EC PRIVATE KEY",
        };
        let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
        let block = pem::Pem::new(label, self.der.expose().as_slice());
        Secret::new(pem::encode_config(&block, config))
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PrivateKey({:?})", self.form)
    }
}

/// A certificate chain, own certificate first, and the key of that one, which was checked.
#[derive(Debug, Clone)]
pub struct Pair {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKey,
    facts: Facts,
}

impl Pair {
    /// Reads a chain and a key, each as PEM or DER; `field` names the two in errors. If the chain's first
    /// certificate is not the key's, the one that is goes first.
    ///
    /// # Errors
    /// [`MaterialError`].
    pub fn parse(chain: &[u8], key: &Secret<Vec<u8>>, field: &str) -> Result<Self, MaterialError> {
        let certificate_field = format!("{field} certificate");
        let mut chain = certificates(chain, &certificate_field)?;
        let key = read::private_key(key, &format!("{field} key"))?;
        let belongs = |one: &CertificateDer<'_>| belongs(&key, one);
        match chain.iter().position(belongs) {
            Some(0) => {}
            Some(at) => chain[..=at].rotate_right(1),
            None => {
                let name = Facts::of(&chain[0]).map(|facts| facts.subject).ok();
                let problem = Problem::Mismatch(name.unwrap_or_default());
                return Err(MaterialError::new(field, problem));
            }
        }
        let damaged = |_| MaterialError::new(&certificate_field, Problem::DamagedCertificate(1));
        let facts = Facts::of(&chain[0]).map_err(damaged)?;
        Ok(Self { chain, key, facts })
    }

    /// The chain, own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> &PrivateKey {
        &self.key
    }

    /// What its own certificate says.
    #[must_use]
    pub const fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The chain as PEM text.
    #[must_use]
    pub fn chain_pem(&self) -> String {
        crate::identity::certificates_to_pem(&self.chain)
    }

    /// The pair as TLS uses it.
    ///
    /// # Errors
    /// Never for a pair that was read or made here, but the provider may change its mind.
    pub fn certified(&self) -> Result<CertifiedKey, SetupError> {
        let key = any_supported_type(&self.key.borrowed()).map_err(SetupError::Credentials)?;
        Ok(CertifiedKey::new(self.chain.clone(), key))
    }
}

/// Whether the key is that of the certificate.
fn belongs(key: &PrivateKey, certificate: &CertificateDer<'_>) -> bool {
    let Ok(signing) = any_supported_type(&key.borrowed()) else {
        return false;
    };
    let Ok(parsed) = crate::identity::parse(certificate) else {
        return false;
    };
    signing
        .public_key()
        .is_some_and(|public| public.as_ref() == parsed.public_key().raw)
}

#[cfg(test)]
mod tests;
