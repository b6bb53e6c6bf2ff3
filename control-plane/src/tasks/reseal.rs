//! Brings everything in the store under the newest key of the key file, so that the older keys can be
//! taken out of it. Several control planes may do it at once; that harms nothing.

use std::cell::Cell;
use std::sync::Arc;
use std::time::Duration;

use prost::Message as _;
use sg_model::SecretBytes;
use sg_proto::convert::store::DestinationRecord;
use sg_proto::store as wire;
use sg_runtime::sealed::KeyRing;

use crate::keys;
use crate::service::ServiceError;
use crate::store::{KeyValue, Store, Txn};
use crate::vault::Vault;

/// After the start, so that it is in nobody's way.
const SOON: Duration = Duration::from_secs(2);
const PERIOD: Duration = Duration::from_secs(300);

/// What one round found.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Round {
    /// Values that are under the newest key now and were not before.
    renewed: usize,
    /// Values under an older key that are forgotten within the hour.
    left: usize,
}

/// Runs for ever; does nothing while there is only one key.
pub(crate) async fn run(store: Arc<dyn Store>, ring: KeyRing) {
    if ring.count() == 1 {
        std::future::pending::<()>().await;
    }
    let mut pause = SOON;
    let mut said = false;
    loop {
        tokio::time::sleep(pause).await;
        pause = PERIOD;
        match round(&*store, &ring).await {
            Ok(Round {
                renewed: 0,
                left: 0,
            }) if said => {}
            Ok(Round {
                renewed: 0,
                left: 0,
            }) => {
                said = true;
                tracing::info!(
                    "everything in the store is under the newest key; the older ones can be taken out of the key file"
                );
            }
            Ok(Round { renewed, left }) => {
                said = false;
                tracing::info!(renewed, left, "values were brought under the newest key");
                if left == 0 {
                    pause = SOON;
                }
            }
            Err(error) => {
                tracing::warn!(%error, "not everything could be brought under the newest key yet");
            }
        }
    }
}

async fn round(store: &dyn Store, ring: &KeyRing) -> Result<Round, ServiceError> {
    let mut round = Round::default();
    for key in [keys::META_CA, keys::CHAIN_HEAD, keys::CHAIN_ANCHOR] {
        let Some(entry) = store.get(key).await?.1 else {
            continue;
        };
        let Some(value) = renewed(ring, &entry)? else {
            continue;
        };
        let txn = Txn::new()
            .when_revision(key, entry.mod_revision)
            .put(key, value);
        // If it was changed meanwhile, it was sealed anew by that, or is by the next round.
        store.txn(txn).await?;
        round.renewed += 1;
    }
    let vault = Vault::new(ring.clone());
    let (_, destinations) = store.list(keys::DESTINATIONS).await?;
    for entry in destinations {
        // What cannot be read shows as a problem of the world already.
        if let Ok(Some(value)) = renewed_destination(&vault, &entry) {
            let txn = Txn::new()
                .when_revision(entry.key.as_str(), entry.mod_revision)
                .put(entry.key.as_str(), value);
            store.txn(txn).await?;
            round.renewed += 1;
        }
    }
    let (_, answers) = store.list(keys::IDEMPOTENCY).await?;
    for entry in answers {
        let answer = wire::Idempotency::decode(entry.value.as_ref())?;
        let sealed = answer.sealed_secret.as_slice();
        if !sealed.is_empty() && ring.renew(entry.key.as_bytes(), sealed).ok() != Some(None) {
            round.left += 1;
        }
    }
    Ok(round)
}

/// The entry's value with its secret under the newest key; `None` if it is.
fn renewed(ring: &KeyRing, entry: &KeyValue) -> Result<Option<Vec<u8>>, ServiceError> {
    let renew = |sealed: &[u8]| {
        ring.renew(entry.key.as_bytes(), sealed).map_err(|_| {
            ServiceError::Internal(format!("{} opens with no key of the key file", entry.key))
        })
    };
    if entry.key == keys::META_CA {
        let ca = wire::CertificateAuthority::decode(entry.value.as_ref())?;
        let new = renew(&ca.sealed_key)?;
        return Ok(
            new.map(|sealed_key| wire::CertificateAuthority { sealed_key, ..ca }.encode_to_vec())
        );
    }
    let sealed = wire::SealedSecret::decode(entry.value.as_ref())?;
    let new = renew(&sealed.ciphertext)?;
    Ok(new.map(|ciphertext| wire::SealedSecret { ciphertext }.encode_to_vec()))
}

/// A destination with its keys and passwords under the newest key; `None` if they are. Nothing else
/// of it changes, so nobody has to be told but those who hold its etag.
fn renewed_destination(vault: &Vault, entry: &KeyValue) -> Result<Option<Vec<u8>>, ServiceError> {
    let stored = wire::Destination::decode(entry.value.as_ref())?;
    let any_old = Cell::new(false);
    let open = |place: &str, sealed: &[u8]| {
        if vault.is_old(&entry.key, place, sealed) {
            any_old.set(true);
        }
        vault.open(&entry.key, place, sealed)
    };
    let record = DestinationRecord::from_store(&stored, &open)?;
    let seal = |place: &str, secret: &SecretBytes| vault.seal(&entry.key, place, secret);
    Ok(any_old
        .get()
        .then(|| record.to_store(&seal).encode_to_vec()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::path::Path;

    use super::*;
    use crate::bootstrap;
    use crate::store::memory::MemoryStore;

    fn write(path: &Path, lines: &str) {
        sg_runtime::files::write_atomic(path, lines.as_bytes(), sg_runtime::files::PRIVATE)
            .unwrap();
    }

    #[tokio::test]
    async fn a_key_is_replaced_and_the_old_one_is_of_no_use_any_more() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("store.key");
        let first = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let old = std::fs::read_to_string(&path).unwrap();
        let new = format!("{}\n", sg_runtime::crypto::hex(&[7; 32]));
        write(&path, &format!("{new}{old}"));
        let both = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let done = round(&store, &both.key).await.unwrap();
        assert_eq!((done.renewed, done.left), (2, 0));
        assert_eq!(round(&store, &both.key).await.unwrap(), Round::default());
        write(&path, &new);
        let after = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        assert_eq!(first.authority.spki_sha256(), after.authority.spki_sha256());
        write(&path, &old);
        assert!(
            bootstrap::establish(&store, dir.path(), &path)
                .await
                .is_err()
        );
    }

    #[tokio::test]
    async fn a_value_that_was_moved_is_not_taken_for_one_of_this_place() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("store.key");
        let made = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let head = store.get(keys::CHAIN_HEAD).await.unwrap().1.unwrap();
        let moved = Txn::new().put(keys::CHAIN_ANCHOR, head.value);
        store.txn(moved).await.unwrap();
        assert!(round(&store, &made.key).await.is_err());
    }
}
