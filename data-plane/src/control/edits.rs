//! Clients' changes of lists on their way to a control plane, and back what became of them.
//!
//! Any control plane can make them. If the one that was asked is lost before it has answered, another one is asked the
//! same: it finds out by the request id whether the change was made. Every change is answered within [`LIMIT`].

use std::collections::HashMap;
use std::time::Duration;

use sg_proto::node::{AclEdit, AclEditAnswer, AclEditResult, node_message};
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Hub;
use super::link::LinkId;
use crate::edits::{Edit, too_many};

/// Changes that wait for an answer at a time.
const MOST: usize = 256;
/// Time for the answer.
const LIMIT: Duration = Duration::from_secs(10);

/// What was asked and is not answered yet.
#[derive(Debug, Default)]
pub(super) struct Edits {
    last: u64,
    waiting: HashMap<u64, Waiting>,
}

#[derive(Debug)]
struct Waiting {
    /// `None`: the one that was asked is lost, and no other was there.
    link: Option<LinkId>,
    until: Instant,
    asked: AclEdit,
    answer: oneshot::Sender<AclEditResult>,
}

impl Edits {
    /// Answers what has waited long enough, and forgets what nobody waits for any more.
    pub(super) fn sweep(&mut self) {
        let now = Instant::now();
        let over = |waiting: &Waiting| waiting.until <= now || waiting.answer.is_closed();
        let numbers: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| over(waiting))
            .map(|(number, _)| *number)
            .collect();
        for waiting in numbers.iter().filter_map(|n| self.waiting.remove(n)) {
            let text = "no control plane has answered in time; the change may or may not have happened: look with S before trying again";
            let late = AclEditResult::refused("outcome-unknown", text, true);
            // Whoever asked may be gone.
            drop(waiting.answer.send(late));
        }
    }

    /// The link is lost: what was asked on it is to be asked again.
    pub(super) fn lost(&mut self, link: LinkId) {
        for waiting in self.waiting.values_mut() {
            if waiting.link == Some(link) {
                waiting.link = None;
            }
        }
    }
}

impl Hub {
    /// Passes a client's change on, or says that there is nobody who could make it.
    pub(super) fn edit(&mut self, edit: Edit) {
        self.edits.sweep();
        let refused = if self.edits.waiting.len() >= MOST {
            Some(too_many("too many changes of lists wait at this node"))
        } else if self.any_link().is_none() {
            let text = "the node is cut off from every control plane, so nothing was changed; everything that is open goes on. Try again when one is back (sgctl status, and the node's log)";
            Some(AclEditResult::refused("cut-off", text, true))
        } else {
            None
        };
        if let Some(refused) = refused {
            drop(edit.answer.send(refused));
            return;
        }
        self.edits.last += 1;
        let asked = AclEdit {
            number: self.edits.last,
            gateway_id: edit.gateway.to_string(),
            client_id: edit.client.to_string(),
            client_address: edit.address.to_string(),
            request_id: edit.request_id,
            change: Some(edit.change),
        };
        let waiting = Waiting {
            link: None,
            until: Instant::now() + LIMIT,
            asked,
            answer: edit.answer,
        };
        self.edits.waiting.insert(self.edits.last, waiting);
        self.send_edits();
    }

    /// Asks a control plane for what none is asked for at present.
    pub(super) fn send_edits(&mut self) {
        let unasked = self.edits.waiting.iter();
        let numbers: Vec<u64> = unasked
            .filter(|(_, waiting)| waiting.link.is_none())
            .map(|(number, _)| *number)
            .collect();
        for number in numbers {
            let Some(link) = self.any_link() else {
                return;
            };
            let Some(waiting) = self.edits.waiting.get_mut(&number) else {
                continue;
            };
            waiting.link = Some(link);
            let asked = waiting.asked.clone();
            // A link that takes nothing is lost by this, and the rest is asked elsewhere.
            self.send(link, node_message::Message::AclEdit(asked));
        }
    }

    /// A control plane has answered.
    pub(super) fn edit_answered(&mut self, link: LinkId, said: AclEditAnswer) {
        let of_link = |waiting: &Waiting| waiting.link == Some(link);
        if !self.edits.waiting.get(&said.number).is_some_and(of_link) {
            return;
        }
        if let Some(waiting) = self.edits.waiting.remove(&said.number) {
            let unclear = || {
                AclEditResult::refused("internal", "the control plane's answer says nothing", false)
            };
            // Whoever asked may be gone by now.
            drop(waiting.answer.send(said.result.unwrap_or_else(unclear)));
        }
    }
}
