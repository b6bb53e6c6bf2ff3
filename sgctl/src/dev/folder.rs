//! Where a run keeps its state: the folder of `--dir`, which stays, or a temporary one, which does not.

use std::path::{Path, PathBuf};

use sg_runtime::files::{self, DirLock};
use tempfile::TempDir;

use crate::failure::Failure;

#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    temporary: Option<TempDir>,
    /// Two runs in one folder would fight over everything in it.
    _lock: DirLock,
}

impl Folder {
    pub(super) fn open(given: Option<&Path>) -> Result<Self, Failure> {
        let (path, temporary) = match given {
            Some(path) => {
                files::create_private_dir(path).map_err(|e| unusable(path, &e))?;
                (path.canonicalize().map_err(|e| unusable(path, &e))?, None)
            }
            None => {
                let temporary = tempfile::Builder::new()
                    .prefix("sgctl-dev-")
                    .tempdir()
                    .map_err(|error| Failure::local("cannot make a temporary folder", &error))?;
                (temporary.path().to_owned(), Some(temporary))
            }
        };
        let lock = DirLock::acquire(&path).map_err(|error| match error.kind() {
            std::io::ErrorKind::WouldBlock => in_use(&path),
            _ => unusable(&path, &error),
        })?;
        for part in ["control-plane", "node", "client", "logs", "run"] {
            let part = path.join(part);
            files::create_private_dir(&part).map_err(|error| unusable(&part, &error))?;
        }
        Ok(Self {
            path,
            temporary,
            _lock: lock,
        })
    }

    pub(super) fn join(&self, part: impl AsRef<Path>) -> PathBuf {
        self.path.join(part)
    }

    /// Removes the temporary folder.
    pub(super) fn close(self) -> Result<(), Failure> {
        match self.temporary {
            Some(temporary) => temporary
                .close()
                .map_err(|error| Failure::local("cannot remove the temporary folder", &error)),
            None => Ok(()),
        }
    }
}

fn in_use(path: &Path) -> Failure {
    let message = format!("another sgctl dev uses the folder {}", path.display());
    Failure::new(tonic::Code::FailedPrecondition, "FOLDER_IN_USE", message)
        .hint("another --dir, or end the other one")
}

fn unusable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::local(format!("cannot use the folder {}", path.display()), error)
}
