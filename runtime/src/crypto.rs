//! The one place that installs the cryptography provider (aws-lc-rs), and the small primitives that
//! tokens and identities are built from. It is not a general crypto toolbox.

use aws_lc_rs::{constant_time, digest, rand};

/// Makes aws-lc-rs the process-wide provider of rustls. Call it as the first line of every `main`
/// and of every test that uses TLS; further calls do nothing.
pub fn install() {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    #[allow(clippy::disallowed_methods, reason = "this is the one place")]
    let installed = provider.install_default();
    if installed.is_err() {
        tracing::trace!("the crypto provider was installed before");
    }
}

/// `N` bytes from the operating system's random generator.
#[must_use]
pub fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    rand::fill(&mut bytes).expect("invariant: the random generator of the system works");
    bytes
}

/// SHA-256 of `data`.
#[must_use]
pub fn sha256(data: &[u8]) -> [u8; 32] {
    let digest = digest::digest(&digest::SHA256, data);
    let mut bytes = [0; 32];
    bytes.copy_from_slice(digest.as_ref());
    bytes
}

/// Lower-case hexadecimal.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        text.push(char::from(DIGITS[usize::from(byte >> 4)]));
        text.push(char::from(DIGITS[usize::from(byte & 15)]));
    }
    text
}

/// Reads hexadecimal of either case; `None` for an odd length or another character.
#[must_use]
pub fn unhex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| {
        char::from(byte)
            .to_digit(16)
            .and_then(|d| u8::try_from(d).ok())
    };
    let bytes = text.as_bytes();
    if !bytes.len().is_multiple_of(2) {
        return None;
    }
    bytes
        .chunks_exact(2)
        .map(|pair| Some(digit(pair[0])? << 4 | digit(pair[1])?))
        .collect()
}

/// Compares two secrets in a time that depends on their lengths only.
#[must_use]
pub fn equal(left: &[u8], right: &[u8]) -> bool {
    constant_time::verify_slices_are_equal(left, right).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_and_hex_agree_with_the_published_vector() {
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(hex(&sha256(b"abc")), expected);
        assert_eq!(unhex(expected).as_deref(), Some(&sha256(b"abc")[..]));
        assert_eq!(
            unhex(&expected.to_uppercase()).as_deref(),
            Some(&sha256(b"abc")[..])
        );
    }

    #[test]
    fn malformed_hex_is_refused() {
        for text in ["a", "zz", "é", "0 "] {
            assert_eq!(unhex(text), None, "{text:?}");
        }
        assert_eq!(unhex(""), Some(vec![]));
    }

    #[test]
    fn random_bytes_differ_and_comparison_sees_it() {
        let (a, b) = (random_bytes::<32>(), random_bytes::<32>());
        assert!(!equal(&a, &b));
        assert!(equal(&a, &a));
        assert!(!equal(&a, &a[..31]));
    }
}
