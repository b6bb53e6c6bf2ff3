//! From the core to the transport: one batch at a time, of a size that suits the link.

use std::io::{self, IoSlice};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use sg_tunnel::{Batch, Connection};
use tokio::time::Instant;

use crate::transport::Transport;

/// Slices per vectored write.
const SLICES: usize = 64;
/// One TLS record.
const MIN_BATCH: usize = 16 * 1024;
const MAX_BATCH: usize = 256 * 1024;
/// A batch that the transport takes longer than this for makes urgent frames wait: take less.
const SLOW: Duration = Duration::from_millis(4);
/// A batch of so many bytes that leaves within that time shows a fast link.
const TELLING: usize = 192 * 1024;

pub(super) struct Writer {
    batch: Batch,
    /// Bytes were written that the transport may still hold.
    unflushed: bool,
    /// Most bytes that the next batch takes.
    limit: usize,
    /// Bytes of the last batch.
    size: usize,
    /// The link has taken a telling batch in time, and none too slowly since.
    fast: bool,
    taken_at: Option<Instant>,
    /// The transport refused bytes since the batch was taken.
    blocked: bool,
    /// Since when the transport has taken nothing, and has not got rid of anything either.
    stalled: Option<Instant>,
    /// How far the transport was then.
    progress: u64,
}

impl Default for Writer {
    fn default() -> Self {
        Self {
            batch: Batch::default(),
            unflushed: false,
            limit: MIN_BATCH * 4,
            size: 0,
            fast: false,
            taken_at: None,
            blocked: false,
            stalled: None,
            progress: 0,
        }
    }
}

impl Writer {
    /// Writes and flushes the batch. Ready when nothing is left anywhere in user space.
    pub(super) fn drain(
        &mut self,
        io: &mut dyn Transport,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        let result = self.write(io, cx);
        if result.is_pending() {
            self.blocked = true;
            // A batch may leave piece by piece over a link that is slow, and alive.
            let progress = io.progress();
            if self.stalled.is_none() || progress != self.progress {
                self.stalled = Some(Instant::now());
                self.progress = progress;
            }
        }
        result
    }

    fn write(&mut self, io: &mut dyn Transport, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); SLICES];
            let count = self.batch.slices(&mut slices);
            let written = ready!(io.poll_write(cx, &slices[..count]))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.batch.advance(written);
            self.stalled = None;
        }
        if self.unflushed {
            ready!(io.poll_flush(cx))?;
            self.unflushed = false;
            self.stalled = None;
        }
        Poll::Ready(Ok(()))
    }

    /// Adapts the size of batches to how long the last one took; answers whether the link is fast, if that is news.
    pub(super) fn measure(&mut self, now: Instant) -> Option<bool> {
        let taken_at = self.taken_at.take()?;
        let in_time = now.saturating_duration_since(taken_at) <= SLOW;
        let slow = self.blocked && !in_time;
        self.limit = match slow {
            true => (self.limit / 2).max(MIN_BATCH),
            false => (self.limit * 2).min(MAX_BATCH),
        };
        let fast = !slow && (self.fast || (in_time && self.size >= TELLING));
        (fast != self.fast).then(|| {
            self.fast = fast;
            fast
        })
    }

    pub(super) fn take_batch(&mut self, core: &mut Connection, now: std::time::Instant) {
        core.poll_transmit(now, &mut self.batch, self.limit);
        if !self.batch.is_empty() {
            self.unflushed = true;
            self.blocked = false;
            self.size = self.batch.len();
            self.taken_at = Some(Instant::from_std(now));
        }
    }

    pub(super) fn has_work(&self) -> bool {
        self.unflushed
    }

    pub(super) fn stalled_since(&self) -> Option<Instant> {
        self.stalled
    }

    pub(super) fn stalled_for(&self, now: Instant) -> Duration {
        self.stalled
            .map_or(Duration::ZERO, |at| now.saturating_duration_since(at))
    }

    /// Gives back the memory of an empty batch.
    pub(super) fn release(&mut self) {
        self.batch.release();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods)]
    use super::super::idle::Idle;
    use super::*;

    /// What is told after a batch of `size` bytes that took `millis`, with or without a refusal on the way.
    fn told(writer: &mut Writer, size: usize, millis: u64, blocked: bool) -> Option<bool> {
        let now = Instant::now();
        writer.taken_at = Some(now);
        (writer.size, writer.blocked) = (size, blocked);
        writer.measure(now + Duration::from_millis(millis))
    }

    #[test]
    fn a_link_is_fast_from_a_large_batch_in_time_to_the_first_slow_one() {
        let mut writer = Writer::default();
        assert_eq!(told(&mut writer, TELLING - 1, 0, false), None);
        // Nobody was kept waiting by this one; it says nothing of the link either.
        assert_eq!(told(&mut writer, TELLING, 5, false), None);
        assert_eq!(told(&mut writer, TELLING, 5, true), None);
        assert_eq!(told(&mut writer, TELLING, 4, true), Some(true));
        assert_eq!(told(&mut writer, TELLING, 4, true), None);
        assert_eq!(told(&mut writer, 1, 100, false), None);
        assert_eq!(told(&mut writer, 1, 5, true), Some(false));
        assert_eq!(told(&mut writer, TELLING - 1, 0, true), None);
    }

    #[test]
    fn batches_grow_while_they_leave_in_time() {
        let mut writer = Writer::default();
        for _ in 0..10 {
            told(&mut writer, 1, 4, true);
        }
        assert_eq!(writer.limit, MAX_BATCH);
        told(&mut writer, 1, 5, true);
        assert_eq!(writer.limit, MAX_BATCH / 2);
        for _ in 0..10 {
            told(&mut writer, 1, 5, true);
        }
        assert_eq!(writer.limit, MIN_BATCH);
    }

    #[test]
    fn a_batch_that_leaves_slowly_has_not_stalled() {
        let cx = &mut Context::from_waker(std::task::Waker::noop());
        // It has room for nothing, but gets rid of what it has.
        let mut io = Idle {
            progress: 5,
            ..Idle::default()
        };
        let mut writer = Writer {
            unflushed: true,
            ..Writer::default()
        };
        assert!(writer.drain(&mut io, cx).is_pending());
        let long = Duration::from_secs(50);
        writer.stalled = writer.stalled_since().map(|at| at - long);
        assert!(writer.drain(&mut io, cx).is_pending());
        assert!(writer.stalled_for(Instant::now()) >= long);
        io.progress += 1;
        assert!(writer.drain(&mut io, cx).is_pending());
        assert!(writer.stalled_for(Instant::now()) < long);
    }
}
