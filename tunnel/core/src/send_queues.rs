//! How much the streams of a tunnel may have queued to send, each and together.
//!
//! A stream may queue as much as all of them leave free, up to a limit of its own, and [`LEAST`] in any case. So a few have
//! all that they can use, many that are stuck share evenly what there is, and one that has nothing queued is never kept from
//! its turn by others. What is above [`SURE`] is taken from the process' [`Budget`] first.

use std::sync::Arc;

use crate::budget::{Budget, Share};
use crate::config::Config;
use crate::queue::ByteQueue;

/// What a stream may always have queued.
const LEAST: usize = 4 * 1024;
/// What a tunnel may have queued without asking the process.
const SURE: u64 = 1024 * 1024;
/// The process is asked for so many bytes at a time.
const STEP: u64 = 256 * 1024;

#[derive(Debug)]
pub(crate) struct SendQueues {
    /// Bytes in the queues of all streams.
    queued: usize,
    /// What the process lets this tunnel have above [`SURE`].
    share: Share,
    /// How often the tunnel's limit, and the process, made a writer wait.
    refused: [u64; 2],
}

impl SendQueues {
    pub(crate) fn new(budget: Arc<Budget>) -> Self {
        Self {
            queued: 0,
            share: Share::queues(budget),
            refused: [0; 2],
        }
    }

    /// Bytes that wait in the queues of all streams.
    pub(crate) fn queued(&self) -> usize {
        self.queued
    }

    /// How often the limit of the tunnel, and the budget of the process, made a writer wait.
    pub(crate) fn refused(&self) -> [u64; 2] {
        self.refused
    }

    /// What one stream may have queued at present.
    pub(crate) fn limit(&self, config: &Config) -> usize {
        let free = match self.process_refuses() {
            true => 0,
            false => config.send_queues.saturating_sub(self.queued),
        };
        free.max(LEAST).min(config.send_queue)
    }

    /// A writer waits for this limit.
    pub(crate) fn count_refusal(&mut self) {
        self.refused[usize::from(self.process_refuses())] += 1;
    }

    pub(crate) fn add(&mut self, bytes: usize) {
        self.queued += bytes;
        while self.queued as u64 > self.allowed() && self.share.take(STEP) {}
    }

    pub(crate) fn remove(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.queued);
        self.queued = self.queued.saturating_sub(bytes);
        let queued = self.queued as u64;
        let needed = queued.saturating_sub(SURE).next_multiple_of(STEP);
        // One step is kept while it may be needed again soon.
        let kept = needed + if queued > SURE / 2 { STEP } else { 0 };
        if self.share.used() > kept {
            self.share.give_back(self.share.used() - kept);
        }
    }

    /// Drops what a stream has queued.
    pub(crate) fn forget(&mut self, queue: &mut ByteQueue) {
        self.remove(queue.len());
        queue.clear();
    }

    fn allowed(&self) -> u64 {
        SURE + self.share.used()
    }

    /// The process had no more when it was asked last.
    fn process_refuses(&self) -> bool {
        self.queued as u64 > self.allowed()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queues(budget: u64) -> (SendQueues, Arc<Budget>) {
        let budget = Arc::new(Budget::new(budget));
        (SendQueues::new(Arc::clone(&budget)), budget)
    }

    #[test]
    fn stuck_streams_share_what_there_is_evenly() {
        for count in [1, 16, 100, 1000, 10_000] {
            let (config, (mut queues, _)) = (Config::default(), queues(1 << 40));
            let mut streams = vec![0_usize; count];
            let mut grew = true;
            while grew {
                grew = false;
                for stream in &mut streams {
                    let room = queues.limit(&config).saturating_sub(*stream);
                    // However it is read.
                    let bytes = room.min(1000);
                    *stream += bytes;
                    queues.add(bytes);
                    grew |= bytes > 0;
                }
            }
            let (least, most) = (streams.iter().min().unwrap(), streams.iter().max().unwrap());
            let fair = (config.send_queues / (count + 1)).clamp(LEAST, config.send_queue);
            assert!(most - least <= 1000, "{least} to {most}");
            assert!(fair.abs_diff(*most) <= 1000, "{most} instead of {fair}");
            assert!(queues.queued() <= config.send_queues + count * LEAST);
            for stream in streams {
                queues.remove(stream);
            }
            assert_eq!(queues.queued(), 0);
        }
    }

    #[test]
    fn what_the_process_does_not_have_is_not_queued() {
        // An eighth of it is for queues.
        let (mut queues, budget) = queues(8 * 2 * STEP);
        let config = Config::default();
        queues.add(1024 * 1024);
        assert_eq!(budget.queues_used(), 0);
        assert_eq!(queues.limit(&config), config.send_queue);
        queues.add(600 * 1024);
        assert_eq!(budget.queues_used(), 2 * STEP);
        assert_eq!(queues.limit(&config), LEAST);
        queues.count_refusal();
        queues.remove(600 * 1024);
        assert_eq!(queues.limit(&config), config.send_queue);
        queues.count_refusal();
        assert_eq!(queues.refused(), [1, 1]);
        // A little is kept for the next burst, and all comes back.
        assert_eq!(budget.queues_used(), STEP);
        queues.remove(500 * 1024);
        assert_eq!(budget.queues_used(), STEP);
        queues.remove(100 * 1024);
        assert_eq!(budget.queues_used(), 0);
        queues.remove(424 * 1024);
        assert_eq!(queues.queued(), 0);
    }
}
