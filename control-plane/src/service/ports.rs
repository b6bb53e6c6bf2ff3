//! Which cloud port a destination gets. A choice here is only a proposal: the transaction requires
//! the port to be free, and on a conflict the next choice is made.

use std::collections::BTreeSet;

use prost::Message as _;
use rand::RngExt as _;
use sg_model::{GatewayId, Name, PortRange};
use sg_proto::store as wire;

use super::{Core, ServiceError};
use crate::keys;
use crate::store::Revision;
use crate::world::World;

/// Random choices before every port is looked at.
const RANDOM_CHOICES: usize = 16;

/// A port to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Proposal {
    pub(super) port: u16,
    /// The quarantine that this gateway itself caused and may end.
    pub(super) own_quarantine: Option<Revision>,
}

impl Core {
    /// Proposes a port: the one asked for, or else a free one. `attempt` counts the proposals of
    /// this request that turned out to be taken.
    pub(super) async fn propose_port(
        &self,
        group: &Name,
        gateway: &GatewayId,
        asked: Option<u16>,
        attempt: usize,
    ) -> Result<Proposal, ServiceError> {
        if let Some(port) = asked {
            return self.propose_asked(group, gateway, port).await;
        }
        let view = self.views.now();
        let range = range_of(&view.world, group)?;
        let mut used = used_ports(&view.world, group);
        if attempt < RANDOM_CHOICES {
            for _ in 0..RANDOM_CHOICES {
                let port = rand::rng().random_range(range.first()..=range.last());
                if !used.contains(&port) {
                    return Ok(Proposal {
                        port,
                        own_quarantine: None,
                    });
                }
            }
        }
        // Nearly full, or the world is behind: look at everything as it is now.
        for prefix in [keys::cloud_ports(group), keys::quarantined(group)] {
            let (_, listed) = self
                .store
                .keys(&prefix)
                .await
                .inspect_err(|e| self.health.bad(e))?;
            used.extend(listed.iter().filter_map(|(key, _)| keys::port_of(key)));
        }
        let free: Vec<u16> = (range.first()..=range.last())
            .filter(|port| !used.contains(port))
            .collect();
        if free.is_empty() {
            return Err(ServiceError::Exhausted {
                reason: "PORTS_EXHAUSTED",
                message: format!(
                    "every port of {}-{} in group {group} is used, or was until lately; widen --destination-ports of its nodes, or ask for a port",
                    range.first(),
                    range.last()
                ),
            });
        }
        let port = free[rand::rng().random_range(0..free.len())];
        Ok(Proposal {
            port,
            own_quarantine: None,
        })
    }

    async fn propose_asked(
        &self,
        group: &Name,
        gateway: &GatewayId,
        port: u16,
    ) -> Result<Proposal, ServiceError> {
        let Some(entry) = self.read(&keys::quarantine(group, port)).await? else {
            return Ok(Proposal {
                port,
                own_quarantine: None,
            });
        };
        let holder = wire::Reference::decode(entry.value.as_ref())?;
        if holder.gateway_id == gateway.as_str() {
            return Ok(Proposal {
                port,
                own_quarantine: Some(entry.mod_revision),
            });
        }
        Err(quarantined(group, port))
    }
}

/// The port was freed lately by another gateway.
pub(super) fn quarantined(group: &Name, port: u16) -> ServiceError {
    ServiceError::Taken {
        reason: "PORT_QUARANTINED",
        message: format!(
            "port {port} of group {group} belonged to another gateway until lately; it can be had a day after it was freed"
        ),
    }
}

/// What the ranges of all nodes of a group have in common.
fn range_of(world: &World, group: &Name) -> Result<PortRange, ServiceError> {
    let mut ranges = world.nodes_of(group).filter_map(|node| node.value.ports);
    let Some(first) = ranges.next() else {
        return Ok(PortRange::DEFAULT);
    };
    ranges.try_fold(first, PortRange::intersect).ok_or_else(|| ServiceError::Exhausted {
        reason: "NO_COMMON_PORTS",
        message: format!("the nodes of group {group} have no destination port in common; change their --destination-ports, delete nodes that are gone for good, or ask for a port"),
    })
}

fn used_ports(world: &World, group: &Name) -> BTreeSet<u16> {
    world
        .gateways()
        .filter(|(gateway, _)| gateway.value.group == *group)
        .flat_map(|(_, entry)| entry.destinations())
        .filter_map(|destination| destination.value.destination.listen.cloud_port())
        .collect()
}
