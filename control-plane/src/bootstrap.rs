//! The first thing a control plane does with its store: find what the installation shares, or,
//! being the first one ever, make it.
//!
//! The whole of it is made in one transaction, so of several first starts one wins and the others
//! find the winner's. The administrator's token is written to its file *before* the transaction,
//! under another name, so that no crash can lose it.

use std::io;
use std::path::{Path, PathBuf};

use prost::Message as _;
use sg_proto::convert::timestamp_to_wire;
use sg_proto::store as wire;
use sg_runtime::secret::Secret;
use sg_runtime::{crypto, files, sealed};

use crate::authority::{Authority, IssueError, Previous};
use crate::service::audit::Mark;
use crate::store::{KeyValue, Revision, Store, StoreError, Txn, TxnOutcome};
use crate::{ids, keys};

/// What the installation shares.
#[derive(Debug)]
pub struct Foundation {
    /// The certificate authority.
    pub authority: Authority,
    /// Seals secrets in the store.
    pub key: sealed::KeyRing,
    /// Revision of `meta/format`.
    pub format: Revision,
}

/// Why a control plane cannot use its store.
#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    /// The store failed; trying again may help if it says so.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The store is in use and its key is not here.
    #[error("the store holds an installation, but the key that opens it is not at {}; copy the first control plane's store.key there, or name it with --store-key-file", .0.display())]
    KeyMissing(PathBuf),
    /// The key is another one.
    #[error("the store cannot be opened with the key in {}: it belongs to another installation; give the first control plane's store.key with --store-key-file", .0.display())]
    KeyWrong(PathBuf),
    /// The key file cannot be used.
    #[error("{}", chain(.0))]
    KeyFile(#[from] sealed::KeyError),
    /// Something newer has laid the store out.
    #[error("the store was written by a newer version (format {0}; this one knows {known}); update this control plane", known = keys::FORMAT)]
    Format(u32),
    /// What is stored cannot be read.
    #[error("the store holds something unreadable under {key}: {problem}")]
    Unreadable {
        /// Where.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
    /// A file under the data directory cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No authority can be made.
    #[error(transparent)]
    Authority(#[from] IssueError),
}

impl BootstrapError {
    /// Whether waiting may help.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Store(StoreError::UnknownOutcome(_)) => true,
            Self::Store(error) => error.retryable(),
            _ => false,
        }
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let cause = error
        .source()
        .map(|cause| format!(": {cause}"))
        .unwrap_or_default();
    format!("{error}{cause}")
}

/// Finds or makes what the installation shares, and writes `ca.pem` (always) and `admin.token`
/// (by the one that made it) under `data_dir`.
///
/// # Errors
/// [`BootstrapError`].
pub async fn establish(
    store: &dyn Store,
    data_dir: &Path,
    key_file: &Path,
) -> Result<Foundation, BootstrapError> {
    let mut format = store.get(keys::META_FORMAT).await?.1;
    if format.is_none() {
        create(store, data_dir, key_file).await?;
        format = store.get(keys::META_FORMAT).await?.1;
    }
    let Some(format) = format else {
        let message = "what was just written is not there".to_owned();
        return Err(StoreError::Internal(message).into());
    };
    let foundation = open(store, &format, key_file).await?;
    let ca_file = data_dir.join("ca.pem");
    let pem = foundation.authority.trusted_pem();
    files::write_atomic(&ca_file, pem.as_bytes(), files::PUBLIC).map_err(|source| {
        BootstrapError::File {
            path: ca_file,
            source,
        }
    })?;
    settle_admin_token(store, data_dir).await?;
    Ok(foundation)
}

/// Makes everything, unless somebody else does first.
async fn create(store: &dyn Store, data_dir: &Path, key_file: &Path) -> Result<(), BootstrapError> {
    let key = sealed::KeyRing::load_or_create(key_file)?;
    let authority = Authority::generate()?;
    // An attempt whose outcome is unknown may still come about: its token must not be lost.
    let kept = Secret::read(&pending_token(data_dir)).ok();
    let kept = kept.filter(|token| token.expose().starts_with("sga_"));
    let token = kept.unwrap_or_else(|| ids::new_token("sga_"));
    let hash = crypto::hex(&ids::token_hash(token.expose()));
    let pending = pending_token(data_dir);
    let line = Secret::new(format!("{}\n", token.expose()));
    files::write_atomic(&pending, line.expose().as_bytes(), files::PRIVATE).map_err(|source| {
        BootstrapError::File {
            path: pending,
            source,
        }
    })?;
    let now = ids::now();
    let ca = authority_to_store(&key, &authority);
    let admin = wire::AdminToken {
        name: "admin".to_owned(),
        role: "admin".to_owned(),
        create_time: Some(timestamp_to_wire(now)),
        id: ids::new_id('T', now),
        created_by: "first-start".to_owned(),
        ..wire::AdminToken::default()
    };
    let name = wire::Reference {
        kind: "token".to_owned(),
        id: admin.id.clone(),
        name: admin.name.clone(),
        ..wire::Reference::default()
    };
    let audit = wire::Audit {
        time: Some(timestamp_to_wire(now)),
        principal: "control-plane".to_owned(),
        method: "first-start".to_owned(),
        object: "meta".to_owned(),
        number: 1,
        previous_sha256: Mark::NONE.sha256.to_vec(),
        ..wire::Audit::default()
    }
    .encode_to_vec();
    let head = Mark::NONE.next(&audit);
    let txn = Txn::new()
        .when_absent(keys::META_FORMAT)
        .when_absent(keys::META_CA)
        .put(
            keys::META_FORMAT,
            wire::Format {
                version: keys::FORMAT,
            }
            .encode_to_vec(),
        )
        .put(keys::META_EPOCH, wire::Epoch { epoch: 1 }.encode_to_vec())
        .put(keys::META_CA, ca.encode_to_vec())
        .put(keys::admin_token(&hash), admin.encode_to_vec())
        .put(keys::FIRST_TOKEN_NAME, name.encode_to_vec())
        .put(keys::audit(1), audit)
        .put(keys::CHAIN_HEAD, head.seal(&key, keys::CHAIN_HEAD));
    match store.txn(txn).await {
        Ok(TxnOutcome::Committed(_)) => {
            tracing::info!("first start: certificate authority and admin token made")
        }
        Ok(TxnOutcome::Conflict { .. }) => {
            tracing::info!("another control plane has made the first start")
        }
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

async fn open(
    store: &dyn Store,
    format: &KeyValue,
    key_file: &Path,
) -> Result<Foundation, BootstrapError> {
    let unreadable = |key, problem: &dyn std::fmt::Display| BootstrapError::Unreadable {
        key,
        problem: problem.to_string(),
    };
    let version = wire::Format::decode(format.value.as_ref())
        .map_err(|error| unreadable(keys::META_FORMAT, &error))?
        .version;
    if version > keys::FORMAT {
        return Err(BootstrapError::Format(version));
    }
    let key = sealed::KeyRing::load(key_file).map_err(|error| match error {
        sealed::KeyError::Read { ref source, .. } if source.kind() == io::ErrorKind::NotFound => {
            BootstrapError::KeyMissing(key_file.to_owned())
        }
        error => error.into(),
    })?;
    let entry = store.get(keys::META_CA).await?.1;
    let entry = entry.ok_or_else(|| unreadable(keys::META_CA, &"it is missing"))?;
    let ca = wire::CertificateAuthority::decode(entry.value.as_ref())
        .map_err(|error| unreadable(keys::META_CA, &error))?;
    let authority = open_authority(&key, ca).map_err(|fault| match fault {
        AuthorityFault::Sealed => BootstrapError::KeyWrong(key_file.to_owned()),
        AuthorityFault::Unusable(error) => error.into(),
    })?;
    let authority = authority.at_revision(entry.mod_revision.get());
    Ok(Foundation {
        authority,
        key,
        format: format.mod_revision,
    })
}

/// Why a stored authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthorityFault {
    /// Its key does not open.
    #[error("its key does not open with the store's key")]
    Sealed,
    /// What is in it cannot be used.
    #[error(transparent)]
    Unusable(IssueError),
}

/// An authority out of its stored value.
pub(crate) fn open_authority(
    key: &sealed::KeyRing,
    ca: wire::CertificateAuthority,
) -> Result<Authority, AuthorityFault> {
    let pem = key
        .open(keys::META_CA.as_bytes(), &ca.sealed_key)
        .map_err(|_| AuthorityFault::Sealed)?;
    let pem = std::str::from_utf8(pem.expose()).map_err(|_| AuthorityFault::Sealed)?;
    let authority =
        Authority::from_parts(ca.certificate_der, pem).map_err(AuthorityFault::Unusable)?;
    let previous = (!ca.previous_der.is_empty()).then(|| Previous {
        certificate: ca.previous_der.into(),
        cross: ca.cross_der.into(),
    });
    Ok(authority.after(previous))
}

/// An authority as it is stored.
pub(crate) fn authority_to_store(
    key: &sealed::KeyRing,
    authority: &Authority,
) -> wire::CertificateAuthority {
    let previous = authority.previous();
    wire::CertificateAuthority {
        certificate_der: authority.certificate().to_vec(),
        sealed_key: key.seal(
            keys::META_CA.as_bytes(),
            authority.key_pem().expose().as_bytes(),
        ),
        previous_der: previous.map(|p| p.certificate.to_vec()).unwrap_or_default(),
        cross_der: previous.map(|p| p.cross.to_vec()).unwrap_or_default(),
    }
}

fn pending_token(data_dir: &Path) -> PathBuf {
    data_dir.join(".admin.token.new")
}

/// Gives the token of a first start its name if the store knows it, and drops it otherwise.
async fn settle_admin_token(store: &dyn Store, data_dir: &Path) -> Result<(), BootstrapError> {
    let pending = pending_token(data_dir);
    let Ok(token) = Secret::read(&pending) else {
        return Ok(());
    };
    let hash = crypto::hex(&ids::token_hash(token.expose()));
    let known = store.get(&keys::admin_token(&hash)).await?.1.is_some();
    let settled = if known {
        std::fs::rename(&pending, data_dir.join("admin.token"))
    } else {
        std::fs::remove_file(&pending)
    };
    settled.map_err(|source| BootstrapError::File {
        path: pending,
        source,
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::store::memory::MemoryStore;

    async fn start(
        store: &MemoryStore,
        dir: &Path,
        key: &Path,
    ) -> Result<Foundation, BootstrapError> {
        establish(store, dir, key).await
    }

    #[tokio::test]
    async fn the_first_start_makes_everything_and_the_second_finds_it() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let key = dir.path().join("store.key");
        let first = start(&store, dir.path(), &key).await.unwrap();
        let token = Secret::read(&dir.path().join("admin.token")).unwrap();
        let mode = std::fs::metadata(dir.path().join("admin.token"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let hash = crypto::hex(&ids::token_hash(token.expose()));
        assert!(
            store
                .get(&keys::admin_token(&hash))
                .await
                .unwrap()
                .1
                .is_some()
        );

        std::fs::remove_file(dir.path().join("admin.token")).unwrap();
        let second = start(&store, dir.path(), &key).await.unwrap();
        assert_eq!(
            first.authority.spki_sha256(),
            second.authority.spki_sha256()
        );
        assert!(
            !dir.path().join("admin.token").exists(),
            "made by the first start only"
        );
        let pem = std::fs::read_to_string(dir.path().join("ca.pem")).unwrap();
        assert_eq!(pem, second.authority.trusted_pem());
        assert!(!pem.contains("PRIVATE"));
    }

    #[tokio::test]
    async fn a_store_in_use_is_refused_without_its_key() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let key = dir.path().join("store.key");
        start(&store, dir.path(), &key).await.unwrap();
        let other = tempfile::tempdir().unwrap();
        let other_key = other.path().join("store.key");
        let error = start(&store, other.path(), &other_key).await.unwrap_err();
        assert!(matches!(error, BootstrapError::KeyMissing(_)), "{error}");
        sealed::Key::load_or_create(&other_key).unwrap();
        let error = start(&store, other.path(), &other_key).await.unwrap_err();
        assert!(matches!(error, BootstrapError::KeyWrong(_)), "{error}");
        assert!(!error.retryable());
        start(&store, other.path(), &key).await.unwrap();
    }

    #[tokio::test]
    async fn of_two_first_starts_one_wins() {
        let store = MemoryStore::new();
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let key = a.path().join("store.key");
        let (first, second) =
            tokio::join!(start(&store, a.path(), &key), start(&store, b.path(), &key));
        let (first, second) = (first.unwrap(), second.unwrap());
        assert_eq!(
            first.authority.spki_sha256(),
            second.authority.spki_sha256()
        );
        let tokens = [a.path(), b.path()].map(|dir| dir.join("admin.token").exists());
        assert_eq!(tokens.iter().filter(|made| **made).count(), 1);
        assert!(!pending_token(a.path()).exists() && !pending_token(b.path()).exists());
    }

    #[tokio::test]
    async fn an_answer_that_is_lost_loses_no_token() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let key = dir.path().join("store.key");
        store.faults().unknown_outcomes(1, true);
        let error = start(&store, dir.path(), &key).await.unwrap_err();
        assert!(error.retryable(), "{error}");
        start(&store, dir.path(), &key).await.unwrap();
        assert!(dir.path().join("admin.token").exists());
    }

    #[tokio::test]
    async fn every_attempt_of_a_first_start_uses_the_same_token() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let key = dir.path().join("store.key");
        store.faults().unknown_outcomes(1, false);
        start(&store, dir.path(), &key).await.unwrap_err();
        let first = Secret::read(&pending_token(dir.path())).unwrap();
        start(&store, dir.path(), &key).await.unwrap();
        let token = Secret::read(&dir.path().join("admin.token")).unwrap();
        assert_eq!(first.expose(), token.expose());
    }

    #[tokio::test]
    async fn a_newer_layout_is_refused() {
        let (store, dir) = (MemoryStore::new(), tempfile::tempdir().unwrap());
        let newer = wire::Format {
            version: keys::FORMAT + 1,
        };
        store
            .txn(Txn::new().put(keys::META_FORMAT, newer.encode_to_vec()))
            .await
            .unwrap();
        let error = start(&store, dir.path(), &dir.path().join("k"))
            .await
            .unwrap_err();
        assert!(matches!(error, BootstrapError::Format(_)), "{error}");
    }
}
