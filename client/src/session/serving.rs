//! A tunnel that is up, from the node's answer to its end: takes streams and messages, obeys orders, and brings the tunnel a
//! new connection when it loses its own.

mod destinations;

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{AclVersion, NodeId};
use sg_proto::pieces::{self, Assembly};
use sg_proto::tunnel::{self as wire, Accepted, Control, Piece, control};
use sg_relay::{ByteCounters, TunnelInfo};
use sg_tunnel_io::{
    CloseReason, Closed, Config, ControlError, Event, Incoming, IncomingStream, Side, Tunnel, code,
};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use super::establish::{ConnectError, NodeStream, take_over};
use super::exchange;
use super::resume::{Answer, Return, Ticket};
use super::{Order, Report, Session, SessionEnd, ordered, read_endpoints};
use crate::cloud;
use crate::metrics::Resume;
use crate::stream::{self, TunnelContext};

/// How often a draining tunnel is asked whether its streams are over.
const DRAIN_POLL: Duration = Duration::from_millis(50);
/// Time for resets to leave before a tunnel is closed.
const LAST_WORDS: Duration = Duration::from_millis(250);
/// Time for the driver to deliver the close.
const DRIVER_END: Duration = Duration::from_secs(1);
/// Before a control message that found the queue full is tried again.
const CONTROL_RETRY: Duration = Duration::from_millis(200);
/// A connection that is lost sooner counts as a failed attempt to have one.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// How serving ended.
pub(super) enum Served {
    /// The session is over.
    Ended(SessionEnd),
    /// The node knew nothing of the old tunnel and has begun another on this connection.
    Anew(Box<(NodeStream, Accepted)>),
}

/// A tunnel that is up.
pub(super) struct Serving<'a> {
    session: &'a Session,
    node: &'a NodeId,
    tunnel: Tunnel,
    streams: Arc<TunnelContext>,
    /// What the tunnel can be resumed by, if it can.
    ticket: Option<Ticket>,
    /// When it got its present connection.
    attached: Instant,
    /// When it lost that.
    detached: Option<Instant>,
    /// Connections in a row that were lost soon.
    short_lives: u32,
    /// The version of the list that the node was told to be in force.
    told: Option<AclVersion>,
    /// Telling it has failed for want of room.
    tell_again: bool,
    /// A set of destinations, as far as it has come.
    destinations: Assembly,
    /// What the node was told of the client ports, and what of it has not left yet.
    told_listeners: cloud::Report,
    outbox: VecDeque<Piece>,
}

/// The tunnel and what drives it.
struct Running {
    incoming: Incoming,
    drivers: JoinSet<Closed>,
}

type Back = Pin<Box<dyn Future<Output = Answer> + Send>>;

impl<'a> Serving<'a> {
    /// Begins the tunnel that the node has accepted, and serves it to its end.
    ///
    /// # Errors
    /// The node's answer makes no sense.
    pub(super) async fn begin(
        session: &'a Session,
        node: &'a NodeId,
        stream: NodeStream,
        mut accepted: Accepted,
    ) -> Result<Served, ConnectError> {
        let (ticket, resume_time) = Ticket::take(&mut accepted)?;
        let config = Config {
            resume_time,
            ..session.gateway.shared.tunnel_config.clone()
        };
        let (tunnel, incoming, driver) =
            sg_tunnel_io::start_with(take_over(stream)?, Side::Client, config);
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        let name = match accepted.gateway_name.as_str() {
            "" => Arc::clone(&session.gateway.gateway),
            name => name.into(),
        };
        let streams = Arc::new(TunnelContext {
            gateway: Arc::clone(&session.gateway),
            gateway_name: name,
            node: node.as_str().into(),
            bytes: Arc::new(ByteCounters::new()),
            user_bytes: Arc::new(ByteCounters::new()),
            carried: session.gateway.acl.carried(),
            end: CancellationToken::new(),
        });
        let info = TunnelInfo {
            gateway: Arc::clone(&streams.gateway_name),
            peer: Arc::clone(&streams.node),
            address: session.address.to_string().into(),
        };
        let serving = Self {
            session,
            node,
            tunnel,
            streams,
            ticket,
            attached: Instant::now(),
            detached: None,
            short_lives: 0,
            told: None,
            tell_again: false,
            destinations: Assembly::default(),
            told_listeners: cloud::Report::default(),
            outbox: VecDeque::new(),
        };
        if let Some(acl) = &accepted.acl {
            session.offer(acl);
        }
        let report = Report::Up {
            gateway: accepted.gateway_id,
            node_name: accepted.node_name,
        };
        session.report(report).await;
        if let Some(endpoints) = &accepted.endpoints {
            session
                .report(Report::Endpoints(read_endpoints(endpoints)))
                .await;
        }
        session
            .gateway
            .told_name
            .get_or_init(|| Arc::clone(&serving.streams.gateway_name));
        let usable = session.gateway.tunnels.enter(
            serving.tunnel.clone(),
            Arc::clone(&serving.streams.node),
            Arc::clone(&serving.streams.user_bytes),
        );
        let posted = session
            .gateway
            .shared
            .board
            .post(info, serving.tunnel.clone());
        let served = serving.run(Running { incoming, drivers }).await;
        drop((posted, usable));
        Ok(served)
    }

