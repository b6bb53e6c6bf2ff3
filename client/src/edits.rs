//! Changes of the gateway's access control list that a person at this client asks for: sent over a tunnel to a node, which
//! passes them on, and answered when they are made or refused.
//!
//! A change that may have been lost on its way is sent again over another tunnel, under the same id, so that it is made once.
//! Start with [`ask`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prost::Message as _;
use sg_model::{AclEdit, AclVersion};
use sg_proto::convert::acl_edit::{LONGEST_EDIT, REQUEST_ID};
use sg_proto::node::{AclChange, AclEditResult};
use sg_proto::pieces;
use sg_proto::tunnel::{self as wire, Control, Piece, control};
use sg_runtime::crypto;
use sg_tunnel_io::{ControlError, Tunnel};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout_at};

use crate::cloud::{Health, Way};
use crate::gateway::GatewayContext;

/// Time for one change, a little longer than a node waits for the control plane.
const LIMIT: Duration = Duration::from_secs(15);
/// Before a piece that found no room is sent again.
const AGAIN: Duration = Duration::from_millis(50);
/// Longest text of an answer that is shown, in characters.
const LONGEST_TEXT: usize = 400;

/// A change that was made, or that was not needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// The list with it.
    pub version: AclVersion,
    /// Whether it was otherwise before.
    pub changed: bool,
}

/// Why a change was not made, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text} ({reason})")]
pub struct NotMade {
    /// One word.
    pub reason: String,
    /// A sentence for people, without a full stop.
    pub text: String,
}

impl NotMade {
    fn new(reason: &str, text: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            text: text.into(),
        }
    }

    /// It may have been made all the same.
    #[must_use]
    pub fn is_unclear(&self) -> bool {
        self.reason == "outcome-unknown"
    }

    fn unclear() -> Self {
        let text = "nobody has answered in time, so the change may or may not have happened: look with S before trying again. Nodes and control planes of older versions do not answer at all";
        Self::new("outcome-unknown", text)
    }

    fn said(result: &AclEditResult) -> Self {
        let shown = |text: &str, most: usize| -> String {
            text.chars()
                .filter(|c| !c.is_control())
                .take(most)
                .collect()
        };
        Self::new(
            &shown(&result.reason, 32),
            shown(&result.message, LONGEST_TEXT),
        )
    }
}

/// What is asked for of one gateway: one change at a time.
#[derive(Debug, Default)]
pub struct Edits {
    turn: tokio::sync::Mutex<()>,
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug)]
struct Waiting {
    request_id: Vec<u8>,
    answer: oneshot::Sender<AclEditResult>,
}

impl Edits {
    /// A node has answered.
    pub(crate) fn answered(&self, answer: wire::AclEditAnswer) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let own = |waiting: &mut Waiting| waiting.request_id == answer.request_id;
        if let Some(waiting) = waiting.take_if(own) {
            // Whoever asked may have given up.
            drop(waiting.answer.send(answer.result.unwrap_or_default()));
        }
    }

    fn expect(&self, request_id: &[u8]) -> oneshot::Receiver<AclEditResult> {
        let (answer, receiver) = oneshot::channel();
        let waiting = Waiting {
            request_id: request_id.to_vec(),
            answer,
        };
        *self.waiting.lock().unwrap_or_else(PoisonError::into_inner) = Some(waiting);
        receiver
    }
}

/// What came of a change over one tunnel.
enum Came {
    Answer(AclEditResult),
    /// The tunnel has ended, and nobody knows how far the change has come.
    Lost,
    /// The tunnel took nothing.
    Unsent,
}

/// Asks for a change of a gateway's list.
///
/// # Errors
/// It was not made, and why; or nobody knows whether it was.
pub async fn ask(gateway: &GatewayContext, edit: &AclEdit) -> Result<Made, NotMade> {
    let request_id = crypto::random_bytes::<REQUEST_ID>();
    let encoded = wire::AclEdit {
        request_id: request_id.to_vec(),
        change: Some(AclChange::from(edit)),
    }
    .encode_to_vec();
    if encoded.len() > LONGEST_EDIT {
        return Err(NotMade::new("invalid", "the list is too long to be sent"));
    }
    let deadline = Instant::now() + LIMIT;
    let pieces = pieces::cut(&encoded);
    let Ok(_turn) = timeout_at(deadline, gateway.edits.turn.lock()).await else {
        let text = "another change is still under way, and nothing of this one was sent";
        return Err(NotMade::new("too-many-edits", text));
    };
    let (mut tried, mut last, mut unclear) = (Vec::new(), None, false);
    loop {
        let Some(way) = next(gateway, &mut tried) else {
            if !unclear {
                return Err(last.unwrap_or_else(no_node));
            }
            // The client may come back, and ask again under the same id.
            let back = gateway.tunnels.available(&tried);
            if timeout_at(deadline, back).await.is_err() {
                return Err(NotMade::unclear());
            }
            continue;
        };
        let came = over(gateway, &way.tunnel, &pieces, &request_id);
        match timeout_at(deadline, came).await {
            Err(_) => return Err(NotMade::unclear()),
            Ok(Came::Lost) => unclear = true,
            Ok(Came::Unsent) => {
                let text =
                    "the tunnel has no room for more, so nothing was changed; try again soon";
                last = Some(NotMade::new("too-many-edits", text));
            }
            Ok(Came::Answer(result)) => {
                if let Some(version) = result.version() {
                    let changed = result.changed;
                    return Ok(Made { version, changed });
                }
                let refused = NotMade::said(&result);
                // Another node may not be cut off.
                if refused.reason != "cut-off" {
                    return Err(refused);
                }
                last = Some(refused);
            }
        }
    }
}

/// The next tunnel to try.
fn next(gateway: &GatewayContext, tried: &mut Vec<u64>) -> Option<std::sync::Arc<Way>> {
    let tunnels = &gateway.tunnels;
    let way = tunnels
        .choose(Health::Good, tried)
        .or_else(|| tunnels.choose(Health::Any, tried))?;
    tried.push(way.number);
    Some(way)
}

fn no_node() -> NotMade {
    let text = "the client has no connection to a node, so nothing was changed; its log says why";
    NotMade::new("no-node", text)
}

/// Sends a change over one tunnel, and waits for the answer.
async fn over(
    gateway: &GatewayContext,
    tunnel: &Tunnel,
    pieces: &[Piece],
    request_id: &[u8],
) -> Came {
    let answer = gateway.edits.expect(request_id);
    for piece in pieces {
        let message = Control {
            message: Some(control::Message::AclEdit(piece.clone())),
        };
        loop {
            match tunnel.send_control(message.encode_to_vec().into()) {
                Ok(()) => break,
                Err(ControlError::Full) => sleep(AGAIN).await,
                // Without its last piece it is no change.
                Err(ControlError::Closed(_) | ControlError::TooLong) => return Came::Unsent,
            }
        }
    }
    tokio::select! {
        biased;
        Ok(result) = answer => Came::Answer(result),
        _ = tunnel.closed() => Came::Lost,
    }
}
