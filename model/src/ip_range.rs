//! Inclusive ranges of IP addresses of one family, as people write them: an address, two addresses with a
//! hyphen between, or a network in CIDR form. Spellings that mean the same range become the same value, and are
//! printed the shortest way.
//!
//! IPv4-mapped IPv6 addresses are IPv4 here as everywhere: `::ffff:10.0.0.0/104` is `10.0.0.0/8`, and a range of
//! IPv6 never contains an IPv4 user.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use crate::Invalid;

/// The addresses from one to another, both included.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IpRange {
    /// Of one family with `last`, and not greater.
    first: IpAddr,
    last: IpAddr,
}

/// Field that a refusal names, unless the caller knows better ([`Invalid::in_field`]).
const FIELD: &str = "addresses";

impl IpRange {
    /// The range from `first` to `last`.
    ///
    /// # Errors
    /// When they are of two families, or the wrong way round.
    pub fn new(first: IpAddr, last: IpAddr) -> Result<Self, Invalid> {
        let (first, last) = (first.to_canonical(), last.to_canonical());
        if first.is_ipv4() != last.is_ipv4() {
            let problem = "a range is of IPv4 or of IPv6; write one for each";
            return Err(Invalid::new(FIELD, problem));
        }
        if first > last {
            let problem = format!("the range is the wrong way round; write {last}-{first}");
            return Err(Invalid::new(FIELD, problem));
        }
        Ok(Self { first, last })
    }

    /// The network of `address` with this many leading bits; further bits of the address do not count.
    ///
    /// # Errors
    /// When the family has not so many bits.
    pub fn network(address: IpAddr, prefix: u32) -> Result<Self, Invalid> {
        let of_family = |most: u32| {
            if prefix <= most {
                return Ok(());
            }
            let problem = format!("/{prefix} is too long for {address}; write /0 to /{most}");
            Err(Invalid::new(FIELD, problem))
        };
        match address {
            IpAddr::V4(v4) => {
                of_family(Ipv4Addr::BITS)?;
                let host = u32::MAX.checked_shr(prefix).unwrap_or(0);
                let bits = v4.to_bits();
                let (first, last) = (Ipv4Addr::from(bits & !host), Ipv4Addr::from(bits | host));
                Ok(Self {
                    first: first.into(),
                    last: last.into(),
                })
            }
            IpAddr::V6(v6) => {
                of_family(Ipv6Addr::BITS)?;
                if let (Some(v4), Some(prefix)) = (v6.to_ipv4_mapped(), prefix.checked_sub(96)) {
                    return Self::network(v4.into(), prefix);
                }
                let host = u128::MAX.checked_shr(prefix).unwrap_or(0);
                let bits = v6.to_bits();
                let (first, last) = (Ipv6Addr::from(bits & !host), Ipv6Addr::from(bits | host));
                Ok(Self {
                    first: first.into(),
                    last: last.into(),
                })
            }
        }
    }

    /// Whether the address is in the range; an IPv4-mapped one counts as IPv4.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        // All of IPv4 comes before all of IPv6.
        (self.first..=self.last).contains(&address.to_canonical())
    }

    /// The lowest address.
    #[must_use]
    pub fn first(&self) -> IpAddr {
        self.first
    }

    /// The highest address.
    #[must_use]
    pub fn last(&self) -> IpAddr {
        self.last
    }

    /// The length of the prefix, if the range is a network.
    fn prefix(&self) -> Option<u32> {
        // Both families in the low bits, so that there is one way to look at them.
        let bits = |ip: IpAddr| match ip {
            IpAddr::V4(v4) => u128::from(v4.to_bits()),
            IpAddr::V6(v6) => v6.to_bits(),
        };
        let unused = if self.first.is_ipv4() { 96 } else { 0 };
        let (first, last) = (bits(self.first), bits(self.last));
        let differ = first ^ last;
        // All ones from some bit down, where the first address has only zeros.
        let is_network = differ & differ.wrapping_add(1) == 0 && first & differ == 0;
        is_network.then(|| differ.leading_zeros() - unused)
    }
}