    async fn run(mut self, mut running: Running) -> Served {
        let mut orders = self.session.orders.clone();
        let mut policy = self.session.gateway.acl.subscribe();
        let mut listeners = self.session.gateway.listeners.subscribe();
        listeners.mark_changed();
        let mut again = interval(CONTROL_RETRY);
        // It is seldom asked, and must not catch up then.
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = ordered(orders.clone(), |order| order >= Order::Drain);
        tokio::pin!(stop);
        let mut back: Option<Back> = None;
        self.tell_version();
        self.session.gateway.certificate.new_tunnel();
        // When the tunnel ends its streams notice by themselves: those that had ended both ways still deliver
        // what has come, the others are reset.
        loop {
            tokio::select! {
                biased;
                // Every arm but the first can be dropped at any time: nothing is taken before it
                // is answered.
                Some(end) = running.drivers.join_next() => return Served::Ended(self.closed(end)),
                () = &mut stop => {
                    let order = *orders.borrow_and_update();
                    return Served::Ended(self.finish(order, &mut running).await);
                }
                answer = arrival(&mut back) => {
                    back = None;
                    if let Some(served) = self.answered(answer, &mut running).await {
                        return served;
                    }
                }
                event = running.incoming.next() => match event {
                    Some(Event::Open(stream)) => self.open(stream),
                    Some(Event::Control(message)) => self.control(message).await,
                    Some(Event::PeerDraining) => self.session.report(Report::Draining).await,
                    Some(Event::Detached) => if back.is_none() && self.tunnel.is_detached() {
                        back = self.come_back();
                        self.session.report(Report::Detached).await;
                    },
                    // Known from the answer that it follows from.
                    Some(Event::Resumed) => {}
                    // The driver is about to end, which is the first arm.
                    None => return Served::Ended(self.ended(&mut running.drivers).await),
                },
                () = self.session.gateway.certificate.due(), if self.detached.is_none() => exchange::ask(self.session, &self.tunnel),
                Ok(()) = policy.changed() => self.tell_version(),
                Ok(()) = listeners.changed() => {
                    let report = Arc::clone(&listeners.borrow_and_update());
                    self.tell_listeners(report);
                }
                _ = again.tick(), if self.tell_again || !self.outbox.is_empty() => {
                    self.tell_version();
                    self.send_outbox();
                }
            }
        }
    }

    /// The connection is lost: the way back begins at once.
    fn come_back(&mut self) -> Option<Back> {
        let short = self.attached.elapsed() < SHORT_LIFE;
        self.short_lives = if short { self.short_lives + 1 } else { 0 };
        self.detached = Some(Instant::now());
        let way = Return {
            gateway: Arc::clone(&self.session.gateway),
            connection: self.session.connection,
            address: self.session.address.clone(),
            node: self.node.clone(),
            ticket: self.ticket.clone()?,
            short_lives: self.short_lives,
        };
        Some(Box::pin(way.run()))
    }

    /// The node has answered the client that came back. `None`: the tunnel goes on.
    async fn answered(&mut self, answer: Answer, running: &mut Running) -> Option<Served> {
        let (stream, mut accepted) = match answer {
            Answer::Accepted(accepted) => *accepted,
            Answer::Refused(error) => return Some(self.give_up(&error, running).await),
        };
        if !accepted.resumed {
            self.count(Resume::Refused);
            tracing::warn!(gateway = %self.session.gateway.gateway, address = %self.session.address,
                "the node knows nothing of the tunnel any more: its streams end, and a new tunnel begins");
            self.tunnel.abandon();
            self.ended(&mut running.drivers).await;
            return Some(Served::Anew(Box::new((stream, accepted))));
        }
        // The list first: no stream that it forbids may carry another byte (protocol 218).
        if let Some(acl) = &accepted.acl {
            self.session.offer(acl);
        }
        match Ticket::take(&mut accepted) {
            Ok((Some(new), _)) if self.ticket.as_ref().is_some_and(|t| t.same_tunnel(&new)) => {
                self.ticket = Some(new);
            }
            _ => {
                let error = ConnectError::Hello("the answer resumes another tunnel");
                return Some(self.give_up(&error, running).await);
            }
        }
        let stream = match take_over(stream) {
            Ok(stream) => stream,
            Err(error) => return Some(self.give_up(&error, running).await),
        };
        self.session.gateway.tunnels.changed();
        if let Err(closed) = self.tunnel.attach_with(stream) {
            // Its driver is about to say the same.
            tracing::debug!(%closed, "the tunnel has ended while it was resumed");
            return None;
        }
        self.attached = Instant::now();
        let after = self
            .detached
            .take()
            .map_or(Duration::ZERO, |at| at.elapsed());
        self.count(Resume::Resumed);
        self.session.report(Report::Resumed { after }).await;
        if let Some(endpoints) = &accepted.endpoints {
            self.session
                .report(Report::Endpoints(read_endpoints(endpoints)))
                .await;
        }
        None
    }

