//! What the clients of a gateway are told of its destinations, those on which they listen and those whose resource
//! needs more than a stream's opening can say; and of the nodes of the group. Kept up with what is served, so that
//! thousands of tunnels need not look for it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use prost::Message as _;
use sg_model::{
    ConfigObject, Destination, DestinationId, DestinationKind, Difference, GatewayId, NodeConfig,
    NodeObject, ObjectKey,
};
use sg_proto::tunnel::{Destinations, Endpoint, Endpoints};

/// What clients are told.
#[derive(Debug, Default)]
pub(crate) struct ForClients(Mutex<Told>);

#[derive(Debug, Default)]
struct Told {
    config: Arc<NodeConfig>,
    /// Gateways without any destination that clients must know have no entry.
    gateways: HashMap<GatewayId, OfGateway>,
    endpoints: Arc<Endpoints>,
}

/// The destinations of one gateway that its clients must know.
#[derive(Debug, Default)]
struct OfGateway {
    ids: BTreeSet<DestinationId>,
    /// Their digests, added up.
    digest: u64,
}

impl ForClients {
    /// Takes a configuration over that is about to be served.
    pub(crate) fn publish(&self, config: &Arc<NodeConfig>) {
        let mut told = self.lock();
        let before = std::mem::replace(&mut told.config, Arc::clone(config));
        let mut peers = false;
        for difference in config.differences(&before) {
            told.follow(&difference);
            peers |= matches!(difference.key(), ObjectKey::Peer(_));
        }
        if peers {
            told.endpoints = Arc::new(endpoints_of(config));
        }
    }

    /// A number that changes when what the clients of a gateway must know of its destinations does; 0: nothing.
    pub(crate) fn digest(&self, gateway: &GatewayId) -> u64 {
        self.lock().gateways.get(gateway).map_or(0, |of| of.digest)
    }

    /// All that the clients of a gateway must know of its destinations, encoded.
    pub(crate) fn encode(&self, gateway: &GatewayId) -> Vec<u8> {
        // Thousands of tunnels may want it at once, and nobody waits for them while they encode.
        let (config, ids) = {
            let told = self.lock();
            let ids = told.gateways.get(gateway).map(|of| of.ids.clone());
            (Arc::clone(&told.config), ids.unwrap_or_default())
        };
        let destinations = ids.iter().filter_map(|id| config.destination(id));
        Destinations {
            epoch: config.epoch(),
            revision: config.revision(),
            destinations: destinations.map(for_client).collect(),
        }
        .encode_to_vec()
    }

    /// The nodes that clients may connect to.
    pub(crate) fn endpoints(&self) -> Arc<Endpoints> {
        Arc::clone(&self.lock().endpoints)
    }

    fn lock(&self) -> MutexGuard<'_, Told> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Told {
    fn follow(&mut self, difference: &Difference<ConfigObject>) {
        if let Some(before) = difference.before()
            && let Some(d) = told_destination(before)
            && let Some(of) = self.gateways.get_mut(&d.gateway)
        {
            of.ids.remove(&d.id);
            of.digest = of.digest.wrapping_sub(before.digest());
            if of.ids.is_empty() {
                self.gateways.remove(&d.gateway);
            }
        }
        if let Some(after) = difference.after()
            && let Some(d) = told_destination(after)
        {
            let of = self.gateways.entry(d.gateway.clone()).or_default();
            of.ids.insert(d.id.clone());
            of.digest = of.digest.wrapping_add(after.digest());
        }
    }
}

fn told_destination(object: &ConfigObject) -> Option<&Destination> {
    match &object.object {
        NodeObject::Destination(d) if is_for_clients(d) => Some(d),
        _ => None,
    }
}

fn endpoints_of(config: &NodeConfig) -> Endpoints {
    let endpoints = config.peers().map(|peer| Endpoint {
        node_id: peer.id.to_string(),
        node_name: peer.name.to_string(),
        address: peer.tunnel_address.clone(),
    });
    Endpoints {
        endpoints: endpoints.collect(),
    }
}

/// Whether a client must know this destination itself.
pub(crate) fn is_for_clients(destination: &Destination) -> bool {
    destination.kind() == DestinationKind::Cloud || needs_look_up(destination)
}

/// Whether the far end must look the destination up, since the opening of a stream cannot say all of it.
pub(crate) fn needs_look_up(destination: &Destination) -> bool {
    destination.resource_end != sg_model::ResourceEnd::default()
}

