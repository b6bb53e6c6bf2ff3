//! The grammar of source rules, and decisions against a reference that is too simple to be wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;

fn spec(text: &str) -> SourceSpec {
    text.parse()
        .unwrap_or_else(|error| panic!("{text}: {error}"))
}

fn rule(text: &str, owner: Option<&str>, expires: Option<u64>) -> SourceRule {
    SourceRule {
        spec: spec(text),
        owner: owner.map(|owner| owner.parse().unwrap()),
        expires: expires.map(Timestamp),
    }
}

fn user(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

const NOW: Timestamp = Timestamp(1_000);

#[test]
fn the_grammar_of_the_command_line() {
    for (text, printed, in_it, outside) in [
        ("10.0.0.1", "10.0.0.1", "10.0.0.1:1", "10.0.0.2:1"),
        (
            " 10.0.0.1  80 ",
            "10.0.0.1 80",
            "10.0.0.1:80",
            "10.0.0.1:81",
        ),
        (
            "10.0.0.1 80:90",
            "10.0.0.1 80:90",
            "10.0.0.1:90",
            "10.0.0.1:91",
        ),
        (
            "10.0.0.1 80:80",
            "10.0.0.1 80",
            "10.0.0.1:80",
            "10.0.0.1:79",
        ),
        (
            "10.0.0.1-10.0.0.3",
            "10.0.0.1-10.0.0.3",
            "10.0.0.3:1",
            "10.0.0.4:1",
        ),
        (
            "10.0.0.1-10.0.0.3 7",
            "10.0.0.1-10.0.0.3 7",
            "10.0.0.2:7",
            "10.0.0.2:8",
        ),
        (
            "10.9.9.9/8\t1:2",
            "10.0.0.0/8 1:2",
            "10.255.255.255:2",
            "11.0.0.0:1",
        ),
        (
            "2001:db8::/32",
            "2001:db8::/32",
            "[2001:db8:ffff::1]:1",
            "[2001:db9::]:1",
        ),
        (
            "2001:db8::1 443",
            "2001:db8::1 443",
            "[2001:db8::1]:443",
            "[2001:db8::1]:444",
        ),
        ("::1", "::1", "[::1]:9", "[::2]:9"),
        ("::/0", "::/0", "[::1]:9", "10.0.0.1:9"),
        (
            "::ffff:10.0.0.1",
            "10.0.0.1",
            "[::ffff:10.0.0.1]:5",
            "[::10.0.0.1]:5",
        ),
        (":443", ":443", "[::1]:443", "10.0.0.1:80"),
        (":1000:2000", ":1000:2000", "10.0.0.1:2000", "10.0.0.1:2001"),
    ] {
        assert_eq!(spec(text).to_string(), printed, "{text}");
        assert_eq!(spec(printed), spec(text), "{text}");
        assert!(spec(text).names(user(in_it)), "{text} {in_it}");
        assert!(!spec(text).names(user(outside)), "{text} {outside}");
    }
}

#[test]
fn what_is_refused_says_what_to_write() {
    for (bad, says) in [
        ("", "ADDRESS-ADDRESS"),
        (":", "LOWEST:HIGHEST"),
        (":0", "1 to 65535"),
        (":70000", "1 to 65535"),
        (":90:80", "LOWEST:HIGHEST"),
        (":80:90:100", "LOWEST:HIGHEST"),
        ("10.0.0.1 http", "LOWEST:HIGHEST"),
        ("10.0.0.1 80-90", "LOWEST:HIGHEST"),
        ("10.0.0.1 +80", "LOWEST:HIGHEST"),
        ("10.0.0.1 80 90", "LOWEST:HIGHEST"),
        ("10.0.0.1:80", "'10.0.0.1 80'"),
        ("[2001:db8::1]:80", "'2001:db8::1 80'"),
        ("10.0.0.3-10.0.0.1", "10.0.0.1-10.0.0.3"),
        ("10.0.0.1-::1", "one for each"),
        ("10.0.0.0/40", "/0 to /32"),
        ("host.example.com", "is not an IP address"),
    ] {
        let error = bad.parse::<SourceSpec>().expect_err(bad);
        assert_eq!(error.field, "source", "{bad}");
        assert!(error.message.contains(says), "{bad}: {error}");
    }
}

#[test]
fn owners_are_bounded() {
    for good in ["app", "app:0", "My_App-1.2@x/y:i-0", &"x".repeat(64)] {
        assert_eq!(good.parse::<SourceOwner>().unwrap().as_str(), good);
    }
    for bad in [
        "",
        ":",
        "a:",
        ":a",
        "a:b:c",
        "a b",
        "ä",
        "a\n",
        &"x".repeat(65),
    ] {
        let error = bad.parse::<SourceOwner>().expect_err(bad);
        assert_eq!(error.field, "owner");
    }
}

#[test]
fn a_restriction_without_a_living_rule_admits_nobody() {
    let mut policy = SourcePolicy::default();
    let somebody = user("10.0.0.1:1");
    assert!(policy.admits(somebody, NOW));
    policy.restrict = true;
    assert!(!policy.admits(somebody, NOW));
    policy
        .add(rule("10.0.0.1", None, Some(2_000)), NOW)
        .unwrap();
    assert!(policy.admits(somebody, NOW));
    assert!(policy.admits(somebody, Timestamp(1_999)));
    assert!(!policy.admits(somebody, Timestamp(2_000)));
    assert_eq!(policy.next_expiry(NOW), Some(Timestamp(2_000)));
    assert_eq!(policy.next_expiry(Timestamp(2_000)), None);
}

#[test]
fn an_owner_has_one_rule_and_others_keep_theirs() {
    let mut policy = SourcePolicy {
        restrict: true,
        ..SourcePolicy::default()
    };
    for (text, owner, changes) in [
        ("10.0.0.1", Some("app:0"), true),
        ("10.0.0.1", Some("app:0"), false),
        ("10.0.0.1", Some("app:1"), true),
        ("10.0.0.1", None, true),
        ("10.0.0.1", None, false),
        ("10.0.0.9", None, true),
        ("10.0.0.2", Some("app:0"), true),
    ] {
        let changed = policy.add(rule(text, owner, None), NOW).unwrap();
        assert_eq!(changed, changes, "{text} {owner:?}");
    }
    let shown: Vec<_> = policy
        .rules
        .iter()
        .map(|r| {
            (
                r.spec.to_string(),
                r.owner.as_ref().map_or("", |o| o.as_str()),
            )
        })
        .collect();
    let expected = [
        ("10.0.0.2", "app:0"),
        ("10.0.0.1", "app:1"),
        ("10.0.0.1", ""),
        ("10.0.0.9", ""),
    ];
    assert_eq!(
        shown,
        expected.map(|(spec, owner)| (spec.to_owned(), owner))
    );
    // The same rule with another date is the same rule, updated.
    assert!(
        policy
            .add(rule("10.0.0.9", None, Some(5_000)), NOW)
            .unwrap()
    );
    assert_eq!(policy.rules.len(), 4);

    let app = "app:1".parse().unwrap();
    assert_eq!(policy.remove(&spec("10.0.0.2"), Some(&app)), 0);
    assert_eq!(policy.remove(&spec("10.0.0.1"), None), 2);
    assert!(!policy.remove_owner(&app));
    assert!(policy.remove_owner(&"app:0".parse().unwrap()));
    assert_eq!(policy.rules, [rule("10.0.0.9", None, Some(5_000))]);
}

#[test]
fn rules_are_bounded_and_the_expired_ones_make_room() {
    let mut policy = SourcePolicy::default();
    for number in 0..SourcePolicy::MAX_RULES {
        let owner = format!("app:{number}");
        policy
            .add(rule("10.0.0.1", Some(&owner), Some(2_000)), NOW)
            .unwrap();
    }
    let one_more = rule("10.0.0.2", None, None);
    let error = policy.add(one_more.clone(), NOW).unwrap_err();
    assert!(error.message.contains("1000"), "{error}");
    // The owner of a rule can change it all the same.
    assert!(
        policy
            .add(rule("10.0.0.3", Some("app:7"), None), NOW)
            .unwrap()
    );
    assert!(policy.add(one_more, Timestamp(2_000)).unwrap());
    assert_eq!(policy.rules.len(), 2);
}

/// Few bits, so that users and rules meet often.
fn small_v4() -> impl Strategy<Value = IpAddr> {
    (0u8..2, 0u8..16).prop_map(|(net, host)| IpAddr::from([10, 0, net, host]))
}

fn small_v6() -> impl Strategy<Value = IpAddr> {
    (0u16..2, 0u16..16).prop_map(|(net, host)| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, net, host]))
}

