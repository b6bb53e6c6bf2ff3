//! The open connections of users, so that a changed policy reaches them.
//!
//! A connection registers itself first and decides after that; a new policy is published first and carried
//! to the registered ones after that. Whichever comes first, none is missed.

use std::collections::{BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sg_model::{DestinationId, GatewayId, HostPort, NodeConfig, Timestamp};
use sg_relay::StreamEnd;
use sg_tunnel_io::code;

use crate::connection::scope_of;
use crate::node::now;

/// All open connections. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenStreams(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    next: u64,
    streams: HashMap<u64, Entry>,
}

#[derive(Debug)]
struct Entry {
    destination: DestinationId,
    user: SocketAddr,
    /// Known once the connection has read its destination.
    resource: Option<(GatewayId, HostPort)>,
    end: StreamEnd,
}

/// Decisions of one pass: many streams reach few resources.
type Decided<'a> = HashMap<(&'a GatewayId, &'a HostPort), bool>;

/// One registered connection; dropping it takes it off.
#[derive(Debug)]
pub(crate) struct Registered {
    number: u64,
    destination: DestinationId,
    end: StreamEnd,
    all: OpenStreams,
}

impl OpenStreams {
    /// Registers a user's connection to a destination.
    pub(crate) fn register(&self, destination: DestinationId, user: SocketAddr) -> Registered {
        let end = StreamEnd::new();
        let mut open = self.lock();
        open.next += 1;
        let number = open.next;
        open.streams.insert(
            number,
            Entry {
                destination: destination.clone(),
                user,
                resource: None,
                end: end.clone(),
            },
        );
        drop(open);
        Registered {
            number,
            destination,
            end,
            all: self.clone(),
        }
    }

    /// Ends every connection that `config` no longer permits, to these destinations or else to any; answers how many.
    pub(crate) fn redecide(
        &self,
        config: &NodeConfig,
        only: Option<&BTreeSet<DestinationId>>,
    ) -> usize {
        let open = self.lock();
        let mut decided = HashMap::new();
        let mut ended = 0;
        let now = now();
        let of_interest = |entry: &&Entry| only.is_none_or(|ids| ids.contains(&entry.destination));
        for entry in open.streams.values().filter(of_interest) {
            if let Some(code) = entry.refusal(config, now, &mut decided) {
                entry.end.end(code);
                ended += 1;
            }
        }
        ended
    }

    /// Ends all connections.
    pub(crate) fn end_all(&self, code: u32) {
        for entry in self.lock().streams.values() {
            entry.end.end(code);
        }
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.lock().streams.len()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    /// Why the connection may not go on; `None`: it may.
    fn refusal<'a>(
        &'a self,
        config: &NodeConfig,
        now: Timestamp,
        decided: &mut Decided<'a>,
    ) -> Option<u32> {
        let Some(destination) = config.destination(&self.destination) else {
            return Some(code::NO_DESTINATION);
        };
        let gateway = config.gateway(&destination.gateway);
        if !destination.enabled || !gateway.is_some_and(|g| g.enabled) {
            return Some(code::DISABLED);
        }
        if !destination.user_end.sources.admits(self.user, now) {
            return Some(code::POLICY_CHANGED);
        }
        let (gateway, resource) = self.resource.as_ref()?;
        let scope = scope_of(destination.protocol);
        // The resource that the stream has, which need not be the one the destination has by now.
        let permitted = *decided.entry((gateway, resource)).or_insert_with(|| {
            config
                .acl(gateway)
                .is_some_and(|acl| acl.decide_for(resource, scope).allowed)
        });
        (!permitted).then_some(code::POLICY_CHANGED)
    }
}

impl Registered {
    /// The destination that the user connected to.
    pub(crate) fn destination(&self) -> &DestinationId {
        &self.destination
    }

    /// The way to end it from outside.
    pub(crate) fn end(&self) -> &StreamEnd {
        &self.end
    }

    /// Notes which resource it reaches; from then on the access control list is watched, too.
    pub(crate) fn reaches(&self, gateway: GatewayId, resource: HostPort) {
        if let Some(entry) = self.all.lock().streams.get_mut(&self.number) {
            entry.resource = Some((gateway, resource));
        }
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.all.lock().streams.remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use sg_model::{AclEntry, Action, NodeObject};

    use super::*;
    use crate::reconcile::testing::{acl, config, destination, gateway};

    fn registered(streams: &OpenStreams) -> Registered {
        let one = streams.register(
            DestinationId::new("d1").unwrap(),
            "127.0.0.1:7".parse().unwrap(),
        );
        let gateway = GatewayId::new("g1").unwrap();
        one.reaches(gateway, "127.0.0.1:5432".parse().unwrap());
        one
    }

    fn allowed() -> NodeObject {
        let entry = AclEntry::parse(Action::Allow, "127.0.0.1:5432").unwrap();
        acl("g1", 1, [entry])
    }

    #[test]
    fn a_stream_ends_with_what_permitted_it() {
        let good = [
            gateway("g1", true),
            destination("d1", "g1", 15000),
            allowed(),
        ];
        let streams = OpenStreams::default();
        let one = registered(&streams);
        assert_eq!(streams.redecide(&config(1, good), None), 0);
        assert_eq!(one.end().code(), None);

        let after = |objects: Vec<NodeObject>| {
            let one = registered(&streams);
            streams.redecide(&config(2, objects), None);
            one.end().code()
        };
        let d1 = || destination("d1", "g1", 15000);
        assert_eq!(after(vec![gateway("g1", true), d1(), allowed()]), None);
        assert_eq!(
            after(vec![gateway("g1", true), d1(), acl("g1", 2, [])]),
            Some(code::POLICY_CHANGED)
        );
        assert_eq!(
            after(vec![gateway("g1", false), d1(), allowed()]),
            Some(code::DISABLED)
        );
        assert_eq!(
            after(vec![gateway("g1", true), allowed()]),
            Some(code::NO_DESTINATION)
        );
        drop(one);
        assert_eq!(streams.len(), 0);
    }

    #[test]
    fn a_stream_ends_when_its_source_is_no_longer_admitted() {
        let streams = OpenStreams::default();
        let one = registered(&streams);
        let restricted = |spec: &str| {
            let mut object = destination("d1", "g1", 15000);
            if let NodeObject::Destination(d) = &mut object {
                d.user_end.sources.restrict = true;
                let rule = sg_model::SourceRule {
                    spec: spec.parse().unwrap(),
                    owner: None,
                    expires: None,
                };
                d.user_end.sources.add(rule, Timestamp(0)).unwrap();
            }
            config(2, [gateway("g1", true), object, allowed()])
        };
        assert_eq!(streams.redecide(&restricted("127.0.0.0/8"), None), 0);
        assert_eq!(streams.redecide(&restricted("10.0.0.1"), None), 1);
        assert_eq!(one.end().code(), Some(code::POLICY_CHANGED));
    }
}
