//! Questions for certificates on their way to a control plane, and the answers back.
//!
//! Any control plane can answer. What is not answered in time, or was asked of one that is lost, counts as not answered: whoever
//! asked does so again.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use sg_proto::node::certificate_request::Holder;
use sg_proto::node::{Certificate, CertificateRequest, ClientKey, Trust, node_message};
use sg_runtime::identity::CertificateDer;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::link::LinkId;
use super::{Hub, News};
use crate::certificates::{Answer, Question};

/// Questions that wait for an answer at a time.
const MOST: usize = 256;
/// Time for the answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What was asked and is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Asked {
    last: u64,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    link: LinkId,
    until: Instant,
    asker: Asker,
}

/// Who waits for an answer.
#[derive(Debug)]
enum Asker {
    Client(oneshot::Sender<Answer>),
    /// The node itself.
    Own,
}

impl Asked {
    fn note(&mut self, link: LinkId, asker: Asker) -> Option<u64> {
        if self.waiting.len() >= MOST {
            return None;
        }
        self.last += 1;
        let until = Instant::now() + LIMIT;
        let waiting = Waiting { link, until, asker };
        self.waiting.insert(self.last, waiting);
        Some(self.last)
    }

    /// Forgets what nobody answers any more.
    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        self.waiting.retain(|_, waiting| {
            let gone = matches!(&waiting.asker, Asker::Client(answer) if answer.is_closed());
            now < waiting.until && !gone
        });
    }

    /// A link is lost, and what was asked on it.
    pub(super) fn forget(&mut self, link: LinkId) {
        self.waiting.retain(|_, waiting| waiting.link != link);
    }

    fn take(&mut self, link: LinkId, id: u64) -> Option<Asker> {
        let waiting = self.waiting.remove(&id)?;
        (waiting.link == link).then_some(waiting.asker)
    }
}

impl Hub {
    /// Sends a question to a control plane. If there is none, dropping it is the answer.
    pub(super) fn ask(&mut self, question: Question) {
        self.asked.sweep();
        let Some(link) = self.any_link() else {
            return;
        };
        let Some(id) = self.asked.note(link, Asker::Client(question.answer)) else {
            return;
        };
        let client = ClientKey {
            gateway_id: question.gateway.to_string(),
            token_generation: question.token_generation,
            public_key_der: question.public_key_der,
        };
        let request = CertificateRequest {
            id,
            holder: Some(Holder::Client(client)),
        };
        self.send(link, node_message::Message::CertificateRequest(request));
    }

    /// Asks for a new certificate of the node itself, when it is time and a control plane is there.
    pub(super) fn renew(&mut self) {
        let Some(link) = self.any_link() else {
            return;
        };
        let Some(csr) = self.control.own.due() else {
            return;
        };
        let Some(id) = self.asked.note(link, Asker::Own) else {
            return;
        };
        let request = CertificateRequest {
            id,
            holder: Some(Holder::NodeCsrDer(csr)),
        };
        self.send(link, node_message::Message::CertificateRequest(request));
    }

    fn own_certificate(&mut self, said: Certificate) {
        if said.certificates_der.is_empty() {
            return self.control.own.refused(&said.reason);
        }
        let chain = said.certificates_der.into_iter().map(CertificateDer::from);
        if let Err(error) = self.control.own.take(chain.collect()) {
            tracing::error!(%error, "a control plane has issued a certificate that this node cannot use");
        }
        self.tell_clients();
        // Somebody may wait for all nodes to have theirs.
        self.note(News::Some);
    }

    /// A control plane says whose certificates are accepted. Its own was verified under what was accepted before.
    pub(super) fn trust(&mut self, trust: Trust) {
        let roots: Vec<_> = trust
            .roots_der
            .into_iter()
            .map(CertificateDer::from)
            .collect();
        let own = &mut self.control.own;
        if !own.is_news((trust.epoch, trust.revision)) || own.trusted() == roots {
            return;
        }
        let issuers = &self.control.node.issuers;
        match own.trust(&roots).and_then(|()| issuers.replace(&roots)) {
            Ok(()) => tracing::info!(
                authorities = roots.len(),
                "certificates of these authorities are accepted"
            ),
            Err(error) => {
                tracing::error!(%error, "the authorities that a control plane names cannot be used")
            }
        }
        self.tell_clients();
    }

    /// Lets clients know, as soon as the node's own certificate vouches for the authority that issues.
    fn tell_clients(&self) {
        let own = &self.control.own;
        if let Some(vouched) = own.vouched() {
            self.control.node.trust.send_if_modified(|told| {
                let new = told.roots != vouched.roots;
                if new {
                    *told = Arc::new(vouched);
                }
                new
            });
        }
    }

    /// A control plane has answered.
    pub(super) fn certificate(&mut self, link: LinkId, said: Certificate) {
        let answer = match self.asked.take(link, said.id) {
            None => return,
            Some(Asker::Own) => return self.own_certificate(said),
            Some(Asker::Client(answer)) => answer,
        };
        let said = match said.certificates_der.is_empty() {
            false => Answer::Issued(said.certificates_der),
            true => Answer::Refused {
                reason: said.reason,
                message: said.message,
            },
        };
        // Whoever asked may be gone by now.
        drop(answer.send(said));
    }

    /// The source of configuration if there is one, or else any control plane that is connected.
    pub(super) fn any_link(&self) -> Option<LinkId> {
        let up = |id: &LinkId| self.links.get(id).is_some_and(|link| link.up.is_some());
        self.source
            .filter(up)
            .or_else(|| self.links.keys().copied().find(up))
    }
}
