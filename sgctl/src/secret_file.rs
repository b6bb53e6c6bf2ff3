//! Where a secret goes that the API shows once: into a file for its owner alone, or onto stdout.

use std::path::{Path, PathBuf};

use sg_runtime::files;

use crate::failure::Failure;

/// Flag of commands whose answer carries a secret.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TokenOut {
    /// Write the token to this file (mode 0600) instead of stdout
    #[arg(long, value_name = "FILE")]
    pub(crate) token_out: Option<PathBuf>,
}

impl TokenOut {
    /// Finds out before the request whether the file can be written: afterwards the token would be
    /// lost.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        let Some(path) = &self.token_out else {
            return Ok(());
        };
        let file = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(path);
        file.map(drop).map_err(|error| cannot_write(path, &error))
    }

    /// Moves the secret out of the answer into the file, if there is one; answers whether it did.
    pub(crate) fn take(&self, secret: &mut String) -> Result<bool, Failure> {
        let Some(path) = &self.token_out else {
            return Ok(false);
        };
        if secret.is_empty() {
            return Ok(false);
        }
        write(path, secret)?;
        secret.clear();
        Ok(true)
    }
}

/// Writes a secret with mode 0600, replacing an older file.
pub(crate) fn write(path: &Path, secret: &str) -> Result<(), Failure> {
    files::write_atomic(path, format!("{secret}\n").as_bytes(), files::PRIVATE)
        .map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("cannot write {}", path.display()), error)
}
