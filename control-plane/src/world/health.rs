//! Whether the store answers, as those who use it see it.

use std::sync::Arc;

use sg_runtime::metrics::Counter;
use tokio::sync::watch;

use crate::store::StoreError;

/// Whether the store answers. Clones share it.
#[derive(Debug, Clone)]
pub struct StoreHealth {
    problem: Arc<watch::Sender<Option<String>>>,
    errors: Counter,
}

impl StoreHealth {
    /// Unknown yet, which counts as a problem. `errors` counts failed calls.
    pub fn new(errors: Counter) -> Self {
        let problem = Some("the store was not reached yet".to_owned());
        Self {
            problem: Arc::new(watch::Sender::new(problem)),
            errors,
        }
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problem.borrow().clone()
    }

    /// A call succeeded.
    pub fn good(&self) {
        if self
            .problem
            .send_if_modified(|problem| problem.take().is_some())
        {
            tracing::info!("the store answers");
        }
    }

    /// A call failed. Failures that say nothing about the store as such are only counted.
    pub fn bad(&self, error: &StoreError) {
        self.errors.inc();
        if let StoreError::Unavailable { .. }
        | StoreError::Auth(_)
        | StoreError::UnknownOutcome(_) = error
        {
            self.away(&error.to_string());
        }
    }

    /// The store does not answer.
    pub fn away(&self, reason: &str) {
        self.problem.send_if_modified(|problem| {
            let new = problem.is_none();
            if new {
                tracing::warn!(
                    reason,
                    "the store does not answer; what is known is served on"
                );
            }
            *problem = Some(reason.to_owned());
            new
        });
    }
}
