//! The only ways to wait in a test: for something to become true, or for something to end.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::time::{Instant, sleep, timeout};

/// How long a test waits for what should take well under a second on an idle machine. Long,
/// because two cores are shared with other tests; tests that promise a time state their own.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// Time between two looks at something that is not true yet.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Calls `probe` until it answers, and fails with its last error when `limit` has passed.
///
/// # Errors
/// `probe` failed to the last, or its last call took longer than was left.
pub async fn eventually<T>(
    limit: Duration,
    what: &str,
    mut probe: impl AsyncFnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + limit;
    let mut last = anyhow!("never answered");
    loop {
        let left = end.saturating_duration_since(Instant::now());
        match timeout(left, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => last = error,
            Err(_) => return Err(last).with_context(|| format!("not within {limit:?}: {what}")),
        }
        if Instant::now() >= end {
            return Err(last).with_context(|| format!("not within {limit:?}: {what}"));
        }
        sleep(LOOK_AGAIN).await;
    }
}

/// Waits for something that is expected to end by itself.
///
/// # Errors
/// It took longer than `limit`.
pub async fn within<T>(limit: Duration, what: &str, work: impl Future<Output = T>) -> Result<T> {
    match timeout(limit, work).await {
        Ok(value) => Ok(value),
        Err(_) => bail!("took longer than {limit:?}: {what}"),
    }
}
