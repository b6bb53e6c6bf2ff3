//! Keys and passwords of destinations at rest: sealed under the store key, each bound to the object and
//! the place it stands in, so that one that was moved elsewhere does not open.

use std::fmt;

use sg_model::{Invalid, SecretBytes};
use sg_runtime::sealed;

/// Seals and opens secrets of objects. Clones share nothing but the key's value.
#[derive(Clone)]
pub struct Vault(sealed::KeyRing);

impl Vault {
    /// Seals under the first of these keys, and opens under all of them.
    #[must_use]
    pub const fn new(keys: sealed::KeyRing) -> Self {
        Self(keys)
    }

    /// Seals a secret that stands at `place` of the object under the store's key `object`.
    #[must_use]
    pub fn seal(&self, object: &str, place: &str, secret: &SecretBytes) -> Vec<u8> {
        self.0.seal(&bound_to(object, place), secret.expose())
    }

    /// Opens what [`Vault::seal`] gave for the same object and place.
    ///
    /// # Errors
    /// It does not open: another key, another place, or not sealed at all.
    pub fn open(&self, object: &str, place: &str, sealed: &[u8]) -> Result<SecretBytes, Invalid> {
        let opened = self.0.open(&bound_to(object, place), sealed).map_err(|_| {
            let why = format!("{place} was not sealed here under this store's key");
            Invalid::new("secret", why)
        })?;
        Ok(SecretBytes::new(opened.expose().clone()))
    }

    /// Whether a secret is sealed under another key than the first.
    #[must_use]
    pub fn is_old(&self, object: &str, place: &str, sealed: &[u8]) -> bool {
        let renewed = self.0.renew(&bound_to(object, place), sealed);
        matches!(renewed, Ok(Some(_)))
    }
}

fn bound_to(object: &str, place: &str) -> Vec<u8> {
    format!("{object}#{place}").into_bytes()
}

impl fmt::Debug for Vault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vault").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn ring() -> sealed::KeyRing {
        let dir = tempfile::tempdir().unwrap();
        sealed::KeyRing::load_or_create(&dir.path().join("store.key")).unwrap()
    }

    #[test]
    fn a_secret_opens_only_where_it_was_sealed() {
        let vault = Vault::new(ring());
        let secret = SecretBytes::new(b"canary".to_vec());
        let sealed = vault.seal("v1/obj/destination/G/D", "user_end.server_pairs.0", &secret);
        assert!(!sealed.windows(6).any(|part| part == b"canary"));
        let open = |object, place| vault.open(object, place, &sealed).ok();
        assert_eq!(
            open("v1/obj/destination/G/D", "user_end.server_pairs.0"),
            Some(secret)
        );
        assert_eq!(
            open("v1/obj/destination/G/E", "user_end.server_pairs.0"),
            None
        );
        assert_eq!(
            open("v1/obj/destination/G/D", "user_end.server_pairs.1"),
            None
        );
        let other = Vault::new(ring());
        let elsewhere = other.open("v1/obj/destination/G/D", "user_end.server_pairs.0", &sealed);
        assert!(elsewhere.is_err());
    }
}
