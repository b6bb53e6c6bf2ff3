//! What differs between two configurations, as far as it concerns what a node does: so that a change costs what it
//! changes, however many destinations there are. Pure.

use std::collections::BTreeSet;

use sg_model::{
    ConfigObject, DestinationId, Difference, Gateway, GatewayId, NodeConfig, NodeObject, ObjectKey,
};

/// What leads from one configuration to a later one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Destinations whose port, state or labels may be other ones; those that are gone are among them.
    pub(crate) destinations: BTreeSet<DestinationId>,
    /// Gateways have come, gone or changed.
    pub(crate) gateways: bool,
    /// Every open stream is to be decided anew, whatever its destination is: lists or gateways have changed.
    pub(crate) policy: bool,
}

impl Changes {
    /// What leads from `older` to `newer`.
    pub(crate) fn between(older: &NodeConfig, newer: &NodeConfig) -> Self {
        let mut changes = Self::default();
        let mut whole = BTreeSet::new();
        for difference in newer.differences(older) {
            match difference.key() {
                ObjectKey::Destination(id) => {
                    changes.destinations.insert(id.clone());
                }
                ObjectKey::Gateway(id) => {
                    (changes.gateways, changes.policy) = (true, true);
                    if serves_otherwise(&difference) {
                        whole.insert(id.clone());
                    }
                }
                ObjectKey::Acl(_) => changes.policy = true,
                ObjectKey::Peer(_) => {}
            }
        }
        changes.add_all_of(&whole, older);
        changes.add_all_of(&whole, newer);
        changes
    }

    fn add_all_of(&mut self, gateways: &BTreeSet<GatewayId>, config: &NodeConfig) {
        if gateways.is_empty() {
            return;
        }
        let all = config
            .destinations()
            .filter(|d| gateways.contains(&d.gateway));
        self.destinations.extend(all.map(|d| d.id.clone()));
    }

    /// The destinations whose streams are to be decided anew; `None`: all.
    pub(crate) fn to_decide(&self) -> Option<&BTreeSet<DestinationId>> {
        (!self.policy).then_some(&self.destinations)
    }
}

/// Whether the destinations of a gateway fare otherwise since it has changed, or have other labels.
fn serves_otherwise(difference: &Difference<ConfigObject>) -> bool {
    let gateway = |object: &ConfigObject| match &object.object {
        NodeObject::Gateway(Gateway { enabled, name, .. }) => Some((*enabled, name.clone())),
        _ => None,
    };
    let before = difference.before().and_then(|o| gateway(o));
    before != difference.after().and_then(|o| gateway(o))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::reconcile::testing::{acl, config, destination, gateway};

    fn ids(changes: &Changes) -> Vec<&str> {
        changes
            .destinations
            .iter()
            .map(DestinationId::as_str)
            .collect()
    }

    fn three(revision: u64, enabled: bool) -> NodeConfig {
        let mut objects = vec![gateway("g1", enabled), gateway("g2", true)];
        objects.extend(
            [("d1", "g1"), ("d2", "g2"), ("d3", "g1")].map(|(d, g)| destination(d, g, 15000)),
        );
        config(revision, objects)
    }

    #[test]
    fn one_destination_is_all_that_is_looked_at() {
        let older = config(
            1,
            [
                gateway("g1", true),
                destination("d1", "g1", 1),
                destination("d2", "g1", 2),
            ],
        );
        let mut newer = older.clone();
        newer.apply(newer.change_to(&config(2, []))).unwrap();
        let gone = Changes::between(&older, &newer);
        assert_eq!((ids(&gone), gone.policy), (vec!["d1", "d2"], true));

        let mut newer = older.clone();
        let change = sg_model::Change {
            epoch: 1,
            from: Some(1),
            to: 2,
            upserts: vec![(2, destination("d3", "g1", 3))],
            removals: vec![ObjectKey::Destination(DestinationId::new("d1").unwrap())],
        };
        newer.apply(change).unwrap();
        let changes = Changes::between(&older, &newer);
        assert_eq!(ids(&changes), ["d1", "d3"]);
        assert!(!changes.gateways && !changes.policy);
        assert_eq!(changes.to_decide().map(BTreeSet::len), Some(2));
        assert_eq!(Changes::between(&newer, &newer), Changes::default());
    }

    #[test]
    fn a_gateway_that_is_switched_off_concerns_its_destinations_and_every_stream() {
        let changes = Changes::between(&three(1, true), &three(1, false));
        assert_eq!(ids(&changes), ["d1", "d3"]);
        assert!(changes.gateways && changes.to_decide().is_none());
    }

    #[test]
    fn a_list_concerns_streams_and_no_port() {
        let with = |version| {
            config(
                1,
                [
                    gateway("g1", true),
                    destination("d1", "g1", 1),
                    acl("g1", version, []),
                ],
            )
        };
        let changes = Changes::between(&with(1), &with(2));
        assert_eq!((ids(&changes).len(), changes.gateways), (0, false));
        assert!(changes.to_decide().is_none());
    }
}
