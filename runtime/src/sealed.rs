//! Values encrypted at rest: AES-256-GCM under a key that lies in a file of mode 0600.
//!
//! A sealed value is `version (1 byte) ‖ nonce (12) ‖ ciphertext ‖ tag (16)`. The nonce is random,
//! which is safe for about 2³² values under one key. The associated data is not stored: give the
//! value's place (its key in the store, its file name), so that a value moved elsewhere does not open.

mod ring;

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, Nonce, RandomizedNonceKey};

pub use ring::KeyRing;

use crate::secret::Secret;
use crate::{crypto, files};

const VERSION: u8 = 1;
const NONCE: usize = 12;
const TAG: usize = 16;

/// A 256-bit key for [`seal`] and [`open`].
#[derive(Clone)]
pub struct Key(Secret<[u8; 32]>);

impl Key {
    /// A new random key.
    #[must_use]
    pub fn generate() -> Self {
        Self(Secret::new(crypto::random_bytes()))
    }

    /// A key that comes from elsewhere, as one that was itself stored sealed.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(Secret::new(bytes))
    }

    /// The key's bytes, to seal one key under another.
    #[must_use]
    pub const fn expose(&self) -> &[u8; 32] {
        self.0.expose()
    }

    /// Reads the key file at `path`: 64 hexadecimal digits.
    ///
    /// # Errors
    /// [`KeyError::Read`] (with `NotFound` inside when there is none) or [`KeyError::Malformed`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let at = || path.to_owned();
        let text = Secret::read(path).map_err(|source| KeyError::Read { path: at(), source })?;
        let bytes = crypto::unhex(text.expose()).map(Secret::new);
        let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.expose().as_slice()).ok());
        if files::readable_by_others(path).unwrap_or(false) {
            tracing::warn!(path = %path.display(), "key file is readable by others; chmod 600 it");
        }
        key.map(Self::from_bytes)
            .ok_or_else(|| KeyError::Malformed { path: at() })
    }

    /// Reads the key file, or makes it with a new key. Racing processes end with the same key.
    ///
    /// # Errors
    /// As [`Key::load`], and [`KeyError::Write`] when it cannot be made.
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                let line = Secret::new(format!("{}\n", crypto::hex(Self::generate().expose())));
                files::create_private(path, line.expose().as_bytes()).map_err(|source| {
                    KeyError::Write {
                        path: path.to_owned(),
                        source,
                    }
                })?;
                Self::load(path)
            }
            result => result,
        }
    }

    fn cipher(&self) -> RandomizedNonceKey {
        RandomizedNonceKey::new(&AES_256_GCM, self.expose())
            .expect("invariant: an AES-256 key has 32 bytes")
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key([secret])")
    }
}

/// A key file that cannot be used. The operator is to blame, or the disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// The file is missing or unreadable.
    #[error("cannot read the key file {}", path.display())]
    Read {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file holds something else.
    #[error("{} is no key file: it must hold 64 hexadecimal digits", path.display())]
    Malformed {
        /// The key file.
        path: PathBuf,
    },
    /// The file cannot be made.
    #[error("cannot create the key file {}", path.display())]
    Write {
        /// The key file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A sealed value that does not open. Which of the causes it was cannot be told apart by design.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the sealed value does not open: wrong key, wrong place, or damaged")]
pub struct OpenError;

/// Encrypts `plaintext`; `associated` must be given again to [`open`].
#[must_use]
pub fn seal(key: &Key, associated: &[u8], plaintext: &[u8]) -> Vec<u8> {
    let mut body = Vec::with_capacity(plaintext.len() + TAG);
    body.extend_from_slice(plaintext);
    let nonce = key
        .cipher()
        .seal_in_place_append_tag(Aad::from(associated), &mut body)
        .expect("invariant: values at rest are far below the limit of GCM");
    let mut sealed = Vec::with_capacity(1 + NONCE + body.len());
    sealed.push(VERSION);
    sealed.extend_from_slice(nonce.as_ref());
    sealed.extend_from_slice(&body);
    sealed
}

/// Decrypts what [`seal`] made with the same key and associated data.
///
/// # Errors
/// [`OpenError`] for anything else.
pub fn open(key: &Key, associated: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>, OpenError> {
    let (&VERSION, rest) = sealed.split_first().ok_or(OpenError)? else {
        return Err(OpenError);
    };
    let (nonce, body) = rest.split_at_checked(NONCE).ok_or(OpenError)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| OpenError)?;
    let mut body = body.to_vec();
    let length = key
        .cipher()
        .open_in_place(nonce, Aad::from(associated), &mut body)
        .map_err(|_| OpenError)?
        .len();
    body.truncate(length);
    Ok(Secret::new(body))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_was_sealed_opens_only_with_key_and_place() {
        let key = Key::generate();
        let sealed = seal(&key, b"ca/key", b"secret");
        assert_eq!(open(&key, b"ca/key", &sealed).unwrap().expose(), b"secret");
        assert_eq!(open(&key, b"ca/other", &sealed).unwrap_err(), OpenError);
        assert_eq!(
            open(&Key::generate(), b"ca/key", &sealed).unwrap_err(),
            OpenError
        );
    }

    #[test]
    fn equal_values_are_sealed_differently() {
        let key = Key::generate();
        assert_ne!(seal(&key, b"", b"same"), seal(&key, b"", b"same"));
    }

    #[test]
    fn every_damaged_byte_and_every_cut_is_noticed() {
        let key = Key::generate();
        let sealed = seal(&key, b"place", b"value");
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(open(&key, b"place", &damaged).is_err(), "byte {at}");
            assert!(open(&key, b"place", &sealed[..at]).is_err(), "cut at {at}");
        }
    }

    #[test]
    fn the_empty_value_can_be_sealed() {
        let key = Key::generate();
        assert!(
            open(&key, b"", &seal(&key, b"", b""))
                .unwrap()
                .expose()
                .is_empty()
        );
    }

    #[test]
    fn a_key_file_is_made_once_private_and_read_again() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.key");
        let made = Key::load_or_create(&path).unwrap();
        let read = Key::load_or_create(&path).unwrap();
        assert_eq!(made.expose(), read.expose());
        assert!(!files::readable_by_others(&path).unwrap());
        assert_eq!(format!("{made:?}"), "Key([secret])");
    }

    #[test]
    fn a_malformed_key_file_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.key");
        std::fs::write(&path, "abcd").unwrap();
        assert!(matches!(
            Key::load_or_create(&path),
            Err(KeyError::Malformed { .. })
        ));
        assert_eq!(std::fs::read(&path).unwrap(), b"abcd");
    }
}
