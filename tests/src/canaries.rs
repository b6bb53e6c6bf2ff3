//! What must be seen nowhere: the keys that processes keep in files.

use std::path::Path;

use anyhow::{Context as _, Result};

/// Adds what must be kept secret of every key file under a folder: keys in hexadecimal, and the lines
/// of private keys.
pub(crate) fn of_key_files(folder: &Path, secrets: &mut Vec<String>) -> Result<()> {
    /// Longest key file.
    const LONGEST: u64 = 16 * 1024;
    for entry in std::fs::read_dir(folder).context("folder")? {
        let entry = entry.context("folder")?;
        let kind = entry.file_type().context("kind of file")?;
        if kind.is_dir() {
            of_key_files(&entry.path(), secrets)?;
            continue;
        }
        let size = entry.metadata().context("size of file")?.len();
        let is_log = entry.path().extension().is_some_and(|kind| kind == "log");
        if !kind.is_file() || size > LONGEST || is_log {
            continue;
        }
        let Ok(text) = std::fs::read_to_string(entry.path()) else {
            continue;
        };
        let is_key = entry.path().extension().is_some_and(|kind| kind == "key");
        let mut inside = is_key;
        for line in text.lines().map(str::trim) {
            if line.starts_with("-----") {
                inside = line.contains("BEGIN") && line.contains("PRIVATE KEY");
            } else if inside && line.len() >= 32 {
                secrets.push(line.to_owned());
            }
        }
    }
    Ok(())
}
