//! A gateway as a node needs it: who may connect as its client, and how streams are spread.

use crate::{GatewayId, Name, Policy, Timestamp};

/// One on-premises network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gateway {
    /// Never changes.
    pub id: GatewayId,
    /// Unique among all gateways; may change.
    pub name: Name,
    /// A disabled gateway has no tunnels and no open ports.
    pub enabled: bool,
    /// How new streams are spread over its tunnels.
    pub policy: Policy,
    /// Whether clients must show a security token.
    pub token_required: bool,
    /// Hashes of the security tokens that are accepted.
    pub tokens: Vec<TokenHash>,
    /// Counts the changes of this gateway.
    pub generation: u64,
}

/// A security token as a node knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenHash {
    /// SHA-256 of the whole token text.
    pub sha256: [u8; 32],
    /// From this instant on it is refused; `None`: never.
    pub expires: Option<Timestamp>,
}

/// Why a client's token was not accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenRefusal {
    /// No token, or none of this gateway's.
    Unauthenticated,
    /// The right token, too late.
    Expired,
}

impl Gateway {
    /// Decides over a token by its hash (`None`: the client sent none).
    ///
    /// # Errors
    /// When the gateway requires a token and this is not one that holds at `now`.
    pub fn admit(
        &self,
        token_sha256: Option<&[u8; 32]>,
        now: Timestamp,
    ) -> Result<(), TokenRefusal> {
        let Some(presented) = token_sha256 else {
            return if self.token_required {
                Err(TokenRefusal::Unauthenticated)
            } else {
                Ok(())
            };
        };
        // Comparing hashes needs no constant time: what an attacker learns is about the hash of a guess.
        match self.tokens.iter().find(|t| t.sha256 == *presented) {
            Some(token) if token.expires.is_none_or(|end| now < end) => Ok(()),
            Some(_) => Err(TokenRefusal::Expired),
            None if self.token_required => Err(TokenRefusal::Unauthenticated),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gateway() -> Gateway {
        Gateway {
            id: GatewayId::new("g1").unwrap(),
            name: Name::new("dev").unwrap(),
            enabled: true,
            policy: Policy::RoundRobin,
            token_required: true,
            tokens: vec![
                TokenHash {
                    sha256: [1; 32],
                    expires: Some(Timestamp(1000)),
                },
                TokenHash {
                    sha256: [2; 32],
                    expires: None,
                },
            ],
            generation: 1,
        }
    }

    #[test]
    fn a_token_holds_until_its_end() {
        let g = gateway();
        assert_eq!(g.admit(Some(&[1; 32]), Timestamp(999)), Ok(()));
        assert_eq!(
            g.admit(Some(&[1; 32]), Timestamp(1000)),
            Err(TokenRefusal::Expired)
        );
        assert_eq!(g.admit(Some(&[2; 32]), Timestamp(u64::MAX)), Ok(()));
    }

    #[test]
    fn a_wrong_or_missing_token_is_refused_where_one_is_required() {
        let mut g = gateway();
        assert_eq!(
            g.admit(Some(&[3; 32]), Timestamp(0)),
            Err(TokenRefusal::Unauthenticated)
        );
        assert_eq!(
            g.admit(None, Timestamp(0)),
            Err(TokenRefusal::Unauthenticated)
        );
        g.token_required = false;
        assert_eq!(g.admit(None, Timestamp(0)), Ok(()));
    }
}
