//! The keys of one direction after the handshake: from a traffic secret to key and IV, and to the next secret
//! (RFC 8446, 7.2 and 7.3).
//!
//! rustls gives the first secrets of a connection to [`Capture`] while it shakes hands; it is made for one
//! connection and dropped with it.

use std::sync::OnceLock;

use aws_lc_rs::hkdf;
use rustls::{CipherSuite, KeyLog};

use super::aead::{Aead, Broken, Cipher, Implementation};
use crate::secret::Secret;

type Bytes = Secret<Vec<u8>>;

/// What the handshake agreed on, as far as keys depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suite {
    pub(super) cipher: Cipher,
    sha384: bool,
}

impl Suite {
    /// `None` for what is no suite of TLS 1.3 that tunnels offer.
    pub(super) fn of(suite: CipherSuite) -> Option<Self> {
        let (cipher, sha384) = match suite {
            CipherSuite::TLS13_AES_128_GCM_SHA256 => (Cipher::Aes128Gcm, false),
            CipherSuite::TLS13_AES_256_GCM_SHA384 => (Cipher::Aes256Gcm, true),
            CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => (Cipher::ChaCha20Poly1305, false),
            _ => return None,
        };
        Some(Self { cipher, sha384 })
    }

    fn hash(self) -> hkdf::Algorithm {
        match self.sha384 {
            true => hkdf::HKDF_SHA384,
            false => hkdf::HKDF_SHA256,
        }
    }

    const fn hash_length(self) -> usize {
        if self.sha384 { 48 } else { 32 }
    }
}

/// The secret of one direction, from one update of its keys to the next.
pub(super) struct TrafficSecret {
    suite: Suite,
    secret: Secret<Vec<u8>>,
}

/// Key and IV that belong to a secret.
pub(super) struct Protection {
    pub(super) key: Secret<Vec<u8>>,
    pub(super) iv: [u8; 12],
}

impl TrafficSecret {
    pub(super) fn new(suite: Suite, secret: Secret<Vec<u8>>) -> Self {
        Self { suite, secret }
    }

    pub(super) fn suite(&self) -> Suite {
        self.suite
    }

    pub(super) fn protection(&self) -> Protection {
        let key = self.expand(b"key", self.suite.cipher.key_length());
        let mut iv = [0; 12];
        iv.copy_from_slice(self.expand(b"iv", 12).expose());
        Protection { key, iv }
    }

    /// The secret after an update of keys.
    pub(super) fn next(&self) -> Self {
        Self {
            suite: self.suite,
            secret: self.expand(b"traffic upd", self.suite.hash_length()),
        }
    }

    /// HKDF-Expand-Label with an empty context.
    fn expand(&self, label: &[u8], length: usize) -> Secret<Vec<u8>> {
        let short =
            |length: usize| u8::try_from(length).expect("invariant: labels and keys are short");
        let prefix = b"tls13 ";
        let (length_byte, label_byte) = ([0, short(length)], [short(prefix.len() + label.len())]);
        let info = [&length_byte[..], &label_byte, prefix, label, &[0]];
        let mut out = vec![0; length];
        let secret = hkdf::Prk::new_less_safe(self.suite.hash(), self.secret.expose());
        secret
            .expand(&info, Length(length))
            .and_then(|okm| okm.fill(&mut out))
            .expect("invariant: less than 255 hashes are asked for");
        Secret::new(out)
    }
}

impl Protection {
    pub(super) fn aead(&self, which: Implementation, cipher: Cipher) -> Result<Aead, Broken> {
        Aead::new(which, cipher, self.key.expose())
    }
}

struct Length(usize);

impl hkdf::KeyType for Length {
    fn len(&self) -> usize {
        self.0
    }
}

/// Takes the first traffic secrets of one connection from its handshake.
#[derive(Debug, Default)]
pub(super) struct Capture {
    client: OnceLock<Bytes>,
    server: OnceLock<Bytes>,
}

impl Capture {
    /// Those of the client's and of the server's direction, when the handshake is over.
    pub(super) fn secrets(&self) -> Option<(Bytes, Bytes)> {
        Some((self.client.get()?.clone(), self.server.get()?.clone()))
    }

    fn place(&self, label: &str) -> Option<&OnceLock<Bytes>> {
        match label {
            "CLIENT_TRAFFIC_SECRET_0" => Some(&self.client),
            "SERVER_TRAFFIC_SECRET_0" => Some(&self.server),
            _ => None,
        }
    }
}

impl KeyLog for Capture {
    fn log(&self, label: &str, _client_random: &[u8], secret: &[u8]) {
        if let Some(place) = self.place(label) {
            place.get_or_init(|| Secret::new(secret.to_vec()));
        }
    }

    fn will_log(&self, label: &str) -> bool {
        self.place(label).is_some()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// RFC 8448, 3: the keys of the server's application data.
    #[test]
    fn keys_agree_with_the_published_trace() {
        let secret = "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643";
        let secret = TrafficSecret::new(
            Suite::of(CipherSuite::TLS13_AES_128_GCM_SHA256).unwrap(),
            Secret::new(crate::crypto::unhex(secret).unwrap()),
        );
        let keys = secret.protection();
        let hex = crate::crypto::hex;
        assert_eq!(hex(keys.key.expose()), "9f02283b6c9c07efc26bb9f2ac92e356");
        assert_eq!(hex(&keys.iv), "cf782b88dd83549aadf1e984");
        assert_ne!(secret.next().protection().iv, keys.iv);
    }
}
