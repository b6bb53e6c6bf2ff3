//! Access control lists: what the clients of a gateway may reach.
//!
//! The most specific entry wins: `host:port`, then `host:`, then `:port`, then what is said of everything
//! unlisted. Networks and ranges of addresses stand between a host and every host, ranges of ports between a port
//! and every port; the narrower wins. At one level deny beats allow. Entries with a path narrow what their level
//! allows to the paths under one of them; a stream that nobody reads paths in is denied there. The order of entries
//! never matters.
//!
//! What it is not: it resolves no names. Whoever connects asks [`Acl::allows_address`] about each address.
//!
//! Where to start: [`Acl::decide_for`]. [`AclCommand`] and [`AclFile`] are the one grammar for files, the console and
//! `sgctl`; [`lint`] finds entries that do nothing.

mod address;
mod console;
mod edit;
mod entry;
mod file;
mod lint;
mod show;

use std::net::IpAddr;

pub use address::{canonical_address, is_special};
pub use console::ConsoleCommand;
pub use edit::AclEdit;
pub use entry::{AclEntry, HostPattern};
pub use file::{AclCommand, AclFile, AclFileError};
pub use lint::{Finding, FindingKind, Reached, lint};

use crate::words::words;
use crate::{CanonicalPath, Host, HostPort, Invalid, PathPrefix, PrefixMode};
use entry::Level;

words!(
    /// What an entry does.
    Action, "action" {
        /// Lets streams through.
        Allow = "allow",
        /// Refuses them.
        Deny = "deny",
    }
);

/// Orders the versions of one gateway's list: the greatest is the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct AclVersion {
    /// Raised when the store is restored from a copy.
    pub epoch: u64,
    /// Raised by every change.
    pub generation: u64,
}

/// The access control list of one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// Which version this is.
    pub version: AclVersion,
    /// For each target either one entry that denies, or entries that allow: at most one without a path, and any
    /// number with one. [`Acl::add`] keeps it so.
    pub entries: Vec<AclEntry>,
    /// What happens to targets that no entry names.
    pub unlisted: Action,
    /// How paths are compared.
    pub path_prefix: PrefixMode,
}

/// What is asked about a target.
#[derive(Debug, Clone, Copy)]
pub enum Scope<'a> {
    /// A stream or flow whose contents nobody reads.
    Stream,
    /// A connection that will carry HTTP requests, each to be asked about later.
    AnyPath,
    /// One HTTP request.
    Path(&'a CanonicalPath),
}

words!(
    /// Why a decision is as it is.
    Why, "why" {
        /// An entry says so.
        Entry = "entry",
        /// No entry speaks of it.
        Unlisted = "unlisted",
        /// Only paths are allowed there, and the request's is under none.
        OtherPath = "other-path",
        /// Only paths are allowed there, and nobody reads paths in this stream.
        NoPath = "no-path",
        /// The address is one that must be named ([`is_special`]), and is not.
        Unnamed = "unnamed",
    }
);

/// Answer of [`Acl::decide_for`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decision<'a> {
    /// Whether the stream may be opened, or the request sent.
    pub allowed: bool,
    /// Why.
    pub why: Why,
    /// The entry that decided, or that would have allowed; `None`: no entry speaks of the target.
    pub entry: Option<&'a AclEntry>,
    /// Its place in the list, from 1.
    pub number: Option<usize>,
}

impl Default for Acl {
    /// Denies everything.
    fn default() -> Self {
        Self {
            version: AclVersion::default(),
            entries: Vec::new(),
            unlisted: Action::Deny,
            path_prefix: PrefixMode::default(),
        }
    }
}

impl Acl {
    /// Most entries one list can have.
    pub const MAX_ENTRIES: usize = 5_000;

    /// A list that denies everything, for the place of one that cannot be understood.
    #[must_use]
    pub fn deny_all(version: AclVersion) -> Self {
        Self {
            version,
            ..Self::default()
        }
    }

