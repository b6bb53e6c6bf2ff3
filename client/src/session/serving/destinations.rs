//! What the node tells of the gateway's destinations, taken over once all of it is there.

use prost::Message as _;
use sg_proto::tunnel::{self as wire, Piece};

use super::Serving;
use crate::cloud;

impl Serving<'_> {
    /// Takes over destinations that the node told, once all pieces are there.
    pub(super) fn destinations(&mut self, piece: &Piece) {
        let gateway = &self.session.gateway;
        let whole = match self.destinations.take(piece) {
            Ok(None) => return,
            Ok(Some(whole)) => whole,
            Err(error) => {
                return tracing::warn!(node = &*self.streams.node, %error,
                    "the node sent destinations that cannot be put together");
            }
        };
        // Never logged: there are keys in it.
        let Ok(set) = wire::Destinations::decode(whole.as_slice()) else {
            return tracing::warn!(
                node = &*self.streams.node,
                "the node sent destinations that cannot be understood"
            );
        };
        match gateway.known.offer(&set) {
            cloud::Outcome::Older => {}
            cloud::Outcome::Applied(faults) => {
                for (destination, fault) in faults {
                    tracing::error!(gateway = %gateway.gateway, destination, %fault,
                        "the node sent a destination that this client cannot use; it is left out");
                }
                tracing::debug!(gateway = %gateway.gateway, revision = set.revision,
                    destinations = set.destinations.len(), "destinations known");
            }
        }
    }
}
