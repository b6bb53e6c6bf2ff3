//! Turns what a control plane sends into the next configuration: parts into a whole, objects checked one by
//! one, the result compared by its digest. Pure: bytes in, decision out.
//!
//! An object that cannot be parsed does not stop the others: the version that was good before stays, and the
//! rejection names it.

use std::collections::BTreeMap;
use std::sync::Arc;

use sg_model::{Change, Invalid, NodeConfig, NodeObject, StaleChange};
use sg_proto::convert::node::{object_from_wire, object_name, removal_from_wire, stand_in};
use sg_proto::node::{Delta, Object, Rejection, Snapshot, object};

/// Parts that one snapshot may have.
const MOST_PARTS: u32 = 4096;

/// The configuration that should be served, and what of it cannot.
#[derive(Debug, Default)]
pub(super) struct Desired {
    config: Arc<NodeConfig>,
    /// By kind and id.
    rejected: BTreeMap<(&'static str, String), Rejection>,
    parts: Option<Parts>,
}

#[derive(Debug)]
struct Parts {
    nonce: u64,
    next: u32,
    objects: Vec<Object>,
}

/// What to do after a message.
#[derive(Debug, PartialEq)]
pub(super) enum Outcome {
    /// Nothing yet: parts are missing.
    Incomplete,
    /// There is a new configuration: acknowledge when it is applied.
    Changed {
        /// To be acknowledged.
        nonce: u64,
        /// Objects of this message that cannot be served.
        rejected: Vec<Rejection>,
    },
    /// It leads to what is there already or further back: acknowledge with what is there.
    Old {
        /// To be acknowledged.
        nonce: u64,
    },
    /// It does not fit: ask for everything.
    Resync {
        /// To be acknowledged.
        nonce: u64,
        /// For the log.
        why: String,
    },
}

impl Desired {
    /// Starts with what was on disk, or nothing.
    pub(super) fn new(config: Arc<NodeConfig>) -> Self {
        Self {
            config,
            ..Self::default()
        }
    }

    /// The configuration.
    pub(super) fn config(&self) -> &Arc<NodeConfig> {
        &self.config
    }

    /// How many objects cannot be served.
    pub(super) fn rejected(&self) -> usize {
        self.rejected.len()
    }

    /// The stream that parts came on is gone.
    pub(super) fn forget_parts(&mut self) {
        self.parts = None;
    }

    /// Takes one part of a snapshot.
    pub(super) fn snapshot(&mut self, part: Snapshot) -> Outcome {
        let nonce = part.nonce;
        let mut parts = match self.parts.take() {
            _ if part.part == 0 => Parts {
                nonce,
                next: 0,
                objects: Vec::new(),
            },
            Some(parts) if parts.nonce == nonce && parts.next == part.part => parts,
            _ => {
                return Outcome::Resync {
                    nonce,
                    why: "a part of the snapshot is missing".to_owned(),
                };
            }
        };
        parts.objects.extend(part.objects);
        parts.next += 1;
        if parts.next < part.parts.min(MOST_PARTS) {
            self.parts = Some(parts);
            return Outcome::Incomplete;
        }
        let received = Received {
            nonce,
            epoch: part.epoch,
            from: None,
            to: part.revision,
            digest: part.digest,
        };
        self.apply(&received, parts.objects, Vec::new())
    }

    /// Takes a delta.
    pub(super) fn delta(&mut self, delta: Delta) -> Outcome {
        self.parts = None;
        let received = Received {
            nonce: delta.nonce,
            epoch: delta.epoch,
            from: Some(delta.from_revision),
            to: delta.to_revision,
            digest: delta.digest,
        };
        let removals = delta.removals.iter().map(removal_from_wire).collect();
        match removals {
            Ok(removals) => self.apply(&received, delta.upserts, removals),
            Err(error) => Outcome::Resync {
                nonce: delta.nonce,
                why: error.to_string(),
            },
        }
    }

