//! Which destinations the clients of a gateway must know themselves: those on which they listen, and those whose
//! resource needs more than a stream's opening can say. Worked out once per configuration.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use prost::Message as _;
use sg_model::{Destination, DestinationKind, GatewayId, NodeConfig, NodeObject};
use sg_proto::tunnel::Destinations;

/// A number per gateway that changes when what its clients must know does; gateways with nothing to tell have none.
#[derive(Debug, Default)]
pub(crate) struct ForClients(Mutex<Arc<HashMap<GatewayId, u64>>>);

impl ForClients {
    /// Works the numbers out for a configuration that is about to be served.
    pub(crate) fn publish(&self, config: &NodeConfig) {
        let mut digests: HashMap<GatewayId, u64> = HashMap::new();
        for (revision, object) in config.objects() {
            if let NodeObject::Destination(d) = object
                && is_for_clients(d)
            {
                let digest = digests.entry(d.gateway.clone()).or_insert(OFFSET);
                for byte in d.id.as_str().bytes().chain(revision.to_be_bytes()) {
                    *digest = (*digest ^ u64::from(byte)).wrapping_mul(PRIME);
                }
            }
        }
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Arc::new(digests);
    }

    /// The number for a gateway; 0: nothing to tell.
    pub(crate) fn digest(&self, gateway: &GatewayId) -> u64 {
        let digests = Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner));
        digests.get(gateway).copied().unwrap_or_default()
    }
}

/// FNV-1a.
const OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const PRIME: u64 = 0x0000_0100_0000_01b3;

/// Whether a client must know this destination itself.
pub(crate) fn is_for_clients(destination: &Destination) -> bool {
    destination.kind() == DestinationKind::Cloud || needs_look_up(destination)
}

/// Whether the far end must look the destination up, since the opening of a stream cannot say all of it.
pub(crate) fn needs_look_up(destination: &Destination) -> bool {
    destination.resource_end != sg_model::ResourceEnd::default()
}

/// All of it for one gateway, encoded.
pub(crate) fn encode(config: &NodeConfig, gateway: &GatewayId) -> Vec<u8> {
    let destinations = config
        .destinations()
        .filter(|d| d.gateway == *gateway && is_for_clients(d));
    Destinations {
        epoch: config.epoch(),
        revision: config.revision(),
        destinations: destinations.map(for_client).collect(),
    }
    .encode_to_vec()
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

    #[test]
    fn plain_destinations_are_no_business_of_clients() {
        let told = ForClients::default();
        let g1 = GatewayId::new("g1").unwrap();
        let plain = || destination("d1", "g1", 15000);
        told.publish(&config(1, [gateway("g1", true), plain()]));
        assert_eq!(told.digest(&g1), 0);
        let tls = || changed("d2", |d| d.resource_end.tls = ResourceTls::Tls);
        told.publish(&config(2, [gateway("g1", true), plain(), tls()]));
        let first = told.digest(&g1);
        assert_ne!(first, 0);
        told.publish(&config(3, [gateway("g1", true), plain(), tls()]));
        assert_ne!(told.digest(&g1), first, "its revision is another");
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
        let config = config(7, [gateway("g1", true), on_premises, cloud]);
        let encoded = encode(&config, &GatewayId::new("g1").unwrap());
        assert!(!encoded.windows(6).any(|part| part == b"canary"));
        let decoded = Destinations::decode(encoded.as_slice()).unwrap();
        assert_eq!((decoded.revision, decoded.destinations.len()), (7, 2));
    }
}
