//! The story of one user's connection, from the accept to the access line.
//!
//! Registered → destination looked up → access decided → tunnel chosen → stream opened → joined. No byte of
//! the user is read before the far side has connected to the resource, so a stream that cannot be opened on
//! one tunnel is tried on the next, inside the same connection; a resource that refuses is final. Whatever
//! fails before the join, the user sees a reset, and the reason is in the log and the metrics.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{
    AclVersion, Compression, Destination, DestinationId, Gateway, HostPort, NodeConfig, Protocol,
};
use sg_proto::tunnel::{StreamAnswer, StreamOpen};
use sg_relay::compress::Grant;
use sg_relay::{
    EndReason, JoinOptions, Parties, ResetOnDrop, StreamAccount, TcpEnd, join, socket_error, tune,
};
use sg_tunnel_io::{OpenError, TunnelStream, code};
use tokio::time::{Instant, interval, sleep_until, timeout};

use crate::listener::{Accepted, Occupancy, Occupied};
use crate::node::Node;
use crate::streams::Registered;
use crate::tunnels::{Choice, Health, Session};
use sg_runtime::places::Place;

/// What the node waits beyond the connect timeout that the client keeps.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How often an unanswered open looks whether its tunnel is suspect.
const SUSPECT_CHECK: Duration = Duration::from_millis(100);

/// Why a connection ended before it was joined: the word for log and metric.
pub(crate) type Refusal = &'static str;

/// Serves one connection from beginning to end.
pub(crate) async fn serve(
    node: Arc<Node>,
    accepted: Accepted,
    destination: DestinationId,
    occupancy: Occupancy,
) {
    let Accepted { tcp, user, opening } = accepted;
    let registered = node.streams.register(destination.clone());
    // Boxed, so that an open stream does not keep the room that its opening needed.
    let opened = Box::pin(open(
        &node,
        &tcp,
        user,
        &destination,
        &registered,
        &occupancy,
    ))
    .await;
    drop(opening);
    let Some(mut opened) = opened else {
        return;
    };
    // From here on nothing of the configuration is held: a stream may live for weeks.
    let session = opened.choice.session();
    let account = &mut opened.account;
    account.opened(Arc::clone(&session.client_id), &session.bytes);
    let options = JoinOptions {
        idle_timeout: opened.idle_timeout,
        counters: account.counters(),
        end: registered.end().clone(),
        compression: agreed(opened.compression, &opened.stream),
    };
    let ended = join(tcp.into_inner(), opened.stream, options).await;
    account.set_reason(ended.reason.as_str());
    if ended.reason == EndReason::TunnelLost {
        tracing::debug!(client = %session.client_id, %user, "stream lost with its tunnel");
    }
}

/// Closes the books of a connection that finds no room at all; it is reset by whoever has it.
pub(crate) fn refuse(node: &Node, user: SocketAddr, destination: &DestinationId) {
    if let Some(unlogged) = node.full_lines.may_log(Instant::now()) {
        let limit = node.connections.limit();
        tracing::warn!(%destination, limit, unlogged, "connection reset: this node has as many as it can");
    }
    let config = node.config();
    let destination = config.destination(destination);
    let gateway = destination.and_then(|d| config.gateway(&d.gateway));
    if let (Some(destination), Some(gateway)) = (destination, gateway) {
        begin(node, gateway, destination, user).set_reason(code::word(code::LIMIT));
    }
}

/// A connection whose stream is open.
struct Opened {
    stream: TunnelStream,
    account: StreamAccount,
    choice: Choice,
    idle_timeout: Option<Duration>,
    /// The compression that was offered.
    compression: Option<Grant>,
    _occupied: (Occupied, Place),
}

