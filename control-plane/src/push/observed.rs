//! What every node last reported, in memory. It vanishes with the process and comes back with the
//! next reports, because every node reports to every control plane.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::{Keyed, NodeId, SharedMap, Timestamp};
use sg_proto::node as wire;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What one node last reported. Immutable, and cheap to clone: the long parts are shared.
#[derive(Debug, Clone, Default)]
pub struct NodeReport {
    /// Whether it is connected to this control plane now.
    pub connected: bool,
    /// Since when, or until when it was not.
    pub since: Timestamp,
    /// Its run.
    pub boot_id: String,
    /// Newest configuration revision that it said it serves.
    pub revision: u64,
    /// It takes no new streams.
    pub draining: bool,
    /// Streams it relays now.
    pub streams: u32,
    /// Its destinations.
    pub destinations: SharedMap<Fares>,
    /// What it tells from the beginning, as long as that is not all.
    telling: Option<SharedMap<Fares>>,
    /// SHA-256 of the key of the authority that has issued its certificate, as it says.
    pub issuer_sha256: Vec<u8>,
    /// Client tunnels it holds now.
    pub tunnels: Arc<[wire::ClientTunnel]>,
    /// The version (epoch, generation) of each gateway's list that it enforces.
    pub acls: Arc<HashMap<String, (u64, u64)>>,
    /// What it refused, by object id.
    pub rejected: HashMap<String, wire::Rejection>,
}

/// Destinations of one node that are kept: twice as many as all gateways should have.
const MOST_DESTINATIONS: usize = 200_000;

/// How a destination fares at a node, by its id.
#[derive(Debug, Clone, PartialEq)]
pub struct Fares(pub wire::DestinationState);

impl Keyed for Fares {
    type Key = str;

    fn key(&self) -> &str {
        &self.0.destination_id
    }
}

/// Reports of all nodes by id. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Reports {
    nodes: Arc<BTreeMap<NodeId, Arc<NodeReport>>>,
    /// Every node that lives has had the time to report since this process started.
    settled: bool,
}

impl Reports {
    /// What a node last reported.
    pub fn get(&self, node: &NodeId) -> Option<&NodeReport> {
        self.nodes.get(node).map(AsRef::as_ref)
    }

    /// The nodes that are connected now, with their reports.
    pub fn connected(&self) -> impl Iterator<Item = (&NodeId, &NodeReport)> {
        let all = self
            .nodes
            .iter()
            .map(|(node, report)| (node, report.as_ref()));
        all.filter(|(_, report)| report.connected)
    }

    /// Whether a node may be serving without our knowing: it did not report yet, and this process
    /// has not run for long.
    pub fn may_be_serving(&self, node: &NodeId) -> bool {
        !self.settled && !self.nodes.contains_key(node)
    }
}

#[derive(Debug, Default)]
struct State {
    reports: Reports,
    /// The newest connection of each connected node, with its number and the way to end it.
    connections: HashMap<NodeId, (u64, CancellationToken)>,
    last_number: u64,
}

/// The reports of all nodes. Clones share them.
#[derive(Debug, Clone)]
pub struct Observed {
    state: Arc<Mutex<State>>,
    changed: watch::Sender<u64>,
}

impl Default for Observed {
    fn default() -> Self {
        Self {
            state: Arc::default(),
            changed: watch::Sender::new(0),
        }
    }
}

impl Observed {
    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The reports now.
    pub fn reports(&self) -> Reports {
        self.state().reports.clone()
    }

    /// Says that every node that lives has had the time to report.
    pub fn settle(&self) {
        self.state().reports.settled = true;
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes after every change of a report.
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// How many nodes are connected.
    pub fn connected(&self) -> usize {
        self.state().connections.len()
    }

    /// A node has connected. An older connection of the same node is told to end: the newest is
    /// the one that lives.
    pub fn connect(&self, node: &NodeId, boot_id: &str, now: Timestamp) -> Connection {
        let replaced = CancellationToken::new();
        let mut state = self.state();
        state.last_number += 1;
        let number = state.last_number;
        if let Some((_, older)) = state
            .connections
            .insert(node.clone(), (number, replaced.clone()))
        {
            older.cancel();
        }
        drop(state);
        let connection = Connection {
            observed: self.clone(),
            node: node.clone(),
            number,
            replaced,
        };
        connection.update(|report| {
            report.connected = true;
            report.since = now;
            if report.boot_id != boot_id {
                // Another run: nothing of what the last one reported is true any more.
                *report = NodeReport {
                    connected: true,
                    since: now,
                    ..NodeReport::default()
                };
                boot_id.clone_into(&mut report.boot_id);
            }
        });
        connection
    }

    /// Forgets the nodes that are not in the store (any more).
    pub fn retain(&self, known: impl Fn(&NodeId) -> bool) {
        let mut state = self.state();
        if state.reports.nodes.keys().all(&known) {
            return;
        }
        Arc::make_mut(&mut state.reports.nodes).retain(|node, _| known(node));
        drop(state);
        self.changed.send_modify(|count| *count += 1);
    }
}

/// One node's connection. Dropping it says that the node is gone.
#[derive(Debug)]
pub struct Connection {
    observed: Observed,
    node: NodeId,
    number: u64,
    replaced: CancellationToken,
}

impl Connection {
    /// Cancelled when the same node has connected anew.
    pub fn replaced(&self) -> &CancellationToken {
        &self.replaced
    }

