//! Whether the store answers, as those who use it see it: those who call it, and those who follow
//! it. Either can be in trouble while the other is not, so neither speaks for the other.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use sg_runtime::metrics::Counter;

use crate::store::StoreError;

#[derive(Debug, Default)]
struct Problems {
    /// Why the last call failed.
    calls: Option<String>,
    /// Followed prefixes that are not current, and why.
    following: BTreeMap<&'static str, String>,
}

impl Problems {
    fn first(&self) -> Option<String> {
        let behind = self.following.iter().next();
        let behind = behind
            .map(|(prefix, reason)| format!("what is known of {prefix} may be old: {reason}"));
        self.calls.clone().or(behind)
    }
}

/// Whether the store answers. Clones share it.
#[derive(Debug, Clone)]
pub struct StoreHealth {
    problems: Arc<Mutex<Problems>>,
    errors: Counter,
}

impl StoreHealth {
    /// Unknown yet, which counts as a problem. `errors` counts failed calls.
    pub fn new(errors: Counter) -> Self {
        let calls = Some("the store was not reached yet".to_owned());
        let problems = Problems {
            calls,
            ..Problems::default()
        };
        Self {
            problems: Arc::new(Mutex::new(problems)),
            errors,
        }
    }

    /// What is wrong, if anything.
    pub fn problem(&self) -> Option<String> {
        self.problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .first()
    }

    /// A call succeeded.
    pub fn good(&self) {
        self.change(|problems| problems.calls = None);
    }

    /// A call failed. Failures that say nothing about the store as such are only counted.
    pub fn bad(&self, error: &StoreError) {
        self.errors.inc();
        if let StoreError::Unavailable { .. }
        | StoreError::Auth(_)
        | StoreError::UnknownOutcome(_) = error
        {
            self.change(|problems| problems.calls = Some(error.to_string()));
        }
    }

    /// A follower is current (`None`) or not, and why.
    pub fn following(&self, prefix: &'static str, reason: Option<&str>) {
        self.change(|problems| match reason {
            Some(reason) => drop(problems.following.insert(prefix, reason.to_owned())),
            None => drop(problems.following.remove(prefix)),
        });
    }

    fn change(&self, change: impl FnOnce(&mut Problems)) {
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        let before = problems.first();
        change(&mut problems);
        match (before, problems.first()) {
            (None, Some(reason)) => {
                tracing::warn!(reason, "trouble with the store; what is known is served on");
            }
            (Some(_), None) => tracing::info!("the store answers"),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_succeeds_does_not_hide_that_the_world_is_old() {
        let health = StoreHealth::new(Counter::default());
        assert!(health.problem().is_some());
        health.good();
        assert_eq!(health.problem(), None);
        health.following("a/", Some("cut off"));
        health.following("b/", Some("cut off"));
        health.good();
        assert!(health.problem().is_some_and(|text| text.contains("a/")));
        health.following("a/", None);
        assert!(health.problem().is_some_and(|text| text.contains("b/")));
        health.following("b/", None);
        health.bad(&StoreError::Invalid("ours".to_owned()));
        assert_eq!(health.problem(), None);
        health.bad(&StoreError::unavailable("gone"));
        assert!(health.problem().is_some());
    }
}
