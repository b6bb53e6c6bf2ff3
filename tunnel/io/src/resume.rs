//! What proves that a new connection may go on with a tunnel (protocol 213 to 217): the tunnel's id, its secret, and
//! a proof bound to the TLS connection that it travels on.
//!
//! It is not the resumption itself: which tunnel may be resumed is the owners' decision, and
//! [`crate::Tunnel::attach`] carries it out. Randomness is an input here as well.

use std::fmt;

use aws_lc_rs::hmac;
use zeroize::{Zeroize as _, Zeroizing};

/// Label of the TLS exporter whose 32 bytes a proof covers.
pub const EXPORTER_LABEL: &[u8] = b"EXPORTER-sg-tunnel-resume";
/// Bytes in a tunnel's id.
pub const ID_LENGTH: usize = 16;
/// Bytes in a secret, in a proof, and in what the exporter gives.
pub const LENGTH: usize = 32;

/// Names a tunnel for as long as it lives, over all its connections.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct TunnelId([u8; ID_LENGTH]);

impl TunnelId {
    /// An id out of random bytes.
    #[must_use]
    pub const fn new(random: [u8; ID_LENGTH]) -> Self {
        Self(random)
    }

    /// The id that the other side sent; `None` if it is of another length.
    #[must_use]
    pub fn from_slice(bytes: &[u8]) -> Option<Self> {
        bytes.try_into().ok().map(Self)
    }

    /// Its bytes.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; ID_LENGTH] {
        &self.0
    }
}

/// Hexadecimal, and enough of it for a log.
impl fmt::Debug for TunnelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, ..] = self.0;
        write!(f, "{a:02x}{b:02x}{c:02x}{d:02x}")
    }
}

/// A secret that both ends of a tunnel share until its next connection. Wiped when dropped, never shown.
#[derive(Clone)]
pub struct Secret(Zeroizing<[u8; LENGTH]>);

impl Secret {
    /// A secret out of random bytes.
    #[must_use]
    pub fn new(random: [u8; LENGTH]) -> Self {
        Self(Zeroizing::new(random))
    }

    /// The secret that the other side sent, whose bytes are wiped; `None` if they are too many or too few.
    #[must_use]
    pub fn take(mut bytes: Vec<u8>) -> Option<Self> {
        let secret = bytes.as_slice().try_into().ok().map(Self::new);
        bytes.zeroize();
        secret
    }

    /// Its bytes, for the message to the other side.
    #[must_use]
    pub fn expose(&self) -> &[u8; LENGTH] {
        &self.0
    }

    /// The proof for the connection whose exporter (under [`EXPORTER_LABEL`]) gave `exported`.
    #[must_use]
    pub fn prove(&self, exported: &[u8; LENGTH]) -> [u8; LENGTH] {
        let tag = hmac::sign(&self.key(), exported);
        let mut proof = [0; LENGTH];
        proof.copy_from_slice(tag.as_ref());
        proof
    }

    /// Whether `proof` was made with this secret for that connection. Takes the same time whatever differs.
    #[must_use]
    pub fn verify(&self, exported: &[u8; LENGTH], proof: &[u8]) -> bool {
        hmac::verify(&self.key(), exported, proof).is_ok()
    }

    fn key(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, self.0.as_slice())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Secrets that may be on their way at a time. More only come of a client that asks again and again without
/// ever being answered; then the older ones of them are forgotten.
const GIVEN: usize = 8;

/// The secrets under which the accepting side takes a proof: all that it has handed out since one of them is known to
/// have arrived, and that one, because any answer may have been lost or overtaken on its way (protocol 217).
#[derive(Debug)]
pub struct Secrets {
    /// Never empty. The first one is known to have arrived, the last one is the newest.
    given: Vec<Secret>,
}

impl Secrets {
    /// Those of a new tunnel.
    #[must_use]
    pub fn new(first: Secret) -> Self {
        Self { given: vec![first] }
    }

