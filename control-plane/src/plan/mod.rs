//! What each node group should serve, worked out of the world. Pure: the same world gives the same
//! plan on every control plane, whatever happened before.
//!
//! [`complete`] is the truth: the whole configuration of a group. [`planner`] reaches the same by
//! steps, and keeps the latest of them so that nodes can be sent differences; a property test
//! holds the two together.

pub mod planner;

use sg_model::{GatewayId, Name, NodeConfig, NodeObject, NodePeer, ObjectKey};
use sg_proto::convert::store::{DestinationRecord, NodeRecord};

pub use planner::{GroupPlan, Planner, Plans};

use crate::world::{GatewayEntry, Stored, World};

/// Everything the nodes of a group should serve at the world's revision.
pub fn complete(world: &World, group: &Name) -> NodeConfig {
    let gateways = world
        .gateways()
        .filter(|(gateway, _)| gateway.value.group == *group);
    let of_gateways = gateways.flat_map(|(gateway, entry)| {
        let id = gateway.value.gateway.id.clone();
        let own = (
            gateway.revision.get(),
            NodeObject::Gateway(gateway.value.gateway.clone()),
        );
        let acl = acl_object(world, &id);
        std::iter::once(own)
            .chain(acl)
            .chain(destination_objects(entry))
    });
    let objects = of_gateways.chain(world.nodes_of(group).map(|node| peer_object(node)));
    NodeConfig::complete(world.epoch, world.revision.get(), objects)
}

/// One object of a group's configuration; `None` if the group does not serve it.
fn object(
    world: &World,
    group: &Name,
    gateway: Option<&GatewayId>,
    key: &ObjectKey,
) -> Option<(u64, NodeObject)> {
    if let ObjectKey::Peer(id) = key {
        return world
            .node(id)
            .filter(|node| node.value.group == *group)
            .map(|node| peer_object(node));
    }
    let (gateway, entry) = world.gateway(gateway?)?;
    if gateway.value.group != *group {
        return None;
    }
    match key {
        ObjectKey::Gateway(_) => Some((
            gateway.revision.get(),
            NodeObject::Gateway(gateway.value.gateway.clone()),
        )),
        ObjectKey::Destination(id) => entry.destination(id).map(|one| destination_object(one)),
        ObjectKey::Acl(id) => acl_object(world, id),
        ObjectKey::Peer(_) => None,
    }
}

fn acl_object(world: &World, gateway: &GatewayId) -> Option<(u64, NodeObject)> {
    let acl = world.acl(gateway)?;
    Some((
        acl.revision.get(),
        NodeObject::Acl(gateway.clone(), acl.value),
    ))
}

fn destination_objects(entry: &GatewayEntry) -> impl Iterator<Item = (u64, NodeObject)> {
    entry.destinations().map(|one| destination_object(one))
}

/// A destination as nodes need it: without the key that was made for its users.
fn destination_object(stored: &Stored<DestinationRecord>) -> (u64, NodeObject) {
    let mut destination = stored.value.destination.clone();
    if let Some(pair) = &mut destination.user_end.generated_pair {
        pair.key = None;
    }
    (stored.revision.get(), NodeObject::Destination(destination))
}

fn peer_object(node: &Stored<NodeRecord>) -> (u64, NodeObject) {
    let peer = NodePeer {
        id: node.value.id.clone(),
        name: node.value.name.clone(),
        tunnel_address: node.value.tunnel_address.clone(),
    };
    (node.revision.get(), NodeObject::Peer(peer))
}
