//! A link that is connected: where its messages go, and what its control plane was told of destinations.

use sg_proto::node::{NodeMessage, node_message};
use tokio::sync::mpsc;

use super::status::ToldStates;
use crate::reconcile::Applied;

/// Places in a link's queue that a status leaves free for acknowledgements.
const RESERVED: usize = 16;

/// One control plane on a stream that is there.
pub(super) struct Up {
    pub(super) control_plane: String,
    pub(super) outgoing: mpsc::Sender<NodeMessage>,
    told: ToldStates,
}

impl Up {
    pub(super) fn new(control_plane: String, outgoing: mpsc::Sender<NodeMessage>) -> Self {
        Self {
            control_plane,
            outgoing,
            told: ToldStates::default(),
        }
    }

    /// Tells what it was not told of destinations, as far as there is room; answers whether that is all.
    pub(super) fn tell_states(&mut self, applied: &Applied) -> bool {
        while let Some((message, told)) = self.told.next(&applied.destinations) {
            if !self.tell(node_message::Message::DestinationStates(message)) {
                return false;
            }
            self.told = told;
        }
        true
    }

    /// Sends what may wait for the next time, unless the room that is left is for acknowledgements.
    pub(super) fn tell(&self, message: node_message::Message) -> bool {
        let message = NodeMessage {
            message: Some(message),
        };
        let sent = self.outgoing.capacity() > RESERVED && self.outgoing.try_send(message).is_ok();
        if !sent {
            tracing::debug!(control_plane = self.control_plane, "status not sent");
        }
        sent
    }
}
