//! Decisions against a reference model that is written the slow and obvious way, with patterns as plain sets over a small world.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::net::Ipv4Addr;

use proptest::prelude::*;
use sg_model::{
    Acl, AclCommand, AclEntry, AclFile, Action, CanonicalPath, Host, HostPort, Reached, Scope, lint,
};

/// A world small enough that patterns meet: 16 addresses, 3 names, 6 ports, 3 paths.
const NAMES: [&str; 3] = ["db", "web", "other"];
const PATHS: [&str; 4] = ["/a", "/a/b", "/c", "/"];
const ASKED: [&str; 5] = ["/", "/a", "/a/b/d", "/ab", "/c"];

#[derive(Debug, Clone)]
enum Hosts {
    All,
    Name(usize),
    /// From and to, of the 16 addresses.
    Addresses(u8, u8),
}

/// An entry in the words of the reference.
#[derive(Debug, Clone)]
struct Entry {
    allow: bool,
    hosts: Hosts,
    ports: Option<(u16, u16)>,
    path: Option<usize>,
}

fn address(n: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, n)
}

impl Entry {
    fn text(&self) -> String {
        let host = match self.hosts {
            Hosts::All => String::new(),
            Hosts::Name(name) => NAMES[name].to_owned(),
            Hosts::Addresses(a, b) if a == b => address(a).to_string(),
            Hosts::Addresses(a, b) => format!("{}-{}", address(a), address(b)),
        };
        let ports = match self.ports {
            None => String::new(),
            Some((a, b)) if a == b => a.to_string(),
            Some((a, b)) => format!("{a}-{b}"),
        };
        let path = self.path.map_or("", |path| PATHS[path]);
        let action = if self.allow { "allow" } else { "deny" };
        format!("acl {action} {host}:{ports}{path}")
    }

    fn hosts(&self) -> Vec<String> {
        let addresses = |a: u8, b: u8| (a..=b).map(|n| address(n).to_string()).collect();
        match self.hosts {
            Hosts::All => {
                let mut all: Vec<String> = addresses(0, 15);
                all.extend(NAMES.map(str::to_owned));
                all
            }
            Hosts::Name(name) => vec![NAMES[name].to_owned()],
            Hosts::Addresses(a, b) => addresses(a, b),
        }
    }

    fn speaks_of(&self, host: &str, port: u16) -> bool {
        let ports = self.ports.is_none_or(|(a, b)| a <= port && port <= b);
        ports && self.hosts().iter().any(|own| own == host)
    }

    /// The smaller, the more specific; counted, not computed.
    fn size(&self) -> (usize, usize) {
        let ports = match self.ports {
            None => usize::MAX,
            Some((a, b)) => (a..=b).count(),
        };
        let hosts = match self.hosts {
            Hosts::All => usize::MAX,
            _ => self.hosts().len(),
        };
        (hosts, ports)
    }
}

/// Reads `/a/b` as a list and asks whether one begins with the other.
fn is_under(path: &str, prefix: &str) -> bool {
    let list = |text: &str| -> Vec<String> {
        text.split('/')
            .filter(|s| !s.is_empty())
            .map(str::to_owned)
            .collect()
    };
    list(path).starts_with(&list(prefix))
}

fn reference(entries: &[Entry], open: bool, host: &str, port: u16, path: Option<&str>) -> bool {
    let speaking: Vec<&Entry> = entries.iter().filter(|e| e.speaks_of(host, port)).collect();
    let Some(best) = speaking.iter().map(|e| e.size()).min() else {
        return open;
    };
    let level: Vec<&&Entry> = speaking.iter().filter(|e| e.size() == best).collect();
    if level.iter().any(|e| !e.allow) {
        return false;
    }
    let paths: Vec<&str> = level
        .iter()
        .filter_map(|e| e.path.map(|p| PATHS[p]))
        .collect();
    match path {
        _ if paths.is_empty() => true,
        None => false,
        Some(path) => paths.iter().any(|prefix| is_under(path, prefix)),
    }
}

fn entry() -> impl Strategy<Value = Entry> {
    let hosts = prop_oneof![
        Just(Hosts::All),
        (0..NAMES.len()).prop_map(Hosts::Name),
        (0u8..16, 0u8..16).prop_map(|(a, b)| Hosts::Addresses(a.min(b), a.max(b))),
    ];
    let ports = proptest::option::of((1u16..7, 1u16..7).prop_map(|(a, b)| (a.min(b), a.max(b))));
    let path = prop_oneof![3 => Just(None), 1 => (0..PATHS.len()).prop_map(Some)];
    (any::<bool>(), hosts, ports, path).prop_map(|(allow, hosts, ports, path)| Entry {
        allow,
        ports: match (&hosts, ports) {
            // What is said of everything is not an entry, and is tested apart.
            (Hosts::All, None) => Some((1, 3)),
            (_, ports) => ports,
        },
        hosts,
        path: path.filter(|_| allow),
    })
}