/// Everything before the join. `None`: the books are closed, and the connection is to be reset.
async fn open(
    node: &Node,
    tcp: &ResetOnDrop,
    user: SocketAddr,
    destination: &DestinationId,
    registered: &Registered,
    occupancy: &Occupancy,
) -> Option<Opened> {
    let config = node.config();
    let Some(destination) = config.destination(destination) else {
        tracing::debug!(%destination, "connection reset: the destination is gone");
        return None;
    };
    let Some(gateway) = config.gateway(&destination.gateway) else {
        tracing::debug!(destination = %destination.id, "connection reset: the gateway is gone");
        return None;
    };
    let mut account = begin(node, gateway, destination, user);
    let Some(occupied) = occupancy.enter(destination.max_connections) else {
        account.set_reason(code::word(code::LIMIT));
        return None;
    };
    let Some(source) = node.sources.enter(user.ip()) else {
        account.set_reason(code::word(code::LIMIT));
        return None;
    };
    let connection = Connection {
        node,
        gateway,
        destination,
        registered,
        user,
    };
    // Offered only if there is room for one more.
    let compression = Grant::take(destination.compression);
    let offer = compression.as_ref().map(Grant::compression);
    match connection
        .open(tcp, offer.unwrap_or_default(), &mut account)
        .await
    {
        Ok((stream, choice)) => Some(Opened {
            stream,
            account,
            choice,
            idle_timeout: destination.idle_timeout,
            compression,
            _occupied: (occupied, source),
        }),
        Err(reason) => {
            tracing::debug!(destination = %destination.name, %user, reason, "connection reset");
            account.set_reason(reason);
            None
        }
    }
}

/// Opens the books of a user's connection or flow.
pub(crate) fn begin(
    node: &Node,
    gateway: &Gateway,
    destination: &Destination,
    user: SocketAddr,
) -> StreamAccount {
    let meter = node.stream_metrics.destination(
        gateway.name.as_str(),
        destination.name.as_str(),
        destination.protocol.as_str(),
        TcpEnd::User,
    );
    let parties = Parties {
        client: Arc::default(),
        node: Arc::clone(&node.id_text),
        user: Some(user),
        resource: destination.resource.to_string().into(),
    };
    StreamAccount::begin(meter, TcpEnd::User, parties)
}

/// Decides over access to a destination that is to be served by `protocol`; answers the list that was decided by.
pub(crate) fn permit(
    node: &Node,
    gateway: &Gateway,
    destination: &Destination,
    registered: &Registered,
    protocol: Protocol,
) -> Result<AclVersion, Refusal> {
    let resource: &HostPort = &destination.resource;
    registered.reaches(gateway.id.clone(), resource.clone());
    if !gateway.enabled || !destination.enabled {
        return Err(code::word(code::DISABLED));
    }
    if destination.protocol != protocol {
        return Err("unsupported-protocol");
    }
    // Read again after registering, so that a change in between is not missed.
    let config: Arc<NodeConfig> = node.config();
    let acl = config.acl(&gateway.id);
    let allowed = acl.is_some_and(|acl| acl.decide(resource).allowed);
    node.metrics.decided(gateway.name.as_str(), allowed);
    match (acl, allowed) {
        (Some(acl), true) => Ok(acl.version),
        _ => Err(code::word(code::ACL_DENIED)),
    }
}

/// What the client is told of a stream or flow.
pub(crate) fn metadata(
    destination: &Destination,
    user: SocketAddr,
    acl: AclVersion,
    offer: Compression,
) -> Bytes {
    let timeout = destination.connect_timeout.as_millis();
    let open = StreamOpen {
        destination_id: destination.id.to_string(),
        destination: destination.name.to_string(),
        protocol: destination.protocol.to_string(),
        resource_host: destination.resource.host().to_string(),
        resource_port: destination.resource.port().into(),
        connect_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
        acl_epoch: acl.epoch,
        acl_generation: acl.generation,
        user_address: user.to_string(),
        compression: match offer {
            Compression::None => String::new(),
            offer => offer.to_string(),
        },
    };
    open.encode_to_vec().into()
}

/// The compression that was offered, if the client has agreed to it.
fn agreed(offered: Option<Grant>, stream: &TunnelStream) -> Option<Grant> {
    let answer = StreamAnswer::decode(stream.answer().clone()).ok()?;
    offered.filter(|grant| answer.compression == grant.compression().as_str())
}

/// How waiting for a tunnel went.
enum Wait {
    /// There is one.
    Over,
    /// There is none.
    InVain,
    /// Too many wait already.
    NoRoom,
}

struct Connection<'a> {
    node: &'a Node,
    gateway: &'a Gateway,
    destination: &'a Destination,
    registered: &'a Registered,
    user: SocketAddr,
}

