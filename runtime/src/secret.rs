//! A value that must not be seen: it has no `Display`, its `Debug` shows nothing of it, and its
//! memory is wiped when it is dropped. It does not protect against a debugger or a core dump.

use std::fmt;
use std::io::{self, Read as _};
use std::path::Path;

use zeroize::Zeroize;

/// So long a file may be that holds one.
const LONGEST: u64 = 1 << 20;

/// Holds a secret. The only way to it is [`Secret::expose`], which is easy to search for.
pub struct Secret<T: Zeroize>(T);

impl<T: Zeroize> Secret<T> {
    /// Takes the secret over.
    pub const fn new(value: T) -> Self {
        Self(value)
    }

    /// The secret itself. Do not log it, do not put it into an error.
    pub const fn expose(&self) -> &T {
        &self.0
    }
}

impl Secret<String> {
    /// Reads a secret from a text file of up to 1 MiB; white space around it is dropped.
    ///
    /// # Errors
    /// Whatever reading gives, and `InvalidData` when the file is too long or nothing is left.
    pub fn read(path: &Path) -> io::Result<Self> {
        let mut whole = Self(String::new());
        let file = std::fs::File::open(path)?;
        let length = file.take(LONGEST + 1).read_to_string(&mut whole.0)?;
        if u64::try_from(length).is_ok_and(|length| length > LONGEST) {
            let problem = "the file is too long for a secret: more than 1 MiB";
            return Err(io::Error::new(io::ErrorKind::InvalidData, problem));
        }
        let trimmed = whole.0.trim();
        if trimmed.is_empty() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the file is empty",
            ));
        }
        Ok(Self(trimmed.to_owned()))
    }
}

impl<T: Zeroize> Drop for Secret<T> {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl<T: Zeroize + Clone> Clone for Secret<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// So that structures with a secret inside can derive `Debug`; shows a placeholder only.
impl<T: Zeroize> fmt::Debug for Secret<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl<T: Zeroize> From<T> for Secret<T> {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

/// What a token is for, as its first letters tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// For operators and their programs.
    Admin,
    /// For nodes, once.
    Join,
    /// For clients of a gateway.
    Security,
}

impl TokenKind {
    /// The kind of this token; `None` if it is none of ours.
    #[must_use]
    pub fn of(token: &str) -> Option<Self> {
        [Self::Admin, Self::Join, Self::Security]
            .into_iter()
            .find(|kind| token.starts_with(kind.prefix()))
    }

    /// What every token of this kind begins with.
    #[must_use]
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::Admin => "sga_",
            Self::Join => "sgj_",
            Self::Security => "sgt_",
        }
    }
}

/// With the article, as in `holds an admin token (sga_)`.
impl fmt::Display for TokenKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self {
            Self::Admin => "an admin token",
            Self::Join => "a join token",
            Self::Security => "a security token",
        };
        write!(f, "{name} ({})", self.prefix())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn debug_shows_nothing_of_the_value() {
        let secret = Secret::new("sgt_0123".to_owned());
        assert_eq!(format!("{secret:?}"), "[secret]");
        assert_eq!(secret.expose(), "sgt_0123");
    }

    #[test]
    fn read_trims_and_refuses_an_empty_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "  sgt_ab\n").unwrap();
        assert_eq!(Secret::read(&path).unwrap().expose(), "sgt_ab");
        std::fs::write(&path, "\n").unwrap();
        assert_eq!(
            Secret::read(&path).unwrap_err().kind(),
            io::ErrorKind::InvalidData
        );
        std::fs::write(&path, "a".repeat((1 << 20) + 1)).unwrap();
        let error = Secret::read(&path).unwrap_err();
        assert!(error.to_string().contains("more than 1 MiB"), "{error}");
    }
}
