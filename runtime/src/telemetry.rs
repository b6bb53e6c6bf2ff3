//! Logging: to stderr, as text on a terminal and as one JSON object per line otherwise.
//!
//! Levels: ERROR somebody must act · WARN works, but not as wanted · INFO the life of the process
//! and of its long-lived parts · DEBUG one line per connection, names and addresses · TRACE per
//! frame or packet. The one line per relayed stream has the target [`ACCESS`] and level INFO.
//! An event is one line without control characters, whatever is in its fields. Nobody who logs waits for
//! whoever reads (`writer`).

mod one_line;
mod writer;

use std::fmt::Write as _;
use std::io::{self, IsTerminal as _};

use tracing::Subscriber;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt as _;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::debug_fn;
use tracing_subscriber::util::SubscriberInitExt as _;

pub use writer::{Logging, lines_lost};

use writer::LineWriter;

/// Target of the access lines: `tracing::info!(target: sg_runtime::telemetry::ACCESS, …)`.
pub const ACCESS: &str = "access";
/// Target of the lines that are a copy of the audit trail. They are written at once.
pub const AUDIT: &str = "audit";

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
        // The filter takes any word that is no level for a target, and then everything else is silent.
        let is_level = |word: &str| LEVELS.iter().any(|level| level.eq_ignore_ascii_case(word));
        if bare_words(text).any(|word| !is_level(word)) {
            return Err(format!("no such level; {HOW_TO_WRITE}"));
        }
        EnvFilter::builder()
            .parse(text)
            .map(|_| Self(text.to_owned()))
            .map_err(|error| format!("{error}; {HOW_TO_WRITE}"))
    }
}

const LEVELS: [&str; 6] = ["error", "warn", "info", "debug", "trace", "off"];
const HOW_TO_WRITE: &str = "write error, warn, info, debug, trace, off, or target=level,…";

/// The parts of a filter that name no target.
fn bare_words(filter: &str) -> impl Iterator<Item = &str> {
    filter
        .split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty() && !part.contains('='))
}

impl LogFilter {
    fn directives(&self) -> EnvFilter {
        let builder = EnvFilter::builder();
        // Whoever sets levels for some targets only still has to see what somebody must act upon.
        let unnamed = match bare_words(&self.0).next() {
            None if !self.0.trim().is_empty() => "error,",
            _ => "",
        };
        builder
            .with_default_directive(LevelFilter::INFO.into())
            .parse_lossy(format!("{unnamed}{}", self.0))
    }
}

/// Starts logging; `format` `None` means [`LogFormat::detect`]. Also sends panics to the log.
/// A second call in one process changes nothing. Where the system gives no thread for the log, whoever logs writes.
pub fn init(format: Option<LogFormat>, filter: &LogFilter, binary: &'static str) -> Logging {
    let filter = filter.directives();
    let ansi = io::stderr().is_terminal();
    let format = format.unwrap_or_else(LogFormat::detect);
    let writer = LineWriter::start(io::stderr(), format).ok();
    let started = match (format, writer.clone()) {
        (LogFormat::Text, Some(writer)) => text(filter, writer, ansi).try_init(),
        (LogFormat::Json, Some(writer)) => json(filter, writer).try_init(),
        (LogFormat::Text, None) => text(filter, io::stderr, ansi).try_init(),
        (LogFormat::Json, None) => json(filter, io::stderr).try_init(),
    };
    if started.is_ok() {
        log_panics(binary);
    }
    Logging(writer)
}

fn text<W>(filter: EnvFilter, writer: W, ansi: bool) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(debug_fn(one_line::field).delimited(" "))
        .with_writer(writer)
        .with_ansi(ansi)
        .finish()
}

fn json<W>(filter: EnvFilter, writer: W) -> impl Subscriber + Send + Sync
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(one_line::JsonLines(writer))
        .json()
        .flatten_event(true)
        .with_current_span(false)
        .finish()
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
    #![allow(clippy::unwrap_used, clippy::unwrap_in_result)]

    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] io::Error);

    #[derive(Debug, Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn events(evil: &str) {
        tracing::info!(name = evil, display = %evil, debug = ?evil, bytes = ?evil.as_bytes(), "one {evil} two");
        let error = io::Error::other(evil.to_owned());
        tracing::warn!(%error, error_as_value = &error as &(dyn std::error::Error + 'static), "failed");
        let span = tracing::info_span!("span", inside = %evil);
        span.in_scope(|| tracing::info!("{evil}"));
    }

    #[test]
    fn a_word_that_is_no_level_is_refused_and_does_not_silence_the_process() {
        for bad in [
            "warning",
            "verbose",
            "info,fatal",
            "sg_relay",
            "5",
            "sg_relay=loud",
        ] {
            let problem = bad.parse::<LogFilter>().unwrap_err();
            assert!(
                problem.ends_with("write error, warn, info, debug, trace, off, or target=level,…"),
                "{bad}: {problem}"
            );
        }
        for good in [
            "error",
            "WARN",
            "Info",
            "debug",
            "trace",
            "OFF",
            "info,sg_relay=debug",
        ] {
            assert!(good.parse::<LogFilter>().is_ok(), "{good}");
        }
    }

    #[test]
    fn a_filter_of_targets_only_leaves_the_errors_of_all_others() {
        let directives = |text: &str| {
            let filter: LogFilter = text.parse().unwrap();
            filter.directives().to_string()
        };
        assert_eq!(directives("sg_relay=debug"), "sg_relay=debug,error");
        assert_eq!(directives("sg_relay=debug,off"), "sg_relay=debug,off");
        assert_eq!(directives("warn"), "warn");
    }

    #[test]
    fn threat_46_one_event_is_one_line_without_control_characters() {
        const EVENTS: usize = 3;
        let all: String = (0..0xa0)
            .chain(0x200e..0x2030)
            .chain(0x2066..0x206a)
            .chain([0x61c])
            .filter_map(char::from_u32)
            .collect();
        let evil = [
            "a\r\n2026-01-01T00:00:00Z  INFO forged: all is well",
            "\u{1b}[2J\u{1b}[31mred\u{1b}[0m",
            "\u{9b}31m \u{7f}\u{8}\u{0}",
            "x\u{2028}y\u{2029}z\u{202e}gnp.exe",
            "\",\"level\":\"ERROR\",\"forged\":\"",
            &all,
        ];
        for evil in evil {
            for as_json in [false, true] {
                let lines = Lines::default();
                let writer = lines.clone();
                let filter = EnvFilter::new("trace");
                let writer = move || writer.clone();
                if as_json {
                    tracing::subscriber::with_default(json(filter, writer), || events(evil));
                } else {
                    tracing::subscriber::with_default(text(filter, writer, false), || events(evil));
                }
                let out = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
                assert_eq!(out.lines().count(), EVENTS, "{out:?}");
                let rest = out.replace('\n', "");
                let raw = rest
                    .chars()
                    .find(|c| c.is_control() || ('\u{2028}'..='\u{202e}').contains(c));
                assert_eq!(raw, None, "{out:?}");
                if as_json {
                    for line in out.lines() {
                        let line: serde_json::Value = serde_json::from_str(line).unwrap();
                        assert!(
                            line["forged"].is_null() && line["level"] != "ERROR",
                            "{line}"
                        );
                    }
                    let first: serde_json::Value =
                        serde_json::from_str(out.lines().next().unwrap()).unwrap();
                    // Nothing is lost by it.
                    assert_eq!(first["name"], evil);
                }
            }
        }
    }

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