    /// Takes `next` as the secret to hand out if the proof is right; answers whether it is. A proof that is not changes
    /// nothing.
    #[must_use]
    pub fn prove(&mut self, exported: &[u8; LENGTH], proof: &[u8], next: Secret) -> bool {
        let known = self
            .given
            .iter()
            .rposition(|secret| secret.verify(exported, proof));
        let Some(known) = known else {
            return false;
        };
        // What was before it is of no use to the other side any more.
        self.given.drain(..known);
        if self.given.len() == GIVEN {
            self.given.remove(1);
        }
        self.given.push(next);
        true
    }

    /// The other side has the newest secret: those before it are worth nothing from now on.
    pub fn arrived(&mut self) {
        self.given.drain(..self.given.len() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: [u8; LENGTH] = [1; LENGTH];
    const ELSEWHERE: [u8; LENGTH] = [2; LENGTH];

    fn secret(seed: u8) -> Secret {
        Secret::new([seed; LENGTH])
    }

    #[test]
    fn a_proof_is_the_published_hmac() {
        // RFC 4231 has no key of 32 bytes; this is Python's hmac.new(bytes(range(32)), bytes(range(32, 64)), sha256).
        let key: [u8; LENGTH] = std::array::from_fn(|i| u8::try_from(i).unwrap_or(0));
        let exported: [u8; LENGTH] = std::array::from_fn(|i| u8::try_from(i + 32).unwrap_or(0));
        let proof = Secret::new(key).prove(&exported);
        let hex: String = proof.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(
            hex,
            "62215de7bddcea7e2c4047ff6bb94f8d18262fc8b3f3648134bb7d44158ff84d"
        );
    }

    #[test]
    fn a_proof_holds_for_its_connection_and_secret_only() {
        let proof = secret(7).prove(&HERE);
        assert!(secret(7).verify(&HERE, &proof));
        assert!(!secret(7).verify(&ELSEWHERE, &proof));
        assert!(!secret(8).verify(&HERE, &proof));
        assert!(!secret(7).verify(&HERE, &proof[..31]));
        assert!(!secret(7).verify(&HERE, &[]));
        for byte in 0..LENGTH {
            let mut wrong = proof;
            wrong[byte] ^= 1;
            assert!(!secret(7).verify(&HERE, &wrong), "byte {byte}");
        }
    }

    #[test]
    fn older_secrets_are_taken_until_a_newer_one_has_arrived() {
        let mut secrets = Secrets::new(secret(0));
        let mut offer = |with: u8, next: u8| {
            let proof = secret(with).prove(&HERE);
            secrets.prove(&HERE, &proof, secret(next))
        };
        assert!(offer(0, 1));
        // The answer with 1 was lost, and so was the one with 2.
        assert!(offer(0, 2));
        assert!(offer(0, 3));
        // 2 had arrived, and was overtaken by the attempt that gave 3.
        assert!(offer(2, 4));
        assert!(!offer(0, 9), "2 is known to have arrived");
        assert!(!offer(1, 9), "the same");
        // 3 has arrived, by its use.
        assert!(offer(3, 5));
        secrets.arrived();
        let proof = secret(3).prove(&HERE);
        assert!(!secrets.prove(&HERE, &proof, secret(9)), "stale");
        let proof = secret(5).prove(&HERE);
        assert!(secrets.prove(&HERE, &proof, secret(6)));
        // However often nothing arrives: what the other side has for certain stays good.
        for next in 10..200 {
            assert!(secrets.prove(&HERE, &proof, secret(next)), "{next}");
            assert!(secrets.given.len() <= GIVEN);
        }
        assert!(secrets.prove(&HERE, &secret(199).prove(&HERE), secret(200)));
    }

    #[test]
    fn nothing_of_a_secret_is_shown_and_lengths_are_checked() {
        assert_eq!(format!("{:?}", secret(201)), "[secret]");
        assert!(!format!("{:?}", Secrets::new(secret(201))).contains("201"));
        assert!(Secret::take(vec![1; 31]).is_none());
        assert!(Secret::take(Vec::new()).is_none());
        let taken = Secret::take(vec![3; LENGTH]).map(|s| *s.expose());
        assert_eq!(taken, Some([3; LENGTH]));
        assert!(TunnelId::from_slice(&[0; 15]).is_none());
        let id = TunnelId::from_slice(&[0xab; ID_LENGTH]);
        assert_eq!(format!("{id:?}"), "Some(abababab)");
    }
}
