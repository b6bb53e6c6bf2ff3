//! Token buckets: what a peer may do at a time and in the long run; and the names of all limits, with
//! counters of what each has refused.

use std::time::{Duration, Instant};

use crate::config::{Rate, Rates};

/// A bucket that fills with time. Counts in millionths, so that short times are not lost.
#[derive(Debug)]
pub(crate) struct Bucket {
    rate: Rate,
    micro: u64,
    filled: Instant,
}

const ONE: u64 = 1_000_000;

impl Bucket {
    pub(crate) fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            micro: u64::from(rate.burst) * ONE,
            filled: now,
        }
    }

    /// Takes one token; false when there is none.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        if self.micro < ONE {
            self.fill(now);
        }
        match self.micro.checked_sub(ONE) {
            Some(rest) => {
                self.micro = rest;
                true
            }
            None => false,
        }
    }

    /// Whether there is no token.
    pub(crate) fn is_empty(&mut self, now: Instant) -> bool {
        if self.micro < ONE {
            self.fill(now);
        }
        self.micro < ONE
    }

    /// When there will be a token; `None` if never.
    pub(crate) fn next_at(&self) -> Option<Instant> {
        let missing = ONE.saturating_sub(self.micro);
        if missing > 0 && self.rate.burst == 0 {
            return None;
        }
        let wait = missing.checked_div(self.rate.per_second.into());
        // Rounded up.
        wait.map(|micros| self.filled + Duration::from_micros(micros + 1))
    }

    /// Gives tokens back, up to the burst.
    pub(crate) fn earn(&mut self, tokens: u32) {
        let full = u64::from(self.rate.burst) * ONE;
        self.micro = full.min(self.micro + u64::from(tokens) * ONE);
    }

    fn fill(&mut self, now: Instant) {
        // Commands bring an older time than input does: what was filled up to there is not filled again.
        let now = now.max(self.filled);
        let micros = now.saturating_duration_since(self.filled).as_micros();
        // A day of filling is more than any burst.
        let micros = u64::try_from(micros).unwrap_or(u64::MAX).min(86_400 * ONE);
        self.filled = now;
        let full = u64::from(self.rate.burst) * ONE;
        self.micro = full.min(self.micro + micros * u64::from(self.rate.per_second));
    }
}

/// All buckets of one tunnel.
#[derive(Debug)]
pub(crate) struct Guard {
    pub(crate) opens: Bucket,
    pub(crate) failed_opens: Bucket,
    pub(crate) excess_opens: Bucket,
    pub(crate) early_resets: Bucket,
    pub(crate) own_failed_opens: Bucket,
    pub(crate) own_early_resets: Bucket,
    pub(crate) pings: Bucket,
    pub(crate) controls: Bucket,
    pub(crate) empty_data: Bucket,
    pub(crate) empty_windows: Bucket,
    pub(crate) useless: Bucket,
    pub(crate) datagrams: Bucket,
}

impl Guard {
    pub(crate) fn new(rates: &Rates, now: Instant) -> Self {
        Self {
            opens: Bucket::new(rates.opens, now),
            failed_opens: Bucket::new(rates.failed_opens, now),
            excess_opens: Bucket::new(rates.excess_opens, now),
            early_resets: Bucket::new(rates.early_resets, now),
            own_failed_opens: Bucket::new(rates.own_failed_opens, now),
            own_early_resets: Bucket::new(rates.own_early_resets, now),
            pings: Bucket::new(rates.pings, now),
            controls: Bucket::new(rates.controls, now),
            empty_data: Bucket::new(rates.empty_data, now),
            empty_windows: Bucket::new(rates.empty_windows, now),
            useless: Bucket::new(rates.useless, now),
            datagrams: Bucket::new(rates.datagrams, now),
        }
    }
}

/// A limit of the tunnel. Each has one word, the label of its metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Opens here for which the peer had no stream left.
    Streams,
    /// OPENs beyond [`Rates::opens`], refused with LIMIT.
    Opens,
    /// OPENs that were refused with LIMIT because too many before them had failed.
    FailedOpens,
    /// OPENs that were refused with LIMIT because too many waited for an answer.
    PendingOpens,
    /// Refused OPENs beyond [`Rates::excess_opens`]: the tunnel ended.
    ExcessOpens,
    /// Streams that the peer opened and reset at once, beyond [`Rates::early_resets`]: the tunnel ended.
    EarlyResets,
    /// Opens here that were refused because too many before them had failed.
    OwnFailedOpens,
    /// RESETs here that waited for the peer's answer to the OPEN.
    HeldResets,
    /// PING frames: the tunnel ended.
    Pings,
    /// CONTROL frames: the tunnel ended.
    Controls,
    /// CONTROL messages that nobody took: the tunnel ended.
    ControlBacklog,
    /// CONTROL messages here that found the queue full.
    ControlQueue,
    /// DATA frames without payload: the tunnel ended.
    EmptyData,
    /// WINDOW frames that raise nothing: the tunnel ended.
    EmptyWindows,
    /// Other frames without effect: the tunnel ended.
    UselessFrames,
    /// A payload, metadata or message that is too long: the tunnel ended.
    FrameSize,
    /// SETTINGS that did not come in time: the tunnel ended.
    SettingsTime,
    /// Datagrams that came faster than [`Rates::datagrams`].
    DatagramRate,
    /// Datagrams that nobody read in time for the queue of their flow or tunnel.
    DatagramsUnread,
    /// Datagrams to send for which the queue of their flow or tunnel was full.
    DatagramsUnsent,
    /// Datagrams to send that had waited too long when their turn came.
    DatagramAge,
    /// Datagrams to send while the tunnel had no connection.
    DatagramsDetached,
    /// Datagrams to send that are longer than any may be.
    DatagramLength,
    /// Datagrams for a flow that had ended.
    DatagramsLate,
    /// Windows that did not grow because [`crate::Config::growth_budget`] was used up.
    TunnelGrowth,
    /// Windows that did not grow because the [`crate::Budget`] of the process was used up.
    ProcessGrowth,
    /// DATA that waited because the tunnel keeps as many unacknowledged bytes as it may at present.
    TunnelLog,
    /// The same, because the [`crate::Budget`] of the process was used up.
    ProcessLog,
    /// Writers here that waited because all streams together had queued [`crate::Config::send_queues`].
    TunnelQueues,
    /// The same, because the [`crate::Budget`] of the process was used up.
    ProcessQueues,
}

