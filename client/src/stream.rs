//! One stream, top to bottom: what the node asks for, whether the lists allow it, the dial, the
//! answer, the relay, the end.
//!
//! A flow of datagrams has the same story, with a socket of its own for each user.
//!
//! The node has sent nothing of the user's before the answer, so a refused stream can be tried on
//! another client. Work that nobody waits for any more stops: a dial ends when its opener gives up.

use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::{AclVersion, HostPort, Protocol, Scope};
use sg_proto::tunnel::{StreamAnswer, StreamOpen};
use sg_relay::compress::Grant;
use sg_relay::udp::{dial_udp, join_flow};
use sg_relay::{ByteCounters, DialError, Ended, JoinOptions, Parties, StreamAccount, StreamEnd};
use sg_runtime::gate::{First, race};
use sg_tunnel_io::{IncomingStream, code};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::acl::{self, Policy};
use crate::gateway::GatewayContext;
use crate::session::carried::Carried;

/// Streams that may wait for a dial to begin.
const MOST_WAITING: usize = 4096;
/// How long a dial may take if the node does not say.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// However long the node says.
const LONGEST_CONNECT_TIMEOUT: Duration = Duration::from_secs(180);
/// How long a stream waits for a list that its node has and this client has not yet.
const ACL_WAIT: Duration = Duration::from_secs(1);

/// Bounds the dials of the process.
#[derive(Debug)]
pub struct DialGate {
    places: Semaphore,
    running: Semaphore,
}

impl DialGate {
    /// At most `most` dials at a time; each holds a descriptor and, for a name, a place at the resolver.
    #[must_use]
    pub fn new(most: u32) -> Self {
        let most = most as usize;
        Self {
            places: Semaphore::new(most + MOST_WAITING),
            running: Semaphore::new(most),
        }
    }
}

impl DialGate {
    /// Waits for permission to dial, in order of arrival; what is left of `limit` is for the dial.
    /// `None` when too many wait already, or the wait takes all of `limit`.
    async fn enter(&self, limit: Duration) -> Option<Permission<'_>> {
        let end = Instant::now() + limit;
        let place = self.places.try_acquire().ok()?;
        let running = timeout(limit, self.running.acquire()).await.ok()?.ok()?;
        let left = end.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(Permission {
            left,
            _held: (running, place),
        })
    }
}

/// Permission to dial while it is held.
#[derive(Debug)]
struct Permission<'a> {
    /// How long the dial may take.
    left: Duration,
    _held: (SemaphorePermit<'a>, SemaphorePermit<'a>),
}

