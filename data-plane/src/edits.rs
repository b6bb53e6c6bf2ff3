//! Changes of access control lists that clients ask for: tunnels put them into one bounded queue, [`crate::control`] sends
//! them up and brings back what became of them. Who asks is read from the client's connection, never from what it says.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use sg_model::GatewayId;
use sg_proto::node::{AclChange, AclEditResult};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

/// Changes that may wait to be sent up.
const WAITING: usize = 64;
/// Changes of one client at once.
const BURST: u32 = 20;
/// One more is allowed after each of these.
const REFILL: Duration = Duration::from_millis(500);
/// Clients remembered; beyond this those that have lately asked for nothing are forgotten, and then all.
const CLIENTS: usize = 4096;

/// A change that a client asks for.
#[derive(Debug)]
pub(crate) struct Edit {
    pub(crate) gateway: GatewayId,
    /// From the key that the client proved.
    pub(crate) client: Arc<str>,
    pub(crate) address: IpAddr,
    /// As the client has chosen it: the same again is the same change.
    pub(crate) request_id: Vec<u8>,
    pub(crate) change: AclChange,
    pub(crate) answer: oneshot::Sender<AclEditResult>,
}

/// Where tunnels put their clients' changes.
#[derive(Debug, Clone)]
pub(crate) struct EditDesk {
    queue: mpsc::Sender<Edit>,
    rates: Arc<Mutex<HashMap<Arc<str>, Rate>>>,
}

/// How much of its burst a client has used up, as of `since`.
#[derive(Debug, Clone, Copy)]
struct Rate {
    used: u32,
    since: Instant,
}

impl EditDesk {
    /// A desk, and where its changes arrive.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Edit>) {
        let (queue, receiver) = mpsc::channel(WAITING);
        let desk = Self {
            queue,
            rates: Arc::default(),
        };
        (desk, receiver)
    }

    /// Hands a change over.
    ///
    /// # Errors
    /// Too many: of this client lately, or of all that wait.
    pub(crate) fn hand_in(&self, edit: Edit) -> Result<(), AclEditResult> {
        if !self.may(&edit.client, Instant::now()) {
            return Err(too_many("this client has changed the list very often"));
        }
        let full = |_| too_many("too many clients of this node change lists just now");
        self.queue.try_send(edit).map_err(full)
    }

    /// Counts one change of a client; whether it may be made.
    fn may(&self, client: &Arc<str>, now: Instant) -> bool {
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        if rates.len() >= CLIENTS && !rates.contains_key(client) {
            rates.retain(|_, rate| rate.at(now).used > 0);
            if rates.len() >= CLIENTS {
                rates.clear();
            }
        }
        let fresh = Rate {
            used: 0,
            since: now,
        };
        let rate = rates.entry(Arc::clone(client)).or_insert(fresh);
        *rate = rate.at(now);
        let may = rate.used < BURST;
        rate.used += u32::from(may);
        may
    }
}

impl Rate {
    fn at(self, now: Instant) -> Self {
        let passed = now.saturating_duration_since(self.since);
        let back = u32::try_from(passed.as_millis() / REFILL.as_millis()).unwrap_or(u32::MAX);
        match back {
            0 => self,
            back => Self {
                used: self.used.saturating_sub(back),
                since: now,
            },
        }
    }
}

/// The client is to try again soon.
pub(crate) fn too_many(what: &str) -> AclEditResult {
    AclEditResult::refused("too-many-edits", format!("{what}; try again soon"), true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_runs_dry_and_recovers_and_others_do_not_notice() {
        let (desk, _queue) = EditDesk::new();
        let (busy, other): (Arc<str>, Arc<str>) = ("c1".into(), "c2".into());
        let start = Instant::now();
        for _ in 0..BURST {
            assert!(desk.may(&busy, start));
        }
        assert!(!desk.may(&busy, start));
        assert!(desk.may(&other, start));
        assert!(desk.may(&busy, start + REFILL));
        assert!(!desk.may(&busy, start + REFILL));
        for number in 0..10_000 {
            desk.may(&format!("x{number}").into(), start);
        }
        assert!(desk.rates.lock().unwrap().len() <= CLIENTS);
    }
}
