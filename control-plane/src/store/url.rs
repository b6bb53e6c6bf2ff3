//! Reads `--store` and opens the store it names.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use super::error::StoreError;

/// The default namespace of a control plane's keys in etcd.
const DEFAULT_PREFIX: &str = "secure-gateway";
/// The port of an etcd endpoint that names none.
const DEFAULT_PORT: u16 = 2379;

/// Where a store is: `etcd://HOST:PORT[,HOST:PORT...][/PREFIX]`, `embedded:PATH` or `memory:`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoreUrl {
    /// An etcd cluster.
    Etcd {
        /// `HOST:PORT` of its members, at least one, in the order given.
        endpoints: Vec<String>,
        /// What all keys start with, without slashes around it.
        prefix: String,
    },
    /// A file.
    Embedded(PathBuf),
    /// The memory of this process.
    Memory,
}

/// Why a store URL cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{problem} in store {url:?}; give etcd://HOST:PORT[,HOST:PORT...][/PREFIX], embedded:PATH \
     or memory:"
)]
pub struct StoreUrlError {
    url: String,
    problem: String,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse(text).map_err(|problem| StoreUrlError {
            // What stands before an @ may be a password.
            url: text.rsplit('@').next().unwrap_or_default().to_owned(),
            problem,
        })
    }
}

fn parse(text: &str) -> Result<StoreUrl, String> {
    if let Some(rest) = text.strip_prefix("etcd://") {
        return parse_etcd(rest);
    }
    match text.split_once(':') {
        Some(("embedded", "")) => Err("no file".to_owned()),
        Some(("embedded", path)) => Ok(StoreUrl::Embedded(PathBuf::from(path))),
        Some(("memory", "")) => Ok(StoreUrl::Memory),
        Some(("memory", _)) => Err("text after \"memory:\"".to_owned()),
        Some(("etcd", _)) => Err("no // after \"etcd:\"".to_owned()),
        Some((scheme, _)) => Err(format!("unknown kind {scheme:?}")),
        None => Err("no kind".to_owned()),
    }
}

fn parse_etcd(rest: &str) -> Result<StoreUrl, String> {
    let (hosts, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if hosts.contains('@') {
        return Err("a user; give it with --etcd-user".to_owned());
    }
    let mut endpoints: Vec<String> = Vec::new();
    for host in hosts.split(',') {
        let endpoint = parse_endpoint(host)?;
        if endpoints.contains(&endpoint) {
            return Err(format!("endpoint {endpoint} twice"));
        }
        endpoints.push(endpoint);
    }
    let prefix = prefix.trim_end_matches('/');
    if prefix.split('/').any(str::is_empty) && !prefix.is_empty() {
        return Err("an empty part of the prefix".to_owned());
    }
    if prefix.len() > 200
        || prefix
            .chars()
            .any(|c| c.is_control() || c.is_whitespace() || c == '?')
    {
        return Err("an unusable prefix (spaces, \"?\", or over 200 bytes)".to_owned());
    }
    Ok(StoreUrl::Etcd {
        endpoints,
        prefix: if prefix.is_empty() {
            DEFAULT_PREFIX.to_owned()
        } else {
            prefix.to_owned()
        },
    })
}

/// `HOST`, `HOST:PORT` or `[V6]:PORT`.
fn parse_endpoint(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("an empty endpoint".to_owned());
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => {
            let port: u16 = port
                .parse()
                .ok()
                .filter(|port| *port != 0)
                .ok_or_else(|| format!("bad port {port:?}"))?;
            (host, port)
        }
        _ => (text, DEFAULT_PORT),
    };
    let bare = host
        .strip_prefix('[')
        .and_then(|inner| inner.strip_suffix(']'));
    let good = match bare {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
        }
    };
    if good {
        Ok(format!("{host}:{port}"))
    } else {
        Err(format!("bad host {host:?}"))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Etcd { endpoints, prefix } => {
                write!(f, "etcd://{}/{prefix}", endpoints.join(","))
            }
            Self::Embedded(path) => write!(f, "embedded:{}", path.display()),
            Self::Memory => f.write_str("memory:"),
        }
    }
}

impl From<StoreUrlError> for StoreError {
    fn from(error: StoreUrlError) -> Self {
        Self::Invalid(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn good_urls_are_read_and_printed() {
        for (text, printed) in [
            ("memory:", "memory:"),
            ("embedded:a/b.db", "embedded:a/b.db"),
            ("embedded:/var/lib/x y", "embedded:/var/lib/x y"),
            ("etcd://h", "etcd://h:2379/secure-gateway"),
            ("etcd://a:1,b:2/", "etcd://a:1,b:2/secure-gateway"),
            ("etcd://[::1]:79/x/y/", "etcd://[::1]:79/x/y"),
            ("etcd://[::1]", "etcd://[::1]:2379/secure-gateway"),
        ] {
            let url: StoreUrl = text.parse().unwrap();
            assert_eq!(url.to_string(), printed);
            assert_eq!(printed.parse::<StoreUrl>().unwrap(), url);
        }
    }

    #[test]
    fn bad_urls_say_what_is_wrong_and_what_is_right() {
        for (text, problem) in [
            ("", "no kind"),
            ("file", "no kind"),
            ("redis://x", "unknown kind \"redis\""),
            ("embedded:", "no file"),
            ("memory:x", "text after"),
            ("etcd:h:1", "no //"),
            ("etcd://", "an empty endpoint"),
            ("etcd://a:1,", "an empty endpoint"),
            ("etcd://a:1,a:1", "endpoint a:1 twice"),
            ("etcd://a:0", "bad port \"0\""),
            ("etcd://a:port", "bad port \"port\""),
            ("etcd://:1", "bad host \"\""),
            ("etcd://user:secret@a:1", "give it with --etcd-user"),
            ("etcd://a/x//y", "an empty part"),
            ("etcd://a/x?y", "an unusable prefix"),
            ("etcd://::1:5", "bad host"),
        ] {
            let error = text.parse::<StoreUrl>().unwrap_err().to_string();
            assert!(error.contains(problem), "{text}: {error}");
            assert!(error.contains("embedded:PATH"), "{text}: {error}");
            assert!(!error.contains("secret"), "{text}: {error}");
        }
    }
}