    fn apply(
        &mut self,
        received: &Received,
        upserts: Vec<Object>,
        removals: Vec<sg_model::ObjectKey>,
    ) -> Outcome {
        let nonce = received.nonce;
        let checked = self.check(upserts);
        let mut next = NodeConfig::clone(&self.config);
        let removed: Vec<_> = removals
            .iter()
            .map(|key| (key.kind(), key.id().to_owned()))
            .collect();
        let change = Change {
            epoch: received.epoch,
            from: received.from,
            to: received.to,
            upserts: checked.good,
            removals,
        };
        match next.apply(change) {
            Ok(()) => {}
            Err(StaleChange::Older { .. }) => return Outcome::Old { nonce },
            Err(error @ StaleChange::Gap { .. }) => {
                return Outcome::Resync {
                    nonce,
                    why: error.to_string(),
                };
            }
        }
        let mut rejected = match received.from {
            None => BTreeMap::new(),
            Some(_) => std::mem::take(&mut self.rejected),
        };
        for name in removed.iter().chain(&checked.accepted) {
            rejected.remove(name);
        }
        rejected.extend(checked.rejected.iter().cloned());
        // A rejected object that never had a good version leaves a hole that the digest would show.
        let comparable = rejected.is_empty();
        if comparable && next.digest() != received.digest {
            return Outcome::Resync {
                nonce,
                why: "the digests differ".to_owned(),
            };
        }
        self.rejected = rejected;
        self.config = Arc::new(next);
        Outcome::Changed {
            nonce,
            rejected: checked.rejected.into_iter().map(|(_, r)| r).collect(),
        }
    }

    fn check(&self, objects: Vec<Object>) -> Checked {
        let mut checked = Checked::default();
        for object in objects {
            let (kind, id) = object_name(&object);
            let name = (kind, id.to_owned());
            match object_from_wire(&object) {
                Ok(good) => {
                    checked.accepted.push(name);
                    checked.good.push(good);
                }
                Err(error) => {
                    tracing::warn!(kind, id, %error, "object rejected");
                    if let Some(stand_in) = stand_in(&object) {
                        // Under no revision, so that the digests differ, and a later version of this program, which
                        // may understand the object, is sent it again.
                        checked.good.push((0, stand_in));
                    } else if let Some(previous) = self.previous(kind, id) {
                        // The good version stays, under the new revision, so that both sides speak of the same state.
                        checked.good.push((object.revision, previous));
                    }
                    checked.rejected.push((name, rejection(&object, &error)));
                }
            }
        }
        checked
    }