    /// Decides over a stream to one target.
    #[must_use]
    pub fn decide(&self, target: &HostPort) -> Decision<'_> {
        self.decide_for(target, Scope::Stream)
    }

    /// Decides over one HTTP request to a target.
    #[must_use]
    pub fn decide_path(&self, target: &HostPort, path: &CanonicalPath) -> Decision<'_> {
        self.decide_for(target, Scope::Path(path))
    }

    /// Decides over one target.
    #[must_use]
    pub fn decide_for(&self, target: &HostPort, scope: Scope<'_>) -> Decision<'_> {
        let decision = match self.winners(target) {
            Some(winners) => self.among(&winners, scope),
            None => Decision {
                allowed: self.unlisted == Action::Allow,
                why: Why::Unlisted,
                entry: None,
                number: None,
            },
        };
        match target.host() {
            Host::Ip(ip) if decision.allowed && is_special(*ip) && !decision.names_special() => {
                Decision {
                    allowed: false,
                    why: Why::Unnamed,
                    ..decision
                }
            }
            _ => decision,
        }
    }

    /// Whether `address` may be connected to for a target that is allowed: a name must not lead to what an entry
    /// denies by its address, nor to an address that must be named.
    #[must_use]
    pub fn allows_address(&self, target: &HostPort, address: IpAddr, scope: Scope<'_>) -> bool {
        let address = canonical_address(address);
        let Ok(by_address) = HostPort::new(Host::Ip(address), target.port()) else {
            return false;
        };
        let decision = self.decide_for(&by_address, scope);
        if decision.entry.is_some_and(|entry| entry.host.is_some()) {
            return decision.allowed;
        }
        // Not named: the target's own name was decided on, which is enough for addresses that are nobody's secret.
        !is_special(address)
    }

    /// The entries of the most specific level that speaks of the target.
    fn winners(&self, target: &HostPort) -> Option<Winners<'_>> {
        let mut best: Option<Winners<'_>> = None;
        for (number, entry) in (1..).zip(&self.entries) {
            if !entry.matches(target) {
                continue;
            }
            let level = entry.level();
            match &mut best {
                Some(best) if best.level < level => continue,
                Some(best) if best.level == level => best.take(number, entry),
                _ => {
                    let mut winners = Winners::new(level);
                    winners.take(number, entry);
                    best = Some(winners);
                }
            }
        }
        best
    }

    fn among<'a>(&self, winners: &Winners<'a>, scope: Scope<'_>) -> Decision<'a> {
        let answer = |allowed, why, (number, entry)| Decision {
            allowed,
            why,
            entry: Some(entry),
            number: Some(number),
        };
        if let Some(deny) = winners.deny {
            return answer(false, Why::Entry, deny);
        }
        // Only entries with a path narrow; the unlisted targets' own allowance is narrowed like an entry.
        let Some(first) = winners.paths.first() else {
            return match winners.plain {
                Some(plain) => answer(true, Why::Entry, plain),
                // Cannot be: a level has an entry.
                None => Decision {
                    allowed: false,
                    why: Why::Unlisted,
                    entry: None,
                    number: None,
                },
            };
        };
        match scope {
            Scope::Stream => answer(false, Why::NoPath, *first),
            Scope::AnyPath => answer(true, Why::Entry, *first),
            Scope::Path(path) => {
                let covers = |prefix: &PathPrefix| path.is_within(prefix, self.path_prefix);
                let fits = winners
                    .paths
                    .iter()
                    .find(|(_, entry)| entry.path.as_ref().is_some_and(covers));
                match fits {
                    Some(fits) => answer(true, Why::Entry, *fits),
                    None => answer(false, Why::OtherPath, *first),
                }
            }
        }
    }

    /// Adds an entry as the console and `sgctl` do: it replaces those of the same target that say the opposite. The
    /// entry for everything (`:`) sets [`Acl::unlisted`] instead, and a later, more specific entry of the same action
    /// takes it back, as Secure Gateway's lists do. Returns whether anything changed.
    ///
    /// # Errors
    /// When the list is full.
    pub fn add(&mut self, entry: AclEntry) -> Result<bool, Invalid> {
        let opposite = |old: &AclEntry| old.same_target(&entry) && old.action != entry.action;
        let replaces = self.entries.iter().any(opposite);
        if entry.is_everything() && entry.path.is_none() {
            self.entries.retain(|old| !opposite(old));
            let changed = replaces || self.unlisted != entry.action;
            self.unlisted = entry.action;
            return Ok(changed);
        }
        let takes_back = entry.action == Action::Allow
            && self.unlisted == Action::Allow
            && !entry.is_everything();
        let known = self.entries.contains(&entry);
        if known && !replaces && !takes_back {
            return Ok(false);
        }
        if !known && !replaces && self.entries.len() >= Self::MAX_ENTRIES {
            return Err(Invalid::new(
                "entries",
                format!("a list has at most {} entries", Self::MAX_ENTRIES),
            ));
        }
        // The new entry takes the place of the first that it replaces, so that a list reads as before.
        let place = self.entries.iter().position(opposite);
        self.entries.retain(|old| !opposite(old));
        if !known {
            let place = place.unwrap_or(self.entries.len());
            self.entries.insert(place.min(self.entries.len()), entry);
        }
        if takes_back {
            self.unlisted = Action::Deny;
        }
        Ok(true)
    }

    /// Removes what is said of a target: with a path that entry, without one all of them. For everything (`:`), makes
    /// unlisted targets denied again. Returns whether there was anything to remove.
    pub fn remove(&mut self, target: &AclEntry) -> bool {
        let before = self.entries.len();
        self.entries.retain(|old| !old.falls_with(target));
        let mut removed = self.entries.len() != before;
        if target.is_everything() && target.path.is_none() && self.unlisted == Action::Allow {
            self.unlisted = Action::Deny;
            removed = true;
        }
        removed
    }

    /// Empties the list, which denies everything.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.unlisted = Action::Deny;
    }
}

