//! The ports of destinations: open, or failed and due again. Opens and closes; decides nothing.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use sg_model::DestinationId;
use sg_relay::udp::{UserSocket, serve_users};
use sg_runtime::backoff::Backoff;
use sg_runtime::places::Occupancy;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::listener;
use crate::node::Node;
use crate::udp::NodeFlows;

use super::State;

const RETRY_BASE: Duration = Duration::from_millis(500);
const RETRY_LONGEST: Duration = Duration::from_secs(10);
/// How long closing a port is waited for before others are opened.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// A port that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Wanted {
    pub(super) port: u16,
    pub(super) transport: Transport,
}

/// What arrives at a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// All ports of this node.
#[derive(Debug)]
pub(super) struct Ports {
    node: Arc<Node>,
    address: IpAddr,
    ports: HashMap<DestinationId, Port>,
    /// Those of them that could not be opened.
    failed: BTreeSet<DestinationId>,
    /// Connections per destination; they outlive the change of a port.
    occupancy: HashMap<DestinationId, Occupancy>,
    listeners: JoinSet<DestinationId>,
}

/// One port.
#[derive(Debug)]
pub(super) enum Port {
    /// Accepting.
    Open(Open),
    /// Could not be opened.
    Failed(Failed),
}

#[derive(Debug)]
pub(super) struct Open {
    wanted: Wanted,
    pub(super) address: SocketAddr,
    stop: CancellationToken,
    /// Ends when the listener is closed, however that came about; `None` when that was seen.
    closed: Option<oneshot::Receiver<()>>,
}

#[derive(Debug)]
pub(super) struct Failed {
    wanted: Wanted,
    reason: &'static str,
    message: String,
    retry: Instant,
    backoff: Backoff,
}

impl Failed {
    pub(super) fn state(&self) -> State {
        State::Failed {
            reason: self.reason,
            message: self.message.clone(),
        }
    }
}

impl Port {
    fn wanted(&self) -> Wanted {
        match self {
            Self::Open(open) => open.wanted,
            Self::Failed(failed) => failed.wanted,
        }
    }
}

impl Ports {
    pub(super) fn new(node: Arc<Node>, address: IpAddr) -> Self {
        Self {
            node,
            address,
            ports: HashMap::new(),
            failed: BTreeSet::new(),
            occupancy: HashMap::new(),
            listeners: JoinSet::new(),
        }
    }

    pub(super) fn get(&self, destination: &DestinationId) -> Option<&Port> {
        self.ports.get(destination)
    }

    /// When the next failed port is due again.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.retries().map(|(_, retry)| retry).min()
    }

    /// The destinations whose ports could not be opened and are due again.
    pub(super) fn due(&self, now: Instant) -> impl Iterator<Item = &DestinationId> {
        self.retries()
            .filter(move |(_, retry)| *retry <= now)
            .map(|(id, _)| id)
    }

    fn retries(&self) -> impl Iterator<Item = (&DestinationId, Instant)> {
        self.failed
            .iter()
            .filter_map(|id| match self.ports.get(id) {
                Some(Port::Failed(failed)) => Some((id, failed.retry)),
                _ => None,
            })
    }

    /// Waits until listeners have ended; answers with the destinations whose listeners were not asked to. Cancel safe.
    pub(super) async fn fallen(&mut self) -> BTreeSet<DestinationId> {
        let Some(first) = self.listeners.join_next().await else {
            return std::future::pending().await;
        };
        let mut fallen = BTreeSet::new();
        let mut next = Some(first);
        while let Some(ended) = next {
            match ended {
                Ok(id) => {
                    if self.ports.get_mut(&id).is_some_and(Port::has_ended) {
                        fallen.insert(id);
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "a listener failed; opening its port again");
                    // Which one it was has gone with it.
                    let ended = self.ports.iter_mut().filter_map(|(id, port)| {
                        let has_ended = port.has_ended();
                        has_ended.then(|| id.clone())
                    });
                    fallen.extend(ended);
                }
            }
            next = self.listeners.try_join_next();
        }
        fallen
    }

    /// Of these destinations, closes the ports that are not wanted, then opens those that are wanted and not open.
    pub(super) async fn bring_to(
        &mut self,
        wanted: &BTreeMap<DestinationId, Wanted>,
        of: &BTreeSet<DestinationId>,
    ) {
        let mut closing = Vec::new();
        for id in of {
            let wanted = wanted.get(id);
            if wanted.is_none() {
                self.occupancy.remove(id);
            }
            let gone = |port: &mut Port| wanted != Some(&port.wanted()) || port.has_ended();
            if self.ports.get_mut(id).is_some_and(gone) {
                closing.extend(self.ports.remove(id));
            }
            self.failed.remove(id);
        }
        close(closing).await;
        let now = Instant::now();
        for (id, wanted) in of.iter().filter_map(|id| wanted.get_key_value(id)) {
            let due = match self.ports.get(id) {
                None => true,
                Some(Port::Failed(failed)) => failed.retry <= now,
                Some(Port::Open(_)) => false,
            };
            if due {
                let before = self.ports.remove(id);
                let opened = self.open(id, *wanted, before);
                self.ports.insert(id.clone(), opened);
            }
            if matches!(self.ports.get(id), Some(Port::Failed(_))) {
                self.failed.insert(id.clone());
            }
        }
    }

    pub(super) async fn close_all(&mut self) {
        self.failed.clear();
        close(self.ports.drain().map(|(_, port)| port).collect()).await;
    }

    fn open(&mut self, id: &DestinationId, wanted: Wanted, before: Option<Port>) -> Port {
        let address = SocketAddr::new(self.address, wanted.port);
        let stop = CancellationToken::new();
        let started = match wanted.transport {
            Transport::Tcp => self.start_tcp(id, address, &stop),
            Transport::Udp => self.start_udp(id, address, &stop),
        };
        match started {
            Ok((address, closed)) => {
                tracing::info!(destination = %id, %address, transport = ?wanted.transport, "listening");
                Port::Open(Open {
                    wanted,
                    address,
                    stop,
                    closed: Some(closed),
                })
            }
            Err(error) => Port::Failed(failed(id, wanted, address, &error, before)),
        }
    }

    fn start_tcp(
        &mut self,
        id: &DestinationId,
        address: SocketAddr,
        stop: &CancellationToken,
    ) -> io::Result<(SocketAddr, oneshot::Receiver<()>)> {
        let listener = sg_relay::listen(address)?;
        let address = listener.local_addr()?;
        let run = listener::run(
            Arc::clone(&self.node),
            listener,
            id.clone(),
            self.occupancy(id),
            stop.clone(),
        );
        Ok((address, self.spawn(id, run)))
    }

    fn start_udp(
        &mut self,
        id: &DestinationId,
        address: SocketAddr,
        stop: &CancellationToken,
    ) -> io::Result<(SocketAddr, oneshot::Receiver<()>)> {
        let socket = UserSocket::bind(address)?;
        let address = socket.local_addr();
        let flows = NodeFlows {
            node: Arc::clone(&self.node),
            destination: id.clone(),
            occupancy: self.occupancy(id),
        };
        let run = serve_users(flows, socket, stop.clone());
        Ok((address, self.spawn(id, run)))
    }

    fn occupancy(&mut self, id: &DestinationId) -> Occupancy {
        self.occupancy.entry(id.clone()).or_default().clone()
    }

    fn spawn(
        &mut self,
        id: &DestinationId,
        run: impl Future<Output = ()> + Send + 'static,
    ) -> oneshot::Receiver<()> {
        let (open, closed) = oneshot::channel();
        let id = id.clone();
        self.listeners.spawn(async move {
            // Dropped after the listener, also when the listener panics.
            let _open: oneshot::Sender<()> = open;
            run.await;
            id
        });
        closed
    }
}

