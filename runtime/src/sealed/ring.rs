//! Several keys in one file, so that a key can be replaced: the first one seals, all of them open.
//!
//! To rotate, a new key is written above the old one; once everything is sealed anew, the old one
//! is taken out.

use std::io;
use std::path::Path;

use super::{Key, KeyError, OpenError, open, seal};
use crate::secret::Secret;
use crate::{crypto, files};

/// Most keys in one file.
const MAX_KEYS: usize = 16;

/// The keys of a key file, newest first; at least one.
#[derive(Debug, Clone)]
pub struct KeyRing {
    newest: Key,
    older: Vec<Key>,
}

impl From<Key> for KeyRing {
    fn from(newest: Key) -> Self {
        Self {
            newest,
            older: Vec::new(),
        }
    }
}

impl KeyRing {
    /// Reads the key file at `path`: one key of 64 hexadecimal digits per line, newest first. Empty
    /// lines and those that begin with `#` say nothing.
    ///
    /// # Errors
    /// As [`Key::load`].
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let malformed = || KeyError::Malformed {
            path: path.to_owned(),
        };
        let text = Secret::read(path).map_err(|source| KeyError::Read {
            path: path.to_owned(),
            source,
        })?;
        if files::readable_by_others(path).unwrap_or(false) {
            tracing::warn!(path = %path.display(), "key file is readable by others; chmod 600 it");
        }
        let lines = text.expose().lines().map(str::trim);
        let lines = lines.filter(|line| !line.is_empty() && !line.starts_with('#'));
        let mut keys = Vec::new();
        for line in lines {
            let bytes = crypto::unhex(line).map(Secret::new);
            let key = bytes.and_then(|bytes| <[u8; 32]>::try_from(bytes.expose().as_slice()).ok());
            keys.push(key.map(Key::from_bytes).ok_or_else(malformed)?);
        }
        if keys.is_empty() || keys.len() > MAX_KEYS {
            return Err(malformed());
        }
        let newest = keys.remove(0);
        Ok(Self {
            newest,
            older: keys,
        })
    }

    /// Reads the key file, or makes it with one new key. Racing processes end with the same keys.
    ///
    /// # Errors
    /// As [`Key::load_or_create`].
    pub fn load_or_create(path: &Path) -> Result<Self, KeyError> {
        match Self::load(path) {
            Err(KeyError::Read { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                Key::load_or_create(path).map(Self::from)
            }
            result => result,
        }
    }

    /// How many keys there are.
    #[must_use]
    pub fn count(&self) -> usize {
        1 + self.older.len()
    }

    /// Encrypts with the newest key, as [`super::seal`].
    #[must_use]
    pub fn seal(&self, associated: &[u8], plaintext: &[u8]) -> Vec<u8> {
        seal(&self.newest, associated, plaintext)
    }

    /// Decrypts with whichever key fits.
    ///
    /// # Errors
    /// As [`super::open`].
    pub fn open(&self, associated: &[u8], sealed: &[u8]) -> Result<Secret<Vec<u8>>, OpenError> {
        let mut keys = std::iter::once(&self.newest).chain(&self.older);
        keys.find_map(|key| open(key, associated, sealed).ok())
            .ok_or(OpenError)
    }

    /// The same value under the newest key; `None` if it is already.
    ///
    /// # Errors
    /// As [`super::open`].
    pub fn renew(&self, associated: &[u8], sealed: &[u8]) -> Result<Option<Vec<u8>>, OpenError> {
        if open(&self.newest, associated, sealed).is_ok() {
            return Ok(None);
        }
        let value = self.open(associated, sealed)?;
        Ok(Some(self.seal(associated, value.expose())))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn file(keys: &[&Key]) -> (tempfile::TempDir, std::path::PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.key");
        let lines: Vec<_> = keys.iter().map(|key| crypto::hex(key.expose())).collect();
        files::write_atomic(
            &path,
            format!("# keys\n{}\n", lines.join("\n")).as_bytes(),
            files::PRIVATE,
        )
        .unwrap();
        (dir, path)
    }

    #[test]
    fn a_key_is_replaced_in_three_steps() {
        let (old, new) = (Key::generate(), Key::generate());
        let (_a, before) = file(&[&old]);
        let (_b, during) = file(&[&new, &old]);
        let (_c, after) = file(&[&new]);
        let [before, during, after] =
            [before, during, after].map(|path| KeyRing::load(&path).unwrap());
        let sealed = before.seal(b"place", b"secret");
        assert_eq!(during.open(b"place", &sealed).unwrap().expose(), b"secret");
        assert!(after.open(b"place", &sealed).is_err());
        let renewed = during.renew(b"place", &sealed).unwrap().unwrap();
        assert_eq!(during.renew(b"place", &renewed).unwrap(), None);
        assert_eq!(after.open(b"place", &renewed).unwrap().expose(), b"secret");
        assert!(during.renew(b"elsewhere", &sealed).is_err());
        assert_eq!((before.count(), during.count()), (1, 2));
    }

    #[test]
    fn a_file_with_a_bad_line_is_refused() {
        let (_dir, path) = file(&[&Key::generate()]);
        let good = std::fs::read_to_string(&path).unwrap();
        for bad in [
            "# nothing\n".to_owned(),
            format!("{good}abcd\n"),
            format!("{good}x\n"),
        ] {
            std::fs::write(&path, bad).unwrap();
            assert!(matches!(
                KeyRing::load(&path),
                Err(KeyError::Malformed { .. })
            ));
        }
    }
}
