//! Logging: to stderr, as text on a terminal and as one JSON object per line otherwise.
//!
//! Levels: ERROR somebody must act · WARN works, but not as wanted · INFO the life of the process
//! and of its long-lived parts · DEBUG one line per connection, names and addresses · TRACE per
//! frame or packet. The one line per relayed stream has the target [`ACCESS`] and level INFO.

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

/// Target of the access lines: `tracing::info!(target: sg_runtime::telemetry::ACCESS, …)`.
pub const ACCESS: &str = "access";

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object per line.
    Json,
}

impl LogFormat {
    /// Text on a terminal, JSON otherwise.
    #[must_use]
    pub fn detect() -> Self {
        if io::stderr().is_terminal() {
            Self::Text
        } else {
            Self::Json
        }
    }
}

/// A filter as `info`, or `info,sg_relay=debug`: a level, and levels for targets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogFilter(String);

impl Default for LogFilter {
    fn default() -> Self {
        Self("info".to_owned())
    }
}

impl std::fmt::Display for LogFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for LogFilter {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        EnvFilter::builder()
            .parse(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|error| format!("{error}; write a level, as debug, or target=level,…"))
    }
}

/// Starts logging; `format` `None` means [`LogFormat::detect`]. Also sends panics to the log.
/// A second call in one process does nothing.
pub fn init(format: Option<LogFormat>, filter: &LogFilter, binary: &'static str) {
    let filter = EnvFilter::builder()
        .with_default_directive(LevelFilter::INFO.into())
        .parse_lossy(&filter.0);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr);
    let started = match format.unwrap_or_else(LogFormat::detect) {
        LogFormat::Text => builder.with_ansi(io::stderr().is_terminal()).try_init(),
        LogFormat::Json => builder
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .try_init(),
    };
    if started.is_ok() {
        log_panics(binary);
    }
}

fn log_panics(binary: &'static str) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = crate::tasks::panic_message(panic.payload());
        let place = panic
            .location()
            .map(ToString::to_string)
            .unwrap_or_default();
        tracing::error!(target: "panic", binary, place, "{message}");
    }));
}

/// An error with its causes, each once: `cannot read the key file k: permission denied`.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let part = error.to_string();
        // Some libraries print their cause as part of themselves.
        if !text.ends_with(&part) && write!(text, ": {part}").is_err() {
            break;
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[test]
    fn a_chain_names_every_cause_once() {
        assert_eq!(chain(&Outer(io::Error::other("inner"))), "outer: inner");
        assert_eq!(chain(&io::Error::other("alone")), "alone");
    }

    #[test]
    fn filters_are_checked_when_read() {
        for good in ["info", "debug", "warn,sg_relay=trace", "off"] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
        for bad in ["sg=loud", "info,=x"] {
            assert!(bad.parse::<LogFilter>().is_err(), "{bad}");
        }
    }
}