impl Port {
    /// Whether the listener ended without being asked to.
    fn has_ended(&mut self) -> bool {
        match self {
            Self::Open(open) => {
                let empty = Err(oneshot::error::TryRecvError::Empty);
                open.closed.take_if(|closed| closed.try_recv() != empty);
                open.closed.is_none()
            }
            Self::Failed(_) => false,
        }
    }
}

async fn close(ports: Vec<Port>) {
    let mut closing = Vec::new();
    for port in ports {
        if let Port::Open(open) = port {
            open.stop.cancel();
            tracing::info!(address = %open.address, "no longer listening");
            closing.extend(open.closed);
        }
    }
    let all = async {
        for closed in closing {
            // Only ever ends by being dropped, which is what is waited for.
            let _dropped: Result<(), oneshot::error::RecvError> = closed.await;
        }
    };
    if timeout(CLOSE_LIMIT, all).await.is_err() {
        tracing::warn!("closing a port takes long");
    }
}

fn failed(
    id: &DestinationId,
    wanted: Wanted,
    address: SocketAddr,
    error: &io::Error,
    before: Option<Port>,
) -> Failed {
    use io::ErrorKind as K;
    let reason = match error.kind() {
        K::AddrInUse => "address-in-use",
        K::AddrNotAvailable => "address-not-available",
        K::PermissionDenied => "permission-denied",
        _ => "bind-failed",
    };
    let mut backoff = match before {
        Some(Port::Failed(failed)) if failed.reason == reason => failed.backoff,
        _ => {
            tracing::warn!(destination = %id, %address, %error, "cannot listen; trying again");
            Backoff::new(RETRY_BASE, RETRY_LONGEST)
        }
    };
    // At least some time: the same port again at once would only fail again.
    let delay = backoff.next_delay() + RETRY_BASE / 2;
    Failed {
        wanted,
        reason,
        message: format!("cannot listen on {address}: {error}"),
        retry: Instant::now() + delay,
        backoff,
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;

    use super::*;
    use crate::tests::rig;

    #[tokio::test]
    async fn a_listener_that_fails_while_other_ports_change_is_missed_all_the_same() {
        let (node, _) = rig::node();
        let mut ports = Ports::new(node, IpAddr::V4(Ipv4Addr::LOCALHOST));
        let id = |id: &str| DestinationId::new(id).unwrap();
        let any = Wanted {
            port: 0,
            transport: Transport::Tcp,
        };
        let of = |all: &[&str]| all.iter().map(|one| id(one)).collect::<BTreeSet<_>>();
        let mut wanted = BTreeMap::from([(id("d1"), any)]);
        ports.bring_to(&wanted, &of(&["d1"])).await;
        ports.listeners.abort_all();
        while !ports.ports.get_mut(&id("d1")).unwrap().has_ended() {
            tokio::task::yield_now().await;
        }
        wanted.insert(id("d2"), any);
        ports.bring_to(&wanted, &of(&["d2"])).await;
        assert_eq!(ports.fallen().await, of(&["d1"]));
        ports.bring_to(&wanted, &of(&["d1"])).await;
        assert!(!ports.ports.get_mut(&id("d1")).unwrap().has_ended());
        ports.close_all().await;
    }
}
