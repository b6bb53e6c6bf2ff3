//! One session: an attempt to connect to a node and, if it succeeds, the tunnel until its end.
//!
//! A session does what it is ordered to and reports what happens; whether it should exist is decided
//! by the [`crate::supervisor`]. It ends by itself only when its connection does.

pub mod establish;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{Acl, AclVersion, HostPort, NodeId};
use sg_proto::tunnel::{self as wire, Accepted, ClientHello, Control, control};
use sg_relay::ByteCounters;
use sg_tunnel_io::{
    Closed, Config, ControlError, Event, Incoming, IncomingStream, Side, Tunnel, code,
};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};
use tokio_util::sync::CancellationToken;

use self::establish::{ConnectError, NodeStream};
use crate::acl::Offer;
use crate::gateway::GatewayContext;
use crate::stream::{self, TunnelContext};
use crate::supervisor::{Endpoint, Retry, SessionId};

/// How often a draining tunnel is asked whether its streams are over.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// Time for resets to leave before a tunnel is closed.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// Time for the driver to deliver the close.
const DRIVER_END: Duration = Duration::from_secs(1);
/// Before a control message that found the queue full is tried again.
const CONTROL_RETRY: Duration = Duration::from_millis(200);

/// What a session is ordered to do. Later orders are stronger.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Order {
    /// Connect, and wait before the hello.
    Hold,
    /// Say hello and serve.
    Proceed,
    /// Take no new streams; end when the present ones have.
    Drain,
    /// End now.
    Close,
}

/// What a session reports while it lasts.
#[derive(Debug)]
pub enum Report {
    /// The handshake proved who answers; the session waits for [`Order::Proceed`].
    Identified(NodeId),
    /// The node accepted the hello.
    Up {
        /// The gateway's id.
        gateway: String,
        /// The node's name, for people.
        node_name: String,
    },
    /// The node takes no new streams.
    Draining,
    /// The nodes of the group.
    Endpoints(Vec<Endpoint>),
}

/// How a session ended.
#[derive(Debug)]
pub enum SessionEnd {
    /// It was never up.
    Failed {
        /// Whether another attempt can succeed soon.
        retry: Retry,
        /// One word.
        reason: &'static str,
        /// A sentence.
        text: String,
    },
    /// It was up.
    Lost {
        /// One word.
        reason: &'static str,
        /// A sentence.
        text: String,
    },
}

/// What a session is to do.
#[derive(Debug)]
pub struct Session {
    /// Its number.
    pub id: SessionId,
    /// Which of several tunnels to each node it belongs to.
    pub connection: u32,
    /// Whom to dial.
    pub address: HostPort,
    /// How long to wait first.
    pub after: Duration,
    /// The gateway that it is for.
    pub gateway: Arc<GatewayContext>,
    /// Orders from whoever owns it; ends the session when dropped.
    pub orders: watch::Receiver<Order>,
    /// Where reports go.
    pub reports: mpsc::Sender<(u32, SessionId, Report)>,
}

impl Session {
    /// Runs the session to its end.
    pub async fn run(self) -> SessionEnd {
        let connected = tokio::select! {
            biased;
            () = ordered(self.orders.clone(), |order| order >= Order::Drain) => Err(ConnectError::Unwanted),
            connected = self.connect() => connected,
        };
        match connected {
            Ok((stream, node, accepted)) => self.serve(stream, node, accepted).await,
            Err(error) => SessionEnd::Failed {
                retry: error.retry(),
                reason: error.reason(),
                text: error.text(),
            },
        }
    }

    async fn connect(&self) -> Result<(NodeStream, NodeId, Accepted), ConnectError> {
        sleep(self.after).await;
        let shared = &self.gateway.shared;
        let (mut stream, node) = establish::connect(&self.address, &shared.tls).await?;
        self.report(Report::Identified(node.clone())).await;
        // The owner answers every report, and its end is an order to close.
        ordered(self.orders.clone(), |order| order >= Order::Proceed).await;
        let hello = self.hello();
        let accepted = establish::hello(&mut stream, &node, &hello).await?;
        Ok((stream, node, accepted))
    }

    fn hello(&self) -> ClientHello {
        let (shared, version) = (
            &self.gateway.shared,
            self.gateway.acl.version().unwrap_or_default(),
        );
        let token = self.gateway.token.as_ref();
        ClientHello {
            version: establish::VERSION,
            boot_id: shared.boot_id.to_vec(),
            gateway: self.gateway.gateway.to_string(),
            token: token
                .map(|token| token.expose().clone())
                .unwrap_or_default(),
            software: format!("sg-client/{}", env!("CARGO_PKG_VERSION")),
            client_name: shared.name.clone(),
            connection: self.connection,
            acl_epoch: version.epoch,
            acl_generation: version.generation,
            resume: None,
        }
    }

