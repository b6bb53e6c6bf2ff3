//! The life of one client's tunnel at this node: what is known of it, and the task that keeps its client up to
//! date (access control list, the other nodes) and ends it when its right to be here does. The task outlives the
//! tunnel's connection: when that is lost, it waits until [`super::acceptor`] hands over another one.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{AclVersion, GatewayId, Name, NodeConfig, Timestamp};
use sg_proto::node::DestinationState;
use sg_proto::pieces::{self, Assembly};
use sg_proto::tunnel::{Control, Endpoints, Piece, control};
use sg_relay::{ByteCounters, TunnelInfo};
use sg_tunnel_io::code::close;
use sg_tunnel_io::{CloseReason, Closed, Driver, Event, Incoming, Transport, Tunnel};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, interval_at};

use super::admit;
use super::credential::{Credential, ProvedKey};
use super::edits::Edits;
use super::exchange::Exchange;
use super::registry::Health;
use super::resume::{HandOverError, Resumption, Ticket};
use super::updates::acl_of;
use crate::certificates::Vouched;
use crate::cloud;
use crate::metrics::Resume;
use crate::node::{self, Node};

/// How often the round-trip time is noted, and an update that found the queue full is tried again.
const TICK: Duration = Duration::from_secs(1);

/// How often what found no room is tried again.
const OUTBOX_RETRY: Duration = Duration::from_millis(50);

/// One tunnel.
#[derive(Debug)]
pub(crate) struct Session {
    /// Unique at this node; greater ones came later.
    pub(crate) number: u64,
    pub(crate) gateway: GatewayId,
    pub(crate) gateway_name: Name,
    /// From the key that the client proved.
    pub(crate) client_id: Arc<str>,
    pub(super) key: ProvedKey,
    /// What the client calls itself.
    pub(crate) client_name: String,
    /// One run of the client's process, as hexadecimal digits.
    pub(crate) boot_id: String,
    /// Which of several connections of that process.
    pub(crate) connection: u32,
    /// Version of the client's software, by its own account.
    pub(crate) software: String,
    /// What changes with each connection.
    pub(super) presence: Mutex<Presence>,
    pub(super) resumption: Resumption,
    /// How long its streams outlive a lost connection.
    pub(super) resume_time: Duration,
    pub(crate) tunnel: Tunnel,
    /// Bytes of all its streams; the node's TCP end is the user.
    pub(crate) bytes: Arc<ByteCounters>,
    pub(super) acl_applied: Mutex<AclVersion>,
    /// How the client's ports for cloud destinations fare, by its own account.
    pub(super) listeners: Mutex<Arc<[DestinationState]>>,
    pub(super) active: AtomicU32,
}

/// What is known of the connection that a tunnel has now, or had last.
#[derive(Debug, Clone)]
pub(super) struct Presence {
    pub(super) address: SocketAddr,
    pub(super) connected: Timestamp,
    /// What the client was let in by.
    pub(super) credential: Credential,
    /// What the client was told in the hello.
    pub(super) told: Told,
}

impl Session {
    /// Where the client's connection comes from.
    pub(crate) fn address(&self) -> SocketAddr {
        self.presence().address
    }

    /// When the present connection was accepted.
    pub(crate) fn connected(&self) -> Timestamp {
        self.presence().connected
    }

    /// What the client was let in by.
    pub(crate) fn credential(&self) -> Credential {
        self.presence().credential.clone()
    }

    pub(super) fn presence(&self) -> MutexGuard<'_, Presence> {
        self.presence.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether its client may come back to it.
    pub(super) fn resumable(&self) -> bool {
        !self.resume_time.is_zero() && !self.tunnel.is_closed() && !self.tunnel.is_draining()
    }

    /// Hands the tunnel over to a new connection of its client.
    ///
    /// # Errors
    /// Why it was not; the connection is dropped.
    pub(super) fn resume(
        &self,
        ticket: &Ticket,
        presence: Presence,
        enforced: AclVersion,
        io: Box<dyn Transport>,
    ) -> Result<(), HandOverError> {
        self.resumption.hand_over(ticket, || {
            // Before the tunnel lives again: whoever hears of that finds what belongs to it.
            *self.presence() = presence;
            self.set_acl_applied(enforced);
            self.tunnel.attach_with(io)?;
            Ok(self.tunnel.stats().received_bytes)
        })
    }

    /// Announces that the node goes. A detached tunnel ends, for its client would not be let in.
    pub(super) fn drain(&self) {
        // From here on a loss of the connection ends it, too.
        self.tunnel.goaway();
        if self.tunnel.is_detached() {
            self.tunnel.abandon();
        }
    }

