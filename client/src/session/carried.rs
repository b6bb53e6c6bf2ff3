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
    /// Where it was connected first; `None`: only a proxy knows it.
    address: Option<IpAddr>,
    /// Where it was connected later, for further requests.
    further: Vec<IpAddr>,
    scope: Scope<'static>,
    end: StreamEnd,
}

/// Further addresses that are remembered of one stream; the oldest is forgotten.
const FURTHER: usize = 8;

/// What is decided about a resource at an address, for bytes or for requests: many streams have the same.
type Verdicts<'a> = HashMap<(&'a HostPort, Option<IpAddr>, bool), bool>;

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
            further: Vec::new(),
            scope,
            end,
        };
        let number = self.0.lock().add(entry);
        // A list that comes after this look has found the stream in the table. The table must not be locked meanwhile: whoever
        // changes the list waits for it.
        let policy = lists.policy();
        if let Some(entry) = self.0.lock().open.get(&number) {
            entry.decide(|address| entry.is_allowed(&policy, address));
        }
        Entered {
            number,
            all: self.clone(),
        }
    }

    /// A stream has been connected once more, at `address`; answers whether it may, and ends it if it may not.
    #[must_use]
    pub fn reaches(&self, lists: &AclState, number: u64, address: Option<IpAddr>) -> bool {
        if let Some(entry) = self.0.lock().open.get_mut(&number) {
            entry.add(address);
        }
        let policy = lists.policy();
        let table = self.0.lock();
        let Some(entry) = table.open.get(&number) else {
            return false;
        };
        entry.decide(|address| entry.is_allowed(&policy, address));
        entry.end.code().is_none()
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
    /// Ends every stream that `policy` forbids: when this returns, none of them begins another turn.
    pub(crate) fn redecide(&self, policy: &Policy) {
        let table = self.lock();
        let mut verdicts = Verdicts::new();
        for entry in table.open.values() {
            let is_stream = matches!(entry.scope, Scope::Stream);
            entry.decide(|address| {
                *verdicts
                    .entry((&entry.resource, address, is_stream))
                    .or_insert_with(|| entry.is_allowed(policy, address))
            });
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
    fn add(&mut self, address: Option<IpAddr>) {
        let Some(address) = address.filter(|_| address != self.address) else {
            return;
        };
        self.further.retain(|known| *known != address);
        if self.further.len() == FURTHER {
            self.further.remove(0);
        }
        self.further.push(address);
    }

    fn is_allowed(&self, policy: &Policy, address: Option<IpAddr>) -> bool {
        policy.allows_open(&self.resource, address, self.scope)
    }

    /// Ends the stream unless each of its addresses is allowed.
    fn decide(&self, is_allowed: impl FnMut(Option<IpAddr>) -> bool) {
        let further = self.further.iter().copied().map(Some);
        if !std::iter::once(self.address).chain(further).all(is_allowed) {
            self.end.end(code::POLICY_CHANGED);
        }
    }
}

impl Entered {
    /// For [`Carried::reaches`].
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
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
    use crate::acl::testing::list;

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
    fn every_address_of_a_stream_is_decided_over() {
        let lists = AclState::new(Vec::new());
        lists.offer(list(1, "acl allow web:80"));
        let ip = |last: u8| Some(IpAddr::from([10, 0, 0, last]));
        let (carried, end) = (lists.carried(), StreamEnd::new());
        let resource: HostPort = "web:80".parse().unwrap();
        let entered = carried.enter(&lists, resource, ip(1), Scope::AnyPath, end.clone());
        for last in [1, 2, 3, 2, 4, 5, 6, 7, 8, 9, 10] {
            assert!(carried.reaches(&lists, entered.number(), ip(last)));
        }
        let known: Vec<usize> = {
            let table = carried.0.lock();
            table
                .open
                .values()
                .map(|entry| entry.further.len())
                .collect()
        };
        assert_eq!(known, [FURTHER]);
        lists.offer(list(2, "acl allow web:80\nacl deny 10.0.0.3:"));
        assert_eq!(end.code(), None, "forgotten");
        lists.offer(list(3, "acl allow web:80\nacl deny 10.0.0.2:"));
        assert_eq!(end.code(), Some(code::POLICY_CHANGED));
        assert!(!carried.reaches(&lists, entered.number(), ip(4)));
        let number = entered.number();
        drop(entered);
        assert!(!carried.reaches(&lists, number, ip(4)));
    }
}
