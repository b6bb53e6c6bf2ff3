//! Plans by steps are the same as plans from scratch, and nodes that follow them end up there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use proptest::prelude::*;
use prost::Message as _;
use sg_model::{Name, NodeConfig};
use sg_proto::store as wire;

use super::Planner;
use crate::keys;
use crate::plan::complete;
use crate::store::{Event, KeyValue, Revision};
use crate::world::World;

/// One change of the store.
#[derive(Debug, Clone)]
enum Step {
    Gateway {
        gateway: u8,
        group: u8,
    },
    Destination {
        gateway: u8,
        destination: u8,
        port: u16,
    },
    Acl {
        gateway: u8,
        generation: u64,
    },
    Node {
        node: u8,
        group: u8,
    },
    Delete {
        kind: u8,
        a: u8,
        b: u8,
    },
    Epoch,
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0..3u8, 0..2u8).prop_map(|(gateway, group)| Step::Gateway { gateway, group }),
        6 => (0..3u8, 0..4u8, 1..9u16)
            .prop_map(|(gateway, destination, port)| Step::Destination { gateway, destination, port }),
        3 => (0..3u8, 1..9u64).prop_map(|(gateway, generation)| Step::Acl { gateway, generation }),
        3 => (0..3u8, 0..2u8).prop_map(|(node, group)| Step::Node { node, group }),
        5 => (0..4u8, 0..3u8, 0..4u8).prop_map(|(kind, a, b)| Step::Delete { kind, a, b }),
        1 => Just(Step::Epoch),
    ]
}

fn gateway_key(n: u8) -> String {
    format!("{}gateway/G{n}", keys::OBJECTS)
}

fn group(n: u8) -> String {
    format!("group-{n}")
}

fn event(step: &Step, epoch: &mut u64, revision: u64) -> Event {
    let (key, value) = match step {
        Step::Gateway { gateway, group: n } => {
            let value = wire::Gateway {
                id: format!("G{gateway}"),
                name: format!("g{gateway}"),
                group: group(*n),
                policy: "round-robin".to_owned(),
                ..wire::Gateway::default()
            };
            (gateway_key(*gateway), value.encode_to_vec())
        }
        Step::Destination {
            gateway,
            destination,
            port,
        } => {
            let value = wire::Destination {
                // Ids are never shared between gateways.
                id: format!("D{gateway}{destination}"),
                gateway_id: format!("G{gateway}"),
                name: format!("d{destination}"),
                kind: "on-premises".to_owned(),
                protocol: "tcp".to_owned(),
                resource_host: "host".to_owned(),
                resource_port: 1,
                cloud_port: u32::from(*port),
                ..wire::Destination::default()
            };
            let key = format!(
                "{}destination/G{gateway}/D{gateway}{destination}",
                keys::OBJECTS
            );
            (key, value.encode_to_vec())
        }
        Step::Acl {
            gateway,
            generation,
        } => {
            let value = wire::Acl {
                gateway_id: format!("G{gateway}"),
                generation: *generation,
                unlisted: "deny".to_owned(),
                ..wire::Acl::default()
            };
            (
                format!("{}acl/G{gateway}", keys::OBJECTS),
                value.encode_to_vec(),
            )
        }
        Step::Node { node, group: n } => {
            let value = wire::Node {
                id: format!("N{node}"),
                name: format!("n{node}"),
                group: group(*n),
                ..wire::Node::default()
            };
            (
                format!("{}node/N{node}", keys::OBJECTS),
                value.encode_to_vec(),
            )
        }
        Step::Delete { kind, a, b } => {
            let key = match kind {
                0 => gateway_key(*a),
                1 => format!("{}destination/G{a}/D{a}{b}", keys::OBJECTS),
                2 => format!("{}acl/G{a}", keys::OBJECTS),
                _ => format!("{}node/N{a}", keys::OBJECTS),
            };
            return Event::Delete { key };
        }
        Step::Epoch => {
            *epoch += 1;
            (
                keys::META_EPOCH.to_owned(),
                wire::Epoch { epoch: *epoch }.encode_to_vec(),
            )
        }
    };
    let revision = Revision::new(revision);
    Event::Put(KeyValue {
        key,
        value: value.into(),
        mod_revision: revision,
        create_revision: revision,
    })
}

proptest! {
    /// Some steps are taken together, as a keeper does that falls behind; followers take a plan
    /// only now and then, as slow nodes do.
    #[test]
    fn steps_lead_where_a_plan_from_scratch_does(
        steps in prop::collection::vec((steps(), any::<bool>(), any::<bool>()), 1..60)
    ) {
        let mut world = World::default();
    world.epoch = 1;
        let mut planner = Planner::default();
        let mut epoch = 1;
        let mut touched = Vec::new();
        let mut nodes: BTreeMap<Name, NodeConfig> = BTreeMap::new();
        for (index, (step, publish, follow)) in steps.iter().enumerate() {
            let revision = u64::try_from(index).unwrap() + 2;
            let event = event(step, &mut epoch, revision);
            touched.extend(world.apply(&event));
            // As with separate followers, only objects move the revision of the objects.
            if event.key().starts_with(keys::OBJECTS) {
                world.revision = Revision::new(revision);
            }
            if !publish {
                continue;
            }
            let plans = planner.advance(&world, &touched);
            touched.clear();
            for n in 0..2 {
                let name = Name::new(group(n)).unwrap();
                let whole = complete(&world, &name);
                let Some(plan) = plans.get(&name) else {
                    prop_assert_eq!(whole.objects().count(), 0);
                    continue;
                };
                prop_assert_eq!(plan.digest, whole.digest());
                prop_assert_eq!(plan.epoch, world.epoch);
                prop_assert!(plan.revision <= world.revision.get());
                if !follow {
                    continue;
                }
                let node = nodes.entry(name).or_default();
                let known = node.epoch() == plan.epoch
                    && plan.digest_at(node.revision()) == Some(node.digest());
                match plan.since(node.revision()).filter(|_| known) {
                    Some(change) if change.to > node.revision() => {
                        prop_assert_eq!(node.apply(change), Ok(()));
                    }
                    Some(change) => {
                        prop_assert!(change.upserts.is_empty() && change.removals.is_empty());
                    }
                    None => *node = whole.clone(),
                }
                prop_assert_eq!(node.digest(), plan.digest);
            }
        }
    }
}

#[test]
fn what_is_no_longer_remembered_is_not_guessed() {
    let mut world = World::default();
    world.epoch = 1;
    let mut planner = Planner::default();
    let mut epoch = 1;
    let mut first = 0;
    let mut plans = planner.advance(&world, &[]);
    for revision in 2..2 + 1_100_u64 {
        let step = Step::Node { node: 0, group: 0 };
        let touched = world.apply(&event(&step, &mut epoch, revision));
        world.revision = Revision::new(revision);
        plans = planner.advance(&world, &touched);
        if revision == 2 {
            first = plans[&Name::new(group(0)).unwrap()].digest;
        }
    }
    let plan = &plans[&Name::new(group(0)).unwrap()];
    assert!(plan.since(2).is_none() && plan.digest_at(2).is_none());
    assert!(
        plan.since(1_000)
            .is_some_and(|change| change.upserts.len() == 1)
    );
    assert_ne!(plan.digest, first);
}
