//! How one key changes the world.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message as _;
use sg_model::{DestinationId, GatewayId, Invalid, Name, NodeId, ObjectKey};
use sg_proto::convert::store::{DestinationRecord, GatewayRecord, NodeRecord, acl_from_store};
use sg_proto::convert::tokens::AdminTokenRecord;
use sg_proto::store as wire;
use sg_runtime::crypto;

use super::{GatewayEntry, Stored, World};
use crate::keys::{self, ObjectPath};
use crate::store::{Event, KeyValue, Revision};

/// An object that a change concerns, and the groups whose configuration it may be in.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Touched {
    /// The node group.
    pub group: Name,
    /// The object.
    pub key: ObjectKey,
    /// The gateway it belongs to, where it belongs to one.
    pub gateway: Option<GatewayId>,
}

#[derive(Debug, thiserror::Error)]
enum Unreadable {
    #[error("not a stored value: {0}")]
    Encoding(#[from] prost::DecodeError),
    #[error(transparent)]
    Value(#[from] Invalid),
    #[error("a kind of key that this version does not know")]
    Key,
}

impl World {
    /// Applies one event. Returns what it touched of node configurations.
    pub(crate) fn apply(&mut self, event: &Event) -> Vec<Touched> {
        let key = event.key();
        let entry = match event {
            Event::Put(entry) => Some(entry),
            Event::Delete { .. } => None,
        };
        let applied = self.dispatch(key, entry);
        match applied {
            Err(problem) if entry.is_some() => {
                tracing::error!(key, %problem, "a stored value cannot be read and is left out");
                Arc::make_mut(&mut self.problems).insert(key.to_owned(), problem.to_string());
                // As if it were not there, so that a world does not depend on what was before.
                self.dispatch(key, None).unwrap_or_default()
            }
            // What is gone is no problem any more, whatever it was.
            applied => {
                if self.problems.contains_key(key) {
                    Arc::make_mut(&mut self.problems).remove(key);
                }
                applied.unwrap_or_default()
            }
        }
    }

    /// Whether these are exactly the objects of this world, each as of its last change.
    pub(crate) fn has_exactly(&self, objects: &[(String, Revision)]) -> bool {
        let readable = objects
            .iter()
            .filter(|(key, _)| !self.problems.contains_key(key));
        let mut count = 0;
        let same = readable
            .inspect(|_| count += 1)
            .all(|(key, revision)| self.object_revision(key) == Some(*revision));
        same && count == self.object_count()
    }

    fn object_count(&self) -> usize {
        let of_gateway = |entry: &Arc<GatewayEntry>| {
            usize::from(entry.gateway.is_some())
                + usize::from(entry.acl.is_some())
                + entry.destinations.len()
        };
        self.nodes.len() + self.gateways.values().map(of_gateway).sum::<usize>()
    }

    fn object_revision(&self, key: &str) -> Option<Revision> {
        let entry = |id: &str| self.gateways.get(&GatewayId::new(id).ok()?);
        match keys::parse_object(key)? {
            ObjectPath::Gateway(id) => entry(id)?.gateway.as_ref().map(|g| g.revision),
            ObjectPath::Acl(id) => entry(id)?.acl.as_ref().map(|acl| acl.revision),
            ObjectPath::Destination(gateway, id) => {
                let id = DestinationId::new(id).ok()?;
                entry(gateway)?.destinations.get(&id).map(|d| d.revision)
            }
            ObjectPath::Node(id) => self.nodes.get(&NodeId::new(id).ok()?).map(|n| n.revision),
        }
    }

    fn dispatch(
        &mut self,
        key: &str,
        entry: Option<&KeyValue>,
    ) -> Result<Vec<Touched>, Unreadable> {
        if key.starts_with(keys::OBJECTS) {
            return match keys::parse_object(key).ok_or(Unreadable::Key)? {
                ObjectPath::Gateway(id) => self.put_gateway(&GatewayId::new(id)?, entry),
                ObjectPath::Destination(gateway, id) => {
                    self.put_destination(&GatewayId::new(gateway)?, DestinationId::new(id)?, entry)
                }
                ObjectPath::Acl(id) => self.put_acl(&GatewayId::new(id)?, entry),
                ObjectPath::Node(id) => self.put_node(NodeId::new(id)?, entry),
            };
        }
        if let Some(hash) = key.strip_prefix(keys::ADMIN_TOKENS) {
            self.put_admin(hash, entry)?;
        } else if let Some(id) = key.strip_prefix(keys::LIVE) {
            let address = entry.map(|e| wire::ControlPlane::decode(e.value.as_ref()));
            let address = address.transpose()?.map(|live| live.address);
            set(
                Arc::make_mut(&mut self.control_planes),
                id.to_owned(),
                address,
            );
        } else if key == keys::META_EPOCH
            && let Some(entry) = entry
        {
            self.epoch = wire::Epoch::decode(entry.value.as_ref())?.epoch;
        }
        Ok(Vec::new())
    }

    fn entry_mut(&mut self, gateway: &GatewayId) -> &mut GatewayEntry {
        let entry = Arc::make_mut(&mut self.gateways)
            .entry(gateway.clone())
            .or_default();
        Arc::make_mut(entry)
    }

    /// Forgets a gateway of which nothing is left.
    fn tidy(&mut self, gateway: &GatewayId) {
        if self
            .gateways
            .get(gateway)
            .is_some_and(|entry| entry.is_empty())
        {
            Arc::make_mut(&mut self.gateways).remove(gateway);
        }
    }

    fn group_of(&self, gateway: &GatewayId) -> Option<Name> {
        self.gateway(gateway)
            .map(|(gateway, _)| gateway.value.group.clone())
    }

    fn put_gateway(
        &mut self,
        id: &GatewayId,
        entry: Option<&KeyValue>,
    ) -> Result<Vec<Touched>, Unreadable> {
        let new = entry
            .map(|entry| {
                let record =
                    GatewayRecord::try_from(&wire::Gateway::decode(entry.value.as_ref())?)?;
                Ok::<_, Unreadable>(stored(record, entry.mod_revision))
            })
            .transpose()?;
        let old_group = self.group_of(id);
        let slot = self.entry_mut(id);
        slot.gateway = new;
        let destinations: Vec<_> = slot.destinations.keys().cloned().collect();
        let new_group = self.group_of(id);
        self.tidy(id);
        // A gateway that comes, goes or moves takes all that belongs to it along.
        let moved = old_group != new_group;
        let mut keys = vec![ObjectKey::Gateway(id.clone())];
        if moved {
            keys.push(ObjectKey::Acl(id.clone()));
            keys.extend(destinations.into_iter().map(ObjectKey::Destination));
        }
        let mut groups: Vec<_> = old_group.into_iter().chain(new_group).collect();
        groups.dedup();
        Ok(touched(groups, &keys, Some(id)))
    }

    fn put_destination(
        &mut self,
        gateway: &GatewayId,
        id: DestinationId,
        entry: Option<&KeyValue>,
    ) -> Result<Vec<Touched>, Unreadable> {
        let new = entry
            .map(|entry| {
                let wire = wire::Destination::decode(entry.value.as_ref())?;
                let vault = self.vault.as_deref();
                let open = |place: &str, sealed: &[u8]| match vault {
                    Some(vault) => vault.open(&entry.key, place, sealed),
                    None => Err(Invalid::new("secret", "there is no key to open it")),
                };
                let record = DestinationRecord::from_store(&wire, &open)?;
                Ok::<_, Unreadable>(Arc::new(stored(record, entry.mod_revision)))
            })
            .transpose()?;
        set(&mut self.entry_mut(gateway).destinations, id.clone(), new);
        self.tidy(gateway);
        Ok(touched(
            self.group_of(gateway),
            &[ObjectKey::Destination(id)],
            Some(gateway),
        ))
    }

    fn put_acl(
        &mut self,
        gateway: &GatewayId,
        entry: Option<&KeyValue>,
    ) -> Result<Vec<Touched>, Unreadable> {
        let new = entry
            .map(|entry| {
                let (_, acl) = acl_from_store(0, &wire::Acl::decode(entry.value.as_ref())?)?;
                Ok::<_, Unreadable>(stored(acl, entry.mod_revision))
            })
            .transpose()?;
        self.entry_mut(gateway).acl = new;
        self.tidy(gateway);
        Ok(touched(
            self.group_of(gateway),
            &[ObjectKey::Acl(gateway.clone())],
            Some(gateway),
        ))
    }

    fn put_node(
        &mut self,
        id: NodeId,
        entry: Option<&KeyValue>,
    ) -> Result<Vec<Touched>, Unreadable> {
        let new = entry
            .map(|entry| {
                let record = NodeRecord::try_from(&wire::Node::decode(entry.value.as_ref())?)?;
                Ok::<_, Unreadable>(Arc::new(stored(record, entry.mod_revision)))
            })
            .transpose()?;
        let mut groups: Vec<_> = self
            .nodes
            .get(&id)
            .into_iter()
            .chain(&new)
            .map(|n| n.value.group.clone())
            .collect();
        groups.dedup();
        set(Arc::make_mut(&mut self.nodes), id.clone(), new);
        Ok(touched(groups, &[ObjectKey::Peer(id)], None))
    }

    fn put_admin(&mut self, hash: &str, entry: Option<&KeyValue>) -> Result<(), Unreadable> {
        let hash = crypto::unhex(hash).and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let hash = hash.ok_or(Unreadable::Key)?;
        let admin = entry
            .map(|entry| {
                let token = wire::AdminToken::decode(entry.value.as_ref())?;
                Ok::<_, Unreadable>(Arc::new(AdminTokenRecord::try_from(&token)?))
            })
            .transpose()?;
        set(Arc::make_mut(&mut self.admins), hash, admin);
        Ok(())
    }
}

fn stored<T>(value: T, revision: Revision) -> Stored<T> {
    Stored { value, revision }
}

fn set<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(map.insert(key, value)),
        None => drop(map.remove(&key)),
    }
}