/// What the streams of one tunnel have in common.
#[derive(Debug)]
pub struct TunnelContext {
    /// The gateway that the tunnel is for.
    pub gateway: Arc<GatewayContext>,
    /// The gateway's name, for people.
    pub gateway_name: Arc<str>,
    /// The node at the other end.
    pub node: Arc<str>,
    /// Bytes of all streams of the tunnel.
    pub bytes: Arc<ByteCounters>,
    /// Its open streams.
    pub carried: Carried,
    /// Ends all streams of the tunnel.
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

impl From<DialError> for Refusal {
    fn from(error: DialError) -> Self {
        Self {
            code: error.code(),
            word: error.as_str(),
        }
    }
}

/// Serves one stream to its end.
pub async fn serve(tunnel: Arc<TunnelContext>, mut incoming: IncomingStream) {
    let Some((open, resource, mut account)) = begin(&tunnel, &incoming) else {
        return incoming.refuse(code::INTERNAL);
    };
    let mut policy = tunnel.gateway.acl.subscribe();
    let is_flow = incoming.is_flow();
    let connected = tokio::select! {
        biased;
        // The opener gave up, or the tunnel is gone: dropping the dial ends it.
        why = incoming.cancelled() => Err(Refusal::from(why.code())),
        () = tunnel.end.cancelled() => Err(Refusal::from(code::REFUSED_RETRY)),
        // Boxed, so that an open stream does not keep the room that its dial needed.
        connected = Box::pin(connect(&tunnel, &open, &resource, is_flow, &mut policy)) => connected,
    };
    // Accepted if it is understood, and there is room for one more.
    let compression = Grant::take(open.compression.parse().unwrap_or_default());
    drop(open);
    let socket = match connected {
        Ok(socket) => socket,
        Err(refusal) => {
            account.set_reason(refusal.word);
            return incoming.refuse(refusal.code);
        }
    };
    account.opened(Arc::clone(&tunnel.gateway.shared.client_id), &tunnel.bytes);
    let reason = relay(
        &tunnel,
        &account,
        policy,
        &resource,
        socket,
        (incoming, compression),
    )
    .await;
    account.set_reason(reason);
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
    let protocol = if incoming.is_flow() {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
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
enum Socket {
    Tcp(TcpStream),
    Udp(UdpSocket),
}

impl Socket {
    fn address(&self) -> Option<IpAddr> {
        let address = match self {
            Self::Tcp(tcp) => tcp.peer_addr(),
            Self::Udp(udp) => udp.peer_addr(),
        };
        address.ok().map(|address| address.ip())
    }
}

/// Decides and dials.
async fn connect(
    tunnel: &TunnelContext,
    open: &StreamOpen,
    resource: &HostPort,
    is_flow: bool,
    policy: &mut watch::Receiver<Arc<Policy>>,
) -> Result<Socket, Refusal> {
    let protocol = if is_flow {
        Protocol::Udp
    } else {
        Protocol::Tcp
    };
    if open.protocol != protocol.as_str() {
        // A newer node; another client of the gateway may know the protocol.
        return Err(code::REFUSED_RETRY.into());
    }
    let shared = &tunnel.gateway.shared;
    let asked = AclVersion {
        epoch: open.acl_epoch,
        generation: open.acl_generation,
    };
    let present = wait_for_version(policy, asked).await;
    let allowed = present.allows(resource);
    shared.metrics.count_decision(&tunnel.gateway_name, allowed);
    if !allowed {
        return Err(code::ACL_DENIED.into());
    }
    let limit = match open.connect_timeout_ms {
        0 => CONNECT_TIMEOUT,
        millis => Duration::from_millis(millis.into()).min(LONGEST_CONNECT_TIMEOUT),
    };
    let Some(permission) = shared.dials.enter(limit).await else {
        return Err(code::LIMIT.into());
    };
    let permit = |ip: &IpAddr| {
        present.allows_address(resource, *ip, Scope::Stream)
            && !acl::is_own(&shared.own_ports, *ip, resource.port())
    };
    let socket = if protocol == Protocol::Udp {
        Socket::Udp(dial_udp(resource, permission.left, permit).await?)
    } else {
        Socket::Tcp(sg_relay::dial(resource, permission.left, permit).await?)
    };
    // The lists may have changed during the dial.
    let address = socket.address();
    if !policy.borrow_and_update().allows_stream(resource, address) {
        return Err(code::ACL_DENIED.into());
    }
    Ok(socket)
}

/// The lists, once they are as new as the node's; after [`ACL_WAIT`] as they are.
async fn wait_for_version(
    policy: &mut watch::Receiver<Arc<Policy>>,
    asked: AclVersion,
) -> Arc<Policy> {
    let new_enough =
        policy.wait_for(|policy| policy.version().is_some_and(|present| present >= asked));
    if let Ok(Ok(policy)) = timeout(ACL_WAIT, new_enough).await {
        return Arc::clone(&policy);
    }
    Arc::clone(&policy.borrow())
}

/// Accepts and relays until the stream ends, or may no longer go on; answers the word for it.
async fn relay(
    tunnel: &TunnelContext,
    account: &StreamAccount,
    mut policy: watch::Receiver<Arc<Policy>>,
    resource: &HostPort,
    socket: Socket,
    (incoming, compression): (IncomingStream, Option<Grant>),
) -> &'static str {
    let end = StreamEnd::new();
    let address = socket.address();
    let _entered = tunnel.carried.enter(resource.clone(), address, end.clone());
    let options = JoinOptions {
        idle_timeout: None,
        counters: account.counters(),
        end: end.clone(),
        compression: None,
    };
    // Pinned here: futures that are handed on by value keep room for themselves twice.
    let revoked = pin!(revoked(tunnel, &mut policy, resource, address));
    let ended = match socket {
        Socket::Tcp(tcp) => {
            let answer = StreamAnswer {
                compression: compression
                    .as_ref()
                    .map(|grant| grant.compression().to_string())
                    .unwrap_or_default(),
            };
            let stream = incoming.accept_with(answer.encode_to_vec().into());
            let options = JoinOptions {
                compression,
                ..options
            };
            let join = pin!(sg_relay::join(tcp, stream, options));
            unless_revoked(join, revoked, &end).await
        }
        Socket::Udp(udp) => {
            let join = pin!(join_flow(
                udp,
                incoming.accept_flow(),
                account.meter(),
                options
            ));
            unless_revoked(join, revoked, &end).await
        }
    };
    ended.reason.as_str()
}

async fn unless_revoked(
    mut join: Pin<&mut impl Future<Output = Ended>>,
    revoked: Pin<&mut impl Future<Output = u32>>,
    end: &StreamEnd,
) -> Ended {
    match race(join.as_mut(), revoked).await {
        First::Main(ended) => ended,
        First::Seldom(code) => {
            end.end(code);
            join.await
        }
    }
}

/// Waits until the stream may no longer go on; answers the code that says why.
async fn revoked(
    tunnel: &TunnelContext,
    policy: &mut watch::Receiver<Arc<Policy>>,
    resource: &HostPort,
    address: Option<IpAddr>,
) -> u32 {
    let forbidden = policy.wait_for(|policy| !policy.allows_stream(resource, address));
    tokio::select! {
        biased;
        () = tunnel.end.cancelled() => code::DRAINED,
        changed = forbidden => match changed {
            Ok(_) => code::POLICY_CHANGED,
            // The gateway's task is gone, and its tunnels with it.
            Err(_) => code::DRAINED,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waiting_for_a_dial_and_the_dial_share_one_limit() {
        let gate = DialGate {
            places: Semaphore::new(10),
            running: Semaphore::new(1),
        };
        let limit = Duration::from_secs(10);
        let first = gate.enter(limit).await.unwrap();
        assert_eq!(first.left, limit);
        let hold = async {
            tokio::time::sleep(Duration::from_secs(9)).await;
            drop(first);
        };
        let (second, ()) = tokio::join!(gate.enter(limit), hold);
        let second = second.unwrap();
        assert!(
            second.left <= Duration::from_secs(1),
            "{:?} left of {limit:?}",
            second.left
        );
        // Nothing is left for the third.
        assert!(gate.enter(limit).await.is_none());
    }
}
