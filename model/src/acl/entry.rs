//! One entry of a list: what it speaks of, how that is written, and how specific it is.

use std::fmt;
use std::net::IpAddr;

use super::Action;
use crate::endpoint::{parse_port, scheme};
use crate::{Host, HostPort, Invalid, IpRange, PathPrefix, PortRange};

/// Which hosts an entry speaks of, if not of all.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// One name or one address.
    Host(Host),
    /// More than one address.
    Addresses(IpRange),
}

impl HostPattern {
    /// Parses a name, an address, a network (`10.0.0.0/8`) or a range (`10.0.0.1-10.0.0.9`). IPv6 may stand in
    /// brackets.
    ///
    /// # Errors
    /// When it is none of these, or a network whose address has bits behind the prefix.
    pub fn parse(text: &str) -> Result<Self, Invalid> {
        let bare = text
            .strip_prefix('[')
            .and_then(|text| text.strip_suffix(']'))
            .unwrap_or(text);
        let is_network = bare.contains('/');
        let is_range = bare
            .split_once('-')
            .is_some_and(|(first, _)| first.parse::<IpAddr>().is_ok());
        if text.contains('*') {
            let problem =
                "there are no wildcards; write each host, a network, or :PORT for every host";
            return Err(Invalid::new("host", problem));
        }
        if !is_network && !is_range {
            return text.parse().map(Self::Host);
        }
        if bare != text && !bare.contains(':') {
            let problem = "the text in brackets is not of IPv6 addresses";
            return Err(Invalid::new("host", problem));
        }
        let range: IpRange = bare.parse().map_err(|e: Invalid| e.in_field("host"))?;
        let written = bare
            .split_once('/')
            .and_then(|(address, _)| address.parse::<IpAddr>().ok());
        if written.is_some_and(|address| address.to_canonical() != range.first()) {
            let problem = format!(
                "'{}' is an address inside {range}; write the network as {range}, a path as HOST:/PATH",
                text.escape_debug()
            );
            return Err(Invalid::new("host", problem));
        }
        Ok(if range.first() == range.last() {
            Self::Host(Host::Ip(range.first()))
        } else {
            Self::Addresses(range)
        })
    }

    /// Whether it speaks of this host. A name is never an address.
    #[must_use]
    pub fn matches(&self, host: &Host) -> bool {
        match (self, host) {
            (Self::Host(one), host) => one == host,
            (Self::Addresses(range), Host::Ip(ip)) => range.contains(*ip),
            (Self::Addresses(_), Host::Name(_)) => false,
        }
    }

    /// Whether there is a host that both speak of.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Host(host), other) | (other, Self::Host(host)) => other.matches(host),
            (Self::Addresses(a), Self::Addresses(b)) => {
                a.contains(b.first()) || b.contains(a.first())
            }
        }
    }

    /// How many addresses there are beside the first.
    fn width(&self) -> u128 {
        match self {
            Self::Host(_) => 0,
            Self::Addresses(range) => match (range.first(), range.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => {
                    (last.to_bits().saturating_sub(first.to_bits())).into()
                }
                (IpAddr::V6(first), IpAddr::V6(last)) => {
                    last.to_bits().saturating_sub(first.to_bits())
                }
                _ => u128::MAX,
            },
        }
    }
}

impl fmt::Display for HostPattern {
    /// As the wire has it, without brackets.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Host(host) => host.fmt(f),
            Self::Addresses(range) => range.fmt(f),
        }
    }
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct AclEntry {
    /// Allow or deny.
    pub action: Action,
    /// `None`: every host.
    pub host: Option<HostPattern>,
    /// `None`: every port. One port is a range from it to itself.
    pub port: Option<PortRange>,
    /// Only what is under this path, of what is allowed; never with deny.
    pub path: Option<PathPrefix>,
}

/// How specific an entry is; the smaller wins. Hosts count before ports: one host before fewer addresses before more
/// addresses before every host, then the same with ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Level {
    every_host: bool,
    addresses: u128,
    ports: u32,
}

impl AclEntry {
    /// Parses `HOST:PORT`, `HOST:`, `HOST`, `:PORT` or `:`, each with a path behind it if the action is to allow.
    /// HOST may be a network or a range of addresses, PORT a range of ports.
    ///
    /// # Errors
    /// When a part is not acceptable.
    pub fn parse(action: Action, text: &str) -> Result<Self, Invalid> {
        let (host, port, path) = split(text)?;
        Self::from_parts(action, host, port, path)
    }

    /// As [`AclEntry::parse`], with the path apart from the target.
    ///
    /// # Errors
    /// When a part is not acceptable.
    pub fn parse_with_path(action: Action, target: &str, path: &str) -> Result<Self, Invalid> {
        match split(target)? {
            (host, port, "") => Self::from_parts(action, host, port, path),
            _ => Err(Invalid::new("path", "there are two paths; leave one out")),
        }
    }

