//! The small HTTP server of a daemon, meant for loopback: `/livez`, `/readyz`, `/metrics`, and
//! what the daemon adds. It authenticates nobody, so it shows no secret and changes nothing.

use std::io;
use std::net::SocketAddr;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
pub use axum::{Json, Router, routing};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

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
    axum::serve(listener, app)
        .with_graceful_shutdown(async move { end.cancelled().await })
        .await
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
