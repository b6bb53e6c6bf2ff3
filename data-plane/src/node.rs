//! What all parts of a node read: who it is, what it serves, its tunnels, its open streams, its counters.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use sg_model::{Name, NodeConfig, NodeId, Timestamp};
use sg_relay::{StreamMetrics, TunnelBoard};
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tasks::TaskPool;
use tokio::sync::watch;

use crate::balancers::Balancers;
use crate::certificates::{Desk, Vouched};
use crate::cloud::{Cloud, CloudAllow};
use crate::edits::EditDesk;
use crate::for_clients::ForClients;
use crate::log_limit::LogLimit;
use crate::metrics::NodeMetrics;
use crate::receptions::Receptions;
use crate::streams::OpenStreams;
use crate::tunnels::{Hold, Registry};
use sg_runtime::places::Places;
use sg_runtime::tls::Issuers;

/// Shared by all tasks of a node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) id_text: Arc<str>,
    pub(crate) name: Name,
    /// What is served now. Written by `reconcile` only.
    pub(crate) served: watch::Sender<Arc<NodeConfig>>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) streams: OpenStreams,
    /// How users are received.
    pub(crate) receptions: Receptions,
    /// What clients must know of destinations. Written with `served`.
    pub(crate) for_clients: ForClients,
    /// What cloud destinations may reach from here.
    pub(crate) cloud_allow: CloudAllow,
    /// The streams of cloud destinations, and the ways to their resources.
    pub(crate) cloud: Cloud,
    pub(crate) hold: Hold,
    /// Connections to the tunnel listener that have not said yet who they are.
    pub(crate) half_open: Places,
    /// Whose certificates of clients are accepted.
    pub(crate) issuers: Issuers,
    /// The same, as a control plane of this run has told it; clients are told too.
    pub(crate) trust: watch::Sender<Arc<Vouched>>,
    /// Where tunnels ask for certificates of their clients.
    pub(crate) desk: Desk,
    /// Where tunnels hand in changes of lists that their clients want.
    pub(crate) edits: EditDesk,
    /// Who says by the PROXY protocol who connects.
    pub(crate) balancers: Balancers,
    /// Users' streams by source address.
    pub(crate) sources: Places,
    /// The tunnels, for people and metrics.
    pub(crate) board: TunnelBoard,
    pub(crate) metrics: NodeMetrics,
    pub(crate) stream_metrics: StreamMetrics,
    /// One task per user's connection.
    pub(crate) connections: TaskPool,
    /// What may still open streams: listeners, and connections whose stream is not yet open.
    pub(crate) opening: Opening,
    /// Bounds the lines about connections that find no room.
    pub(crate) full_lines: LogLimit,
    pub(crate) shutdown: Shutdown,
}

impl Node {
    /// What is served at this moment.
    pub(crate) fn config(&self) -> Arc<NodeConfig> {
        Arc::clone(&self.served.borrow())
    }
}

/// Counts what may still open streams.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opening(Arc<AtomicUsize>);

/// One of them; dropping it counts it off.
#[derive(Debug)]
pub(crate) struct OpeningPlace(Opening);

impl Opening {
    pub(crate) fn enter(&self) -> OpeningPlace {
        self.0.fetch_add(1, Ordering::Relaxed);
        OpeningPlace(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

impl Drop for OpeningPlace {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The wall clock, for dates of tokens and records.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
