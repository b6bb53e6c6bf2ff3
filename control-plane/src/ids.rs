//! Where randomness and the wall clock enter: ids, tokens, dates. Nothing here is stored or decided.

use std::time::{SystemTime, UNIX_EPOCH};

use sg_model::Timestamp;
use sg_runtime::crypto;
use sg_runtime::secret::Secret;

const ALPHABET: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/// The present date.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// A new id: a letter for the kind, then 26 characters that sort by time and never repeat.
/// It holds capital letters, which names may not, so no id is ever the name of something else.
pub(crate) fn new_id(kind: char, now: Timestamp) -> String {
    let random = u128::from_be_bytes(crypto::random_bytes::<16>()) >> 48;
    let mut bits = (u128::from(now.0) << 80) | random;
    let mut text = [0_u8; 26];
    for place in text.iter_mut().rev() {
        *place = ALPHABET[usize::try_from(bits % 32).unwrap_or_default()];
        bits /= 32;
    }
    std::iter::once(kind)
        .chain(text.into_iter().map(char::from))
        .collect()
}

/// A new token: the prefix and 256 random bits.
pub(crate) fn new_token(prefix: &str) -> Secret<String> {
    Secret::new(format!(
        "{prefix}{}",
        crypto::hex(&crypto::random_bytes::<32>())
    ))
}

/// SHA-256 of a whole token text, as it is stored.
pub(crate) fn token_hash(token: &str) -> [u8; 32] {
    crypto::sha256(token.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_differ() {
        let early = new_id('G', Timestamp(1_700_000_000_000));
        let late = new_id('G', Timestamp(1_700_000_000_001));
        assert!(early < late, "{early} {late}");
        assert_eq!(early.len(), 27);
        assert_ne!(new_id('G', Timestamp(5)), new_id('G', Timestamp(5)));
        assert!(sg_model::GatewayId::new(early).is_ok());
    }

    #[test]
    fn tokens_have_a_prefix_and_256_bits() {
        let token = new_token("sgt_");
        assert_eq!(token.expose().len(), 4 + 64);
        assert!(token.expose().starts_with("sgt_"));
        assert_ne!(token.expose(), new_token("sgt_").expose());
    }
}
