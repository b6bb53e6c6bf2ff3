//! One stream, top to bottom: what the node asks for, whether the lists allow it, the dial, the
//! answer, the relay, the end.
//!
//! A flow of datagrams has the same story, with a socket of its own for each user.
//!
//! The node has sent nothing of the user's before the answer, so a refused stream can be tried on
//! another client. Work that nobody waits for any more stops: a dial ends when its opener gives up.

use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::{AclVersion, CanonicalPath, DestinationId, HostPort, Protocol, Scope};
use sg_proto::tunnel::{StreamAnswer, StreamOpen};
use sg_relay::compress::Grant;
use sg_relay::http::HttpVersion;
use sg_relay::udp::{dial_udp, join_flow};
use sg_relay::{
    Approach, ByteCounters, DialError, JoinOptions, Parties, Purpose, ReachError, Reached, Redial,
    Relaying, StreamAccount, StreamEnd,
};
use sg_tunnel_io::{IncomingStream, code};
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use crate::acl::{self, AclState, Policy};
use crate::gateway::GatewayContext;
use crate::session::carried::Carried;

/// How long a dial may take if the node does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// However long the node says.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a stream waits for a list that its node has and this client has not yet.
const ACL_WAIT: Duration = Duration::from_secs(1);

/// What the streams of one tunnel have in common.
#[derive(Debug)]
pub struct TunnelContext {
    /// The gateway that the tunnel is for.
    pub gateway: Arc<GatewayContext>,
    /// The gateway's name, for people.
    pub gateway_name: Arc<str>,
    /// The node at the other end.
    pub node: Arc<str>,
    /// Bytes of all streams of the tunnel whose resource is here.
    pub bytes: Arc<ByteCounters>,
    /// Bytes of all streams of the tunnel whose user is here.
    pub user_bytes: Arc<ByteCounters>,
    /// Its open streams.
    pub carried: Carried,
    /// Ends the dials of all streams that are being opened.
    pub end: CancellationToken,
}

/// Why a stream was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Refusal {
    code: u32,
    word: &'static str,
}

impl From<u32> for Refusal {
    fn from(code: u32) -> Self {
        Self {
            code,
            word: code::word(code),
        }
    }
}

impl From<ReachError> for Refusal {
    fn from(error: ReachError) -> Self {
        tracing::debug!(reason = error.as_str(), %error, "resource not reached");
        Self {
            code: error.code(),
            word: error.as_str(),
        }
    }
}

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Self {
        Self {
            code: error.code(),
            word: error.as_str(),
        }
    }
}

/// Serves one stream to its end.
pub async fn serve(tunnel: Arc<TunnelContext>, incoming: IncomingStream) {
    // Boxed one after the other, so that an open stream does not keep the room that its opening needed.
    if let Some(carrying) = Box::pin(open(tunnel, incoming)).await {
        carrying.await;
    }
}

/// Reaches the resource and accepts the stream; `None`: it is refused, and the books are closed.
async fn open(tunnel: Arc<TunnelContext>, mut incoming: IncomingStream) -> Option<Carrying> {
    let Some((open, resource, mut account)) = begin(&tunnel, &incoming) else {
        incoming.refuse(code::INTERNAL);
        return None;
    };
    let is_flow = incoming.is_flow();
    let connected = tokio::select! {
        biased;
        // The opener gave up, or the tunnel is gone: dropping the dial ends it.
        why = incoming.cancelled() => Err(Refusal::from(why.code())),
        () = tunnel.end.cancelled() => Err(Refusal::from(code::REFUSED_RETRY)),
        connected = connect(&tunnel, &open, &resource, is_flow) => connected,
    };
    // Accepted if it is understood, and there is room for one more.
    let compression = Grant::take(open.compression.parse().unwrap_or_default());
    let connected = match connected {
        Ok(connected) => connected,
        Err(refusal) => {
            account.set_reason(refusal.word);
            incoming.refuse(refusal.code);
            return None;
        }
    };
    account.opened(Arc::clone(&tunnel.gateway.shared.client_id), &tunnel.bytes);
    Some(carry(
        tunnel,
        account,
        resource,
        (connected, open),
        (incoming, compression),
    ))
}

/// Refuses a stream that there is no room for, and keeps the books about it.
pub fn refuse_for_want_of_room(tunnel: &TunnelContext, incoming: IncomingStream) {
    if let Some((_, _, mut account)) = begin(tunnel, &incoming) {
        account.set_reason(code::word(code::LIMIT));
    }
    incoming.refuse(code::LIMIT);
}

