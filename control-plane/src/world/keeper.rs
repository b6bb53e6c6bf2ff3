//! The only writer of the world: follows the store, works out the plans, publishes both.
//!
//! World and plans are published together, so whoever sees a revision sees its plans. It carries
//! state, never events: a follower hands over its newest snapshot, and what it differs by from the
//! last one is taken over.

use std::sync::Arc;
use std::time::Duration;

use sg_model::TokenScope;
use sg_runtime::tasks::{Ended, TaskGroup};
use tokio::sync::watch;

use super::{StoreHealth, World, epoch};
use crate::keys;
use crate::plan::{Planner, Plans};
use crate::store::follow::{self, Change, FollowOptions, Snapshot, State};
use crate::store::{Event, KeyValue, Revision, Store};
use crate::vault::Vault;

/// What is followed, each on its own: the objects are the only ones that change often.
const PREFIXES: [&str; 4] = [keys::OBJECTS, keys::META, keys::ADMIN_TOKENS, keys::LIVE];

/// The world with the plans that follow from it.
#[derive(Debug, Clone, Default)]
pub struct View {
    /// What the store says.
    pub world: World,
    /// What each group should serve.
    pub plans: Plans,
    /// The stored values that the world was read from, by the prefixes that are followed.
    stored: [Arc<Snapshot>; PREFIXES.len()],
}

impl View {
    /// The stored value under a key that is followed.
    pub(crate) fn stored(&self, key: &str) -> Option<&Arc<KeyValue>> {
        let index = PREFIXES.iter().position(|prefix| key.starts_with(prefix))?;
        self.stored[index].get(key)
    }
}

/// Where everybody reads the newest view. Clones share it.
/// A handle may be for some gateways only; the others are not in the views it gives.
#[derive(Debug, Clone)]
pub struct Views {
    newest: watch::Receiver<Option<Arc<View>>>,
    scope: Arc<TokenScope>,
}

impl Views {
    /// The newest view; an empty one before the store was read for the first time.
    pub fn now(&self) -> Arc<View> {
        let whole = self.whole();
        match &*self.scope {
            TokenScope::All => whole,
            TokenScope::Gateways(ids) => Arc::new(View {
                world: whole.world.only(ids),
                plans: whole.plans.clone(),
                stored: <[_; PREFIXES.len()]>::default(),
            }),
        }
    }

    /// The newest view with everything in it, whatever the handle is for. Nothing of it may reach
    /// a caller.
    pub(crate) fn whole(&self) -> Arc<View> {
        self.newest.borrow().clone().unwrap_or_default()
    }

    /// What the handle is for.
    pub fn scope(&self) -> &TokenScope {
        &self.scope
    }

    /// A handle for these gateways.
    #[must_use]
    pub fn for_scope(&self, scope: TokenScope) -> Self {
        Self {
            newest: self.newest.clone(),
            scope: Arc::new(scope),
        }
    }