    fn from_parts(action: Action, host: &str, port: &str, path: &str) -> Result<Self, Invalid> {
        let host = (!host.is_empty())
            .then(|| HostPattern::parse(host))
            .transpose()?;
        let port = match port {
            "" => None,
            range if range.contains('-') => {
                Some(range.parse().map_err(|e: Invalid| e.in_field("port"))?)
            }
            one => {
                let one = parse_port(one)?;
                Some(PortRange::new(one, one)?)
            }
        };
        let path = (!path.is_empty()).then(|| path.parse()).transpose()?;
        Self::new(action, host, port, path)
    }

    /// Puts an entry together. All ports in a range are no range.
    ///
    /// # Errors
    /// When it denies a path.
    pub fn new(
        action: Action,
        host: Option<HostPattern>,
        port: Option<PortRange>,
        path: Option<PathPrefix>,
    ) -> Result<Self, Invalid> {
        if action == Action::Deny && path.is_some() {
            let problem = "a path can only be allowed; what no path allows is denied by itself";
            return Err(Invalid::new("path", problem));
        }
        let port = port.filter(|ports| (ports.first(), ports.last()) != (1, u16::MAX));
        Ok(Self {
            action,
            host,
            port,
            path,
        })
    }

    /// The target as it is written: `HOST:PORT` with either part possibly absent.
    #[must_use]
    pub fn target(&self) -> String {
        let host = match &self.host {
            None => String::new(),
            Some(HostPattern::Host(host)) => host.bracketed(),
            Some(HostPattern::Addresses(range)) if range.first().is_ipv6() => format!("[{range}]"),
            Some(HostPattern::Addresses(range)) => range.to_string(),
        };
        let port = match self.port {
            None => String::new(),
            Some(ports) if ports.first() == ports.last() => ports.first().to_string(),
            Some(ports) => ports.to_string(),
        };
        format!("{host}:{port}")
    }

    /// Target and path as they are written.
    #[must_use]
    pub fn target_and_path(&self) -> String {
        let path = self.path.as_ref().map_or("", PathPrefix::as_str);
        format!("{}{path}", self.target())
    }

    /// Whether both entries speak of the same target, whatever their paths.
    #[must_use]
    pub fn same_target(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }

    /// Whether `no acl` with `target` takes this entry away: with a path that path's, without one all of the target.
    #[must_use]
    pub fn falls_with(&self, target: &Self) -> bool {
        self.same_target(target) && (target.path.is_none() || self.path == target.path)
    }

    /// Whether it speaks of every host and every port.
    #[must_use]
    pub fn is_everything(&self) -> bool {
        self.host.is_none() && self.port.is_none()
    }

    /// Whether it speaks of this host and port.
    #[must_use]
    pub fn matches(&self, target: &HostPort) -> bool {
        self.port.is_none_or(|ports| ports.contains(target.port()))
            && self
                .host
                .as_ref()
                .is_none_or(|host| host.matches(target.host()))
    }

    pub(super) fn level(&self) -> Level {
        Level {
            every_host: self.host.is_none(),
            addresses: self.host.as_ref().map_or(0, HostPattern::width),
            ports: self.port.map_or(u32::MAX, |ports| {
                u32::from(ports.last()) - u32::from(ports.first())
            }),
        }
    }
}

impl fmt::Display for AclEntry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.action, self.target_and_path())
    }
}

/// Splits `HOST:PORT/PATH` into its three parts, each possibly empty.
fn split(text: &str) -> Result<(&str, &str, &str), Invalid> {
    if text.is_empty() {
        let problem = "write HOST:PORT, HOST:, :PORT or : for everything";
        return Err(Invalid::new("target", problem));
    }
    // Else it would be a host of the scheme's name with a path, which nobody means.
    if let Some(scheme) = scheme(text) {
        let problem = format!("write HOST:PORT[/PATH], without {scheme}://");
        return Err(Invalid::new("target", problem));
    }
    let (host, rest) = split_host(text)?;
    let (port, path) = match rest.find('/').and_then(|at| rest.split_at_checked(at)) {
        Some((port, path)) => (port, path),
        None => (rest, ""),
    };
    match port.strip_prefix(':') {
        Some(port) => Ok((host, port, path)),
        None if port.is_empty() && !host.is_empty() => Ok((host, "", path)),
        None => {
            let problem = format!("'{}' is not HOST:PORT", text.escape_debug());
            Err(Invalid::new("target", problem))
        }
    }
}

