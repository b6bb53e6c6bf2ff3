//! The client's wishes to change its gateway's list: taken off the tunnel, handed in under the client's proved identity, and
//! answered.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use prost::Message as _;
use sg_model::AclEdit;
use sg_proto::convert::acl_edit::{LONGEST_EDIT, REQUEST_ID};
use sg_proto::node::AclEditResult;
use sg_proto::pieces::Assembly;
use sg_proto::tunnel::{self as wire, AclEditAnswer, Control, Piece, control};
use sg_tunnel_io::ControlError;
use sg_tunnel_io::code::close;
use tokio::sync::oneshot;

use super::session::Keeper;
use crate::edits::{Edit, too_many};

/// Wishes of one tunnel that are not answered yet.
const MOST: usize = 4;

type Answer = Pin<Box<dyn Future<Output = AclEditAnswer> + Send>>;

/// How far a tunnel's wishes are.
pub(super) struct Edits {
    coming: Assembly,
    /// Made for the first one.
    asked: Option<FuturesUnordered<Answer>>,
    /// Answers that have not left yet.
    unsent: VecDeque<AclEditAnswer>,
}

impl Default for Edits {
    fn default() -> Self {
        Self {
            coming: Assembly::limited(LONGEST_EDIT),
            asked: None,
            unsent: VecDeque::new(),
        }
    }
}

impl Edits {
    /// Waits for the next answer. Can be cancelled without loss.
    pub(super) async fn answered(&mut self) -> AclEditAnswer {
        if let Some(asked) = &mut self.asked
            && let Some(answer) = asked.next().await
        {
            return answer;
        }
        self.asked = None;
        std::future::pending().await
    }

    pub(super) fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

impl Keeper<'_> {
    /// Takes a piece of a wish, and hands the wish in when it is complete.
    pub(super) fn take_edit(&mut self, piece: &Piece) {
        let whole = match self.edits.coming.take(piece) {
            Ok(None) => return,
            Ok(Some(whole)) => wire::AclEdit::decode(whole.as_slice()).ok(),
            Err(_) => None,
        };
        let Some(wish) = whole.filter(|wish| wish.request_id.len() == REQUEST_ID) else {
            let text = "a wish to change the list cannot be decoded";
            return self.session.tunnel.close(close::PROTOCOL_ERROR, text);
        };
        let request_id = wish.request_id.clone();
        match self.hand_in(wish) {
            Ok(answer) => self.edits.asked.get_or_insert_default().push(Box::pin(async move {
                // Whoever has it never drops it unanswered while the node runs.
                let unanswered = || {
                    let text = "the node ends; the change may or may not have happened: look with S before trying again";
                    AclEditResult::refused("outcome-unknown", text, true)
                };
                AclEditAnswer {
                    request_id,
                    result: Some(answer.await.unwrap_or_else(|_| unanswered())),
                }
            })),
            Err(refused) => self.edit_answered(AclEditAnswer {
                request_id,
                result: Some(refused),
            }),
        }
    }

    fn hand_in(
        &self,
        wish: wire::AclEdit,
    ) -> Result<oneshot::Receiver<AclEditResult>, AclEditResult> {
        let asked = self.edits.asked.as_ref().map_or(0, FuturesUnordered::len);
        if asked + self.edits.unsent.len() >= MOST {
            return Err(too_many("the client asks for more before it is answered"));
        }
        let change = wish.change.unwrap_or_default();
        if let Err(fault) = AclEdit::try_from(&change) {
            return Err(AclEditResult::refused("invalid", fault.to_string(), false));
        }
        let (answer, answered) = oneshot::channel();
        self.node.edits.hand_in(Edit {
            gateway: self.session.gateway.clone(),
            client: self.session.client_id.clone(),
            address: self.session.address().ip(),
            request_id: wish.request_id,
            change,
            answer,
        })?;
        Ok(answered)
    }

    /// Tells the client what became of a wish.
    pub(super) fn edit_answered(&mut self, answer: AclEditAnswer) {
        let reason = answer
            .result
            .as_ref()
            .map_or("", |said| said.reason.as_str());
        let (gateway, client) = (&self.session.gateway_name, &self.session.client_id);
        match reason {
            "" => {
                tracing::info!(%gateway, %client, "the client has changed the access control list")
            }
            reason => {
                tracing::debug!(%gateway, %client, reason, "the client may not change the list")
            }
        }
        // More than that were refused, and say nothing that a client could not see by itself.
        if self.edits.unsent.len() < 2 * MOST {
            self.edits.unsent.push_back(answer);
        }
        self.send_edit_answers();
    }

    /// Sends what there is room for; the rest is tried again soon.
    pub(super) fn send_edit_answers(&mut self) {
        if self.detached.is_some() {
            return;
        }
        while let Some(answer) = self.edits.unsent.front() {
            let message = Control {
                message: Some(control::Message::AclEditAnswer(answer.clone())),
            };
            let sent = self
                .session
                .tunnel
                .send_control(message.encode_to_vec().into());
            if matches!(sent, Err(ControlError::Full)) {
                return;
            }
            self.edits.unsent.pop_front();
        }
    }
}
