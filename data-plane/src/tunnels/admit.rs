//! Decides whether a client may have its tunnel: by its hello, the key it proved, and the configuration at hand.
//! Pure; the answer to whoever may not says no more than it should.

use sg_model::{
    CertificateRefusal, ClientCertificate, Gateway, NodeConfig, Timestamp, TokenRefusal,
};
use sg_proto::tunnel::{ClientHello, Refused};
use sg_runtime::crypto;
use sg_runtime::tls::{IssuedError, Issuers};

use super::credential::{self, Credential, ProvedKey};

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
    /// The right certificate, too late.
    CertificateExpired,
    /// The right certificate, for a security token that was replaced since; or certificates are not wanted any more.
    CertificateWithdrawn,
    /// The right token or certificate of a client that is let in no more.
    ClientRevoked,
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
            Self::CertificateExpired => "certificate-expired",
            Self::CertificateWithdrawn => "certificate-withdrawn",
            Self::ClientRevoked => "client-revoked",
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
            Self::CertificateExpired => "the client's certificate has expired",
            Self::CertificateWithdrawn => {
                "the gateway's security token was replaced after the client's certificate was issued, or it wants no certificates"
            }
            Self::ClientRevoked => "the client is revoked",
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

/// Who was let in, and by what.
#[derive(Debug)]
pub(super) struct Admitted<'a> {
    pub(super) gateway: &'a Gateway,
    pub(super) credential: Credential,
}

/// Checks a hello against the key that the handshake proved, and the configuration.
pub(super) fn admit<'a>(
    hello: &ClientHello,
    key: &ProvedKey,
    issuers: &Issuers,
    config: &'a NodeConfig,
    now: Timestamp,
) -> Result<Admitted<'a>, Refusal> {
    if hello.version != VERSION {
        return Err(Refusal::Version);
    }
    if hello.boot_id.len() != BOOT_ID || hello.connection > HIGHEST_CONNECTION {
        return Err(Refusal::BadRequest);
    }
    if config.revision() == 0 {
        return Err(Refusal::NotReady);
    }
    // Both in any case, so that the time of the answer does not tell whether the gateway exists.
    let token = (!hello.token.is_empty()).then(|| crypto::sha256(hello.token.as_bytes()));
    let certificate = (!hello.certificates_der.is_empty())
        .then(|| credential::certificate(issuers, &hello.certificates_der, key, now));
    let gateway = config
        .find_gateway(&hello.gateway)
        .ok_or(Refusal::Unauthenticated)?;
    let by_certificate = certificate.map(|certificate| by_certificate(gateway, certificate, now));
    let credential = match by_certificate {
        Some(Ok(credential)) => credential,
        // What is wrong with the certificate matters only to who has no token.
        Some(Err(refusal)) if token.is_none() && gateway.token_required => return Err(refusal),
        Some(Err(_)) | None => {
            gateway
                .admit(token.as_ref(), now)
                .map_err(|refusal| match refusal {
                    TokenRefusal::Unauthenticated => Refusal::Unauthenticated,
                    TokenRefusal::Expired => Refusal::TokenExpired,
                })?;
            token.map_or(Credential::None, Credential::Token)
        }
    };
    if gateway.is_revoked(&key.client_id) {
        return Err(Refusal::ClientRevoked);
    }
    if !gateway.enabled {
        return Err(Refusal::GatewayDisabled);
    }
    Ok(Admitted {
        gateway,
        credential,
    })
}

fn by_certificate(
    gateway: &Gateway,
    certificate: Result<ClientCertificate, IssuedError>,
    now: Timestamp,
) -> Result<Credential, Refusal> {
    let certificate = certificate.map_err(|error| match error {
        IssuedError::Expired => Refusal::CertificateExpired,
        // Whatever it is, it is not this client's.
        _ => Refusal::Unauthenticated,
    })?;
    match gateway.admit_certificate(&certificate, now) {
        Ok(()) => Ok(Credential::Certificate(certificate)),
        Err(CertificateRefusal::Unauthenticated) => Err(Refusal::Unauthenticated),
        Err(CertificateRefusal::Withdrawn) => Err(Refusal::CertificateWithdrawn),
        Err(CertificateRefusal::Expired) => Err(Refusal::CertificateExpired),
    }
}

/// Why a tunnel that was admitted earlier may not stay under `gateway` as it is now, if it may not.
pub(super) fn withdrawn(
    gateway: Option<&Gateway>,
    client_id: &str,
    credential: &Credential,
    now: Timestamp,
) -> Option<&'static str> {
    match gateway {
        None => Some("the gateway or its security token is no longer valid"),
        Some(gateway) => credential.withdrawn(gateway, client_id, now),
    }
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
    use sg_runtime::identity::KeyPair;

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

    fn issuers() -> Issuers {
        crypto::install();
        let root = sg_runtime::identity::self_signed(&KeyPair::generate(), "nobody's");
        Issuers::new(&[root]).unwrap()
    }

    fn key() -> ProvedKey {
        ProvedKey {
            client_id: "c1".into(),
            sha256: [1; 32],
            public_key_der: Box::default(),
        }
    }

    fn refusal(hello: &ClientHello, config: &NodeConfig) -> Option<Refusal> {
        admit(hello, &key(), &issuers(), config, NOW).err()
    }

    #[test]
    fn the_right_token_opens_by_id_and_by_name() {
        let config = with_token(true, "sgt_a", None);
        for name in ["g1", "gateway-g1"] {
            let admitted = admit(&hello(name, "sgt_a"), &key(), &issuers(), &config, NOW).unwrap();
            let Admitted {
                gateway,
                credential,
            } = admitted;
            assert_eq!(withdrawn(Some(gateway), "c1", &credential, NOW), None);
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
    fn a_revoked_client_learns_it_only_with_the_right_token() {
        let NodeObject::Gateway(mut g) = gateway("g1", true) else {
            unreachable!("the helper makes a gateway")
        };
        g.tokens = vec![TokenHash {
            sha256: crypto::sha256(b"sgt_a"),
            expires: None,
        }];
        let id = sg_model::ClientId::new("c1").unwrap();
        g.revoked.insert(id, Timestamp(0));
        let why = withdrawn(Some(&g), "c1", &Credential::None, NOW);
        assert!(why.is_some_and(|why| why.contains("revoked")));
        let config = config(1, [NodeObject::Gateway(g)]);
        assert_eq!(
            refusal(&hello("g1", "sgt_a"), &config),
            Some(Refusal::ClientRevoked)
        );
        assert_eq!(
            refusal(&hello("g1", "sgt_b"), &config),
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
        let token = Credential::Token(crypto::sha256(b"sgt_a"));
        let mut expired = gateway_of(&with_token(true, "sgt_a", Some(Timestamp(1))));
        let why = |gateway: &Gateway| withdrawn(Some(gateway), "c1", &token, NOW);
        assert_eq!(why(&expired), None);
        expired.token_expiry = sg_model::TokenExpiry::Cut;
        assert!(why(&expired).is_some_and(|why| why.contains("expired")));
        let rotated = gateway_of(&with_token(true, "sgt_new", None));
        assert!(why(&rotated).is_some_and(|why| why.contains("valid")));
        assert!(why(&gateway_of(&with_token(false, "sgt_a", None))).is_some());
        assert!(withdrawn(None, "c1", &token, NOW).is_some());
    }

    #[test]
    fn what_a_client_says_of_itself_is_made_printable() {
        assert_eq!(printable("host\n\u{1b}[31m"), "host[31m");
        assert_eq!(printable(&"x".repeat(500)).len(), LONGEST_TEXT);
    }
}
