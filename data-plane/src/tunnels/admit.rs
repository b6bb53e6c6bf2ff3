//! Decides whether a client may have its tunnel: by its hello, the key it proved, and the configuration at hand.
//! Pure; the answer to whoever may not says no more than it should.

use sg_model::{Gateway, NodeConfig, Timestamp, TokenRefusal};
use sg_proto::tunnel::{ClientHello, Refused};
use sg_runtime::crypto;

/// Version of the hello that this node speaks.
pub(super) const VERSION: u32 = 1;
/// Bytes in a boot id.
const BOOT_ID: usize = 16;
/// Longest text of a client about itself that is kept.
const LONGEST_TEXT: usize = 128;
/// Highest number of a connection among several of one process.
const HIGHEST_CONNECTION: u32 = 15;

/// Why a tunnel is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    /// Another version of the hello.
    Version,
    /// The hello breaks the rules.
    BadRequest,
    /// No such gateway, or not its token: the two are not told apart.
    Unauthenticated,
    /// The right token, too late.
    TokenExpired,
    /// The right token of a gateway that is switched off.
    GatewayDisabled,
    /// The node is going.
    Draining,
    /// The node has no configuration yet.
    NotReady,
    /// An offer to resume the client's own tunnel, with a wrong proof.
    ResumeProof,
}

impl Refusal {
    /// The word for the counter and the log.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not-ready",
            other => other.wire_word(),
        }
    }

    fn wire_word(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::BadRequest => "bad-request",
            Self::Unauthenticated => "unauthenticated",
            Self::TokenExpired => "token-expired",
            Self::GatewayDisabled => "gateway-disabled",
            Self::Draining => "draining",
            Self::NotReady => "limit",
            Self::ResumeProof => "resume-proof",
        }
    }

    /// What the client is told.
    pub(super) fn answer(self) -> Refused {
        let message = match self {
            Self::Version => "this node speaks version 1 of the tunnel's hello",
            Self::BadRequest => "the hello is not acceptable",
            Self::Unauthenticated => "no such gateway, or not a security token of it",
            Self::TokenExpired => "the security token has expired",
            Self::GatewayDisabled => "the gateway is disabled",
            Self::Draining => "the node is shutting down",
            Self::NotReady => "the node has no configuration yet",
            Self::ResumeProof => "the proof of the tunnel that is to be resumed is wrong",
        };
        Refused {
            reason: self.wire_word().to_owned(),
            message: message.to_owned(),
            retry: matches!(
                self,
                Self::GatewayDisabled | Self::Draining | Self::NotReady | Self::ResumeProof
            ),
        }
    }
}

/// Checks a hello against the configuration; answers the gateway and the hash of the token that was shown.
pub(super) fn admit<'a>(
    hello: &ClientHello,
    config: &'a NodeConfig,
    now: Timestamp,
) -> Result<(&'a Gateway, Option<[u8; 32]>), Refusal> {
    if hello.version != VERSION {
        return Err(Refusal::Version);
    }
    if hello.boot_id.len() != BOOT_ID || hello.connection > HIGHEST_CONNECTION {
        return Err(Refusal::BadRequest);
    }
    if config.revision() == 0 {
        return Err(Refusal::NotReady);
    }
    // Hashed in any case, so that the time of the answer does not tell whether the gateway exists.
    let token = (!hello.token.is_empty()).then(|| crypto::sha256(hello.token.as_bytes()));
    let gateway = config
        .find_gateway(&hello.gateway)
        .ok_or(Refusal::Unauthenticated)?;
    gateway
        .admit(token.as_ref(), now)
        .map_err(|refusal| match refusal {
            TokenRefusal::Unauthenticated => Refusal::Unauthenticated,
            TokenRefusal::Expired => Refusal::TokenExpired,
        })?;
    if !gateway.enabled {
        return Err(Refusal::GatewayDisabled);
    }
    Ok((gateway, token))
}

/// Why a tunnel that was admitted earlier may not stay under `gateway` as it is now, if it may not.
pub(super) fn withdrawn(
    gateway: Option<&Gateway>,
    token: Option<&[u8; 32]>,
    now: Timestamp,
) -> Option<&'static str> {
    let revoked = "the gateway or its security token is no longer valid";
    let Some(gateway) = gateway else {
        return Some(revoked);
    };
    if gateway.keeps(token, now) {
        return None;
    }
    let known = token.is_some_and(|hash| gateway.tokens.iter().any(|t| t.sha256 == *hash));
    if gateway.enabled && known {
        return Some("the security token has expired");
    }
    Some(revoked)
}

/// A client's text about itself, short and printable.
pub(super) fn printable(text: &str) -> String {
    text.chars()
        .filter(|c| !c.is_control())
        .take(LONGEST_TEXT)
        .collect()
}