    fn previous(&self, kind: &str, id: &str) -> Option<NodeObject> {
        self.config
            .objects()
            .map(|(_, object)| object)
            .find(|object| {
                let key = object.key();
                key.kind() == kind && key.id() == id
            })
            .cloned()
    }
}

/// What a message says beside its objects.
struct Received {
    nonce: u64,
    epoch: u64,
    from: Option<u64>,
    to: u64,
    digest: u64,
}

#[derive(Default)]
struct Checked {
    good: Vec<(u64, NodeObject)>,
    accepted: Vec<(&'static str, String)>,
    rejected: Vec<((&'static str, String), Rejection)>,
}

fn rejection(object: &Object, error: &Invalid) -> Rejection {
    let generation = match &object.object {
        Some(object::Object::Gateway(g)) => g.generation,
        Some(object::Object::Destination(d)) => d.generation,
        Some(object::Object::Acl(acl)) => acl.generation,
        _ => 0,
    };
    Rejection {
        object_id: object_name(object).1.to_owned(),
        generation,
        reason: "invalid".to_owned(),
        message: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use sg_proto::convert::node::{change_to_delta, object_to_wire};

    use super::*;
    use crate::reconcile::testing::{acl, config, destination, gateway};

    fn parts(config: &NodeConfig, nonce: u64, size: usize) -> Vec<Snapshot> {
        let objects: Vec<_> = config
            .objects()
            .map(|(r, o)| object_to_wire(r, o))
            .collect();
        let chunks: Vec<_> = objects.chunks(size).collect();
        let of = u32::try_from(chunks.len()).unwrap();
        let parts = chunks.into_iter().enumerate().map(|(i, objects)| Snapshot {
            nonce,
            epoch: config.epoch(),
            revision: config.revision(),
            part: u32::try_from(i).unwrap(),
            parts: of,
            objects: objects.to_vec(),
            digest: config.digest(),
        });
        parts.collect()
    }

    fn delta(from: &NodeConfig, to: &NodeConfig, nonce: u64) -> Delta {
        let mut delta = change_to_delta(&from.change_to(to));
        delta.nonce = nonce;
        delta.digest = to.digest();
        delta
    }

    fn one() -> NodeConfig {
        config(1, [gateway("g1", true), destination("d1", "g1", 15000)])
    }

    fn two() -> NodeConfig {
        config(2, [gateway("g1", true), destination("d2", "g1", 15001)])
    }

    fn follow(outcomes: impl IntoIterator<Item = Outcome>) -> Outcome {
        outcomes.into_iter().last().unwrap()
    }

    #[test]
    fn a_snapshot_in_parts_then_a_delta() {
        let mut desired = Desired::default();
        let good = |nonce| Outcome::Changed {
            nonce,
            rejected: vec![],
        };
        let mut all = parts(&one(), 1, 1).into_iter();
        assert_eq!(desired.snapshot(all.next().unwrap()), Outcome::Incomplete);
        assert_eq!(
            desired.config().revision(),
            0,
            "nothing is applied in between"
        );
        assert_eq!(desired.snapshot(all.next().unwrap()), good(1));
        assert_eq!(desired.delta(delta(&one(), &two(), 2)), good(2));
        assert_eq!(**desired.config(), two());
        let again = desired.delta(delta(&one(), &two(), 3));
        assert_eq!(again, Outcome::Old { nonce: 3 });
    }

    /// Row 30: who has seen something newer takes nothing older, whole or in part, from whichever control plane, also
    /// when the newer state comes from its own disk.
    #[test]
    fn threat_30_an_older_state_is_refused_by_who_has_seen_a_newer_one() {
        let old = |outcome| matches!(outcome, Outcome::Old { .. });
        let newest = config(9, [gateway("g1", true), destination("d1", "g1", 15003)]);
        let mut desired = Desired::new(Arc::new(newest.clone()));
        let outcomes = parts(&one(), 1, 9).into_iter().map(|p| desired.snapshot(p));
        assert!(old(follow(outcomes)));
        assert!(old(desired.delta(delta(&one(), &two(), 2))));
        assert_eq!(**desired.config(), newest);
    }

    #[test]
    fn what_does_not_fit_asks_for_everything_and_changes_nothing() {
        let mut desired = Desired::default();
        let resync = |outcome| matches!(outcome, Outcome::Resync { .. });
        assert!(resync(desired.delta(delta(&one(), &two(), 1))));
        assert!(resync(desired.snapshot(parts(&one(), 2, 1).remove(1))));
        follow(parts(&one(), 3, 9).into_iter().map(|p| desired.snapshot(p)));
        let mut wrong = delta(&one(), &two(), 4);
        wrong.digest ^= 1;
        assert!(resync(desired.delta(wrong)));
        assert_eq!(**desired.config(), one());
    }

    #[test]
    fn a_bad_object_is_named_and_its_good_version_stays() {
        let mut desired = Desired::default();
        follow(parts(&one(), 1, 9).into_iter().map(|p| desired.snapshot(p)));
        let newer = config(2, [gateway("g1", true), destination("d1", "g1", 15009)]);
        let mut bad = delta(&one(), &newer, 2);
        for object in &mut bad.upserts {
            if let Some(object::Object::Destination(d)) = &mut object.object {
                d.protocol = "telepathy".to_owned();
            }
        }
        let Outcome::Changed { rejected, .. } = desired.delta(bad) else {
            panic!("the rest is applied");
        };
        assert_eq!(rejected.len(), 1);
        assert_eq!(rejected[0].object_id, "d1");
        assert_eq!(desired.rejected(), 1);
        let port = |desired: &Desired| {
            let d = desired.config().destinations().next().unwrap();
            d.listen.cloud_port()
        };
        assert_eq!(port(&desired), Some(15000));
        assert_eq!(desired.config().revision(), 2);

        let repaired = config(3, [gateway("g1", true), destination("d1", "g1", 15009)]);
        follow(
            parts(&repaired, 3, 9)
                .into_iter()
                .map(|p| desired.snapshot(p)),
        );
        assert_eq!((desired.rejected(), port(&desired)), (0, Some(15009)));
    }

    #[test]
    fn a_list_that_cannot_be_understood_denies_everything() {
        let entry = sg_model::AclEntry::parse(sg_model::Action::Allow, "db:1").unwrap();
        let before = config(1, [gateway("g1", true), acl("g1", 1, [entry.clone()])]);
        let mut desired = Desired::default();
        follow(
            parts(&before, 1, 9)
                .into_iter()
                .map(|p| desired.snapshot(p)),
        );
        let newer = config(2, [gateway("g1", true), acl("g1", 2, [entry])]);
        let mut strange = delta(&before, &newer, 2);
        for object in &mut strange.upserts {
            if let Some(object::Object::Acl(acl)) = &mut object.object {
                acl.entries[0].action = "allow-on-mondays".to_owned();
            }
        }
        let Outcome::Changed { rejected, .. } = desired.delta(strange) else {
            panic!("the rest is applied");
        };
        assert_eq!(rejected.len(), 1);
        let id = sg_model::GatewayId::new("g1").unwrap();
        let list = desired.config().acl(&id).unwrap();
        assert_eq!((list.version.generation, list.entries.len()), (2, 0));
        // So that a later version of the program is sent it again.
        assert_ne!(desired.config().digest(), newer.digest());
    }
}
