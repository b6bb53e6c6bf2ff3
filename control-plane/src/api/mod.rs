//! gRPC: the public services, and those of nodes. Handlers decode, ask [`crate::service`], and
//! encode; they decide nothing.
//!
//! [`serve`] takes connections; `auth` says who is calling and what he gets to see, by the table in
//! [`access`]; `errors` is the one place where a domain error becomes a status.

pub mod access;
mod acls;
mod audit;
mod auth;
mod authority;
mod destination_fields;
mod destinations;
mod errors;
mod failures;
mod gateways;
mod node_services;
mod observations;
mod refusals;
mod request;
pub mod serve;
mod tokens;
mod watch;

use std::sync::Arc;

use sg_model::TokenScope;
use sg_runtime::metrics::Metrics;
use sg_runtime::tasks::TaskPool;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::push::session::Sessions;
use crate::service::Core;
use crate::service::acl_edits::ClientEdits;
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
    audit_watches: Arc<Semaphore>,
    verifying: Arc<Semaphore>,
}

impl Api {
    /// Handlers over the use cases. Streams end when `draining` is cancelled.
    pub fn new(core: Arc<Core>, metrics: &Metrics, draining: CancellationToken) -> Self {
        let sessions = Sessions {
            views: core.views.clone(),
            observed: core.observed.clone(),
            registry: NodeRegistry::new(Arc::clone(&core)),
            edits: ClientEdits::new(Arc::clone(&core)),
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
            audit_watches: Arc::new(Semaphore::new(audit::MAX_WATCHES)),
            verifying: Arc::new(Semaphore::new(1)),
        }
    }

    /// The same handlers over what a caller gets to see.
    fn for_scope(&self, scope: &TokenScope) -> Self {
        let core = match scope {
            TokenScope::All => Arc::clone(&self.core),
            scope => Arc::new(self.core.for_scope(scope.clone())),
        };
        Self {
            core,
            ..self.clone()
        }
    }
}
