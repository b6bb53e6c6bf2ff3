//! What one direction of a link does to bytes, and the arithmetic of it: no sockets, no clock.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Most bytes of one connection and direction that are under way when no rate bounds them.
const UNDER_WAY: usize = 4 * 1024 * 1024;

/// Most bytes that travel as one.
const PIECE: usize = 64 * 1024;

/// Least bytes that travel as one where a rate makes pieces small, so that time is not spent on
/// bookkeeping.
const LEAST_PIECE: usize = 1024;

/// What one direction of a link does to bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    /// Bits per second that all connections share; `None` is as fast as the machine.
    pub rate: Option<u64>,
    /// How long a byte travels after it has been sent.
    pub delay: Duration,
    /// Up to this much more, by the seed. Bytes of a connection keep their order.
    pub jitter: Duration,
    /// Bytes of one connection that may wait to be sent. Beyond it the link reads no more, so the
    /// sender waits. The system's receive buffer comes on top, and is as small as it allows.
    pub queue: usize,
    /// Writes at most this many bytes at a time, the number by the seed; `Some(1)` is one by one.
    pub slice: Option<usize>,
}

impl Default for Shape {
    fn default() -> Self {
        Self {
            rate: None,
            delay: Duration::ZERO,
            jitter: Duration::ZERO,
            queue: 64 * 1024,
            slice: None,
        }
    }
}

impl Shape {
    /// A rate in bits per second and a delay, without jitter.
    #[must_use]
    pub fn line(rate: u64, delay: Duration) -> Self {
        Self {
            rate: Some(rate),
            delay,
            ..Self::default()
        }
    }

    /// A delay alone.
    #[must_use]
    pub fn delayed(delay: Duration) -> Self {
        Self {
            delay,
            ..Self::default()
        }
    }

    /// Bytes of one connection that may be under way: those that wait, and those that travel.
    pub(super) fn window(&self) -> usize {
        match self.rate {
            None => UNDER_WAY,
            Some(rate) => {
                let travels = self.delay + self.jitter;
                let bytes = u128::from(rate) * travels.as_micros() / 8_000_000;
                let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
                self.queue.saturating_add(bytes).max(1)
            }
        }
    }

    /// Most bytes to read at a time: half a millisecond's worth.
    pub(super) fn piece(&self) -> usize {
        match self.rate {
            None => PIECE,
            Some(rate) => usize::try_from(rate / 16_000)
                .unwrap_or(PIECE)
                .clamp(LEAST_PIECE, PIECE),
        }
    }

    /// How long it takes to send this many bytes.
    pub(super) fn sending(&self, bytes: usize) -> Duration {
        match self.rate {
            None => Duration::ZERO,
            Some(rate) => {
                let nanoseconds = bytes as u128 * 8_000_000_000 / u128::from(rate.max(1));
                Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
            }
        }
    }
}

/// The sender of one direction, which all its connections share: it sends one piece after the other.
#[derive(Debug)]
pub(super) struct Sender {
    free_at: Option<Instant>,
}

impl Sender {
    pub(super) fn new() -> Self {
        Self { free_at: None }
    }

    /// Sends a piece; answers when its last byte has left.
    pub(super) fn send(&mut self, now: Instant, shape: &Shape, bytes: usize) -> Instant {
        let start = self.free_at.map_or(now, |free| free.max(now));
        let left = start + shape.sending(bytes);
        self.free_at = Some(left);
        left
    }

    /// How long a piece given now waits before its first byte is sent.
    pub(super) fn waits(&self, now: Instant) -> Duration {
        self.free_at
            .map_or(Duration::ZERO, |free| free.saturating_duration_since(now))
    }
}

/// Reads a rate as people write it: `200mbit`, `1.5gbit`, `64kbit`, `9600bit`; in bits per second.
///
/// # Errors
/// It is not a positive number with one of these units.
pub fn parse_rate(text: &str) -> Result<u64> {
    const UNITS: [(&str, f64); 4] = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
    for (unit, factor) in UNITS {
        if let Some(number) = text.strip_suffix(unit) {
            let number: f64 = number.trim().parse().context("rate")?;
            let rate = number * factor;
            if !(1.0..=1e12).contains(&rate) {
                bail!("a rate is between 1bit and 1000gbit");
            }
            // In range, as the line above says.
            #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
            return Ok(rate as u64);
        }
    }
    bail!("a rate is a number and bit, kbit, mbit or gbit, as in 200mbit")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read() {
        assert_eq!(parse_rate("200mbit").ok(), Some(200_000_000));
        assert_eq!(parse_rate("1.5gbit").ok(), Some(1_500_000_000));
        assert_eq!(parse_rate("9600bit").ok(), Some(9600));
        for wrong in ["", "200", "0mbit", "-1mbit", "fast", "mbit", "9999gbit"] {
            assert!(parse_rate(wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_sender_sends_one_after_the_other_and_no_time_is_lost() {
        let shape = Shape::line(8_000_000, Duration::ZERO); // a byte each microsecond
        let start = Instant::now();
        let mut sender = Sender::new();
        assert_eq!(
            sender.send(start, &shape, 1000) - start,
            Duration::from_millis(1)
        );
        // Given while the first is still being sent: it waits.
        let soon = start + Duration::from_micros(10);
        assert_eq!(
            sender.send(soon, &shape, 500) - start,
            Duration::from_micros(1500)
        );
        // Given long after: it starts at once, and what was not used is gone.
        let late = start + Duration::from_secs(1);
        assert_eq!(
            sender.send(late, &shape, 500) - late,
            Duration::from_micros(500)
        );
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let line = Shape::line(200_000_000, Duration::from_millis(10));
        assert_eq!(line.window(), 64 * 1024 + 250_000);
        assert_eq!(
            Shape::delayed(Duration::from_secs(3600)).window(),
            UNDER_WAY
        );
        assert!(Shape::line(1, Duration::ZERO).window() > 0);
    }
}
