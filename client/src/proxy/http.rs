//! HTTP CONNECT: one request, and then the connection is the node's.

use std::io;
use std::pin::pin;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::client::conn::http1;
use hyper::header::{
    HOST, HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, USER_AGENT, WWW_AUTHENTICATE,
};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sg_model::HostPort;
use sg_runtime::secret::Secret;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Login, ProxyError};

/// Longest head of an answer.
const LONGEST_HEAD: usize = 16 * 1024;

/// Asks the proxy at the other end of `io` for a connection to `node`; gives `io` back as that connection.
pub(super) async fn connect<T>(
    io: T,
    node: &HostPort,
    login: Option<&Login>,
) -> Result<T, ProxyError>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let request = request(node, login)?;
    let (mut sender, connection) = http1::Builder::new()
        .max_buf_size(LONGEST_HEAD)
        .handshake(TokioIo::new(io))
        .await
        .map_err(|error| failed(&error))?;
    let exchange = async {
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| failed(&error))?;
        accepted(&response)?;
        hyper::upgrade::on(response)
            .await
            .map_err(|error| failed(&error))
    };
    let (mut exchange, mut connection) = (pin!(exchange), pin!(connection.with_upgrades()));
    // The connection does the work, and ends by handing itself over; should it fail, the exchange says why. A proxy
    // that refuses may leave it open.
    let upgraded = tokio::select! {
        biased;
        upgraded = &mut exchange => upgraded,
        ended = &mut connection => {
            if let Err(error) = ended {
                tracing::trace!(%error, "the connection to the proxy failed");
            }
            exchange.await
        }
    };
    let parts = upgraded?
        .downcast::<TokioIo<T>>()
        .expect("invariant: it is what the connection was made of");
    // A node says nothing before it is asked.
    if !parts.read_buf.is_empty() {
        let why = "bytes came before the node was asked for any";
        return Err(ProxyError::Protocol(why.to_owned()));
    }
    Ok(parts.io.into_inner())
}

fn request(node: &HostPort, login: Option<&Login>) -> Result<Request<String>, ProxyError> {
    let mut request = Request::builder()
        .method(Method::CONNECT)
        .uri(node.to_string())
        .header(HOST, node.to_string())
        .header(USER_AGENT, concat!("sg-client/", env!("CARGO_PKG_VERSION")));
    if let Some(Login { user, password }) = login {
        let plain = Secret::new([user.as_bytes(), b":", password.expose()].concat());
        let text = Secret::new(format!("Basic {}", STANDARD.encode(plain.expose())));
        let mut value = HeaderValue::from_str(text.expose()).map_err(|_| unaskable())?;
        value.set_sensitive(true);
        request = request.header(PROXY_AUTHORIZATION, value);
    }
    request.body(String::new()).map_err(|_| unaskable())
}

fn unaskable() -> ProxyError {
    ProxyError::Protocol("the node cannot be asked for in HTTP".to_owned())
}

fn accepted<B>(response: &Response<B>) -> Result<(), ProxyError> {
    let status = response.status();
    if status.is_success() {
        return Ok(());
    }
    // tinyproxy answers a wrong password with the status that is for servers.
    let header = match status {
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => PROXY_AUTHENTICATE,
        StatusCode::UNAUTHORIZED => WWW_AUTHENTICATE,
        _ => return Err(ProxyError::Refused(format!("it answered {status}"))),
    };
    let mut schemes = response
        .headers()
        .get_all(header)
        .iter()
        .filter_map(|value| value.to_str().ok()?.split(' ').next())
        .peekable();
    let by_password =
        schemes.peek().is_none() || schemes.any(|scheme| scheme.eq_ignore_ascii_case("basic"));
    let why = if by_password {
        "it wants another user and password"
    } else {
        "it wants a proof other than user and password"
    };
    Err(ProxyError::Auth(format!("{why} ({})", status.as_u16())))
}

/// What hyper says of a proxy that is none, or goes away.
fn failed(error: &hyper::Error) -> ProxyError {
    if error.is_parse() || error.is_parse_too_large() {
        return ProxyError::Protocol("its answer is no HTTP".to_owned());
    }
    let source = std::error::Error::source(error).and_then(|e| e.downcast_ref::<io::Error>());
    ProxyError::Refused(match source {
        Some(error) => format!("the connection to it failed: {error}"),
        None => "it closed the connection without an answer".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::time::timeout;

    use super::*;

    /// What the proxy is sent, and what becomes of its answer.
    async fn talk(login: Option<&Login>, answer: &str) -> (String, Result<(), ProxyError>) {
        let (near, mut far) = duplex(64 * 1024);
        let node = "node.example:9000".parse().unwrap();
        let proxy = async {
            let mut sent = Vec::new();
            while !sent.ends_with(b"\r\n\r\n") {
                sent.push(far.read_u8().await.unwrap());
            }
            far.write_all(answer.as_bytes()).await.unwrap();
            // Whoever answers leaves the connection open.
            if answer.is_empty() {
                far.shutdown().await.unwrap();
            }
            String::from_utf8(sent).unwrap()
        };
        let talk = async { tokio::join!(connect(near, &node, login), proxy) };
        let (asked, sent) = timeout(Duration::from_secs(5), talk).await.unwrap();
        (sent, asked.map(drop))
    }

    fn login() -> Login {
        Login {
            user: "Aladdin".to_owned(),
            password: Secret::new(b"open sesame".to_vec()),
        }
    }

    #[tokio::test]
    async fn the_node_is_asked_for_and_the_connection_given_back() {
        let (sent, asked) = talk(None, "HTTP/1.1 200 Connection established\r\n\r\n").await;
        asked.unwrap();
        assert!(
            sent.starts_with("CONNECT node.example:9000 HTTP/1.1\r\n"),
            "{sent}"
        );
        let lower = sent.to_lowercase();
        assert!(lower.contains("\r\nhost: node.example:9000\r\n"), "{sent}");
        assert!(
            !lower.contains("authorization") && !lower.contains("content-length"),
            "{sent}"
        );

        let (sent, asked) = talk(Some(&login()), "HTTP/1.0 200 OK\r\nVia: x\r\n\r\n").await;
        asked.unwrap();
        let line = "proxy-authorization: Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ==\r\n";
        assert!(sent.to_lowercase().contains(&line.to_lowercase()), "{sent}");
    }

    #[tokio::test]
    async fn every_answer_has_a_word() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(20_000));
        for (answer, word) in [
            (
                "HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm=\"x\"\r\nContent-Length: 4\r\n\r\nbody",
                "proxy-auth",
            ),
            (
                "HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\n\r\n",
                "proxy-auth",
            ),
            (
                "HTTP/1.0 401 Unauthorized\r\nWWW-Authenticate: Basic realm=\"x\"\r\n\r\n<html>",
                "proxy-auth",
            ),
            (
                "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n",
                "proxy-refused",
            ),
            (
                "HTTP/1.0 503 Service Unavailable\r\n\r\n<html>",
                "proxy-refused",
            ),
            ("HTTP/1.1 200 OK\r\n\r\nSSH-2.0-x", "proxy-protocol"),
            ("SSH-2.0-x\r\n\r\n", "proxy-protocol"),
            (&long, "proxy-protocol"),
            ("", "proxy-refused"),
        ] {
            let (_, asked) = talk(Some(&login()), answer).await;
            let error = asked.unwrap_err();
            assert_eq!(error.reason(), word, "{answer:?}: {error}");
            assert!(!format!("{error} {error:?}").contains("sesame"));
        }
    }
}
