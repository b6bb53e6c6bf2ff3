//! What the resource is told of the user: `X-Forwarded-For`, `-Proto`, `-Host`, and `Forwarded` (RFC 7239).

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue};

const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const STANDARD: HeaderName = http::header::FORWARDED;

/// What becomes of the headers that say who the user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Forwarded {
    /// Set from the user's connection; what the user sent of them is removed.
    #[default]
    Set,
    /// What the user sent is believed, and the user's address is added: behind a trusted proxy.
    Append,
    /// None is sent, and what the user sent of them is removed.
    Off,
}

/// The user, as far as the headers tell of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct User {
    /// Its address.
    pub address: IpAddr,
    /// Whether it speaks TLS.
    pub tls: bool,
}

pub(super) fn apply(headers: &mut HeaderMap, how: Forwarded, user: User, host: Option<&str>) {
    remove_twins(headers);
    let mut before = HeaderMap::new();
    for name in [FOR, PROTO, HOST, STANDARD] {
        if how == Forwarded::Append {
            for value in headers.get_all(&name) {
                before.append(name.clone(), value.clone());
            }
        }
        headers.remove(name);
    }
    if how == Forwarded::Off {
        return;
    }
    let proto = if user.tls { "https" } else { "http" };
    let address = user.address.to_canonical();
    let node = match address {
        IpAddr::V4(address) => address.to_string(),
        IpAddr::V6(address) => format!("\"[{address}]\""),
    };
    let element = match host {
        // A host that was found valid has no quote or backslash.
        Some(host) => format!("for={node};host=\"{host}\";proto={proto}"),
        None => format!("for={node};proto={proto}"),
    };
    insert(headers, FOR, &joined(&before, &FOR, &address.to_string()));
    insert(headers, STANDARD, &joined(&before, &STANDARD, &element));
    // The first proxy knows best what the user asked for.
    match before.remove(PROTO) {
        Some(value) => drop(headers.insert(PROTO, value)),
        None => insert(headers, PROTO, proto.as_bytes()),
    }
    match (before.remove(HOST), host) {
        (Some(value), _) => drop(headers.insert(HOST, value)),
        (None, Some(host)) => insert(headers, HOST, host.as_bytes()),
        (None, None) => {}
    }
}

fn insert(headers: &mut HeaderMap, name: HeaderName, value: &[u8]) {
    if let Ok(value) = HeaderValue::from_bytes(value) {
        headers.insert(name, value);
    }
}

fn joined(before: &HeaderMap, name: &HeaderName, last: &str) -> Vec<u8> {
    let mut list = Vec::new();
    for value in before.get_all(name) {
        list.extend_from_slice(value.as_bytes());
        list.extend_from_slice(b", ");
    }
    list.extend_from_slice(last.as_bytes());
    list
}

/// Removes names that some resources take for ours, because they turn hyphens into underscores (CGI, WSGI).
fn remove_twins(headers: &mut HeaderMap) {
    let twins: Vec<HeaderName> = headers
        .keys()
        .filter(|name| {
            let name = name.as_str();
            name.contains('_')
                && [FOR, PROTO, HOST]
                    .iter()
                    .any(|ours| name.replace('_', "-") == ours.as_str())
        })
        .cloned()
        .collect();
    for twin in twins {
        headers.remove(twin);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const USER: User = User {
        address: IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 7)),
        tls: true,
    };

    fn sent() -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(FOR, HeaderValue::from_static("203.0.113.9"));
        headers.insert(HOST, HeaderValue::from_static("front.example"));
        headers.insert(STANDARD, HeaderValue::from_static("for=203.0.113.9"));
        headers.insert("x_forwarded_for", HeaderValue::from_static("10.0.0.1"));
        headers
    }

    fn values(headers: &HeaderMap) -> Vec<String> {
        [FOR, PROTO, HOST, STANDARD]
            .iter()
            .map(|name| {
                headers
                    .get(name)
                    .map_or(String::new(), |value| value.to_str().unwrap().to_owned())
            })
            .collect()
    }

    #[test]
    fn what_the_user_sent_is_replaced_unless_it_is_trusted() {
        let mut headers = sent();
        apply(&mut headers, Forwarded::Set, USER, Some("a.example:81"));
        assert_eq!(
            values(&headers),
            [
                "192.0.2.7",
                "https",
                "a.example:81",
                "for=192.0.2.7;host=\"a.example:81\";proto=https"
            ]
        );
        assert_eq!(headers.len(), 4);

        let mut headers = sent();
        apply(&mut headers, Forwarded::Append, USER, Some("a.example"));
        assert_eq!(
            values(&headers),
            [
                "203.0.113.9, 192.0.2.7",
                "https",
                "front.example",
                "for=203.0.113.9, for=192.0.2.7;host=\"a.example\";proto=https"
            ]
        );

        let mut headers = sent();
        apply(&mut headers, Forwarded::Off, USER, Some("a.example"));
        assert!(headers.is_empty());
    }

    #[test]
    fn an_address_of_version_6_is_quoted_and_a_mapped_one_is_version_4() {
        let mut headers = HeaderMap::new();
        let user = User {
            address: "2001:db8::1".parse().unwrap(),
            tls: false,
        };
        apply(&mut headers, Forwarded::Set, user, None);
        assert_eq!(
            values(&headers),
            [
                "2001:db8::1",
                "http",
                "",
                "for=\"[2001:db8::1]\";proto=http"
            ]
        );
        let user = User {
            address: "::ffff:192.0.2.1".parse().unwrap(),
            tls: false,
        };
        apply(&mut headers, Forwarded::Set, user, None);
        assert_eq!(headers.get(FOR).unwrap(), "192.0.2.1");
    }
}
