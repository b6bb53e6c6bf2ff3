//! What the client lets its nodes reach: the gateway's list, which any of its nodes may bring up to
//! date, and the lists of files on this machine, which can only narrow it.
//!
//! All lists must allow a target. Nothing that comes over the network can widen what a file here
//! allows, and before a node has told the gateway's list nothing is allowed at all.
//!
//! Open streams stand in a [`Carried`] of their tunnel; a new list is decided over all of them before
//! anybody else learns of it.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use sg_model::{Acl, AclVersion, Action, HostPort, Scope, canonical_address};
use tokio::sync::watch;

use crate::session::carried::{Carried, Streams};

/// The lists of one gateway; one writer at a time, many readers.
#[derive(Debug)]
pub struct AclState {
    current: watch::Sender<Arc<Policy>>,
    /// The streams of each tunnel.
    carried: Mutex<Vec<Weak<Streams>>>,
}

/// The lists as they are at one moment.
#[derive(Debug, Clone, Default)]
pub struct Policy {
    /// `None` until a node has told it.
    gateway: Option<Acl>,
    local: Vec<Acl>,
}

/// What came of a list that a node offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    /// It is newer and in force now.
    Applied,
    /// It is the one in force.
    Same,
    /// A newer one is in force; it stays.
    Older,
    /// It has the version of the one in force and says something else; the one in force stays.
    Conflict,
}

impl AclState {
    /// Denies everything until a list is offered; `local` narrows whatever comes.
    #[must_use]
    pub fn new(local: Vec<Acl>) -> Self {
        Self {
            current: watch::Sender::new(Arc::new(Policy {
                gateway: None,
                local,
            })),
            carried: Mutex::default(),
        }
    }

    /// Puts a list in force if it is newer than the present one. When this returns, the streams that it forbids have been
    /// told to end, and none of them begins another turn.
    pub fn offer(&self, acl: Acl) -> Offer {
        let mut answer = Offer::Applied;
        self.current.send_if_modified(|current| {
            answer = match &current.gateway {
                Some(present) if acl.version < present.version => Offer::Older,
                Some(present) if acl.version == present.version && acl == *present => Offer::Same,
                Some(present) if acl.version == present.version => Offer::Conflict,
                _ => Offer::Applied,
            };
            if answer == Offer::Applied {
                *current = Arc::new(Policy {
                    gateway: Some(acl),
                    local: current.local.clone(),
                });
                self.redecide(current);
            }
            answer == Offer::Applied
        });
        answer
    }

    /// A place for the streams of one more tunnel.
    #[must_use]
    pub fn carried(&self) -> Carried {
        let carried = Carried::default();
        let mut all = self.lock();
        all.retain(|streams| streams.strong_count() > 0);
        all.push(carried.streams());
        carried
    }

