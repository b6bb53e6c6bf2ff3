//! A value now, and again whenever it has changed. Wakes on the store and on the nodes' reports;
//! nothing is polled, and what did not change is not sent.

use std::future::Future;

use futures_util::{Stream, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status};

use super::Api;
use super::errors::{status, to_status};
use crate::service::ServiceError;
use crate::world::keeper::Views;

struct Watching<T, F> {
    read: F,
    views: Views,
    reports: watch::Receiver<u64>,
    draining: CancellationToken,
    last: Option<T>,
    over: bool,
}

/// The values that `read` gives, until it fails; then the failure.
pub(super) fn values<T, F, R>(
    api: &Api,
    read: F,
) -> impl Stream<Item = Result<T, Status>> + use<T, F, R>
where
    T: Clone + PartialEq,
    F: Fn() -> R,
    R: Future<Output = Result<T, ServiceError>>,
{
    let watching = Watching {
        read,
        views: api.core.views.clone(),
        reports: api.core.observed.subscribe(),
        draining: api.draining.clone(),
        last: None,
        over: false,
    };
    stream::unfold(watching, |mut watching| async move {
        let item = watching.next().await?;
        Some((item, watching))
    })
}

impl<T, F, R> Watching<T, F>
where
    T: Clone + PartialEq,
    F: Fn() -> R,
    R: Future<Output = Result<T, ServiceError>>,
{
    async fn next(&mut self) -> Option<Result<T, Status>> {
        while !self.over {
            // Marked before reading: what changes while we read wakes us again.
            self.views.mark_seen();
            self.reports.mark_unchanged();
            match (self.read)().await {
                Err(error) => {
                    self.over = true;
                    return Some(Err(to_status(error)));
                }
                Ok(value) if self.last.as_ref() != Some(&value) => {
                    self.last = Some(value.clone());
                    return Some(Ok(value));
                }
                Ok(_) => {}
            }
            // Both are cancel safe; the reports' sender lives in `Api`.
            tokio::select! {
                () = self.draining.cancelled() => {
                    self.over = true;
                    let text = "the control plane is shutting down; watch through another one";
                    return Some(Err(status(Code::Unavailable, "DRAINING", text)));
                }
                () = self.views.changed() => {}
                changed = self.reports.changed() => if changed.is_err() { self.over = true },
            }
        }
        None
    }
}