    /// Whether this one takes the place of `old`. A tunnel that drains is left to finish its streams, when it
    /// belongs to the same run of the client: making the new one before it ends is what a drain is for.
    pub(super) fn replaces(&self, old: &Self) -> bool {
        self.client_id == old.client_id
            && (self.boot_id != old.boot_id
                || (self.connection == old.connection && !old.tunnel.is_draining()))
    }

    /// Whether a stream can be opened on it.
    pub(super) fn usable(&self, health: Health) -> bool {
        !self.tunnel.is_closed()
            && !self.tunnel.is_draining()
            && !self.tunnel.is_detached()
            && (health == Health::Any || !self.tunnel.is_suspect())
    }

    /// Users' streams that it carries, or is asked to carry.
    pub(crate) fn active(&self) -> u32 {
        self.active.load(Ordering::Relaxed)
    }

    pub(super) fn begin_stream(&self) {
        self.active.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn end_stream(&self) {
        self.active.fetch_sub(1, Ordering::Relaxed);
    }

    /// The version of the access control list that the client says it enforces.
    pub(crate) fn acl_applied(&self) -> AclVersion {
        *self
            .acl_applied
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// How the client's ports for cloud destinations fare.
    pub(crate) fn listeners(&self) -> Arc<[DestinationState]> {
        Arc::clone(
            &self
                .listeners
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        )
    }

    pub(super) fn set_listeners(&self, listeners: Vec<DestinationState>) {
        *self
            .listeners
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = listeners.into();
    }

    fn set_acl_applied(&self, version: AclVersion) {
        let mut applied = self
            .acl_applied
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *applied = version;
    }
}

/// What the client was told last: by the hello, then by updates.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Told {
    /// The authorities whose certificates are accepted.
    pub(super) trust: Arc<Vouched>,
    pub(super) acl: AclVersion,
    pub(super) endpoints: Arc<Endpoints>,
}

/// What a tunnel consists of while it lives.
pub(super) struct Live {
    pub(super) session: Arc<Session>,
    pub(super) incoming: Incoming,
    pub(super) driver: Driver,
    pub(super) served: watch::Receiver<Arc<NodeConfig>>,
}

/// Runs a tunnel from its registration to its end.
pub(super) async fn run(node: &Arc<Node>, live: Live) {
    let Live {
        session,
        incoming,
        driver,
        served,
    } = live;
    let registration = node.registry.register(Arc::clone(&session));
    let info = TunnelInfo {
        gateway: session.gateway_name.as_str().into(),
        peer: Arc::clone(&session.client_id),
        address: session.address().to_string().into(),
    };
    let posted = node.board.post(info, session.tunnel.clone());
    if node.shutdown.is_draining() {
        // Admitted just before the drain began, and registered after all tunnels were told of it.
        session.drain();
    }
    tracing::info!(
        gateway = %session.gateway_name, client = %session.client_id, name = session.client_name,
        address = %session.address(), connection = session.connection, version = session.software,
        "tunnel open"
    );
    let mut drivers = JoinSet::new();
    drivers.spawn(driver);
    let mut keeper = Keeper {
        node,
        session: &session,
        told: session.presence().told.clone(),
        owes: false,
        destinations: 0,
        outbox: VecDeque::new(),
        listeners: Assembly::default(),
        detached: None,
        exchange: Exchange::default(),
        edits: Edits::default(),
        renamed: None,
    };
    let closed = keeper.run(&mut drivers, incoming, served).await;
    if closed
        .as_ref()
        .is_some_and(|c| matches!(c.reason, CloseReason::Expired))
    {
        node.registry
            .count_resume(&session.gateway, Resume::Expired);
    }
    drop((registration, posted));
    let word = closed.as_ref().map_or("internal", Closed::word);
    node.metrics.tunnel_closed(word);
    node.metrics
        .forget_client(keeper.label().as_str(), &session.client_id);
    let reason = closed.map_or_else(|| "its task failed".to_owned(), |c| c.to_string());
    tracing::info!(gateway = %session.gateway_name, client = %session.client_id, address = %session.address(), reason, "tunnel closed");
}

/// Waits until it is time to try again. Can be cancelled without loss.
async fn retry(again: &mut Option<Interval>) {
    let again = again.get_or_insert_with(|| {
        let mut again = interval_at(Instant::now() + OUTBOX_RETRY, OUTBOX_RETRY);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        again
    });
    again.tick().await;
}

pub(super) struct Keeper<'a> {
    pub(super) node: &'a Arc<Node>,
    pub(super) session: &'a Session,
    pub(super) told: Told,
    /// An update found no room and is to be tried again.
    pub(super) owes: bool,
    /// Which set of destinations the client was sent last.
    destinations: u64,
    /// Pieces of it that have not left yet.
    pub(super) outbox: VecDeque<Piece>,
    /// What the client says of its ports, as far as it has come.
    pub(super) listeners: Assembly,
    /// Since when the tunnel has no connection.
    pub(super) detached: Option<Instant>,
    /// The client's wish for a certificate.
    pub(super) exchange: Exchange,
    /// Its wishes to change the list.
    pub(super) edits: Edits,
    /// Name of the gateway in the series, if it is not that of the beginning any more.
    renamed: Option<Name>,
}

