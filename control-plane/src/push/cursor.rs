//! What one node has and what it should be sent next. No waiting here: the session asks.

use prost::Message as _;
use sg_model::NodeConfig;
use sg_proto::convert::node::{change_to_delta, object_to_wire};
use sg_proto::node as wire;
use sg_proto::node::control_message::Message;

use crate::plan::GroupPlan;

/// Largest part of a snapshot, and largest delta, in encoded bytes of objects.
const PART_BYTES: usize = 1024 * 1024;

/// What to do next for a node.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Next {
    /// It has everything.
    Nothing,
    /// It claims to be ahead; wait for the store, and ask again.
    Ahead,
    /// Send this, and await the acknowledgement.
    Delta(wire::Delta),
    /// Send everything.
    Snapshot,
}

/// Something was sent and is not acknowledged yet.
#[derive(Debug, Clone)]
pub(super) struct Unacknowledged {
    pub(super) nonce: u64,
    pub(super) epoch: u64,
    pub(super) revision: u64,
    pub(super) objects: Vec<String>,
    pub(super) complete: bool,
}

/// Where a subscribed node stands.
#[derive(Debug)]
pub(super) struct Cursor {
    epoch: u64,
    /// The revision as the node knows it; the next change must lead further.
    revision: u64,
    /// Where that is in our log. It differs from `revision` only after a subscription: equal
    /// objects may go by different revisions on a control plane that started later.
    position: u64,
    /// The digest the node claimed, until it was compared.
    claimed: Option<u64>,
    resync: bool,
}

impl Cursor {
    pub(super) fn new(subscribe: &wire::Subscribe) -> Self {
        Self {
            epoch: subscribe.epoch,
            revision: subscribe.revision,
            position: subscribe.revision,
            claimed: Some(subscribe.digest),
            resync: subscribe.revision == 0,
        }
    }

    /// The node has said that it cannot go on from what it has.
    pub(super) const fn resync(&mut self) {
        self.resync = true;
    }

    /// Epoch and revision as the node knows them.
    pub(super) const fn version(&self) -> (u64, u64) {
        (self.epoch, self.revision)
    }

    /// The node has everything up to here.
    pub(super) const fn reached(&mut self, epoch: u64, revision: u64) {
        *self = Self {
            epoch,
            revision,
            position: revision,
            claimed: None,
            resync: false,
        };
    }

    pub(super) fn next(&mut self, plan: &GroupPlan) -> Next {
        // It would ignore whatever we have, even everything.
        if self.revision > 0 && self.epoch > plan.epoch {
            return Next::Ahead;
        }
        if self.resync || self.epoch != plan.epoch {
            return Next::Snapshot;
        }
        if let Some(claimed) = self.claimed {
            if claimed == plan.digest {
                self.position = plan.revision;
            } else if self.revision > plan.revision {
                return Next::Ahead;
            } else if plan.digest_at(self.revision) != Some(claimed) {
                return Next::Snapshot;
            }
            self.claimed = None;
        }
        if plan.revision <= self.position || plan.revision <= self.revision {
            return Next::Nothing;
        }
        let Some(mut change) = plan.since(self.position) else {
            return Next::Snapshot;
        };
        change.from = Some(self.revision);
        let mut delta = change_to_delta(&change);
        delta.digest = plan.digest;
        if delta.encoded_len() > PART_BYTES {
            Next::Snapshot
        } else {
            Next::Delta(delta)
        }
    }
}

/// A whole configuration as messages of at most [`PART_BYTES`] of objects (or one object).
/// `revision` is that of the plan: the world may be further, without a change for this group.
pub(super) fn snapshot_parts(config: &NodeConfig, revision: u64, nonce: u64) -> Vec<Message> {
    let mut parts: Vec<Vec<wire::Object>> = vec![Vec::new()];
    let mut bytes = 0;
    for (changed, object) in config.objects() {
        let object = object_to_wire(changed, object);
        let length = object.encoded_len() + 8;
        if bytes + length > PART_BYTES && bytes > 0 {
            parts.push(Vec::new());
            bytes = 0;
        }
        bytes += length;
        if let Some(part) = parts.last_mut() {
            part.push(object);
        }
    }
    let count = u32::try_from(parts.len()).unwrap_or(u32::MAX);
    let digest = config.digest();
    let numbered = (0..).zip(parts);
    let message = |(part, objects)| {
        Message::Snapshot(wire::Snapshot {
            nonce,
            epoch: config.epoch(),
            revision,
            part,
            parts: count,
            objects,
            digest,
        })
    };
    numbered.map(message).collect()
}
