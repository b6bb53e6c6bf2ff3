//! One gateway: the task that owns its sessions and does what its [`Supervisor`]s say. Gateways have
//! nothing in common but the process, so trouble of one stays with it.

mod hello;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sg_model::HostPort;
use sg_relay::TunnelBoard;
use sg_runtime::readiness::Latch;
use sg_runtime::shutdown::{CancellationToken, Shutdown};
use sg_runtime::tasks::TaskPool;
use sg_tunnel_io::Config;
use tokio::sync::{mpsc, watch};
use tokio::task::{Id, JoinError, JoinSet};
use tokio::time::{Instant, timeout};

use crate::acl::AclState;
use crate::certificate::Certificate;
use crate::cloud::{self, ClientPorts, Ports, State, Tunnels, Users};
use crate::dial_gate::DialGate;
use crate::edits::Edits;
use crate::metrics::ClientMetrics;
use crate::options::Reconnect;
use crate::proxy::Proxy;
use crate::session::{Order, Report, Session, SessionEnd};
use crate::supervisor::{Action, Event, Retry, SessionId, Supervisor};
use crate::token::Token;
use crate::trust::NodeTrust;

/// Reports that may wait; a session that finds no room waits.
const REPORTS: usize = 64;
/// Time for sessions to close after they were told to.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What all gateways of the process share.
#[derive(Debug)]
pub struct Shared {
    /// Who this client is.
    pub client_id: Arc<str>,
    /// This run of it.
    pub boot_id: [u8; 16],
    /// How it calls itself.
    pub name: String,
    /// Which nodes are believed, and so how to connect to them.
    pub trust: NodeTrust,
    /// What stands between them and this client.
    pub proxy: Option<Proxy>,
    /// Bounds the streams of the process.
    pub streams: TaskPool,
    /// What a new tunnel gets; they all share its memory budget.
    pub tunnel_config: Config,
    /// The tunnels, for people and metrics.
    pub board: TunnelBoard,
    /// Bounds its dials.
    pub dials: DialGate,
    /// What it counts.
    pub metrics: ClientMetrics,
    /// Its own listeners, which no stream reaches.
    pub own_ports: Vec<SocketAddr>,
    /// Which gateway has which client port.
    pub client_ports: ClientPorts,
    /// Where client ports listen.
    pub client_address: IpAddr,
    /// Cancelled when the process is to end.
    pub draining: CancellationToken,
}

/// What the sessions of one gateway share.
#[derive(Debug)]
pub struct GatewayContext {
    /// Id or name, as given.
    pub gateway: Arc<str>,
    /// Its security token.
    pub token: Token,
    /// What it has issued for that.
    pub certificate: Certificate,
    /// What may be reached.
    pub acl: AclState,
    /// Changes of the gateway's list that somebody here asks for.
    pub edits: Edits,
    /// What the nodes told of its destinations.
    pub known: State,
    /// Its tunnels, for users at client ports.
    pub tunnels: Tunnels,
    /// How its client ports fare.
    pub listeners: watch::Sender<cloud::Report>,
    /// Connections of users at client ports.
    pub carried_users: Users,
    /// Its name, once a node has told it.
    pub told_name: OnceLock<Arc<str>>,
    /// The process.
    pub shared: Arc<Shared>,
}

impl GatewayContext {
    /// A gateway that no node has told anything of yet.
    #[must_use]
    pub fn new(
        gateway: Arc<str>,
        token: Token,
        certificate: Certificate,
        acl: AclState,
        shared: Arc<Shared>,
    ) -> Self {
        Self {
            gateway,
            token,
            certificate,
            acl,
            edits: Edits::default(),
            known: State::default(),
            tunnels: Tunnels::default(),
            listeners: watch::Sender::default(),
            carried_users: Users::default(),
            told_name: OnceLock::new(),
            shared,
        }
    }

    /// Its name, for people: as a node told it, or else as it was given.
    #[must_use]
    pub fn name(&self) -> Arc<str> {
        Arc::clone(self.told_name.get().unwrap_or(&self.gateway))
    }
}

/// How a gateway's task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GatewayEnd {
    /// The process drained, and all streams with it.
    Drained,
    /// Nothing is tried any more; what came last, for people.
    GivenUp(String),
}

/// One gateway's task.
#[derive(Debug)]
pub struct Gateway {
    context: Arc<GatewayContext>,
    /// One for each tunnel to every node.
    supervisors: Vec<Supervisor>,
    sessions: HashMap<(u32, SessionId), Handle>,
    tasks: JoinSet<SessionEnd>,
    /// Which session a task is, for those that panic.
    ids: HashMap<Id, (u32, SessionId)>,
    reports: mpsc::Receiver<(u32, SessionId, Report)>,
    /// For the sessions.
    reporter: mpsc::Sender<(u32, SessionId, Report)>,
    latch: Latch,
    started: Instant,
    ending: bool,
    given_up: bool,
    /// How the last session ended.
    last: String,
    /// Keeps the client ports.
    ports: JoinSet<()>,
    close_ports: CancellationToken,
}

