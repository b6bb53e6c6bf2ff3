//! The open connections of users at client ports, so that a change of their destination reaches them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::{DestinationId, Timestamp};
use sg_relay::StreamEnd;
use sg_tunnel_io::code;

use super::known::Known;

/// The connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Users(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    users: HashMap<u64, (DestinationId, SocketAddr, StreamEnd)>,
}

/// One of them; dropping it takes it off.
#[derive(Debug)]
pub struct UserEntered {
    number: u64,
    all: Users,
}

impl Users {
    /// Adds a user's connection.
    #[must_use]
    pub fn enter(
        &self,
        destination: &DestinationId,
        user: SocketAddr,
        end: StreamEnd,
    ) -> UserEntered {
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        open.users.insert(number, (destination.clone(), user, end));
        UserEntered {
            number,
            all: self.clone(),
        }
    }

    /// Ends every connection that is no longer served.
    pub(super) fn redecide(&self, known: &Known, now: Timestamp) {
        for (id, user, end) in self.lock().users.values() {
            let refusal = match known.get(id).map(|one| &one.destination) {
                None => Some(code::NO_DESTINATION),
                Some(d) if !d.enabled => Some(code::DISABLED),
                Some(d) if !d.user_end.sources.admits(*user, now) => Some(code::POLICY_CHANGED),
                Some(_) => None,
            };
            if let Some(code) = refusal {
                end.end(code);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for UserEntered {
    fn drop(&mut self) {
        self.all.lock().users.remove(&self.number);
    }
}
