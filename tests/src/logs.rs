//! What the processes have logged: JSON lines, as they write when stderr is no terminal.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde_json::Value;

/// The text of a log file; empty before the process has made it.
pub(crate) fn read(path: &Path) -> Result<String> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error).with_context(|| format!("log {}", path.display())),
    }
}

/// One line of a log.
#[derive(Debug, Clone)]
pub struct LogLine(Value);

impl LogLine {
    /// The lines of a log that are JSON.
    pub(crate) fn all(text: &str) -> Vec<Self> {
        text.lines()
            .filter_map(|line| serde_json::from_str(line).ok().map(Self))
            .collect()
    }

    /// A field of the event as text, whether it stands at the top or under `fields`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<String> {
        let value = self
            .0
            .get("fields")
            .and_then(|fields| fields.get(name))
            .or(self.0.get(name))?;
        match value {
            Value::String(text) => Some(text.clone()),
            other => Some(other.to_string()),
        }
    }

    /// The level in capitals.
    #[must_use]
    pub fn level(&self) -> String {
        self.field("level").unwrap_or_default().to_uppercase()
    }

    /// Whether any part of the line has this text.
    #[must_use]
    pub fn mentions(&self, text: &str) -> bool {
        self.0.to_string().contains(text)
    }

    fn is_access(&self) -> bool {
        self.field("target")
            .is_some_and(|target| target == "access")
    }
}

/// The line that a node or a client logs at the end of a stream.
#[derive(Debug, Clone)]
pub struct AccessLine(LogLine);

impl AccessLine {
    pub(crate) fn all(text: &str) -> Vec<Self> {
        LogLine::all(text)
            .into_iter()
            .filter(LogLine::is_access)
            .map(Self)
            .collect()
    }

    /// A field, empty when the line has none of that name.
    #[must_use]
    pub fn field(&self, name: &str) -> String {
        self.0.field(name).unwrap_or_default()
    }

    /// A number, 0 when the line has none of that name.
    #[must_use]
    pub fn number(&self, name: &str) -> u64 {
        self.field(name).parse().unwrap_or(0)
    }
}