fn small_ip() -> impl Strategy<Value = IpAddr> {
    prop_oneof![small_v4(), small_v6()]
}

fn mapped(ip: IpAddr) -> IpAddr {
    match ip {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().into(),
        v6 => v6,
    }
}

/// The rule as written by a person, and what it means, found by comparing bit after bit.
#[derive(Debug, Clone)]
enum Written {
    One(IpAddr),
    Range(IpAddr, IpAddr),
    Network(IpAddr, u32),
    Any,
}

fn bits(ip: IpAddr) -> Vec<bool> {
    let octets = match ip.to_canonical() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    };
    octets
        .iter()
        .flat_map(|octet| (0..8).rev().map(move |bit| octet >> bit & 1 == 1))
        .collect()
}

impl Written {
    fn text(&self) -> String {
        match self {
            Self::One(ip) => ip.to_string(),
            Self::Range(first, last) => format!("{first}-{last}"),
            Self::Network(ip, prefix) => format!("{ip}/{prefix}"),
            Self::Any => String::new(),
        }
    }

    fn means(&self, user: IpAddr) -> bool {
        let same_family = |ip: &IpAddr| bits(*ip).len() == bits(user).len();
        match self {
            Self::One(ip) => bits(*ip) == bits(user),
            Self::Range(first, last) => {
                same_family(first) && bits(*first) <= bits(user) && bits(user) <= bits(*last)
            }
            Self::Network(ip, prefix) => {
                let length = *prefix as usize;
                same_family(ip) && bits(*ip)[..length] == bits(user)[..length]
            }
            Self::Any => true,
        }
    }
}

