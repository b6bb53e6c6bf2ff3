//! A client on an open tunnel asks for a certificate: once at a time, and not more often than every second.

use std::sync::Arc;
use std::time::Duration;

use sg_model::{ClientCertificates, NodeConfig};
use sg_proto::tunnel::{ClientCertificate, Trust, control};
use sg_runtime::tls::CertificateDer;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::credential::{self, Credential};
use super::session::Keeper;
use crate::certificates::{Answer, Question};
use crate::node;

/// Least time between two questions of one tunnel.
const PAUSE: Duration = Duration::from_secs(1);

/// How far a tunnel is with its question.
#[derive(Debug, Default)]
pub(super) struct Exchange {
    asked: Option<oneshot::Receiver<Answer>>,
    last: Option<Instant>,
}

impl Exchange {
    /// Waits for the answer to the question that was asked, if one was. Can be cancelled without loss.
    pub(super) async fn answer(&mut self) -> Option<Answer> {
        let Some(asked) = &mut self.asked else {
            return std::future::pending().await;
        };
        let answer = asked.await.ok();
        self.asked = None;
        answer
    }
}

impl Keeper<'_> {
    /// The client wants a certificate.
    pub(super) fn certificate_asked(&mut self, config: &NodeConfig) {
        let soon = |last: &Instant| last.elapsed() < PAUSE;
        if self.exchange.asked.is_some() || self.exchange.last.as_ref().is_some_and(soon) {
            return self.certificate_refused("busy", "one question at a time, and one a second");
        }
        self.exchange.last = Some(Instant::now());
        let credential = self.session.presence().credential.clone();
        let Some(gateway) = config.gateway(&self.session.gateway) else {
            return;
        };
        if gateway.client_certificates == ClientCertificates::Off {
            return self.certificate_refused("off", "the gateway wants no client certificates");
        }
        if !credential.may_exchange(gateway, node::now()) {
            let text = "only a token or a certificate that holds can be exchanged";
            return self.certificate_refused("unauthenticated", text);
        }
        let (answer, asked) = oneshot::channel();
        let taken = self.node.desk.ask(Question {
            gateway: gateway.id.clone(),
            token_generation: gateway.token_generation,
            public_key_der: self.session.key.public_key_der.to_vec(),
            answer,
        });
        match taken {
            true => self.exchange.asked = Some(asked),
            false => self.certificate_refused("busy", "too many clients ask just now"),
        }
    }

    /// A control plane has answered; `None`: none has, or none is there.
    pub(super) fn certificate_answered(&mut self, answer: Option<Answer>) {
        let issued = match answer {
            Some(Answer::Issued(issued)) => issued,
            Some(Answer::Refused { reason, message }) => {
                return self.certificate_refused(&reason, &message);
            }
            None => {
                return self.certificate_refused("unavailable", "no control plane has answered");
            }
        };
        let key = &self.session.key;
        match credential::certificate(&self.node.issuers, &issued, key, node::now()) {
            Ok(certificate) if certificate.gateway == self.session.gateway => {
                // From now on the tunnel stays as long as this holds, not the token that it began with.
                self.session.presence().credential = Credential::Certificate(certificate);
                self.node.registry.changed();
                self.say_certificate(ClientCertificate {
                    certificates_der: issued,
                    ..ClientCertificate::default()
                });
            }
            other => {
                let error = other.err();
                tracing::error!(client = %self.session.client_id, ?error, "a control plane has issued a certificate that this node does not accept");
                self.certificate_refused(
                    "failed",
                    "the certificate that was issued cannot be used",
                );
            }
        }
    }

    /// Tells the client whose certificates are accepted, if it does not know.
    pub(super) fn tell_trust(&mut self) {
        let trust = Arc::clone(&self.node.trust.borrow());
        let same = trust.roots == self.told.trust.roots;
        if self.detached.is_some() || trust.roots.is_empty() || same {
            return;
        }
        let ders = |all: &[CertificateDer<'_>]| all.iter().map(|der| der.to_vec()).collect();
        let message = control::Message::Trust(Trust {
            roots_der: ders(&trust.roots),
            chain_der: ders(&trust.chain),
        });
        if self.tell(message) {
            self.told.trust = trust;
        }
    }

    fn certificate_refused(&mut self, reason: &str, message: &str) {
        tracing::debug!(client = %self.session.client_id, reason, "no certificate for the client");
        self.say_certificate(ClientCertificate {
            reason: reason.to_owned(),
            message: message.to_owned(),
            ..ClientCertificate::default()
        });
    }

    /// If it is lost with the connection or finds no room, the client asks again.
    fn say_certificate(&mut self, said: ClientCertificate) {
        if self.detached.is_none() {
            self.say(control::Message::Certificate(said));
        }
    }
}