impl Limit {
    /// All of them, in the order in which they are declared.
    pub const ALL: [Self; 30] = [
        Self::Streams,
        Self::Opens,
        Self::FailedOpens,
        Self::PendingOpens,
        Self::ExcessOpens,
        Self::EarlyResets,
        Self::OwnFailedOpens,
        Self::HeldResets,
        Self::Pings,
        Self::Controls,
        Self::ControlBacklog,
        Self::ControlQueue,
        Self::EmptyData,
        Self::EmptyWindows,
        Self::UselessFrames,
        Self::FrameSize,
        Self::SettingsTime,
        Self::DatagramRate,
        Self::DatagramsUnread,
        Self::DatagramsUnsent,
        Self::DatagramAge,
        Self::DatagramsDetached,
        Self::DatagramLength,
        Self::DatagramsLate,
        Self::TunnelGrowth,
        Self::ProcessGrowth,
        Self::TunnelLog,
        Self::ProcessLog,
        Self::TunnelQueues,
        Self::ProcessQueues,
    ];

    /// The word for metrics.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Streams => "streams",
            Self::Opens => "opens",
            Self::FailedOpens => "failed-opens",
            Self::PendingOpens => "pending-opens",
            Self::ExcessOpens => "excess-opens",
            Self::EarlyResets => "early-resets",
            Self::OwnFailedOpens => "own-failed-opens",
            Self::HeldResets => "held-resets",
            Self::Pings => "pings",
            Self::Controls => "controls",
            Self::ControlBacklog => "control-backlog",
            Self::ControlQueue => "control-queue",
            Self::EmptyData => "empty-data",
            Self::EmptyWindows => "empty-windows",
            Self::UselessFrames => "useless-frames",
            Self::FrameSize => "frame-size",
            Self::SettingsTime => "settings-time",
            Self::DatagramRate => "datagram-rate",
            Self::DatagramsUnread => "datagrams-unread",
            Self::DatagramsUnsent => "datagrams-unsent",
            Self::DatagramAge => "datagram-age",
            Self::DatagramsDetached => "datagrams-detached",
            Self::DatagramLength => "datagram-length",
            Self::DatagramsLate => "datagrams-late",
            Self::TunnelGrowth => "tunnel-growth",
            Self::ProcessGrowth => "process-growth",
            Self::TunnelLog => "tunnel-log",
            Self::ProcessLog => "process-log",
            Self::TunnelQueues => "tunnel-queues",
            Self::ProcessQueues => "process-queues",
        }
    }
}

/// How often each limit refused, dropped or ended something.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LimitCounts([u64; Limit::ALL.len()]);

impl LimitCounts {
    pub(crate) fn count(&mut self, limit: Limit, times: u64) {
        self.0[limit as usize] += times;
    }

    pub(crate) fn get(&self, limit: Limit) -> u64 {
        self.0[limit as usize]
    }
}

/// Counts for one tunnel: most tunnels meet no limit, and hold no counters.
#[derive(Debug, Default)]
pub(crate) struct LimitCounter(Option<Box<LimitCounts>>);

impl LimitCounter {
    pub(crate) fn count(&mut self, limit: Limit, times: u64) {
        if times > 0 {
            self.0.get_or_insert_default().count(limit, times);
        }
    }

    pub(crate) fn counts(&self) -> LimitCounts {
        self.0.as_deref().copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    #[test]
    fn every_limit_stands_at_its_place_and_has_a_word_of_its_own() {
        let mut words: Vec<&str> = Limit::ALL.iter().map(|l| l.word()).collect();
        for (i, limit) in Limit::ALL.into_iter().enumerate() {
            assert_eq!(limit as usize, i);
        }
        words.sort_unstable();
        words.dedup();
        assert_eq!(words.len(), Limit::ALL.len());
    }

    #[test]
    fn a_bucket_allows_its_burst_and_then_its_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(Rate::new(10, 5), start);
        assert!((0..5).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        assert!(!bucket.take(start + Duration::from_millis(99)));
        let mut taken = 0;
        for ms in 100..=1100 {
            taken += u32::from(bucket.take(start + Duration::from_millis(ms)));
        }
        assert_eq!(taken, 11);
        let next = bucket.next_at().unwrap();
        assert!(!bucket.take(next - Duration::from_micros(2)) && bucket.take(next));
        assert_eq!(Bucket::new(Rate::new(5, 0), start).next_at(), None);
        let late = start + Duration::from_secs(1_000_000);
        assert_eq!((0..20).filter(|_| bucket.take(late)).count(), 5);
    }
}
