//! The HTTP listener. REST and dashboard are to come; until then it says so, and what is running.

use std::io;

use axum::Json;
use axum::Router;
use axum::extract::State;
use axum::routing::get;
use serde_json::{Value, json};
use sg_runtime::http_listener::{self, HttpLimits};
use sg_runtime::readiness::Readiness;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves until `end`.
///
/// # Errors
/// The listener fails for good.
pub(crate) async fn serve(
    listener: TcpListener,
    readiness: Readiness,
    end: CancellationToken,
) -> io::Result<()> {
    let app = Router::new().route("/", get(index)).with_state(readiness);
    http_listener::serve(listener, app, HttpLimits::default(), end).await
}

async fn index(State(readiness): State<Readiness>) -> Json<Value> {
    Json(json!({
        "name": "sg-control-plane",
        "version": env!("CARGO_PKG_VERSION"),
        "ready": readiness.is_ready(),
        "rest": "not available in this version; use the gRPC API or sgctl",
        "dashboard": "not available in this version",
    }))
}
