//! Switches that make the memory store misbehave the way real ones do.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Shared;
use super::state::State;

/// What goes wrong next. Counters run down by themselves.
#[derive(Debug, Default)]
pub(super) struct Plan {
    fail_reads: u32,
    fail_writes: u32,
    unknown_outcomes: u32,
    unknown_applied: bool,
    lose_events: u32,
    watch_delay: Duration,
}

pub(super) enum ReadFault {
    Unavailable,
}

pub(super) enum WriteFault {
    Unavailable,
    UnknownOutcome { applied: bool },
}

impl Plan {
    pub(super) fn next_read(&mut self) -> Option<ReadFault> {
        take_one(&mut self.fail_reads).then_some(ReadFault::Unavailable)
    }

    pub(super) fn next_write(&mut self) -> Option<WriteFault> {
        if take_one(&mut self.fail_writes) {
            return Some(WriteFault::Unavailable);
        }
        let applied = self.unknown_applied;
        take_one(&mut self.unknown_outcomes).then_some(WriteFault::UnknownOutcome { applied })
    }

    pub(super) fn lose_next_events(&mut self) -> bool {
        take_one(&mut self.lose_events)
    }

    pub(super) fn watch_delay(&self) -> Duration {
        self.watch_delay
    }
}

fn take_one(count: &mut u32) -> bool {
    let any = *count > 0;
    *count = count.saturating_sub(1);
    any
}

/// A copy of the whole store, to go back to as an operator does with a backup.
#[derive(Clone)]
pub struct Checkpoint(State);

impl fmt::Debug for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Checkpoint")
            .field(&self.0.revision())
            .finish()
    }
}

/// The switches of one [`super::MemoryStore`].
#[derive(Debug, Clone)]
pub struct Faults(Arc<Shared>);

impl Faults {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }

    /// The next `count` reads, watches and health checks fail as unavailable; 0 heals.
    pub fn fail_reads(&self, count: u32) {
        self.0.plan().fail_reads = count;
    }

    /// The next `count` transactions fail as unavailable, without effect; 0 heals.
    pub fn fail_writes(&self, count: u32) {
        self.0.plan().fail_writes = count;
    }

    /// The next `count` transactions report an unknown outcome; whether they happen is `applied`.
    pub fn unknown_outcomes(&self, count: u32, applied: bool) {
        let mut plan = self.0.plan();
        plan.unknown_outcomes = count;
        plan.unknown_applied = applied;
    }

    /// Every batch reaches its watch this much later.
    pub fn delay_watches(&self, delay: Duration) {
        self.0.plan().watch_delay = delay;
    }

    /// Ends all open watches with [`super::super::WatchError::Ended`].
    pub fn drop_watches(&self) {
        self.0.watch_generation.send_modify(|n| *n += 1);
    }

    /// The next `count` transactions happen, but no watch ever learns of them.
    pub fn lose_events(&self, count: u32) {
        self.0.plan().lose_events = count;
    }

    /// A copy of everything, for [`Faults::restore`].
    pub fn checkpoint(&self) -> Checkpoint {
        Checkpoint(self.0.state().clone())
    }

    /// Goes back to a copy: the revision falls, as with a restored backup, and watches end.
    pub fn restore(&self, checkpoint: &Checkpoint) {
        let revision = checkpoint.0.revision();
        *self.0.state.lock().unwrap_or_else(PoisonError::into_inner) = checkpoint.0.clone();
        self.0.newest.send_replace(revision);
        self.drop_watches();
    }

    /// Gives the store another identity, as when an address leads to another cluster.
    pub fn change_cluster(&self, cluster_id: u64) {
        self.0.state().set_cluster_id(cluster_id);
        self.drop_watches();
    }
}
