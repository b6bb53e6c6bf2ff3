//! The complete state one node should serve, and how it changes.
//!
//! Control plane and node hold the same [`NodeConfig`]; a [`Change`] takes it from one revision to the
//! next, and both compare the [`NodeConfig::digest`] afterwards. Order of revisions decides: what is
//! older than the present state is refused, never merged.

use std::sync::Arc;

use crate::shared_map::{Difference, Keyed, SharedMap};
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

/// An object of a configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigObject {
    key: ObjectKey,
    /// Revision of its last change.
    pub revision: u64,
    /// The object.
    pub object: NodeObject,
}

impl ConfigObject {
    fn new(revision: u64, object: NodeObject) -> Self {
        Self {
            key: object.key(),
            revision,
            object,
        }
    }

    /// What it adds to the digest of a configuration that has it: another number for another key or revision, almost
    /// surely.
    #[must_use]
    pub fn digest(&self) -> u64 {
        // FNV-1a over kind, id and revision; mixed once more, because these numbers are added up.
        let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
        let mut feed = |bytes: &[u8]| {
            for byte in bytes {
                hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        };
        feed(self.key.kind().as_bytes());
        feed(b"/");
        feed(self.key.id().as_bytes());
        feed(&self.revision.to_be_bytes());
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
        hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
        hash ^ (hash >> 33)
    }
}

impl Keyed for ConfigObject {
    type Key = ObjectKey;

    fn key(&self) -> &ObjectKey {
        &self.key
    }
}

/// What one node should serve at one revision. Copies share what they have in common, and a change costs as
/// much as what it changes, however many objects there are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NodeConfig {
    epoch: u64,
    revision: u64,
    /// The digests of all objects, added up.
    digest: u64,
    objects: SharedMap<ConfigObject>,
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
        let mut config = Self {
            epoch,
            revision,
            ..Self::default()
        };
        for (revision, object) in objects {
            config.put(ConfigObject::new(revision, object));
        }
        config
    }

    fn put(&mut self, object: ConfigObject) {
        self.digest = self.digest.wrapping_add(object.digest());
        let before = self.objects.insert(object);
        self.forget(before);
    }

    fn forget(&mut self, before: Option<Arc<ConfigObject>>) {
        if let Some(before) = before {
            self.digest = self.digest.wrapping_sub(before.digest());
        }
    }

    /// All objects with the revision of their last change, in key order.
    pub fn objects(&self) -> impl Iterator<Item = (u64, &NodeObject)> {
        self.objects.iter().map(|o| (o.revision, &o.object))
    }

    /// An object by its key.
    #[must_use]
    pub fn object(&self, key: &ObjectKey) -> Option<&NodeObject> {
        self.objects.get(key).map(|o| &o.object)
    }

    /// How many objects there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.objects.len()
    }

    /// Whether there is nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }

    /// The objects that differ from those of `older`, in key order.
    pub fn differences<'a>(
        &'a self,
        older: &'a Self,
    ) -> impl Iterator<Item = Difference<ConfigObject>> {
        self.objects.differences(&older.objects)
    }

    /// A gateway by id.
    #[must_use]
    pub fn gateway(&self, id: &GatewayId) -> Option<&Gateway> {
        match self.object(&ObjectKey::Gateway(id.clone())) {
            Some(NodeObject::Gateway(g)) => Some(g),
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
        // In key order they are the first.
        self.objects().map_while(|(_, o)| match o {
            NodeObject::Gateway(g) => Some(g),
            _ => None,
        })
    }

    /// All destinations.
    pub fn destinations(&self) -> impl Iterator<Item = &Destination> {
        let from = self
            .objects
            .starting(|key| matches!(key, ObjectKey::Gateway(_)));
        from.map_while(|o| match &o.object {
            NodeObject::Destination(d) => Some(d),
            _ => None,
        })
    }

    /// A destination by id.
    #[must_use]
    pub fn destination(&self, id: &DestinationId) -> Option<&Destination> {
        match self.object(&ObjectKey::Destination(id.clone())) {
            Some(NodeObject::Destination(d)) => Some(d),
            _ => None,
        }
    }

    /// The access control list of a gateway, if it has one.
    #[must_use]
    pub fn acl(&self, gateway: &GatewayId) -> Option<&Acl> {
        match self.object(&ObjectKey::Acl(gateway.clone())) {
            Some(NodeObject::Acl(_, acl)) => Some(acl),
            _ => None,
        }
    }

    /// All nodes of the group.
    pub fn peers(&self) -> impl Iterator<Item = &NodePeer> {
        let from = self
            .objects
            .starting(|key| !matches!(key, ObjectKey::Peer(_)));
        from.filter_map(|o| match &o.object {
            NodeObject::Peer(p) => Some(p),
            _ => None,
        })
    }

    /// The change that leads from `self` to `newer`.
    #[must_use]
    pub fn change_to(&self, newer: &Self) -> Change {
        let mut change = Change {
            epoch: newer.epoch,
            from: Some(self.revision),
            to: newer.revision,
            upserts: Vec::new(),
            removals: Vec::new(),
        };
        for difference in newer.differences(self) {
            match difference.after() {
                Some(after) => change.upserts.push((after.revision, after.object.clone())),
                None => change.removals.push(difference.key().clone()),
            }
        }
        change
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
                    let before = self.objects.remove(&key);
                    self.forget(before);
                }
                for (revision, object) in change.upserts {
                    self.put(ConfigObject::new(revision, object));
                }
                self.revision = change.to;
                Ok(())
            }
        }
    }

    /// A number that two equal states share and two different ones almost surely do not. Guards against
    /// mistakes, not against an attacker.
    #[must_use]
    pub const fn digest(&self) -> u64 {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

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

    #[test]
    fn objects_of_each_kind_are_found_among_the_others() {
        let gateway = |id: &str| GatewayId::new(id).unwrap();
        let list = |id: &str| NodeObject::Acl(gateway(id), Acl::default());
        let objects = [peer(2, 1), list("g1"), peer(1, 1), list("g2")];
        let config = NodeConfig::complete(1, 5, objects.map(|o| (5, o)));
        let peers: Vec<_> = config.peers().map(|p| p.id.as_str()).collect();
        assert_eq!(peers, ["n1", "n2"]);
        assert!(config.acl(&gateway("g2")).is_some() && config.acl(&gateway("g3")).is_none());
        assert_eq!(
            (config.gateways().count(), config.destinations().count()),
            (0, 0)
        );
        assert_eq!(config.len(), 4);
    }

    proptest! {
        #[test]
        fn following_changes_gives_the_same_state_as_a_complete_one(steps in proptest::collection::vec((0u8..6, 0u8..4, any::<bool>()), 1..40)) {
            let mut next: BTreeMap<ObjectKey, (u64, NodeObject)> = BTreeMap::new();
            let mut follower = NodeConfig::default();
            for (i, (id, address, remove)) in steps.into_iter().enumerate() {
                let rev = i as u64 + 1;
                let object = peer(id, address);
                if remove { next.remove(&object.key()); } else { next.insert(object.key(), (rev, object)); }
                let truth = NodeConfig::complete(0, rev, next.values().cloned());
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
