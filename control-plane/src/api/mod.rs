//! gRPC: the public services, and those of nodes. Handlers decode, ask [`crate::service`], and
//! encode; they decide nothing.
//!
//! [`serve`] takes connections; `auth` says who is calling; `errors` is the one place where a
//! domain error becomes a status.

mod acls;
mod auth;
mod destination_fields;
mod destinations;
mod errors;
mod gateways;
mod node_services;
mod observations;
mod request;
pub mod serve;
mod watch;

use std::sync::Arc;

use sg_runtime::metrics::Metrics;
use sg_runtime::tasks::TaskPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::push::session::Sessions;
use crate::service::Core;
use crate::service::nodes::NodeRegistry;

/// Node streams at a time; a node needs one, and another while it replaces it.
const MAX_SESSIONS: usize = 4096;

/// Joins looked into at a time: strangers may ask, and each costs the store a read.
const MAX_JOINS: usize = 16;

/// Everything the handlers need. Clones share it.
#[derive(Debug, Clone)]
pub struct Api {
    core: Arc<Core>,
    rpcs: request::Rpcs,
    sessions: Sessions,
    pool: TaskPool,
    joins: Arc<Semaphore>,
    draining: CancellationToken,
}

impl Api {
    /// Handlers over the use cases. Streams end when `draining` is cancelled.
    pub fn new(core: Arc<Core>, metrics: &Metrics, draining: CancellationToken) -> Self {
        let sessions = Sessions {
            views: core.views.clone(),
            observed: core.observed.clone(),
            registry: NodeRegistry::new(Arc::clone(&core)),
            control_plane: core.control_plane.clone(),
            draining: draining.clone(),
        };
        let rpcs = request::Rpcs::new(metrics);
        Self {
            core,
            rpcs,
            sessions,
            pool: TaskPool::new("node stream", MAX_SESSIONS),
            joins: Arc::new(Semaphore::new(MAX_JOINS)),
            draining,
        }
    }
}
