//! Finds entries of a list that do nothing or too much.
//!
//! An entry does something if there is a target over which it decides. Decisions change only where some entry's hosts
//! or ports begin or end, so it is enough to look at those places: every answer here is exact, not a guess.
//!
//! Where to start: [`lint`].

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Acl, AclEntry, Action, HostPattern, Scope};
use crate::words::words;
use crate::{Host, HostPort};

words!(
    /// What is wrong with an entry.
    FindingKind, "finding" {
        /// Other entries decide wherever it could.
        Shadowed = "shadowed",
        /// No destination leads there.
        Unreachable = "unreachable",
        /// Everything is allowed.
        AllowAll = "allow-all",
    }
);

/// Something to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub kind: FindingKind,
    /// The entry's place in the list, from 1; `None`: what the list says of everything unlisted.
    pub number: Option<usize>,
    /// One sentence without a full stop.
    pub message: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.kind, self.message)
    }
}

/// A resource that a destination leads to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// Where it leads.
    pub resource: HostPort,
    /// Whether both ends read HTTP there, and so can decide over paths.
    pub reads_paths: bool,
}

/// At how many places of one entry to look. Beyond that an entry counts as doing something.
const MOST_PLACES: usize = 20_000;

/// Looks at every entry. Without `destinations`, nothing is said of what no destination leads to.
#[must_use]
pub fn lint(acl: &Acl, destinations: Option<&[Reached]>) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, entry) in acl.entries.iter().enumerate() {
        let number = Some(index + 1);
        let found = |kind, message| Finding {
            kind,
            number,
            message,
        };
        if allows_all(entry) {
            let message = format!("{entry} lets clients reach every port of every address");
            findings.push(found(FindingKind::AllowAll, message));
        }
        if let Some(why) = shadowed(acl, index, entry) {
            findings.push(found(FindingKind::Shadowed, why));
        } else if let Some(why) = destinations.and_then(|all| unreachable(acl, entry, all)) {
            findings.push(found(FindingKind::Unreachable, why));
        }
    }
    if acl.unlisted == Action::Allow {
        findings.push(Finding {
            kind: FindingKind::AllowAll,
            number: None,
            message: "allow : lets clients reach everything that no entry denies".to_owned(),
        });
    }
    findings
}

fn allows_all(entry: &AclEntry) -> bool {
    let all_of_a_family = |range: &crate::IpRange| match (range.first(), range.last()) {
        (IpAddr::V4(first), IpAddr::V4(last)) => first.is_unspecified() && last.is_broadcast(),
        (IpAddr::V6(first), IpAddr::V6(last)) => {
            first.is_unspecified() && last.to_bits() == u128::MAX
        }
        _ => false,
    };
    entry.action == Action::Allow
        && entry.port.is_none()
        && entry.path.is_none()
        && matches!(&entry.host, Some(HostPattern::Addresses(range)) if all_of_a_family(range))
}

/// Why an entry never decides, if it never does.
fn shadowed(acl: &Acl, index: usize, entry: &AclEntry) -> Option<String> {
    let others: Vec<(usize, &AclEntry)> = acl
        .entries
        .iter()
        .enumerate()
        .filter(|(other, candidate)| *other != index && meets(candidate, entry))
        .collect();
    let (hosts, ports) = places(entry, &others);
    if hosts.len().saturating_mul(ports.len()) > MOST_PLACES {
        return None;
    }
    let mut first_reason = None;
    for host in &hosts {
        for port in &ports {
            let Ok(place) = HostPort::new(host.clone(), *port) else {
                continue;
            };
            let hides = others
                .iter()
                .filter(|(_, other)| other.matches(&place))
                .find(|(other, candidate)| hides(acl, (*other, candidate), (index, entry)));
            let (other, candidate) = hides?;
            first_reason.get_or_insert((*other, *candidate));
        }
    }
    let (other, candidate) = first_reason?;
    Some(format!(
        "{entry} never decides: {} (number {}) {}",
        candidate,
        other + 1,
        if candidate.level() < entry.level() {
            "and others are more specific wherever it applies"
        } else if candidate.action != entry.action {
            "denies there, and deny beats allow"
        } else if entry.path.is_none() {
            "narrows it to a path"
        } else {
            "covers its path"
        }
    ))
}

