//! The ports of one gateway's cloud destinations: open, or not and why. Opens and closes; what happens to a connection
//! is in `connection`.
//!
//! A port belongs to one gateway at a time: the first to ask for it has it until it lets go, the others say so and take
//! over when it is free.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sg_model::{DestinationId, Protocol};
use sg_proto::node::DestinationState;
use sg_relay::ResetOnDrop;
use sg_relay::udp::{UserSocket, serve_users};
use sg_runtime::places::Occupancy;
use tokio::net::TcpListener;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use super::connection;
use super::flow::ClientFlows;
use super::known::{Known, KnownDestination};
use crate::gateway::GatewayContext;

/// Before a port that could not be opened is tried again.
const RETRY: Duration = Duration::from_secs(2);
/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Longest time before source rules are looked at again.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// How long closing a port is waited for.
const CLOSE_LIMIT: Duration = Duration::from_secs(1);

/// Which gateway has which port, for all gateways of the process. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct ClientPorts(Arc<Claims>);

#[derive(Debug, Default)]
struct Claims {
    holders: Mutex<HashMap<(u16, bool), Arc<str>>>,
    freed: Notify,
}

/// A port that a gateway has; dropping it frees it.
#[derive(Debug)]
struct Claim {
    port: (u16, bool),
    all: ClientPorts,
}