/// Reads what the node asks for and opens the books; `None` if it cannot be understood.
fn begin(
    tunnel: &TunnelContext,
    incoming: &IncomingStream,
) -> Option<(StreamOpen, HostPort, StreamAccount)> {
    let Some((open, resource)) = read(incoming.metadata().clone()) else {
        tracing::warn!(
            node = &*tunnel.node,
            "the node opened a stream that cannot be understood"
        );
        return None;
    };
    let shared = &tunnel.gateway.shared;
    let protocol = open.protocol.parse().unwrap_or(Protocol::Tcp);
    let meter = shared
        .metrics
        .destination(&tunnel.gateway_name, &open.destination, protocol);
    let parties = Parties {
        client: Arc::clone(&shared.client_id),
        node: Arc::clone(&tunnel.node),
        user: open.user_address.parse().ok(),
        resource: resource.to_string().into(),
    };
    let account = StreamAccount::begin(meter, sg_relay::TcpEnd::Resource, parties);
    Some((open, resource, account))
}

fn read(metadata: bytes::Bytes) -> Option<(StreamOpen, HostPort)> {
    let open = StreamOpen::decode(metadata).ok()?;
    let resource = open.resource().ok()?;
    Some((open, resource))
}

/// What is connected to the resource.
enum Connected {
    Stream(Approach, Box<Reached>),
    Flow(UdpSocket),
}

impl Connected {
    fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Stream(_, reached) => reached.address,
            Self::Flow(udp) => udp.peer_addr().ok().map(|address| address.ip()),
        }
    }
}

/// Decides and dials.
async fn connect(
    tunnel: &TunnelContext,
    open: &StreamOpen,
    resource: &HostPort,
    is_flow: bool,
) -> Result<Connected, Refusal> {
    let protocol = open.protocol.parse::<Protocol>();
    if !protocol.is_ok_and(|protocol| (protocol == Protocol::Udp) == is_flow) {
        // A newer node; another client of the gateway may know the protocol.
        return Err(code::REFUSED_RETRY.into());
    }
    let asked = AclVersion {
        epoch: open.acl_epoch,
        generation: open.acl_generation,
    };
    let lists = &tunnel.gateway.acl;
    let present = wait_for_version(lists, asked).await;
    decide(tunnel, &present, resource, scope_of(open))?;
    let limit = limit_of(open);
    let Some(permission) = tunnel.gateway.shared.dials.enter(limit).await else {
        return Err(code::LIMIT.into());
    };
    let connected = if is_flow {
        let permit = permit_of(tunnel, &present, resource, Scope::Stream);
        Connected::Flow(dial_udp(resource, permission.left, permit).await?)
    } else {
        let approach = approach(tunnel, open, resource).await?;
        let reached = reach(tunnel, open, &approach, &present, permission.left).await?;
        Connected::Stream(approach, Box::new(reached))
    };
    // The lists may have changed during the dial.
    let address = connected.address();
    if !lists
        .policy()
        .allows_open(resource, address, scope_of(open))
    {
        return Err(code::ACL_DENIED.into());
    }
    Ok(connected)
}

/// What is decided about a stream before any request is known.
fn scope_of(open: &StreamOpen) -> Scope<'static> {
    if open.http == 0 {
        Scope::Stream
    } else {
        Scope::AnyPath
    }
}

fn decide(
    tunnel: &TunnelContext,
    policy: &Policy,
    resource: &HostPort,
    scope: Scope<'_>,
) -> Result<(), Refusal> {
    let allowed = policy.allows_for(resource, scope);
    let metrics = &tunnel.gateway.shared.metrics;
    metrics.count_decision(&tunnel.gateway_name, allowed);
    if allowed {
        Ok(())
    } else {
        Err(code::ACL_DENIED.into())
    }
}

fn limit_of(open: &StreamOpen) -> Duration {
    match open.connect_timeout_ms {
        0 => CONNECT_TIMEOUT,
        millis => Duration::from_millis(millis.into()).min(LONGEST_CONNECT_TIMEOUT),
    }
}

/// Which addresses of a target may be connected to.
fn permit_of(
    tunnel: &TunnelContext,
    policy: &Policy,
    target: &HostPort,
    scope: Scope<'static>,
) -> impl Fn(&IpAddr) -> bool + Send + Sync {
    move |ip: &IpAddr| {
        policy.allows_address(target, *ip, scope)
            && !acl::is_own(&tunnel.gateway.shared.own_ports, *ip, target.port())
    }
}

/// The way to the resource: by what the node has told of the destination before, or by what the opening says.
async fn approach(
    tunnel: &TunnelContext,
    open: &StreamOpen,
    resource: &HostPort,
) -> Result<Approach, Refusal> {
    if !open.look_up {
        let keepalive = u64::from(open.keepalive_s);
        let keepalive = (keepalive > 0).then(|| Duration::from_secs(keepalive));
        return Ok(Approach::plain(resource.clone(), open.http != 0, keepalive));
    }
    let id = DestinationId::new(&open.destination_id).map_err(|_| code::INTERNAL)?;
    let known = tunnel.gateway.known.wait_for(&id, open.generation).await;
    // Another client of the gateway may have heard of it already.
    let known = known
        .filter(|known| known.destination.resource == *resource)
        .ok_or(code::REFUSED_RETRY)?;
    known.approach().cloned().map_err(|why| {
        tracing::warn!(
            destination = open.destination,
            why,
            "the destination's certificates cannot be used"
        );
        code::TLS_FAILED.into()
    })
}

