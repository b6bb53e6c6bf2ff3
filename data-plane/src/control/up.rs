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
    owes: bool,
}

impl Up {
    pub(super) fn new(control_plane: String, outgoing: mpsc::Sender<NodeMessage>) -> Self {
        Self {
            control_plane,
            outgoing,
            told: ToldStates::default(),
            owes: false,
        }
    }

    /// Tells what it was not told of destinations, as far as there is room; answers whether that is all.
    pub(super) fn tell_states(&mut self, applied: &Applied) -> bool {
        while let Some((message, told)) = self.told.next(&applied.destinations) {
            self.owes = !self.tell(node_message::Message::DestinationStates(message));
            if self.owes {
                return false;
            }
            self.told = told;
        }
        self.owes = false;
        true
    }

    /// Whether there was no room for all that was to be told of destinations.
    pub(super) fn owes(&self) -> bool {
        self.owes
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::DestinationId;

    use super::super::link::OUTGOING;
    use super::*;
    use crate::reconcile::{DestinationStatus, State};

    #[test]
    fn what_finds_no_room_is_owed_and_told_later() {
        let (outgoing, mut queue) = mpsc::channel(OUTGOING);
        let mut up = Up::new("cp".to_owned(), outgoing);
        let status = |n| DestinationStatus {
            id: DestinationId::new(format!("d{n:06}")).unwrap(),
            generation: 1,
            state: State::Listening,
            address: None,
        };
        let applied = Applied {
            destinations: (0..100_000).map(status).collect(),
            ..Applied::default()
        };
        assert!(!up.tell_states(&applied) && up.owes());
        assert_eq!(
            up.outgoing.capacity(),
            RESERVED,
            "acknowledgements have room"
        );
        let mut told = 0;
        let mut take = || {
            while let Ok(message) = queue.try_recv() {
                if let Some(node_message::Message::DestinationStates(states)) = message.message {
                    told += states.changed.len();
                }
            }
        };
        take();
        assert!(up.tell_states(&applied) && !up.owes());
        take();
        assert_eq!(told, 100_000);
    }
}
