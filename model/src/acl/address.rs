//! Addresses that a wide rule does not cover.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::HostPattern;

/// Where machines of a cloud read their credentials, outside the link-local networks.
const METADATA: [IpAddr; 5] = [
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16)),
    IpAddr::V4(Ipv4Addr::new(192, 0, 0, 192)),
];

/// Whether an entry must name the address before anybody may connect to it: where machines of a cloud read their
/// credentials, the neighbourhood of the link, and addresses that mean "here" or "everybody".
#[must_use]
pub fn is_special(address: IpAddr) -> bool {
    let address = canonical_address(address);
    if METADATA.contains(&address) {
        return true;
    }
    match address {
        IpAddr::V4(ip) => {
            ip.is_link_local() || ip.octets()[0] == 0 || ip.is_broadcast() || ip.is_multicast()
        }
        IpAddr::V6(ip) => {
            ip.is_unicast_link_local()
                || ip.is_unspecified()
                || ip.is_multicast()
                || transition(ip).is_some()
        }
    }
}

/// Addresses that carry IPv4 for somebody on the way: which of them, by a number. Who that is and where it leads, only
/// the network knows.
fn transition(ip: Ipv6Addr) -> Option<u8> {
    match ip.segments() {
        // A translator of the local network, with IPv4 inside at a place that only it knows.
        [0x64, 0xff9b, 1, ..] => Some(1),
        // 6to4, given up by its makers.
        [0x2002, ..] => Some(2),
        // Teredo.
        [0x2001, 0, ..] => Some(3),
        // IPv4 as it was written in IPv6 long ago; `::` and `::1` are something else.
        [0, 0, 0, 0, 0, 0, high, low] if (high, low) > (0, 1) => Some(4),
        // As a translator without a state writes it.
        [0, 0, 0, 0, 0xffff, 0, ..] => Some(5),
        _ => None,
    }
}

/// IPv4 in the forms that IPv6 has for it becomes IPv4.
#[must_use]
pub fn canonical_address(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(ip) => match ip.segments() {
            // NAT64 (64:ff9b::/96): the system may translate it to the IPv4 address inside.
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => {
                IpAddr::V4((u32::from(high) << 16 | u32::from(low)).into())
            }
            _ => IpAddr::V6(ip),
        },
        v4 => v4,
    }
}

/// Whether a pattern means special addresses, and does not merely include them among others.
pub(super) fn names_special(pattern: &HostPattern) -> bool {
    match pattern {
        HostPattern::Host(_) => true,
        // Special addresses come in blocks, and no block touches another kind on both sides of what is ordinary.
        HostPattern::Addresses(range) => {
            let (first, last) = (range.first(), range.last());
            is_special(first) && is_special(last) && same_block(first, last)
        }
    }
}

fn same_block(first: IpAddr, last: IpAddr) -> bool {
    match (first, last) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            (a.is_link_local() && b.is_link_local())
                || (a.is_multicast() && b.is_multicast())
                || (a.octets()[0] == 0 && b.octets()[0] == 0)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            (a.is_unicast_link_local() && b.is_unicast_link_local())
                || (a.is_multicast() && b.is_multicast())
                || (transition(a).is_some() && transition(a) == transition(b))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pattern_of_special_addresses_names_them() {
        for (pattern, names) in [
            ("169.254.169.254", true),
            ("169.254.0.0/16", true),
            ("fe80::/10", true),
            ("224.0.0.0/4", true),
            ("0.0.0.0/0", false),
            ("0.0.0.0-255.255.255.255", false),
            ("169.0.0.0/8", false),
            ("168.63.129.16-169.254.0.1", false),
            ("::/0", false),
            ("fe00::/7", false),
            ("2002::/16", true),
            ("2001::/32", true),
            ("2001::/23", false),
            ("2001:ffff::-2002::1", false),
        ] {
            let pattern = HostPattern::parse(pattern).unwrap();
            assert_eq!(names_special(&pattern), names, "{pattern}");
        }
    }
}
