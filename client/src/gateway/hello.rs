//! What a gateway's client says first to a node, and what it shows: its certificate, or else its token.

use sg_proto::tunnel::ClientHello;

use super::GatewayContext;
use crate::session::establish::{self, ConnectError};

impl GatewayContext {
    /// The first message to a node, but for what a tunnel is resumed by. `connection` tells the tunnels to one node apart.
    #[must_use]
    pub fn hello(&self, connection: u32) -> ClientHello {
        let (shared, version) = (&self.shared, self.acl.version().unwrap_or_default());
        // Whoever needs no token does not get to see one.
        let certificate = self.certificate.shown();
        let token = self.token.present().filter(|_| certificate.is_none());
        let token = token.map(|token| token.expose().clone());
        ClientHello {
            version: establish::VERSION,
            boot_id: shared.boot_id.to_vec(),
            gateway: self.gateway.to_string(),
            token: token.unwrap_or_default(),
            software: format!("sg-client/{}", env!("CARGO_PKG_VERSION")),
            client_name: shared.name.clone(),
            connection,
            acl_epoch: version.epoch,
            acl_generation: version.generation,
            resume: None,
            certificates_der: certificate.unwrap_or_default(),
        }
    }

    /// Whether it has neither a token nor a certificate to show, so that no node takes it.
    #[must_use]
    pub fn shows_nothing(&self) -> bool {
        self.token.is_none() && self.certificate.shown().is_none()
    }

    /// Whether the node did not want the certificate that `hello` showed, and gets to see the token the next time. It may not
    /// know certificates, or not this authority; which of the two, its words do not say for certain.
    #[must_use]
    pub fn turns_to_token(&self, hello: &ClientHello, refusal: &ConnectError) -> bool {
        let ConnectError::Refused { reason, .. } = refusal else {
            return false;
        };
        let about_it = matches!(
            *reason,
            "unauthenticated" | "certificate-expired" | "certificate-withdrawn"
        );
        if hello.certificates_der.is_empty() || self.token.is_none() || !about_it {
            return false;
        }
        tracing::info!(gateway = %self.gateway, reason, "the certificate is not accepted; going on with the security token");
        self.certificate.set_aside();
        true
    }

    /// The same refusal. If it was for the token, and the token's file has another one by now, the next attempt comes soon
    /// and shows that.
    pub async fn renews_token(&self, hello: &ClientHello, refusal: ConnectError) -> ConnectError {
        match refusal {
            ConnectError::Refused {
                reason: reason @ ("unauthenticated" | "token-expired"),
                message,
                ..
            } if !hello.token.is_empty() && self.token.renew(&hello.token).await => {
                tracing::info!(gateway = %self.gateway, reason, "the security token is not accepted, and its file has another one now: going on with that");
                ConnectError::Refused {
                    reason,
                    message,
                    retry: true,
                }
            }
            other => other,
        }
    }
}
