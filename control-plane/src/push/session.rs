//! One stream of one node: configuration down, acknowledgements and reports up.
//!
//! The node is known by its certificate; what it says of itself is only recorded. The session ends
//! when the node is silent, does not acknowledge, was replaced by a newer connection of the same
//! node, was removed from the store, or when this process drains.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use sg_model::{Name, NodeId};
use sg_proto::node as wire;
use sg_proto::node::control_message::Message;
use sg_proto::node::node_message::Message as Up;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::cursor::{Cursor, Next, Unacknowledged, snapshot_parts};
use super::observed::{Connection, Observed};
use crate::ids;
use crate::plan::{self, GroupPlan};
use crate::service::acl_edits::ClientEdits;
use crate::service::authority::Current;
use crate::service::nodes::NodeRegistry;
use crate::world::keeper::{View, Views};

/// A node that is silent for so long is disconnected.
pub const SILENCE: Duration = Duration::from_secs(10);
/// A change that is not acknowledged for so long ends the stream.
const ACK_TIMEOUT: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(2);
/// How long a node may be ahead of us before it is found out why.
const AHEAD: Duration = Duration::from_secs(3);
/// A message that the transport does not take for so long ends the stream.
const SEND_TIMEOUT: Duration = Duration::from_secs(20);
/// Clients' changes of one node under way at a time.
const MOST_EDITS: usize = 8;

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum End {
    /// The node closed the stream or its connection was lost.
    #[error("the node closed the stream")]
    Closed,
    /// The node said nothing for [`SILENCE`].
    #[error("the node was silent for 10 s")]
    Silent,
    /// The node broke the protocol.
    #[error("the node broke the protocol: {0}")]
    Protocol(&'static str),
    /// A change was not acknowledged in time, or could not be sent.
    #[error("the node does not take its configuration")]
    Stalled,
    /// The same node has connected anew.
    #[error("the node has connected anew")]
    Replaced,
    /// The node is not in the store (any more).
    #[error("the node was removed")]
    Removed,
    /// This control plane ends.
    #[error("the control plane is shutting down")]
    Draining,
}

/// What a session needs of the process.
#[derive(Debug, Clone)]
pub struct Sessions {
    /// The world and the plans.
    pub views: Views,
    /// Where reports go.
    pub observed: Observed,
    /// Records what nodes say of themselves.
    pub registry: NodeRegistry,
    /// Makes the changes that nodes' clients ask for.
    pub edits: ClientEdits,
    /// Id of this control plane.
    pub control_plane: String,
    /// Cancelled when this process drains.
    pub draining: CancellationToken,
}

type Sender = mpsc::Sender<Result<wire::ControlMessage, tonic::Status>>;

impl Sessions {
    /// Serves the stream of `node` until it ends.
    pub async fn serve<S>(&self, node: &NodeId, incoming: S, outgoing: &Sender) -> End
    where
        S: Stream<Item = Result<wire::NodeMessage, tonic::Status>> + Send,
    {
        let mut incoming = pin!(incoming);
        let first = tokio::select! {
            () = self.draining.cancelled() => return End::Draining,
            first = tokio::time::timeout(SILENCE, incoming.next()) => first,
        };
        let hello = match first {
            Err(_) => return End::Silent,
            Ok(Some(Ok(wire::NodeMessage {
                message: Some(Up::Hello(hello)),
            }))) => hello,
            Ok(Some(Ok(_))) => return End::Protocol("the first message must be Hello"),
            Ok(None | Some(Err(_))) => return End::Closed,
        };
        if hello.boot_id.len() > 128 {
            return End::Protocol("the boot id is too long");
        }
        let connection = self.observed.connect(node, &hello.boot_id, ids::now());
        tracing::info!(%node, name = hello.name, version = hello.version, "node connected");
        let session = Session {
            sessions: self,
            node,
            views: self.views.clone(),
            connection,
            outgoing,
            cursor: None,
            unacknowledged: None,
            nonce: 0,
            heard: Instant::now(),
            sent: Instant::now(),
            ahead_since: None,
            edits: JoinSet::new(),
        };
        // What the node says of itself is recorded beside the session, which must not wait for it.
        tokio::select! {
            end = session.run(incoming) => end,
            never = self.registry.introduce(node, hello) => match never {},
        }
    }
}

struct Session<'a> {
    sessions: &'a Sessions,
    node: &'a NodeId,
    views: Views,
    connection: Connection,
    outgoing: &'a Sender,
    cursor: Option<Cursor>,
    unacknowledged: Option<Unacknowledged>,
    nonce: u64,
    heard: Instant,
    sent: Instant,
    ahead_since: Option<Instant>,
    /// Clients' changes under way; what is not done ends with the stream, and the node asks again.
    edits: JoinSet<wire::AclEditAnswer>,
}

