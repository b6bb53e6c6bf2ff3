//! Sizes as people write them: `65536`, `64KiB`, `16MiB`, `2GiB`. One whole number, one unit; bytes
//! without a unit. Decimal units (`MB`) are refused rather than guessed at.

use std::fmt;
use std::str::FromStr;

const UNITS: [(&str, u64); 3] = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];

/// How it is written, for the end of a program's help.
pub const HELP: &str =
    "SIZE is a number of bytes, or a whole number with KiB, MiB or GiB, as 64KiB.";

/// A number of bytes that parses and prints in this form; use it as the type of a flag.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// The number of bytes.
    #[must_use]
    pub const fn get(self) -> u64 {
        self.0
    }
}

/// A text that is no size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "not a size: write a whole number, alone or with KiB, MiB or GiB, as 65536, 64KiB or 16MiB"
)]
pub struct ParseSizeError;

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        let (digits, unit) = UNITS
            .into_iter()
            .find_map(|(name, unit)| Some((text.strip_suffix(name)?, unit)))
            .unwrap_or((text, 1));
        // `parse` alone would take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(ParseSizeError);
        }
        let number: u64 = digits.parse().map_err(|_| ParseSizeError)?;
        number.checked_mul(unit).map(Self).ok_or(ParseSizeError)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match UNITS
            .into_iter()
            .find(|(_, unit)| self.0 >= *unit && self.0.is_multiple_of(*unit))
        {
            Some((name, unit)) => write!(f, "{}{name}", self.0 / unit),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn sizes_parse_and_print_the_same() {
        for (text, bytes) in [
            ("0", 0),
            ("1000", 1000),
            ("64KiB", 65_536),
            ("3MiB", 3 << 20),
            ("2GiB", 2 << 30),
        ] {
            let size: ByteSize = text.parse().unwrap();
            assert_eq!((size.get(), size.to_string().as_str()), (bytes, text));
        }
        assert_eq!("1024".parse::<ByteSize>().unwrap().to_string(), "1KiB");
    }

    #[test]
    fn what_could_mean_two_things_is_refused() {
        for text in [
            "",
            "KiB",
            "+1KiB",
            "-1",
            "1MB",
            "1 MiB",
            "1.5GiB",
            "1kib",
            "99999999999GiB",
        ] {
            assert_eq!(text.parse::<ByteSize>(), Err(ParseSizeError), "{text}");
        }
    }
}
