//! Takes configuration from its source: what fits is handed to the reconciler, and acknowledged when that has applied
//! it; for the rest everything is asked for.

use std::sync::Arc;

use sg_proto::node::{Ack, Delta, Rejection, Snapshot, node_message};
use tokio::time::Instant;

use super::Hub;
use super::desired::Outcome;
use super::link::LinkId;

/// A change that is acknowledged when it is applied.
pub(super) struct Pending {
    pub(super) link: LinkId,
    pub(super) nonce: u64,
    pub(super) epoch: u64,
    pub(super) revision: u64,
    pub(super) rejected: Vec<Rejection>,
}

impl Hub {
    pub(super) fn snapshot(&mut self, id: LinkId, part: Snapshot) {
        if self.source == Some(id) {
            let outcome = self.desired.snapshot(part);
            self.settle(id, outcome);
        }
    }

    pub(super) fn delta(&mut self, id: LinkId, delta: Delta) {
        if self.source == Some(id) {
            let outcome = self.desired.delta(delta);
            self.settle(id, outcome);
        }
    }

    fn settle(&mut self, id: LinkId, outcome: Outcome) {
        let metrics = &self.control.node.metrics;
        let revision = self.desired.config().revision();
        match outcome {
            Outcome::Incomplete => {}
            Outcome::Changed { nonce, rejected } => {
                self.resync.fits();
                let rejects = i64::try_from(self.desired.rejected()).unwrap_or(i64::MAX);
                metrics.rejected_objects.set(rejects);
                let config = Arc::clone(self.desired.config());
                self.pending = Some(Pending {
                    link: id,
                    nonce,
                    epoch: config.epoch(),
                    revision,
                    rejected,
                });
                self.control.desired.send_replace(config);
                // The reconciler may have it already, when nothing was left to change.
                self.acknowledge_applied();
            }
            Outcome::Old { nonce } => self.acknowledge(id, nonce, Vec::new(), false),
            Outcome::Resync { nonce, why } => {
                metrics.resyncs.inc();
                tracing::warn!(why, revision, "asking the control plane for everything");
                self.resync.owe(id, nonce, Instant::now());
                self.ask_for_everything();
            }
        }
    }

    pub(super) fn ask_for_everything(&mut self) {
        if let Some((id, nonce)) = self.resync.take(Instant::now()) {
            self.acknowledge(id, nonce, Vec::new(), true);
        }
    }

    pub(super) fn acknowledge_applied(&mut self) {
        let applied = Arc::clone(&self.control.applied.borrow());
        let reached = |p: &Pending| (applied.epoch, applied.revision) == (p.epoch, p.revision);
        if let Some(pending) = self.pending.take_if(|pending| reached(pending)) {
            self.acknowledge(pending.link, pending.nonce, pending.rejected, false);
        }
    }

    fn acknowledge(&mut self, id: LinkId, nonce: u64, rejected: Vec<Rejection>, resync: bool) {
        let ack = Ack {
            nonce,
            revision: self.desired.config().revision(),
            rejected,
            resync,
        };
        self.send(id, node_message::Message::Ack(ack));
    }
}
