//! The open streams of one tunnel, for the one moment at which the access control lists must have been applied to all of
//! them: before a resumed tunnel carries on. At any other time each stream watches the lists by itself.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::{HostPort, Scope};
use sg_relay::StreamEnd;
use sg_tunnel_io::code;

use crate::acl::Policy;

/// The streams. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Carried(Arc<Mutex<Streams>>);

#[derive(Debug, Default)]
struct Streams {
    next: u64,
    open: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    resource: HostPort,
    address: Option<IpAddr>,
    scope: Scope<'static>,
    end: StreamEnd,
}

/// One stream; dropping it takes it off.
#[derive(Debug)]
pub struct Entered {
    number: u64,
    all: Carried,
}

impl Carried {
    /// Adds a stream to `resource`, which was connected at `address`.
    #[must_use]
    pub fn enter(
        &self,
        resource: HostPort,
        address: Option<IpAddr>,
        scope: Scope<'static>,
        end: StreamEnd,
    ) -> Entered {
        let mut streams = self.lock();
        streams.next += 1;
        let number = streams.next;
        let entry = Entry {
            resource,
            address,
            scope,
            end,
        };
        streams.open.insert(number, entry);
        Entered {
            number,
            all: self.clone(),
        }
    }

    /// Ends every stream that `policy` forbids: when this returns, none of them carries another byte.
    pub fn redecide(&self, policy: &Policy) {
        for entry in self.lock().open.values() {
            if !policy.allows_open(&entry.resource, entry.address, entry.scope) {
                entry.end.end(code::POLICY_CHANGED);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Streams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use sg_model::AclFile;

    use crate::acl::AclState;

    #[test]
    fn what_is_forbidden_ends_and_the_rest_stays() {
        let carried = Carried::default();
        let acl = AclFile::parse("acl allow 10.0.0.1:1\n").unwrap().acl;
        let lists = AclState::new(Vec::new());
        lists.offer(acl);
        let policy = Arc::clone(&lists.subscribe().borrow());
        let enter = |target: &str| {
            let end = StreamEnd::new();
            let resource: HostPort = target.parse().unwrap();
            (
                carried.enter(resource, None, Scope::Stream, end.clone()),
                end,
            )
        };
        let ((_allowed, stays), (forbidden, goes)) = (enter("10.0.0.1:1"), enter("10.0.0.1:2"));
        carried.redecide(&policy);
        assert_eq!(
            (stays.code(), goes.code()),
            (None, Some(code::POLICY_CHANGED))
        );
        drop(forbidden);
        assert_eq!(carried.lock().open.len(), 1);
    }
}