#[cfg(test)]
mod tests {
    use sg_model::{NodeObject, TokenHash};

    use super::*;
    use crate::reconcile::testing::{config, gateway};

    const NOW: Timestamp = Timestamp(1000);

    fn hello(gateway: &str, token: &str) -> ClientHello {
        ClientHello {
            version: VERSION,
            boot_id: vec![1; BOOT_ID],
            gateway: gateway.to_owned(),
            token: token.to_owned(),
            ..ClientHello::default()
        }
    }

    fn with_token(enabled: bool, token: &str, expires: Option<Timestamp>) -> NodeConfig {
        let NodeObject::Gateway(mut g) = gateway("g1", enabled) else {
            unreachable!("the helper makes a gateway")
        };
        g.tokens = vec![TokenHash {
            sha256: crypto::sha256(token.as_bytes()),
            expires,
        }];
        config(1, [NodeObject::Gateway(g)])
    }

    fn refusal(hello: &ClientHello, config: &NodeConfig) -> Option<Refusal> {
        admit(hello, config, NOW).err()
    }

    #[test]
    fn the_right_token_opens_by_id_and_by_name() {
        let config = with_token(true, "sgt_a", None);
        for name in ["g1", "gateway-g1"] {
            let (gateway, token) = admit(&hello(name, "sgt_a"), &config, NOW).unwrap();
            assert_eq!(withdrawn(Some(gateway), token.as_ref(), NOW), None);
        }
    }

    #[test]
    fn an_unknown_gateway_and_a_wrong_token_get_the_same_answer() {
        let config = with_token(true, "sgt_a", None);
        let answers: Vec<_> = [("nope", "sgt_a"), ("g1", "sgt_b"), ("g1", ""), ("", "")]
            .iter()
            .map(|(gateway, token)| refusal(&hello(gateway, token), &config).unwrap().answer())
            .collect();
        assert!(answers.iter().all(|a| *a == answers[0]));
        assert_eq!(answers[0].reason, "unauthenticated");
    }

    #[test]
    fn only_the_right_token_learns_about_expiry_and_disablement() {
        let expired = with_token(true, "sgt_a", Some(Timestamp(999)));
        assert_eq!(
            refusal(&hello("g1", "sgt_a"), &expired),
            Some(Refusal::TokenExpired)
        );
        assert_eq!(
            refusal(&hello("g1", "sgt_b"), &expired),
            Some(Refusal::Unauthenticated)
        );
        let disabled = with_token(false, "sgt_a", None);
        assert_eq!(
            refusal(&hello("g1", "sgt_a"), &disabled),
            Some(Refusal::GatewayDisabled)
        );
        assert_eq!(
            refusal(&hello("g1", "sgt_b"), &disabled),
            Some(Refusal::Unauthenticated)
        );
    }

    #[test]
    fn a_hello_that_breaks_the_rules_is_refused() {
        let config = with_token(true, "sgt_a", None);
        let mut bad = hello("g1", "sgt_a");
        bad.version = 2;
        assert_eq!(refusal(&bad, &config), Some(Refusal::Version));
        let mut bad = hello("g1", "sgt_a");
        bad.boot_id = vec![1; 3];
        assert_eq!(refusal(&bad, &config), Some(Refusal::BadRequest));
        let none = NodeConfig::default();
        let answer = refusal(&hello("g1", "sgt_a"), &none).unwrap();
        assert_eq!((answer, answer.answer().retry), (Refusal::NotReady, true));
    }

    #[test]
    fn a_withdrawn_token_ends_tunnels_and_an_expired_one_if_asked_to() {
        let gateway_of = |config: &NodeConfig| config.gateways().next().unwrap().clone();
        let hash = crypto::sha256(b"sgt_a");
        let mut expired = gateway_of(&with_token(true, "sgt_a", Some(Timestamp(1))));
        let why = |gateway: &Gateway| withdrawn(Some(gateway), Some(&hash), NOW);
        assert_eq!(why(&expired), None);
        expired.token_expiry = sg_model::TokenExpiry::Cut;
        assert!(why(&expired).is_some_and(|why| why.contains("expired")));
        let rotated = gateway_of(&with_token(true, "sgt_new", None));
        assert!(why(&rotated).is_some_and(|why| why.contains("valid")));
        assert!(why(&gateway_of(&with_token(false, "sgt_a", None))).is_some());
        assert!(withdrawn(None, Some(&hash), NOW).is_some());
    }

    #[test]
    fn what_a_client_says_of_itself_is_made_printable() {
        assert_eq!(printable("host\n\u{1b}[31m"), "host[31m");
        assert_eq!(printable(&"x".repeat(500)).len(), LONGEST_TEXT);
    }
}
