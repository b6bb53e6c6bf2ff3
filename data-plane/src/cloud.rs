//! Cloud destinations: streams that clients open, and whose resource this node connects to. The mirror of
//! `connection`, and of the client's `stream`.
//!
//! What a client says of a stream is the destination's id and who its user is. Everything else is taken from the node's
//! own configuration, and nothing is connected to that the operator has not named with `--cloud-allow`.

mod allow;

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prost::Message as _;
use sg_model::{
    CanonicalPath, Destination, DestinationId, GatewayId, HostPort, NodeConfig, Protocol, UserFacts,
};
use sg_proto::tunnel::{StreamAnswer, StreamOpen};
use sg_relay::compress::Grant;
use sg_relay::http::HttpVersion;
use sg_relay::udp::{IDLE_TIMEOUT, dial_udp, join_flow};
use sg_relay::{
    Approach, JoinOptions, Parties, Purpose, Reached, Redial, StreamAccount, StreamEnd, TcpEnd,
};
use sg_runtime::places::{Occupancy, Occupied};
use sg_runtime::tasks::TaskPool;
use sg_tunnel_io::{IncomingStream, code};
use tokio::net::UdpSocket;

pub(crate) use allow::CloudAllow;

use crate::node::Node;
use crate::tunnels::Session;

/// The streams of cloud destinations at this node.
#[derive(Debug)]
pub(crate) struct Cloud {
    pool: TaskPool,
    open: Mutex<Open>,
    approaches: Mutex<HashMap<DestinationId, (u64, Built)>>,
}

/// A way to a resource, or why there is none.
type Built = Result<Approach, Arc<str>>;

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Entry>,
    occupancy: HashMap<DestinationId, Occupancy>,
}

#[derive(Debug)]
struct Entry {
    destination: DestinationId,
    end: StreamEnd,
}

/// One open stream; dropping it takes it off.
#[derive(Debug)]
struct Entered {
    number: u64,
    node: Arc<Node>,
    _occupied: Occupied,
}

impl Cloud {
    /// At most `most` streams at a time.
    pub(crate) fn new(most: usize) -> Self {
        Self {
            pool: TaskPool::new("cloud streams", most),
            open: Mutex::default(),
            approaches: Mutex::default(),
        }
    }

    /// The way to a destination's resource, built once for each version of it.
    ///
    /// # Errors
    /// Why there is none: its certificates.
    pub(crate) fn approach(&self, destination: &Destination) -> Built {
        let mut all = lock(&self.approaches);
        if let Some((generation, built)) = all.get(&destination.id)
            && *generation == destination.generation
        {
            return built.clone();
        }
        let built = Approach::new(destination).map_err(|error| error.to_string().into());
        all.insert(
            destination.id.clone(),
            (destination.generation, built.clone()),
        );
        built
    }

    /// Forgets what belongs to those of these destinations that are gone.
    pub(crate) fn forget(&self, config: &NodeConfig, changed: &BTreeSet<DestinationId>) {
        let mut approaches = lock(&self.approaches);
        let mut open = lock(&self.open);
        let occupancy = &mut open.occupancy;
        for id in changed.iter().filter(|id| config.destination(id).is_none()) {
            approaches.remove(id);
            occupancy.remove(id);
        }
    }

    /// Forgets what belongs to any destination that is gone.
    pub(crate) fn sweep(&self, config: &NodeConfig) {
        lock(&self.approaches).retain(|id, _| config.destination(id).is_some());
        lock(&self.open)
            .occupancy
            .retain(|id, _| config.destination(id).is_some());
    }

