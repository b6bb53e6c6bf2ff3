//! Durations and dates.

use std::time::Duration;

use sg_model::{Invalid, Timestamp};

/// A wire duration; negative ones are refused.
///
/// # Errors
/// When it is negative or out of range.
pub fn duration_from_wire(
    field: &'static str,
    wire: &pbjson_types::Duration,
) -> Result<Duration, Invalid> {
    match (u64::try_from(wire.seconds), u32::try_from(wire.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(Duration::new(seconds, nanos)),
        _ => Err(Invalid::new(field, "must be a duration of 0 or more")),
    }
}

/// A domain duration on the wire; saturates at the wire's limit of about 292 thousand million years.
#[must_use]
pub fn duration_to_wire(duration: Duration) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(duration.subsec_nanos()).unwrap_or_default(),
    }
}

/// A wire date; fractions of a millisecond are dropped.
///
/// # Errors
/// When it lies before 1970 or is out of range.
pub fn timestamp_from_wire(
    field: &'static str,
    wire: &pbjson_types::Timestamp,
) -> Result<Timestamp, Invalid> {
    let bad = || Invalid::new(field, "must be a date after 1970");
    let seconds = u64::try_from(wire.seconds).map_err(|_| bad())?;
    let nanos = u64::try_from(wire.nanos).map_err(|_| bad())?;
    let millis = seconds
        .checked_mul(1000)
        .and_then(|ms| ms.checked_add(nanos / 1_000_000))
        .ok_or_else(bad)?;
    Ok(Timestamp(millis))
}

/// A domain date on the wire.
#[must_use]
pub fn timestamp_to_wire(timestamp: Timestamp) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: i64::try_from(timestamp.0 / 1000).unwrap_or(i64::MAX),
        nanos: i32::try_from(timestamp.0 % 1000 * 1_000_000).unwrap_or_default(),
    }
}
