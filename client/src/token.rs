//! The security token of one gateway. Whoever rotates it may write the new one into the file that the client was started
//! with; it is read again when a node refuses the old one, and at no other time.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use sg_runtime::secret::Secret;

use crate::options;

/// Where the token of one of several gateways stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenFile {
    /// The file of `--token-file`.
    pub path: PathBuf,
    /// Which of the gateways it is, from 0.
    pub place: usize,
    /// How many gateways the file is for.
    pub gateways: usize,
}

/// The token that is shown to nodes, and where a newer one may be found.
#[derive(Debug)]
pub struct Token {
    present: Mutex<Option<Secret<String>>>,
    file: Option<TokenFile>,
}

impl Token {
    /// The token that the client was started with.
    #[must_use]
    pub const fn new(present: Option<Secret<String>>, file: Option<TokenFile>) -> Self {
        Self {
            present: Mutex::new(present),
            file,
        }
    }

    /// The token to show.
    #[must_use]
    pub fn present(&self) -> Option<Secret<String>> {
        self.lock().clone()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.lock().is_none()
    }

    /// Looks for another token than the one that was refused; answers whether there is one to show now.
    pub async fn renew(&self, refused: &str) -> bool {
        let differs = |token: &Option<Secret<String>>| {
            token
                .as_ref()
                .is_some_and(|token| token.expose() != refused)
        };
        // Another tunnel of the gateway may have found it.
        if differs(&self.lock()) {
            return true;
        }
        let Some(file) = self.file.clone() else {
            return false;
        };
        let read = tokio::task::spawn_blocking(move || file.read());
        let found = read.await.ok().flatten();
        if !differs(&found) {
            return false;
        }
        *self.lock() = found;
        true
    }

    fn lock(&self) -> MutexGuard<'_, Option<Secret<String>>> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl TokenFile {
    fn read(&self) -> Option<Secret<String>> {
        // A pipe gave what it had at the start, and reading it again may wait for ever.
        if !is_regular(&self.path) {
            return None;
        }
        match options::read_tokens(&self.path, self.gateways) {
            Ok(tokens) => tokens.into_iter().nth(self.place).flatten(),
            Err(error) => {
                tracing::warn!(%error, "the token is refused, and its file cannot be read again");
                None
            }
        }
    }
}

fn is_regular(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file())
}
