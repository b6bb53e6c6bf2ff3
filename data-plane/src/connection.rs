//! The story of one user's connection, from the accept to the access line.
//!
//! Registered → destination looked up → source decided → received (TLS, HTTP) → access decided → tunnel chosen →
//! stream opened → joined. How a user is received is in [`sg_relay::Reception`]; here is where its streams come from.
//!
//! No byte that is for the resource is read before the far side has connected to it, so a stream that cannot be opened
//! on one tunnel is tried on the next, inside the same connection; a resource that refuses is final. Whatever fails
//! before that, the user sees a reset (of HTTP an answer), and the reason is in the log and the metrics.

mod opening;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use sg_model::{
    AclVersion, CanonicalPath, Compression, Destination, DestinationId, Gateway, HostPort,
    NodeConfig, Protocol, Scope,
};
use sg_proto::tunnel::StreamOpen;
use sg_relay::http::HttpVersion;
use sg_relay::proxy_protocol::HeaderError;
use sg_relay::{
    Parties, ReceiveOptions, Reception, ResetOnDrop, StreamAccount, TcpEnd, Wish, tune_accepted,
};
use sg_tunnel_io::code;
use tokio::time::Instant;

use self::opening::UserOpener;
use crate::balancers::Ends;
use crate::for_clients;
use crate::listener::Accepted;
use crate::node::{Node, now};
use crate::streams::Registered;
use crate::tunnels::Choice;
use sg_runtime::places::{Occupancy, Occupied, Place};

/// Why a connection ended before it was joined: the word for log and metric.
pub(crate) type Refusal = &'static str;

/// Serves one connection from beginning to end.
pub(crate) async fn serve(
    node: Arc<Node>,
    accepted: Accepted,
    destination: DestinationId,
    occupancy: Occupancy,
) {
    let Accepted {
        mut tcp,
        peer,
        opening,
    } = accepted;
    let Ends { user, local } = match node.balancers.ends(tcp.tcp_mut(), peer).await {
        Ok(ends) => ends,
        Err(HeaderError::Probe) => return,
        Err(error) => {
            tracing::debug!(%destination, %peer, %error, "connection reset");
            return close_books(&node, peer, &destination, error.as_str());
        }
    };
    let registered = node.streams.register(destination.clone(), user);
    // Boxed, so that an open stream does not keep the room that its opening needed.
    let Some(begun) = Box::pin(begin_story(&node, &tcp, user, registered, &occupancy)).await else {
        return;
    };
    let Begun {
        reception,
        story,
        idle_timeout,
        held,
    } = begun;
    let options = {
        let account = story.account();
        ReceiveOptions {
            user,
            idle_timeout,
            counters: account.counters(),
            end: story.registered.end().clone(),
            drain: node.shutdown.draining(),
            meter: Some(Arc::clone(account.meter())),
        }
    };
    let opener = UserOpener {
        node,
        destination,
        local,
        user,
        story: Arc::clone(&story),
        opening: Mutex::new(Some(opening)),
    };
    // From here on nothing of the configuration is held: a stream may live for weeks.
    let reason = reception.serve(tcp, opener, options).await;
    story.account().set_reason(reason);
    drop(held);
}

/// What a connection is known by while it lasts.
#[derive(Debug)]
struct Story {
    /// Where a changed policy finds it.
    registered: Registered,
    account: Mutex<StreamAccount>,
    /// The tunnel that carries its stream.
    choice: Mutex<Option<Choice>>,
}

impl Story {
    fn account(&self) -> MutexGuard<'_, StreamAccount> {
        self.account.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn carried_by(&self, choice: Choice) {
        let before = self
            .choice
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(choice);
        drop(before);
    }
}

/// A connection that may go on.
struct Begun {
    reception: Reception,
    story: Arc<Story>,
    idle_timeout: Option<Duration>,
    held: (Occupied, Place),
}

/// Everything before the first byte is read. `None`: the books are closed, and the connection is to be reset.
async fn begin_story(
    node: &Node,
    tcp: &ResetOnDrop,
    user: SocketAddr,
    registered: Registered,
    occupancy: &Occupancy,
) -> Option<Begun> {
    let config = node.config();
    let id = registered.destination().clone();
    let id = &id;
    let Some(destination) = config.destination(id) else {
        tracing::debug!(destination = %id, "connection reset: the destination is gone");
        return None;
    };
    let Some(gateway) = config.gateway(&destination.gateway) else {
        tracing::debug!(destination = %destination.id, "connection reset: the gateway is gone");
        return None;
    };
    let mut account = begin(node, gateway, destination, user);
    let mut refuse = |reason: Refusal| {
        tracing::debug!(destination = %destination.name, %user, reason, "connection reset");
        account.set_reason(reason);
    };
    if let Err(reason) = admit(node, gateway, destination, user) {
        refuse(reason);
        return None;
    }
    let places = occupancy
        .enter(destination.max_connections)
        .zip(node.sources.enter(user.ip()));
    let Some(held) = places else {
        refuse(code::word(code::LIMIT));
        return None;
    };
    if tune_accepted(tcp.tcp(), destination.keepalive).is_err() {
        refuse("tcp-reset");
        return None;
    }
    let reception = match node.receptions.of(destination) {
        Ok(reception) => reception,
        Err(why) => {
            tracing::warn!(destination = %destination.name, %why, "connection reset: its certificates cannot be used");
            refuse(code::word(code::TLS_FAILED));
            return None;
        }
    };
    Some(Begun {
        reception,
        story: Arc::new(Story {
            registered,
            account: Mutex::new(account),
            choice: Mutex::default(),
        }),
        idle_timeout: destination.idle_timeout,
        held,
    })
}

