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
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes};

use crate::budget::{Budget, Share};
use crate::connection::give_back;

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
/// How long logged bytes may stay unacknowledged without any progress. More than a write may stand still, so
/// that a link that takes nothing detaches the tunnel before its silence ends it.
const STUCK: Duration = Duration::from_secs(90);
/// Entries that an empty log may keep allocated.
const KEEP_ENTRIES: usize = 64;

/// The process budget is asked for so many bytes at a time.
const STEP: u64 = 256 * 1024;
/// It gets back what is more than this above what is wanted.
const SPARE: u64 = 1024 * 1024;

#[derive(Debug)]
pub(crate) struct Log {
    entries: VecDeque<Bytes>,
    acked: u64,
    end: u64,
    replay: Option<Replay>,
    limit: u64,
    /// What the process lets this tunnel keep above [`MIN`].
    share: Share,
    /// How often the limit, and the process, made DATA wait.
    refused: [u64; 2],
    turn: Turn,
    /// Largest size in the present period.
    peak: u64,
    period_start: Instant,
    /// When the peer last acknowledged something, or the log was empty.
    progress: Instant,
    keep: Keep,
}

/// How far logged bytes have been sent again.
#[derive(Clone, Copy, Debug)]
struct Replay {
    /// The next entry, and bytes of it that were sent.
    entry: usize,
    done: usize,
    /// The same as an offset.
    at: u64,
}

/// The time in which as many bytes as the limit are acknowledged.
#[derive(Debug)]
struct Turn {
    start: Instant,
    /// Offset at which it ends.
    end: u64,
    /// DATA waited for room in it.
    blocked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Keep {
    Yes,
    /// Only what must be sent again.
    UntilReplayed,
    /// Bytes are only counted.
    No,
}

impl Log {
    /// `keep`: the tunnel is resumable.
    pub(crate) fn new(keep: bool, budget: Arc<Budget>, now: Instant) -> Self {
        Self {
            entries: VecDeque::new(),
            acked: 0,
            end: 0,
            replay: None,
            limit: START,
            share: Share::log(budget),
            refused: [0; 2],
            turn: Turn {
                start: now,
                end: START,
                blocked: false,
            },
            peak: 0,
            period_start: now,
            progress: now,
            keep: if keep { Keep::Yes } else { Keep::No },
        }
    }

    /// The tunnel is no longer resumable: what is kept is forgotten, except what must be sent again.
    /// Offsets go on counting.
    pub(crate) fn stop(&mut self) {
        if self.replay.is_some() {
            self.keep = Keep::UntilReplayed;
        } else {
            self.keep = Keep::No;
            self.entries = VecDeque::new();
            self.share.give_back(self.share.used());
        }
    }

    /// Gives back the memory of an empty log.
    pub(crate) fn release(&mut self) {
        give_back(&mut self.entries);
    }

    /// Places that memory is held for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        self.entries.capacity()
    }

    /// Bytes that are kept.
    pub(crate) fn retained(&self) -> u64 {
        match self.keep {
            Keep::No => 0,
            _ => self.end - self.acked,
        }
    }

    /// Bytes that may be kept at present.
    pub(crate) fn limit(&self) -> u64 {
        match self.keep {
            Keep::No => 0,
            _ => self.allowed(),
        }
    }

    /// How often the limit of the tunnel, and the budget of the process, made DATA wait.
    pub(crate) fn refused(&self) -> [u64; 2] {
        self.refused
    }

    /// Offset below which the peer has everything.
    #[cfg(test)]
    pub(crate) fn acked(&self) -> u64 {
        self.acked
    }

    /// Bytes of DATA frames that may be sent now.
    pub(crate) fn room(&self) -> usize {
        match self.keep {
            Keep::No => usize::MAX,
            _ => to_usize(self.allowed().saturating_sub(self.retained())),
        }
    }

    /// Bytes of other frames that may be sent now.
    pub(crate) fn reserve(&self) -> usize {
        match self.keep {
            Keep::No => usize::MAX,
            _ => to_usize((self.allowed() + RESERVE).saturating_sub(self.retained())),
        }
    }

    /// Before a batch of up to `batch` bytes is built: asks the process for what it will need.
    pub(crate) fn prepare(&mut self, batch: usize) {
        if self.keep != Keep::Yes {
            return;
        }
        let next = self.limit.min(self.retained() + batch as u64);
        let wanted = self.wanted().max(next.saturating_sub(MIN));
        let missing = wanted.saturating_sub(self.share.used());
        let all = missing.next_multiple_of(STEP);
        // When little is left it is shared out step by step.
        for bytes in [all, STEP] {
            if missing == 0 || self.share.take(bytes) {
                break;
            }
        }
    }