    /// The node has reported.
    pub fn status(&self, status: wire::Status) {
        self.update(|report| {
            report.revision = status.revision;
            report.draining = status.draining;
            report.streams = status.streams;
            report.tunnels = status.tunnels.into();
            report.issuer_sha256 = status.issuer_sha256;
            let acls = status.acls.into_iter();
            let by_id = acls.map(|acl| (acl.gateway_id, (acl.epoch, acl.generation)));
            report.acls = Arc::new(by_id.collect());
        });
    }

    /// The node has reported how destinations fare.
    pub fn destination_states(&self, said: wire::DestinationStates) {
        self.update(|report| {
            if said.first {
                report.telling = Some(SharedMap::default());
            }
            let destinations = report.telling.as_mut().unwrap_or(&mut report.destinations);
            for id in &said.gone {
                destinations.remove(id.as_str());
            }
            let mut too_many = 0_usize;
            for state in said.changed {
                let known = destinations.get(state.destination_id.as_str());
                if known.is_some() || destinations.len() < MOST_DESTINATIONS {
                    destinations.insert(Fares(state));
                } else {
                    too_many += 1;
                }
            }
            if too_many > 0 {
                tracing::warn!(
                    too_many,
                    most = MOST_DESTINATIONS,
                    "a node has more destinations than are kept; how the others fare is not known"
                );
            }
            if said.last
                && let Some(whole) = report.telling.take()
            {
                report.destinations = whole;
            }
        });
    }

    /// The node has taken over a change, but for what it refused. `complete` says that it was a
    /// snapshot, so that older refusals are no longer of interest.
    pub fn applied(
        &self,
        revision: u64,
        rejected: Vec<wire::Rejection>,
        changed: &[String],
        complete: bool,
    ) {
        self.update(|report| {
            report.revision = report.revision.max(revision);
            if complete {
                report.rejected.clear();
            }
            for id in changed {
                report.rejected.remove(id);
            }
            report
                .rejected
                .extend(rejected.into_iter().map(|r| (r.object_id.clone(), r)));
        });
    }

    fn update(&self, change: impl FnOnce(&mut NodeReport)) {
        let mut state = self.observed.state();
        let newest = state
            .connections
            .get(&self.node)
            .is_some_and(|(n, _)| *n == self.number);
        if !newest {
            return;
        }
        let reports = Arc::make_mut(&mut state.reports.nodes);
        change(Arc::make_mut(reports.entry(self.node.clone()).or_default()));
        drop(state);
        self.observed.changed.send_modify(|count| *count += 1);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.update(|report| {
            report.connected = false;
            report.since = crate::ids::now();
            report.tunnels = Arc::default();
            report.streams = 0;
        });
        let mut state = self.observed.state();
        if state
            .connections
            .get(&self.node)
            .is_some_and(|(n, _)| *n == self.number)
        {
            state.connections.remove(&self.node);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn states(
        (first, last): (bool, bool),
        changed: &[(&str, u64)],
        gone: &[&str],
    ) -> wire::DestinationStates {
        let state = |(id, generation): &(&str, u64)| wire::DestinationState {
            destination_id: (*id).to_owned(),
            generation: *generation,
            ..wire::DestinationState::default()
        };
        wire::DestinationStates {
            first,
            last,
            changed: changed.iter().map(state).collect(),
            gone: gone.iter().map(|id| (*id).to_owned()).collect(),
        }
    }

    #[test]
    fn what_a_node_tells_of_destinations_adds_up_until_it_begins_anew() {
        let observed = Observed::default();
        let node = NodeId::new("n1").unwrap();
        let connection = observed.connect(&node, "b1", Timestamp(1));
        let known = || {
            let reports = observed.reports();
            let all = reports.get(&node).unwrap().destinations.clone();
            let known = all
                .iter()
                .map(|f| (f.0.destination_id.clone(), f.0.generation));
            known.collect::<Vec<_>>()
        };
        connection.destination_states(states((true, true), &[("d1", 1), ("d2", 1)], &[]));
        connection.destination_states(states((false, true), &[("d2", 2), ("d3", 1)], &["d1"]));
        let some = |all: &[(&str, u64)]| {
            let all = all
                .iter()
                .map(|(id, generation)| ((*id).to_owned(), *generation));
            all.collect::<Vec<_>>()
        };
        assert_eq!(known(), some(&[("d2", 2), ("d3", 1)]));
        let again = observed.connect(&node, "b1", Timestamp(2));
        connection.destination_states(states((false, true), &[("d9", 1)], &[]));
        assert_eq!(
            known(),
            some(&[("d2", 2), ("d3", 1)]),
            "the older connection is not heard"
        );
        again.destination_states(states((true, false), &[("d4", 1)], &[]));
        let before = some(&[("d2", 2), ("d3", 1)]);
        assert_eq!(
            known(),
            before,
            "until all is told, what was told before counts"
        );
        again.destination_states(states((false, true), &[("d5", 1)], &[]));
        assert_eq!(known(), some(&[("d4", 1), ("d5", 1)]));
    }
}