/// Whether `other` takes the decision from `entry` at a place of both.
fn hides(acl: &Acl, other: (usize, &AclEntry), entry: (usize, &AclEntry)) -> bool {
    let ((other_index, other), (index, entry)) = (other, entry);
    if other.level() != entry.level() {
        return other.level() < entry.level();
    }
    match (&other.path, &entry.path) {
        _ if other.action != entry.action => other.action == Action::Deny,
        // Two of one level that say the same: the first decides.
        (None, None) => other_index < index,
        (Some(_), None) => true,
        (None, Some(_)) => false,
        (Some(wide), Some(narrow)) => {
            wide.covers(narrow, acl.path_prefix)
                && (other_index < index || !narrow.covers(wide, acl.path_prefix))
        }
    }
}

fn meets(a: &AclEntry, b: &AclEntry) -> bool {
    let hosts = match (&a.host, &b.host) {
        (Some(a), Some(b)) => a.meets(b),
        _ => true,
    };
    let ports = match (a.port, b.port) {
        (Some(a), Some(b)) => a.intersect(b).is_some(),
        _ => true,
    };
    hosts && ports
}

/// Hosts and ports of `entry` between which no decision changes: the ends of all patterns that it meets, and one host
/// and port that nobody names.
fn places(entry: &AclEntry, others: &[(usize, &AclEntry)]) -> (Vec<Host>, Vec<u16>) {
    let mut names = BTreeSet::new();
    let mut addresses = BTreeSet::new();
    let mut ports = BTreeSet::from([1, u16::MAX]);
    // One that no entry can name: names have no such label.
    names.insert(Host::Name("*".to_owned()));
    addresses.extend([
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    ]);
    let patterns = others.iter().map(|(_, other)| *other).chain([entry]);
    for pattern in patterns {
        match &pattern.host {
            Some(HostPattern::Host(Host::Ip(ip))) => {
                addresses.insert(*ip);
                addresses.extend(after(*ip));
            }
            Some(HostPattern::Host(name)) => {
                names.insert(name.clone());
            }
            Some(HostPattern::Addresses(range)) => {
                addresses.insert(range.first());
                addresses.extend(after(range.last()));
            }
            None => {}
        }
        if let Some(range) = pattern.port {
            ports.insert(range.first());
            ports.extend(range.last().checked_add(1));
        }
    }
    let fits = |host: &Host| entry.host.as_ref().is_none_or(|own| own.matches(host));
    let hosts = names
        .into_iter()
        .chain(addresses.into_iter().map(Host::Ip))
        .filter(fits)
        .collect();
    let ports = ports
        .into_iter()
        .filter(|port| entry.port.is_none_or(|own| own.contains(*port)))
        .collect();
    (hosts, ports)
}

fn after(ip: IpAddr) -> Option<IpAddr> {
    match ip {
        IpAddr::V4(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv4Addr::from(bits).into()),
        IpAddr::V6(ip) => ip
            .to_bits()
            .checked_add(1)
            .map(|bits| Ipv6Addr::from(bits).into()),
    }
}

