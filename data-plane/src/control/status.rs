//! What a node tells the control planes about itself.

use sg_proto::convert::timestamp_to_wire;
use sg_proto::node::{AclState, ClientTunnel, DestinationState, Status};

use crate::node::Node;
use crate::reconcile::{Applied, State};
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
        destinations: destinations(applied),
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

fn destinations(applied: &Applied) -> Vec<DestinationState> {
    let states = applied.destinations.iter().map(|(id, status)| {
        let (reason, message) = match &status.state {
            State::Failed { reason, message } => ((*reason).to_owned(), message.clone()),
            State::Listening | State::Disabled => (String::new(), String::new()),
        };
        DestinationState {
            destination_id: id.to_string(),
            generation: status.generation,
            state: status.state.as_str().to_owned(),
            reason,
            message,
            address: status.address.map(|a| a.to_string()).unwrap_or_default(),
        }
    });
    states.collect()
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
