//! What the store says, as typed values in memory: one immutable [`World`] per revision.
//!
//! Every read of the API, every plan and every check before a write looks here, so reads go on
//! while the store is away. It may be some milliseconds behind the store: what must not be decided
//! on an old world is decided by the compares of the transaction.
//!
//! [`keeper`] is its only writer. Unreadable values are left out, logged, and listed as problems.

mod entries;
pub mod epoch;
mod health;
pub mod keeper;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sg_model::{Acl, DestinationId, GatewayId, Name, NodeId};
use sg_proto::convert::store::{DestinationRecord, GatewayRecord, NodeRecord};
use sg_proto::convert::tokens::AdminTokenRecord;

pub use entries::Touched;
pub use health::StoreHealth;

use crate::store::Revision;
use crate::vault::Vault;

/// A value with the revision of its last change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored<T> {
    /// The value.
    pub value: T,
    /// Its mod revision; the etag.
    pub revision: Revision,
}

impl<T> Stored<T> {
    /// The etag as the API shows it; empty for what was not written.
    pub fn etag(&self) -> String {
        if self.revision == Revision::NONE {
            return String::new();
        }
        self.revision.to_string()
    }
}

/// A gateway with everything that belongs to it.
#[derive(Debug, Clone, Default)]
pub struct GatewayEntry {
    gateway: Option<Stored<GatewayRecord>>,
    acl: Option<Stored<Acl>>,
    destinations: BTreeMap<DestinationId, Arc<Stored<DestinationRecord>>>,
}

impl GatewayEntry {
    /// All its destinations, oldest first.
    pub fn destinations(&self) -> impl Iterator<Item = &Arc<Stored<DestinationRecord>>> {
        self.destinations.values()
    }

    /// One of its destinations.
    pub fn destination(&self, id: &DestinationId) -> Option<&Arc<Stored<DestinationRecord>>> {
        self.destinations.get(id)
    }

    fn is_empty(&self) -> bool {
        self.gateway.is_none() && self.acl.is_none() && self.destinations.is_empty()
    }
}

/// Everything that is known at one revision. Cheap to clone: the parts are shared.
#[derive(Debug, Clone, Default)]
pub struct World {
    /// Newest revision of the objects.
    pub revision: Revision,
    /// Raised when the store is restored from a copy; 0: not known yet.
    pub epoch: u64,
    gateways: Arc<BTreeMap<GatewayId, Arc<GatewayEntry>>>,
    nodes: Arc<BTreeMap<NodeId, Arc<Stored<NodeRecord>>>>,
    admins: Arc<BTreeMap<[u8; 32], Arc<AdminTokenRecord>>>,
    control_planes: Arc<BTreeMap<String, String>>,
    problems: Arc<BTreeMap<String, String>>,
    /// Opens the secrets of destinations; without it those that have some are problems.
    vault: Option<Arc<Vault>>,
}

impl World {
    /// An empty world that can open secrets.
    pub fn with_vault(vault: Vault) -> Self {
        Self {
            vault: Some(Arc::new(vault)),
            ..Self::default()
        }
    }

    /// All gateways, oldest first, with what belongs to them.
    pub fn gateways(&self) -> impl Iterator<Item = (&Stored<GatewayRecord>, &GatewayEntry)> {
        self.gateways
            .values()
            .filter_map(|entry| Some((entry.gateway.as_ref()?, entry.as_ref())))
    }

    /// A gateway by id.
    pub fn gateway(&self, id: &GatewayId) -> Option<(&Stored<GatewayRecord>, &GatewayEntry)> {
        let entry = self.gateways.get(id)?;
        Some((entry.gateway.as_ref()?, entry.as_ref()))
    }

    /// A gateway by id, or else by name.
    pub fn find_gateway(
        &self,
        id_or_name: &str,
    ) -> Option<(&Stored<GatewayRecord>, &GatewayEntry)> {
        let by_id = GatewayId::new(id_or_name)
            .ok()
            .and_then(|id| self.gateway(&id));
        by_id.or_else(|| {
            self.gateways()
                .find(|(gateway, _)| gateway.value.gateway.name.as_str() == id_or_name)
        })
    }

    /// The access control list of a gateway, with the epoch in its version.
    pub fn acl(&self, gateway: &GatewayId) -> Option<Stored<Acl>> {
        let mut acl = self.gateways.get(gateway)?.acl.clone()?;
        acl.value.version.epoch = self.epoch;
        Some(acl)
    }

    /// All nodes, oldest first.
    pub fn nodes(&self) -> impl Iterator<Item = &Arc<Stored<NodeRecord>>> {
        self.nodes.values()
    }

    /// The nodes of a group, oldest first.
    pub fn nodes_of<'a>(
        &'a self,
        group: &'a Name,
    ) -> impl Iterator<Item = &'a Arc<Stored<NodeRecord>>> {
        self.nodes().filter(move |node| node.value.group == *group)
    }

    /// A node by id.
    pub fn node(&self, id: &NodeId) -> Option<&Arc<Stored<NodeRecord>>> {
        self.nodes.get(id)
    }

    /// A node by id, or else by name.
    pub fn find_node(&self, id_or_name: &str) -> Option<&Arc<Stored<NodeRecord>>> {
        let by_id = NodeId::new(id_or_name).ok().and_then(|id| self.node(&id));
        by_id.or_else(|| {
            self.nodes()
                .find(|node| node.value.name.as_str() == id_or_name)
        })
    }

    /// Where users of a group's destination ports connect: the host that its oldest node gives.
    pub fn cloud_host(&self, group: &Name) -> String {
        let mut hosts = self
            .nodes_of(group)
            .map(|node| &node.value.destination_host);
        hosts
            .find(|host| !host.is_empty())
            .cloned()
            .unwrap_or_default()
    }

    /// The operator's token with this hash, expired or not.
    pub fn admin(&self, sha256: &[u8; 32]) -> Option<&Arc<AdminTokenRecord>> {
        // A hash of 256 random bits cannot be approached guess by guess; the comparison in
        // constant time only keeps that from mattering.
        let (stored, admin) = self.admins.get_key_value(sha256)?;
        sg_runtime::crypto::equal(stored, sha256).then_some(admin)
    }

    /// All operators' tokens by their hashes.
    pub fn admins(&self) -> impl Iterator<Item = (&[u8; 32], &Arc<AdminTokenRecord>)> {
        self.admins.iter()
    }

    /// The world as one sees it who may see these gateways only. Nodes stay: they are what a
    /// gateway's status is made of.
    pub(crate) fn only(&self, ids: &BTreeSet<GatewayId>) -> Self {
        let gateways = ids
            .iter()
            .filter_map(|id| Some((id.clone(), Arc::clone(self.gateways.get(id)?))))
            .collect();
        Self {
            gateways: Arc::new(gateways),
            admins: Arc::default(),
            problems: Arc::default(),
            ..self.clone()
        }
    }

    /// HOST:PORT of the control planes that are alive, by their ids.
    pub fn control_planes(&self) -> impl Iterator<Item = (&str, &str)> {
        self.control_planes
            .iter()
            .map(|(id, address)| (id.as_str(), address.as_str()))
    }

    /// Keys whose values cannot be read, and why.
    pub fn problems(&self) -> impl Iterator<Item = (&str, &str)> {
        self.problems
            .iter()
            .map(|(key, problem)| (key.as_str(), problem.as_str()))
    }
}
