//! The small HTTP server of a daemon, meant for loopback: `/livez`, `/readyz`, `/metrics`, and
//! what the daemon adds. It authenticates nobody, so it shows no secret and changes nothing.

use std::io;
use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
pub use axum::{Json, Router, extract, http, response, routing};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::http_listener::{self, HttpLimits};
use crate::metrics::{self, Metrics};
use crate::readiness::Readiness;

/// Where to listen, and whether somebody asked for exactly that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AdminListen {
    /// Nobody chose it: if it is taken, the process does without.
    Default(SocketAddr),
    /// It was asked for: if it is taken, that is an error.
    Explicit(SocketAddr),
}

impl AdminListen {
    /// The address asked for, or else the default.
    #[must_use]
    pub const fn new(asked: Option<SocketAddr>, default: SocketAddr) -> Self {
        match asked {
            Some(address) => Self::Explicit(address),
            None => Self::Default(default),
        }
    }

    /// Binds. `None` when a default address cannot be had, which is logged as a warning. Port 0
    /// takes a free port; ask the listener for it.
    ///
    /// # Errors
    /// An explicit address that cannot be bound, with the address in the text.
    pub fn bind(self) -> io::Result<Option<TcpListener>> {
        let (Self::Default(address) | Self::Explicit(address)) = self;
        match (crate::net::bind_tcp(address), self) {
            (Ok(listener), _) => Ok(Some(listener)),
            (Err(error), Self::Default(_)) => {
                tracing::warn!(%address, %error, "no admin HTTP: the default address cannot be bound; choose one with --admin-listen");
                Ok(None)
            }
            (Err(error), Self::Explicit(_)) => Err(io::Error::new(
                error.kind(),
                format!("cannot listen on {address} (--admin-listen): {error}"),
            )),
        }
    }
}

#[derive(Clone)]
struct Served {
    readiness: Readiness,
    metrics: Metrics,
}

/// The routes that every daemon has, with `more` merged in.
pub fn routes(readiness: Readiness, metrics: Metrics, more: Router) -> Router {
    Router::new()
        .route("/livez", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/metrics", get(scrape))
        .with_state(Served { readiness, metrics })
        .merge(more)
}

/// Serves until `end` is cancelled, then lets running answers finish. Run it in a task group; give
/// `more` as `Router::new()` when there is nothing to add. End it when the process is done and not
/// when it begins to drain, so that `/readyz` can tell of the drain.
///
/// # Errors
/// The listener fails for good.
pub async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    more: Router,
    end: CancellationToken,
) -> io::Result<()> {
    let app = routes(readiness, metrics, more);
    http_listener::serve(listener, app, HttpLimits::default(), end).await
}

async fn readyz(State(served): State<Served>) -> impl IntoResponse {
    let pending = served.readiness.pending();
    let ready = pending.is_empty();
    let status = if ready {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (
        status,
        Json(serde_json::json!({ "ready": ready, "pending": pending })),
    )
}

async fn scrape(State(served): State<Served>) -> impl IntoResponse {
    (
        [(header::CONTENT_TYPE, metrics::CONTENT_TYPE)],
        served.metrics.encode(),
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::Ipv4Addr;
    use std::time::Duration;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;

    use super::*;
    use crate::tasks::{Ended, TaskGroup};

    const ANY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_three_pages_and_what_is_added_answer() {
        let listener = AdminListen::Explicit(ANY).bind().unwrap().unwrap();
        let address = listener.local_addr().unwrap();
        let (readiness, end) = (Readiness::new(), CancellationToken::new());
        let mut latch = readiness.latch("store");
        let metrics = Metrics::new("test", "0.1.0");
        let more = Router::new().route("/debug/state", routing::get(async || "state"));
        let mut tasks = TaskGroup::new();
        let served = serve(listener, readiness, metrics, more, end.clone());
        tasks.spawn("admin", served);
        let live = get(address, "/livez").await;
        assert!(
            live.starts_with("HTTP/1.1 200") && live.ends_with("\r\n\r\nok\n"),
            "{live}"
        );
        let pending = get(address, "/readyz").await;
        assert!(pending.starts_with("HTTP/1.1 503"), "{pending}");
        assert!(
            pending.ends_with(r#"{"pending":["store"],"ready":false}"#),
            "{pending}"
        );
        latch.set_ready();
        let ready = get(address, "/readyz").await;
        assert!(ready.starts_with("HTTP/1.1 200"), "{ready}");
        assert!(ready.ends_with(r#"{"pending":[],"ready":true}"#), "{ready}");
        let scraped = get(address, "/metrics").await;
        assert!(
            scraped.contains("content-type: application/openmetrics-text"),
            "{scraped}"
        );
        assert!(
            scraped.contains("sg_build_info{") && scraped.ends_with("# EOF\n"),
            "{scraped}"
        );
        assert!(get(address, "/debug/state").await.ends_with("state"));
        assert!(get(address, "/other").await.starts_with("HTTP/1.1 404"));
        end.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(5), tasks.join_next())
            .await
            .unwrap();
        assert_eq!(ended, Some(("admin".to_owned(), Ended::Finished)));
    }

    #[tokio::test]
    async fn a_taken_default_is_done_without_and_a_taken_choice_is_an_error() {
        let taken = crate::net::bind_tcp(ANY).unwrap();
        let address = taken.local_addr().unwrap();
        assert!(AdminListen::new(None, address).bind().unwrap().is_none());
        let error = AdminListen::new(Some(address), ANY).bind().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&address.to_string()), "{error}");
    }
}