    fn redecide(&self, policy: &Policy) {
        for streams in self.lock().iter().filter_map(Weak::upgrade) {
            streams.redecide(policy);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Weak<Streams>>> {
        self.carried.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The lists in force.
    #[must_use]
    pub fn policy(&self) -> Arc<Policy> {
        Arc::clone(&self.current.borrow())
    }

    /// To read the lists and to be told of changes.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Policy>> {
        self.current.subscribe()
    }

    /// The version in force.
    #[must_use]
    pub fn version(&self) -> Option<AclVersion> {
        self.current.borrow().version()
    }
}

impl Policy {
    /// The version of the gateway's list.
    #[must_use]
    pub fn version(&self) -> Option<AclVersion> {
        self.gateway.as_ref().map(|acl| acl.version)
    }

    /// The gateway's list, if a node has told it.
    #[must_use]
    pub fn gateway(&self) -> Option<&Acl> {
        self.gateway.as_ref()
    }

    /// The lists of files on this machine.
    #[must_use]
    pub fn local(&self) -> &[Acl] {
        &self.local
    }

    /// Whether a stream to a target may be dialled, as far as its name tells.
    #[must_use]
    pub fn allows(&self, target: &HostPort) -> bool {
        self.allows_for(target, Scope::Stream)
    }

    /// Whether a target may be dialled for what is asked, as far as its name tells.
    #[must_use]
    pub fn allows_for(&self, target: &HostPort, scope: Scope<'_>) -> bool {
        self.all(|acl| acl.decide_for(target, scope).allowed)
    }

    /// Whether `address` may be connected to for a target that is allowed: a name must not lead to
    /// what no entry allows by its address.
    #[must_use]
    pub fn allows_address(&self, target: &HostPort, address: IpAddr, scope: Scope<'_>) -> bool {
        self.all(|acl| acl.allows_address(target, address, scope))
    }

    /// Whether an open connection to `address` may go on, of which `scope` says what it carries.
    #[must_use]
    pub fn allows_open(
        &self,
        target: &HostPort,
        address: Option<IpAddr>,
        scope: Scope<'_>,
    ) -> bool {
        self.allows_for(target, scope)
            && address.is_none_or(|address| self.allows_address(target, address, scope))
    }

    fn all(&self, fits: impl Fn(&Acl) -> bool) -> bool {
        self.lists().is_some_and(|mut lists| lists.all(fits))
    }

    fn lists(&self) -> Option<impl Iterator<Item = &Acl>> {
        self.gateway
            .as_ref()
            .map(|gateway| std::iter::once(gateway).chain(&self.local))
    }

    /// One line for the log.
    #[must_use]
    pub fn summary(&self) -> String {
        let Some(acl) = &self.gateway else {
            return "none".to_owned();
        };
        let unlisted = match acl.unlisted {
            Action::Allow => "allowed",
            Action::Deny => "denied",
        };
        format!("{} entries, unlisted {unlisted}", acl.entries.len())
    }
}

/// Whether connecting to `address` would reach one of the client's own listeners, which are for
/// people at this machine and not for users of a destination.
#[must_use]
pub fn is_own(own: &[SocketAddr], address: IpAddr, port: u16) -> bool {
    let address = canonical_address(address);
    own.iter().filter(|own| own.port() == port).any(|own| {
        let ip = canonical_address(own.ip());
        // The unspecified address leads to this machine, and to a listener on all addresses lead
        // all of this machine's.
        ip == address
            || address.is_unspecified()
            || (ip.is_unspecified() && (address.is_loopback() || is_of_this_machine(address)))
    })
}

fn is_of_this_machine(address: IpAddr) -> bool {
    // Only addresses of this machine can be bound.
    UdpSocket::bind((address, 0)).is_ok()
}

#[cfg(test)]
pub(crate) mod testing {
    //! Lists for tests.
    #![allow(clippy::unwrap_used)]

    use sg_model::AclFile;

    use super::*;

    pub(crate) fn list(generation: u64, text: &str) -> Acl {
        let mut acl = AclFile::parse(text).unwrap().acl;
        acl.version = AclVersion {
            epoch: 1,
            generation,
        };
        acl
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::testing::list;
    use super::*;

    fn policy(gateway: &str, local: Option<&str>) -> Arc<Policy> {
        let state = AclState::new(local.into_iter().map(|text| list(0, text)).collect());
        state.offer(list(1, gateway));
        state.policy()
    }

    fn target(text: &str) -> HostPort {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn nothing_is_allowed_before_a_node_has_told_the_list() {
        let state = AclState::new(vec![list(0, "acl allow :")]);
        assert!(!state.policy().allows(&target("db:1")));
        assert!(
            !state
                .policy()
                .allows_address(&target("db:1"), ip("10.0.0.1"), Scope::Stream)
        );
        assert_eq!(state.version(), None);
    }

    #[test]
    fn a_local_list_narrows_and_never_widens() {
        for (gateway, local, expected) in [
            ("acl allow db:1", Some("acl allow db:1"), true),
            ("acl allow db:1", None, true),
            ("acl allow db:1", Some(""), false),
            ("acl allow db:1", Some("acl allow :\nacl deny db:"), false),
            ("acl deny db:1", Some("acl allow db:1"), false),
            ("", Some("acl allow :"), false),
        ] {
            assert_eq!(
                policy(gateway, local).allows(&target("db:1")),
                expected,
                "{gateway} / {local:?}"
            );
        }
    }

    #[test]
    fn tunnels_that_are_gone_are_forgotten() {
        let state = AclState::new(Vec::new());
        for _ in 0..3 {
            drop(state.carried());
        }
        let _last = state.carried();
        assert_eq!(state.lock().len(), 1);
    }

    #[test]
    fn the_newest_list_stays_whoever_offers_another() {
        let state = AclState::new(Vec::new());
        assert_eq!(state.offer(list(5, "acl allow a:1")), Offer::Applied);
        assert_eq!(state.offer(list(4, "acl allow b:1")), Offer::Older);
        assert_eq!(state.offer(list(5, "acl allow a:1")), Offer::Same);
        assert_eq!(state.offer(list(5, "acl allow c:1")), Offer::Conflict);
        assert!(state.policy().allows(&target("a:1")));
        assert_eq!(state.offer(list(6, "acl allow b:1")), Offer::Applied);
        let mut restored = list(1, "acl allow d:1");
        restored.version.epoch = 2;
        assert_eq!(state.offer(restored), Offer::Applied);
        assert!(!state.policy().allows(&target("b:1")));
    }

    #[test]
    fn special_addresses_must_be_named() {
        for special in [
            "169.254.169.254",
            "fe80::1",
            "fd00:ec2::254",
            "0.0.0.0",
            "::",
            "::ffff:169.254.169.254",
            "64:ff9b::a9fe:a9fe",
            "224.0.0.1",
        ] {
            let wide = policy("acl allow :\nacl deny secret:1", None);
            assert!(
                !wide.allows_address(&target("name:80"), ip(special), Scope::Stream),
                "{special}"
            );
            let by_port = policy("acl allow :80", None);
            assert!(
                !by_port.allows_address(&target("name:80"), ip(special), Scope::Stream),
                "{special}"
            );
        }
        let named = policy("acl allow 169.254.169.254:80\nacl allow name:80", None);
        assert!(named.allows_address(&target("name:80"), ip("169.254.169.254"), Scope::Stream));
        assert!(!named.allows_address(&target("name:81"), ip("169.254.169.254"), Scope::Stream));
        let local = policy("acl allow 169.254.169.254:80", Some("acl allow :"));
        assert!(!local.allows_address(
            &target("169.254.169.254:80"),
            ip("169.254.169.254"),
            Scope::Stream
        ));
    }

    #[test]
    fn a_name_does_not_lead_to_an_address_that_is_denied() {
        let policy = policy("acl allow db:5432\nacl deny 10.0.0.5:", None);
        assert!(policy.allows_address(&target("db:5432"), ip("10.0.0.6"), Scope::Stream));
        assert!(!policy.allows_address(&target("db:5432"), ip("10.0.0.5"), Scope::Stream));
        assert!(!policy.allows_address(&target("db:5432"), ip("::ffff:10.0.0.5"), Scope::Stream));
    }

    #[test]
    fn own_listeners_are_recognised_in_every_form() {
        let own = ["127.0.0.1:9002".parse().unwrap()];
        for (address, port, expected) in [
            ("127.0.0.1", 9002, true),
            ("::ffff:127.0.0.1", 9002, true),
            ("0.0.0.0", 9002, true),
            ("127.0.0.1", 9003, false),
            ("10.0.0.1", 9002, false),
        ] {
            assert_eq!(is_own(&own, ip(address), port), expected, "{address}");
        }
        let everywhere = ["0.0.0.0:9002".parse().unwrap()];
        assert!(is_own(&everywhere, ip("127.0.0.9"), 9002));
        assert!(!is_own(&everywhere, ip("192.0.2.1"), 9002));
    }
}
