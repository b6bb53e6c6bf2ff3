//! Connections that did not become tunnels: all are counted by reason, and logged as long as they are few.

use std::net::SocketAddr;

use tokio::time::Instant;

use crate::log_limit::LogLimit;
use crate::node::Node;

/// The lines about refusals.
#[derive(Debug, Default)]
pub(super) struct Refusals(LogLimit);

impl Refusals {
    /// Counts and logs one. `detail` must hold no secret.
    pub(super) fn note(
        &self,
        node: &Node,
        reason: &'static str,
        address: SocketAddr,
        detail: Option<&str>,
    ) {
        node.metrics.tunnel_refused(reason);
        if let Some(unlogged) = self.0.may_log(Instant::now()) {
            tracing::warn!(reason, %address, detail, unlogged, "tunnel refused");
        }
    }
}