#[derive(Debug)]
struct Handle {
    orders: watch::Sender<Order>,
    address: HostPort,
    node: String,
    /// Its tunnel is up, but has no connection at present.
    detached: bool,
}

impl Gateway {
    /// A gateway with `connections` tunnels to each node; `latch` is set while there is one at all.
    #[must_use]
    pub fn new(
        context: Arc<GatewayContext>,
        addresses: &[HostPort],
        connections: u32,
        reconnect: Reconnect,
        latch: Latch,
    ) -> Self {
        let (reporter, reports) = mpsc::channel(REPORTS);
        let supervisor = |_| Supervisor::new(&*context.gateway, addresses, reconnect);
        Self {
            supervisors: (0..connections).map(supervisor).collect(),
            context,
            sessions: HashMap::new(),
            tasks: JoinSet::new(),
            ids: HashMap::new(),
            reports,
            reporter,
            latch,
            started: Instant::now(),
            ending: false,
            given_up: false,
            last: "there is no tunnel".to_owned(),
            ports: JoinSet::new(),
            close_ports: CancellationToken::new(),
        }
    }

    /// Keeps the gateway connected until the process drains or nothing is tried any more.
    pub async fn run(mut self, shutdown: Shutdown) -> GatewayEnd {
        let address = self.context.shared.client_address;
        let ports = Ports::new(Arc::clone(&self.context), address);
        self.ports.spawn(ports.run(self.close_ports.clone()));
        for connection in 0..self.supervisors.len() {
            let actions = self.supervisors[connection].start();
            self.carry_out(index(connection), actions);
        }
        while !self.given_up {
            tokio::select! {
                biased;
                () = shutdown.wait_draining() => break,
                () = self.step() => {}
            }
        }
        let end = if self.given_up {
            GatewayEnd::GivenUp(std::mem::take(&mut self.last))
        } else {
            GatewayEnd::Drained
        };
        self.end(&shutdown).await;
        end
    }

    /// Waits for the next thing to happen and answers it. Cancel safe: what is taken is answered
    /// without waiting.
    async fn step(&mut self) {
        tokio::select! {
            biased;
            // A session's reports come before its end.
            Some((connection, session, report)) = self.reports.recv() => {
                self.reported(connection, session, report);
            }
            Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
            else => self.given_up = true,
        }
    }

    fn reported(&mut self, connection: u32, session: SessionId, report: Report) {
        let Some(handle) = self.sessions.get_mut(&(connection, session)) else {
            return;
        };
        let (gateway, address) = (&self.context.gateway, &handle.address);
        let event = match report {
            Report::Identified(node) => {
                handle.node = node.to_string();
                Event::Identified { session, node }
            }
            Report::Up {
                gateway: id,
                node_name,
            } => {
                tracing::info!(%gateway, %address, node = handle.node, node_name, connection, "tunnel up");
                handle.detached = false;
                Event::Up {
                    session,
                    gateway: id,
                }
            }
            Report::Draining => {
                tracing::info!(%gateway, %address, node = handle.node, connection, reason = "drain",
                    "the node drains: its streams go on, new ones go elsewhere");
                Event::Draining { session }
            }
            Report::Endpoints(endpoints) => Event::Endpoints { session, endpoints },
            // For the supervisor the tunnel is there: only if it is not resumed, something has to be done.
            Report::Detached => {
                tracing::info!(%gateway, %address, node = handle.node, connection,
                    "tunnel detached: its connection is lost, its streams wait");
                handle.detached = true;
                return self.publish();
            }
            Report::Resumed { after } => {
                let after_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                tracing::info!(%gateway, %address, node = handle.node, connection, after_ms, "tunnel resumed");
                handle.detached = false;
                return self.publish();
            }
        };
        self.handle(connection, event);
    }

    fn ended(&mut self, ended: Result<(Id, SessionEnd), JoinError>) {
        let (id, end) = match ended {
            Ok(ended) => ended,
            Err(error) => {
                let text = error.to_string();
                (
                    error.id(),
                    SessionEnd::Failed {
                        retry: Retry::Later,
                        reason: "internal",
                        text,
                    },
                )
            }
        };
        let Some(key) = self.ids.remove(&id) else {
            return;
        };
        let Some(handle) = self.sessions.remove(&key) else {
            return;
        };
        let (connection, session) = key;
        self.last = told(&handle.address, &end);
        let event = match end {
            SessionEnd::Failed { retry, .. } => Event::Failed { session, retry },
            SessionEnd::Lost { .. } => Event::Lost { session },
        };
        let wait = self.handle(connection, event);
        if wait.is_some() {
            self.context
                .shared
                .metrics
                .count_reconnect(&self.context.gateway);
        }
        self.log_end(connection, &handle, &end, wait);
    }

