//! What a node tells the control planes about itself: of destinations what has changed since it told last, of
//! everything else all there is.

use sg_model::SharedMap;
use sg_proto::convert::timestamp_to_wire;
use sg_proto::node::{AclState, ClientTunnel, DestinationState, DestinationStates, Status};

use crate::node::Node;
use crate::reconcile::{Applied, DestinationStatus, State};
use crate::tunnels::Session;

/// The status of this moment.
pub(super) fn build(node: &Node, applied: &Applied, issuer: Option<[u8; 32]>) -> Status {
    let config = node.config();
    let tunnels: Vec<_> = node.registry.present().iter().map(|s| tunnel(s)).collect();
    let acls = config.gateways().filter_map(|gateway| {
        let version = config.acl(&gateway.id)?.version;
        Some(AclState {
            gateway_id: gateway.id.to_string(),
            epoch: version.epoch,
            generation: version.generation,
        })
    });
    Status {
        revision: applied.revision,
        draining: node.shutdown.is_draining(),
        streams: u32::try_from(node.streams.len() + node.cloud.len()).unwrap_or(u32::MAX),
        tunnels,
        acls: acls.collect(),
        issuer_sha256: issuer.map(Vec::from).unwrap_or_default(),
    }
}

/// What changes without anybody saying so: streams and bytes.
pub(super) fn activity(node: &Node) -> (usize, u64) {
    let sessions = node.registry.all();
    let bytes = sessions
        .iter()
        .map(|s| s.bytes.from_tcp().wrapping_add(s.bytes.to_tcp()))
        .fold(0, u64::wrapping_add);
    (node.streams.len() + node.cloud.len(), bytes)
}

/// Destinations in one message: far less than a message may be long.
const MOST_IN_MESSAGE: usize = 2048;

/// What one control plane was told of destinations on its stream.
#[derive(Debug, Clone, Default)]
pub(super) struct ToldStates {
    states: SharedMap<DestinationStatus>,
    begun: bool,
}

impl ToldStates {
    /// The next message that is to be sent, and what is told when it is sent. `None`: everything is told.
    pub(super) fn next(
        &self,
        now: &SharedMap<DestinationStatus>,
    ) -> Option<(DestinationStates, Self)> {
        let mut differences = now.differences(&self.states);
        let next: Vec<_> = differences.by_ref().take(MOST_IN_MESSAGE).collect();
        let mut message = DestinationStates {
            first: !self.begun,
            last: differences.next().is_none(),
            ..DestinationStates::default()
        };
        if next.is_empty() && !message.first {
            return None;
        }
        let mut told = Self {
            begun: true,
            states: self.states.clone(),
        };
        for difference in next {
            match difference.after() {
                Some(status) => {
                    message.changed.push(state(status));
                    told.states.insert(std::sync::Arc::clone(status));
                }
                None => {
                    message.gone.push(difference.key().to_string());
                    told.states.remove(difference.key());
                }
            }
        }
        if message.last {
            // The same, but sharing what it consists of: the next comparison sees at once what is equal.
            told.states = now.clone();
        }
        Some((message, told))
    }
}

fn state(status: &DestinationStatus) -> DestinationState {
    let (reason, message) = match &status.state {
        State::Failed { reason, message } => ((*reason).to_owned(), message.clone()),
        State::Listening | State::Disabled => (String::new(), String::new()),
    };
    DestinationState {
        destination_id: status.id.to_string(),
        generation: status.generation,
        state: status.state.as_str().to_owned(),
        reason,
        message,
        address: status.address.map(|a| a.to_string()).unwrap_or_default(),
    }
}

fn tunnel(session: &Session) -> ClientTunnel {
    let acl = session.acl_applied();
    let credential = session.credential();
    ClientTunnel {
        gateway_id: session.gateway.to_string(),
        client_id: session.client_id.to_string(),
        client_name: session.client_name.clone(),
        boot_id: session.boot_id.clone(),
        version: session.software.clone(),
        address: session.address().to_string(),
        connect_time: Some(timestamp_to_wire(session.connected())),
        rtt_ms: session
            .tunnel
            .rtt()
            .map(|rtt| rtt.as_secs_f64() * 1000.0)
            .unwrap_or_default(),
        active_streams: session.active(),
        bytes_to_resource: session.bytes.from_tcp(),
        bytes_to_user: session.bytes.to_tcp(),
        acl_epoch: acl.epoch,
        acl_generation: acl.generation,
        listeners: session.listeners().to_vec(),
        credential: credential.as_str().to_owned(),
        certificate_expire_time: credential.certificate_ends().map(timestamp_to_wire),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::DestinationId;

    use super::*;

    fn status(number: usize, generation: u64) -> DestinationStatus {
        DestinationStatus {
            id: DestinationId::new(format!("d{number:05}")).unwrap(),
            generation,
            state: State::Listening,
            address: None,
        }
    }

    /// All messages until everything is told: how many destinations each has.
    fn tell(
        told: &mut ToldStates,
        now: &SharedMap<DestinationStatus>,
    ) -> Vec<(bool, usize, usize)> {
        let mut messages = Vec::new();
        while let Some((message, then)) = told.next(now) {
            messages.push((message.first, message.changed.len(), message.gone.len()));
            *told = then;
            assert_eq!(
                message.last,
                told.states == *now,
                "the last one is the last"
            );
        }
        messages
    }

    #[test]
    fn only_what_has_changed_is_told_and_never_too_much_at_once() {
        let mut now: SharedMap<_> = (0..5000).map(|n| status(n, 1)).collect();
        let mut told = ToldStates::default();
        let parts = [(true, 2048, 0), (false, 2048, 0), (false, 904, 0)];
        assert_eq!(tell(&mut told, &now), parts);
        assert_eq!(tell(&mut told, &now), []);
        now.insert(status(7, 2));
        now.remove(&status(9, 1).id);
        assert_eq!(tell(&mut told, &now), [(false, 1, 1)]);
        for n in 0..MOST_IN_MESSAGE {
            now.insert(status(n, 3));
        }
        assert_eq!(tell(&mut told, &now), [(false, MOST_IN_MESSAGE, 0)]);
    }

    #[test]
    fn a_control_plane_that_begins_is_told_even_that_there_is_nothing() {
        let mut told = ToldStates::default();
        assert_eq!(tell(&mut told, &SharedMap::default()), [(true, 0, 0)]);
    }
}
