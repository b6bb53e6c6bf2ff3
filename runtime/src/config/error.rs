//! What is wrong with a configuration, in the words of whoever wrote it.

use std::io::{self, Write as _};
use std::path::PathBuf;

use super::EXIT_USAGE;

/// A configuration that cannot be used. The operator is to blame.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read the configuration file {} (--config): {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is no TOML.
    #[error("{} is not valid TOML: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What and where.
        message: String,
    },
    /// A value is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The flags are wrong, a value does not parse, or help was asked for.
    #[error(transparent)]
    Usage(clap::Error),
}

impl ConfigError {
    /// Prints the error (or the help) and ends the process.
    pub fn exit(self) -> ! {
        match self {
            Self::Usage(error) => error.exit(),
            other => exit_usage(&other),
        }
    }
}

/// One wrong value: which key, what it is, why it is wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key}: {problem} (value: {value}); {remedy}")]
pub struct Invalid {
    /// The flag, the variable, or the key and its file.
    pub key: String,
    /// The value as it was given, or a placeholder if it looks like a secret.
    pub value: String,
    /// Why it cannot be used.
    pub problem: String,
    /// What to do about it.
    pub remedy: String,
}

impl Invalid {
    /// Puts the four parts together.
    pub fn new(
        key: impl Into<String>,
        value: impl ToString,
        problem: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        let (problem, remedy) = (problem.into(), remedy.into());
        Self {
            key: key.into(),
            value: shown(&value.to_string()),
            problem,
            remedy,
        }
    }
}

/// The value, unless it is one long word as tokens and keys are: people paste them in wrong places.
fn shown(value: &str) -> String {
    let word = |text: &str| {
        text.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_-+/=".contains(&b))
    };
    if value
        .split(',')
        .any(|part| part.len() >= 32 && word(part) && !part.starts_with('/'))
    {
        "[not shown]".to_owned()
    } else {
        value.to_owned()
    }
}

/// Prints `error` with its causes to stderr and ends the process with [`EXIT_USAGE`].
pub fn exit_usage(error: &dyn std::error::Error) -> ! {
    let line = format!("error: {}\n", crate::telemetry::chain(error));
    if io::stderr().write_all(line.as_bytes()).is_err() {
        // Nobody reads it; the exit code still tells.
    }
    std::process::exit(EXIT_USAGE)
}