    /// Waits for a view that is newer than those seen through this handle.
    /// Pending for ever once the keeper is gone; then the process ends anyway.
    pub async fn changed(&mut self) {
        if self.newest.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets [`Views::changed`] wait for what comes after the newest view.
    pub fn mark_seen(&mut self) {
        self.newest.mark_unchanged();
    }

    /// Waits until the store was read for the first time.
    pub async fn loaded(&mut self) {
        if self.newest.wait_for(Option::is_some).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Waits until the view has reached `revision`, or the time is over; tells which.
    pub async fn reach(&self, revision: Revision, limit: Duration) -> bool {
        let mut views = self.newest.clone();
        let reached = views.wait_for(|view| {
            view.as_ref()
                .is_some_and(|view| view.world.revision >= revision)
        });
        matches!(tokio::time::timeout(limit, reached).await, Ok(Ok(_)))
    }
}

/// One followed prefix and what was taken over of it.
#[derive(Debug)]
struct Followed {
    snapshots: watch::Receiver<Arc<Snapshot>>,
    taken: Arc<Snapshot>,
}

impl Followed {
    async fn changed(&mut self) {
        // A driver that is gone is noticed where it is owned.
        if self.snapshots.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Keeps the view; run it as a task.
#[derive(Debug)]
pub struct Keeper {
    published: watch::Sender<Option<Arc<View>>>,
    planner: Planner,
    view: View,
}

impl Keeper {
    /// A keeper that has read nothing yet, and where to read what it publishes. `vault` opens secrets.
    pub fn new(vault: Vault) -> (Self, Views) {
        let (published, views) = watch::channel(None);
        (
            Self {
                published,
                planner: Planner::default(),
                view: View {
                    world: World::with_vault(vault),
                    ..View::default()
                },
            },
            Views {
                newest: views,
                scope: Arc::default(),
            },
        )
    }

    /// Follows the store for ever. Returns only if a part of it dies.
    ///
    /// # Errors
    /// Which part died, and how.
    pub async fn run(mut self, store: Arc<dyn Store>, health: StoreHealth) -> Result<(), String> {
        let mut drivers = TaskGroup::new();
        let mut followers = Vec::with_capacity(PREFIXES.len());
        for prefix in PREFIXES {
            let (follower, driver) =
                follow::follow(Arc::clone(&store), prefix, FollowOptions::default());
            drivers.spawn(prefix, driver.run());
            followers.push(follower);
        }
        let mut states: [_; PREFIXES.len()] =
            std::array::from_fn(|index| followers[index].subscribe_state());
        let [of_objects, of_meta, of_admins, of_live] = &mut states;
        let [mut objects, mut meta, mut admins, mut live] =
            [0, 1, 2, 3].map(|index: usize| Followed {
                snapshots: followers[index].subscribe(),
                taken: Arc::default(),
            });
        loop {
            // All arms are cancel safe, and none carries anything: what changed is looked up.
            tokio::select! {
                ended = drivers.join_next() => {
                    let (name, how) = ended.unwrap_or_else(|| ("all".to_owned(), Ended::Finished));
                    return Err(format!("the follower of {name} {how}"));
                }
                () = objects.changed() => {}
                () = meta.changed() => {}
                () = admins.changed() => {}
                () = live.changed() => {}
                Ok(()) = of_objects.changed() => {}
                Ok(()) = of_meta.changed() => {}
                Ok(()) = of_admins.changed() => {}
                Ok(()) = of_live.changed() => {}
            }
            for (prefix, state) in PREFIXES.into_iter().zip([
                &mut *of_objects,
                &mut *of_meta,
                &mut *of_admins,
                &mut *of_live,
            ]) {
                tell(prefix, &state.borrow_and_update(), &health);
            }
            if self.take([&mut objects, &mut meta, &mut admins, &mut live]) {
                epoch::raise(&*store, &health, self.view.world.epoch).await;
            }
        }
    }

    /// Takes everything over that is new, and publishes. Tells whether history broke.
    fn take(&mut self, all: [&mut Followed; PREFIXES.len()]) -> bool {
        let world = &mut self.view.world;
        let mut touched = Vec::new();
        let mut broke = false;
        let mut loaded = true;
        for (index, (prefix, followed)) in PREFIXES.into_iter().zip(all).enumerate() {
            let newest = Arc::clone(&followed.snapshots.borrow_and_update());
            loaded &= newest.revision > Revision::NONE;
            let first = followed.taken.revision == Revision::NONE;
            if prefix == keys::OBJECTS {
                broke |= !first && newest.epoch != followed.taken.epoch;
                world.revision = newest.revision;
            }
            for change in newest.changes_since(&followed.taken) {
                let event = match change {
                    Change::Put(entry) => Event::Put(entry.as_ref().clone()),
                    Change::Deleted(entry) => Event::Delete {
                        key: entry.key.clone(),
                    },
                };
                touched.extend(world.apply(&event));
            }
            self.view.stored[index] = Arc::clone(&newest);
            followed.taken = newest;
        }
        let plans = self.planner.advance(world, &touched);
        if loaded {
            self.view.plans = plans;
            self.published
                .send_replace(Some(Arc::new(self.view.clone())));
        }
        broke
    }
}

fn tell(prefix: &'static str, state: &State, health: &StoreHealth) {
    match state {
        State::Loading => {}
        State::Fresh => health.following(prefix, None),
        State::Stale { reason, .. } => health.following(prefix, Some(reason)),
    }
}
