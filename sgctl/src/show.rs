//! Single values as tables show them: dates, durations, yes and no.

use pbjson_types::{Duration, Timestamp};

/// A date in UTC to the second; `absent` if there is none.
pub(crate) fn date(timestamp: Option<&Timestamp>, absent: &str) -> String {
    let text = timestamp
        .and_then(|t| serde_json::to_value(t).ok())
        .and_then(|value| value.as_str().map(str::to_owned));
    match text {
        None => absent.to_owned(),
        Some(text) => match text.split_once('.') {
            Some((seconds, _)) => format!("{seconds}Z"),
            None => text.replace("+00:00", "Z"),
        },
    }
}

/// A duration as flags take it; `absent` if there is none or it is 0.
pub(crate) fn duration(duration: Option<&Duration>, absent: &str) -> String {
    let parsed = duration.and_then(|d| {
        let seconds = u64::try_from(d.seconds).ok()?;
        let nanos = u32::try_from(d.nanos).ok()?;
        Some(std::time::Duration::new(seconds, nanos))
    });
    match parsed {
        Some(duration) if !duration.is_zero() => sg_runtime::duration::format(duration),
        _ => absent.to_owned(),
    }
}

pub(crate) fn yes_no(value: bool) -> String {
    if value { "yes" } else { "no" }.to_owned()
}

/// 0 means that there is no port.
pub(crate) fn address(host: &str, port: u32) -> String {
    match (host, port) {
        (_, 0) => String::new(),
        (host, port) if host.contains(':') && !host.starts_with('[') => format!("[{host}]:{port}"),
        (host, port) => format!("{host}:{port}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_end_at_the_second() {
        let at = |seconds, nanos| Timestamp { seconds, nanos };
        assert_eq!(
            date(Some(&at(1_764_000_000, 0)), "-"),
            "2025-11-24T16:00:00Z"
        );
        assert_eq!(
            date(Some(&at(1_764_000_000, 5_000_000)), "-"),
            "2025-11-24T16:00:00Z"
        );
        assert_eq!(date(None, "never"), "never");
    }

    #[test]
    fn addresses_and_durations() {
        assert_eq!(address("::1", 80), "[::1]:80");
        assert_eq!(address("db", 5432), "db:5432");
        assert_eq!(address("", 0), "");
        assert_eq!(
            duration(
                Some(&Duration {
                    seconds: 1,
                    nanos: 500_000_000
                }),
                "-"
            ),
            "1500ms"
        );
        assert_eq!(
            duration(
                Some(&Duration {
                    seconds: 0,
                    nanos: 0
                }),
                "none"
            ),
            "none"
        );
    }
}
