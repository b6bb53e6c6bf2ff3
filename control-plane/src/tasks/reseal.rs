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
    let mut unreadable = None;
    for entry in destinations {
        let value = match renewed_destination(&vault, &entry) {
            Ok(Some(value)) => value,
            Ok(None) => continue,
            // The others go on; but nobody may be told that the old key can go.
            Err(error) => {
                unreadable = Some(error);
                continue;
            }
        };
        let txn = Txn::new()
            .when_revision(entry.key.as_str(), entry.mod_revision)
            .put(entry.key.as_str(), value);
        store.txn(txn).await?;
        round.renewed += 1;
    }
    let (_, answers) = store.list(keys::IDEMPOTENCY).await?;
    for entry in answers {
        let answer = wire::Idempotency::decode(entry.value.as_ref())?;
        let sealed = answer.sealed_secret.as_slice();
        if !sealed.is_empty() && ring.renew(entry.key.as_bytes(), sealed).ok() != Some(None) {
            round.left += 1;
        }
    }
    match unreadable {
        Some(error) => Err(error),
        None => Ok(round),
    }
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

    /// Keys and passwords of destinations move to the new key like everything else, and open with it alone.
    #[tokio::test]
    async fn threat_29_secrets_of_destinations_move_to_the_new_key() {
        use sg_model::{Destination, DestinationId, GatewayId, Listen};

        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("store.key");
        let made = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let (gateway, id) = (
            GatewayId::new("G1").unwrap(),
            DestinationId::new("D1").unwrap(),
        );
        let key = keys::destination(&gateway, &id);
        let pair = |secret: &[u8]| sg_model::KeyPair {
            certificates: vec![sg_model::Certificate::new([1, 2, 3])],
            key: Some(SecretBytes::new(secret.to_vec())),
            origin: sg_model::PairOrigin::Uploaded,
        };
        let mut destination = Destination {
            id: id.clone(),
            gateway: gateway.clone(),
            name: sg_model::Name::new("d").unwrap(),
            listen: Listen::CloudPort(15000),
            protocol: sg_model::Protocol::Tls,
            resource: "db.example:443".parse().unwrap(),
            enabled: true,
            connect_timeout: Duration::from_secs(10),
            idle_timeout: None,
            max_connections: None,
            compression: sg_model::Compression::default(),
            keepalive: None,
            user_end: sg_model::UserEnd::default(),
            resource_end: sg_model::ResourceEnd::default(),
            generation: 1,
        };
        destination.user_end.server_pairs = vec![pair(b"canary-server-key")];
        destination.resource_end.tls = sg_model::ResourceTls::Mutual;
        destination.resource_end.client_pair = Some(pair(b"canary-client-key"));
        destination.resource_end.socks = Some(sg_model::Socks {
            version: sg_model::SocksVersion::V5,
            address: "proxy.example:1080".parse().unwrap(),
            user: "u".to_owned(),
            password: Some(SecretBytes::new(b"canary-password".to_vec())),
        });
        let record = DestinationRecord {
            destination,
            description: String::new(),
            created: sg_model::Timestamp(1),
            updated: sg_model::Timestamp(1),
        };
        let old_vault = Vault::new(made.key.clone());
        let seal = |place: &str, secret: &SecretBytes| old_vault.seal(&key, place, secret);
        let value = record.to_store(&seal).encode_to_vec();
        assert!(
            memchr(&value, b"canary").is_none(),
            "sealed from the beginning"
        );
        store.txn(Txn::new().put(&key, value)).await.unwrap();

        let old = std::fs::read_to_string(&path).unwrap();
        let new = format!("{}\n", sg_runtime::crypto::hex(&[7; 32]));
        write(&path, &format!("{new}{old}"));
        let both = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let done = round(&store, &both.key).await.unwrap();
        assert_eq!((done.renewed, done.left), (3, 0));

        write(&path, &new);
        let after = bootstrap::establish(&store, dir.path(), &path)
            .await
            .unwrap();
        let stored = store.get(&key).await.unwrap().1.unwrap();
        assert!(memchr(&stored.value, b"canary").is_none());
        let stored = wire::Destination::decode(stored.value.as_ref()).unwrap();
        let vault = Vault::new(after.key);
        let open = |place: &str, sealed: &[u8]| vault.open(&key, place, sealed);
        assert_eq!(
            DestinationRecord::from_store(&stored, &open).unwrap(),
            record
        );
        let old_open = |place: &str, sealed: &[u8]| old_vault.open(&key, place, sealed);
        assert!(DestinationRecord::from_store(&stored, &old_open).is_err());
        // Nor do they open under the key of another destination.
        let other = keys::destination(&gateway, &DestinationId::new("D2").unwrap());
        let moved = |place: &str, sealed: &[u8]| vault.open(&other, place, sealed);
        assert!(DestinationRecord::from_store(&stored, &moved).is_err());
    }

    fn memchr(bytes: &[u8], part: &[u8]) -> Option<usize> {
        bytes.windows(part.len()).position(|window| window == part)
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
