//! The story of one user's connection at a client port. The mirror of the node's `connection`, with a client that knows
//! one gateway and its few tunnels.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use prost::Message as _;
use sg_model::{CanonicalPath, Compression, Destination, DestinationId, Timestamp};
use sg_proto::tunnel::{StreamAnswer, StreamOpen};
use sg_relay::compress::Grant;
use sg_relay::http::HttpVersion;
use sg_relay::{
    Opened, Opener, Parties, ReceiveOptions, ResetOnDrop, StreamAccount, StreamEnd, TcpEnd, Wish,
    tune_accepted,
};
use sg_tunnel_io::{OpenError, TunnelStream, code};
use tokio::time::{Instant, interval, sleep_until, timeout};

use super::known::KnownDestination;
use super::tunnels::{Health, Way};
use crate::gateway::GatewayContext;

/// How long a user waits, unread, for a tunnel to come back.
const HOLD: Duration = Duration::from_secs(1);
/// What the client waits beyond the connect timeout that the node keeps.
const ANSWER_GRACE: Duration = Duration::from_secs(5);
/// How often an unanswered open looks whether its tunnel is suspect.
const SUSPECT_CHECK: Duration = Duration::from_millis(100);

/// Serves one connection from beginning to end.
pub(super) async fn serve(
    gateway: Arc<GatewayContext>,
    known: Arc<KnownDestination>,
    tcp: ResetOnDrop,
    user: SocketAddr,
) {
    let account = Arc::new(Mutex::new(begin(&gateway, &known, user)));
    let destination = &known.destination;
    let refuse = |word| lock(&account).set_reason(word);
    if !destination.user_end.sources.admits(user, now()) {
        return refuse("source-denied");
    }
    if tune_accepted(tcp.tcp(), destination.keepalive).is_err() {
        return refuse("tcp-reset");
    }
    let Ok(reception) = known.reception() else {
        return refuse(code::word(code::TLS_FAILED));
    };
    let end = StreamEnd::new();
    let entered = gateway
        .carried_users
        .enter(&destination.id, user, end.clone());
    // Registered first and decided after that, so that a change in between is not missed.
    if !still_serves(&gateway, &destination.id, user) {
        return refuse(code::word(code::DISABLED));
    }
    let options = {
        let account = lock(&account);
        ReceiveOptions {
            user,
            idle_timeout: destination.idle_timeout,
            counters: account.counters(),
            end,
            drain: gateway.shared.draining.clone(),
            meter: Some(Arc::clone(account.meter())),
        }
    };
    let opener = UserOpener {
        gateway,
        known: Arc::clone(&known),
        local: tcp.tcp().local_addr().ok(),
        user,
        account: Arc::clone(&account),
    };
    let reception = reception.clone();
    drop(known);
    let reason = reception.serve(tcp, opener, options).await;
    lock(&account).set_reason(reason);
    drop(entered);
}

/// Closes the books of a connection that finds no room at all; it is reset by whoever has it.
pub(super) fn refuse(gateway: &GatewayContext, known: &KnownDestination, user: SocketAddr) {
    begin(gateway, known, user).set_reason(code::word(code::LIMIT));
}

/// Opens the books of a user's connection or flow.
pub(super) fn begin(
    gateway: &GatewayContext,
    known: &KnownDestination,
    user: SocketAddr,
) -> StreamAccount {
    let destination = &known.destination;
    let shared = &gateway.shared;
    let meter = shared.metrics.user_destination(
        &gateway.name(),
        destination.name.as_str(),
        destination.protocol,
    );
    let parties = Parties {
        client: Arc::clone(&shared.client_id),
        node: Arc::default(),
        user: Some(user),
        resource: destination.resource.to_string().into(),
    };
    StreamAccount::begin(meter, TcpEnd::User, parties)
}

/// Whether a destination still admits a user.
pub(super) fn still_serves(gateway: &GatewayContext, id: &DestinationId, user: SocketAddr) -> bool {
    let known = gateway.known.subscribe();
    let known = Arc::clone(&known.borrow());
    known.get(id).is_some_and(|one| {
        one.destination.enabled && one.destination.user_end.sources.admits(user, now())
    })
}

fn lock(account: &Mutex<StreamAccount>) -> MutexGuard<'_, StreamAccount> {
    account.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock, for rules that end.
