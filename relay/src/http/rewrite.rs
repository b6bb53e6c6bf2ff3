//! What is taken from a request and put into it on the way, and the checks that need a parsed request: who it is
//! addressed to, and what belongs to one hop only. Pure: a request in, a request or a refusal out.

use std::collections::HashSet;

use http::header::{
    CONNECTION, CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING, UPGRADE,
};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, Version, request};

use super::refusal::{ERROR_HEADER, Refusal};

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");
const CONTINUE: &[u8] = b"100-continue";

/// Headers of one hop, whether `Connection` names them or not (RFC 9110 7.6.1, and what older programs send).
const HOP_BY_HOP: [HeaderName; 9] = [
    CONNECTION,
    TRANSFER_ENCODING,
    TE,
    UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("proxy-authenticate"),
    HeaderName::from_static("proxy-authorization"),
    HeaderName::from_static("http2-settings"),
];

/// What `Connection` may not name: removing it would change who is asked, for what, or by whom.
const END_TO_END: [&str; 22] = [
    "accept",
    "accept-encoding",
    "authorization",
    "cache-control",
    "content-encoding",
    "content-length",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "forwarded",
    "host",
    "if-match",
    "if-none-match",
    "origin",
    "range",
    "referer",
    "set-cookie",
    "transfer-encoding",
    "via",
    "x-real-ip",
];

/// What a request says about itself, before its headers of one hop are taken away.
#[derive(Debug)]
pub(super) struct Facts {
    /// Whom the user asked, as it was sent.
    pub(super) host: Option<String>,
    /// The protocol that it wants to change to.
    pub(super) upgrade: Option<HeaderValue>,
    /// It waits for `100 Continue` before it sends its body.
    pub(super) expects: bool,
    /// Path and query, or `*`.
    pub(super) target: String,
}

/// Checks a request and takes from it what is not to be passed on. `te_added` says that its TE header is ours.
pub(super) fn request(parts: &mut request::Parts, te_added: bool) -> Result<Facts, Refusal> {
    if parts.method == Method::CONNECT {
        return Err(Refusal::status(
            StatusCode::METHOD_NOT_ALLOWED,
            "method-not-allowed",
            "CONNECT is not served: a destination has one resource",
        ));
    }
    let host = asked_host(parts)?;
    let target = target(parts)?;
    if parts.version == Version::HTTP_2 {
        one_length(&parts.headers)?;
    }
    let expects = match parts.headers.get(EXPECT).map(HeaderValue::as_bytes) {
        None => false,
        Some(value) if value.eq_ignore_ascii_case(CONTINUE) => parts.version == Version::HTTP_11,
        Some(_) => {
            return Err(Refusal::status(
                StatusCode::EXPECTATION_FAILED,
                "bad-expectation",
                "Expect is not 100-continue",
            ));
        }
    };
    let listed = listed(&parts.headers);
    if listed
        .iter()
        .any(|name| END_TO_END.contains(&name.as_str()) || name.starts_with("x-forwarded-"))
    {
        return Err(Refusal::bad(
            "Connection names a header that is not for one hop",
        ));
    }
    let upgrade = wanted_upgrade(parts, &listed);
    let trailers = !te_added && accepts_trailers(&parts.headers);
    strip(&mut parts.headers, &listed);
    parts.headers.remove(EXPECT);
    if trailers {
        parts.headers.insert(TE, TRAILERS);
    }
    Ok(Facts {
        host,
        upgrade,
        expects,
        target,
    })
}

/// Takes what belongs to one hop from an answer; `ours` says that the word of a failure in it is to be believed.
/// Answers the protocol that was changed to. An answer whose end two readers could see in two places is none.
pub(super) fn answer(headers: &mut HeaderMap, ours: bool) -> Result<Option<HeaderValue>, Refusal> {
    let mut encodings = headers.get_all(TRANSFER_ENCODING).iter();
    let encoding = encodings.next();
    let lengths: Vec<HeaderValue> = headers.get_all(CONTENT_LENGTH).iter().cloned().collect();
    let framed_twice = encoding.is_some() && !lengths.is_empty();
    let coded = encoding.is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"chunked"));
    if framed_twice || coded || encodings.next().is_some() {
        return Err(Refusal::of("bad-answer"));
    }
    match &lengths[..] {
        [] | [_] => {}
        [one, rest @ ..] if rest.iter().all(|other| other == one) => {
            headers.insert(CONTENT_LENGTH, one.clone());
        }
        _ => return Err(Refusal::of("bad-answer")),
    }
    let upgrade = headers.get(UPGRADE).cloned();
    let mut listed = listed(headers);
    listed.retain(|name| !END_TO_END.contains(&name.as_str()));
    strip(headers, &listed);
    if !ours {
        headers.remove(ERROR_HEADER);
    }
    Ok(upgrade)
}