/// Decides by where the user connects from.
pub(crate) fn admit(
    node: &Node,
    gateway: &Gateway,
    destination: &Destination,
    user: SocketAddr,
) -> Result<(), Refusal> {
    if destination.user_end.sources.admits(user, now()) {
        return Ok(());
    }
    node.metrics
        .source_denied(gateway.name.as_str(), destination.name.as_str());
    Err("source-denied")
}

/// Closes the books of a connection that finds no room at all; it is reset by whoever has it.
pub(crate) fn refuse(node: &Node, user: SocketAddr, destination: &DestinationId) {
    if let Some(unlogged) = node.full_lines.may_log(Instant::now()) {
        let limit = node.connections.limit();
        tracing::warn!(%destination, limit, unlogged, "connection reset: this node has as many as it can");
    }
    close_books(node, user, destination, code::word(code::LIMIT));
}

/// Opens and closes the books of a connection of which nothing is to be decided any more.
fn close_books(node: &Node, user: SocketAddr, destination: &DestinationId, reason: Refusal) {
    let config = node.config();
    let destination = config.destination(destination);
    let gateway = destination.and_then(|d| config.gateway(&d.gateway));
    if let (Some(destination), Some(gateway)) = (destination, gateway) {
        begin(node, gateway, destination, user).set_reason(reason);
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

/// Decides over access to a destination for a user; answers the list that was decided by.
pub(crate) fn permit(
    node: &Node,
    gateway: &Gateway,
    destination: &Destination,
    registered: &Registered,
    user: SocketAddr,
    path: Option<&CanonicalPath>,
) -> Result<AclVersion, Refusal> {
    let resource: &HostPort = &destination.resource;
    registered.reaches(gateway.id.clone(), resource.clone());
    if !gateway.enabled || !destination.enabled {
        return Err(code::word(code::DISABLED));
    }
    admit(node, gateway, destination, user)?;
    // Read again after registering, so that a change in between is not missed.
    let config: Arc<NodeConfig> = node.config();
    let acl = config.acl(&gateway.id);
    let scope = match path {
        Some(path) => Scope::Path(path),
        None => scope_of(destination.protocol),
    };
    let allowed = acl.is_some_and(|acl| acl.decide_for(resource, scope).allowed);
    node.metrics.decided(gateway.name.as_str(), allowed);
    match (acl, allowed) {
        (Some(acl), true) => Ok(acl.version),
        _ => Err(code::word(code::ACL_DENIED)),
    }
}

/// What is decided about a stream before any request is known.
pub(crate) fn scope_of(protocol: Protocol) -> Scope<'static> {
    if protocol.is_http() {
        Scope::AnyPath
    } else {
        Scope::Stream
    }
}

/// What a stream is asked for beside what its destination says.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    /// What the user's side has shown, and wants.
    pub(crate) wish: Wish,
    /// The compression that is offered.
    pub(crate) compression: Compression,
}

/// What the client is told of a stream or flow.
pub(crate) fn metadata(
    destination: &Destination,
    Ends { user, local }: Ends,
    acl: AclVersion,
    asked: &Asked,
) -> Bytes {
    let timeout = destination.connect_timeout.as_millis();
    let mut open = StreamOpen {
        destination_id: destination.id.to_string(),
        destination: destination.name.to_string(),
        protocol: destination.protocol.to_string(),
        resource_host: destination.resource.host().to_string(),
        resource_port: destination.resource.port().into(),
        connect_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
        acl_epoch: acl.epoch,
        acl_generation: acl.generation,
        user_address: user.to_string(),
        generation: destination.generation,
        look_up: for_clients::needs_look_up(destination),
        keepalive_s: keepalive_seconds(destination),
        compression: match asked.compression {
            Compression::None => String::new(),
            offer => offer.to_string(),
        },
        ..StreamOpen::default()
    };
    open.http = asked.wish.http.map_or(0, HttpVersion::number);
    open.tell_of_user(local, asked.wish.tls.as_ref(), &asked.wish.alpn);
    open.encode_to_vec().into()
}

fn keepalive_seconds(destination: &Destination) -> u32 {
    let seconds = destination.keepalive.map_or(0, |time| time.as_secs());
    u32::try_from(seconds).unwrap_or(u32::MAX)
}