    /// DATA waits for room in the log, not for the transport.
    pub(crate) fn block(&mut self) {
        self.turn.blocked = true;
        let process = usize::from(self.allowed() < self.limit);
        self.refused[process] += 1;
    }

    /// Counts sent bytes, and keeps them if the tunnel is resumable.
    pub(crate) fn push(&mut self, bytes: impl FnOnce() -> Bytes, length: usize, now: Instant) {
        if self.keep == Keep::Yes {
            if self.end == self.acked {
                self.progress = now;
                self.begin_turn(now);
            }
            self.entries.push_back(bytes());
            self.peak = self.peak.max(self.end + length as u64 - self.acked);
        }
        self.end += length as u64;
    }

    /// The peer has everything below `offset`. Returns whether that was news; `None` when it cannot be
    /// true (protocol 209).
    pub(crate) fn acknowledge(
        &mut self,
        offset: u64,
        rtt: Option<Duration>,
        now: Instant,
    ) -> Option<bool> {
        let sent = self.replay.map_or(self.end, |replay| replay.at);
        if offset < self.acked || offset > sent {
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

    /// The connection is gone: until [`Self::resume`] nobody knows what must be sent again.
    pub(crate) fn detach(&mut self) {
        self.replay = None;
    }

    /// A new connection: what the peer does not have yet will be sent again. False when `offset` cannot be
    /// true.
    pub(crate) fn resume(&mut self, offset: u64, now: Instant) -> bool {
        if self.acknowledge(offset, None, now).is_none() {
            return false;
        }
        self.progress = now;
        self.begin_turn(now);
        self.replay = (!self.entries.is_empty()).then_some(Replay {
            entry: 0,
            done: 0,
            at: offset,
        });
        true
    }

    /// A new connection begins, and the peer has not said yet what it has: time counts from now.
    pub(crate) fn attach(&mut self, now: Instant) {
        self.progress = now;
    }

    pub(crate) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// The next bytes to send again, at most `max`.
    pub(crate) fn next_replay(&mut self, max: usize) -> Option<Bytes> {
        let replay = self.replay.as_mut()?;
        let entry = self.entries.get(replay.entry)?;
        let piece = entry.slice(replay.done..entry.len().min(replay.done + max.max(1)));
        replay.done += piece.len();
        replay.at += piece.len() as u64;
        if replay.done == entry.len() {
            replay.entry += 1;
            replay.done = 0;
        }
        if replay.entry == self.entries.len() {
            self.replay = None;
            if self.keep == Keep::UntilReplayed {
                self.stop();
            }
        }
        Some(piece)
    }

    /// When the peer has been silent about what it received for too long.
    pub(crate) fn stuck_at(&self) -> Option<Instant> {
        (self.retained() > 0).then(|| self.progress + STUCK)
    }

    fn allowed(&self) -> u64 {
        self.limit.min(MIN + self.share.used())
    }

    fn drop_front(&mut self, mut count: u64) {
        while let Some(front) = self.entries.front_mut().filter(|_| count > 0) {
            let length = front.len() as u64;
            if length > count {
                let step = to_usize(count);
                front.advance(step);
                // An acknowledgement never goes beyond the replay.
                if let Some(replay) = self.replay.as_mut().filter(|r| r.entry == 0) {
                    replay.done -= step;
                }
                break;
            }
            count -= length;
            self.entries.pop_front();
            if let Some(replay) = &mut self.replay {
                replay.entry -= 1;
            }
        }
        if self.entries.is_empty() && self.entries.capacity() > KEEP_ENTRIES {
            self.entries = VecDeque::new();
        }
    }

    fn begin_turn(&mut self, now: Instant) {
        self.turn = Turn {
            start: now,
            end: self.acked + self.limit,
            blocked: false,
        };
    }

    /// After an acknowledgement: what the limit should be, and what the process gets back.
    fn adapt(&mut self, rtt: Option<Duration>, now: Instant) {
        if self.acked >= self.turn.end {
            let taken = now.saturating_duration_since(self.turn.start);
            let fast = rtt.unwrap_or_default().max(RTT_FLOOR) * FAST;
            if self.turn.blocked && taken < fast {
                self.limit = (self.limit * 2).min(MAX);
            }
            self.begin_turn(now);
        }
        if now.saturating_duration_since(self.period_start) > PERIOD {
            if self.peak < self.limit / 4 {
                self.limit = (self.limit / 2).max(MIN);
            }
            self.peak = self.end - self.acked;
            self.period_start = now;
        }
        let spare = self.share.used().saturating_sub(self.wanted());
        if spare > SPARE || (self.end == self.acked && spare > 0) {
            self.share.give_back(spare / STEP * STEP);
        }
    }

    /// What the process should let this tunnel keep above [`MIN`]: room to grow beyond what is kept now.
    fn wanted(&self) -> u64 {
        self.limit.min(self.retained() * 4).saturating_sub(MIN)
    }
}

fn to_usize(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;

    fn send(log: &mut Log, bytes: usize, now: Instant) {
        log.prepare(0);
        log.push(|| Bytes::from(vec![0; bytes]), bytes, now);
    }

    #[test]
    fn the_process_lends_what_is_kept_above_the_least_and_gets_it_back() {
        let now = Instant::now();
        let budget = Arc::new(Budget::new(1_300_000));
        let mut log = Log::new(true, Arc::clone(&budget), now);
        send(&mut log, 60_000, now);
        assert_eq!(
            budget.log_used(),
            0,
            "a tunnel with little to keep asks for nothing"
        );
        send(&mut log, 160_000, now);
        log.prepare(0);
        assert_eq!(budget.log_used(), 3 * STEP);
        assert!(log.room() > 700_000);
        // Another tunnel finds less, and is still sure of its least.
        let mut other = Log::new(true, Arc::clone(&budget), now);
        for _ in 0..10 {
            let room = other.room().min(200_000);
            send(&mut other, room, now);
        }
        assert_eq!(budget.log_used(), 4 * STEP);
        assert_eq!(other.retained(), MIN + STEP);
        assert_eq!(other.room(), 0);
        assert_eq!(other.reserve(), 64 * 1024);
        assert_eq!(log.acknowledge(220_000, None, now), Some(true));
        assert_eq!(budget.log_used(), STEP);
        other.stop();
        assert_eq!((budget.log_used(), other.retained()), (0, 0));
        assert_eq!(other.room(), usize::MAX);
    }

    #[test]
    fn a_batch_that_is_larger_than_the_least_finds_room_at_once() {
        let now = Instant::now();
        let batch = to_usize(MIN) + 1000;
        for (budget, room) in [(8 * STEP, MIN + STEP), (STEP - 1, MIN)] {
            let budget = Arc::new(Budget::new(budget));
            let mut log = Log::new(true, Arc::clone(&budget), now);
            log.prepare(1000);
            assert_eq!(budget.log_used(), 0);
            log.prepare(batch);
            assert_eq!(log.room() as u64, room);
        }
        let mut log = Log::new(true, Arc::new(Budget::unlimited()), now);
        log.prepare(usize::MAX / 2);
        assert_eq!(log.room() as u64, START);
    }

    #[test]
    fn a_replay_gives_every_byte_again_whatever_is_acknowledged_meanwhile() {
        let now = Instant::now();
        let mut log = Log::new(true, Arc::new(Budget::unlimited()), now);
        let all: Vec<u8> = (0..5000_u32).map(|i| i.to_le_bytes()[0]).collect();
        for piece in all.chunks(37) {
            let piece = Bytes::copy_from_slice(piece);
            log.push(|| piece.clone(), piece.len(), now);
        }
        for first in [0_u64, 1, 36, 37, 38, 1000] {
            assert!(log.resume(first, now));
            let mut at = first;
            while let Some(piece) = log.next_replay(101) {
                let start = usize::try_from(at).unwrap();
                assert_eq!(piece, all[start..start + piece.len()]);
                at += piece.len() as u64;
                if log.is_replaying() {
                    assert_eq!(log.acknowledge(at + 1, None, now), None);
                }
                if at > 3000 {
                    break; // the connection is lost again
                }
            }
            log.detach();
        }
        assert!(log.resume(2000, now));
        let mut at = 2000;
        while let Some(piece) = log.next_replay(101) {
            let start = usize::try_from(at).unwrap();
            assert_eq!(piece, all[start..start + piece.len()]);
            at += piece.len() as u64;
            let acked = (at - 50).max(2000);
            assert!(log.acknowledge(acked, None, now).is_some());
        }
        assert_eq!((at, log.retained()), (5000, 50));
        assert_eq!(log.acknowledge(5000, None, now), Some(true));
        assert!(log.stuck_at().is_none());
    }
}
