//! PING, PONG, round-trip time, and when a silent tunnel is dead.
//!
//! Any received byte is a sign of life, so that a saturated link never kills a tunnel; pings make
//! sure that there is something to receive.

use std::time::{Duration, Instant};

use crate::config::Config;

/// At most one ping per this time, however many streams are opened.
const MIN_GAP: Duration = Duration::from_millis(100);
/// A minimum RTT is forgotten after one to two of these.
const RTT_EPOCH: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) struct Keepalive {
    last_received: Instant,
    /// Since when there are streams; `None` while there are none.
    active_since: Option<Instant>,
    outstanding: Option<(u64, Instant)>,
    last_ping: Instant,
    /// A ping is wanted as soon as [`MIN_GAP`] allows.
    wanted: bool,
    /// A ping is due; it waits for the transport, no longer for the time.
    due: bool,
    next_value: u64,
    rtt: Option<Duration>,
    /// Minimum of this epoch and of the one before.
    minimum: [Option<Duration>; 2],
    epoch_start: Instant,
}

impl Keepalive {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            last_received: now,
            active_since: None,
            outstanding: None,
            last_ping: now.checked_sub(MIN_GAP).unwrap_or(now),
            wanted: true,
            due: false,
            next_value: 1,
            rtt: None,
            minimum: [None; 2],
            epoch_start: now,
        }
    }

    /// A new connection: its signs of life count from now, and no PONG of the old one will come.
    pub(crate) fn restart(&mut self, now: Instant) {
        *self = Self {
            next_value: self.next_value,
            rtt: self.rtt,
            active_since: self.active_since.map(|_| now),
            ..Self::new(now)
        };
    }

    pub(crate) fn on_received(&mut self, now: Instant) {
        self.last_received = now;
    }

    /// Tells whether there are streams.
    pub(crate) fn set_active(&mut self, active: bool, now: Instant) {
        if !active {
            self.active_since = None;
        } else if self.active_since.is_none() {
            self.active_since = Some(now);
        }
    }

    /// A stream is being opened: learn soon whether the peer is there.
    pub(crate) fn want_ping(&mut self) {
        self.wanted = true;
    }

    /// Whether a ping was sent and its PONG has not come.
    pub(crate) fn is_unanswered(&self) -> bool {
        self.outstanding.is_some()
    }

    /// Tells the time, so that a ping that is due is not asked for again.
    pub(crate) fn see_time(&mut self, config: &Config, now: Instant) {
        self.due = self.ping_at(config).is_some_and(|at| at <= now);
    }

    /// Whether a ping waits to be sent.
    pub(crate) fn is_due(&self) -> bool {
        self.due
    }

    /// The value of a ping that is due now. The caller sends it.
    pub(crate) fn take_ping(&mut self, config: &Config, now: Instant) -> Option<u64> {
        if self.ping_at(config)? > now {
            return None;
        }
        let value = self.next_value;
        self.next_value += 1;
        self.outstanding = Some((value, now));
        self.last_ping = now;
        self.wanted = false;
        self.due = false;
        Some(value)
    }

    /// Whether the PONG answers our ping.
    pub(crate) fn on_pong(&mut self, value: u64, now: Instant) -> bool {
        let Some((_, sent)) = self.outstanding.filter(|(v, _)| *v == value) else {
            return false;
        };
        self.outstanding = None;
        let rtt = now.saturating_duration_since(sent);
        self.rtt = Some(rtt);
        if now.saturating_duration_since(self.epoch_start) > RTT_EPOCH {
            self.minimum = [None, self.minimum[0]];
            self.epoch_start = now;
        }
        self.minimum[0] = Some(self.minimum[0].map_or(rtt, |m| m.min(rtt)));
        true
    }

    pub(crate) fn rtt(&self) -> Option<Duration> {
        self.rtt
    }

    pub(crate) fn min_rtt(&self) -> Option<Duration> {
        self.minimum.into_iter().flatten().min()
    }

    pub(crate) fn unanswered_for(&self, now: Instant) -> Option<Duration> {
        let (_, sent) = self.outstanding?;
        Some(now.saturating_duration_since(sent))
    }

    pub(crate) fn dead_at(&self, config: &Config) -> Instant {
        match self.active_since {
            Some(since) => self.last_received.max(since) + config.dead_active,
            None => self.last_received + config.dead_idle,
        }
    }

    pub(crate) fn next_timeout(&self, config: &Config) -> Instant {
        let dead = self.dead_at(config);
        match self.ping_at(config) {
            Some(ping) if !self.due => ping.min(dead),
            _ => dead,
        }
    }

    fn ping_at(&self, config: &Config) -> Option<Instant> {
        if self.outstanding.is_some() {
            return None;
        }
        let gap = if self.wanted {
            MIN_GAP
        } else if self.active_since.is_some() {
            config.ping_active
        } else {
            config.ping_idle
        };
        Some(self.last_ping + gap)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn a_tunnel_that_becomes_active_after_long_silence_gets_its_six_seconds() {
        let config = Config::default();
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start);
        let later = start + Duration::from_secs(40);
        keepalive.set_active(true, later);
        assert_eq!(keepalive.dead_at(&config), later + Duration::from_secs(6));
        keepalive.set_active(false, later);
        assert_eq!(keepalive.dead_at(&config), start + Duration::from_secs(45));
    }

    #[test]
    fn there_is_at_most_one_ping_outstanding_and_ten_a_second() {
        let config = Config::default();
        let start = Instant::now();
        let mut keepalive = Keepalive::new(start);
        assert_eq!(keepalive.take_ping(&config, start), Some(1));
        keepalive.want_ping();
        assert_eq!(
            keepalive.take_ping(&config, start + Duration::from_secs(9)),
            None
        );
        assert!(keepalive.on_pong(1, start + Duration::from_millis(3)));
        assert!(!keepalive.on_pong(1, start + Duration::from_millis(4)));
        assert_eq!(keepalive.rtt(), Some(Duration::from_millis(3)));
        let gap = start + MIN_GAP;
        assert_eq!(
            keepalive.take_ping(&config, start + Duration::from_millis(50)),
            None
        );
        assert_eq!(keepalive.take_ping(&config, gap), Some(2));
    }

    #[test]
    fn the_minimum_round_trip_time_is_forgotten_after_ten_seconds() {
        let config = Config::default();
        let mut now = Instant::now();
        let mut keepalive = Keepalive::new(now);
        let mut sample = |rtt: u64| {
            now += Duration::from_secs(3);
            keepalive.want_ping();
            let value = keepalive.take_ping(&config, now).unwrap_or_default();
            assert!(keepalive.on_pong(value, now + Duration::from_millis(rtt)));
            keepalive.min_rtt()
        };
        assert_eq!(sample(1), Some(Duration::from_millis(1)));
        assert_eq!(sample(50), Some(Duration::from_millis(1)));
        for _ in 0..4 {
            sample(50);
        }
        assert_eq!(sample(50), Some(Duration::from_millis(50)));
    }
}