impl ClientPorts {
    /// Takes a port for a gateway.
    ///
    /// # Errors
    /// The gateway that has it.
    fn claim(&self, port: u16, udp: bool, gateway: &Arc<str>) -> Result<Claim, Arc<str>> {
        let mut holders = self.lock();
        if let Some(holder) = holders.get(&(port, udp)) {
            return Err(Arc::clone(holder));
        }
        holders.insert((port, udp), Arc::clone(gateway));
        Ok(Claim {
            port: (port, udp),
            all: self.clone(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<(u16, bool), Arc<str>>> {
        self.0
            .holders
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.all.lock().remove(&self.port);
        self.all.0.freed.notify_waiters();
    }
}

/// How the ports fare, for the nodes.
pub type Report = Arc<[DestinationState]>;

/// The task that keeps the ports of a gateway.
#[derive(Debug)]
pub struct Ports {
    gateway: Arc<GatewayContext>,
    address: IpAddr,
    known: watch::Receiver<Arc<Known>>,
    report: watch::Sender<Report>,
    slots: BTreeMap<DestinationId, Slot>,
    listeners: JoinSet<()>,
}

#[derive(Debug)]
struct Slot {
    known: Arc<KnownDestination>,
    state: SlotState,
}

#[derive(Debug)]
enum SlotState {
    Open(Open),
    Failed {
        reason: &'static str,
        message: String,
        retry: Instant,
    },
}

#[derive(Debug)]
struct Open {
    address: SocketAddr,
    /// What the listener serves by; it changes with the destination.
    serves: watch::Sender<Arc<KnownDestination>>,
    stop: CancellationToken,
    /// Ends when the listener has let go of its port.
    closed: CancellationToken,
    _claim: Claim,
}

/// To stop a listener, and to see that it has let go of its port.
type Ends = (CancellationToken, CancellationToken);

impl Ports {
    /// A task for a gateway, and where to read how its ports fare.
    #[must_use]
    pub fn new(gateway: Arc<GatewayContext>, address: IpAddr) -> Self {
        Self {
            known: gateway.known.subscribe(),
            report: gateway.listeners.clone(),
            gateway,
            address,
            slots: BTreeMap::new(),
            listeners: JoinSet::new(),
        }
    }

    /// Keeps the ports until `stop`; then closes them.
    pub async fn run(mut self, stop: CancellationToken) {
        let claims = self.gateway.shared.client_ports.clone();
        loop {
            let freed = claims.0.freed.notified();
            tokio::pin!(freed);
            freed.as_mut().enable();
            let known = Arc::clone(&self.known.borrow_and_update());
            // First, so that what ends is told why; flows end with their port, too.
            self.gateway
                .carried_users
                .redecide(&known, connection::now());
            self.bring_to(&known).await;
            self.publish();
            let retry = self
                .next_retry()
                .into_iter()
                .chain(next_expiry(&known))
                .min();
            let due = async {
                match retry {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            // Every arm can be cancelled without loss.
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = self.known.changed() => if changed.is_err() { break },
                () = &mut freed => self.retry_clashes(),
                Some(_) = self.listeners.join_next() => self.note_closed(),
                () = due => {}
            }
        }
        let all: Vec<_> = self.slots.keys().cloned().collect();
        for id in all {
            self.close(&id).await;
        }
        self.publish();
    }

    async fn bring_to(&mut self, known: &Known) {
        let wanted: BTreeMap<DestinationId, Arc<KnownDestination>> = known
            .all()
            .filter(|one| one.destination.enabled)
            .filter(|one| one.destination.listen.client_port().is_some())
            .map(|one| (one.destination.id.clone(), Arc::clone(one)))
            .collect();
        // First what closes, so that a port that moves from one destination to another is free.
        let gone: Vec<_> = self
            .slots
            .iter()
            .filter(|(id, slot)| !wanted.get(*id).is_some_and(|new| slot.stays_for(new)))
            .map(|(id, _)| id.clone())
            .collect();
        for id in gone {
            self.close(&id).await;
        }
        for (id, new) in wanted {
            self.open(id, new);
        }
    }

    fn open(&mut self, id: DestinationId, new: Arc<KnownDestination>) {
        if let Some(slot) = self.slots.get_mut(&id) {
            slot.known = Arc::clone(&new);
            match &slot.state {
                SlotState::Open(open) => {
                    open.serves.send_replace(new);
                    return;
                }
                SlotState::Failed { retry, .. } if *retry > Instant::now() => return,
                SlotState::Failed { .. } => {}
            }
        }
        let state = self.try_open(&new);
        let before = self.slots.get(&id).map(|slot| &slot.state);
        tell(&self.gateway.gateway, &new, before, &state);
        self.slots.insert(id, Slot { known: new, state });
    }

    fn try_open(&mut self, new: &Arc<KnownDestination>) -> SlotState {
        let failed = |reason, message| SlotState::Failed {
            reason,
            message,
            retry: Instant::now() + RETRY,
        };
        let destination = &new.destination;
        let Some(port) = destination.listen.client_port() else {
            return failed("no-port", "it has no client port".to_owned());
        };
        let udp = destination.protocol == Protocol::Udp;
        if !udp && let Err(why) = new.reception() {
            return failed("bad-certificate", why.to_owned());
        }
        let ports = &self.gateway.shared.client_ports;
        let claim = match ports.claim(port, udp, &self.gateway.gateway) {
            Ok(claim) => claim,
            Err(holder) => {
                return failed(
                    "client-port-clash",
                    format!(
                        "gateway {holder} of this client has port {port}; it is taken over when that lets go"
                    ),
                );
            }
        };
        let wanted = SocketAddr::from((self.address, port));
        let (serves, served) = watch::channel(Arc::clone(new));
        let (stop, closed) = (CancellationToken::new(), CancellationToken::new());
        let ends = (stop.clone(), closed.clone());
        let started = if udp {
            self.start_udp(wanted, served, ends)
        } else {
            self.start_tcp(wanted, served, ends)
        };
        match started {
            Ok(address) => SlotState::Open(Open {
                address,
                serves,
                stop,
                closed,
                _claim: claim,
            }),
            Err(error) => {
                let reason = match error.kind() {
                    io::ErrorKind::AddrInUse => "address-in-use",
                    io::ErrorKind::PermissionDenied => "permission-denied",
                    io::ErrorKind::AddrNotAvailable => "address-not-available",
                    _ => "cannot-listen",
                };
                failed(reason, format!("cannot listen on {wanted}: {error}"))
            }
        }
    }

    fn start_tcp(
        &mut self,
        wanted: SocketAddr,
        served: watch::Receiver<Arc<KnownDestination>>,
        (stop, closed): Ends,
    ) -> io::Result<SocketAddr> {
        let listener = sg_relay::listen(wanted)?;
        let address = listener.local_addr()?;
        let task = listen(Arc::clone(&self.gateway), listener, served, stop, closed);
        self.listeners.spawn(task);
        Ok(address)
    }

    fn start_udp(
        &mut self,
        wanted: SocketAddr,
        served: watch::Receiver<Arc<KnownDestination>>,
        (stop, closed): Ends,
    ) -> io::Result<SocketAddr> {
        let socket = UserSocket::bind(wanted)?;
        let address = socket.local_addr();
        let flows = ClientFlows {
            gateway: Arc::clone(&self.gateway),
            serves: served,
            occupancy: Occupancy::default(),
        };
        self.listeners.spawn(async move {
            let _closed = closed.drop_guard();
            serve_users(flows, socket, stop).await;
        });
        Ok(address)
    }

    async fn close(&mut self, id: &DestinationId) {
        let Some(slot) = self.slots.remove(id) else {
            return;
        };
        if let SlotState::Open(open) = slot.state {
            open.stop.cancel();
            if tokio::time::timeout(CLOSE_LIMIT, open.closed.cancelled())
                .await
                .is_err()
            {
                tracing::warn!(gateway = %self.gateway.gateway, address = %open.address, "a client port takes long to close");
            }
            tracing::info!(gateway = %self.gateway.gateway, destination = %slot.known.destination.name,
                address = %open.address, "client port closed");
        }
    }

    /// A listener has ended by itself: its port is opened again.
    fn note_closed(&mut self) {
        for slot in self.slots.values_mut() {
            if let SlotState::Open(open) = &slot.state
                && open.closed.is_cancelled()
            {
                slot.state = SlotState::Failed {
                    reason: "internal",
                    message: "the listener has failed".to_owned(),
                    retry: Instant::now() + RETRY,
                };
            }
        }
    }

    fn retry_clashes(&mut self) {
        for slot in self.slots.values_mut() {
            if let SlotState::Failed { reason, retry, .. } = &mut slot.state
                && *reason == "client-port-clash"
            {
                *retry = Instant::now();
            }
        }
    }

    fn next_retry(&self) -> Option<Instant> {
        let retries = self.slots.values().filter_map(|slot| match &slot.state {
            SlotState::Failed { retry, .. } => Some(*retry),
            SlotState::Open(_) => None,
        });
        retries.min()
    }

    fn publish(&self) {
        let states: Vec<_> = self.slots.values().map(Slot::report).collect();
        self.report.send_if_modified(|before| {
            let changed = **before != *states;
            if changed {
                *before = states.into();
            }
            changed
        });
    }
}

/// When the next source rule is over.
fn next_expiry(known: &Known) -> Option<Instant> {
    let wall = connection::now();
    let next = known
        .all()
        .filter_map(|one| one.destination.user_end.sources.next_expiry(wall))
        .min()?;
    let wait = Duration::from_millis(next.0.saturating_sub(wall.0) + 1);
    // The wall clock may be set.
    Some(Instant::now() + wait.min(LONGEST_WAIT))
}

impl Slot {
    /// Whether an open port can go on with the destination as it is now.
    fn stays_for(&self, new: &KnownDestination) -> bool {
        let old = &self.known.destination;
        old.listen == new.destination.listen
            && (old.protocol == Protocol::Udp) == (new.destination.protocol == Protocol::Udp)
    }

    fn report(&self) -> DestinationState {
        let (state, reason, message, address) = match &self.state {
            SlotState::Open(open) => ("listening", "", "", open.address.to_string()),
            SlotState::Failed {
                reason, message, ..
            } => ("failed", *reason, message.as_str(), String::new()),
        };
        DestinationState {
            destination_id: self.known.destination.id.to_string(),
            generation: self.known.destination.generation,
            state: state.to_owned(),
            reason: reason.to_owned(),
            message: message.to_owned(),
            address,
        }
    }
}

/// One line when a port opens or fails anew.
fn tell(gateway: &str, new: &KnownDestination, before: Option<&SlotState>, state: &SlotState) {
    let destination = &new.destination.name;
    match state {
        SlotState::Open(open) => {
            tracing::info!(gateway, %destination, address = %open.address, "client port open");
        }
        SlotState::Failed {
            reason, message, ..
        } => {
            let same =
                matches!(before, Some(SlotState::Failed { reason: old, .. }) if old == reason);
            if !same {
                tracing::warn!(gateway, %destination, reason, "client port not open: {message}");
            }
        }
    }
}

/// Accepts until `stop`.
async fn listen(
    gateway: Arc<GatewayContext>,
    listener: TcpListener,
    serves: watch::Receiver<Arc<KnownDestination>>,
    stop: CancellationToken,
    closed: CancellationToken,
) {
    let _closed = closed.drop_guard();
    loop {
        // Accepting loses nothing when it is cancelled.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((tcp, user)) => {
                let tcp = ResetOnDrop::new(tcp);
                let known = Arc::clone(&serves.borrow());
                match gateway.shared.streams.reserve() {
                    Ok(slot) => {
                        slot.spawn(connection::serve(Arc::clone(&gateway), known, tcp, user));
                    }
                    Err(_) => connection::refuse(&gateway, &known, user),
                }
            }
            Err(error) => {
                tracing::warn!(gateway = %gateway.gateway, %error, "cannot accept at a client port");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test]
    async fn the_first_gateway_has_a_port_until_it_lets_go() {
        let ports = ClientPorts::default();
        let (one, two): (Arc<str>, Arc<str>) = ("one".into(), "two".into());
        let claim = ports.claim(3306, false, &one).unwrap();
        assert_eq!(*ports.claim(3306, false, &two).unwrap_err(), *one);
        // Datagrams have ports of their own.
        let udp = ports.claim(3306, true, &two).unwrap();
        let freed = ports.0.freed.notified();
        tokio::pin!(freed);
        freed.as_mut().enable();
        drop(claim);
        freed.await;
        assert!(ports.claim(3306, false, &two).is_ok());
        drop(udp);
    }
}
