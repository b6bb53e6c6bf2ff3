//! Makes the node do what its configuration says: publishes what is served, ends what is no longer permitted,
//! closes and opens ports. The only writer of all that.
//!
//! It runs on every change and when a port that could not be opened is due again. It compares the newest
//! configuration with the one it has seen last, however many lie between, and looks only at destinations that differ;
//! doing the same twice changes nothing. Order matters: first what takes permission away, then what closes, then what
//! opens.

mod changes;
mod ports;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sg_model::{
    Destination, DestinationId, GatewayId, Keyed, Name, NodeConfig, Protocol, SharedMap, Timestamp,
};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, now};
pub(crate) use changes::Changes;
use ports::{Port, Ports, Transport, Wanted};

/// Longest time before source rules are looked at again: the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What is done of one configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Applied {
    pub(crate) epoch: u64,
    pub(crate) revision: u64,
    pub(crate) destinations: SharedMap<DestinationStatus>,
}

/// How one destination fares.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DestinationStatus {
    pub(crate) id: DestinationId,
    pub(crate) generation: u64,
    pub(crate) state: State,
    /// Where it listens.
    pub(crate) address: Option<SocketAddr>,
}

impl Keyed for DestinationStatus {
    type Key = DestinationId;

    fn key(&self) -> &DestinationId {
        &self.id
    }
}

/// Whether a destination listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum State {
    /// Users can connect.
    Listening,
    /// It is disabled, or its gateway is.
    Disabled,
    /// It should listen and cannot.
    Failed {
        /// One word.
        reason: &'static str,
        /// For people.
        message: String,
    },
}

impl State {
    fn unusable(why: &str) -> Self {
        Self::Failed {
            reason: "bad-certificate",
            message: why.to_owned(),
        }
    }

    /// The word in the status.
    pub(crate) fn as_str(&self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::Disabled => "disabled",
            Self::Failed { .. } => "failed",
        }
    }
}

/// How often everything that is kept of destinations is compared with what is served.
const SWEEP: Duration = Duration::from_secs(60);

/// Names of gateway and destination, and the protocol.
type Labels = (Name, Name, Protocol);

/// The loop and what it keeps.
#[derive(Debug)]
pub(crate) struct Reconciler {
    node: Arc<Node>,
    desired: watch::Receiver<Arc<NodeConfig>>,
    applied: watch::Sender<Arc<Applied>>,
    /// What was published last.
    seen: Arc<NodeConfig>,
    ports: Ports,
    /// The ports that there should be.
    wanted: BTreeMap<DestinationId, Wanted>,
    statuses: SharedMap<DestinationStatus>,
    /// Destinations some of whose source rules end.
    expiring: BTreeSet<DestinationId>,
    /// Rules that ended up to this time have taken their connections along.
    expired_to: Timestamp,
    swept: Instant,
    /// The labels of every destination that may have series.
    labels: HashMap<DestinationId, Labels>,
}

impl Reconciler {
    pub(crate) fn new(
        node: Arc<Node>,
        address: IpAddr,
        desired: watch::Receiver<Arc<NodeConfig>>,
        applied: watch::Sender<Arc<Applied>>,
    ) -> Self {
        Self {
            ports: Ports::new(Arc::clone(&node), address),
            node,
            desired,
            applied,
            seen: Arc::default(),
            wanted: BTreeMap::new(),
            statuses: SharedMap::default(),
            expiring: BTreeSet::new(),
            expired_to: now(),
            swept: Instant::now(),
            labels: HashMap::new(),
        }
    }