    async fn serve(self, stream: NodeStream, node: NodeId, accepted: Accepted) -> SessionEnd {
        let (tunnel, incoming, driver) =
            sg_tunnel_io::start(stream, Side::Client, Config::default());
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        let name = match accepted.gateway_name.as_str() {
            "" => Arc::clone(&self.gateway.gateway),
            name => name.into(),
        };
        let streams = Arc::new(TunnelContext {
            gateway: Arc::clone(&self.gateway),
            gateway_name: name,
            node: node.as_str().into(),
            bytes: Arc::new(ByteCounters::new()),
            end: CancellationToken::new(),
        });
        if let Some(acl) = &accepted.acl {
            self.offer(acl);
        }
        let report = Report::Up {
            gateway: accepted.gateway_id,
            node_name: accepted.node_name,
        };
        self.report(report).await;
        if let Some(endpoints) = &accepted.endpoints {
            self.report(Report::Endpoints(read_endpoints(endpoints)))
                .await;
        }
        Serving {
            session: self,
            tunnel,
            streams,
            told: None,
            tell_again: false,
        }
        .run(incoming, drivers)
        .await
    }

    /// Takes over a list that the node sent.
    fn offer(&self, acl: &wire::Acl) {
        let acl = match Acl::try_from(acl) {
            Ok(acl) => acl,
            Err(error) => {
                return tracing::error!(gateway = %self.gateway.gateway, address = %self.address, %error,
                    "the node sent an access control list that cannot be used; the present one stays");
            }
        };
        let version = acl.version;
        match self.gateway.acl.offer(acl) {
            Offer::Applied => {
                let summary = self.gateway.acl.subscribe().borrow().summary();
                tracing::info!(gateway = %self.gateway.gateway, epoch = version.epoch,
                    generation = version.generation, summary, "access control list in force");
            }
            Offer::Same => {}
            Offer::Older => tracing::debug!(gateway = %self.gateway.gateway, ?version,
                "the node has an older access control list; the present one stays"),
            Offer::Conflict => tracing::error!(gateway = %self.gateway.gateway, ?version,
                "two nodes have different access control lists of one version; the first one stays"),
        }
    }

    async fn report(&self, report: Report) {
        if self
            .reports
            .send((self.connection, self.id, report))
            .await
            .is_err()
        {
            // The owner is gone, and so is its end of the orders: this session is about to end.
            tracing::debug!(address = %self.address, "nobody takes the report of a session");
        }
    }
}

/// A tunnel that is up.
struct Serving {
    session: Session,
    tunnel: Tunnel,
    streams: Arc<TunnelContext>,
    /// The version of the list that the node was told to be in force.
    told: Option<AclVersion>,
    /// Telling it has failed for want of room.
    tell_again: bool,
}

impl Serving {
    async fn run(mut self, mut incoming: Incoming, mut drivers: JoinSet<Closed>) -> SessionEnd {
        let mut orders = self.session.orders.clone();
        let mut policy = self.session.gateway.acl.subscribe();
        let mut again = interval(CONTROL_RETRY);
        // It is seldom asked, and must not catch up then.
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = ordered(orders.clone(), |order| order >= Order::Drain);
        tokio::pin!(stop);
        self.tell_version();
        // When the tunnel ends its streams notice by themselves: those that had ended both ways still deliver
        // what has come, the others are reset.
        loop {
            tokio::select! {
                biased;
                // Every arm but the first can be dropped at any time: nothing is taken before it
                // is answered.
                Some(end) = drivers.join_next() => break closed(end),
                () = &mut stop => {
                    let order = *orders.borrow_and_update();
                    break self.finish(order, &mut incoming, &mut drivers).await;
                }
                event = incoming.next() => match event {
                    Some(Event::Open(stream)) => self.open(stream),
                    Some(Event::Control(message)) => self.control(message).await,
                    Some(Event::PeerDraining) => self.session.report(Report::Draining).await,
                    Some(Event::Detached | Event::Resumed) => {}
                    // The driver is about to end, which is the first arm.
                    None => break self.ended(&mut drivers).await,
                },
                Ok(()) = policy.changed() => self.tell_version(),
                _ = again.tick(), if self.tell_again => self.tell_version(),
            }
        }
    }

