//! What cloud destinations may reach from a node: `--cloud-allow`. The operator of the node decides, and nobody else;
//! without it nothing may be reached.

use std::net::IpAddr;
use std::sync::{Arc, LazyLock};

use sg_model::{Host, HostPort, Invalid, IpRange};

/// The list. Clones share it.
#[derive(Debug, Clone, Default)]
pub(crate) struct CloudAllow(Arc<[Entry]>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    target: Target,
    /// `None`: every port.
    port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Target {
    Name(String),
    Addresses(IpRange),
}

impl CloudAllow {
    /// Reads entries as they come from the command line: `HOST`, `HOST:PORT`, `CIDR`, `CIDR:PORT`.
    ///
    /// # Errors
    /// The first entry that is none, and why.
    pub(crate) fn parse(texts: &[String]) -> Result<Self, (String, Invalid)> {
        let parse = |text: &String| parse(text.trim()).map_err(|error| (text.clone(), error));
        Ok(Self(texts.iter().map(parse).collect::<Result<_, _>>()?))
    }

    /// Whether a resource may be connected to, as far as its name tells.
    pub(crate) fn may_reach(&self, resource: &HostPort) -> bool {
        match resource.host() {
            Host::Ip(ip) => self.permits(resource, *ip),
            Host::Name(_) => self.0.iter().any(|entry| {
                entry.has_port(resource.port())
                    && match &entry.target {
                        Target::Name(_) => entry.names(resource),
                        // Its addresses decide.
                        Target::Addresses(_) => true,
                    }
            }),
        }
    }

    /// Whether a resource may be connected to at this address.
    pub(crate) fn permits(&self, resource: &HostPort, address: IpAddr) -> bool {
        let address = address.to_canonical();
        let special = special_range(address);
        self.0
            .iter()
            .filter(|entry| entry.has_port(resource.port()))
            .any(|entry| match &entry.target {
                // What is special must be meant: by a range that holds nothing else, or the name of this machine.
                Target::Addresses(range) => {
                    range.contains(address)
                        && special.is_none_or(|special| {
                            special.contains(range.first()) && special.contains(range.last())
                        })
                }
                Target::Name(name) => {
                    entry.names(resource)
                        && (special.is_none() || (address.is_loopback() && is_local_name(name)))
                }
            })
    }
}

impl Entry {
    fn has_port(&self, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
    }

    fn names(&self, resource: &HostPort) -> bool {
        matches!((&self.target, resource.host()), (Target::Name(name), Host::Name(host)) if name == host)
    }
}

fn is_local_name(name: &str) -> bool {
    name == "localhost" || name.ends_with(".localhost")
}

/// This machine, the neighbourhood of a link, where machines of a cloud read their credentials, what is nobody's, and
/// IPv6 that carries IPv4 for somebody on the way, which may lead to any of them.
const SPECIAL: [&str; 20] = [
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255",
    "100.100.100.200",
    "168.63.129.16",
    "192.0.0.192",
    "::",
    "::1",
    "::/96",
    "::ffff:0:0:0/96",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::254",
    "fd20:ce::254",
    "64:ff9b::/96",
    "64:ff9b:1::/48",
    "2001::/32",
    "2002::/16",
];

static SPECIAL_RANGES: LazyLock<Vec<IpRange>> = LazyLock::new(|| {
    SPECIAL
        .iter()
        .map(|text| text.parse().expect("invariant: the table is of ranges"))
        .collect()
});

/// The range of addresses that must be meant, if this is one of them.
fn special_range(address: IpAddr) -> Option<&'static IpRange> {
    SPECIAL_RANGES.iter().find(|range| range.contains(address))
}