fn touched(
    groups: impl IntoIterator<Item = Name>,
    keys: &[ObjectKey],
    gateway: Option<&GatewayId>,
) -> Vec<Touched> {
    let of_group = |group: Name| {
        keys.iter().map(move |key| Touched {
            group: group.clone(),
            key: key.clone(),
            gateway: gateway.cloned(),
        })
    };
    groups.into_iter().flat_map(of_group).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn put(key: &str, value: Vec<u8>, revision: u64) -> Event {
        let revision = Revision::new(revision);
        Event::Put(KeyValue {
            key: key.to_owned(),
            value: value.into(),
            mod_revision: revision,
            create_revision: revision,
        })
    }

    fn gateway(id: &str) -> Vec<u8> {
        wire::Gateway {
            id: id.to_owned(),
            name: id.to_lowercase(),
            group: "default".to_owned(),
            policy: "round-robin".to_owned(),
            ..wire::Gateway::default()
        }
        .encode_to_vec()
    }

    #[test]
    fn an_unreadable_value_is_named_and_left_out() {
        let mut world = World::default();
        let key = "v1/obj/gateway/G1";
        assert_eq!(
            world.apply(&put(key, gateway("G1"), 2)).len(),
            2,
            "the gateway and its list"
        );
        assert_eq!(
            world.apply(&put(key, vec![0xff], 3)).len(),
            2,
            "both are gone"
        );
        assert_eq!(world.apply(&put(key, gateway("not/an/id"), 4)), []);
        assert_eq!(
            world.problems().map(|(key, _)| key).collect::<Vec<_>>(),
            [key]
        );
        assert!(world.find_gateway("g1").is_none());
        world.apply(&put(key, gateway("G1"), 5));
        assert_eq!(world.problems().count(), 0);
        assert_eq!(
            world.find_gateway("G1").unwrap().0.revision,
            Revision::new(5)
        );
    }

    #[test]
    fn a_key_of_a_newer_version_is_a_problem_only_while_it_is_there() {
        let mut world = World::default();
        let key = "v1/obj/certificate/X1";
        world.apply(&put(key, vec![], 2));
        assert_eq!(world.problems().count(), 1);
        world.apply(&Event::Delete {
            key: key.to_owned(),
        });
        assert_eq!(world.problems().count(), 0);
    }

    #[test]
    fn nothing_is_kept_of_a_gateway_that_is_gone() {
        let mut world = World::default();
        world.apply(&put("v1/obj/gateway/G1", gateway("G1"), 2));
        world.apply(&Event::Delete {
            key: "v1/obj/gateway/G1".to_owned(),
        });
        world.apply(&Event::Delete {
            key: "v1/obj/destination/G1/D1".to_owned(),
        });
        assert!(world.gateways.is_empty());
    }
}