    /// Ends every stream that `config` no longer permits, to these destinations or else to any; answers how many.
    pub(crate) fn redecide(
        &self,
        config: &NodeConfig,
        only: Option<&BTreeSet<DestinationId>>,
    ) -> usize {
        let mut ended = 0;
        let of_interest = |entry: &&Entry| only.is_none_or(|ids| ids.contains(&entry.destination));
        for entry in lock(&self.open).streams.values().filter(of_interest) {
            let refusal = match config.destination(&entry.destination) {
                None => Some(code::NO_DESTINATION),
                Some(d) if !serves(config, d) => Some(code::DISABLED),
                Some(_) => None,
            };
            if let Some(code) = refusal {
                entry.end.end(code);
                ended += 1;
            }
        }
        ended
    }

    /// Ends all streams.
    pub(crate) fn end_all(&self, code: u32) {
        for entry in lock(&self.open).streams.values() {
            entry.end.end(code);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        lock(&self.open).streams.len()
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        lock(&self.node.cloud.open).streams.remove(&self.number);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn serves(config: &NodeConfig, destination: &Destination) -> bool {
    destination.enabled
        && config
            .gateway(&destination.gateway)
            .is_some_and(|gateway| gateway.enabled)
}

/// Takes a stream that a client opens.
pub(crate) fn take(node: &Arc<Node>, session: &Session, incoming: IncomingStream) {
    let Ok(slot) = node.cloud.pool.reserve() else {
        return incoming.refuse(code::LIMIT);
    };
    let from = From {
        gateway: session.gateway.clone(),
        client: Arc::clone(&session.client_id),
        bytes: Arc::clone(&session.bytes),
    };
    slot.spawn(serve(Arc::clone(node), from, incoming));
}

/// Where a stream comes from.
struct From {
    gateway: GatewayId,
    client: Arc<str>,
    bytes: Arc<sg_relay::ByteCounters>,
}

/// What is dialled for.
struct Wanted {
    destination: Destination,
    approach: Approach,
    user: UserFacts,
    alpn: Vec<Vec<u8>>,
    http: Option<HttpVersion>,
}

/// Why a stream is refused.
struct Refused {
    code: u32,
    word: &'static str,
}

impl std::convert::From<u32> for Refused {
    fn from(code: u32) -> Self {
        Self {
            code,
            word: code::word(code),
        }
    }
}

/// Serves one stream to its end.
async fn serve(node: Arc<Node>, from: From, mut incoming: IncomingStream) {
    let Ok(open) = StreamOpen::decode(incoming.metadata().clone()) else {
        tracing::warn!(client = %from.client, "the client opened a stream that cannot be understood");
        return incoming.refuse(code::INTERNAL);
    };
    let Some(user) = open.user() else {
        return incoming.refuse(code::INTERNAL);
    };
    let config = node.config();
    let destination = DestinationId::new(&open.destination_id)
        .ok()
        .and_then(|id| config.destination(&id))
        // A client speaks for its own gateway only.
        .filter(|d| d.gateway == from.gateway && d.listen.client_port().is_some())
        // Nor are datagrams for what takes connections.
        .filter(|d| (d.protocol == Protocol::Udp) == incoming.is_flow());
    let gateway = destination.and_then(|d| config.gateway(&d.gateway));
    let Some((destination, gateway)) = destination.zip(gateway) else {
        return incoming.refuse(code::NO_DESTINATION);
    };
    let meter = node.stream_metrics.destination(
        gateway.name.as_str(),
        destination.name.as_str(),
        destination.protocol.as_str(),
        TcpEnd::Resource,
    );
    let parties = Parties {
        client: Arc::clone(&from.client),
        node: Arc::clone(&node.id_text),
        user: Some(user.address),
        resource: destination.resource.to_string().into(),
    };
    let mut account = StreamAccount::begin(meter, TcpEnd::Resource, parties);
    let end = StreamEnd::new();
    let entered = enter(&node, &config, destination, &end);
    let begun = entered.and_then(|entered| {
        let approach = node
            .cloud
            .approach(destination)
            .map_err(|_| Refused::from(code::TLS_FAILED))?;
        Ok((entered, approach))
    });
    let (entered, approach) = match begun {
        Ok(begun) => begun,
        Err(refused) => {
            account.set_reason(refused.word);
            return incoming.refuse(refused.code);
        }
    };
    let wanted = Wanted {
        destination: destination.clone(),
        approach,
        user,
        alpn: open.alpn.clone(),
        http: HttpVersion::of_number(open.http),
    };
    let compression = Grant::take(open.compression.parse().unwrap_or_default());
    drop((config, open));
    if incoming.is_flow() {
        serve_flow(&node, &from, incoming, wanted, (account, end)).await;
        drop(entered);
        return;
    }
    let connected = tokio::select! {
        biased;
        // The opener gave up, or the tunnel is gone: dropping the dial ends it.
        why = incoming.cancelled() => Err(Refused::from(why.code())),
        code = end.ended() => Err(Refused::from(code)),
        connected = Box::pin(connect(&node, &wanted)) => connected,
    };
    let reached = match connected {
        Ok(reached) => reached,
        Err(refused) => {
            account.set_reason(refused.word);
            return incoming.refuse(refused.code);
        }
    };
    account.opened(Arc::clone(&from.client), &from.bytes);
    let answer = StreamAnswer {
        compression: compression
            .as_ref()
            .map(|grant| grant.compression().to_string())
            .unwrap_or_default(),
        alpn: reached.alpn.clone().unwrap_or_default(),
    };
    let stream = incoming.accept_with(answer.encode_to_vec().into());
    let options = JoinOptions {
        idle_timeout: None,
        counters: account.counters(),
        end,
        compression,
    };
    let (approach, http) = (wanted.approach.clone(), wanted.http);
    let drain = node.shutdown.draining();
    let redial = http.map(|_| NodeRedial { node, wanted });
    let reason = approach
        .carry(stream, reached, http, options, redial, drain)
        .await;
    account.set_reason(reason);
    drop(entered);
}

async fn serve_flow(
    node: &Node,
    from: &From,
    mut incoming: IncomingStream,
    wanted: Wanted,
    (mut account, end): (StreamAccount, StreamEnd),
) {
    let dial = dial_flow(node, &wanted.destination);
    let connected = tokio::select! {
        biased;
        why = incoming.cancelled() => Err(Refused::from(why.code())),
        code = end.ended() => Err(Refused::from(code)),
        connected = dial => connected,
    };
    match connected {
        Err(refused) => {
            account.set_reason(refused.word);
            incoming.refuse(refused.code);
        }
        Ok(socket) => {
            account.opened(Arc::clone(&from.client), &from.bytes);
            let options = JoinOptions {
                idle_timeout: Some(wanted.destination.idle_timeout.unwrap_or(IDLE_TIMEOUT)),
                counters: account.counters(),
                end,
                compression: None,
            };
            let flow = incoming.accept_flow();
            let ended = join_flow(socket, flow, account.meter(), options).await;
            account.set_reason(ended.reason.as_str());
        }
    }
}

fn enter(
    node: &Arc<Node>,
    config: &NodeConfig,
    destination: &Destination,
    end: &StreamEnd,
) -> Result<Entered, Refused> {
    if !serves(config, destination) {
        return Err(code::DISABLED.into());
    }
    if node.shutdown.is_draining() {
        return Err(code::REFUSED_RETRY.into());
    }
    if !node.cloud_allow.may_reach(&destination.resource) {
        tracing::warn!(destination = %destination.name, resource = %destination.resource, reason = "cloud-denied",
            "a cloud destination was refused: --cloud-allow does not name its resource");
        return Err(code::CLOUD_DENIED.into());
    }
    let mut open = lock(&node.cloud.open);
    let occupied = open
        .occupancy
        .entry(destination.id.clone())
        .or_default()
        .enter(destination.max_connections)
        .ok_or(code::LIMIT)?;
    open.next += 1;
    let number = open.next;
    let entry = Entry {
        destination: destination.id.clone(),
        end: end.clone(),
    };
    open.streams.insert(number, entry);
    drop(open);
    let entered = Entered {
        number,
        node: Arc::clone(node),
        _occupied: occupied,
    };
    // A change that came before the stream was entered has not looked at it.
    let newest = node.config();
    match newest.destination(&destination.id) {
        None => Err(code::NO_DESTINATION.into()),
        Some(d) if !serves(&newest, d) => Err(code::DISABLED.into()),
        Some(_) => Ok(entered),
    }
}

async fn connect(node: &Node, wanted: &Wanted) -> Result<Reached, Refused> {
    let resource = wanted.approach.resource();
    let permit = |ip: &IpAddr| node.cloud_allow.permits(resource, *ip);
    let permit_proxy = |proxy: &HostPort, ip: &IpAddr| {
        node.cloud_allow.may_reach(proxy) && node.cloud_allow.permits(proxy, *ip)
    };
    let purpose = Purpose {
        limit: wanted.destination.connect_timeout,
        permit: &permit,
        permit_proxy: &permit_proxy,
        user: &wanted.user,
        alpn: &wanted.alpn,
        http: wanted.http,
    };
    wanted.approach.connect(purpose).await.map_err(|error| {
        tracing::debug!(%resource, reason = error.as_str(), %error, "cloud resource not reached");
        let code = match error.code() {
            // Nobody's list but the node's own was asked.
            code::ACL_DENIED => code::CLOUD_DENIED,
            code => code,
        };
        Refused {
            code,
            word: code::word(code),
        }
    })
}

async fn dial_flow(node: &Node, destination: &Destination) -> Result<UdpSocket, Refused> {
    let resource = &destination.resource;
    let permit = |ip: &IpAddr| node.cloud_allow.permits(resource, *ip);
    let limit: Duration = destination.connect_timeout;
    dial_udp(resource, limit, permit)
        .await
        .map_err(|error| match error.code() {
            code::ACL_DENIED => code::CLOUD_DENIED.into(),
            code => code.into(),
        })
}

/// Makes further connections for one stream's requests.
struct NodeRedial {
    node: Arc<Node>,
    wanted: Wanted,
}

impl Redial for NodeRedial {
    async fn connect(&self) -> Result<Reached, &'static str> {
        self.permitted()?;
        connect(&self.node, &self.wanted)
            .await
            .map_err(|refused| refused.word)
    }

    fn permit_path(&self, _: &CanonicalPath) -> Result<(), &'static str> {
        self.permitted()
    }
}

impl NodeRedial {
    fn permitted(&self) -> Result<(), &'static str> {
        let config = self.node.config();
        match config.destination(&self.wanted.destination.id) {
            None => Err(code::word(code::NO_DESTINATION)),
            Some(d) if !serves(&config, d) => Err(code::word(code::DISABLED)),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::NodeObject;

    use super::*;
    use crate::reconcile::testing::{config, destination, gateway};
    use crate::tests::rig;

    #[tokio::test]
    async fn a_stream_that_comes_with_an_older_configuration_is_refused_what_the_new_one_took() {
        let (node, _) = rig::node();
        let object = destination("d1", "g1", 1);
        let NodeObject::Destination(d1) = object.clone() else {
            unreachable!("the helper makes a destination")
        };
        let older = config(1, [gateway("g1", true), object.clone()]);
        let enter_under = |now: NodeConfig| {
            node.served.send_replace(Arc::new(now));
            let entered = enter(&node, &older, &d1, &StreamEnd::new());
            entered.map(drop).map_err(|refused| refused.code)
        };
        assert_eq!(enter_under(older.clone()), Ok(()));
        let gone = config(2, [gateway("g1", true)]);
        assert_eq!(enter_under(gone), Err(code::NO_DESTINATION));
        let off = config(2, [gateway("g1", false), object]);
        assert_eq!(enter_under(off), Err(code::DISABLED));
        assert_eq!(node.cloud.len(), 0, "nothing of them is left");
    }
}
