//! Hosts and ports. Two spellings that mean the same host become the same value: names are folded to
//! lower case and lose a trailing dot, IPv4-mapped IPv6 addresses become IPv4.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use crate::Invalid;

/// An IP address or a DNS name in its one canonical spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    /// An address, never IPv4-mapped IPv6.
    Ip(IpAddr),
    /// A name: lower case, no trailing dot, at most 253 characters.
    Name(String),
}

impl Host {
    /// The host as it is written before a port: IPv6 in brackets.
    #[must_use]
    pub fn bracketed(&self) -> String {
        match self {
            Self::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
            Self::Ip(IpAddr::V4(ip)) => ip.to_string(),
            Self::Name(name) => name.clone(),
        }
    }
}

impl FromStr for Host {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
        if let Some(inner) = bare {
            let ip: Ipv6Addr = inner
                .parse()
                .map_err(|_| Invalid::new("host", "the text in brackets is not an IPv6 address"))?;
            return Ok(Self::Ip(IpAddr::V6(ip).to_canonical()));
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        if name.is_empty() || name.len() > 253 {
            return Err(Invalid::new(
                "host",
                "must be an IP address or a DNS name of 1 to 253 characters",
            ));
        }
        let label = |l: &str| {
            (1..=63).contains(&l.len())
                && l.bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !l.starts_with('-')
                && !l.ends_with('-')
        };
        if name.contains('*') {
            let problem = "there are no wildcards; write the name in full";
            return Err(Invalid::new("host", problem));
        }
        if !name.split('.').all(label) {
            return Err(Invalid::new(
                "host",
                "must be an IP address or a DNS name of letters, digits, '-', '_' and '.'; write other names in their xn-- form",
            ));
        }
        // A last label that a resolver could read as a number (127.1, 0x7f.1, 2130706433) is an address in
        // disguise; it would slip past rules written for addresses.
        let last = name.rsplit('.').next().unwrap_or_default();
        let numeric = last.bytes().all(|b| b.is_ascii_digit())
            || last
                .strip_prefix("0x")
                .is_some_and(|h| h.bytes().all(|b| b.is_ascii_hexdigit()));
        if numeric {
            return Err(Invalid::new(
                "host",
                "looks like an IPv4 address in an unusual form; write it as four decimal numbers",
            ));
        }
        Ok(Self::Name(name))
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// A host and a port of 1 to 65535.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HostPort {
    host: Host,
    port: u16,
}

impl HostPort {
    /// Joins a host and a port.
    ///
    /// # Errors
    /// When the port is 0.
    pub fn new(host: Host, port: u16) -> Result<Self, Invalid> {
        if port == 0 {
            return Err(Invalid::new("port", "must be 1 to 65535"));
        }
        Ok(Self { host, port })
    }

    /// The host.
    #[must_use]
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port, never 0.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl FromStr for HostPort {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some(scheme) = scheme(text) {
            let problem = format!("write HOST:PORT, without {scheme}://");
            return Err(Invalid::new("address", problem));
        }
        let (host, port) = text.rsplit_once(':').ok_or_else(|| {
            Invalid::new(
                "address",
                format!("'{}' is not HOST:PORT", text.escape_debug()),
            )
        })?;
        if host.contains(':') && !host.starts_with('[') {
            return Err(Invalid::new(
                "address",
                "an IPv6 address with a port is written as [ADDRESS]:PORT",
            ));
        }
        Self::new(host.parse()?, parse_port(port)?)
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

/// The scheme of what is a URL where none is expected.
pub(crate) fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    let fits = |b: u8| b.is_ascii_alphanumeric() || b"+-.".contains(&b);
    (scheme.starts_with(|c: char| c.is_ascii_alphabetic()) && scheme.bytes().all(fits))
        .then_some(scheme)
}

/// A port in decimal digits, without sign, never 0.
pub(crate) fn parse_port(text: &str) -> Result<u16, Invalid> {
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
    match text.parse::<u16>() {
        Ok(port) if digits && port != 0 => Ok(port),
        _ => Err(Invalid::new(
            "port",
            format!("'{}' is not a port of 1 to 65535", text.escape_debug()),
        )),
    }
}

/// An inclusive range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Ports that destinations get while no node of the group has said otherwise.
    pub const DEFAULT: Self = Self {
        first: 15000,
        last: 19999,
    };

    /// The range from `first` to `last`, both included.
    ///
    /// # Errors
    /// When `first` is 0 or greater than `last`.
    pub fn new(first: u16, last: u16) -> Result<Self, Invalid> {
        if first == 0 || first > last {
            return Err(Invalid::new(
                "ports",
                "must be A-B with 1 <= A <= B <= 65535",
            ));
        }
        Ok(Self { first, last })
    }

    /// The lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// The highest port.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is in the range.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }

    /// What both ranges have in common.
    #[must_use]
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::new(self.first.max(other.first), self.last.min(other.last)).ok()
    }
}

impl FromStr for PortRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        let bad = || Invalid::new("ports", format!("'{}' is not A-B", text.escape_debug()));
        let (first, last) = text.split_once('-').ok_or_else(bad)?;
        Self::new(
            parse_port(first.trim()).map_err(|_| bad())?,
            parse_port(last.trim()).map_err(|_| bad())?,
        )
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_one_host_are_equal() {
        let same = |a: &str, b: &str| assert_eq!(a.parse::<Host>(), b.parse::<Host>(), "{a} {b}");
        same("DB.Example.COM.", "db.example.com");
        same("::ffff:10.0.0.1", "10.0.0.1");
        same("[::1]", "::1");
        assert_ne!("localhost".parse::<Host>(), "127.0.0.1".parse::<Host>());
    }

    #[test]
    fn hosts_that_could_be_read_two_ways_are_refused() {
        for bad in [
            "",
            ".",
            "a..b",
            "-a",
            "a b",
            "127.1",
            "2130706433",
            "0x7f.0x1",
            "0x7f000001",
            "1.2.3.4.5",
            "a/b",
            "a:b",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }

    #[test]
    fn host_and_port() {
        let hp: HostPort = "[::1]:5432".parse().unwrap();
        assert_eq!((hp.to_string().as_str(), hp.port()), ("[::1]:5432", 5432));
        for bad in ["x", "x:", "x:0", "x:70000", ":80", "::1:80"] {
            assert!(bad.parse::<HostPort>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_url_and_a_wildcard_are_told_from_other_mistakes() {
        let problem = |text: &str| text.parse::<HostPort>().unwrap_err().message;
        assert_eq!(
            problem("http://127.0.0.1:80"),
            "write HOST:PORT, without http://"
        );
        assert_eq!(problem("https://web"), "write HOST:PORT, without https://");
        assert_eq!(
            problem("*.example.com:80"),
            "there are no wildcards; write the name in full"
        );
        assert!(problem("a b://c:1").contains("[ADDRESS]:PORT"));
    }

    #[test]
    fn ranges() {
        let r: PortRange = "15000-19999".parse().unwrap();
        assert_eq!(r, PortRange::DEFAULT);
        assert_eq!(
            r.intersect("16000-30000".parse().unwrap()),
            PortRange::new(16000, 19999).ok()
        );
        assert_eq!(r.intersect("1-2".parse().unwrap()), None);
        assert!("5-4".parse::<PortRange>().is_err());
    }
}
