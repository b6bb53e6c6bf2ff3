//! The flows of one destination, by user.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sg_model::DestinationId;
use sg_relay::udp::{Direction, Fate, IDLE_TIMEOUT, Peer, UserFlow, UserSocket};
use sg_relay::{DestinationMeter, EndReason, StreamAccount, TcpEnd};
use sg_tunnel_io::{Flow, code};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::pace::Pace;
use crate::balancers::Ends;
use crate::connection;
use crate::listener::{Occupancy, Occupied};
use crate::node::Node;
use crate::streams::Registered;
use crate::tunnels::{Choice, Health};

/// Flows at a time of a destination that sets no limit.
const MOST_FLOWS: u32 = 2500;
/// Flows at a time of one address, so that one host does not take all of a destination's.
const MOST_OF_ONE_ADDRESS: u32 = 1000;
/// How long a user who was refused is not tried again.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);
/// How long flows may take to end when their port closes.
const END_LIMIT: Duration = Duration::from_millis(500);

/// The flows of one destination.
pub(super) struct Users {
    node: Arc<Node>,
    socket: Arc<UserSocket>,
    destination: DestinationId,
    occupancy: Occupancy,
    entries: HashMap<Peer, Entry>,
    /// Flows by the address of their user.
    addresses: HashMap<IpAddr, u32>,
    /// Refused users, in the order in which they may try again.
    refused: VecDeque<(Instant, Peer)>,
    tasks: JoinSet<Over>,
    pace: Pace,
    next: u64,
}

enum Entry {
    Flow {
        number: u64,
        flow: Arc<UserFlow>,
    },
    /// What the user sends is dropped for a while.
    Refused,
}

/// A flow's task has ended.
struct Over {
    peer: Peer,
    number: u64,
    /// The client refused it, or nobody listens at the resource.
    refused: bool,
}

/// What a flow's task needs beside the flow.
struct Parts {
    account: StreamAccount,
    registered: Registered,
    idle: Duration,
    _choice: Choice,
    _occupied: Occupied,
}

/// Why there is no flow: what the datagram is counted as, and whether the user has to pause.
struct NoFlow {
    fate: Fate,
    pause: bool,
}

impl Users {
    pub(super) fn new(
        node: Arc<Node>,
        socket: Arc<UserSocket>,
        destination: DestinationId,
        occupancy: Occupancy,
    ) -> Self {
        Self {
            node,
            socket,
            destination,
            occupancy,
            entries: HashMap::new(),
            addresses: HashMap::new(),
            refused: VecDeque::new(),
            tasks: JoinSet::new(),
            pace: Pace::new(Instant::now()),
            next: 0,
        }
    }

    pub(super) fn socket(&self) -> &Arc<UserSocket> {
        &self.socket
    }

    /// Takes one datagram of a user: into its flow, or into a new one.
    pub(super) fn take(&mut self, now: Instant, datagram: &Bytes, peer: Peer) {
        self.forgive(now);
        match self.entries.get(&peer) {
            Some(Entry::Flow { flow, .. }) if flow.push(now, datagram) => return,
            Some(Entry::Refused) => return self.dropped(Fate::NoFlow),
            Some(Entry::Flow { .. }) | None => {}
        }
        match self.open(now, peer) {
            Ok(flow) => {
                if !flow.push(now, datagram) {
                    self.dropped(Fate::NoFlow);
                }
            }
            Err(NoFlow { fate, pause }) => {
                if pause {
                    self.pace.failed();
                    self.refuse(now, peer);
                }
                self.dropped(fate);
            }
        }
    }

    /// Waits until a flow has ended, and takes it off; for ever if there is none. Cancel safe.
    pub(super) async fn ended(&mut self) {
        match self.tasks.join_next().await {
            Some(Ok(over)) => self.take_off(&over),
            Some(Err(error)) => {
                tracing::error!(%error, "the task of a flow failed");
                self.take_off_dead();
            }
            None => std::future::pending().await,
        }
    }

    /// Ends all flows with a code.
    pub(super) async fn end_all(mut self, code: u32) {
        let end = |entry: &Entry| {
            if let Entry::Flow { flow, .. } = entry {
                flow.end(code);
            }
        };
        self.entries.values().for_each(end);
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(END_LIMIT, all).await.is_err() {
            tracing::warn!(destination = %self.destination, "flows take long to end");
            self.tasks.shutdown().await;
        }
    }

    fn open(&mut self, now: Instant, peer: Peer) -> Result<Arc<UserFlow>, NoFlow> {
        let limit = NoFlow {
            fate: Fate::Limit,
            pause: false,
        };
        let of_address = self.addresses.get(&peer.user.ip()).copied();
        if of_address.is_some_and(|count| count >= MOST_OF_ONE_ADDRESS) || !self.pace.take(now) {
            return Err(limit);
        }
        let (flow, parts) = self.begin(peer)?;
        let meter = Arc::clone(parts.account.meter());
        let flow = UserFlow::new(
            flow,
            peer,
            meter,
            parts.account.counters(),
            parts.registered.end().clone(),
        );
        let flow = Arc::new(flow);
        self.next += 1;
        let number = self.next;
        self.put(peer, number, Arc::clone(&flow));
        self.tasks.spawn(serve(
            Arc::clone(&flow),
            Arc::clone(&self.socket),
            parts,
            (peer, number),
        ));
        Ok(flow)
    }