    fn open(&self, stream: IncomingStream) {
        match self.session.gateway.shared.streams.reserve() {
            // Boxed once here, because the pool wraps it several times.
            Ok(slot) => slot.spawn(Box::pin(stream::serve(Arc::clone(&self.streams), stream))),
            Err(_) => stream::refuse_for_want_of_room(&self.streams, stream),
        }
    }

    async fn control(&self, message: Bytes) {
        match Control::decode(message).map(|control| control.message) {
            Ok(Some(control::Message::Acl(acl))) => self.session.offer(&acl),
            Ok(Some(control::Message::Endpoints(endpoints))) => {
                self.session
                    .report(Report::Endpoints(read_endpoints(&endpoints)))
                    .await;
            }
            // Nothing that a node sends, or something newer than this client.
            Ok(Some(control::Message::AclApplied(_)) | None) => {}
            Err(error) => tracing::warn!(node = &*self.streams.node, %error,
                "the node sent a message that cannot be understood"),
        }
    }

    /// Tells the node which list is enforced, whichever node it came from.
    fn tell_version(&mut self) {
        let version = self.session.gateway.acl.version();
        let Some(AclVersion { epoch, generation }) = version.filter(|_| version != self.told)
        else {
            self.tell_again = false;
            return;
        };
        let applied = control::Message::AclApplied(wire::AclApplied { epoch, generation });
        let message = Control {
            message: Some(applied),
        }
        .encode_to_vec();
        match self.tunnel.send_control(message.into()) {
            Ok(()) => (self.told, self.tell_again) = (version, false),
            Err(ControlError::Full) => self.tell_again = true,
            Err(ControlError::Closed(_) | ControlError::TooLong) => self.tell_again = false,
        }
    }

    /// Ends the tunnel in good order: its streams first.
    async fn finish(
        &mut self,
        order: Order,
        incoming: &mut Incoming,
        drivers: &mut JoinSet<Closed>,
    ) -> SessionEnd {
        self.tunnel.goaway();
        let mut orders = self.session.orders.clone();
        let mut poll = interval(DRAIN_POLL);
        let mut deadline = (order >= Order::Close).then(|| self.last_words());
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            tokio::select! {
                biased;
                Some(end) = drivers.join_next() => return closed(end),
                () = ordered(orders.clone(), |order| order >= Order::Close), if deadline.is_none() => {
                    orders.mark_unchanged();
                    deadline = Some(self.last_words());
                }
                event = incoming.next() => match event {
                    // What was under way when the node had not heard of the drain yet.
                    Some(Event::Open(stream)) => stream.refuse(code::REFUSED_RETRY),
                    Some(Event::Control(message)) => self.control(message).await,
                    Some(Event::PeerDraining | Event::Detached | Event::Resumed) => {}
                    None => break,
                },
                _ = poll.tick() => if self.tunnel.active_streams() == 0 {
                    break;
                },
            }
        }
        self.tunnel.close(code::close::NONE, "");
        self.ended(drivers).await
    }

    /// Ends all streams; answers until when their resets may leave.
    fn last_words(&self) -> Instant {
        self.streams.end.cancel();
        Instant::now() + LAST_WORDS
    }

    /// Waits for the driver, which has nothing left to do.
    async fn ended(&self, drivers: &mut JoinSet<Closed>) -> SessionEnd {
        match timeout(DRIVER_END, drivers.join_next()).await {
            Ok(Some(end)) => closed(end),
            Ok(None) | Err(_) => SessionEnd::Lost {
                reason: "local",
                text: "the connection did not close in time".to_owned(),
            },
        }
    }
}

fn closed(end: Result<Closed, tokio::task::JoinError>) -> SessionEnd {
    match end {
        Ok(closed) => SessionEnd::Lost {
            reason: closed.word(),
            text: closed.to_string(),
        },
        Err(error) => SessionEnd::Lost {
            reason: "internal",
            text: error.to_string(),
        },
    }
}

/// Waits for an order of at least some strength; the end of whoever gives orders is the strongest.
async fn ordered(mut orders: watch::Receiver<Order>, enough: impl FnMut(Order) -> bool) {
    let mut enough = enough;
    if orders.wait_for(|order| enough(*order)).await.is_err() {
        tracing::trace!("the owner of a session is gone");
    }
}

fn read_endpoints(endpoints: &wire::Endpoints) -> Vec<Endpoint> {
    let read = |endpoint: &wire::Endpoint| {
        let node = NodeId::new(endpoint.node_id.as_str()).ok()?;
        let address = endpoint.address.parse().ok()?;
        Some(Endpoint { node, address })
    };
    endpoints.endpoints.iter().filter_map(read).collect()
}
