//! Where a secret goes that the API shows once: into a file for its owner alone, or onto stdout.

use std::path::{Path, PathBuf};

use sg_runtime::files;

use crate::failure::Failure;
use crate::output::Format;

/// Which secret it is: its first characters say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TokenKind {
    /// Of a gateway, for its clients.
    Security,
    /// Of a new node.
    Join,
    /// Of an operator.
    Admin,
}

impl TokenKind {
    const ALL: [Self; 3] = [Self::Security, Self::Join, Self::Admin];

    fn prefix(self) -> &'static str {
        match self {
            Self::Security => "sgt_",
            Self::Join => "sgj_",
            Self::Admin => "sga_",
        }
    }

    fn described(self) -> &'static str {
        match self {
            Self::Security => "a security token",
            Self::Join => "a join token",
            Self::Admin => "an admin token",
        }
    }

    /// What a file holds: nothing but one token and white space around it.
    fn of(text: &[u8]) -> Option<Self> {
        let text = text.trim_ascii();
        let is_one_word = !text.iter().any(u8::is_ascii_whitespace);
        let fits = |kind: &Self| is_one_word && text.starts_with(kind.prefix().as_bytes());
        Self::ALL.into_iter().find(fits)
    }
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
    let found = TokenKind::of(&held);
    if found == Some(kind) || held.trim_ascii().is_empty() {
        return Ok(());
    }
    let what = found.map_or("something else", TokenKind::described);
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