    /// Decides over access, chooses a tunnel and opens the flow on it.
    fn begin(&self, peer: Peer) -> Result<(Flow, Parts), NoFlow> {
        let refused = NoFlow {
            fate: Fate::NoFlow,
            pause: true,
        };
        let config = self.node.config();
        let destination = config.destination(&self.destination);
        let gateway = destination.and_then(|d| config.gateway(&d.gateway));
        let Some((destination, gateway)) = destination.zip(gateway) else {
            return Err(refused);
        };
        let mut account = connection::begin(&self.node, gateway, destination, peer.user);
        let limit = destination.max_connections.unwrap_or(MOST_FLOWS);
        let Some(occupied) = self.occupancy.enter(Some(limit)) else {
            account.set_reason(code::word(code::LIMIT));
            return Err(NoFlow {
                fate: Fate::Limit,
                pause: true,
            });
        };
        let registered = self
            .node
            .streams
            .register(self.destination.clone(), peer.user);
        let permitted = connection::permit(
            &self.node,
            gateway,
            destination,
            &registered,
            peer.user,
            None,
        );
        let acl = match permitted {
            Ok(acl) => acl,
            Err(reason) => {
                account.set_reason(reason);
                return Err(refused);
            }
        };
        let ends = Ends {
            user: peer.user,
            local: None,
        };
        let metadata = connection::metadata(destination, ends, acl, &connection::Asked::default());
        let mut tried = Vec::new();
        let (flow, choice) = loop {
            let choose = |health| {
                let registry = &self.node.registry;
                registry.choose(&gateway.id, gateway.policy, health, &tried)
            };
            let Some(choice) = choose(Health::Good).or_else(|| choose(Health::Any)) else {
                account.set_reason("no-client");
                return Err(refused);
            };
            match choice.session().tunnel.open_flow(metadata.clone()) {
                Ok(flow) => break (flow, choice),
                Err(error) => {
                    tracing::debug!(client = %choice.session().client_id, %error, "flow not opened, trying another tunnel");
                    tried.push(choice.session().number);
                }
            }
        };
        let session = choice.session();
        account.carried(Arc::clone(&session.client_id), &session.bytes);
        let parts = Parts {
            account,
            registered,
            idle: destination.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            _choice: choice,
            _occupied: occupied,
        };
        Ok((flow, parts))
    }

    fn put(&mut self, peer: Peer, number: u64, flow: Arc<UserFlow>) {
        let before = self.entries.insert(peer, Entry::Flow { number, flow });
        // One that is over and whose task has not been noticed yet is counted already.
        if !matches!(before, Some(Entry::Flow { .. })) {
            *self.addresses.entry(peer.user.ip()).or_default() += 1;
        }
    }

    fn take_off(&mut self, over: &Over) {
        if over.refused {
            self.pace.failed();
        }
        let is_this =
            |entry: &Entry| matches!(entry, Entry::Flow { number, .. } if *number == over.number);
        if !self.entries.get(&over.peer).is_some_and(is_this) {
            return;
        }
        self.entries.remove(&over.peer);
        self.uncount(over.peer.user.ip());
        if over.refused {
            self.refuse(Instant::now(), over.peer);
        }
    }

    fn take_off_dead(&mut self) {
        let dead = |(peer, entry): (&Peer, &Entry)| match entry {
            Entry::Flow { flow, .. } if flow.is_over() => Some(*peer),
            _ => None,
        };
        let dead: Vec<_> = self.entries.iter().filter_map(dead).collect();
        for peer in dead {
            self.entries.remove(&peer);
            self.uncount(peer.user.ip());
        }
    }

    fn uncount(&mut self, address: IpAddr) {
        if let Some(count) = self.addresses.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.addresses.remove(&address);
            }
        }
    }

    fn refuse(&mut self, now: Instant, peer: Peer) {
        if let Some(Entry::Flow { .. }) = self.entries.insert(peer, Entry::Refused) {
            self.uncount(peer.user.ip());
        }
        self.refused.push_back((now + REFUSED_PAUSE, peer));
    }

    /// Lets those try again whose pause is over.
    fn forgive(&mut self, now: Instant) {
        while let Some((until, peer)) = self.refused.front() {
            if *until > now {
                return;
            }
            if let Some(Entry::Refused) = self.entries.get(peer) {
                self.entries.remove(peer);
            }
            self.refused.pop_front();
        }
    }

    fn dropped(&self, fate: Fate) {
        if let Some(meter) = self.meter() {
            meter.datagram(Direction::ToResource, fate);
        }
    }

    fn meter(&self) -> Option<Arc<DestinationMeter>> {
        let config = self.node.config();
        let destination = config.destination(&self.destination)?;
        let gateway = config.gateway(&destination.gateway)?;
        Some(self.node.stream_metrics.destination(
            gateway.name.as_str(),
            destination.name.as_str(),
            destination.protocol.as_str(),
            TcpEnd::User,
        ))
    }
}

/// Serves one flow to its end.
async fn serve(
    flow: Arc<UserFlow>,
    socket: Arc<UserSocket>,
    mut parts: Parts,
    (peer, number): (Peer, u64),
) -> Over {
    let account = &mut parts.account;
    let reason = flow.run(&socket, parts.idle, || account.accepted()).await;
    account.set_reason(reason.as_str());
    tracing::debug!(user = %peer.user, reason = reason.as_str(), "flow over");
    Over {
        peer,
        number,
        refused: matches!(reason, EndReason::StreamReset(_)) && !flow.is_answered(),
    }
}
