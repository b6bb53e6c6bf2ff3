//! What a tunnel's keeper and its client tell each other: the list, the nodes, and in pieces the destinations that the client
//! must know, and how its ports fare.

use std::collections::VecDeque;

use prost::Message as _;
use sg_model::{Acl, GatewayId, NodeConfig};
use sg_proto::tunnel::{Control, Endpoints, Listeners, Piece, control};
use sg_tunnel_io::ControlError;
use sg_tunnel_io::code::close;

use super::session::Keeper;

/// Ports that one client may report: as many as a gateway has destinations.
const MOST_LISTENERS: usize = 2_000;

/// The access control list that the clients of a gateway enforce; without one, everything is denied.
pub(super) fn acl_of(config: &NodeConfig, gateway: &GatewayId) -> Acl {
    config.acl(gateway).cloned().unwrap_or_default()
}

impl Keeper<'_> {
    /// Whether something waits for room.
    pub(super) fn has_unsent(&self) -> bool {
        !self.outbox.is_empty() || self.edits.has_unsent()
    }

    /// Sends what there is room for; the rest is tried again soon.
    pub(super) fn send_outbox(&mut self) {
        self.send_edit_answers();
        if self.detached.is_some() {
            return;
        }
        while let Some(piece) = self.outbox.front() {
            let message = Control {
                message: Some(control::Message::Destinations(piece.clone())),
            };
            let sent = self
                .session
                .tunnel
                .send_control(message.encode_to_vec().into());
            if matches!(sent, Err(ControlError::Full)) {
                return;
            }
            self.outbox.pop_front();
        }
        // Seldom needed again.
        self.outbox = VecDeque::new();
    }

    /// Says which nodes there are, if the client was told otherwise.
    pub(super) fn tell_endpoints(&mut self) {
        let endpoints = self.node.for_clients.endpoints();
        if endpoints != self.told.endpoints
            && self.tell(control::Message::Endpoints(Endpoints::clone(&endpoints)))
        {
            self.told.endpoints = endpoints;
        }
    }

    pub(super) fn take_listeners(&mut self, piece: &Piece) {
        let whole = match self.listeners.take(piece) {
            Ok(None) => return,
            Ok(Some(whole)) => Listeners::decode(whole.as_slice()).ok(),
            Err(_) => None,
        };
        match whole {
            Some(said) if said.listeners.len() <= MOST_LISTENERS => {
                self.session.set_listeners(said.listeners);
                self.node.registry.changed();
            }
            _ => self
                .session
                .tunnel
                .close(close::PROTOCOL_ERROR, "a control message cannot be decoded"),
        }
    }

    /// Says what is not repeated.
    pub(super) fn say(&self, message: control::Message) {
        let message = Control {
            message: Some(message),
        };
        let sent = self
            .session
            .tunnel
            .send_control(message.encode_to_vec().into());
        if let Err(error) = sent {
            tracing::debug!(client = %self.session.client_id, ?error, "a message to the client found no room");
        }
    }

    /// Whether it need not be said again.
    pub(super) fn tell(&mut self, message: control::Message) -> bool {
        let message = Control {
            message: Some(message),
        };
        match self
            .session
            .tunnel
            .send_control(message.encode_to_vec().into())
        {
            Ok(()) | Err(ControlError::Closed(_)) => true,
            Err(ControlError::Full) => {
                self.owes = true;
                false
            }
            Err(ControlError::TooLong) => {
                // The hello of a new connection has room for it; until then existing streams go on.
                tracing::info!(client = %self.session.client_id, "update too long for the open tunnel: asking the client to reconnect");
                self.session.tunnel.goaway();
                true
            }
        }
    }
}