    /// Opens and closes until `stop` is cancelled; then closes all ports. Streams go on, and what the policy takes
    /// away from them is still taken, until `end` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken, end: CancellationToken) {
        // Destinations to look at beside those that have changed.
        let mut besides = BTreeSet::new();
        loop {
            let config = Arc::clone(&self.desired.borrow_and_update());
            if config.revision() > 0 {
                self.step(&config, std::mem::take(&mut besides)).await;
            }
            let retry = self.ports.next_retry();
            let expiry = self.expire(&config);
            let due = until(retry.into_iter().chain(expiry).min());
            // Every arm can be cancelled without loss.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                fallen = self.ports.fallen() => besides.extend(fallen),
                () = due => besides.extend(self.ports.due(Instant::now()).cloned()),
            }
        }
        self.ports.close_all().await;
        loop {
            let config = Arc::clone(&self.desired.borrow_and_update());
            if config.revision() > 0 {
                self.publish(&config);
            }
            let expiry = until(self.expire(&config));
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                () = expiry => {}
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Does what `config` says, looking at the destinations that differ and at those `besides`.
    async fn step(&mut self, config: &Arc<NodeConfig>, besides: BTreeSet<DestinationId>) {
        let mut of = self.publish(config).destinations;
        of.extend(besides);
        for id in &of {
            let destination = config.destination(id);
            match destination.and_then(|d| port_of(config, d).ok()?) {
                Some(port) => self.wanted.insert(id.clone(), port),
                None => self.wanted.remove(id),
            };
        }
        self.ports.bring_to(&self.wanted, &of).await;
        for id in &of {
            match config.destination(id) {
                Some(destination) => self.statuses.insert(self.status(config, destination)),
                None => self.statuses.remove(id),
            };
            self.relabel(config, id);
        }
        let applied = Applied {
            epoch: config.epoch(),
            revision: config.revision(),
            destinations: self.statuses.clone(),
        };
        let revision = i64::try_from(config.revision()).unwrap_or(i64::MAX);
        self.node.metrics.config_revision.set(revision);
        self.applied.send_if_modified(|before| {
            let changed = **before != applied;
            if changed {
                *before = Arc::new(applied);
            }
            changed
        });
    }

    /// Lets everybody read the new configuration, and takes back what it no longer permits; answers with what it
    /// changes.
    fn publish(&mut self, config: &Arc<NodeConfig>) -> Changes {
        let before = std::mem::replace(&mut self.seen, Arc::clone(config));
        if Arc::ptr_eq(&before, config) {
            return Changes::default();
        }
        let changes = Changes::between(&before, config);
        self.node.for_clients.publish(config);
        self.node.served.send_replace(Arc::clone(config));
        self.forget(config, &changes.destinations);
        let only = changes.to_decide();
        let ended =
            self.node.streams.redecide(config, only) + self.node.cloud.redecide(config, only);
        if ended > 0 {
            tracing::info!(ended, "connections ended by a change of configuration");
        }
        if changes.gateways {
            let names = config.gateways().map(|g| (g.id.clone(), g.name.clone()));
            self.node
                .registry
                .set_gateways(names.collect::<HashMap<GatewayId, Name>>());
        }
        changes
    }

    /// Forgets what is kept of destinations that are gone, and notes which have rules that end.
    fn forget(&mut self, config: &NodeConfig, changed: &BTreeSet<DestinationId>) {
        self.node.receptions.forget(config, changed);
        self.node.cloud.forget(config, changed);
        // A connection that came with the version before may bring one back, with its keys.
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            self.node.receptions.sweep(config);
            self.node.cloud.sweep(config);
        }
        let ends = |d: &Destination| d.user_end.sources.next_expiry(Timestamp(0)).is_some();
        for id in changed {
            if config.destination(id).is_some_and(ends) {
                self.expiring.insert(id.clone());
            } else {
                self.expiring.remove(id);
            }
        }
    }

    fn status(&self, config: &NodeConfig, destination: &Destination) -> DestinationStatus {
        let (state, address) = match port_of(config, destination) {
            Err(state) => (state, None),
            Ok(None) => (self.dialling_state(destination), None),
            Ok(Some(_)) => match self.ports.get(&destination.id) {
                Some(Port::Open(_))
                    if !destination.protocol.is_plain()
                        && let Err(why) = self.node.receptions.of(destination) =>
                {
                    (State::unusable(&why), None)
                }
                Some(Port::Open(open)) => (State::Listening, Some(open.address)),
                Some(Port::Failed(failed)) => (failed.state(), None),
                None => (State::Disabled, None),
            },
        };
        DestinationStatus {
            id: destination.id.clone(),
            generation: destination.generation,
            state,
            address,
        }
    }

    /// How a destination fares whose resource is connected to from here.
    fn dialling_state(&self, destination: &Destination) -> State {
        if let Err(why) = self.node.cloud.approach(destination) {
            return State::unusable(&why);
        }
        if self.node.cloud_allow.may_reach(&destination.resource) {
            return State::Listening;
        }
        State::Failed {
            reason: "cloud-denied",
            message: format!(
                "--cloud-allow of this node does not name {}",
                destination.resource
            ),
        }
    }

    /// Removes the series of a destination that is gone or has another name.
    fn relabel(&mut self, config: &NodeConfig, id: &DestinationId) {
        let label = |d: &Destination| {
            let gateway = config.gateway(&d.gateway)?;
            Some((gateway.name.clone(), d.name.clone(), d.protocol))
        };
        let labels = config.destination(id).and_then(label);
        let before = match &labels {
            Some(labels) => self.labels.insert(id.clone(), labels.clone()),
            None => self.labels.remove(id),
        };
        if let Some((gateway, destination, _)) = before.filter(|old| labels.as_ref() != Some(old)) {
            self.node
                .stream_metrics
                .forget(gateway.as_str(), destination.as_str());
            self.node
                .metrics
                .forget_destination(gateway.as_str(), destination.as_str());
        }
    }

    /// Lets source rules that have ended since the last time take their connections along; answers when the next one
    /// ends. Whatever came between, none is missed.
    fn expire(&mut self, config: &NodeConfig) -> Option<Instant> {
        let wall = now();
        let ended = self.next_expiry(config, self.expired_to);
        if ended.is_some_and(|at| at <= wall) {
            self.node.streams.redecide(config, Some(&self.expiring));
        }
        self.expired_to = wall;
        let next = self.next_expiry(config, wall)?;
        let wait = Duration::from_millis(next.0.saturating_sub(wall.0) + 1);
        Some(Instant::now() + wait.min(LONGEST_WAIT))
    }

    /// The first end of a source rule after `wall`.
    fn next_expiry(&self, config: &NodeConfig, wall: Timestamp) -> Option<Timestamp> {
        let expiring = self.expiring.iter().filter_map(|id| config.destination(id));
        expiring
            .filter_map(|d| d.user_end.sources.next_expiry(wall))
            .min()
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// The port that a destination should have, `None` for one whose users are at clients; or why it should have none.
fn port_of(config: &NodeConfig, destination: &Destination) -> Result<Option<Wanted>, State> {
    let gateway = config.gateway(&destination.gateway);
    if !destination.enabled || !gateway.is_some_and(|g| g.enabled) {
        return Err(State::Disabled);
    }
    let transport = match destination.protocol {
        Protocol::Udp => Transport::Udp,
        _ => Transport::Tcp,
    };
    let port = destination.listen.cloud_port();
    Ok(port.map(|port| Wanted { port, transport }))
}

#[cfg(test)]
pub(crate) mod testing {
    //! Configurations for tests.

    use std::time::Duration;

    use sg_model::{Acl, AclEntry, AclVersion, Action, Gateway, Listen, NodeObject, Policy};

    use super::*;

    pub(crate) fn config(
        revision: u64,
        objects: impl IntoIterator<Item = NodeObject>,
    ) -> NodeConfig {
        NodeConfig::complete(1, revision, objects.into_iter().map(|o| (revision, o)))
    }

    pub(crate) fn gateway(id: &str, enabled: bool) -> NodeObject {
        NodeObject::Gateway(Gateway {
            id: GatewayId::new(id).unwrap(),
            name: Name::new(format!("gateway-{id}")).unwrap(),
            enabled,
            policy: Policy::RoundRobin,
            token_required: true,
            tokens: vec![],
            token_expiry: sg_model::TokenExpiry::Keep,
            client_certificates: sg_model::ClientCertificates::On,
            token_generation: 0,
            revoked: BTreeMap::new(),
            resume_time: sg_model::DEFAULT_RESUME_TIME,
            generation: 1,
        })
    }

    pub(crate) fn destination(id: &str, gateway: &str, port: u16) -> NodeObject {
        NodeObject::Destination(Destination {
            id: DestinationId::new(id).unwrap(),
            gateway: GatewayId::new(gateway).unwrap(),
            name: Name::new(id).unwrap(),
            listen: Listen::CloudPort(port),
            protocol: Protocol::Tcp,
            resource: "127.0.0.1:5432".parse().unwrap(),
            enabled: true,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
            max_connections: None,
            compression: sg_model::Compression::None,
            keepalive: None,
            user_end: sg_model::UserEnd::default(),
            resource_end: sg_model::ResourceEnd::default(),
            generation: 1,
        })
    }

    pub(crate) fn acl(
        gateway: &str,
        generation: u64,
        entries: impl IntoIterator<Item = AclEntry>,
    ) -> NodeObject {
        let acl = Acl {
            version: AclVersion {
                epoch: 1,
                generation,
            },
            entries: entries.into_iter().collect(),
            unlisted: Action::Deny,
            ..Acl::default()
        };
        NodeObject::Acl(GatewayId::new(gateway).unwrap(), acl)
    }
}

#[cfg(test)]
mod tests;
