//! Whom a client trusts, and the certificate and key that a process shows.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustls::RootCertStore;

use super::{CertificateDer, SetupError};
use crate::crypto;
use crate::identity::{self, KeyFileError, KeyPair};

/// The root that a server's chain must end at. Parses from `FILE` or `sha256:HEX`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trust {
    /// A PEM file with one or more CA certificates.
    Ca(PathBuf),
    /// CA certificates at hand.
    Roots(Vec<CertificateDer<'static>>),
    /// SHA-256 of the CA's SubjectPublicKeyInfo (DER). The server sends the CA certificate along.
    Pin([u8; 32]),
}

impl FromStr for Trust {
    type Err = ParseTrustError;

    fn from_str(text: &str) -> Result<Self, ParseTrustError> {
        match text.strip_prefix("sha256:") {
            Some(digits) => crypto::unhex(digits)
                .and_then(|bytes| bytes.try_into().ok())
                .map(Self::Pin)
                .ok_or(ParseTrustError),
            None if text.is_empty() => Err(ParseTrustError),
            None => Ok(Self::Ca(text.into())),
        }
    }
}

impl fmt::Display for Trust {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ca(path) => write!(f, "{}", path.display()),
            Self::Roots(roots) => write!(f, "{} CA certificates", roots.len()),
            Self::Pin(hash) => write!(f, "sha256:{}", crypto::hex(hash)),
        }
    }
}

/// A text that is neither a file name nor `sha256:` with 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("give the CA's PEM file, or sha256: and the 64 hexadecimal digits of its key's hash")]
pub struct ParseTrustError;

/// A certificate chain (own certificate first) and its key.
#[derive(Debug, Clone)]
pub struct Credentials {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: KeyPair,
}

impl Credentials {
    /// Puts chain and key together; whether they belong together is checked on use.
    #[must_use]
    pub const fn new(chain: Vec<CertificateDer<'static>>, key: KeyPair) -> Self {
        Self { chain, key }
    }

    /// Reads both from PEM files.
    ///
    /// # Errors
    /// [`KeyFileError`] names the file.
    pub fn load(chain: &Path, key: &Path) -> Result<Self, KeyFileError> {
        Ok(Self {
            chain: identity::read_certificates(chain)?,
            key: KeyPair::load(key)?,
        })
    }

    /// The chain, own certificate first.
    #[must_use]
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The key.
    #[must_use]
    pub const fn key(&self) -> &KeyPair {
        &self.key
    }
}

pub(super) fn root_store(roots: &[CertificateDer<'static>]) -> Result<RootCertStore, SetupError> {
    let mut store = RootCertStore::empty();
    for root in roots {
        store.add(root.clone()).map_err(SetupError::Root)?;
    }
    if store.is_empty() {
        Err(SetupError::NoRoot)
    } else {
        Ok(store)
    }
}