impl Keeper<'_> {
    /// Until the driver has ended; `None` when it panicked.
    async fn run(
        &mut self,
        drivers: &mut JoinSet<Closed>,
        mut incoming: Incoming,
        mut served: watch::Receiver<Arc<NodeConfig>>,
    ) -> Option<Closed> {
        let mut tick = interval(TICK);
        let mut again = None;
        let mut listening = true;
        // What was published between the hello and now.
        served.mark_changed();
        let mut trust = self.node.trust.subscribe();
        loop {
            if !self.has_unsent() {
                again = None;
            }
            // Every arm can be cancelled without loss.
            tokio::select! {
                ended = drivers.join_next() => return ended.and_then(Result::ok),
                event = incoming.next(), if listening => match event {
                    Some(event) => self.handle(event, &served),
                    None => listening = false,
                },
                Ok(()) = served.changed() => {
                    let config = Arc::clone(&served.borrow_and_update());
                    self.follow(&config);
                }
                Ok(()) = trust.changed() => self.tell_trust(),
                answer = self.exchange.answer() => self.certificate_answered(answer),
                answer = self.edits.answered() => self.edit_answered(answer),
                () = retry(&mut again), if self.has_unsent() => self.send_outbox(),
                _ = tick.tick() => {
                    let config = Arc::clone(&served.borrow());
                    self.note_rtt(&config);
                    // Tokens expire without anything being published.
                    if !self.withdraw(&config) && self.owes {
                        self.follow(&config);
                    }
                }
            }
        }
    }

    fn label(&self) -> &Name {
        self.renamed.as_ref().unwrap_or(&self.session.gateway_name)
    }

    fn note_rtt(&mut self, config: &NodeConfig) {
        if self.detached.is_some() {
            return;
        }
        let Some(gateway) = config.gateway(&self.session.gateway) else {
            return;
        };
        let (metrics, client) = (&self.node.metrics, &self.session.client_id);
        if *self.label() != gateway.name {
            metrics.forget_client(self.label().as_str(), client);
            self.renamed = Some(gateway.name.clone());
        }
        if let Some(rtt) = self.session.tunnel.rtt() {
            metrics.set_rtt(self.label().as_str(), client, rtt.as_secs_f64());
        }
    }

    fn handle(&mut self, event: Event, served: &watch::Receiver<Arc<NodeConfig>>) {
        match event {
            Event::Detached => self.lost(),
            Event::Resumed => {
                self.resumed();
                // What has changed since the new connection's hello, or was not said for want of a connection.
                let config = Arc::clone(&served.borrow());
                self.follow(&config);
            }
            Event::Open(stream) => cloud::take(self.node, self.session, stream),
            Event::Control(message) => self.control(message, served),
            Event::PeerDraining => {
                tracing::info!(client = %self.session.client_id, "client drains its tunnel");
                self.node.registry.changed();
            }
        }
    }

    fn lost(&mut self) {
        let session = self.session;
        self.detached = Some(Instant::now());
        tracing::info!(gateway = %session.gateway_name, client = %session.client_id, address = %session.address(),
            streams = session.tunnel.active_streams(), "tunnel detached: its connection is lost");
        self.node
            .metrics
            .forget_client(self.label().as_str(), &session.client_id);
        if session.tunnel.is_draining() {
            // The announcement may not have left; its client will not be let in again.
            session.tunnel.abandon();
        } else if !self.node.registry.note_detached(session) {
            tracing::warn!(client = %session.client_id, "too many tunnels are detached: this one ends");
            self.node
                .registry
                .count_resume(&session.gateway, Resume::Limit);
            session.tunnel.abandon();
        }
    }

    fn resumed(&mut self) {
        let session = self.session;
        let after_ms = self
            .detached
            .take()
            .map_or(0, |at| at.elapsed().as_millis());
        self.told = session.presence().told.clone();
        // An older list of nodes, said on the lost connection, may be repeated behind that of the hello.
        self.told.endpoints = Arc::default();
        tracing::info!(gateway = %session.gateway_name, client = %session.client_id, address = %session.address(),
            after_ms = u64::try_from(after_ms).unwrap_or(u64::MAX), "tunnel resumed");
        self.node.registry.note_attached(session);
    }

    fn control(&mut self, message: Bytes, served: &watch::Receiver<Arc<NodeConfig>>) {
        match Control::decode(message).map(|control| control.message) {
            Ok(Some(control::Message::AclApplied(applied))) => {
                self.session.set_acl_applied(AclVersion {
                    epoch: applied.epoch,
                    generation: applied.generation,
                });
                self.node.registry.changed();
            }
            Ok(Some(control::Message::Listeners(piece))) => self.take_listeners(&piece),
            Ok(Some(control::Message::AclEdit(piece))) => self.take_edit(&piece),
            Ok(Some(control::Message::CertificateRequest(_))) => {
                let config = Arc::clone(&served.borrow());
                self.certificate_asked(&config);
            }
            // Of a newer version, or meant for the other direction: without effect.
            Ok(_) => {}
            Err(_) => {
                self.session
                    .tunnel
                    .close(close::PROTOCOL_ERROR, "a control message cannot be decoded");
            }
        }
    }

    /// Brings the client up to date with `config`, or ends the tunnel when it may not stay.
    fn follow(&mut self, config: &NodeConfig) {
        let session = self.session;
        if self.withdraw(config) {
            return;
        }
        self.owes = false;
        if self.detached.is_some() {
            // The next hello tells it.
            return;
        }
        let version = config.acl(&session.gateway).map(|acl| acl.version);
        let version = version.unwrap_or_default();
        if version != self.told.acl {
            let acl = acl_of(config, &session.gateway);
            if self.tell(control::Message::Acl((&acl).into())) {
                self.told.acl = version;
            }
        }
        let digest = self.node.for_clients.digest(&session.gateway);
        if digest != self.destinations {
            self.destinations = digest;
            self.outbox = pieces::cut(&self.node.for_clients.encode(&session.gateway)).into();
        }
        self.send_outbox();
        self.tell_trust();
        self.tell_endpoints();
    }

    /// Closes the tunnel if it may not stay; tells whether it may not.
    fn withdraw(&self, config: &NodeConfig) -> bool {
        let session = self.session;
        let gateway = config.gateway(&session.gateway);
        let presence = session.presence();
        let why = admit::withdrawn(
            gateway,
            &session.client_id,
            &presence.credential,
            node::now(),
        );
        drop(presence);
        let Some(why) = why else {
            return false;
        };
        session.tunnel.close(close::AUTH_REVOKED, why);
        true
    }
}