fn targets() -> Vec<(String, u16)> {
    let mut hosts: Vec<String> = (0..16).map(|n| address(n).to_string()).collect();
    hosts.extend(NAMES.map(str::to_owned));
    hosts
        .iter()
        .flat_map(|host| (1..8).map(move |port| (host.clone(), port)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn decisions_are_those_of_the_reference(
        entries in proptest::collection::vec(entry(), 0..10),
        open in any::<bool>(),
    ) {
        let text: Vec<String> = entries.iter().map(Entry::text).collect();
        let parse = |line: &String| match AclCommand::parse(line).unwrap().unwrap() {
            AclCommand::Add(entry) => entry,
            other => panic!("{other:?}"),
        };
        let acl = Acl {
            entries: text.iter().map(parse).collect(),
            unlisted: if open { Action::Allow } else { Action::Deny },
            ..Acl::default()
        };
        let mut reversed = acl.clone();
        reversed.entries.reverse();
        // A file with these lines, `acl allow :` last because an entry would take it back.
        let mut file = text.join("\n");
        if open {
            file.push_str("\nacl allow :\n");
        }
        let from_file = AclFile::parse(&file).unwrap().acl;
        for (host, port) in targets() {
            let target = HostPort::new(host.parse::<Host>().unwrap(), port).unwrap();
            for path in ASKED.map(Some).into_iter().chain([None]) {
                let canonical = path.map(|path| CanonicalPath::parse(path).unwrap());
                let scope = canonical.as_ref().map_or(Scope::Stream, Scope::Path);
                let expected = reference(&entries, open, &host, port, path);
                for list in [&acl, &reversed, &from_file] {
                    let decision = list.decide_for(&target, scope);
                    prop_assert_eq!(decision.allowed, expected, "{:?} {} {:?}", text, target, path);
                    if let (Some(number), Some(entry)) = (decision.number, decision.entry) {
                        prop_assert_eq!(&list.entries[number - 1], entry);
                    }
                }
            }
            // Some path is allowed exactly if an asked one could be.
            let some = acl.decide_for(&target, Scope::AnyPath).allowed;
            let all = PATHS.iter().chain(&ASKED);
            let mut each = all.map(|path| CanonicalPath::parse(path).unwrap());
            prop_assert_eq!(some, each.any(|path| acl.decide_path(&target, &path).allowed));
        }
    }

    #[test]
    fn what_is_called_shadowed_can_be_left_out(
        entries in proptest::collection::vec(entry(), 0..8),
    ) {
        let text: Vec<String> = entries.iter().map(Entry::text).collect();
        let acl = AclFile::parse(&text.join("\n")).unwrap().acl;
        for finding in lint(&acl, None::<&[Reached]>) {
            let mut without = acl.clone();
            without.entries.remove(finding.number.unwrap() - 1);
            for (host, port) in targets() {
                let target = HostPort::new(host.parse::<Host>().unwrap(), port).unwrap();
                for path in ASKED {
                    let path = CanonicalPath::parse(path).unwrap();
                    prop_assert_eq!(
                        acl.decide_path(&target, &path).allowed,
                        without.decide_path(&target, &path).allowed,
                        "{} {} {}", finding, target, path
                    );
                }
                prop_assert_eq!(acl.decide(&target).allowed, without.decide(&target).allowed);
            }
        }
    }

    #[test]
    fn a_list_survives_being_written_and_read(
        entries in proptest::collection::vec(entry(), 0..10),
        open in any::<bool>(),
    ) {
        let mut acl = Acl::default();
        for entry in &entries {
            acl.apply(&AclCommand::parse(&entry.text()).unwrap().unwrap()).unwrap();
        }
        if open {
            acl.apply(&AclCommand::parse("acl allow :").unwrap().unwrap()).unwrap();
        }
        prop_assert_eq!(&AclFile::parse(&acl.to_file()).unwrap().acl, &acl);
        for entry in &acl.entries {
            let again = AclEntry::parse(entry.action, &entry.target_and_path());
            prop_assert_eq!(again.as_ref(), Ok(entry));
        }
    }

    #[test]
    fn any_text_is_a_path_in_one_form_or_none(text in "/[a-z./;%\\\\ 0-9A-Fü?#]{0,24}") {
        if let Ok(path) = CanonicalPath::parse(&text) {
            let again = CanonicalPath::parse(path.target());
            prop_assert_eq!(again.as_ref(), Ok(&path));
            let shown = path.as_str();
            prop_assert!(shown.is_ascii() && shown.starts_with('/'));
            prop_assert!(!shown.contains("//") && !shown.contains('\\'));
            prop_assert!(!shown.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!shown.to_ascii_lowercase().contains("%2f"));
        }
    }
}