/// Addresses a checked request to the resource, the way this version of HTTP does it. Also right for a request
/// that was addressed before.
pub(super) fn address(
    parts: &mut request::Parts,
    version: Version,
    scheme: &Scheme,
    authority: &Authority,
) -> Result<(), Refusal> {
    let path = parts
        .uri
        .path_and_query()
        .cloned()
        .unwrap_or_else(|| PathAndQuery::from_static("/"));
    let mut uri = http::uri::Parts::default();
    parts.version = version;
    uri.path_and_query = Some(path);
    if version == Version::HTTP_2 {
        parts.headers.remove(HOST);
        parts.headers.remove(CONNECTION);
        parts.headers.remove(UPGRADE);
        parts.headers.remove(EXPECT);
        uri.scheme = Some(scheme.clone());
        uri.authority = Some(authority.clone());
    } else {
        let value = HeaderValue::from_str(authority.as_str())
            .map_err(|_| Refusal::bad("the host cannot be sent"))?;
        parts.headers.insert(HOST, value);
        join_cookies(&mut parts.headers);
        if parts.headers.contains_key(TE) && !parts.headers.contains_key(CONNECTION) {
            parts
                .headers
                .insert(CONNECTION, HeaderValue::from_static("te"));
        }
    }
    parts.uri = Uri::from_parts(uri).map_err(|_| Refusal::bad("the target cannot be sent"))?;
    Ok(())
}

/// Says that the body waits for `100 Continue`.
pub(super) fn set_expect(headers: &mut HeaderMap) {
    headers.insert(EXPECT, HeaderValue::from_static("100-continue"));
}

/// Says that the protocol is to be changed, or was.
pub(super) fn set_upgrade(headers: &mut HeaderMap, protocol: HeaderValue) {
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, protocol);
}

/// Whether the head that hyper has read is followed by an upgrade, if the resource agrees. Whoever wants one and
/// sends a body as well gets an ordinary answer.
pub(super) fn is_upgrade(parts: &request::Parts) -> bool {
    wanted_upgrade(parts, &listed(&parts.headers)).is_some()
}

fn wanted_upgrade(parts: &request::Parts, listed: &HashSet<String>) -> Option<HeaderValue> {
    let framed = [CONTENT_LENGTH, TRANSFER_ENCODING]
        .iter()
        .any(|name| parts.headers.get(name).is_some_and(|value| value != "0"));
    if parts.version != Version::HTTP_11 || framed || !listed.contains("upgrade") {
        return None;
    }
    let mut values = parts.headers.get_all(UPGRADE).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        return None;
    };
    // What speaks HTTP again after the upgrade would get around the decision over paths.
    let text = value.to_str().ok()?.to_ascii_lowercase();
    let again = text.split(',').map(str::trim).any(|protocol| {
        protocol.is_empty()
            || ["h2", "h2c", "http", "tls"]
                .iter()
                .any(|http| protocol.split('/').next() == Some(http))
    });
    (!again).then(|| value.clone())
}

