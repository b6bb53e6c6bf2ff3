//! What ends a whole connection from inside: the far side has failed while nobody could notice it in passing, or no
//! byte has passed for too long.

use std::sync::OnceLock;

use tokio_util::sync::CancellationToken;

use crate::EndReason;

#[derive(Debug, Default)]
pub(super) struct Stop {
    reason: OnceLock<EndReason>,
    failed: CancellationToken,
    idle: CancellationToken,
}

impl Stop {
    /// The far side has failed, and what it sent is not complete. The first call counts.
    pub(super) fn fail(&self, reason: EndReason) {
        self.reason.get_or_init(|| reason);
        self.failed.cancel();
    }

    /// Notes why the far side failed, without ending anything: the answer under way is about to show it.
    pub(super) fn note(&self, reason: EndReason) {
        self.reason.get_or_init(|| reason);
    }

    /// Why it failed, if it has.
    pub(super) fn reason(&self) -> Option<EndReason> {
        self.reason.get().copied()
    }

    pub(super) async fn failed(&self) -> EndReason {
        self.failed.cancelled().await;
        self.reason().unwrap_or(EndReason::TunnelLost)
    }

    /// Requests under way are to be answered now.
    pub(super) fn idle(&self) {
        self.idle.cancel();
    }

    pub(super) async fn idled(&self) {
        self.idle.cancelled().await;
    }
}
