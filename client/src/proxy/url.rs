//! How a proxy is written: `[http://|https://|socks5://][USER:PASSWORD@]HOST[:PORT][/]`, without a scheme an HTTP proxy.
//!
//! No refusal repeats any of it, because a password may be anywhere in what is not understood.

use std::str::FromStr;

use sg_model::{Host, HostPort};
use sg_runtime::secret::Secret;

use super::{Kind, Login, Proxy};

const FORM: &str = "write http://HOST:PORT, https://HOST:PORT or socks5://HOST:PORT, with USER:PASSWORD@ before the host if the proxy asks for it";

/// A text that is no proxy's URL: what is wrong, and what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NotAProxy {
    /// What is wrong.
    pub problem: &'static str,
    /// What to write.
    pub remedy: &'static str,
}

fn refused<T>(problem: &'static str) -> Result<T, NotAProxy> {
    Err(NotAProxy {
        problem,
        remedy: FORM,
    })
}

impl FromStr for Proxy {
    type Err = NotAProxy;

    fn from_str(text: &str) -> Result<Self, NotAProxy> {
        let (scheme, rest) = text
            .trim()
            .split_once("://")
            .unwrap_or(("http", text.trim()));
        let scheme = scheme.to_ascii_lowercase();
        let (kind, port) = match scheme.as_str() {
            "http" => (Kind::Http, 80),
            "https" => (Kind::Https(None), 443),
            // Names are resolved at the proxy in any case.
            "socks5" | "socks5h" => (Kind::Socks5, 1080),
            _ => return refused("this kind of proxy is not known"),
        };
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (login, address) = match rest.rsplit_once('@') {
            Some((login, address)) => (Some(read_login(login)?), address),
            None => (None, rest),
        };
        if address.contains(['/', '?', '#']) {
            return refused("a proxy has no path");
        }
        let has_port = match address.rsplit_once(':') {
            Some((host, _)) => !host.contains(':') || host.ends_with(']'),
            None => false,
        };
        let address = if has_port {
            address.parse::<HostPort>().ok()
        } else {
            let host = address.parse::<Host>().ok();
            host.and_then(|host| HostPort::new(host, port).ok())
        };
        let Some(address) = address else {
            return refused("its host and port cannot be understood");
        };
        Ok(Self {
            kind,
            address,
            login,
        })
    }
}

fn read_login(text: &str) -> Result<Login, NotAProxy> {
    let (user, password) = text.split_once(':').unwrap_or((text, ""));
    let (Some(user), Some(password)) = (decode(user), decode(password)) else {
        return refused("user or password has a % that no two hexadecimal digits follow");
    };
    let Ok(user) = String::from_utf8(user) else {
        return refused("the user is no text");
    };
    if user.is_empty() || user.len() > 255 || password.len() > 255 {
        return refused("user and password may have 255 bytes, and the user must have one");
    }
    if user.contains(':') {
        return refused("a user has no colon");
    }
    if user.chars().any(char::is_control) || password.iter().any(u8::is_ascii_control) {
        return refused("user or password has a control character");
    }
    Ok(Login {
        user,
        password: Secret::new(password),
    })
}

/// Takes `%40` and its like back.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            out.push(byte);
            continue;
        }
        let digit = |byte: u8| char::from(byte).to_digit(16);
        let (high, low) = (digit(bytes.next()?)?, digit(bytes.next()?)?);
        out.push(u8::try_from(high * 16 + low).ok()?);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    /// Kind, address, user and password.
    fn read(text: &str) -> (String, String, String, String) {
        let proxy: Proxy = text
            .parse()
            .unwrap_or_else(|error| panic!("{text}: {error:?}"));
        let login = proxy.login.as_ref();
        let password = login.map(|login| login.password.expose().to_vec());
        (
            format!("{:?}", proxy.kind).to_lowercase(),
            proxy.address.to_string(),
            login.map(|login| login.user.clone()).unwrap_or_default(),
            String::from_utf8(password.unwrap_or_default()).unwrap(),
        )
    }

    #[test]
    fn every_way_to_write_one() {
        for (text, kind, address, user, password) in [
            ("http://proxy:3128", "http", "proxy:3128", "", ""),
            ("proxy:3128", "http", "proxy:3128", "", ""),
            (
                " HTTP://Proxy.Example:3128/ ",
                "http",
                "proxy.example:3128",
                "",
                "",
            ),
            ("http://proxy", "http", "proxy:80", "", ""),
            ("https://proxy", "https(none)", "proxy:443", "", ""),
            ("socks5://proxy", "socks5", "proxy:1080", "", ""),
            ("socks5h://[::1]:1081", "socks5", "[::1]:1081", "", ""),
            ("socks5://[::1]", "socks5", "[::1]:1080", "", ""),
            (
                "http://me:secret@proxy:1",
                "http",
                "proxy:1",
                "me",
                "secret",
            ),
            ("me:se:cret@proxy:1", "http", "proxy:1", "me", "se:cret"),
            (
                "http://me:p%40ss%3a@proxy:1",
                "http",
                "proxy:1",
                "me",
                "p@ss:",
            ),
            ("http://me:p@ss@proxy:1", "http", "proxy:1", "me", "p@ss"),
            ("http://me@proxy:1", "http", "proxy:1", "me", ""),
        ] {
            let expected = (kind, address, user, password);
            let (a, b, c, d) = read(text);
            assert_eq!(
                (a.as_str(), b.as_str(), c.as_str(), d.as_str()),
                expected,
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_refused_is_not_repeated() {
        for bad in [
            "",
            "ftp://me:hidden@proxy:1",
            "http://",
            "http://proxy:0",
            "http://proxy:x",
            "http://proxy:1/path",
            "http://me:hidden@",
            "http://:hidden@proxy:1",
            "http://me:hidden%4@proxy:1",
            "http://me:hidden%zz@proxy:1",
            "http://m%3ae:hidden@proxy:1",
            "http://me:hidden%0d%0a@proxy:1",
            "http://me:hidden@a b:1",
        ] {
            let error = bad.parse::<Proxy>().unwrap_err();
            assert!(!format!("{error:?}").contains("hidden"), "{bad}");
        }
    }

    #[test]
    fn a_password_is_not_shown() {
        let proxy: Proxy = "http://me:hidden@proxy:1".parse().unwrap();
        let shown = format!("{proxy:?}");
        assert!(
            shown.contains("proxy") && !shown.contains("hidden"),
            "{shown}"
        );
    }
}
