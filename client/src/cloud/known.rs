//! What the nodes of a gateway told of its destinations. As with the access control list, the newest set counts,
//! whichever node it came from.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use sg_model::{Destination, DestinationId, Invalid};
use sg_proto::tunnel as wire;
use sg_relay::{Approach, Reception};
use tokio::sync::watch;
use tokio::time::timeout;

/// How long a stream waits for a destination that its node knows in a newer version.
const WAIT: Duration = Duration::from_secs(1);

/// The destinations of one gateway; one writer at a time, many readers.
#[derive(Debug, Default)]
pub struct State {
    current: watch::Sender<Arc<Known>>,
}

/// The destinations as they are at one moment.
#[derive(Debug, Default)]
pub struct Known {
    epoch: u64,
    revision: u64,
    destinations: BTreeMap<DestinationId, Arc<KnownDestination>>,
}

/// One destination, and what is made of it when it is needed for the first time.
#[derive(Debug)]
pub struct KnownDestination {
    /// As the node told it.
    pub destination: Destination,
    approach: OnceLock<Result<Approach, String>>,
    reception: OnceLock<Result<Reception, String>>,
}

/// What came of a set that a node sent.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is newer and counts now; these destinations of it cannot be understood.
    Applied(Vec<(String, Invalid)>),
    /// It is as old as the present one, or older.
    Older,
}

impl State {
    /// Takes over a set if it is newer than the present one.
    pub fn offer(&self, sent: &wire::Destinations) -> Outcome {
        let mut outcome = Outcome::Older;
        self.current.send_if_modified(|current| {
            if (sent.epoch, sent.revision) <= (current.epoch, current.revision) {
                return false;
            }
            let mut faults = Vec::new();
            let mut destinations = BTreeMap::new();
            for one in &sent.destinations {
                match Destination::try_from(one) {
                    Ok(new) => {
                        // What is the same keeps what was made of it.
                        let old = current.destinations.get(&new.id);
                        let known = match old.filter(|old| old.destination == new) {
                            Some(old) => Arc::clone(old),
                            None => Arc::new(KnownDestination::new(new)),
                        };
                        destinations.insert(known.destination.id.clone(), known);
                    }
                    Err(fault) => faults.push((one.name.clone(), fault)),
                }
            }
            *current = Arc::new(Known {
                epoch: sent.epoch,
                revision: sent.revision,
                destinations,
            });
            outcome = Outcome::Applied(faults);
            true
        });
        outcome
    }

    /// To read the destinations and to be told of changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Known>> {
        self.current.subscribe()
    }

    /// A destination of this generation or a newer one; waits a little for it.
    pub async fn wait_for(
        &self,
        id: &DestinationId,
        generation: u64,
    ) -> Option<Arc<KnownDestination>> {
        let new_enough = |known: &Arc<Known>| {
            known
                .get(id)
                .filter(|one| one.destination.generation >= generation)
                .cloned()
        };
        let mut current = self.current.subscribe();
        let waited = timeout(WAIT, current.wait_for(|known| new_enough(known).is_some())).await;
        match waited {
            Ok(Ok(known)) => new_enough(&known),
            _ => None,
        }
    }
}

impl Known {
    /// A destination.
    #[must_use]
    pub fn get(&self, id: &DestinationId) -> Option<&Arc<KnownDestination>> {
        self.destinations.get(id)
    }

    /// All of them.
    pub fn all(&self) -> impl Iterator<Item = &Arc<KnownDestination>> {
        self.destinations.values()
    }
}

impl KnownDestination {
    fn new(destination: Destination) -> Self {
        Self {
            destination,
            approach: OnceLock::new(),
            reception: OnceLock::new(),
        }
    }

    /// The way to its resource.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub fn approach(&self) -> Result<&Approach, &str> {
        let made = self
            .approach
            .get_or_init(|| Approach::new(&self.destination).map_err(|error| error.to_string()));
        made.as_ref().map_err(String::as_str)
    }

    /// How its users are received.
    ///
    /// # Errors
    /// Its certificates cannot be used.
    pub fn reception(&self) -> Result<&Reception, &str> {
        let made = self
            .reception
            .get_or_init(|| Reception::new(&self.destination).map_err(|error| error.to_string()));
        made.as_ref().map_err(String::as_str)
    }
}

#[cfg(test)]
pub(super) mod testing {
    #![allow(clippy::unwrap_used)]

    use sg_proto::node as node_wire;

    /// A cloud destination as a node tells it.
    pub(in super::super) fn destination(
        id: &str,
        port: u32,
        generation: u64,
    ) -> node_wire::Destination {
        node_wire::Destination {
            id: id.to_owned(),
            gateway_id: "g1".to_owned(),
            name: id.to_lowercase(),
            kind: "cloud".to_owned(),
            protocol: "tcp".to_owned(),
            resource_host: "db".to_owned(),
            resource_port: 5432,
            client_port: port,
            enabled: true,
            generation,
            ..node_wire::Destination::default()
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::testing::destination;
    use super::*;

    fn set(revision: u64, destinations: Vec<sg_proto::node::Destination>) -> wire::Destinations {
        wire::Destinations {
            epoch: 1,
            revision,
            destinations,
        }
    }

    #[test]
    fn the_newest_set_counts_and_what_is_the_same_is_kept() {
        let state = State::default();
        let one = || destination("d1", 3306, 1);
        assert_eq!(
            state.offer(&set(5, vec![one(), destination("d2", 3307, 1)])),
            Outcome::Applied(vec![])
        );
        let before = Arc::clone(&state.subscribe().borrow());
        assert_eq!(state.offer(&set(5, vec![])), Outcome::Older);
        assert_eq!(state.offer(&set(4, vec![])), Outcome::Older);
        assert_eq!(state.offer(&set(6, vec![one()])), Outcome::Applied(vec![]));
        let after = Arc::clone(&state.subscribe().borrow());
        let id = DestinationId::new("d1").unwrap();
        assert!(Arc::ptr_eq(
            before.get(&id).unwrap(),
            after.get(&id).unwrap()
        ));
        assert_eq!(after.all().count(), 1);
    }

    #[test]
    fn one_that_cannot_be_understood_is_named_and_left_out() {
        let state = State::default();
        let mut bad = destination("d1", 3306, 1);
        bad.protocol = "carrier-pigeon".to_owned();
        let Outcome::Applied(faults) = state.offer(&set(5, vec![bad, destination("d2", 1, 1)]))
        else {
            panic!("it is newer");
        };
        assert_eq!((faults.len(), faults[0].1.field), (1, "protocol"));
        assert_eq!(state.subscribe().borrow().all().count(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_waits_for_a_newer_version_only_so_long() {
        let state = State::default();
        state.offer(&set(5, vec![destination("d1", 3306, 1)]));
        let id = DestinationId::new("d1").unwrap();
        assert!(state.wait_for(&id, 1).await.is_some());
        assert!(state.wait_for(&id, 2).await.is_none());
        let newer = async {
            tokio::time::sleep(Duration::from_millis(500)).await;
            state.offer(&set(6, vec![destination("d1", 3306, 2)]));
        };
        let (found, ()) = tokio::join!(state.wait_for(&id, 2), newer);
        assert_eq!(found.unwrap().destination.generation, 2);
    }
}