#[cfg(test)]
pub(super) mod testing {
    //! Sessions without a client.

    use sg_tunnel_io::{Config, Side, start};
    use tokio::io::DuplexStream;

    use super::*;

    /// What keeps the tunnel of a test's session alive.
    #[derive(Debug)]
    pub(crate) struct Peer {
        _drivers: JoinSet<Closed>,
        _incoming: Incoming,
        _far_end: DuplexStream,
    }

    /// A session over a pipe at whose far end nobody answers.
    pub(crate) fn session(
        number: u64,
        gateway: &GatewayId,
        client: &str,
        boot: u8,
        connection: u32,
    ) -> (Session, Peer) {
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (tunnel, incoming, driver) = start(near, Side::Node, Config::default());
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        let session = Session {
            number,
            gateway: gateway.clone(),
            gateway_name: Name::new("dev").unwrap(),
            client_id: client.into(),
            key: ProvedKey {
                client_id: client.into(),
                sha256: [0; 32],
                public_key_der: Box::default(),
            },
            client_name: client.to_owned(),
            boot_id: format!("{boot:02x}"),
            connection,
            software: "0".to_owned(),
            presence: Mutex::new(Presence {
                address: "127.0.0.1:1".parse().unwrap(),
                connected: Timestamp(0),
                credential: Credential::None,
                told: Told::default(),
            }),
            resumption: Resumption::new().0,
            resume_time: Duration::ZERO,
            tunnel,
            bytes: Arc::default(),
            acl_applied: Mutex::default(),
            listeners: Mutex::default(),
            active: AtomicU32::new(0),
        };
        let peer = Peer {
            _drivers: drivers,
            _incoming: incoming,
            _far_end: far,
        };
        (session, peer)
    }
}