fn written() -> impl Strategy<Value = Written> {
    let range = |ip: fn() -> BoxedStrategy<IpAddr>| {
        (ip(), ip()).prop_map(|(a, b)| Written::Range(a.min(b), a.max(b)))
    };
    prop_oneof![
        small_ip().prop_map(Written::One),
        small_ip().prop_map(|ip| Written::One(mapped(ip))),
        range(|| small_v4().boxed()),
        range(|| small_v6().boxed()),
        (small_v4(), 0u32..=32).prop_map(|(ip, prefix)| Written::Network(ip, prefix)),
        (small_v6(), 0u32..=128).prop_map(|(ip, prefix)| Written::Network(ip, prefix)),
        Just(Written::Any),
    ]
}

proptest! {
    #[test]
    fn decisions_are_those_of_the_reference(
        rules in proptest::collection::vec(
            (written(), proptest::option::of((1u16..8, 0u16..4)), 0u64..4), 0..6),
        ip in small_ip(), map in any::<bool>(), port in 1u16..12, now in 0u64..4, restrict in any::<bool>(),
    ) {
        let mut policy = SourcePolicy { restrict, rules: Vec::new() };
        let mut reference = !restrict;
        for (number, (written, ports, expires)) in rules.into_iter().enumerate() {
            let ports = match written { Written::Any => Some(ports.unwrap_or((1, 3))), _ => ports };
            let text = match ports {
                Some((first, more)) if matches!(written, Written::Any) => format!(":{first}:{}", first + more),
                Some((first, more)) => format!("{} {first}:{}", written.text(), first + more),
                None => written.text(),
            };
            // 0 stands for never.
            let rule = SourceRule {
                spec: spec(&text),
                owner: Some(format!("app:{number}").parse().unwrap()),
                expires: (expires > 0).then_some(Timestamp(expires)),
            };
            prop_assert_eq!(spec(&rule.spec.to_string()), rule.spec);
            let in_ports = ports.is_none_or(|(first, more)| (first..=first + more).contains(&port));
            let lives = expires == 0 || now < expires;
            reference |= written.means(ip) && in_ports && lives;
            policy.rules.push(rule);
        }
        let user = SocketAddr::new(if map { mapped(ip) } else { ip }, port);
        prop_assert_eq!(policy.admits(user, Timestamp(now)), reference);
    }

    #[test]
    fn every_range_parses_back(first in any::<u32>(), last in any::<u32>(), a in any::<u128>(), b in any::<u128>(),
        prefix4 in 0u32..=32, prefix6 in 0u32..=128) {
        let (low, high) = (Ipv4Addr::from(first.min(last)), Ipv4Addr::from(first.max(last)));
        let mut ranges = vec![
            IpRange::new(low.into(), high.into()).unwrap(),
            IpRange::network(low.into(), prefix4).unwrap(),
            IpRange::network(Ipv6Addr::from(a).into(), prefix6).unwrap(),
        ];
        ranges.extend(IpRange::new(Ipv6Addr::from(a.min(b)).into(), Ipv6Addr::from(a.max(b)).into()));
        for range in ranges {
            prop_assert_eq!(range.to_string().parse::<IpRange>(), Ok(range));
        }
    }

    #[test]
    fn no_text_panics(text in "[0-9a-f:./ \\-\\[\\]]{0,40}|\\PC{0,40}") {
        if let Ok(spec) = text.parse::<SourceSpec>() {
            prop_assert_eq!(spec.to_string().parse::<SourceSpec>(), Ok(spec));
        }
        drop(text.parse::<SourceOwner>());
    }
}