/// Splits the host off; the rest begins with the colon, with the slash of a path, or is empty.
fn split_host(text: &str) -> Result<(&str, &str), Invalid> {
    let at = |place: usize| text.split_at_checked(place).unwrap_or((text, ""));
    if text.starts_with('[') {
        let Some(end) = text.find(']') else {
            return Err(Invalid::new("host", "the ']' of the address is missing"));
        };
        let (host, rest) = at(end + 1);
        if rest.strip_prefix('/').is_some_and(begins_with_number) {
            let problem = "write a network as [ADDRESS/BITS]:PORT, a path as [ADDRESS]:/PATH";
            return Err(Invalid::new("host", problem));
        }
        return Ok((host, rest));
    }
    let slash = text.find('/').unwrap_or(text.len());
    let (head, tail) = at(slash);
    if head.parse::<IpAddr>().is_ok() && tail.strip_prefix('/').is_some_and(begins_with_number) {
        // A network. What could be meant for a path as well is refused later: the address has bits behind the prefix.
        let bits = tail.bytes().skip(1).take_while(u8::is_ascii_digit).count();
        return Ok(at(slash + 1 + bits));
    }
    if head.matches(':').count() > 1 {
        // IPv6 without brackets has no port.
        return Ok(at(slash));
    }
    Ok(at(head.find(':').unwrap_or(slash)))
}

/// Whether the text is a number, or a number with a port or a path behind it.
fn begins_with_number(text: &str) -> bool {
    let rest = text.trim_start_matches(|c: char| c.is_ascii_digit());
    rest.len() < text.len() && (rest.is_empty() || rest.starts_with([':', '/']))
}

#[cfg(test)]
mod tests {
    use super::*;

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
            ("db:8000-8099", "db:8000-8099"),
            ("db:80-80", "db:80"),
            ("db:1-65535", "db:"),
            (":8000-8099", ":8000-8099"),
            ("10.0.0.0/8:80", "10.0.0.0/8:80"),
            ("10.0.0.0/8", "10.0.0.0/8:"),
            ("10.0.0.1/32:80", "10.0.0.1:80"),
            ("10.0.0.1-10.0.0.9:80", "10.0.0.1-10.0.0.9:80"),
            ("2001:db8::/32", "[2001:db8::/32]:"),
            ("[2001:db8::/32]:80", "[2001:db8::/32]:80"),
            (
                "[2001:db8::1-2001:db8::9]:80",
                "[2001:db8::1-2001:db8::9]:80",
            ),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8:"),
            ("web:80/my/api", "web:80/my/api"),
            ("web/my/api", "web:/my/api"),
            (":80/a", ":80/a"),
            (":/a", ":/a"),
            ("10.0.0.1/a8", "10.0.0.1:/a8"),
            ("10.0.0.0/8:80/a", "10.0.0.0/8:80/a"),
            ("[::1]:80/a//b/", "[::1]:80/a/b/"),
            ("[::1]/a", "[::1]:/a"),
            ("::1/a", "[::1]:/a"),
            ("ip-10-0-0-1.internal:80", "ip-10-0-0-1.internal:80"),
        ] {
            let entry = AclEntry::parse(Action::Allow, text).unwrap();
            assert_eq!(entry.target_and_path(), printed, "{text}");
            let again = AclEntry::parse(Action::Allow, printed);
            assert_eq!(again.as_ref(), Ok(&entry), "{text}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for bad in [
            "",
            "db:0",
            "db:x",
            "db:99999",
            "db:+80",
            "db:80-",
            "db:90-80",
            "a b:1",
            "127.1:80",
            "db:80x/a",
            "db:80/..",
            "db:80/a%2fb",
            "db:80/*",
            "10.0.0.1/8",
            "10.0.0.1/8:80",
            "10.0.0.1/8/x",
            "[2001:db8::]/32",
            "[10.0.0.0/8]:80",
            "[::1",
            "/path",
            "80/path",
            "[::1]80",
            "10.0.0.1-10.0.0.x:1",
            "10.0.0.0/33",
            "a:1:2",
            "fe80::1%eth0",
        ] {
            assert!(AclEntry::parse(Action::Allow, bad).is_err(), "{bad}");
        }
        assert!(AclEntry::parse(Action::Deny, "db:80/a").is_err());
    }

    #[test]
    fn a_url_and_a_wildcard_are_told_from_other_mistakes() {
        let problem = |text: &str| {
            AclEntry::parse(Action::Allow, text)
                .map(|entry| entry.to_string())
                .map_err(|invalid| invalid.message)
        };
        assert_eq!(
            problem("http://web:80"),
            Err("write HOST:PORT[/PATH], without http://".to_owned())
        );
        for text in ["*.example.com:80", "*:80", "10.0.0.*:80"] {
            let refused = problem(text).expect_err(text);
            assert!(refused.starts_with("there are no wildcards"), "{refused}");
        }
        assert_eq!(
            problem("web:80/a://b"),
            Ok("allow web:80/a:/b".to_owned()),
            "of a path it is a part"
        );
    }
}
