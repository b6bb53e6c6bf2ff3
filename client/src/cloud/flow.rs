//! The flows of users at a client port of protocol udp. What is done with datagrams is in `relay`; here is who may have
//! a flow and which tunnel carries it, decided as for connections (see `connection`), but without waiting for anything.

use std::sync::Arc;

use sg_model::Compression;
use sg_relay::udp::{BegunFlow, FlowOpener, IDLE_TIMEOUT, MOST_FLOWS, NoFlow, Peer};
use sg_relay::{DestinationMeter, StreamEnd, Wish};
use sg_runtime::places::Occupancy;
use sg_tunnel_io::code;
use tokio::sync::watch;

use super::connection;
use super::known::KnownDestination;
use super::tunnels::Health;
use crate::gateway::GatewayContext;

/// Opens the flows of one destination's users.
pub(super) struct ClientFlows {
    pub(super) gateway: Arc<GatewayContext>,
    /// What is served; it changes with the destination.
    pub(super) serves: watch::Receiver<Arc<KnownDestination>>,
    pub(super) occupancy: Occupancy,
}

impl FlowOpener for ClientFlows {
    fn begin(&self, peer: &Peer) -> Result<BegunFlow, NoFlow> {
        let gateway = &self.gateway;
        let known = Arc::clone(&self.serves.borrow());
        let destination = &known.destination;
        let mut account = connection::begin(gateway, &known, peer.user);
        let mut refuse = |word, why: NoFlow| {
            account.set_reason(word);
            why
        };
        let sources = &destination.user_end.sources;
        if !sources.admits(peer.user, connection::now()) {
            return Err(refuse("source-denied", NoFlow::REFUSED));
        }
        let limit = destination.max_connections.unwrap_or(MOST_FLOWS);
        let Some(occupied) = self.occupancy.enter(Some(limit)) else {
            return Err(refuse(code::word(code::LIMIT), NoFlow::FULL));
        };
        let end = StreamEnd::new();
        let users = &gateway.carried_users;
        let entered = users.enter(&destination.id, peer.user, end.clone());
        // Registered first and decided after that, so that a change in between is not missed.
        if !connection::still_serves(gateway, &destination.id, peer.user) {
            return Err(refuse(code::word(code::DISABLED), NoFlow::REFUSED));
        }
        let metadata = connection::metadata(
            destination,
            (peer.user, None),
            &Wish::default(),
            Compression::None,
        );
        let tunnels = &gateway.tunnels;
        let mut tried = Vec::new();
        let (flow, way) = loop {
            let choose = |health| tunnels.choose(health, &tried);
            let Some(way) = choose(Health::Good).or_else(|| choose(Health::Any)) else {
                return Err(refuse("no-node", NoFlow::REFUSED));
            };
            match way.tunnel.open_flow(metadata.clone()) {
                Ok(flow) => break (flow, way),
                Err(error) => {
                    tracing::debug!(node = &*way.node, %error, "flow not opened, trying another tunnel");
                    tried.push(way.number);
                }
            }
        };
        account.carried(Arc::clone(&gateway.shared.client_id), &way.bytes);
        Ok(BegunFlow {
            flow,
            account,
            end,
            idle: destination.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            held: Box::new((entered, occupied)),
        })
    }

    fn meter(&self) -> Option<Arc<DestinationMeter>> {
        let known = Arc::clone(&self.serves.borrow());
        let destination = &known.destination;
        Some(self.gateway.shared.metrics.user_destination(
            &self.gateway.name(),
            destination.name.as_str(),
            destination.protocol,
        ))
    }
}
