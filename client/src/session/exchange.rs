//! The exchange of the security token for a certificate, over an open tunnel.

use prost::Message as _;
use sg_proto::tunnel::{CertificateRequest, ClientCertificate, Control, Trust, control};
use sg_runtime::tls::CertificateDer;

use sg_tunnel_io::Tunnel;

use super::Session;
use crate::certificate::Unusable;
use crate::trust::Told;

/// Asks for a certificate over this tunnel, unless another one of the gateway does.
pub(super) fn ask(session: &Session, tunnel: &Tunnel) {
    if !session.gateway.certificate.take_turn() {
        return;
    }
    let question = Control {
        message: Some(control::Message::CertificateRequest(CertificateRequest {})),
    };
    if let Err(error) = tunnel.send_control(question.encode_to_vec().into()) {
        tracing::debug!(address = %session.address, ?error, "the question for a certificate found no room");
    }
}

/// The node has answered.
pub(super) fn take(session: &Session, said: &ClientCertificate) {
    let gateway = &session.gateway;
    if said.certificates_der.is_empty() {
        // What was not asked in time, or of nobody, can be asked again soon.
        let for_long = !matches!(said.reason.as_str(), "unavailable" | "busy");
        let late = gateway.certificate.refused(for_long);
        let message: String = said
            .message
            .chars()
            .filter(|c| !c.is_control())
            .take(200)
            .collect();
        let reason = word(&said.reason);
        if late {
            tracing::warn!(gateway = %gateway.gateway, reason, "the client's certificate is not renewed, and more than half of its life is over: {message}");
        } else {
            tracing::debug!(gateway = %gateway.gateway, reason, "no certificate: {message}");
        }
        return;
    }
    match gateway.certificate.keep(&said.certificates_der) {
        Ok(()) => tracing::info!(gateway = %gateway.gateway, "certificate received"),
        Err(error @ Unusable::Write { .. }) => {
            tracing::warn!(gateway = %gateway.gateway, %error, "the certificate is used in this run only");
        }
        Err(error @ Unusable::Foreign) => {
            tracing::error!(gateway = %gateway.gateway, address = %session.address, %error, "the node sent a certificate that cannot be used");
        }
    }
}

/// The node names the authorities whose certificates are accepted.
pub(super) fn trust(session: &Session, said: &Trust) {
    let ders = |all: &[Vec<u8>]| -> Vec<CertificateDer<'static>> {
        all.iter()
            .map(|der| CertificateDer::from(der.clone()))
            .collect()
    };
    let (roots, chain) = (ders(&said.roots_der), ders(&said.chain_der));
    let gateway = &session.gateway;
    match gateway.shared.trust.told(&roots, &chain) {
        Told::Same => {}
        Told::Changed => tracing::info!(
            authorities = roots.len(),
            "the certificate authority is being replaced; nodes of these authorities are trusted"
        ),
        Told::Older => {
            return tracing::debug!(gateway = %gateway.gateway, address = %session.address,
                "the node is behind with the certificate authorities");
        }
        Told::Refused => {
            return tracing::error!(gateway = %gateway.gateway, address = %session.address,
                "the node names certificate authorities that nothing vouches for; they are not trusted");
        }
    }
    if let Some(issuing) = roots.first() {
        gateway.certificate.issuer_is(issuing);
    }
}

/// One of the words that are known.
fn word(reason: &str) -> &'static str {
    const WORDS: [&str; 5] = ["off", "unauthenticated", "unavailable", "busy", "failed"];
    let known = WORDS.into_iter().find(|word| *word == reason);
    known.unwrap_or("refused")
}