pub(super) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// What the node is told of a stream or flow.
pub(super) fn metadata(
    destination: &Destination,
    (user, local): (SocketAddr, Option<SocketAddr>),
    wish: &Wish,
    offer: Compression,
) -> Bytes {
    let timeout = destination.connect_timeout.as_millis();
    let mut open = StreamOpen {
        destination_id: destination.id.to_string(),
        destination: destination.name.to_string(),
        protocol: destination.protocol.to_string(),
        resource_host: destination.resource.host().to_string(),
        resource_port: destination.resource.port().into(),
        connect_timeout_ms: u32::try_from(timeout).unwrap_or(u32::MAX),
        user_address: user.to_string(),
        generation: destination.generation,
        http: wish.http.map_or(0, HttpVersion::number),
        compression: match offer {
            Compression::None => String::new(),
            offer => offer.to_string(),
        },
        ..StreamOpen::default()
    };
    open.tell_of_user(local, wish.tls.as_ref(), &wish.alpn);
    open.encode_to_vec().into()
}

/// Opens the streams of one user's connection.
struct UserOpener {
    gateway: Arc<GatewayContext>,
    known: Arc<KnownDestination>,
    local: Option<SocketAddr>,
    user: SocketAddr,
    account: Arc<Mutex<StreamAccount>>,
}

impl Opener for UserOpener {
    async fn open(&self, wish: Wish) -> Result<Opened, &'static str> {
        let destination = &self.known.destination;
        if !still_serves(&self.gateway, &destination.id, self.user) {
            return Err(code::word(code::DISABLED));
        }
        // Offered only if there is room for one more.
        let compression = Grant::take(destination.compression);
        let offer = compression
            .as_ref()
            .map(Grant::compression)
            .unwrap_or_default();
        let metadata = metadata(destination, (self.user, self.local), &wish, offer);
        let (stream, way) = self.open_somewhere(destination, &metadata).await?;
        let client = Arc::clone(&self.gateway.shared.client_id);
        lock(&self.account).opened(client, &way.bytes);
        let answer = StreamAnswer::decode(stream.answer().clone()).unwrap_or_default();
        Ok(Opened {
            compression: compression
                .filter(|grant| answer.compression == grant.compression().as_str()),
            alpn: (!answer.alpn.is_empty()).then_some(answer.alpn),
            stream,
        })
    }

    fn permit_path(&self, _: &CanonicalPath) -> Result<(), &'static str> {
        if still_serves(&self.gateway, &self.known.destination.id, self.user) {
            Ok(())
        } else {
            Err(code::word(code::DISABLED))
        }
    }
}

impl UserOpener {
    /// Tries the tunnels in turn until one has opened the stream, or the resource refused.
    async fn open_somewhere(
        &self,
        destination: &Destination,
        metadata: &Bytes,
    ) -> Result<(TunnelStream, Arc<Way>), &'static str> {
        let tunnels = &self.gateway.tunnels;
        let mut tried = Vec::new();
        let mut held = false;
        let mut last = None;
        loop {
            let mut chosen = tunnels.choose(Health::Good, &tried);
            if chosen.is_none() && !held {
                held = true;
                if timeout(HOLD, tunnels.available(&tried)).await.is_ok() {
                    continue;
                }
            }
            if chosen.is_none() {
                chosen = tunnels.choose(Health::Any, &tried);
            }
            let Some(way) = chosen else {
                return Err(last.unwrap_or("no-node"));
            };
            match self.open_on(destination, &way, metadata, &tried).await {
                Ok(stream) => return Ok((stream, way)),
                Err(error) if error.retry_elsewhere() => {
                    tracing::debug!(node = &*way.node, %error, "stream not opened, trying another tunnel");
                    last = Some(match error {
                        OpenError::Closed(_) => "tunnel-lost",
                        _ => code::word(error.code()),
                    });
                    tried.push(way.number);
                }
                Err(error) => return Err(code::word(error.code())),
            }
        }
    }

    async fn open_on(
        &self,
        destination: &Destination,
        way: &Way,
        metadata: &Bytes,
        tried: &[u64],
    ) -> Result<TunnelStream, OpenError> {
        let deadline = Instant::now() + destination.connect_timeout + ANSWER_GRACE;
        // Dropped when another arm is first: that resets the stream, so that a late answer opens nothing.
        let open = way.tunnel.open(metadata.clone());
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
                    if way.tunnel.is_suspect() || way.tunnel.is_detached() {
                        let mut others = tried.to_vec();
                        others.push(way.number);
                        if self.gateway.tunnels.has_other(&others) {
                            return Err(OpenError::Reset { code: code::REFUSED_RETRY });
                        }
                    }
                }
            }
        }
    }
}
