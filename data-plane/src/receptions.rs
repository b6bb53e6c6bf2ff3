//! How the users of each destination are received, built once for each version of it, and kept for as long as there
//! is such a destination. Certificates that change are those of connections that come after.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::{Destination, DestinationId, NodeConfig};
use sg_relay::Reception;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Receptions(Mutex<HashMap<DestinationId, (u64, Built)>>);

/// A reception, or why there is none.
type Built = Result<Reception, Arc<str>>;

impl Receptions {
    /// How users of this destination are received.
    ///
    /// # Errors
    /// Why they cannot be: its certificates.
    pub(crate) fn of(&self, destination: &Destination) -> Built {
        let mut all = self.lock();
        if let Some((generation, built)) = all.get(&destination.id)
            && *generation == destination.generation
        {
            return built.clone();
        }
        let built = Reception::new(destination).map_err(|error| error.to_string().into());
        all.insert(
            destination.id.clone(),
            (destination.generation, built.clone()),
        );
        built
    }

    /// Forgets those of these destinations that are gone.
    pub(crate) fn forget(&self, config: &NodeConfig, changed: &BTreeSet<DestinationId>) {
        let mut all = self.lock();
        for id in changed.iter().filter(|id| config.destination(id).is_none()) {
            all.remove(id);
        }
    }

    /// Forgets those of any destination that is gone.
    pub(crate) fn sweep(&self, config: &NodeConfig) {
        self.lock().retain(|id, _| config.destination(id).is_some());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<DestinationId, (u64, Built)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
