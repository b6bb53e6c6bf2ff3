//! Where a secret goes that the API shows once: into a file for its owner alone, or onto stdout.

use std::path::{Path, PathBuf};

use sg_runtime::files;
use sg_runtime::secret::TokenKind;

use crate::failure::Failure;
use crate::output::Format;

/// What a file holds, if that is nothing but one token and white space around it.
fn held_kind(held: &[u8]) -> Option<TokenKind> {
    let text = std::str::from_utf8(held).ok()?.trim();
    TokenKind::of(text).filter(|_| !text.contains(char::is_whitespace))
}

/// Flag of commands whose answer carries a secret.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct TokenOut {
    /// Write the token to this file (mode 0600) instead of stdout; replaces a token of the same kind, nothing else
    #[arg(long, value_name = "FILE")]
    pub(crate) token_out: Option<PathBuf>,
}

impl TokenOut {
    /// Refuses before the request what would lose the token after it: `-o name`, which prints none,
    /// unless a file takes it; a file that cannot be written, or that holds something else.
    pub(crate) fn check(&self, kind: TokenKind, format: Format) -> Result<(), Failure> {
        // A join token has no other name: there, -o name prints it.
        if self.token_out.is_none() && format == Format::Name && kind != TokenKind::Join {
            return Err(Failure::usage(
                "-o name cannot show the token; add --token-out FILE",
            ));
        }
        let Some(path) = &self.token_out else {
            return Ok(());
        };
        spare_others(path, kind)?;
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

/// Only an empty file or an older token of the same kind is replaced: anything else that the name leads to is
/// there nowhere else, perhaps.
fn spare_others(path: &Path, kind: TokenKind) -> Result<(), Failure> {
    // Reading what is no file, such as a pipe, might wait for ever.
    if !path.is_file() {
        return Ok(());
    }
    let held = std::fs::read(path)
        .map_err(|error| Failure::local(format!("cannot read {}", path.display()), &error))?;
    let found = held_kind(&held);
    if found == Some(kind) || held.trim_ascii().is_empty() {
        return Ok(());
    }
    let what = found.map_or_else(|| "something else".to_owned(), |kind| kind.to_string());
    Err(Failure::new(
        tonic::Code::Unknown,
        "LOCAL",
        format!("{} holds {what}; choose another file", path.display()),
    ))
}

/// Writes a secret with mode 0600, replacing an older file.
pub(crate) fn write(path: &Path, secret: &str) -> Result<(), Failure> {
    files::write_atomic(path, format!("{secret}\n").as_bytes(), files::PRIVATE)
        .map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("cannot write {}", path.display()), error)
}
