//! The key pair of a process, its file, and why such a file cannot be used.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use rcgen::PublicKeyData as _;

use super::client_id;
use crate::secret::Secret;
use crate::{crypto, files};

/// An ECDSA P-256 key pair.
pub struct KeyPair(rcgen::KeyPair);

impl KeyPair {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256);
        Self(pair.expect("invariant: the provider makes P-256 keys"))
    }

    /// Reads PKCS#8 PEM text.
    ///
    /// # Errors
    /// Nothing is told about the text but that it is no such key.
    pub fn from_pem(text: &str) -> Result<Self, NotAKey> {
        rcgen::KeyPair::from_pkcs8_pem_and_sign_algo(text, &rcgen::PKCS_ECDSA_P256_SHA256)
            .map(Self)
            .map_err(|_| NotAKey)
    }

    /// PKCS#8 PEM text.
    #[must_use]
    pub fn to_pem(&self) -> Secret<String> {
        Secret::new(self.0.serialize_pem())
    }

    /// Reads a key file.
    ///
    /// # Errors
    /// [`KeyFileError`].
    pub fn load(path: &Path) -> Result<Self, KeyFileError> {
        let text = std::fs::read_to_string(path)
            .map(Secret::new)
            .map_err(|source| KeyFileError::Read {
                path: path.to_owned(),
                source,
            })?;
        if files::readable_by_others(path).unwrap_or(false) {
            tracing::warn!(path = %path.display(), "key file is readable by others; chmod 600 it");
        }
        Self::from_pem(text.expose()).map_err(|NotAKey| KeyFileError::Malformed {
            path: path.to_owned(),
            expected: "a P-256 key as PKCS#8 PEM",
        })
    }

    /// Reads the key file, or makes it (mode 0600). Racing processes end with the same key.
    ///
    /// # Errors
    /// [`KeyFileError`]; a malformed file is never replaced.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyFileError> {
        match Self::load(path) {
            Err(KeyFileError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                files::create_private(path, Self::generate().to_pem().expose().as_bytes())
                    .map_err(|source| KeyFileError::Write {
                        path: path.to_owned(),
                        source,
                    })?;
                Self::load(path)
            }
            result => result,
        }
    }

    /// SHA-256 of the public half (SubjectPublicKeyInfo, DER).
    #[must_use]
    pub fn spki_sha256(&self) -> [u8; 32] {
        crypto::sha256(&self.0.subject_public_key_info())
    }

    /// The client id of this key's holder, see [`client_id`].
    #[must_use]
    pub fn client_id(&self) -> String {
        client_id(&self.spki_sha256())
    }

    /// For whoever issues certificates with this key.
    #[must_use]
    pub const fn signing(&self) -> &rcgen::KeyPair {
        &self.0
    }

    pub(crate) fn private_der(&self) -> rustls_pki_types::PrivateKeyDer<'static> {
        rustls_pki_types::PrivatePkcs8KeyDer::from(self.0.serialize_der()).into()
    }
}

impl Clone for KeyPair {
    fn clone(&self) -> Self {
        Self::from_pem(self.to_pem().expose()).expect("invariant: a key reads what it wrote")
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyPair({})", self.client_id())
    }
}

/// A text that is no P-256 key in PKCS#8 PEM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a P-256 key as PKCS#8 PEM")]
pub struct NotAKey;

/// A key or certificate file that cannot be used. The operator is to blame, or the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file is missing or unreadable.
    #[error("cannot read {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} does not hold {expected}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
    },
    /// The file cannot be made.
    #[error("cannot create {}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}
