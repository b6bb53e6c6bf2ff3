//! Who this client is: the key under its data directory, whose hash is the client id. The directory
//! is locked, so that two processes never share an identity and push each other off the nodes.
//!
//! Without a directory to write to, a key of this run only serves, unless one was asked for.

use std::io;
use std::path::{Path, PathBuf};

use sg_runtime::files::{self, DirLock};
use sg_runtime::identity::{KeyFileError, KeyPair, self_signed};
use sg_runtime::telemetry::chain;
use sg_runtime::tls::Credentials;

const KEY_FILE: &str = "client.key";

/// The identity of this process. Dropping it unlocks the data directory.
#[derive(Debug)]
pub struct Identity {
    key: KeyPair,
    directory: Option<PathBuf>,
    _lock: Option<DirLock>,
}

/// A data directory that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// Another process works in it.
    #[error("another process uses the data directory {}; give this one its own with --data-dir", .0.display())]
    Locked(PathBuf),
    /// It cannot be made or written.
    #[error("cannot use the data directory {}", path.display())]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The key in it cannot be used.
    #[error(transparent)]
    Key(#[from] KeyFileError),
}

impl Identity {
    /// Takes the identity in `asked`, making it on the first start. Without `asked`, takes the one in
    /// the user's state directory, or one for this run only, with a warning.
    ///
    /// # Errors
    /// [`IdentityError`], about `asked` only.
    pub fn load(asked: Option<&Path>) -> Result<Self, IdentityError> {
        if let Some(directory) = asked {
            return Self::load_from(directory);
        }
        let reason = match default_directory() {
            Some(directory) => match Self::load_from(&directory) {
                Ok(identity) => return Ok(identity),
                Err(error) => chain(&error),
            },
            None => "there is no state directory".to_owned(),
        };
        tracing::warn!(
            reason,
            "this run uses a key of its own: the client id will be another one next time; choose a place with --data-dir"
        );
        Ok(Self {
            key: KeyPair::generate(),
            directory: None,
            _lock: None,
        })
    }

    fn load_from(directory: &Path) -> Result<Self, IdentityError> {
        let unusable = |source| IdentityError::Directory {
            path: directory.to_owned(),
            source,
        };
        files::create_private_dir(directory).map_err(unusable)?;
        let lock = DirLock::acquire(directory).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => IdentityError::Locked(directory.to_owned()),
            _ => unusable(error),
        })?;
        let key = KeyPair::load_or_create(&directory.join(KEY_FILE))?;
        Ok(Self {
            key,
            directory: Some(directory.to_owned()),
            _lock: Some(lock),
        })
    }

    /// The client id, which is the key's hash.
    #[must_use]
    pub fn client_id(&self) -> String {
        self.key.client_id()
    }

    /// Hash of the public half of the key.
    #[must_use]
    pub fn key_sha256(&self) -> [u8; 32] {
        self.key.spki_sha256()
    }

    /// Where its data are; `None` if the key is of this run only.
    #[must_use]
    pub fn directory(&self) -> Option<&Path> {
        self.directory.as_deref()
    }

    /// What proves the key in a handshake.
    #[must_use]
    pub fn credentials(&self) -> Credentials {
        let certificate = self_signed(&self.key, &self.client_id());
        Credentials::new(vec![certificate], self.key.clone())
    }
}

/// `$XDG_STATE_HOME`, or else `~/.local/state`.
fn default_directory() -> Option<PathBuf> {
    let directory = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let state = directory("XDG_STATE_HOME")
        .or_else(|| directory("HOME").map(|home| home.join(".local/state")))?;
    Some(state.join("secure-gateway").join("client"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_key_stays_and_the_directory_is_locked() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/client");
        let first = Identity::load(Some(&path)).unwrap();
        assert!(matches!(
            Identity::load(Some(&path)),
            Err(IdentityError::Locked(_))
        ));
        let id = first.client_id();
        drop(first);
        assert_eq!(Identity::load(Some(&path)).unwrap().client_id(), id);
        assert!(!files::readable_by_others(&path.join(KEY_FILE)).unwrap());
    }

    #[test]
    fn a_damaged_key_is_an_error_and_stays() {
        let directory = tempfile::tempdir().unwrap();
        let key = directory.path().join(KEY_FILE);
        std::fs::write(&key, "no key").unwrap();
        assert!(matches!(
            Identity::load(Some(directory.path())),
            Err(IdentityError::Key(_))
        ));
        assert_eq!(std::fs::read_to_string(&key).unwrap(), "no key");
    }

    #[test]
    fn a_directory_that_was_asked_for_must_be_usable() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("file");
        std::fs::write(&file, "").unwrap();
        let error = Identity::load(Some(&file.join("below"))).unwrap_err();
        assert!(
            matches!(error, IdentityError::Directory { .. }),
            "{error:?}"
        );
    }
}