fn parse(text: &str) -> Result<Entry, Invalid> {
    let bad = || {
        Invalid::new(
            "cloud_allow",
            "must be HOST, HOST:PORT, CIDR or CIDR:PORT; IPv6 with a port in brackets",
        )
    };
    if text.is_empty() {
        return Err(bad());
    }
    // An IPv6 address has colons itself.
    let is_bare_v6 = !text.starts_with('[') && text.matches(':').count() > 1;
    let (target, port) = match text.rsplit_once(':') {
        Some((target, port)) if !is_bare_v6 && !text.ends_with(']') => {
            let port = port.parse::<u16>().map_err(|_| bad())?;
            (
                target,
                Some(Some(port).filter(|port| *port > 0).ok_or_else(bad)?),
            )
        }
        _ => (text, None),
    };
    let bare = target.trim_start_matches('[').replace(']', "");
    let target = match bare.parse::<IpRange>() {
        Ok(range) => {
            let written = bare.split_once('/').map(|(address, _)| address);
            let written = written.and_then(|address| address.parse::<IpAddr>().ok());
            // It would let more through than it seems to say.
            if written.is_some_and(|address| address.to_canonical() != range.first()) {
                let problem = format!("is an address inside {range}; write the network as {range}");
                return Err(Invalid::new("cloud_allow", problem));
            }
            Target::Addresses(range)
        }
        Err(_) => match target.parse::<Host>().map_err(|_| bad())? {
            Host::Name(name) => Target::Name(name),
            Host::Ip(_) => return Err(bad()),
        },
    };
    Ok(Entry { target, port })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn allow(texts: &[&str]) -> CloudAllow {
        let texts: Vec<_> = texts.iter().map(|&text| text.to_owned()).collect();
        CloudAllow::parse(&texts).unwrap()
    }

    fn permits(list: &CloudAllow, resource: &str, address: &str) -> bool {
        let resource: HostPort = resource.parse().unwrap();
        list.may_reach(&resource) && list.permits(&resource, address.parse().unwrap())
    }

    #[test]
    fn nothing_is_reached_unless_it_is_named() {
        assert!(!permits(&allow(&[]), "10.0.0.1:80", "10.0.0.1"));
        let list = allow(&[
            "10.0.0.0/8",
            "db.example:5432",
            "[fd00::/8]:443",
            "192.0.2.7",
        ]);
        assert!(permits(&list, "10.1.2.3:80", "10.1.2.3"));
        assert!(permits(&list, "db.example:5432", "203.0.113.5"));
        assert!(!permits(&list, "db.example:5433", "203.0.113.5"));
        // Another name that leads into a range is in the range.
        assert!(permits(&list, "other.example:80", "10.9.9.9"));
        assert!(!permits(&list, "other.example:80", "203.0.113.5"));
        assert!(permits(&list, "[fd00::1]:443", "fd00::1"));
        assert!(!permits(&list, "[fd00::1]:80", "fd00::1"));
        assert!(permits(&list, "192.0.2.7:1", "192.0.2.7"));
        assert!(!permits(&list, "192.0.2.8:1", "192.0.2.8"));
    }

    #[test]
    fn this_machine_and_metadata_must_be_meant() {
        let all = allow(&["0.0.0.0/0", "::/0", "db.example"]);
        for address in [
            "127.0.0.1",
            "169.254.169.254",
            "0.0.0.0",
            "::1",
            "fe80::1",
            "fd00:ec2::254",
        ] {
            let resource = match address.contains(':') {
                true => format!("[{address}]:80"),
                false => format!("{address}:80"),
            };
            assert!(!permits(&all, &resource, address), "{address}");
            // A name that leads there is no way around.
            assert!(!permits(&all, "db.example:80", address), "{address}");
        }
        assert!(permits(
            &allow(&["127.0.0.0/8"]),
            "127.0.0.1:80",
            "127.0.0.1"
        ));
        assert!(permits(
            &allow(&["127.0.0.1:80"]),
            "127.0.0.1:80",
            "127.0.0.1"
        ));
        assert!(permits(&allow(&["localhost"]), "localhost:80", "127.0.0.1"));
        assert!(permits(
            &allow(&["169.254.169.254"]),
            "169.254.169.254:80",
            "169.254.169.254"
        ));
        assert!(!permits(
            &allow(&["0.0.0.0/0"]),
            "[::ffff:127.0.0.1]:80",
            "::ffff:127.0.0.1"
        ));
    }

    /// Every spelling of what must be meant is no way around `--cloud-allow` for everything.
    #[test]
    fn threat_11_no_spelling_of_a_special_address_is_covered_by_everything() {
        let all = allow(&["0.0.0.0/0", "::/0", "any.example"]);
        let table = include_str!("../../../model/tests/data/special.txt").lines();
        let loopback = [
            "127.0.0.1",
            "127.1",
            "127.255.255.254",
            "0x7f.1",
            "2130706433",
            "017700000001",
            "[::1]",
            "[0:0:0:0:0:0:0:1]",
            "[::ffff:127.0.0.1]",
            "[64:ff9b::7f00:1]",
        ];
        let spellings = table.filter(|line| !line.is_empty() && !line.starts_with('#'));
        for special in spellings.chain(loopback) {
            let Ok(resource) = format!("{special}:80").parse::<HostPort>() else {
                // Refused where it is written.
                continue;
            };
            let Host::Ip(address) = resource.host() else {
                panic!("{special} is taken for a name");
            };
            assert!(!all.may_reach(&resource), "{special}");
            // A name that leads there is no way around.
            let named: HostPort = "any.example:80".parse().unwrap();
            assert!(!all.permits(&named, *address), "{special} by a name");
        }
    }

    #[test]
    fn what_is_no_entry_is_refused() {
        for bad in ["", ":80", "a:0", "a:x", "10.0.0.0/33", "a b", "[::1"] {
            assert!(CloudAllow::parse(&[bad.to_owned()]).is_err(), "{bad}");
        }
        for (bad, network) in [
            ("10.0.0.1/8", "10.0.0.0/8"),
            ("10.0.0.1/8:443", "10.0.0.0/8"),
            ("[fd00::1/8]:443", "fd00::/8"),
        ] {
            let (_, error) = CloudAllow::parse(&[bad.to_owned()]).unwrap_err();
            let remedy = format!("write the network as {network}");
            assert!(error.message.ends_with(&remedy), "{bad}: {}", error.message);
        }
    }
}
