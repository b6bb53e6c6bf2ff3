//! What `sgctl dev` is asked to reach: `[SCHEME://]HOST:PORT[=LISTEN_PORT]`.

use std::collections::BTreeSet;
use std::str::FromStr;

use sg_model::{HostPort, Protocol};

/// One RESOURCE of the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ResourceArg {
    pub(super) protocol: Protocol,
    pub(super) resource: HostPort,
    pub(super) listen_port: Option<u16>,
}

impl FromStr for ResourceArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (protocol, rest) = match text.split_once("://") {
            None => (Protocol::Tcp, text),
            Some((scheme, rest)) => (scheme_protocol(scheme)?, rest),
        };
        let (resource, listen_port) = match rest.split_once('=') {
            None => (rest, None),
            Some((resource, port)) => match port.parse::<u16>() {
                Ok(port) if port != 0 => (resource, Some(port)),
                _ => return Err(format!("'{port}' is not a port of 1 to 65535")),
            },
        };
        // A slash at the end is how people write URLs; there is no path in a resource.
        let resource = resource.strip_suffix('/').unwrap_or(resource);
        let resource = resource
            .parse()
            .map_err(|invalid: sg_model::Invalid| invalid.message)?;
        Ok(Self {
            protocol,
            resource,
            listen_port,
        })
    }
}

fn scheme_protocol(scheme: &str) -> Result<Protocol, String> {
    match scheme {
        "tcp" => Ok(Protocol::Tcp),
        "tls" => Ok(Protocol::Tls),
        "http" => Ok(Protocol::Http),
        "https" => Ok(Protocol::Https),
        "udp" => Ok(Protocol::Udp),
        other => Err(format!(
            "'{other}' is not one of the schemes tcp, tls, http, https and udp"
        )),
    }
}

/// A name for each resource, unique and the same for the same command line: the service it probably
/// is, else its protocol and port.
pub(super) fn names(resources: &[ResourceArg]) -> Vec<String> {
    let mut taken = BTreeSet::new();
    let mut unique = |base: String| {
        let mut name = base.clone();
        let mut number = 1;
        while !taken.insert(name.clone()) {
            number += 1;
            name = format!("{base}-{number}");
        }
        name
    };
    resources
        .iter()
        .map(|r| match Service::of(r.protocol, r.resource.port()) {
            Some(service) => unique(service.word().to_owned()),
            None => unique(format!("{}-{}", r.protocol, r.resource.port())),
        })
        .collect()
}

/// What usually listens on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Postgres,
    Mysql,
    Redis,
    Ssh,
    Http,
    Https,
    Tls,
    Dns,
}

impl Service {
    pub(super) fn of(protocol: Protocol, port: u16) -> Option<Self> {
        match protocol {
            Protocol::Udp => return (port == 53).then_some(Self::Dns),
            Protocol::Http => return Some(Self::Http),
            Protocol::Https => return Some(Self::Https),
            // Who speaks TLS first needs options of his own.
            Protocol::Tls => return Some(Self::Tls),
            Protocol::Tcp | Protocol::TlsMutual | Protocol::HttpsMutual => {}
        }
        match port {
            5432 => Some(Self::Postgres),
            3306 => Some(Self::Mysql),
            6379 => Some(Self::Redis),
            22 => Some(Self::Ssh),
            80 | 8000 | 8080 => Some(Self::Http),
            _ => None,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::Mysql => "mysql",
            Self::Redis => "redis",
            Self::Ssh => "ssh",
            Self::Http => "http",
            Self::Https => "https",
            Self::Tls => "tls",
            Self::Dns => "dns",
        }
    }

    /// A command that uses it at this address.
    pub(super) fn command(self, host: &str, port: u16) -> String {
        match self {
            Self::Postgres => format!("psql -h {host} -p {port} -U postgres"),
            Self::Mysql => format!("mysql -h {host} -P {port} -u root -p"),
            Self::Redis => format!("redis-cli -h {host} -p {port} ping"),
            Self::Ssh => format!("ssh -p {port} {host}"),
            Self::Http => format!("curl http://{host}:{port}/"),
            Self::Https => format!("curl --cacert $SG_CA https://{host}:{port}/"),
            Self::Tls => format!("openssl s_client -connect {host}:{port} -CAfile $SG_CA"),
            Self::Dns => format!("dig @{host} -p {port} example.com"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> ResourceArg {
        text.parse().expect("parses")
    }

    #[test]
    fn the_documented_forms_are_read() {
        assert_eq!(
            parse("127.0.0.1:5432"),
            ResourceArg {
                protocol: Protocol::Tcp,
                resource: "127.0.0.1:5432".parse().expect("parses"),
                listen_port: None,
            }
        );
        assert_eq!(parse("tcp://db:5432=15432").listen_port, Some(15432));
        assert_eq!(parse("https://[::1]:443").protocol, Protocol::Https);
        assert_eq!(
            parse("http://web:80/").resource,
            "web:80".parse().expect("parses")
        );
    }

    #[test]
    fn others_are_refused() {
        for bad in [
            "ftp://h:21",
            "h",
            "h:0",
            "h:1=0",
            "h:1=x",
            "tls-mutual://h:1",
            "",
            "://h:1",
        ] {
            assert!(bad.parse::<ResourceArg>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_are_unique_and_tell_the_service() {
        let resources = [
            "a:5432",
            "b:5432",
            "c:7001",
            "udp://d:53",
            "udp://e:80",
            "https://f:8443",
        ]
        .map(parse);
        let expected = [
            "postgres",
            "postgres-2",
            "tcp-7001",
            "dns",
            "udp-80",
            "https",
        ];
        assert_eq!(names(&resources), expected);
    }
}
