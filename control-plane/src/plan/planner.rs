//! Plans kept up step by step, with the latest steps remembered.
//!
//! Per group there is one configuration, changed in place by the same [`NodeConfig::apply`] that
//! nodes use, and a log of the steps that led to it. A node that is not further behind than the
//! log is sent the merged steps it lacks; any other gets everything.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sg_model::{Change, Name, NodeConfig, NodeObject, ObjectKey};

use super::{complete, object};
use crate::world::{Touched, World};

/// Steps remembered per group, at most.
const MAX_STEPS: usize = 1024;
/// Objects in all remembered steps of a group, at most.
const MAX_STEP_OBJECTS: usize = 20_000;

/// The plan of every group that has a gateway or a node.
pub type Plans = Arc<BTreeMap<Name, Arc<GroupPlan>>>;

/// Where a group's configuration stands, and how it got there. Immutable.
#[derive(Debug, Clone, Default)]
pub struct GroupPlan {
    /// Epoch of the configuration.
    pub epoch: u64,
    /// Revision of the last change of the configuration.
    pub revision: u64,
    /// Digest of the configuration.
    pub digest: u64,
    /// Every step after this revision is remembered.
    floor: u64,
    floor_digest: u64,
    steps: VecDeque<Arc<Step>>,
}

#[derive(Debug)]
struct Step {
    revision: u64,
    digest: u64,
    upserts: Vec<(u64, NodeObject)>,
    removals: Vec<ObjectKey>,
}

impl Step {
    fn objects(&self) -> usize {
        self.upserts.len() + self.removals.len()
    }
}

impl GroupPlan {
    fn starting_at(config: &NodeConfig) -> Self {
        let digest = config.digest();
        Self {
            epoch: config.epoch(),
            revision: config.revision(),
            digest,
            floor: config.revision(),
            floor_digest: digest,
            steps: VecDeque::new(),
        }
    }

    fn push(&mut self, step: Step) {
        (self.revision, self.digest) = (step.revision, step.digest);
        self.steps.push_back(Arc::new(step));
        let mut objects: usize = self.steps.iter().map(|step| step.objects()).sum();
        while self.steps.len() > MAX_STEPS || objects > MAX_STEP_OBJECTS {
            let Some(oldest) = self.steps.pop_front() else {
                break;
            };
            objects -= oldest.objects();
            (self.floor, self.floor_digest) = (oldest.revision, oldest.digest);
        }
    }

    /// The digest that the configuration had at `revision`, as far as is remembered.
    pub fn digest_at(&self, revision: u64) -> Option<u64> {
        let before = self
            .steps
            .iter()
            .rev()
            .find(|step| step.revision <= revision);
        match before {
            Some(step) => Some(step.digest),
            None => (revision >= self.floor).then_some(self.floor_digest),
        }
    }

    /// The change from what a node has at `have` to this plan, merged so that the latest state of
    /// each object wins. `None` if not all steps since then are remembered; empty if there are none.
    pub fn since(&self, have: u64) -> Option<Change> {
        if have < self.floor {
            return None;
        }
        // Newest first: what is seen first of an object is its latest state.
        let mut latest: BTreeMap<ObjectKey, Option<&(u64, NodeObject)>> = BTreeMap::new();
        for step in self
            .steps
            .iter()
            .rev()
            .take_while(|step| step.revision > have)
        {
            for upsert in &step.upserts {
                latest.entry(upsert.1.key()).or_insert(Some(upsert));
            }
            for key in &step.removals {
                latest.entry(key.clone()).or_insert(None);
            }
        }
        let mut change = Change {
            epoch: self.epoch,
            from: Some(have),
            to: self.revision,
            upserts: Vec::new(),
            removals: Vec::new(),
        };
        for (key, state) in latest {
            match state {
                Some(upsert) => change.upserts.push(upsert.clone()),
                None => change.removals.push(key),
            }
        }
        Some(change)
    }
}

#[derive(Debug)]
struct Group {
    config: NodeConfig,
    plan: Arc<GroupPlan>,
}

/// Keeps the plans of all groups up with the world.
#[derive(Debug, Default)]
pub struct Planner {
    groups: BTreeMap<Name, Group>,
}

impl Planner {
    /// Takes the world's changes over: `touched` must name every object that differs from the
    /// world of the last call. Work is proportional to what was touched.
    pub fn advance(&mut self, world: &World, touched: &[Touched]) -> Plans {
        let mut by_group: BTreeMap<&Name, Vec<&Touched>> = BTreeMap::new();
        for item in touched {
            by_group.entry(&item.group).or_default().push(item);
        }
        for (name, items) in by_group {
            match self.groups.get_mut(name) {
                Some(group) if group.config.epoch() == world.epoch => {
                    group.step(world, name, &items);
                }
                _ => self.start(world, name),
            }
        }
        // A new epoch starts every group over, touched or not.
        let outdated: Vec<Name> = self
            .groups
            .iter()
            .filter(|(_, group)| group.config.epoch() != world.epoch)
            .map(|(name, _)| name.clone())
            .collect();
        for name in &outdated {
            self.start(world, name);
        }
        // A group without gateway and node is none, whoever named it before.
        self.groups.retain(|_, group| !group.config.is_empty());
        let plans = self
            .groups
            .iter()
            .map(|(name, group)| (name.clone(), Arc::clone(&group.plan)));
        Arc::new(plans.collect())
    }

    fn start(&mut self, world: &World, name: &Name) {
        let config = complete(world, name);
        let plan = Arc::new(GroupPlan::starting_at(&config));
        self.groups.insert(name.clone(), Group { config, plan });
    }
}

impl Group {
    fn step(&mut self, world: &World, name: &Name, items: &[&Touched]) {
        let mut latest: BTreeMap<&ObjectKey, Option<(u64, NodeObject)>> = BTreeMap::new();
        for item in items {
            let state = object(world, name, item.gateway.as_ref(), &item.key);
            latest.insert(&item.key, state);
        }
        let mut change = Change {
            epoch: self.config.epoch(),
            from: Some(self.config.revision()),
            to: world.revision.get(),
            upserts: Vec::new(),
            removals: Vec::new(),
        };
        for (key, state) in latest {
            match state {
                Some(upsert) => change.upserts.push(upsert),
                None => change.removals.push(key.clone()),
            }
        }
        let (upserts, removals) = (change.upserts.clone(), change.removals.clone());
        if self.config.apply(change).is_err() {
            // The world went back: its keeper raises the epoch, and until then this starts over.
            self.config = complete(world, name);
            self.plan = Arc::new(GroupPlan::starting_at(&self.config));
            return;
        }
        let (revision, digest) = (self.config.revision(), self.config.digest());
        Arc::make_mut(&mut self.plan).push(Step {
            revision,
            digest,
            upserts,
            removals,
        });
    }
}

#[cfg(test)]
mod tests;