/// Whom the request is addressed to. More than one answer to that is refused.
fn asked_host(parts: &request::Parts) -> Result<Option<String>, Refusal> {
    let mut hosts = parts.headers.get_all(HOST).iter();
    let header = hosts.next();
    if hosts.next().is_some() {
        return Err(Refusal::bad("more than one Host"));
    }
    if header.is_none() && parts.version == Version::HTTP_11 {
        return Err(Refusal::bad("no Host"));
    }
    let header = header.map(|value| {
        let text = value
            .to_str()
            .map_err(|_| Refusal::bad("Host is not text"))?;
        valid_host(text)
    });
    let header = header.transpose()?;
    let uri = parts.uri.authority().map(|authority| {
        if parts.uri.scheme().is_none() && parts.version != Version::HTTP_2 {
            return Err(Refusal::bad("the target is neither a path nor a URI"));
        }
        valid_host(authority.as_str())
    });
    let uri = uri.transpose()?;
    if let Some(scheme) = parts.uri.scheme()
        && *scheme != Scheme::HTTP
        && *scheme != Scheme::HTTPS
    {
        return Err(Refusal::bad(
            "the target has another scheme than http or https",
        ));
    }
    if let (Some(header), Some(uri)) = (&header, &uri) {
        let port = match parts.uri.scheme_str() {
            Some("http") => Some(80),
            Some("https") => Some(443),
            _ => None,
        };
        if normal(header, port) != normal(uri, port) {
            return Err(Refusal::bad("Host and target name different hosts"));
        }
    }
    Ok(uri.or(header).map(|host| host.as_str().to_owned()))
}

fn valid_host(text: &str) -> Result<Authority, Refusal> {
    if text.contains('@') {
        return Err(Refusal::bad("a user name before the host"));
    }
    let bad = || Refusal::bad("the host is not HOST or HOST:PORT");
    if text.len() > super::limits::HOST {
        return Err(bad());
    }
    let authority: Authority = text.parse().map_err(|_| bad())?;
    let host = authority.host();
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=".contains(&byte);
    let named = !host.is_empty() && host.bytes().all(plain);
    let literal = host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
        .is_some_and(|host| host.parse::<std::net::Ipv6Addr>().is_ok());
    if !named && !literal {
        return Err(bad());
    }
    match text.strip_prefix(host) {
        Some("") => Ok(authority),
        Some(port) if port.starts_with(':') && authority.port_u16().is_some_and(|n| n > 0) => {
            Ok(authority)
        }
        _ => Err(bad()),
    }
}

fn normal(authority: &Authority, default: Option<u16>) -> (String, Option<u16>) {
    let host = authority.host().trim_end_matches('.').to_ascii_lowercase();
    (host, authority.port_u16().or(default))
}

fn target(parts: &request::Parts) -> Result<String, Refusal> {
    let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if target.starts_with('/') || (target == "*" && parts.method == Method::OPTIONS) {
        Ok(target.to_owned())
    } else if target.starts_with('?') && parts.uri.authority().is_some() {
        Ok(format!("/{target}"))
    } else {
        Err(Refusal::bad("the target is not a path"))
    }
}

fn one_length(headers: &HeaderMap) -> Result<(), Refusal> {
    let mut lengths = headers.get_all(CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else {
        return Ok(());
    };
    let digits = length.as_bytes();
    if lengths.next().is_some()
        || digits.is_empty()
        || digits.len() > 18
        || !digits.iter().all(u8::is_ascii_digit)
    {
        return Err(Refusal::bad("Content-Length is not one number"));
    }
    Ok(())
}

/// The names in `Connection`, in lower case.
fn listed(headers: &HeaderMap) -> HashSet<String> {
    headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .map(|name| String::from_utf8_lossy(name.trim_ascii()).to_ascii_lowercase())
        .filter(|name| !name.is_empty())
        .collect()
}

fn accepts_trailers(headers: &HeaderMap) -> bool {
    headers
        .get_all(TE)
        .iter()
        .flat_map(|value| value.as_bytes().split(|&byte| byte == b','))
        .any(|coding| coding.trim_ascii().eq_ignore_ascii_case(b"trailers"))
}

fn strip(headers: &mut HeaderMap, listed: &HashSet<String>) {
    for name in listed {
        headers.remove(name.as_str());
    }
    for name in &HOP_BY_HOP {
        headers.remove(name);
    }
}

/// HTTP/2 may send cookies in several headers; HTTP/1.1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<HeaderValue> = headers.get_all(COOKIE).iter().cloned().collect();
    if cookies.len() < 2 {
        return;
    }
    let pieces: Vec<&[u8]> = cookies.iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&pieces.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}
