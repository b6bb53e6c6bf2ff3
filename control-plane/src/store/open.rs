//! Opens the store that a URL names.

use std::path::PathBuf;
use std::sync::Arc;

use super::embedded::EmbeddedStore;
use super::etcd::EtcdStore;
use super::memory::MemoryStore;
use super::{Store, StoreError, StoreUrl};

/// The `--etcd-*` options of the control plane. They are refused with another kind of store.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// PEM file with the CAs that sign the members' certificates. Turns TLS on.
    pub etcd_ca: Option<PathBuf>,
    /// PEM file with the control plane's certificate for etcd; needs the key and the CA.
    pub etcd_cert: Option<PathBuf>,
    /// PEM file with the key of that certificate.
    pub etcd_key: Option<PathBuf>,
    /// The user to log in to etcd as; needs the password file.
    pub etcd_user: Option<String>,
    /// File with that user's password.
    pub etcd_password_file: Option<PathBuf>,
}

/// Opens the store that a URL names. For etcd this only reads the files of the options and does
/// not wait for the cluster; [`Store::health`] does that.
///
/// # Errors
/// [`StoreError::Invalid`] for options that do not fit, and what opening a file can fail with.
pub async fn open(url: &StoreUrl, options: &StoreOptions) -> Result<Arc<dyn Store>, StoreError> {
    if !matches!(url, StoreUrl::Etcd { .. }) {
        refuse_etcd_options(options)?;
    }
    match url {
        StoreUrl::Etcd { endpoints, prefix } => {
            Ok(Arc::new(EtcdStore::new(endpoints, prefix, options)?))
        }
        StoreUrl::Embedded(path) => {
            let path = path.clone();
            let opened = tokio::task::spawn_blocking(move || EmbeddedStore::open(&path))
                .await
                .map_err(|error| StoreError::Internal(format!("opening died: {error}")))??;
            Ok(Arc::new(opened))
        }
        StoreUrl::Memory => Ok(Arc::new(MemoryStore::new())),
    }
}

fn refuse_etcd_options(options: &StoreOptions) -> Result<(), StoreError> {
    let given = [
        ("--etcd-ca", options.etcd_ca.is_some()),
        ("--etcd-cert", options.etcd_cert.is_some()),
        ("--etcd-key", options.etcd_key.is_some()),
        ("--etcd-user", options.etcd_user.is_some()),
        ("--etcd-password-file", options.etcd_password_file.is_some()),
    ];
    match given.iter().find(|(_, given)| *given) {
        Some((name, _)) => Err(StoreError::Invalid(format!(
            "{name} is only for a store of the kind etcd://; leave it out or change --store"
        ))),
        None => Ok(()),
    }
}
