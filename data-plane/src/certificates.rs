//! What a tunnel asks of the control planes: a certificate for its client. Tunnels put their questions into one bounded
//! queue; [`crate::control`] sends them up and brings the answers back.

use sg_model::GatewayId;
use sg_runtime::tls::CertificateDer;
use tokio::sync::{mpsc, oneshot};

/// Questions that may wait to be sent up.
const WAITING: usize = 64;

/// A client that wants a certificate, and has shown that it may have one.
#[derive(Debug)]
pub(crate) struct Question {
    pub(crate) gateway: GatewayId,
    /// The gateway's count of security tokens, as the client was let in by.
    pub(crate) token_generation: u64,
    /// SubjectPublicKeyInfo of the key that the client proved.
    pub(crate) public_key_der: Vec<u8>,
    pub(crate) answer: oneshot::Sender<Answer>,
}

/// What a control plane says to that. When nobody answers, the sender is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Answer {
    /// The certificate in DER, and behind it what leads to an authority.
    Issued(Vec<Vec<u8>>),
    /// None, and why.
    Refused { reason: String, message: String },
}

/// The authorities whose certificates are accepted, and what vouches for them to who trusted others before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Vouched {
    /// The one that issues first.
    pub(crate) roots: Vec<CertificateDer<'static>>,
    /// The node's own certificate, which that one has issued, and what stands behind it.
    pub(crate) chain: Vec<CertificateDer<'static>>,
}

/// Where tunnels put their questions.
#[derive(Debug, Clone)]
pub(crate) struct Desk(mpsc::Sender<Question>);

impl Desk {
    /// A desk, and where its questions arrive.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Question>) {
        let (sender, receiver) = mpsc::channel(WAITING);
        (Self(sender), receiver)
    }

    /// Whether the question was taken: not when too many wait.
    pub(crate) fn ask(&self, question: Question) -> bool {
        self.0.try_send(question).is_ok()
    }
}