async fn reach(
    tunnel: &TunnelContext,
    open: &StreamOpen,
    approach: &Approach,
    policy: &Policy,
    limit: Duration,
) -> Result<Reached, Refusal> {
    let user = open.user().ok_or(code::INTERNAL)?;
    let permit = permit_of(tunnel, policy, approach.resource(), scope_of(open));
    // A proxy is a target like any other: it must be allowed by the list.
    let permit_proxy = |proxy: &HostPort, ip: &IpAddr| {
        policy.allows(proxy) && permit_of(tunnel, policy, proxy, Scope::Stream)(ip)
    };
    let purpose = Purpose {
        limit,
        permit: &permit,
        permit_proxy: &permit_proxy,
        user: &user,
        alpn: &open.alpn,
        http: HttpVersion::of_number(open.http),
    };
    Ok(approach.connect(purpose).await?)
}

/// The lists, once they are as new as the node's; after [`ACL_WAIT`] as they are.
async fn wait_for_version(lists: &AclState, asked: AclVersion) -> Arc<Policy> {
    let is_new_enough = |policy: &Arc<Policy>| policy.version() >= Some(asked);
    let present = lists.policy();
    if is_new_enough(&present) {
        return present;
    }
    let mut changes = lists.subscribe();
    // Boxed: it is seldom needed.
    let newer = Box::pin(timeout(ACL_WAIT, changes.wait_for(is_new_enough)));
    drop(newer.await);
    lists.policy()
}

/// An accepted stream on its way to its end.
type Carrying = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Accepts a stream; the future relays until it ends, or is ended because it may no longer go on, and closes the books.
fn carry(
    tunnel: Arc<TunnelContext>,
    mut account: StreamAccount,
    resource: HostPort,
    (connected, open): (Connected, StreamOpen),
    (incoming, compression): (IncomingStream, Option<Grant>),
) -> Carrying {
    let end = StreamEnd::new();
    let address = connected.address();
    let scope = scope_of(&open);
    let lists = &tunnel.gateway.acl;
    let entered = tunnel
        .carried
        .enter(lists, resource, address, scope, end.clone());
    let options = JoinOptions {
        idle_timeout: None,
        counters: account.counters(),
        end,
        compression: None,
    };
    let relaying: Relaying = match connected {
        Connected::Stream(approach, reached) => {
            let answer = StreamAnswer {
                compression: compression
                    .as_ref()
                    .map(|grant| grant.compression().to_string())
                    .unwrap_or_default(),
                alpn: reached.alpn.clone().unwrap_or_default(),
            };
            let stream = incoming.accept_with(answer.encode_to_vec().into());
            let options = JoinOptions {
                compression,
                ..options
            };
            let http = HttpVersion::of_number(open.http);
            let drain = tunnel.gateway.shared.draining.clone();
            let redial = http.map(|_| ClientRedial {
                tunnel: Arc::clone(&tunnel),
                number: entered.number(),
                open: Box::new(open),
                approach: approach.clone(),
            });
            approach.carry(stream, *reached, http, options, redial, drain)
        }
        Connected::Flow(udp) => {
            let (flow, meter) = (incoming.accept_flow(), Arc::clone(account.meter()));
            Box::pin(async move { join_flow(udp, flow, &meter, options).await.reason.as_str() })
        }
    };
    Box::pin(async move {
        let reason = relaying.await;
        drop(entered);
        account.set_reason(reason);
    })
}

/// Makes further connections for the requests of one stream.
struct ClientRedial {
    tunnel: Arc<TunnelContext>,
    /// The stream's, in the tunnel's [`Carried`].
    number: u64,
    open: Box<StreamOpen>,
    approach: Approach,
}

impl Redial for ClientRedial {
    async fn connect(&self) -> Result<Reached, &'static str> {
        let resource = self.approach.resource();
        let tunnel = &self.tunnel;
        let policy = tunnel.gateway.acl.policy();
        decide(tunnel, &policy, resource, Scope::AnyPath).map_err(|refusal| refusal.word)?;
        let limit = limit_of(&self.open);
        let permission = tunnel.gateway.shared.dials.enter(limit).await;
        let permission = permission.ok_or(code::word(code::LIMIT))?;
        let reached = reach(tunnel, &self.open, &self.approach, &policy, permission.left)
            .await
            .map_err(|refusal| refusal.word)?;
        // The lists may have changed during the dial; from here on they are decided over this address as well.
        let lists = &tunnel.gateway.acl;
        match tunnel.carried.reaches(lists, self.number, reached.address) {
            true => Ok(reached),
            false => Err(code::word(code::ACL_DENIED)),
        }
    }

    fn permit_path(&self, path: &CanonicalPath) -> Result<(), &'static str> {
        let policy = self.tunnel.gateway.acl.policy();
        let resource = self.approach.resource();
        decide(&self.tunnel, &policy, resource, Scope::Path(path)).map_err(|refusal| refusal.word)
    }
}
