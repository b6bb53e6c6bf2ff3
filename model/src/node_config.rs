//! The complete state one node should serve, and how it changes.
//!
//! Control plane and node hold the same [`NodeConfig`]; a [`Change`] takes it from one revision to the
//! next, and both compare the [`NodeConfig::digest`] afterwards. Order of revisions decides: what is
//! older than the present state is refused, never merged.

use std::collections::BTreeMap;

use crate::{Acl, Destination, DestinationId, Gateway, GatewayId, Name, NodeId};

/// One object of a node's configuration.
#[allow(
    clippy::large_enum_variant,
    reason = "nearly all objects are destinations, so a box would save nothing"
)]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeObject {
    /// A gateway that the node serves.
    Gateway(Gateway),
    /// A destination of such a gateway.
    Destination(Destination),
    /// The access control list of such a gateway.
    Acl(GatewayId, Acl),
    /// A node of the same group, the node itself included.
    Peer(NodePeer),
}

/// A node of the group, as clients should know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodePeer {
    /// The node.
    pub id: NodeId,
    /// Its name.
    pub name: Name,
    /// HOST:PORT of its tunnel listener, as the node gave it.
    pub tunnel_address: String,
}

/// Names one object; sorts gateways, destinations, lists, then nodes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObjectKey {
    /// A gateway.
    Gateway(GatewayId),
    /// A destination.
    Destination(DestinationId),
    /// The access control list of a gateway.
    Acl(GatewayId),
    /// A node.
    Peer(NodeId),
}

impl ObjectKey {
    /// The word for the kind of object: `gateway`, `destination`, `acl` or `node`.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Gateway(_) => "gateway",
            Self::Destination(_) => "destination",
            Self::Acl(_) => "acl",
            Self::Peer(_) => "node",
        }
    }

    /// The id without the kind.
    #[must_use]
    pub fn id(&self) -> &str {
        match self {
            Self::Gateway(id) | Self::Acl(id) => id.as_str(),
            Self::Destination(id) => id.as_str(),
            Self::Peer(id) => id.as_str(),
        }
    }
}

impl NodeObject {
    /// What names this object.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        match self {
            Self::Gateway(g) => ObjectKey::Gateway(g.id.clone()),
            Self::Destination(d) => ObjectKey::Destination(d.id.clone()),
            Self::Acl(gateway, _) => ObjectKey::Acl(gateway.clone()),
            Self::Peer(p) => ObjectKey::Peer(p.id.clone()),
        }
    }
}

/// What one node should serve at one revision.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConfig {
    epoch: u64,
    revision: u64,
    objects: BTreeMap<ObjectKey, (u64, NodeObject)>,
}

/// A step from one revision to a later one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Epoch it belongs to.
    pub epoch: u64,
    /// Revision it starts from; `None`: it is complete and starts from nothing.
    pub from: Option<u64>,
    /// Revision it leads to.
    pub to: u64,
    /// Objects to add or replace, each with the revision of its last change.
    pub upserts: Vec<(u64, NodeObject)>,
    /// Objects that are gone.
    pub removals: Vec<ObjectKey>,
}

/// Why a change was not applied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum StaleChange {
    /// It leads to what is already there, or further back; keep the present state.
    #[error("revision {to} of epoch {epoch} is not newer than what is there")]
    Older {
        /// Epoch of the change.
        epoch: u64,
        /// Where it leads.
        to: u64,
    },
    /// It starts elsewhere; ask for a complete one.
    #[error("the change starts at revision {from}, the present state is at {have}")]
    Gap {
        /// Where it starts.
        from: u64,
        /// Revision that is there.
        have: u64,
    },
}

impl NodeConfig {
    /// Epoch of the present state; raised when the store is restored from a copy.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Revision of the present state; 0: nothing yet.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Builds a state from all its objects.
    #[must_use]
    pub fn complete(
        epoch: u64,
        revision: u64,
        objects: impl IntoIterator<Item = (u64, NodeObject)>,
    ) -> Self {
        let objects = objects
            .into_iter()
            .map(|(rev, o)| (o.key(), (rev, o)))
            .collect();
        Self {
            epoch,
            revision,
            objects,
        }
    }

    /// All objects with the revision of their last change, in key order.
    pub fn objects(&self) -> impl Iterator<Item = (u64, &NodeObject)> {
        self.objects.values().map(|(rev, o)| (*rev, o))
    }

    /// A gateway by id.
    #[must_use]
    pub fn gateway(&self, id: &GatewayId) -> Option<&Gateway> {
        match self.objects.get(&ObjectKey::Gateway(id.clone())) {
            Some((_, NodeObject::Gateway(g))) => Some(g),
            _ => None,
        }
    }

    /// A gateway by id, or else by name.
    #[must_use]
    pub fn find_gateway(&self, id_or_name: &str) -> Option<&Gateway> {
        let by_id = GatewayId::new(id_or_name)
            .ok()
            .and_then(|id| self.gateway(&id));
        by_id.or_else(|| self.gateways().find(|g| g.name.as_str() == id_or_name))
    }

    /// All gateways.
    pub fn gateways(&self) -> impl Iterator<Item = &Gateway> {
        self.objects.values().filter_map(|(_, o)| {
            if let NodeObject::Gateway(g) = o {
                Some(g)
            } else {
                None
            }
        })
    }

