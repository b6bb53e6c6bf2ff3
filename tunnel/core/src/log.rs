//! The logged bytes that this side has sent and the peer has not acknowledged: how many may there be,
//! and which must be sent again.
//!
//! Entries share memory with the batch that was written, so keeping them costs no copy. Offsets count
//! from the first logged byte of the tunnel, over all its connections.
//!
//! ```text
//!    0          acked               replay             end
//!    |   gone     |  kept, sent       |  kept, to send   |   not there yet
//!                 |<--------- retained ----------------->|<------ room ------> acked + limit
//! ```
//!
//! The limit follows what the link needs (protocol 211), because a fixed one would be a hidden window for
//! the whole tunnel. It is about DATA only: a reserve keeps other frames going.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::Bytes;

/// First limit, in bytes.
const START: u64 = 1024 * 1024;
const MIN: u64 = 256 * 1024;
const MAX: u64 = 16 * 1024 * 1024;
/// Bytes above the limit for frames other than DATA.
const RESERVE: u64 = 64 * 1024;
/// Round-trip times below this are taken as this: there the scheduling of tasks decides.
const RTT_FLOOR: Duration = Duration::from_millis(2);
/// Round-trip times within which a whole limit must be acknowledged for the limit to double.
const FAST: u32 = 4;
/// A limit of which a quarter is not used for so long is halved.
const PERIOD: Duration = Duration::from_secs(10);
/// How long logged bytes may stay unacknowledged without any progress.
const STUCK: Duration = Duration::from_secs(60);
/// Entries that an empty log may keep allocated.
const KEEP_ENTRIES: usize = 64;

#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Bytes>,
    acked: u64,
    end: u64,
    /// Where the replay stands: entry, and bytes of it that have been sent again.
    replay: Option<(usize, usize)>,
    limit: u64,
    /// DATA waited for room since the present turn began.
    blocked: bool,
    /// A turn ends when as much as the limit has been acknowledged.
    turn_end: u64,
    turn_start: Instant,
    /// Largest size in the present period.
    peak: u64,
    period_start: Instant,
    /// When the peer last acknowledged something, or the log was empty.
    progress: Instant,
    /// Nothing is kept, only counted.
    off: bool,
}

impl Log {
    /// `keep`: the tunnel is resumable.
    pub(crate) fn new(keep: bool, now: Instant) -> Self {
        Self {
            entries: VecDeque::new(),
            acked: 0,
            end: 0,
            replay: None,
            limit: START,
            blocked: false,
            turn_end: START,
            turn_start: now,
            peak: 0,
            period_start: now,
            progress: now,
            off: !keep,
        }
    }

    /// Forgets what is kept, for good: the tunnel is no longer resumable. Offsets go on counting.
    pub(crate) fn stop(&mut self) {
        if self.replay.is_none() {
            self.off = true;
            self.entries = VecDeque::new();
        }
    }

    /// Whether logged bytes are kept.
    pub(crate) fn keeps(&self) -> bool {
        !self.off
    }

    /// Bytes that are kept.
    pub(crate) fn retained(&self) -> u64 {
        if self.off { 0 } else { self.end - self.acked }
    }

    /// Bytes of DATA frames that may be sent now.
    pub(crate) fn room(&self) -> usize {
        if self.off {
            return usize::MAX;
        }
        usize::try_from(self.limit.saturating_sub(self.retained())).unwrap_or(usize::MAX)
    }

    /// Bytes of other frames that may be sent now.
    pub(crate) fn reserve(&self) -> usize {
        self.room().saturating_add(RESERVE as usize)
    }

    /// DATA waits for room in the log, not for the transport.
    pub(crate) fn block(&mut self) {
        self.blocked = true;
    }