impl Decision<'_> {
    /// Whether an entry that means special addresses decided.
    fn names_special(&self) -> bool {
        self.entry
            .and_then(|entry| entry.host.as_ref())
            .is_some_and(address::names_special)
    }
}

type Numbered<'a> = (usize, &'a AclEntry);

/// The entries of one level that speak of a target.
struct Winners<'a> {
    level: Level,
    deny: Option<Numbered<'a>>,
    plain: Option<Numbered<'a>>,
    paths: Vec<Numbered<'a>>,
}

impl<'a> Winners<'a> {
    fn new(level: Level) -> Self {
        Self {
            level,
            deny: None,
            plain: None,
            paths: Vec::new(),
        }
    }

    fn take(&mut self, number: usize, entry: &'a AclEntry) {
        let numbered = (number, entry);
        match (entry.action, &entry.path) {
            (Action::Deny, _) => drop(self.deny.get_or_insert(numbered)),
            (Action::Allow, None) => drop(self.plain.get_or_insert(numbered)),
            (Action::Allow, Some(_)) => self.paths.push(numbered),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(lines: &[&str]) -> Acl {
        let mut acl = Acl::default();
        for line in lines {
            acl.apply(&AclCommand::parse(line).unwrap().unwrap())
                .unwrap();
        }
        acl
    }

    fn allowed(acl: &Acl, target: &str) -> bool {
        acl.decide(&target.parse().unwrap()).allowed
    }

    fn request(acl: &Acl, target: &str, path: &str) -> (bool, Why) {
        let path = CanonicalPath::parse(path).unwrap();
        let decision = acl.decide_path(&target.parse().unwrap(), &path);
        (decision.allowed, decision.why)
    }

    #[test]
    fn an_empty_list_denies() {
        assert!(!allowed(&Acl::default(), "db:5432"));
    }

    #[test]
    fn the_most_specific_entry_wins_whatever_the_order() {
        for lines in [["allow db:5432", "deny db:"], ["deny db:", "allow db:5432"]] {
            let acl = acl(&lines);
            assert!(allowed(&acl, "DB.:5432"));
            assert!(!allowed(&acl, "db:22"));
        }
        let acl = acl(&["allow :443", "deny secret:"]);
        assert!(allowed(&acl, "other:443"));
        assert!(!allowed(&acl, "secret:443"));
    }

    #[test]
    fn ranges_stand_between_one_and_all() {
        let acl = acl(&[
            "deny 10.0.0.0/8:",
            "allow 10.1.0.0/16:80-90",
            "deny 10.1.0.0/16:85",
            "allow 10.1.2.3:",
            "allow :22",
        ]);
        for (target, expected) in [
            ("10.2.0.1:80", false),
            ("10.1.0.1:80", true),
            ("10.1.0.1:85", false),
            ("10.1.0.1:91", false),
            ("10.1.2.3:85", true),
            // The host counts before the port.
            ("10.2.0.1:22", false),
            ("192.0.2.1:22", true),
            // A name is no address.
            ("db:80", false),
        ] {
            assert_eq!(allowed(&acl, target), expected, "{target}");
        }
    }

    #[test]
    fn paths_narrow_what_their_target_allows() {
        let acl = acl(&[
            "allow web:80",
            "allow web:80/api",
            "allow web:80/static",
            "allow web:",
        ]);
        assert_eq!(request(&acl, "web:80", "/api/x"), (true, Why::Entry));
        assert_eq!(request(&acl, "web:80", "/static"), (true, Why::Entry));
        assert_eq!(request(&acl, "web:80", "/apix"), (false, Why::OtherPath));
        assert_eq!(
            request(&acl, "web:80", "/api/../x"),
            (false, Why::OtherPath)
        );
        // Of another level, whose paths are not narrowed.
        assert_eq!(request(&acl, "web:81", "/x"), (true, Why::Entry));
        // What nobody reads paths in cannot be narrowed, so it is denied.
        let target = "web:80".parse().unwrap();
        let stream = acl.decide(&target);
        assert_eq!((stream.allowed, stream.why), (false, Why::NoPath));
        assert!(acl.decide_for(&target, Scope::AnyPath).allowed);
        let text = Acl {
            path_prefix: PrefixMode::Text,
            ..acl
        };
        assert_eq!(request(&text, "web:80", "/apix"), (true, Why::Entry));
    }

    #[test]
    fn a_path_for_everything_narrows_everything_unlisted() {
        let mut acl = acl(&["allow :/api", "allow db:1"]);
        assert_eq!(request(&acl, "web:80", "/api"), (true, Why::Entry));
        assert_eq!(request(&acl, "web:80", "/"), (false, Why::OtherPath));
        assert_eq!(request(&acl, "db:1", "/"), (true, Why::Entry));
        acl.add(AclEntry::parse(Action::Allow, ":").unwrap())
            .unwrap();
        assert_eq!(request(&acl, "web:80", "/"), (false, Why::OtherPath));
        acl.add(AclEntry::parse(Action::Deny, ":").unwrap())
            .unwrap();
        assert_eq!(request(&acl, "web:80", "/api"), (false, Why::Unlisted));
    }

    #[test]
    fn everything_can_be_allowed_and_a_later_entry_takes_it_back() {
        let mut acl = acl(&["allow :"]);
        assert!(allowed(&acl, "any:1"));
        acl.add(AclEntry::parse(Action::Allow, "db:5432").unwrap())
            .unwrap();
        assert!(!allowed(&acl, "any:1"));
        assert!(allowed(&acl, "db:5432"));
        acl.reset();
        assert!(!allowed(&acl, "db:5432"));
    }

    #[test]
    fn one_opinion_per_target() {
        let mut acl = acl(&["allow db:5432"]);
        let entry = |action, text: &str| AclEntry::parse(action, text).unwrap();
        assert!(!acl.add(entry(Action::Allow, "DB:5432")).unwrap());
        assert!(acl.add(entry(Action::Allow, "db:5432/x")).unwrap());
        assert!(acl.add(entry(Action::Deny, "db:5432")).unwrap());
        assert_eq!(acl.entries.len(), 1);
        assert!(!allowed(&acl, "db:5432"));
        assert!(acl.remove(&entry(Action::Allow, "db:5432")));
        assert!(acl.entries.is_empty());
    }

    #[test]
    fn special_addresses_must_be_named() {
        for (lines, target, expected) in [
            (&["allow :"][..], "169.254.169.254:80", false),
            (&["allow :"], "10.0.0.1:80", true),
            (&["allow :"], "127.0.0.1:80", true),
            (&["allow :80"], "[fe80::1]:80", false),
            (&["allow 0.0.0.0/0:"], "169.254.169.254:80", false),
            (&["allow 0.0.0.0/0:"], "10.0.0.1:80", true),
            (&["allow 169.254.0.0/16:80"], "169.254.169.254:80", true),
            (&["allow 169.254.169.254:"], "169.254.169.254:80", true),
        ] {
            assert_eq!(allowed(&acl(lines), target), expected, "{lines:?} {target}");
        }
    }

    #[test]
    fn a_name_does_not_lead_to_an_address_that_is_denied() {
        let acl = acl(&[
            "allow db:",
            "deny 10.0.0.0/8:",
            "allow web:",
            "allow 10.0.0.9:80/api",
        ]);
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let reach = |target: &str, address: &str, scope| {
            acl.allows_address(&target.parse().unwrap(), ip(address), scope)
        };
        assert!(reach("db:5432", "192.0.2.1", Scope::Stream));
        assert!(!reach("db:5432", "10.0.0.5", Scope::Stream));
        assert!(!reach("db:5432", "::ffff:10.0.0.5", Scope::Stream));
        assert!(!reach("db:5432", "64:ff9b::a00:5", Scope::Stream));
        assert!(!reach("db:5432", "169.254.169.254", Scope::Stream));
        assert!(!reach("web:80", "10.0.0.9", Scope::Stream));
        assert!(reach("web:80", "10.0.0.9", Scope::AnyPath));
        let other = CanonicalPath::parse("/other").unwrap();
        assert!(!reach("web:80", "10.0.0.9", Scope::Path(&other)));
    }
}
