//! The flows of users at one destination's port. What is done with datagrams is in `relay`; here is who may have a
//! flow and which tunnel carries it, decided as for connections (see `connection`), but without waiting for anything.

use std::sync::Arc;

use sg_model::DestinationId;
use sg_relay::udp::{BegunFlow, FlowOpener, IDLE_TIMEOUT, MOST_FLOWS, NoFlow, Peer};
use sg_relay::{DestinationMeter, TcpEnd};
use sg_runtime::places::Occupancy;
use sg_tunnel_io::code;

use crate::balancers::Ends;
use crate::connection;
use crate::node::Node;
use crate::tunnels::Health;

/// Opens the flows of one destination's users.
pub(crate) struct NodeFlows {
    pub(crate) node: Arc<Node>,
    pub(crate) destination: DestinationId,
    pub(crate) occupancy: Occupancy,
}

impl FlowOpener for NodeFlows {
    fn begin(&self, peer: &Peer) -> Result<BegunFlow, NoFlow> {
        let node = &self.node;
        // Before the configuration is read: a later one ends it.
        let registered = node.streams.register(self.destination.clone(), peer.user);
        let config = node.config();
        let destination = config.destination(&self.destination);
        let gateway = destination.and_then(|d| config.gateway(&d.gateway));
        let (destination, gateway) = destination.zip(gateway).ok_or(NoFlow::REFUSED)?;
        let mut account = connection::begin(node, gateway, destination, peer.user);
        let limit = destination.max_connections.unwrap_or(MOST_FLOWS);
        let Some(occupied) = self.occupancy.enter(Some(limit)) else {
            account.set_reason(code::word(code::LIMIT));
            return Err(NoFlow::FULL);
        };
        let permitted =
            connection::permit(node, gateway, destination, &registered, peer.user, None);
        let acl = match permitted {
            Ok(acl) => acl,
            Err(reason) => {
                account.set_reason(reason);
                return Err(NoFlow::REFUSED);
            }
        };
        let ends = Ends {
            user: peer.user,
            local: None,
        };
        let metadata = connection::metadata(destination, ends, acl, &connection::Asked::default());
        let mut tried = Vec::new();
        let (flow, choice) = loop {
            let choose = |health| {
                let registry = &node.registry;
                registry.choose(&gateway.id, gateway.policy, health, &tried)
            };
            let Some(choice) = choose(Health::Good).or_else(|| choose(Health::Any)) else {
                account.set_reason("no-client");
                return Err(NoFlow::REFUSED);
            };
            match choice.session().tunnel.open_flow(metadata.clone()) {
                Ok(flow) => break (flow, choice),
                Err(error) => {
                    tracing::debug!(client = %choice.session().client_id, %error, "flow not opened, trying another tunnel");
                    tried.push(choice.session().number);
                }
            }
        };
        let session = choice.session();
        account.carried(Arc::clone(&session.client_id), &session.bytes);
        Ok(BegunFlow {
            flow,
            account,
            end: registered.end().clone(),
            idle: destination.idle_timeout.unwrap_or(IDLE_TIMEOUT),
            held: Box::new((registered, choice, occupied)),
        })
    }

    fn meter(&self) -> Option<Arc<DestinationMeter>> {
        let config = self.node.config();
        let destination = config.destination(&self.destination)?;
        let gateway = config.gateway(&destination.gateway)?;
        Some(self.node.stream_metrics.destination(
            gateway.name.as_str(),
            destination.name.as_str(),
            destination.protocol.as_str(),
            TcpEnd::User,
        ))
    }
}