impl Session<'_> {
    async fn run<S>(mut self, mut incoming: std::pin::Pin<&mut S>) -> End
    where
        S: Stream<Item = Result<wire::NodeMessage, tonic::Status>> + Send,
    {
        let welcome = Message::Welcome(wire::Welcome {
            node_id: self.node.to_string(),
            control_plane_id: self.sessions.control_plane.clone(),
            control_planes: control_planes(&self.views.now()),
        });
        if let Err(end) = self.send(welcome).await {
            return end;
        }
        let mut authority = self.sessions.registry.authority();
        authority.mark_seen();
        if let Err(end) = self.send(trust(&authority, &self.views)).await {
            return end;
        }
        let mut heartbeat = interval(HEARTBEAT);
        heartbeat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            if let Err(end) = self.push().await {
                return end;
            }
            let stalled = self
                .unacknowledged
                .as_ref()
                .map(|_| self.sent + ACK_TIMEOUT);
            // All arms are cancel safe: streams, watches, timers.
            let step = tokio::select! {
                biased;
                () = self.sessions.draining.cancelled() => Err(End::Draining),
                () = self.connection.replaced().cancelled() => Err(End::Replaced),
                () = self.outgoing.closed() => Err(End::Closed),
                message = incoming.next() => match message {
                    Some(Ok(message)) => match self.receive(message) {
                        Ok(Some(answer)) => self.send(answer).await,
                        Ok(None) => Ok(()),
                        Err(end) => Err(end),
                    },
                    Some(Err(_)) | None => Err(End::Closed),
                },
                Some(Ok(answer)) = self.edits.join_next() => self.send(Message::AclEditAnswer(answer)).await,
                () = self.views.changed() => Ok(()),
                () = authority.changed() => self.send(trust(&authority, &self.views)).await,
                () = sleep_until(self.heard + SILENCE) => Err(End::Silent),
                () = until(stalled) => Err(End::Stalled),
                _ = heartbeat.tick() => self.beat().await,
            };
            if let Err(end) = step {
                return end;
            }
        }
    }

    /// Takes a message; answers what is to be sent back at once.
    fn receive(&mut self, message: wire::NodeMessage) -> Result<Option<Message>, End> {
        self.heard = Instant::now();
        match message.message {
            Some(Up::Status(status)) => self.connection.status(status),
            Some(Up::DestinationStates(states)) => self.connection.destination_states(states),
            Some(Up::Subscribe(subscribe)) => {
                tracing::debug!(node = %self.node, revision = subscribe.revision, "node subscribes");
                self.cursor = Some(Cursor::new(&subscribe));
                self.unacknowledged = None;
            }
            Some(Up::Ack(ack)) => self.acknowledged(ack),
            Some(Up::Hello(_)) => return Err(End::Protocol("a second Hello")),
            Some(Up::CertificateRequest(asked)) => {
                let answer = self.sessions.registry.certify(self.node, asked);
                return Ok(Some(Message::Certificate(answer)));
            }
            Some(Up::AclEdit(asked)) => return Ok(self.edit(asked)),
            // A newer node may say more than we know.
            None => {}
        }
        Ok(None)
    }

    /// Begins a client's change; answers at once if too many are under way.
    fn edit(&mut self, asked: wire::AclEdit) -> Option<Message> {
        if self.edits.len() < MOST_EDITS {
            let (edits, node) = (self.sessions.edits.clone(), self.node.clone());
            self.edits
                .spawn(async move { edits.answer(node, asked).await });
            return None;
        }
        let text = "too many clients of this node change lists just now; try again soon";
        Some(Message::AclEditAnswer(wire::AclEditAnswer {
            number: asked.number,
            result: Some(wire::AclEditResult::refused("too-many-edits", text, true)),
        }))
    }

    fn acknowledged(&mut self, ack: wire::Ack) {
        let Some(cursor) = &mut self.cursor else {
            return;
        };
        if ack.resync {
            tracing::info!(node = %self.node, "the node asks for everything anew");
            cursor.resync();
            self.unacknowledged = None;
            return;
        }
        // An acknowledgement of something older was overtaken by a subscription.
        let Some(sent) = self.unacknowledged.take_if(|sent| sent.nonce == ack.nonce) else {
            return;
        };
        for rejection in &ack.rejected {
            tracing::warn!(
                node = %self.node,
                object = rejection.object_id,
                generation = rejection.generation,
                reason = rejection.reason,
                message = rejection.message,
                "the node rejects an object"
            );
        }
        cursor.reached(sent.epoch, sent.revision);
        self.connection
            .applied(sent.revision, ack.rejected, &sent.objects, sent.complete);
    }

    /// Sends what the node lacks, unless something is still unacknowledged.
    async fn push(&mut self) -> Result<(), End> {
        let view = self.views.now();
        let Some(record) = view.world.node(self.node) else {
            // It may have joined through another control plane and not have come here yet.
            let known = self.sessions.registry.is_registered(self.node).await;
            return if known { Ok(()) } else { Err(End::Removed) };
        };
        let Some(plan) = view.plans.get(&record.value.group) else {
            return Ok(());
        };
        if self.unacknowledged.is_some() {
            return Ok(());
        }
        let Some(cursor) = &mut self.cursor else {
            return Ok(());
        };
        match cursor.next(plan) {
            Next::Nothing => {
                self.ahead_since = None;
                Ok(())
            }
            Next::Ahead => {
                let since = *self.ahead_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AHEAD {
                    self.ahead_since = None;
                    let (epoch, revision) = cursor.version();
                    self.sessions
                        .registry
                        .node_is_ahead(self.node, epoch, revision)
                        .await;
                }
                Ok(())
            }
            Next::Delta(delta) => self.send_delta(delta).await,
            Next::Snapshot => {
                let group = record.value.group.clone();
                self.send_snapshot(&view, &group, plan).await
            }
        }
    }

    async fn send_delta(&mut self, mut delta: wire::Delta) -> Result<(), End> {
        self.nonce += 1;
        delta.nonce = self.nonce;
        let upserts = delta
            .upserts
            .iter()
            .map(|o| sg_proto::convert::node::object_name(o).1);
        let removals = delta.removals.iter().map(|removal| removal.id.as_str());
        self.unacknowledged = Some(Unacknowledged {
            nonce: self.nonce,
            epoch: delta.epoch,
            revision: delta.to_revision,
            objects: upserts.chain(removals).map(str::to_owned).collect(),
            complete: false,
        });
        self.sent = Instant::now();
        self.send(Message::Delta(delta)).await
    }

    async fn send_snapshot(
        &mut self,
        view: &Arc<View>,
        group: &Name,
        plan: &GroupPlan,
    ) -> Result<(), End> {
        self.nonce += 1;
        let nonce = self.nonce;
        let (view, group, revision) = (Arc::clone(view), group.clone(), plan.revision);
        // Large configurations take milliseconds to write down.
        let built = tokio::task::spawn_blocking(move || {
            let config = plan::complete(&view.world, &group);
            (config.epoch(), snapshot_parts(&config, revision, nonce))
        });
        let Ok((epoch, parts)) = built.await else {
            return Err(End::Stalled);
        };
        tracing::info!(node = %self.node, revision, parts = parts.len(), "sending the whole configuration");
        self.unacknowledged = Some(Unacknowledged {
            nonce,
            epoch,
            revision,
            objects: Vec::new(),
            complete: true,
        });
        for part in parts {
            self.sent = Instant::now();
            self.send(part).await?;
        }
        Ok(())
    }

    async fn beat(&mut self) -> Result<(), End> {
        let view = self.views.now();
        let group = view.world.node(self.node).map(|node| &node.value.group);
        let revision = group
            .and_then(|group| view.plans.get(group))
            .map_or(0, |plan| plan.revision);
        let control_planes = control_planes(&view);
        self.send(Message::Heartbeat(wire::Heartbeat {
            revision,
            control_planes,
        }))
        .await
    }

    async fn send(&self, message: Message) -> Result<(), End> {
        let message = wire::ControlMessage {
            message: Some(message),
        };
        match self.outgoing.send_timeout(Ok(message), SEND_TIMEOUT).await {
            Ok(()) => Ok(()),
            Err(mpsc::error::SendTimeoutError::Timeout(_)) => Err(End::Stalled),
            Err(mpsc::error::SendTimeoutError::Closed(_)) => Err(End::Closed),
        }
    }
}

/// Whose certificates the node is to accept.
fn trust(authority: &Current, views: &Views) -> Message {
    let authority = authority.get();
    let roots = authority.trusted();
    Message::Trust(wire::Trust {
        roots_der: roots.into_iter().map(|der| der.to_vec()).collect(),
        epoch: views.now().world.epoch,
        revision: authority.revision(),
    })
}

fn control_planes(view: &View) -> Vec<String> {
    view.world
        .control_planes()
        .map(|(_, address)| address.to_owned())
        .collect()
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}
