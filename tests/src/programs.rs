//! Where the programs are.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// A program of the product: in `SG_BIN_DIR`, or where cargo puts binaries beside this test.
///
/// # Errors
/// It has not been built.
pub fn product(name: &str) -> Result<PathBuf> {
    product_in(None, name)
}

/// The same, of another build: that in `folder`.
///
/// # Errors
/// It is not there.
pub(crate) fn product_in(folder: Option<&Path>, name: &str) -> Result<PathBuf> {
    let chosen = folder
        .map(Path::to_owned)
        .or_else(|| std::env::var_os("SG_BIN_DIR").map(PathBuf::from));
    let folder = match chosen {
        Some(folder) => folder,
        None => {
            let own = std::env::current_exe().context("path of the test")?;
            // target/debug/deps/e2e_x-0123 for a test, target/release/sg-bench for a program.
            let folder = own.parent().context("folder of the test")?;
            match folder.file_name().is_some_and(|name| name == "deps") {
                true => folder.parent().context("target folder")?.to_owned(),
                false => folder.to_owned(),
            }
        }
    };
    let path = folder.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: build it first, as ./test does, or set SG_BIN_DIR",
            path.display()
        );
    }
    Ok(path)
}

/// A program of the system.
///
/// # Errors
/// It is not installed; the error names it.
pub fn debian(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    // Not on everybody's PATH: the server programs, and PostgreSQL's own folder per version.
    folders.extend(["/usr/sbin", "/usr/bin", "/sbin"].map(PathBuf::from));
    if let Ok(versions) = std::fs::read_dir("/usr/lib/postgresql") {
        folders.extend(versions.flatten().map(|entry| entry.path().join("bin")));
    }
    folders
        .into_iter()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not installed: ./test installs what is missing"))
}
