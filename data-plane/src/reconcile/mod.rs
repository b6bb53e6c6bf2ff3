//! Makes the node do what its configuration says: publishes what is served, ends what is no longer permitted,
//! closes and opens ports. The only writer of all that.
//!
//! It runs on every change and when a port that could not be opened is due again; it reads the newest
//! configuration, never a difference, and doing the same twice changes nothing. Order matters: first what
//! takes permission away, then what closes, then what opens.

mod ports;

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sg_model::{Destination, DestinationId, GatewayId, Name, NodeConfig, Protocol};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::node::{Node, now};
use ports::{Port, Ports, Transport, Wanted};

/// Longest time before source rules are looked at again: the wall clock may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);

/// What is done of one configuration.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Applied {
    pub(crate) epoch: u64,
    pub(crate) revision: u64,
    pub(crate) destinations: BTreeMap<DestinationId, DestinationStatus>,
}

/// How one destination fares.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DestinationStatus {
    pub(crate) generation: u64,
    pub(crate) state: State,
    /// Where it listens.
    pub(crate) address: Option<SocketAddr>,
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

/// Names of gateway and destination, and the protocol.
type Labels = (Name, Name, Protocol);

/// The loop and what it keeps.
#[derive(Debug)]
pub(crate) struct Reconciler {
    node: Arc<Node>,
    desired: watch::Receiver<Arc<NodeConfig>>,
    applied: watch::Sender<Arc<Applied>>,
    ports: Ports,
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
            labels: HashMap::new(),
        }
    }

    /// Opens and closes until `stop` is cancelled; then closes all ports. Streams go on, and what the policy takes
    /// away from them is still taken, until `end` is cancelled.
    pub(crate) async fn run(mut self, stop: CancellationToken, end: CancellationToken) {
        loop {
            let config = Arc::clone(&self.desired.borrow_and_update());
            if config.revision() > 0 {
                self.step(&config).await;
            }
            let retry = self.ports.next_retry();
            let expiry = next_expiry(&config);
            let due = async {
                match retry.into_iter().chain(expiry).min() {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm can be cancelled without loss.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                () = self.ports.ended() => {}
                () = due => {
                    // A source whose time is over takes its connections along.
                    self.node.streams.redecide(&config);
                }
            }
        }
        self.ports.close_all().await;
        loop {
            let config = Arc::clone(&self.desired.borrow_and_update());
            if config.revision() > 0 {
                self.publish(&config);
            }
            tokio::select! {
                biased;
                () = end.cancelled() => return,
                changed = self.desired.changed() => {
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    async fn step(&mut self, config: &Arc<NodeConfig>) {
        self.publish(config);
        let wanted: BTreeMap<DestinationId, Wanted> = config
            .destinations()
            .filter_map(|d| Some((d.id.clone(), port_of(config, d).ok()??)))
            .collect();
        self.ports.bring_to(&wanted).await;
        let destinations = config.destinations().map(|d| {
            let status = self.status(config, d);
            (d.id.clone(), status)
        });
        let applied = Applied {
            epoch: config.epoch(),
            revision: config.revision(),
            destinations: destinations.collect(),
        };
        self.relabel(config);
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

    /// Lets everybody read the new configuration, and takes back what it no longer permits.
    fn publish(&self, config: &Arc<NodeConfig>) {
        self.node.for_clients.publish(config);
        let is_new = self.node.served.send_if_modified(|served| {
            let is_new = !Arc::ptr_eq(served, config);
            *served = Arc::clone(config);
            is_new
        });
        if !is_new {
            return;
        }
        self.node.receptions.retain(config);
        self.node.cloud.retain(config);
        let ended = self.node.streams.redecide(config) + self.node.cloud.redecide(config);
        if ended > 0 {
            tracing::info!(ended, "connections ended by a change of configuration");
        }
        let names = config.gateways().map(|g| (g.id.clone(), g.name.clone()));
        self.node
            .registry
            .set_gateways(names.collect::<HashMap<GatewayId, Name>>());
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

    /// Removes the series of destinations that are gone or have another name.
    fn relabel(&mut self, config: &NodeConfig) {
        let label = |d: &Destination| {
            let gateway = config.gateway(&d.gateway)?;
            let labels = (gateway.name.clone(), d.name.clone(), d.protocol);
            Some((d.id.clone(), labels))
        };
        let labels: HashMap<_, _> = config.destinations().filter_map(label).collect();
        for (id, old) in &self.labels {
            if labels.get(id) != Some(old) {
                let (gateway, destination, _) = old;
                self.node
                    .stream_metrics
                    .forget(gateway.as_str(), destination.as_str());
                self.node
                    .metrics
                    .forget_destination(gateway.as_str(), destination.as_str());
            }
        }
        self.labels = labels;
    }
}

/// When the next source rule is over.
fn next_expiry(config: &NodeConfig) -> Option<Instant> {
    let wall = now();
    let next = config
        .destinations()
        .filter_map(|d| d.user_end.sources.next_expiry(wall))
        .min()?;
    let wait = Duration::from_millis(next.0.saturating_sub(wall.0) + 1);
    Some(Instant::now() + wait.min(LONGEST_WAIT))
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
