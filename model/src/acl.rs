//! Access control lists: what the clients of a gateway may reach.
//!
//! The most specific entry wins: `host:port`, then `host:`, then `:port`, then what is said of
//! everything unlisted. At one level deny beats allow. The order of entries never matters.

use std::fmt;

use crate::words::words;
use crate::{Host, HostPort, Invalid};

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

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AclEntry {
    /// Allow or deny.
    pub action: Action,
    /// `None`: every host.
    pub host: Option<Host>,
    /// `None`: every port.
    pub port: Option<u16>,
}

impl AclEntry {
    /// Parses `HOST:PORT`, `HOST:`, `HOST`, `:PORT` or `:`.
    ///
    /// # Errors
    /// When host or port is not acceptable.
    pub fn parse(action: Action, target: &str) -> Result<Self, Invalid> {
        let (host, port) = split_target(target);
        let host = if host.is_empty() {
            None
        } else {
            Some(host.parse::<Host>()?)
        };
        let port = match port {
            "" => None,
            text => match text.parse::<u16>() {
                Ok(port) if port != 0 => Some(port),
                _ => {
                    return Err(Invalid::new(
                        "port",
                        format!("'{}' is not a port of 1 to 65535", text.escape_debug()),
                    ));
                }
            },
        };
        Ok(Self { action, host, port })
    }

    /// The target as it is written: `HOST:PORT` with either part possibly absent.
    #[must_use]
    pub fn target(&self) -> String {
        let host = self.host.as_ref().map(Host::bracketed).unwrap_or_default();
        let port = self.port.map(|p| p.to_string()).unwrap_or_default();
        format!("{host}:{port}")
    }

    /// Whether both entries speak of the same target.
    #[must_use]
    pub fn same_target(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// Greater is more specific; `None` when the entry does not speak of the target.
    fn specificity(&self, host: &Host, port: u16) -> Option<u8> {
        let host_fits = self.host.as_ref().is_none_or(|h| h == host);
        let port_fits = self.port.is_none_or(|p| p == port);
        (host_fits && port_fits).then_some(match (&self.host, self.port) {
            (Some(_), Some(_)) => 3,
            (Some(_), None) => 2,
            (None, Some(_)) => 1,
            (None, None) => 0,
        })
    }
}

impl fmt::Display for AclEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.target())
    }
}

/// Splits at the last colon outside brackets; a bare IPv6 address has no port.
fn split_target(target: &str) -> (&str, &str) {
    if target.matches(':').count() > 1 && !target.starts_with('[') {
        return (target, "");
    }
    match target.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, port),
        _ => (target, ""),
    }
}

/// The access control list of one gateway.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acl {
    /// Which version this is.
    pub version: AclVersion,
    /// At most one entry per target.
    pub entries: Vec<AclEntry>,
    /// What happens to targets that no entry names.
    pub unlisted: Action,
}

/// Answer of [`Acl::decide`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the stream may be opened.
    pub allowed: bool,
    /// The entry that decided; `None`: no entry names the target.
    pub entry: Option<AclEntry>,
}

impl Default for Acl {
    /// Denies everything.
    fn default() -> Self {
        Self {
            version: AclVersion::default(),
            entries: Vec::new(),
            unlisted: Action::Deny,
        }
    }
}

impl Acl {
    /// Most entries one list can have.
    pub const MAX_ENTRIES: usize = 5_000;

    /// Decides over one target.
    #[must_use]
    pub fn decide(&self, target: &HostPort) -> Decision {
        let best = self
            .entries
            .iter()
            .filter_map(|e| {
                e.specificity(target.host(), target.port())
                    .map(|s| ((s, e.action == Action::Deny), e))
            })
            .max_by_key(|(rank, _)| *rank)
            .map(|(_, e)| e);
        let action = best.map_or(self.unlisted, |e| e.action);
        Decision {
            allowed: action == Action::Allow,
            entry: best.cloned(),
        }
    }

    /// Adds an entry or replaces the one for the same target. The entry for everything (`:`) sets
    /// [`Acl::unlisted`] instead, and a later, more specific entry of the same action takes it back, as
    /// Secure Gateway's lists do. Returns whether anything changed.
    ///
    /// # Errors
    /// When the list is full.
    pub fn add(&mut self, entry: AclEntry) -> Result<bool, Invalid> {
        let before = (self.entries.clone(), self.unlisted);
        if entry.host.is_none() && entry.port.is_none() {
            self.unlisted = entry.action;
        } else {
            let takes_back = entry.action == Action::Allow && self.unlisted == Action::Allow;
            let full = self.entries.len() >= Self::MAX_ENTRIES;
            match self.entries.iter_mut().find(|e| e.same_target(&entry)) {
                Some(old) => *old = entry,
                None if full => {
                    return Err(Invalid::new(
                        "entries",
                        format!("a list has at most {} entries", Self::MAX_ENTRIES),
                    ));
                }
                None => self.entries.push(entry),
            }
            if takes_back {
                self.unlisted = Action::Deny;
            }
        }
        Ok(before != (self.entries.clone(), self.unlisted))
    }

    /// Removes the entry for a target; for everything (`:`), makes unlisted targets denied again.
    /// Returns whether there was anything to remove.
    pub fn remove(&mut self, target: &AclEntry) -> bool {
        if target.host.is_none() && target.port.is_none() {
            let had = self.unlisted == Action::Allow;
            self.unlisted = Action::Deny;
            return had;
        }
        let before = self.entries.len();
        self.entries.retain(|e| !e.same_target(target));
        self.entries.len() != before
    }

    /// Empties the list, which denies everything.
    pub fn reset(&mut self) {
        self.entries.clear();
        self.unlisted = Action::Deny;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl(lines: &[&str]) -> Acl {
        let mut acl = Acl::default();
        for line in lines {
            let (action, target) = line.split_once(' ').unwrap();
            acl.add(AclEntry::parse(action.parse().unwrap(), target).unwrap())
                .unwrap();
        }
        acl
    }

    fn allowed(acl: &Acl, target: &str) -> bool {
        acl.decide(&target.parse().unwrap()).allowed
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
    fn one_entry_per_target() {
        let mut acl = acl(&["allow db:5432"]);
        assert!(
            !acl.add(AclEntry::parse(Action::Allow, "DB:5432").unwrap())
                .unwrap()
        );
        assert!(
            acl.add(AclEntry::parse(Action::Deny, "db:5432").unwrap())
                .unwrap()
        );
        assert_eq!(acl.entries.len(), 1);
        assert!(!allowed(&acl, "db:5432"));
        assert!(acl.remove(&AclEntry::parse(Action::Allow, "db:5432").unwrap()));
        assert!(acl.entries.is_empty());
    }

    #[test]
    fn targets_parse_and_print() {
        for (text, printed) in [
            ("db:5432", "db:5432"),
            ("db", "db:"),
            (":80", ":80"),
            (":", ":"),
            ("[::1]:80", "[::1]:80"),
            ("::1", "[::1]:"),
            ("[::1]", "[::1]:"),
        ] {
            assert_eq!(
                AclEntry::parse(Action::Allow, text).unwrap().target(),
                printed,
                "{text}"
            );
        }
        for bad in ["db:0", "db:x", "db:99999", "a b:1", "127.1:80"] {
            assert!(AclEntry::parse(Action::Allow, bad).is_err(), "{bad}");
        }
    }
}
