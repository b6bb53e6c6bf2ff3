//! The resource for a run without one: a small HTTP server inside this process.

use std::net::{Ipv4Addr, SocketAddr};

use axum::Router;
use axum::routing::get;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::failure::Failure;

const GREETING: &str = "Hello! These bytes came from a resource behind Secure Gateway:\n\
you -> node (destination port) -> one TLS tunnel -> client -> this server, and back.\n";

/// The running server; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Demo {
    pub(super) address: SocketAddr,
    _server: JoinSet<()>,
}

impl Demo {
    pub(super) async fn start() -> Result<Self, Failure> {
        let cannot = |error| Failure::local("cannot start the demo resource", &error);
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .map_err(cannot)?;
        let address = listener.local_addr().map_err(cannot)?;
        let routes = Router::new().route("/", get(|| async { GREETING }));
        let mut server = JoinSet::new();
        server.spawn(async move {
            if let Err(error) = axum::serve(listener, routes).await {
                crate::output::note(&format!("the demo resource ended: {error}"));
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }
}
