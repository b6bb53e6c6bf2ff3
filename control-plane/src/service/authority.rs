//! The certificate authority that is in force, and how another one takes its place.
//!
//! It lies in the store, under one key. Every control plane follows that key ([`follow`]), so a rotation through one is a rotation of
//! all of them, without a restart.

use std::path::PathBuf;
use std::sync::Arc;

use prost::Message as _;
use sg_proto::store as wire;
use sg_runtime::files;
use sg_runtime::sealed::KeyRing;
use tokio::sync::watch;

use super::change::{Call, Change, RETRIES};
use super::outcome::Outcome;
use super::{Core, ServiceError};
use crate::authority::Authority;
use crate::bootstrap::{authority_to_store, open_authority};
use crate::keys;
use crate::push::Observed;
use crate::store::{KeyValue, Revision};
use crate::world::keeper::Views;

/// The authority in force. Clones share it.
#[derive(Debug, Clone)]
pub struct Current(watch::Receiver<Arc<Authority>>);

impl Current {
    /// One that is in force now, and where its successors are put.
    pub fn new(authority: Authority) -> (watch::Sender<Arc<Authority>>, Self) {
        let (sender, receiver) = watch::channel(Arc::new(authority));
        (sender, Self(receiver))
    }

    /// It, at this moment.
    pub fn get(&self) -> Arc<Authority> {
        Arc::clone(&self.0.borrow())
    }

    /// Waits until there is another one than was seen through this handle. Can be cancelled without loss; pending for ever
    /// once nobody follows the store.
    pub async fn changed(&mut self) {
        if self.0.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Lets [`Current::changed`] wait for what comes after this.
    pub fn mark_seen(&mut self) {
        self.0.mark_unchanged();
    }
}

/// Follows the store, for ever, and writes what is trusted to `ca_file`.
pub async fn follow(
    mut views: Views,
    ring: KeyRing,
    current: watch::Sender<Arc<Authority>>,
    ca_file: PathBuf,
) {
    let mut seen = Revision::NONE;
    loop {
        let entry = views.whole().stored(keys::META_CA).cloned();
        if let Some(entry) = entry.filter(|entry| entry.mod_revision != seen) {
            let before = current.borrow().trusted();
            match read(&ring, &entry) {
                Ok(authority) if authority.trusted() == before => seen = entry.mod_revision,
                Ok(authority) => {
                    seen = entry.mod_revision;
                    let lives = current.borrow().lives();
                    let authority = authority.with_lives(lives).at_revision(seen.get());
                    let pem = authority.trusted_pem();
                    current.send_replace(Arc::new(authority));
                    tracing::warn!("the certificate authority was changed");
                    let file = ca_file.clone();
                    let written = tokio::task::spawn_blocking(move || {
                        files::write_atomic(&file, pem.as_bytes(), files::PUBLIC)
                    });
                    if !matches!(written.await, Ok(Ok(()))) {
                        tracing::error!(path = %ca_file.display(), "the certificates of the authority could not be written");
                    }
                }
                Err(error) => {
                    seen = entry.mod_revision;
                    tracing::error!(%error, "the certificate authority in the store cannot be used; the present one stays");
                }
            }
        }
        views.changed().await;
    }
}

fn read(ring: &KeyRing, entry: &KeyValue) -> Result<Authority, ServiceError> {
    let stored = wire::CertificateAuthority::decode(entry.value.as_ref())?;
    open_authority(ring, stored).map_err(|error| ServiceError::Internal(error.to_string()))
}

/// A node that is not known to have a certificate of the present authority.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lagging {
    /// Its id.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Whether it is connected here.
    pub connected: bool,
}

impl Core {
    /// The nodes that the present authority's predecessor is still needed for, as far as is known here.
    pub fn lagging(&self, authority: &Authority, observed: &Observed) -> Vec<Lagging> {
        if authority.previous().is_none() {
            return Vec::new();
        }
        let (view, reports) = (self.views.now(), observed.reports());
        let lags = |node: &&Arc<crate::world::Stored<sg_proto::convert::store::NodeRecord>>| {
            let report = reports
                .get(&node.value.id)
                .filter(|report| report.connected);
            report.is_none_or(|report| report.issuer_sha256 != authority.spki_sha256())
        };
        let lagging = view.world.nodes().filter(lags).map(|node| Lagging {
            id: node.value.id.to_string(),
            name: node.value.name.to_string(),
            connected: reports
                .get(&node.value.id)
                .is_some_and(|report| report.connected),
        });
        lagging.collect()
    }

    /// Puts a new authority in the place of the present one, which stays trusted beside it.
    ///
    /// # Errors
    /// A rotation is under way already, or the store failed.
    pub async fn rotate_authority(&self, call: &Call) -> Result<Arc<Authority>, ServiceError> {
        self.change_authority(call, "rotated", |present| {
            if present.previous().is_some() {
                return Err(ServiceError::Precondition {
                    reason: "ROTATION_UNDER_WAY",
                    message: "the authority before the present one is still trusted; finish that rotation first (sgctl ca finish)".to_owned(),
                });
            }
            Ok(present.successor()?)
        })
        .await
    }

    /// Ends the trust in the authority before the present one.
    ///
    /// # Errors
    /// There is none, nodes still need it and it is not forced, or the store failed.
    pub async fn finish_authority(
        &self,
        call: &Call,
        force: bool,
    ) -> Result<Arc<Authority>, ServiceError> {
        self.change_authority(call, "finished", |present| {
            if present.previous().is_none() {
                return Err(ServiceError::Precondition {
                    reason: "NO_ROTATION",
                    message: "only one authority is trusted; there is no rotation to finish".to_owned(),
                });
            }
            let lagging = self.lagging(&present, &self.observed);
            if !force && !lagging.is_empty() {
                let names: Vec<_> = lagging.iter().map(|node| node.name.as_str()).take(10).collect();
                return Err(ServiceError::Precondition {
                    reason: "NODES_LAG",
                    message: format!(
                        "{} node(s) are not known to have a certificate of the present authority: {}; wait, or bring them \
                         back; with force they have to join anew",
                        lagging.len(),
                        names.join(", ")
                    ),
                });
            }
            Ok(present.after(None))
        })
        .await
    }

    async fn change_authority(
        &self,
        call: &Call,
        what: &'static str,
        change: impl Fn(Authority) -> Result<Authority, ServiceError>,
    ) -> Result<Arc<Authority>, ServiceError> {
        if self.replayed(call).await?.is_some() {
            return Ok(self.authority.get());
        }
        for _ in 0..RETRIES {
            let missing =
                || ServiceError::Internal("there is no authority in the store".to_owned());
            let entry = self.read(keys::META_CA).await?.ok_or_else(missing)?;
            let new = change(read(&self.key, &entry)?)?;
            let id = sg_runtime::crypto::hex(new.spki_sha256());
            let stored = authority_to_store(&self.key, &new);
            let change = Change::new(call, "meta/ca", id.as_str())
                .detail(format!("{what} sha256={id}"))
                .replace(keys::META_CA.to_owned(), entry.mod_revision, &stored);
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    self.views.reach(revision, super::change::OWN_CHANGE).await;
                    let lives = self.authority.get().lives();
                    return Ok(Arc::new(new.with_lives(lives)));
                }
                Outcome::Replayed(_) => return Ok(self.authority.get()),
                Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended())
    }
}
