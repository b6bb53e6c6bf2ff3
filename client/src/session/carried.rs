//! The open streams of one tunnel, for whoever ends them together: a new access control list, which must have been applied to all
//! of them before the node is told that it is in force and before a resumed tunnel carries on, and the end of the
//! tunnel. What a stream does when it is ended is the relay's.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sg_model::{HostPort, Scope};
use sg_relay::StreamEnd;
use sg_tunnel_io::code;

use crate::acl::{AclState, Policy};

/// The streams. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Carried(Arc<Streams>);

/// What clones of a [`Carried`] share.
#[derive(Debug, Default)]
pub struct Streams(Mutex<Table>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    open: HashMap<u64, Entry>,
    /// All have been ended, and so is what comes.
    over: Option<u32>,
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
    /// Adds a stream to `resource`, which was connected at `address`, and ends it if it may not go on by now.
    #[must_use]
    pub fn enter(
        &self,
        lists: &AclState,
        resource: HostPort,
        address: Option<IpAddr>,
        scope: Scope<'static>,
        end: StreamEnd,
    ) -> Entered {
        let entry = Entry {
            resource,
            address,
            scope,
            end,
        };
        let number = self.0.lock().add(entry);
        // A list that comes after this look has found the stream in the table. The table must not be locked meanwhile: whoever
        // changes the list waits for it.
        let policy = lists.policy();
        if let Some(entry) = self.0.lock().open.get(&number) {
            entry.decide(&policy);
        }
        Entered {
            number,
            all: self.clone(),
        }
    }

    /// Ends every stream, those that are still to come included.
    pub fn end_all(&self, code: u32) {
        let mut table = self.0.lock();
        table.over = Some(code);
        for entry in table.open.values() {
            entry.end.end(code);
        }
    }

    /// Does not keep the streams.
    pub(crate) fn streams(&self) -> Weak<Streams> {
        Arc::downgrade(&self.0)
    }
}

impl Streams {
    /// Ends every stream that `policy` forbids: when this returns, none of them carries another byte.
    pub(crate) fn redecide(&self, policy: &Policy) {
        for entry in self.lock().open.values() {
            entry.decide(policy);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn add(&mut self, entry: Entry) -> u64 {
        if let Some(code) = self.over {
            entry.end.end(code);
        }
        self.next += 1;
        self.open.insert(self.next, entry);
        self.next
    }
}

impl Entry {
    fn decide(&self, policy: &Policy) {
        if !policy.allows_open(&self.resource, self.address, self.scope) {
            self.end.end(code::POLICY_CHANGED);
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.all.0.lock().open.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use sg_model::{Acl, AclFile, AclVersion};

    fn list(generation: u64, text: &str) -> Acl {
        let mut acl = AclFile::parse(text).unwrap().acl;
        acl.version = AclVersion {
            epoch: 1,
            generation,
        };
        acl
    }

    #[test]
    fn what_is_forbidden_ends_and_the_rest_stays() {
        let lists = AclState::new(Vec::new());
        lists.offer(list(1, "acl allow 10.0.0.1:"));
        let tunnels = [lists.carried(), lists.carried()];
        let enter = |tunnel: usize, target: &str| {
            let (end, resource) = (StreamEnd::new(), target.parse().unwrap());
            let entered = tunnels[tunnel].enter(&lists, resource, None, Scope::Stream, end.clone());
            (entered, end)
        };
        let streams = [
            enter(0, "10.0.0.1:1"),
            enter(0, "10.0.0.1:2"),
            enter(1, "10.0.0.1:2"),
        ];
        lists.offer(list(2, "acl allow 10.0.0.1:1\n"));
        let codes = streams.each_ref().map(|(_, end)| end.code());
        let forbidden = Some(code::POLICY_CHANGED);
        assert_eq!(codes, [None, forbidden, forbidden]);
        // Decided by the list before, and entered behind the new one.
        let (_late, end) = enter(0, "10.0.0.1:2");
        assert_eq!(end.code(), forbidden);
        let [first, second, _] = streams;
        drop(second);
        tunnels[0].end_all(code::DRAINED);
        assert_eq!(first.1.code(), Some(code::DRAINED));
        drop(first);
        assert_eq!(tunnels[0].0.lock().open.len(), 1);
        let (_later, end) = enter(0, "10.0.0.1:1");
        assert_eq!(end.code(), Some(code::DRAINED));
    }

    #[test]
    fn a_tunnel_that_is_gone_is_forgotten() {
        let lists = AclState::new(Vec::new());
        let gone = lists.carried();
        let weak = gone.streams();
        drop(gone);
        let _other = lists.carried();
        assert!(weak.upgrade().is_none());
        lists.offer(list(1, ""));
    }
}
