//! Row 6 of the threat table: a request is read once, and what decides is what is sent. Whatever a user names in the
//! target, in Host, `:authority`, the headers of proxies or of programs behind them, the path that is decided over is the
//! path that arrives, at the one resource that the destination has.

use bytes::Bytes;
use http::{Request, Version};
use http_body_util::{BodyExt as _, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use sg_relay::http::HttpVersion;
use tokio::io::AsyncWriteExt as _;

use crate::rig::{Chain, Setup, echo_heads, read_to_end};

const RESOURCE: &str = "resource.test:8080";

fn chain(user: HttpVersion) -> Chain {
    let mut chain = Setup {
        user,
        forbidden: "/secret",
        ..Setup::default()
    }
    .start();
    let (_, none) = tokio::sync::mpsc::unbounded_channel();
    let mut resources = std::mem::replace(&mut chain.resources, none);
    tokio::spawn(async move {
        while let Some(pipe) = resources.recv().await {
            tokio::spawn(echo_heads(pipe));
        }
    });
    chain
}

/// What arrived, out of an answer that holds the head.
fn arrived(answer: &str) -> Option<(String, Vec<String>)> {
    let (_, head) = answer.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let target = lines.next()?.split(' ').nth(1)?.to_owned();
    let fields = lines.map(str::to_lowercase).filter(|line| !line.is_empty());
    Some((target, fields.collect()))
}

fn check(what: &str, path: &str, answer: &str, passes: &mut usize) {
    let status = answer.get(9..12).unwrap_or_default();
    if path.starts_with("/secret") {
        assert!(["403", "400"].contains(&status), "{what}: {answer}");
        assert!(
            !answer.contains("HTTP/1.1\r\n"),
            "{what}: it has arrived: {answer}"
        );
        return;
    }
    if status != "200" {
        assert_eq!(status, "400", "{what}: {answer}");
        return;
    }
    *passes += 1;
    let (target, fields) = arrived(answer).unwrap();
    assert_eq!(
        target, path,
        "{what}: what was decided over is what is sent"
    );
    let hosts: Vec<_> = fields
        .iter()
        .filter(|line| line.starts_with("host:"))
        .collect();
    assert_eq!(hosts, [&format!("host: {RESOURCE}")], "{what}");
    assert!(
        fields
            .iter()
            .all(|line| !line.starts_with("proxy-authorization:")),
        "{what}: {fields:?}"
    );
}

const PATHS: [&str; 2] = ["/allowed", "/secret/keys"];
const HOSTS: [&str; 6] = [
    "a.test",
    "other.test",
    RESOURCE,
    "A.TEST:80",
    "127.0.0.1:9000",
    "[::1]:9000",
];
/// What programs in front of a resource or behind us take for another target, another host or an identity.
const EXTRAS: [&str; 12] = [
    "",
    "Proxy-Authorization: Basic dTpw",
    "Authorization: Basic dTpw",
    "X-Original-URL: /secret/keys",
    "X-Rewrite-URL: /secret/keys",
    "X-Forwarded-Host: other.test",
    "X-Forwarded-Prefix: /secret",
    "X-Forwarded-Uri: /secret/keys",
    "X-HTTP-Method-Override: CONNECT",
    "Forwarded: host=other.test;for=127.0.0.1",
    "X-Host: other.test",
    "Host_: other.test",
];

#[tokio::test]
async fn threat_06_what_is_decided_over_is_what_is_sent_by_http1() {
    let (mut tried, mut passes) = (0, 0);
    for path in PATHS {
        for host in HOSTS {
            let targets = [
                path.to_owned(),
                format!("http://{host}{path}"),
                format!("https://{host}{path}"),
                format!("http://third.test{path}"),
                format!("http://{host}{path}#/secret"),
                format!("//{host}{path}"),
                format!("{host}{path}"),
            ];
            for target in &targets {
                for extra in EXTRAS {
                    let extra = match extra {
                        "" => String::new(),
                        line => format!("{line}\r\n"),
                    };
                    let request = format!(
                        "GET {target} HTTP/1.1\r\nHost: {host}\r\n{extra}Connection: close\r\n\r\n"
                    );
                    let mut chain = chain(HttpVersion::Http1);
                    chain.send(&request).await;
                    let _ = chain.user.shutdown().await;
                    let answer = match read_to_end(&mut chain.user).await {
                        Ok(answer) | Err(answer) => answer,
                    };
                    // `//host/path` is a path of its own.
                    let decided = match target.starts_with("//") {
                        true => sg_model::CanonicalPath::parse(target).unwrap(),
                        false => sg_model::CanonicalPath::parse(path).unwrap(),
                    };
                    check(&request, decided.target(), &answer, &mut passes);
                    tried += 1;
                }
            }
        }
    }
    assert!(
        tried > 900 && passes > 200,
        "{tried} tried, {passes} passed"
    );
}

#[tokio::test]
async fn threat_06_what_is_decided_over_is_what_is_sent_by_http2() {
    let (mut tried, mut passes) = (0, 0);
    for path in PATHS {
        for authority in HOSTS {
            let chain = chain(HttpVersion::Http2);
            let (mut sender, connection) =
                hyper::client::conn::http2::Builder::new(TokioExecutor::new())
                    .handshake(TokioIo::new(chain.user))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            for host in HOSTS.map(Some).into_iter().chain([None]) {
                for extra in EXTRAS {
                    let mut request = Request::get(format!("http://{authority}{path}"))
                        .version(Version::HTTP_2)
                        .body(Full::<Bytes>::default())
                        .unwrap();
                    if let Some(host) = host {
                        request.headers_mut().insert("host", host.parse().unwrap());
                    }
                    if let Some((name, value)) = extra.split_once(": ") {
                        let name = http::HeaderName::from_bytes(name.as_bytes()).unwrap();
                        request.headers_mut().insert(name, value.parse().unwrap());
                    }
                    let what = format!("{authority} {host:?} {path} {extra}");
                    let answer = sender.send_request(request).await.unwrap();
                    let status = answer.status().as_u16();
                    let body = answer.into_body().collect().await.unwrap().to_bytes();
                    let text = format!(
                        "HTTP/1.1 {status} \r\n\r\n{}",
                        String::from_utf8_lossy(&body)
                    );
                    check(&what, path, &text, &mut passes);
                    tried += 1;
                }
            }
        }
    }
    assert!(
        tried > 900 && passes > 100,
        "{tried} tried, {passes} passed"
    );
}
