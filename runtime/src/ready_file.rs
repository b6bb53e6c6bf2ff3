//! The file by which a daemon tells whoever started it that it is ready, and at which addresses:
//! one line of JSON, written whole, after everything is bound.

use std::io;
use std::path::Path;

use crate::files;

/// Writes `content` as one line of JSON to `path`, replacing an older one.
///
/// # Errors
/// The content cannot be serialised (`InvalidData`) or the file cannot be written.
pub fn write(path: &Path, content: &impl serde::Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(content)?;
    line.push(b'\n');
    files::write_atomic(path, &line, files::PUBLIC)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_line_of_json_replaces_an_older_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready.json");
        std::fs::write(&path, "old\nold\n").unwrap();
        write(&path, &serde_json::json!({"listen": "127.0.0.1:7400"})).unwrap();
        assert_eq!(
            std::fs::read_to_string(&path).unwrap(),
            "{\"listen\":\"127.0.0.1:7400\"}\n"
        );
    }
}