/// Why no destination leads to what an entry speaks of, if none does.
fn unreachable(acl: &Acl, entry: &AclEntry, destinations: &[Reached]) -> Option<String> {
    let by_address = |reached: &Reached| {
        // A name can lead to any address, and is decided on by that too.
        matches!(reached.resource.host(), Host::Name(_))
            && entry
                .host
                .as_ref()
                .is_some_and(|host| !matches!(host, HostPattern::Host(Host::Name(_))))
            && entry
                .port
                .is_none_or(|ports| ports.contains(reached.resource.port()))
    };
    let leads = |reached: &&Reached| entry.matches(&reached.resource) || by_address(reached);
    let mut leading = destinations.iter().filter(leads).peekable();
    if leading.peek().is_none() {
        let what = entry.target();
        return Some(format!(
            "{entry}: no destination of the gateway leads to {what}"
        ));
    }
    if entry.path.is_some() && leading.all(|reached| !reached.reads_paths) {
        let denied = destinations
            .iter()
            .filter(leads)
            .find(|reached| !acl.decide_for(&reached.resource, Scope::Stream).allowed);
        let effect = denied.map_or("", |_| ", so streams to it are denied");
        return Some(format!(
            "{entry}: no HTTP destination leads to {}{effect}",
            entry.target()
        ));
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AclFile;

    fn found(text: &str, destinations: Option<&[(&str, bool)]>) -> Vec<(&'static str, usize)> {
        let acl = AclFile::parse(text).unwrap().acl;
        let reached: Option<Vec<Reached>> = destinations.map(|all| {
            all.iter()
                .map(|(resource, reads_paths)| Reached {
                    resource: resource.parse().unwrap(),
                    reads_paths: *reads_paths,
                })
                .collect()
        });
        lint(&acl, reached.as_deref())
            .iter()
            .map(|finding| (finding.kind.as_str(), finding.number.unwrap_or_default()))
            .collect()
    }

    #[test]
    fn an_entry_that_never_decides_is_found() {
        for (text, expected) in [
            ("acl allow a:1\nacl deny b:1", vec![]),
            ("acl allow a:1\nacl allow a:", vec![]),
            // Every port of the range has an entry of its own.
            (
                "acl allow a:1-2\nacl deny a:1\nacl allow a:2",
                vec![("shadowed", 1)],
            ),
            ("acl allow a:1-3\nacl deny a:1\nacl allow a:2", vec![]),
            // Two networks cover the one around them.
            (
                "acl allow 10.0.0.0/8:\nacl deny 10.0.0.0/9:\nacl allow 10.128.0.0/9:",
                vec![("shadowed", 1)],
            ),
            ("acl allow 10.0.0.0/8:\nacl deny 10.0.0.0/9:", vec![]),
            // Of the same size, but not the same addresses.
            (
                "acl allow 10.0.0.1-10.0.0.4:\nacl deny 10.0.0.2-10.0.0.5:",
                vec![],
            ),
            ("acl allow a:80\nacl allow a:80/x", vec![("shadowed", 1)]),
            (
                "acl allow a:80/x\nacl allow a:80/x/y",
                vec![("shadowed", 2)],
            ),
            ("acl allow a:80/x\nacl allow a:80/xy", vec![]),
            ("acl allow :", vec![("allow-all", 0)]),
            ("acl allow 0.0.0.0/0:", vec![("allow-all", 1)]),
            ("acl allow 0.0.0.0/0:443", vec![]),
        ] {
            assert_eq!(found(text, None), expected, "{text}");
        }
    }

    #[test]
    fn an_entry_that_no_destination_leads_to_is_found() {
        for (text, destinations, expected) in [
            ("acl allow a:1", vec![("a:1", false)], vec![]),
            (
                "acl allow a:2",
                vec![("a:1", false)],
                vec![("unreachable", 1)],
            ),
            ("acl allow :1", vec![("a:1", false)], vec![]),
            // The name may have that address.
            ("acl deny 10.0.0.0/8:", vec![("a:1", false)], vec![]),
            (
                "acl deny 10.0.0.0/8:2",
                vec![("a:1", false)],
                vec![("unreachable", 1)],
            ),
            (
                "acl deny 10.0.0.0/8:",
                vec![("192.0.2.1:1", false)],
                vec![("unreachable", 1)],
            ),
            ("acl allow a:80/x", vec![("a:80", true)], vec![]),
            (
                "acl allow a:80/x",
                vec![("a:80", false)],
                vec![("unreachable", 1)],
            ),
            ("acl allow a:1", vec![], vec![("unreachable", 1)]),
        ] {
            assert_eq!(found(text, Some(&destinations)), expected, "{text}");
        }
    }

    #[test]
    fn a_long_list_is_looked_at_in_reasonable_time() {
        let mut acl = Acl::default();
        for n in 0..1_000 {
            let target = format!("host-{n}:{}", n + 1);
            acl.add(AclEntry::parse(Action::Allow, &target).unwrap())
                .unwrap();
        }
        acl.add(AclEntry::parse(Action::Deny, ":22").unwrap())
            .unwrap();
        assert!(lint(&acl, None).is_empty());
    }
}
