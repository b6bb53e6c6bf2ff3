//! The cipher of a connection, and which implementation of it this processor runs best.
//!
//! aws-lc-rs does all of the handshake. For the bytes of a tunnel, ring takes half the time on processors that have
//! the vector instructions for AES (VAES) and no AVX-512, because its code for them needs AVX2 only; on others
//! aws-lc-rs is as fast or faster.

use std::sync::LazyLock;

use aws_lc_rs::aead as aws;
use ring::aead as ring;

use super::TAG;

/// Whose code encrypts the bytes of tunnels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Implementation {
    /// aws-lc-rs.
    AwsLc,
    /// ring.
    Ring,
}

impl Implementation {
    /// Its name, for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AwsLc => "aws-lc-rs",
            Self::Ring => "ring",
        }
    }
}

/// The one that suits this processor.
#[must_use]
pub fn implementation() -> Implementation {
    static CHOICE: LazyLock<Implementation> = LazyLock::new(|| match vaes_without_avx512() {
        true => Implementation::Ring,
        false => Implementation::AwsLc,
    });
    *CHOICE
}

#[cfg(target_arch = "x86_64")]
fn vaes_without_avx512() -> bool {
    std::is_x86_feature_detected!("vaes")
        && std::is_x86_feature_detected!("vpclmulqdq")
        && std::is_x86_feature_detected!("avx2")
        && !std::is_x86_feature_detected!("avx512f")
}

#[cfg(not(target_arch = "x86_64"))]
fn vaes_without_avx512() -> bool {
    false
}

/// The ciphers of TLS 1.3 that tunnels use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cipher {
    Aes128Gcm,
    Aes256Gcm,
    ChaCha20Poly1305,
}

impl Cipher {
    pub(super) const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Records that may be sealed under one key. AES-GCM stays safe for 2^24.5 full records (RFC 8446, 5.5).
    pub(super) const fn most_records(self) -> u64 {
        match self {
            Self::Aes128Gcm | Self::Aes256Gcm => 1 << 23,
            Self::ChaCha20Poly1305 => u64::MAX - 1,
        }
    }
}

/// A key of the cipher, in one of the implementations.
pub(super) enum Aead {
    AwsLc(Box<aws::LessSafeKey>),
    Ring(Box<ring::LessSafeKey>),
}

/// The record does not belong to this key and number, or was changed on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Broken;

impl Aead {
    /// `key` has the length that the cipher wants.
    pub(super) fn new(which: Implementation, cipher: Cipher, key: &[u8]) -> Result<Self, Broken> {
        Ok(match which {
            Implementation::AwsLc => {
                let algorithm = match cipher {
                    Cipher::Aes128Gcm => &aws::AES_128_GCM,
                    Cipher::Aes256Gcm => &aws::AES_256_GCM,
                    Cipher::ChaCha20Poly1305 => &aws::CHACHA20_POLY1305,
                };
                let key = aws::UnboundKey::new(algorithm, key).map_err(|_| Broken)?;
                Self::AwsLc(Box::new(aws::LessSafeKey::new(key)))
            }
            Implementation::Ring => {
                let algorithm = match cipher {
                    Cipher::Aes128Gcm => &ring::AES_128_GCM,
                    Cipher::Aes256Gcm => &ring::AES_256_GCM,
                    Cipher::ChaCha20Poly1305 => &ring::CHACHA20_POLY1305,
                };
                let key = ring::UnboundKey::new(algorithm, key).map_err(|_| Broken)?;
                Self::Ring(Box::new(ring::LessSafeKey::new(key)))
            }
        })
    }

    /// Encrypts in place; answers the tag.
    pub(super) fn seal(
        &self,
        nonce: [u8; 12],
        header: &[u8],
        bytes: &mut [u8],
    ) -> Result<[u8; TAG], Broken> {
        let mut out = [0; TAG];
        match self {
            Self::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, aws::Aad::from(header), bytes)
                    .map_err(|_| Broken)?;
                out.copy_from_slice(tag.as_ref());
            }
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                let tag = key
                    .seal_in_place_separate_tag(nonce, ring::Aad::from(header), bytes)
                    .map_err(|_| Broken)?;
                out.copy_from_slice(tag.as_ref());
            }
        }
        Ok(out)
    }

    /// Decrypts in place what has its tag behind it; answers the plaintext, which is the front of `bytes`.
    pub(super) fn open<'a>(
        &self,
        nonce: [u8; 12],
        header: &[u8],
        bytes: &'a mut [u8],
    ) -> Result<&'a mut [u8], Broken> {
        match self {
            Self::AwsLc(key) => {
                let nonce = aws::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, aws::Aad::from(header), bytes)
                    .map_err(|_| Broken)
            }
            Self::Ring(key) => {
                let nonce = ring::Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, ring::Aad::from(header), bytes)
                    .map_err(|_| Broken)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BOTH: [Implementation; 2] = [Implementation::AwsLc, Implementation::Ring];
    const CIPHERS: [Cipher; 3] = [
        Cipher::Aes128Gcm,
        Cipher::Aes256Gcm,
        Cipher::ChaCha20Poly1305,
    ];

    #[test]
    fn what_one_implementation_seals_the_other_opens_and_nothing_else() {
        for cipher in CIPHERS {
            let key: Vec<u8> = (0..32).take(cipher.key_length()).collect();
            for (from, to) in [(BOTH[0], BOTH[1]), (BOTH[1], BOTH[0])] {
                let sealing = Aead::new(from, cipher, &key).unwrap();
                let opening = Aead::new(to, cipher, &key).unwrap();
                for length in [0, 1, 15, 16, 17, 100, 4096, 16_385] {
                    let plain: Vec<u8> = (0..=250).cycle().take(length).collect();
                    let mut bytes = plain.clone();
                    let tag = sealing.seal([7; 12], b"head", &mut bytes).unwrap();
                    bytes.extend_from_slice(&tag);
                    let mut wrong = bytes.clone();
                    assert!(opening.open([8; 12], b"head", &mut wrong).is_err());
                    let mut wrong = bytes.clone();
                    assert!(opening.open([7; 12], b"heed", &mut wrong).is_err());
                    let mut wrong = bytes.clone();
                    wrong[length / 2] ^= 1;
                    assert!(opening.open([7; 12], b"head", &mut wrong).is_err());
                    assert_eq!(opening.open([7; 12], b"head", &mut bytes).unwrap(), plain);
                }
            }
        }
    }

    #[test]
    fn a_key_of_another_length_is_refused() {
        for which in BOTH {
            for cipher in CIPHERS {
                assert!(Aead::new(which, cipher, &[0; 15]).is_err());
            }
        }
    }
}
