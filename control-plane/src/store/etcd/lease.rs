//! Leases for keys that expire.
//!
//! Granting a lease costs the cluster as much as a write. So keys with a long life share one: it is
//! granted a twentieth longer than they need, and taken for new keys as long as it still lasts.
//! Short-lived keys get one each. Leases are never renewed; one that nothing uses runs out.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::error::Failure;
use super::pool::{Limit, Pool};

/// Keys that live at least this long share leases.
const SHARED_FROM_S: u64 = 60;
/// Most keys in one shared lease, so that their end is not one huge revision.
const SHARED_KEYS: usize = 1000;

#[derive(Debug, Default)]
pub(super) struct Leases {
    shared: Mutex<HashMap<u64, Shared>>,
}

#[derive(Debug)]
struct Shared {
    id: i64,
    /// Until when a key put now still lives its whole time.
    usable_until: Instant,
    keys: usize,
}

impl Leases {
    /// A lease that keeps `keys` keys for `ttl` at least.
    pub(super) async fn get(
        &self,
        pool: &Pool,
        ttl: Duration,
        keys: usize,
    ) -> Result<i64, Failure> {
        let seconds = ttl.as_secs() + u64::from(ttl.subsec_nanos() > 0);
        if seconds < SHARED_FROM_S {
            return grant(pool, seconds).await;
        }
        if let Some(id) = self.reuse(seconds, keys) {
            return Ok(id);
        }
        let slack = seconds / 20;
        let usable_until = Instant::now() + Duration::from_secs(slack);
        let id = grant(pool, seconds + slack + 1).await?;
        self.lock().insert(
            seconds,
            Shared {
                id,
                usable_until,
                keys,
            },
        );
        Ok(id)
    }

    /// Forgets leases, because the cluster has.
    pub(super) fn forget(&self) {
        self.lock().clear();
    }

    fn reuse(&self, seconds: u64, keys: usize) -> Option<i64> {
        let mut leases = self.lock();
        let shared = leases.get_mut(&seconds)?;
        if Instant::now() >= shared.usable_until || shared.keys + keys > SHARED_KEYS {
            leases.remove(&seconds);
            return None;
        }
        shared.keys += keys;
        Some(shared.id)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u64, Shared>> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn grant(pool: &Pool, seconds: u64) -> Result<i64, Failure> {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    // Granted twice is no harm: the other one runs out unused.
    pool.read(Limit::Short, |_, mut client| async move {
        let response = client.lease_grant(seconds, None).await?;
        Ok(response.id())
    })
    .await
}