fn address(text: &str) -> Result<IpAddr, Invalid> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']'));
    let parsed = match bare {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6).ok(),
        None => text.parse::<IpAddr>().ok(),
    };
    parsed.ok_or_else(|| {
        let problem = format!(
            "'{}' is not an IP address; write ADDRESS, ADDRESS-ADDRESS or ADDRESS/BITS, as 10.0.0.0/8 or 2001:db8::/32",
            text.escape_debug()
        );
        Invalid::new(FIELD, problem)
    })
}

impl FromStr for IpRange {
    type Err = Invalid;

    fn from_str(text: &str) -> Result<Self, Invalid> {
        if let Some((base, bits)) = text.split_once('/') {
            let prefix = Some(bits)
                .filter(|bits| bits.bytes().all(|b| b.is_ascii_digit()))
                .and_then(|bits| bits.parse().ok())
                .ok_or_else(|| {
                    let problem = format!(
                        "'{}' is not the length of a prefix; write ADDRESS/BITS, as 10.0.0.0/8",
                        bits.escape_debug()
                    );
                    Invalid::new(FIELD, problem)
                })?;
            return Self::network(address(base)?, prefix);
        }
        match text.split_once('-') {
            Some((first, last)) => Self::new(address(first)?, address(last)?),
            None => address(text).and_then(|ip| Self::new(ip, ip)),
        }
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { first, last } = self;
        match self.prefix() {
            _ if first == last => first.fmt(f),
            Some(prefix) => write!(f, "{first}/{prefix}"),
            None => write!(f, "{first}-{last}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(text: &str) -> IpRange {
        text.parse()
            .unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn what_means_the_same_is_equal_and_printed_the_shortest_way() {
        for (text, printed) in [
            ("10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/32", "10.1.2.3"),
            ("10.1.2.3-10.1.2.3", "10.1.2.3"),
            ("::ffff:10.1.2.3", "10.1.2.3"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.0.0.0-10.255.255.255", "10.0.0.0/8"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("0.0.0.0-255.255.255.255", "0.0.0.0/0"),
            ("10.0.0.1-10.0.0.2", "10.0.0.1-10.0.0.2"),
            ("10.0.0.128-10.0.1.127", "10.0.0.128-10.0.1.127"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("[2001:db8::1]", "2001:db8::1"),
            ("2001:db8::1-2001:db8::ff", "2001:db8::1-2001:db8::ff"),
            ("::/0", "::/0"),
            ("::1/128", "::1"),
            ("::ffff:0:0/95", "::fffe:0:0/95"),
        ] {
            assert_eq!(range(text).to_string(), printed, "{text}");
            assert_eq!(range(printed), range(text), "{text}");
        }
    }

    #[test]
    fn what_is_refused_says_what_to_write() {
        for (bad, says) in [
            ("", "ADDRESS/BITS"),
            ("10.0.0", "10.0.0.0/8"),
            ("10.0.0.0/33", "/0 to /32"),
            ("::1/129", "/0 to /128"),
            ("10.0.0.0/", "ADDRESS/BITS"),
            ("10.0.0.0/+8", "ADDRESS/BITS"),
            ("10.0.0.0/255.0.0.0", "ADDRESS/BITS"),
            ("10.0.0.9-10.0.0.1", "10.0.0.1-10.0.0.9"),
            ("10.0.0.1-::1", "IPv4 or of IPv6"),
            ("10.0.0.1-", "ADDRESS"),
            ("fe80::1%eth0", "ADDRESS"),
            ("[10.0.0.1]", "ADDRESS"),
            ("db.example.com", "ADDRESS"),
        ] {
            let error = bad.parse::<IpRange>().expect_err(bad);
            assert!(error.message.contains(says), "{bad}: {error}");
        }
    }

    #[test]
    fn families_do_not_mix() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(range("10.0.0.0/8").contains(ip("::ffff:10.0.0.1")));
        assert!(!range("::/0").contains(ip("10.0.0.1")));
        assert!(!range("::/0").contains(ip("::ffff:10.0.0.1")));
        assert!(!range("0.0.0.0/0").contains(ip("::1")));
    }
}
