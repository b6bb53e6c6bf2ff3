//! Durations as people write them: `500ms`, `30s`, `5m`, `24h`. One number, one unit; no sums.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// How it is written, for the end of a program's help.
pub const HELP: &str = "DURATION is a whole number with a unit, as 500ms, 30s, 5m or 24h.";

/// A duration that parses and prints in this form; use it as the type of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct HumanDuration(pub Duration);

impl HumanDuration {
    /// The duration.
    #[must_use]
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl From<HumanDuration> for Duration {
    fn from(duration: HumanDuration) -> Self {
        duration.0
    }
}

impl FromStr for HumanDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, ParseDurationError> {
        parse(text).map(Self)
    }
}

impl fmt::Display for HumanDuration {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.0.as_millis();
        match [(3_600_000, "h"), (60_000, "m"), (1000, "s")]
            .into_iter()
            .find(|(unit, _)| millis.is_multiple_of(*unit) && millis > 0)
        {
            Some((unit, name)) => write!(f, "{}{name}", millis / unit),
            None if millis == 0 => f.write_str("0s"),
            None => write!(f, "{millis}ms"),
        }
    }
}

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a duration: write a whole number and a unit, as 500ms, 30s, 5m or 24h")]
pub struct ParseDurationError;

/// Reads a duration; usable as a clap value parser. A bare `0` needs no unit.
///
/// # Errors
/// [`ParseDurationError`] for anything but digits with `ms`, `s`, `m` or `h`, and for more than
/// about 584 million years.
pub fn parse(text: &str) -> Result<Duration, ParseDurationError> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits).ok_or(ParseDurationError)?;
    let scale = match unit {
        "ms" => 1,
        "s" => 1000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(ParseDurationError),
    };
    let number: u64 = number.parse().map_err(|_| ParseDurationError)?;
    number
        .checked_mul(scale)
        .map(Duration::from_millis)
        .ok_or(ParseDurationError)
}

/// The shortest exact form of whole milliseconds; what is below a millisecond is cut off.
#[must_use]
pub fn format(duration: Duration) -> String {
    HumanDuration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_is_read_and_printed_back() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("5m", 300_000),
            ("24h", 86_400_000),
            ("0s", 0),
        ] {
            assert_eq!(parse(text), Ok(Duration::from_millis(millis)), "{text}");
            assert_eq!(format(Duration::from_millis(millis)), text);
        }
        assert_eq!(format(Duration::from_millis(1500)), "1500ms");
        assert_eq!(format(Duration::from_secs(90)), "90s");
        assert_eq!(parse("0"), Ok(Duration::ZERO));
    }

    #[test]
    fn anything_else_is_refused() {
        for text in [
            "",
            "s",
            "5",
            "-5s",
            "1.5s",
            "5 s",
            "5d",
            "1m30s",
            "٣s",
            "99999999999999999999s",
        ] {
            assert_eq!(parse(text), Err(ParseDurationError), "{text:?}");
        }
    }
}