/// A destination as a client needs it: without the user side of one whose users it never sees.
fn for_client(destination: &Destination) -> sg_proto::node::Destination {
    let mut wire = sg_proto::node::Destination::from(destination);
    if destination.kind() == DestinationKind::OnPremises {
        // Whether a resource expects PostgreSQL's preface follows from what its users say.
        let preface = destination.user_end.preface.to_string();
        wire.user_end = Some(sg_proto::api::UserEnd {
            preface,
            ..sg_proto::api::UserEnd::default()
        });
    } else {
        // The node connects to the resource.
        wire.resource_end = Some(sg_proto::api::ResourceEnd {
            tls: destination.resource_end.tls.to_string(),
            http: destination.resource_end.http.to_string(),
            ..sg_proto::api::ResourceEnd::default()
        });
    }
    wire
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use sg_model::{Listen, ResourceTls, SecretBytes};

    use super::*;
    use crate::reconcile::testing::{config, destination, gateway};

    fn changed(id: &str, change: impl Fn(&mut Destination)) -> NodeObject {
        let mut object = destination(id, "g1", 15000);
        if let NodeObject::Destination(d) = &mut object {
            change(d);
        }
        object
    }

    fn served(revision: u64, objects: impl IntoIterator<Item = NodeObject>) -> Arc<NodeConfig> {
        Arc::new(config(revision, objects))
    }

    #[test]
    fn plain_destinations_are_no_business_of_clients() {
        let told = ForClients::default();
        let g1 = GatewayId::new("g1").unwrap();
        let plain = || destination("d1", "g1", 15000);
        told.publish(&served(1, [gateway("g1", true), plain()]));
        assert_eq!(told.digest(&g1), 0);
        let tls = || changed("d2", |d| d.resource_end.tls = ResourceTls::Tls);
        told.publish(&served(2, [gateway("g1", true), plain(), tls()]));
        let first = told.digest(&g1);
        assert_ne!(first, 0);
        told.publish(&served(3, [gateway("g1", true), plain(), tls()]));
        assert_ne!(told.digest(&g1), first, "its revision is another");
        told.publish(&served(4, [gateway("g1", true), plain()]));
        assert_eq!(told.digest(&g1), 0, "there is nothing to tell any more");
    }

    #[test]
    fn the_nodes_are_told_anew_only_when_they_change() {
        let peer = |address: &str| {
            NodeObject::Peer(sg_model::NodePeer {
                id: sg_model::NodeId::new("n1").unwrap(),
                name: sg_model::Name::new("n1").unwrap(),
                tunnel_address: address.to_owned(),
            })
        };
        let told = ForClients::default();
        told.publish(&served(1, [peer("192.0.2.1:443")]));
        let first = told.endpoints();
        let address = |endpoints: &Endpoints| endpoints.endpoints[0].address.clone();
        assert_eq!(address(&first), "192.0.2.1:443");
        told.publish(&served(1, [peer("192.0.2.1:443"), gateway("g1", true)]));
        assert!(Arc::ptr_eq(&first, &told.endpoints()));
        told.publish(&served(2, [peer("192.0.2.2:443")]));
        assert_eq!(address(&told.endpoints()), "192.0.2.2:443");
    }

    #[test]
    fn a_client_gets_only_the_end_that_is_its_own() {
        let key = || Some(SecretBytes::new(b"canary".to_vec()));
        let pair = || sg_model::KeyPair {
            certificates: vec![],
            key: key(),
            origin: sg_model::PairOrigin::Uploaded,
        };
        let on_premises = changed("d1", |d| {
            d.protocol = sg_model::Protocol::Tls;
            d.user_end.server_pairs = vec![pair()];
            d.resource_end.proxy_protocol = sg_model::ProxyProtocol::V2;
        });
        let cloud = changed("d2", |d| {
            d.listen = Listen::ClientPort(3306);
            d.resource_end.tls = ResourceTls::Mutual;
            d.resource_end.client_pair = Some(pair());
        });
        let told = ForClients::default();
        told.publish(&served(7, [gateway("g1", true), on_premises, cloud]));
        let encoded = told.encode(&GatewayId::new("g1").unwrap());
        assert!(!encoded.windows(6).any(|part| part == b"canary"));
        let decoded = Destinations::decode(encoded.as_slice()).unwrap();
        assert_eq!((decoded.revision, decoded.destinations.len()), (7, 2));
    }
}
