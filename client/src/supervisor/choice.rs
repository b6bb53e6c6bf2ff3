//! Which nodes of a group a client keeps tunnels to. Pure and the same on every client of a gateway,
//! so that few nodes carry a gateway in a large group and everyone can tell which.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use sg_model::{HostPort, NodeId};

use super::event::Endpoint;

/// In a group of at most so many nodes, all get a tunnel.
const ALL_UP_TO: usize = 4;
/// In a larger group, so many do.
const OF_MORE: usize = 3;

/// The nodes that need a learned link, and their addresses: of all that nodes `told`, those that no
/// seed leads to (`homes`).
pub(super) fn learned(
    gateway: &str,
    told: &BTreeMap<NodeId, Vec<Endpoint>>,
    homes: &BTreeSet<NodeId>,
) -> BTreeMap<NodeId, HostPort> {
    let mut known: BTreeMap<&NodeId, &HostPort> = BTreeMap::new();
    for (teller, endpoints) in told {
        for Endpoint { node, address } in endpoints {
            // What a node tells of itself counts more than what others tell of it.
            if teller == node {
                known.insert(node, address);
            } else {
                known.entry(node).or_insert(address);
            }
        }
    }
    let reached = known.keys().filter(|node| homes.contains(**node)).count();
    let most = match known.len() {
        0..=ALL_UP_TO => ALL_UP_TO,
        _ => OF_MORE.saturating_sub(reached),
    };
    let mut others: Vec<_> = known
        .into_iter()
        .filter(|(node, _)| !homes.contains(*node))
        .collect();
    others.sort_by_key(|(node, _)| Reverse(rank(gateway, node)));
    others.truncate(most);
    others
        .into_iter()
        .map(|(node, address)| (node.clone(), address.clone()))
        .collect()
}

/// Orders nodes for a gateway: the same for all clients, different for each gateway, and little
/// changed by nodes that come and go (rendezvous hashing).
fn rank(gateway: &str, node: &NodeId) -> u64 {
    // FNV-1a with a final mix. It need not resist anybody: whoever chooses node ids runs the nodes.
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    for byte in gateway.bytes().chain([0]).chain(node.as_str().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    mix(hash)
}

/// Spreads the bits of a number over all of it.
pub(super) const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn gateways_spread_over_a_large_group() {
        let nodes: Vec<_> = (0..10)
            .map(|n| NodeId::new(format!("n{n}")).unwrap())
            .collect();
        let mut first = [0_u32; 10];
        for gateway in 0..1000 {
            let best = (0..10)
                .max_by_key(|n| rank(&format!("g{gateway}"), &nodes[*n]))
                .unwrap();
            first[best] += 1;
        }
        assert!(
            first.iter().all(|count| (60..150).contains(count)),
            "{first:?}"
        );
    }
}