    /// Keeps sent bytes.
    pub(crate) fn push(&mut self, bytes: Bytes, now: Instant) {
        if self.end == self.acked {
            self.progress = now;
            self.turn_start = now;
            self.turn_end = self.end + self.limit;
        }
        self.end += bytes.len() as u64;
        self.entries.push_back(bytes);
        self.peak = self.peak.max(self.end - self.acked);
    }

    /// Counts sent bytes that are not kept.
    pub(crate) fn count(&mut self, bytes: usize) {
        self.end += bytes as u64;
    }

    /// The peer has everything below `offset`. Returns whether that was news; `None` when it cannot be true
    /// (protocol 209).
    pub(crate) fn acknowledge(&mut self, offset: u64, rtt: Option<Duration>, now: Instant) -> Option<bool> {
        if offset < self.acked || offset > self.sent() {
            return None;
        }
        let news = offset > self.acked;
        if news {
            self.drop_front(offset - self.acked);
            self.acked = offset;
            self.progress = now;
            self.adapt(rtt, now);
        }
        Some(news)
    }

    /// A new connection: what the peer does not have yet will be sent again. False when `offset` cannot be
    /// true.
    pub(crate) fn resume(&mut self, offset: u64, now: Instant) -> bool {
        self.replay = None;
        if self.acknowledge(offset, None, now).is_none() {
            return false;
        }
        self.progress = now;
        self.turn_start = now;
        self.turn_end = self.acked + self.limit;
        self.blocked = false;
        self.replay = (!self.entries.is_empty()).then_some((0, 0));
        true
    }

    pub(crate) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// The next bytes to send again, at most `max`.
    pub(crate) fn next_replay(&mut self, max: usize) -> Option<Bytes> {
        let (index, done) = self.replay?;
        let entry = self.entries.get(index)?;
        let piece = entry.slice(done..entry.len().min(done + max));
        let done = done + piece.len();
        self.replay = if done < entry.len() {
            Some((index, done))
        } else if index + 1 < self.entries.len() {
            Some((index + 1, 0))
        } else {
            None
        };
        Some(piece)
    }

    /// When the peer has been silent about what it received for too long.
    pub(crate) fn stuck_at(&self) -> Option<Instant> {
        (self.retained() > 0).then(|| self.progress + STUCK)
    }

    /// Offset up to which the present connection has carried bytes.
    fn sent(&self) -> u64 {
        let Some((index, done)) = self.replay else {
            return self.end;
        };
        let waiting: usize = self.entries.iter().skip(index).map(Bytes::len).sum();
        self.end - (waiting - done) as u64
    }

    fn drop_front(&mut self, mut count: u64) {
        while let Some(front) = self.entries.front_mut().filter(|_| count > 0) {
            let length = front.len() as u64;
            let (index, done) = self.replay.unwrap_or_default();
            if length > count {
                #[allow(clippy::cast_possible_truncation)]
                let step = count as usize;
                *front = front.split_off(step);
                self.replay = self.replay.map(|_| {
                    (index, if index == 0 { done - step } else { done })
                });
                break;
            }
            count -= length;
            self.entries.pop_front();
            self.replay = self.replay.map(|_| (index - 1, done));
        }
        if self.entries.is_empty() && self.entries.capacity() > KEEP_ENTRIES {
            self.entries = VecDeque::new();
        }
    }

    fn adapt(&mut self, rtt: Option<Duration>, now: Instant) {
        if self.acked >= self.turn_end {
            let taken = now.saturating_duration_since(self.turn_start);
            let fast = rtt.unwrap_or_default().max(RTT_FLOOR) * FAST;
            if self.blocked && taken < fast {
                self.limit = (self.limit * 2).min(MAX);
            }
            self.blocked = false;
            self.turn_start = now;
            self.turn_end = self.acked + self.limit;
        }
        if now.saturating_duration_since(self.period_start) > PERIOD {
            if self.peak < self.limit / 4 {
                self.limit = (self.limit / 2).max(MIN);
            }
            self.peak = self.end - self.acked;
            self.period_start = now;
        }
    }
}