impl Connection<'_> {
    /// Permits, then opens the stream.
    async fn open(
        &self,
        tcp: &ResetOnDrop,
        offer: Compression,
        account: &mut StreamAccount,
    ) -> Result<(TunnelStream, Choice), Refusal> {
        if tune(tcp.tcp()).is_err() {
            return Err("tcp-reset");
        }
        let acl = permit(
            self.node,
            self.gateway,
            self.destination,
            self.registered,
            Protocol::Tcp,
        )?;
        // Ends from outside and the user's own reset end every wait below; none of them loses anything.
        tokio::select! {
            biased;
            code = self.registered.end().ended() => Err(code::word(code)),
            _ = socket_error(tcp.tcp()) => Err("tcp-reset"),
            opened = self.open_somewhere(acl, offer, account) => opened,
        }
    }

    /// Tries tunnels of the gateway until one has opened the stream, or the resource refused.
    async fn open_somewhere(
        &self,
        acl: AclVersion,
        offer: Compression,
        account: &mut StreamAccount,
    ) -> Result<(TunnelStream, Choice), Refusal> {
        let metadata = metadata(self.destination, self.user, acl, offer);
        let mut tried = Vec::new();
        let mut held = false;
        let mut last: Option<Refusal> = None;
        loop {
            let mut chosen = self.choose(Health::Good, &tried);
            if chosen.is_none() && !held {
                held = true;
                match self.hold(&tried).await {
                    Wait::Over => continue,
                    Wait::InVain => {}
                    Wait::NoRoom => last = last.or(Some("hold-full")),
                }
            }
            if chosen.is_none() {
                // A tunnel that is slow to answer is better than none.
                chosen = self.choose(Health::Any, &tried);
            }
            let Some(choice) = chosen else {
                return Err(last.unwrap_or("no-client"));
            };
            account.set_client(Arc::clone(&choice.session().client_id));
            match self.open_on(choice.session(), &metadata, &tried).await {
                Ok(stream) => return Ok((stream, choice)),
                Err(error) if error.retry_elsewhere() => {
                    tracing::debug!(client = %choice.session().client_id, %error, "stream not opened, trying another tunnel");
                    last = Some(match error {
                        OpenError::Closed(_) => "tunnel-lost",
                        _ => code::word(error.code()),
                    });
                    tried.push(choice.session().number);
                }
                Err(error) => return Err(code::word(error.code())),
            }
        }
    }

    fn choose(&self, health: Health, tried: &[u64]) -> Option<Choice> {
        let gateway = &self.gateway.id;
        self.node
            .registry
            .choose(gateway, self.gateway.policy, health, tried)
    }

    /// Opens the stream on one tunnel, within the connect timeout and a grace, and gives it up for another
    /// tunnel when this one returns nothing.
    async fn open_on(
        &self,
        session: &Session,
        metadata: &Bytes,
        tried: &[u64],
    ) -> Result<TunnelStream, OpenError> {
        let deadline = Instant::now() + self.destination.connect_timeout + ANSWER_GRACE;
        // Dropped when another arm is first: that resets the stream, so that a late answer opens nothing.
        let open = session.tunnel.open(metadata.clone());
        tokio::pin!(open);
        let mut check = interval(SUSPECT_CHECK);
        check.tick().await;
        loop {
            tokio::select! {
                biased;
                opened = &mut open => return opened,
                () = sleep_until(deadline) => {
                    return Err(OpenError::Reset { code: code::CONNECT_TIMEOUT });
                }
                _ = check.tick() => {
                    let registry = &self.node.registry;
                    if (session.tunnel.is_suspect() || session.tunnel.is_detached())
                        && registry.has_other(&self.gateway.id, session.number, tried)
                    {
                        return Err(OpenError::Reset { code: code::REFUSED_RETRY });
                    }
                }
            }
        }
    }

    /// Waits, unread, for a tunnel to come (back), if the gateway had one lately and there is room to wait.
    async fn hold(&self, tried: &[u64]) -> Wait {
        let registry = &self.node.registry;
        if !registry.had_tunnel_lately(&self.gateway.id) {
            return Wait::InVain;
        }
        let Some(held) = self.node.hold.enter() else {
            if let Some(unlogged) = self.node.full_lines.may_log(Instant::now()) {
                tracing::warn!(gateway = %self.gateway.name, unlogged, "too many connections wait for a client");
            }
            return Wait::NoRoom;
        };
        let available = registry.available(&self.gateway.id, tried);
        match timeout(held.limit(), available).await {
            Ok(()) => Wait::Over,
            Err(_) => Wait::InVain,
        }
    }
}