    /// All destinations.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        self.objects.values().filter_map(|(_, o)| {
            if let NodeObject::Destination(d) = o {
                Some(d)
            } else {
                None
            }
        })
    }

    /// A destination by id.
    #[must_use]
    pub fn destination(&self, id: &DestinationId) -> Option<&Destination> {
        match self.objects.get(&ObjectKey::Destination(id.clone())) {
            Some((_, NodeObject::Destination(d))) => Some(d),
            _ => None,
        }
    }

    /// The access control list of a gateway, if it has one.
    #[must_use]
    pub fn acl(&self, gateway: &GatewayId) -> Option<&Acl> {
        match self.objects.get(&ObjectKey::Acl(gateway.clone())) {
            Some((_, NodeObject::Acl(_, acl))) => Some(acl),
            _ => None,
        }
    }

    /// All nodes of the group.
    pub fn peers(&self) -> impl Iterator<Item = &NodePeer> {
        self.objects.values().filter_map(|(_, o)| {
            if let NodeObject::Peer(p) = o {
                Some(p)
            } else {
                None
            }
        })
    }

    /// The change that leads from `self` to `newer`.
    #[must_use]
    pub fn change_to(&self, newer: &Self) -> Change {
        let same =
            |key: &ObjectKey, rev: u64| self.objects.get(key).is_some_and(|(r, _)| *r == rev);
        Change {
            epoch: newer.epoch,
            from: Some(self.revision),
            to: newer.revision,
            upserts: newer
                .objects
                .iter()
                .filter(|(key, (rev, _))| !same(key, *rev))
                .map(|(_, (rev, o))| (*rev, o.clone()))
                .collect(),
            removals: self
                .objects
                .keys()
                .filter(|key| !newer.objects.contains_key(*key))
                .cloned()
                .collect(),
        }
    }

    /// Applies a change.
    ///
    /// # Errors
    /// When it is older than the present state, or does not start at it; nothing is changed then.
    pub fn apply(&mut self, change: Change) -> Result<(), StaleChange> {
        let newer = (change.epoch, change.to) > (self.epoch, self.revision);
        match change.from {
            // A complete state of the same revision is accepted: that is how a damaged one is repaired.
            None if newer || (change.epoch, change.to) == (self.epoch, self.revision) => {
                *self = Self::complete(change.epoch, change.to, change.upserts);
                Ok(())
            }
            _ if !newer => Err(StaleChange::Older {
                epoch: change.epoch,
                to: change.to,
            }),
            Some(from) if from != self.revision || change.epoch != self.epoch => {
                Err(StaleChange::Gap {
                    from,
                    have: self.revision,
                })
            }
            _ => {
                for key in change.removals {
                    self.objects.remove(&key);
                }
                self.objects.extend(
                    change
                        .upserts
                        .into_iter()
                        .map(|(rev, o)| (o.key(), (rev, o))),
                );
                self.revision = change.to;
                Ok(())
            }
        }
    }

    /// A number that two equal states share and two different ones almost surely do not. Guards against
    /// mistakes, not against an attacker.
    #[must_use]
    pub fn digest(&self) -> u64 {
        // FNV-1a over kind, id and revision of every object in key order.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut feed = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        for (key, (rev, _)) in &self.objects {
            feed(key.kind().as_bytes());
            feed(b"/");
            feed(key.id().as_bytes());
            feed(&rev.to_be_bytes());
        }
        hash
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn peer(n: u8, address: u8) -> NodeObject {
        NodeObject::Peer(NodePeer {
            id: NodeId::new(format!("n{n}")).unwrap(),
            name: Name::new(format!("n{n}")).unwrap(),
            tunnel_address: format!("10.0.0.{address}:9000"),
        })
    }

    #[test]
    fn a_change_that_starts_elsewhere_is_a_gap_and_changes_nothing() {
        let mut config = NodeConfig::complete(1, 5, [(5, peer(1, 1))]);
        let before = config.clone();
        let change = Change {
            epoch: 1,
            from: Some(6),
            to: 7,
            upserts: vec![(7, peer(2, 2))],
            removals: vec![],
        };
        assert_eq!(
            config.apply(change),
            Err(StaleChange::Gap { from: 6, have: 5 })
        );
        assert_eq!(config, before);
    }

    #[test]
    fn an_older_state_is_refused_and_a_new_epoch_wins() {
        let mut config = NodeConfig::complete(1, 5, [(5, peer(1, 1))]);
        let full = |epoch, to| Change {
            epoch,
            from: None,
            to,
            upserts: vec![],
            removals: vec![],
        };
        assert_eq!(
            config.apply(full(1, 4)),
            Err(StaleChange::Older { epoch: 1, to: 4 })
        );
        assert_eq!(config.apply(full(2, 1)), Ok(()));
        assert_eq!(
            (config.epoch(), config.revision(), config.objects().count()),
            (2, 1, 0)
        );
    }

    proptest! {
        #[test]
        fn following_changes_gives_the_same_state_as_a_complete_one(steps in proptest::collection::vec((0u8..6, 0u8..4, any::<bool>()), 1..40)) {
            let mut truth = NodeConfig::default();
            let mut follower = NodeConfig::default();
            for (i, (id, address, remove)) in steps.into_iter().enumerate() {
                let rev = i as u64 + 1;
                let mut next: BTreeMap<_, _> = truth.objects.clone();
                let object = peer(id, address);
                if remove { next.remove(&object.key()); } else { next.insert(object.key(), (rev, object)); }
                truth = NodeConfig { epoch: 0, revision: rev, objects: next };
                // Every third step is skipped, so that changes span several revisions.
                if !rev.is_multiple_of(3) {
                    prop_assert_eq!(follower.apply(follower.change_to(&truth)), Ok(()));
                    prop_assert_eq!(&follower, &truth);
                    prop_assert_eq!(follower.digest(), truth.digest());
                }
            }
        }
    }
}