    /// There is nothing to come back to.
    async fn give_up(&self, error: &ConnectError, running: &mut Running) -> Served {
        self.count(Resume::Refused);
        self.tunnel.abandon();
        self.ended(&mut running.drivers).await;
        Served::Ended(SessionEnd::Lost {
            reason: error.reason(),
            text: format!("the tunnel cannot be resumed: {}", error.text()),
        })
    }

    fn count(&self, result: Resume) {
        let metrics = &self.session.gateway.shared.metrics;
        metrics.count_resume(&self.session.gateway.gateway, result);
    }

    fn open(&self, stream: IncomingStream) {
        match self.session.gateway.shared.streams.reserve() {
            Ok(slot) => slot.spawn(stream::serve(Arc::clone(&self.streams), stream)),
            Err(_) => stream::refuse_for_want_of_room(&self.streams, stream),
        }
    }

    async fn control(&mut self, message: Bytes) {
        match Control::decode(message).map(|control| control.message) {
            Ok(Some(control::Message::Acl(acl))) => self.session.offer(&acl),
            Ok(Some(control::Message::Endpoints(endpoints))) => {
                self.session
                    .report(Report::Endpoints(read_endpoints(&endpoints)))
                    .await;
            }
            Ok(Some(control::Message::Destinations(piece))) => self.destinations(&piece),
            Ok(Some(control::Message::Certificate(said))) => exchange::take(self.session, &said),
            Ok(Some(control::Message::Trust(said))) => exchange::trust(self.session, &said),
            Ok(Some(control::Message::AclEditAnswer(said))) => {
                self.session.gateway.edits.answered(said)
            }
            // Nothing that a node sends, or something newer than this client.
            Ok(_) => {}
            Err(error) => tracing::warn!(node = &*self.streams.node, %error,
                "the node sent a message that cannot be understood"),
        }
    }

    /// Tells the node how the client ports fare, if they fare otherwise than it knows.
    fn tell_listeners(&mut self, report: cloud::Report) {
        if report == self.told_listeners {
            return;
        }
        let message = wire::Listeners {
            listeners: report.to_vec(),
        };
        self.told_listeners = report;
        self.outbox = pieces::cut(&message.encode_to_vec()).into();
        self.send_outbox();
    }

    /// Sends what there is room for; the rest is tried again soon.
    fn send_outbox(&mut self) {
        while let Some(piece) = self.outbox.front() {
            let message = Control {
                message: Some(control::Message::Listeners(piece.clone())),
            };
            let sent = self.tunnel.send_control(message.encode_to_vec().into());
            if matches!(sent, Err(ControlError::Full)) {
                return;
            }
            self.outbox.pop_front();
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
        Running { incoming, drivers }: &mut Running,
    ) -> SessionEnd {
        // From here on a loss of the connection ends the tunnel; one that has none has nobody to wait for.
        self.tunnel.goaway();
        if self.tunnel.is_detached() {
            self.tunnel.abandon();
            return self.ended(drivers).await;
        }
        let mut orders = self.session.orders.clone();
        let mut poll = interval(DRAIN_POLL);
        let mut deadline = (order >= Order::Close).then(|| self.last_words());
        while deadline.is_none_or(|deadline| Instant::now() < deadline) {
            tokio::select! {
                biased;
                Some(end) = drivers.join_next() => return self.closed(end),
                () = ordered(orders.clone(), |order| order >= Order::Close), if deadline.is_none() => {
                    orders.mark_unchanged();
                    deadline = Some(self.last_words());
                }
                event = incoming.next() => match event {
                    // What was under way when the node had not heard of the drain yet.
                    Some(Event::Open(stream)) => stream.refuse(code::REFUSED_RETRY),
                    Some(Event::Control(message)) => self.control(message).await,
                    // The drain may not have been announced yet; there is nobody to wait for.
                    Some(Event::Detached) => self.tunnel.abandon(),
                    Some(Event::PeerDraining | Event::Resumed) => {}
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
        self.streams.carried.end_all(code::DRAINED);
        Instant::now() + LAST_WORDS
    }

    /// Waits for the driver, which has nothing left to do.
    async fn ended(&self, drivers: &mut JoinSet<Closed>) -> SessionEnd {
        match timeout(DRIVER_END, drivers.join_next()).await {
            Ok(Some(end)) => self.closed(end),
            Ok(None) | Err(_) => SessionEnd::Lost {
                reason: "local",
                text: "the connection did not close in time".to_owned(),
            },
        }
    }

    fn closed(&self, end: Result<Closed, JoinError>) -> SessionEnd {
        match end {
            Ok(closed) => {
                if matches!(closed.reason, CloseReason::Expired) {
                    self.count(Resume::Expired);
                }
                SessionEnd::Lost {
                    reason: closed.word(),
                    text: closed.to_string(),
                }
            }
            Err(error) => SessionEnd::Lost {
                reason: "internal",
                text: error.to_string(),
            },
        }
    }
}

/// Waits for the answer of a node that the client comes back to. Cancel safe.
async fn arrival(back: &mut Option<Back>) -> Answer {
    match back {
        Some(back) => back.await,
        None => std::future::pending().await,
    }
}