    /// One line for the end of a session; only what was not wanted is a warning.
    fn log_end(&self, connection: u32, handle: &Handle, end: &SessionEnd, wait: Option<Duration>) {
        let (gateway, address, node) = (&self.context.gateway, &handle.address, &handle.node);
        let ordered = *handle.orders.borrow() >= Order::Drain;
        let retry_ms = wait.map(|wait| u64::try_from(wait.as_millis()).unwrap_or(u64::MAX));
        match end {
            SessionEnd::Failed { reason, .. } if ordered => {
                tracing::debug!(%gateway, %address, reason, "attempt ended");
            }
            SessionEnd::Failed { reason, text, .. } => {
                tracing::warn!(%gateway, %address, connection, reason, retry_ms, "no tunnel: {text}");
            }
            SessionEnd::Lost { reason, .. } if ordered => {
                tracing::info!(%gateway, %address, node, connection, reason, "tunnel closed");
            }
            SessionEnd::Lost { reason, text } => {
                tracing::warn!(%gateway, %address, node, connection, reason, retry_ms, "tunnel ended: {text}");
            }
        }
    }

    /// Gives an event to its supervisor; answers the wait before the next attempt, if it made one.
    fn handle(&mut self, connection: u32, event: Event) -> Option<Duration> {
        if self.ending {
            return None;
        }
        let (now, random) = (self.started.elapsed(), rand::random());
        let supervisor = self
            .supervisors
            .get_mut(usize::try_from(connection).ok()?)?;
        let actions = supervisor.handle(now, random, event);
        let wait = actions.iter().find_map(|action| match action {
            Action::Connect { after, .. } => Some(*after),
            _ => None,
        });
        self.carry_out(connection, actions);
        self.publish();
        wait
    }

    fn carry_out(&mut self, connection: u32, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::Connect {
                    session,
                    address,
                    after,
                } => self.spawn(connection, session, address, after),
                Action::Proceed { session } => self.order(connection, session, Order::Proceed),
                Action::Close { session, why } => {
                    tracing::debug!(gateway = %self.context.gateway, session = session.number(), why, "session closed");
                    self.order(connection, session, Order::Close);
                }
                Action::Drain { session, why } => {
                    tracing::info!(gateway = %self.context.gateway, session = session.number(), why, "tunnel drained");
                    self.order(connection, session, Order::Drain);
                }
                Action::GiveUp => self.given_up = true,
            }
        }
    }

    fn spawn(&mut self, connection: u32, id: SessionId, address: HostPort, after: Duration) {
        let (orders, receiver) = watch::channel(Order::Hold);
        let session = Session {
            id,
            connection,
            address: address.clone(),
            after,
            gateway: Arc::clone(&self.context),
            orders: receiver,
            reports: self.reporter.clone(),
        };
        let task = self.tasks.spawn(session.run());
        self.ids.insert(task.id(), (connection, id));
        self.sessions.insert(
            (connection, id),
            Handle {
                orders,
                address,
                node: String::new(),
                detached: false,
            },
        );
    }

    fn order(&self, connection: u32, session: SessionId, order: Order) {
        if let Some(handle) = self.sessions.get(&(connection, session)) {
            handle.orders.send_if_modified(|present| {
                let stronger = order > *present;
                if stronger {
                    *present = order;
                }
                stronger
            });
        }
    }

    /// Tells how many tunnels there are.
    fn publish(&mut self) {
        if self.ending {
            return;
        }
        let up: usize = self.supervisors.iter().map(Supervisor::tunnels).sum();
        let detached = self.sessions.values().filter(|s| s.detached).count();
        let tunnels = up.saturating_sub(detached);
        self.context
            .shared
            .metrics
            .set_tunnels(&self.context.gateway, tunnels);
        if tunnels > 0 {
            self.latch.set_ready();
        } else {
            self.latch.set_pending();
        }
    }

    /// Lets the streams end, up to the end of the drain, and then ends the sessions.
    async fn end(mut self, shutdown: &Shutdown) {
        self.ending = true;
        self.latch.set_pending();
        self.close_ports.cancel();
        self.context
            .shared
            .metrics
            .set_tunnels(&self.context.gateway, 0);
        if !self.given_up {
            self.order_all(Order::Drain);
            if shutdown.run(self.all_ended()).await.is_some() {
                return;
            }
        }
        self.order_all(Order::Close);
        if timeout(CLOSE_TIME, self.all_ended()).await.is_err() {
            tracing::warn!(gateway = %self.context.gateway, sessions = self.tasks.len(),
                "tunnels did not close in time");
            self.tasks.shutdown().await;
        }
    }

    async fn all_ended(&mut self) {
        while !self.tasks.is_empty() {
            self.step().await;
        }
    }

    fn order_all(&self, order: Order) {
        for (connection, session) in self.sessions.keys() {
            self.order(*connection, *session, order);
        }
    }
}

/// How a session ended, for people.
fn told(address: &HostPort, end: &SessionEnd) -> String {
    match end {
        SessionEnd::Failed { reason, text, .. } => {
            format!("no tunnel to the node at {address}: {text} ({reason})")
        }
        SessionEnd::Lost { reason, text } => {
            format!("the tunnel to the node at {address} ended: {text} ({reason})")
        }
    }
}

/// The number of a supervisor is that of its tunnel.
fn index(connection: usize) -> u32 {
    u32::try_from(connection).unwrap_or(u32::MAX)
}
