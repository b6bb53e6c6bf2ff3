//! Forgetting a node, for one that will not come back.
//!
//! With its record everything goes that follows from it: its place among the peers that clients are told of, what its port range
//! leaves to new destinations, its name. Its certificate is valid for a while yet, but a stream to it is served only while
//! the record is there, and nothing brings the record back: what a node says of itself changes a record that exists, and a
//! repeated join finds that it does not.

use sg_model::{Name, NodeId};

use super::super::change::{Call, Change, RETRIES};
use super::super::etag::required_etag;
use super::super::outcome::Outcome;
use super::super::{Core, ServiceError};
use crate::keys;

impl Core {
    /// Deletes a node. `force` does without an etag, and does not mind that the node is connected.
    ///
    /// # Errors
    /// It does not exist, it is or may be connected, the etag is missing or old, or the store failed.
    pub async fn delete_node(
        &self,
        call: &Call,
        name: &str,
        etag: &str,
        force: bool,
    ) -> Result<(), ServiceError> {
        if self.replayed(call).await?.is_some() {
            return Ok(());
        }
        let expected = required_etag(etag, force)?;
        let not_found = || ServiceError::not_found("node", name);
        let id = {
            let view = self.views.now();
            let node = view.world.find_node(name).ok_or_else(not_found)?;
            node.value.id.clone()
        };
        for _ in 0..RETRIES {
            let current = self.read_node(&id).await?.ok_or_else(not_found)?;
            let record = &current.value;
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("node", record.name.as_str()));
            }
            if !force {
                self.refuse_living(&id, &record.name)?;
            }
            if call.validate_only {
                return Ok(());
            }
            let change = Change::new(call, format!("node/{id}"), id.as_str())
                .detail(format!("name={} group={}", record.name, record.group))
                .remove(keys::node(&id), current.revision)
                .delete(keys::node_name(&record.name));
            match self.commit(change).await? {
                Outcome::Done(_) | Outcome::Replayed(_) => return Ok(()),
                // It said something new of itself in between.
                Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended())
    }

    /// Refuses a node that lives, as far as is known here: which nodes are connected to another control plane only is not.
    fn refuse_living(&self, id: &NodeId, name: &Name) -> Result<(), ServiceError> {
        let reports = self.observed.reports();
        let (reason, message) = match reports.get(id) {
            Some(report) if report.connected => (
                "NODE_CONNECTED",
                format!(
                    "node {name} is connected, with {} client tunnel(s); stop it first, or set force",
                    report.tunnels.len()
                ),
            ),
            _ if reports.may_be_serving(id) => (
                "NODE_MAY_BE_CONNECTED",
                format!(
                    "this control plane has just started, and node {name} may yet connect to it; try again in 10 s, or set force"
                ),
            ),
            _ => return Ok(()),
        };
        Err(ServiceError::Precondition { reason, message })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::ids;
    use crate::service::tests::{call, create, destination, joined, plane};
    use crate::store::Store as _;
    use crate::store::memory::MemoryStore;

    fn reason(error: &ServiceError) -> &'static str {
        match error {
            ServiceError::Precondition { reason, .. }
            | ServiceError::Aborted { reason, .. }
            | ServiceError::Exhausted { reason, .. } => reason,
            ServiceError::NotFound { .. } => "NOT_FOUND",
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn a_node_that_is_gone_narrows_nothing_and_leaves_nothing() {
        let store = MemoryStore::new();
        let plane = plane(&store).await;
        let core = &plane.core;
        core.observed.settle();
        create(core, "dev").await.unwrap();
        let old = joined(core, "old", (20_000, 20_099)).await;
        joined(core, "new", (21_000, 21_099)).await;
        let draft = destination("db", 0);
        let refused = core
            .create_destination(&call(""), "dev", &draft, true)
            .await
            .unwrap_err();
        assert_eq!(reason(&refused), "NO_COMMON_PORTS");

        core.delete_node(&call("once"), "old", "", true)
            .await
            .unwrap();
        // The same request again finds its answer, although there is no such node now.
        core.delete_node(&call("once"), "old", "", true)
            .await
            .unwrap();
        let error = core.delete_node(&call(""), "old", "", true).await;
        assert_eq!(reason(&error.unwrap_err()), "NOT_FOUND");
        let made = core
            .create_destination(&call(""), "dev", &draft, true)
            .await
            .unwrap();
        let port = made
            .destination
            .value
            .destination
            .listen
            .cloud_port()
            .unwrap();
        assert!((21_000..=21_099).contains(&port), "{port}");
        for prefix in ["v1/obj/", "v1/idx/"] {
            let (_, all) = store.list(prefix).await.unwrap();
            for entry in all {
                let value = String::from_utf8_lossy(&entry.value).into_owned();
                assert!(!entry.key.contains(old.as_str()), "{}", entry.key);
                assert!(!value.contains(old.as_str()), "{}", entry.key);
            }
        }
        // Its name belongs to whoever comes next.
        joined(core, "old", (21_000, 21_099)).await;
    }

    #[tokio::test]
    async fn who_lives_or_may_live_and_what_has_changed_is_refused() {
        let store = MemoryStore::new();
        let plane = plane(&store).await;
        let core = &plane.core;
        let id = joined(core, "n1", (20_000, 20_099)).await;
        let etag = core.read_node(&id).await.unwrap().unwrap().etag();
        let refused = async |etag: &str| {
            let result = core.delete_node(&call(""), "n1", etag, false).await;
            result.unwrap_err()
        };
        assert_eq!(reason(&refused("").await), "ETAG_REQUIRED");
        assert_eq!(reason(&refused(&etag).await), "NODE_MAY_BE_CONNECTED");
        core.observed.settle();
        let connection = core.observed.connect(&id, "boot", ids::now());
        let error = refused(&etag).await;
        assert_eq!(reason(&error), "NODE_CONNECTED");
        assert!(error.to_string().contains("0 client tunnel(s)"), "{error}");
        drop(connection);
        assert_eq!(reason(&refused("1").await), "ETAG_MISMATCH");
        let check = Call {
            validate_only: true,
            ..call("")
        };
        let before = store.revision().await.unwrap();
        core.delete_node(&check, "n1", &etag, false).await.unwrap();
        assert_eq!(store.revision().await.unwrap(), before);
        core.delete_node(&call(""), "n1", &etag, false)
            .await
            .unwrap();
        assert!(core.read_node(&id).await.unwrap().is_none());
    }
}
