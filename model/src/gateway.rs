//! A gateway as a node needs it: who may connect as its client, and how streams are spread.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::{
    CertificateRefusal, ClientCertificate, ClientCertificates, ClientId, GatewayId, Invalid, Name,
    Policy, Timestamp, TokenExpiry,
};

/// How long a tunnel whose connection was lost is kept where nothing else is said.
pub const DEFAULT_RESUME_TIME: Duration = Duration::from_secs(30);
/// Longest time that it can be kept.
pub const MAX_RESUME_TIME: Duration = Duration::from_secs(600);

/// How long a tunnel may outlive its security token where it is kept, in milliseconds.
pub const TOKEN_GRACE: u64 = 24 * 3600 * 1000;

/// Clients that can be revoked in one gateway.
pub const MAX_REVOKED: usize = 1_000;

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
    /// What becomes of tunnels whose security token expires.
    pub token_expiry: TokenExpiry,
    /// Whether certificates are issued to its clients, and accepted.
    pub client_certificates: ClientCertificates,
    /// How often its security token was replaced. Certificates that go back to an earlier one are not accepted.
    pub token_generation: u64,
    /// Clients that are let in with nothing, and since when; at most [`MAX_REVOKED`].
    pub revoked: BTreeMap<ClientId, Timestamp>,
    /// How long a tunnel that lost its connection waits for the client to resume it, at most
    /// [`MAX_RESUME_TIME`]; zero: it ends with its connection.
    pub resume_time: Duration,
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
    /// Checks a resume time; `None` means the default, zero switches resumption off.
    ///
    /// # Errors
    /// When it is longer than [`MAX_RESUME_TIME`].
    pub fn checked_resume_time(time: Option<Duration>) -> Result<Duration, Invalid> {
        match time {
            None => Ok(DEFAULT_RESUME_TIME),
            Some(time) if time <= MAX_RESUME_TIME => Ok(time),
            Some(_) => Err(Invalid::new(
                "resume_time",
                "must be at most 10m; 0 switches resumption off",
            )),
        }
    }

    /// Whether a tunnel that was opened with this token (`None`: with none) may stay at `now`.
    #[must_use]
    pub fn keeps(&self, token_sha256: Option<&[u8; 32]>, now: Timestamp) -> bool {
        let token = token_sha256.and_then(|shown| self.tokens.iter().find(|t| t.sha256 == *shown));
        let holds = |token: &TokenHash| token.expires.is_none_or(|end| self.in_grace(end, now));
        self.enabled && (token.is_some_and(holds) || !self.token_required)
    }

    /// Whether what ended at `end` still keeps a tunnel that it opened.
    const fn in_grace(&self, end: Timestamp, now: Timestamp) -> bool {
        let grace = match self.token_expiry {
            TokenExpiry::Keep => TOKEN_GRACE,
            TokenExpiry::Cut => 0,
        };
        now.0 < end.0.saturating_add(grace)
    }

    /// Whether a client is let in with nothing.
    #[must_use]
    pub fn is_revoked(&self, client: &str) -> bool {
        self.revoked.contains_key(client)
    }

    /// Decides over a client's certificate that was verified.
    ///
    /// # Errors
    /// When it is another gateway's, of an earlier token, or too old, or certificates are not wanted.
    pub fn admit_certificate(
        &self,
        certificate: &ClientCertificate,
        now: Timestamp,
    ) -> Result<(), CertificateRefusal> {
        self.certificate_holds(certificate)?;
        if now < certificate.expires {
            Ok(())
        } else {
            Err(CertificateRefusal::Expired)
        }
    }

    /// Whether a tunnel that was opened with this certificate may stay at `now`.
    ///
    /// # Errors
    /// Why it may not.
    pub fn keeps_certificate(
        &self,
        certificate: &ClientCertificate,
        now: Timestamp,
    ) -> Result<(), CertificateRefusal> {
        self.certificate_holds(certificate)?;
        if self.in_grace(certificate.expires, now) {
            Ok(())
        } else {
            Err(CertificateRefusal::Expired)
        }
    }

    fn certificate_holds(&self, certificate: &ClientCertificate) -> Result<(), CertificateRefusal> {
        if certificate.gateway != self.id {
            return Err(CertificateRefusal::Unauthenticated);
        }
        let wanted = self.client_certificates == ClientCertificates::On;
        if wanted && certificate.token_generation == self.token_generation {
            Ok(())
        } else {
            Err(CertificateRefusal::Withdrawn)
        }
    }

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
            token_expiry: TokenExpiry::Keep,
            client_certificates: ClientCertificates::On,
            token_generation: 2,
            revoked: BTreeMap::new(),
            resume_time: DEFAULT_RESUME_TIME,
            generation: 1,
        }
    }

    #[test]
    fn a_certificate_holds_for_its_gateway_its_token_and_its_time() {
        let mut gateway = gateway();
        let certificate = |id: &str, token_generation| ClientCertificate {
            gateway: GatewayId::new(id).unwrap(),
            token_generation,
            client: ClientId::new("c1").unwrap(),
            expires: Timestamp(1000),
        };
        let own = certificate("g1", 2);
        let admit = |gateway: &Gateway, certificate: &ClientCertificate, now| {
            gateway.admit_certificate(certificate, Timestamp(now)).err()
        };
        assert_eq!(admit(&gateway, &own, 999), None);
        assert_eq!(
            admit(&gateway, &own, 1000),
            Some(CertificateRefusal::Expired)
        );
        for generation in [1, 3] {
            assert_eq!(
                admit(&gateway, &certificate("g1", generation), 0),
                Some(CertificateRefusal::Withdrawn)
            );
        }
        assert_eq!(
            admit(&gateway, &certificate("g2", 2), 0),
            Some(CertificateRefusal::Unauthenticated)
        );
        let stays =
            |gateway: &Gateway, now| gateway.keeps_certificate(&own, Timestamp(now)).is_ok();
        assert!(stays(&gateway, 999 + TOKEN_GRACE) && !stays(&gateway, 1000 + TOKEN_GRACE));
        gateway.token_expiry = TokenExpiry::Cut;
        assert!(stays(&gateway, 999) && !stays(&gateway, 1000));
        gateway.client_certificates = ClientCertificates::Off;
        assert_eq!(
            admit(&gateway, &own, 0),
            Some(CertificateRefusal::Withdrawn)
        );
        assert!(!stays(&gateway, 0));
    }

    #[test]
    fn a_revoked_client_is_found_by_its_id() {
        let mut gateway = gateway();
        let id = ClientId::new("c1").unwrap();
        assert!(!gateway.is_revoked("c1"));
        gateway.revoked.insert(id, Timestamp(1));
        assert!(gateway.is_revoked("c1") && !gateway.is_revoked("c"));
    }

    #[test]
    fn a_tunnel_outlives_its_token_by_a_day_or_not_at_all() {
        let mut gateway = gateway();
        let stays = |gateway: &Gateway, now| gateway.keeps(Some(&[1; 32]), Timestamp(now));
        assert!(stays(&gateway, 999) && stays(&gateway, 1000));
        assert!(stays(&gateway, 999 + TOKEN_GRACE) && !stays(&gateway, 1000 + TOKEN_GRACE));
        gateway.token_expiry = TokenExpiry::Cut;
        assert!(stays(&gateway, 999) && !stays(&gateway, 1000));
        assert!(
            gateway.keeps(Some(&[2; 32]), Timestamp(u64::MAX)),
            "it never expires"
        );
        assert!(
            !gateway.keeps(Some(&[3; 32]), Timestamp(0)),
            "it was taken back"
        );
        assert!(!gateway.keeps(None, Timestamp(0)));
        gateway.token_required = false;
        assert!(gateway.keeps(None, Timestamp(0)));
        gateway.enabled = false;
        assert!(!gateway.keeps(None, Timestamp(0)));
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
    fn resume_times_have_a_default_an_off_and_an_end() {
        let check = Gateway::checked_resume_time;
        assert_eq!(check(None), Ok(DEFAULT_RESUME_TIME));
        assert_eq!(check(Some(Duration::ZERO)), Ok(Duration::ZERO));
        assert_eq!(check(Some(MAX_RESUME_TIME)), Ok(MAX_RESUME_TIME));
        let longer = MAX_RESUME_TIME + Duration::from_millis(1);
        assert_eq!(check(Some(longer)).map_err(|e| e.field), Err("resume_time"));
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
