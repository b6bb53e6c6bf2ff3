//! Who may send next: lists of streams that have something to send.
//!
//! Entries are keys and may be stale; whoever pops one looks at the stream. A stream stands in at
//! most one data list at a time ([`Class`]) and at most once in the control list.
//!
//! Interactive means: at most [`INTERACTIVE_BURST`] bytes lately. Such streams go first, in turns of
//! [`INTERACTIVE_TURN`], but take at most half of a batch when bulk waits. Bulk is deficit round
//! robin: in its turn a stream may send [`BULK_TURN`] times its weight, headers included, and stays
//! first in the list until it has, so that a turn may go over several batches. On a link that takes large
//! batches a turn is longer, up to [`LONG_BULK_TURN`]: whoever passes the bytes on then does so in fewer calls.

use std::collections::VecDeque;

use crate::connection::give_back;
use crate::datagram::Direction;
use crate::frame::HEADER_LEN;
use crate::stream::{Class, Key, Phase, Stream};

/// Bytes that an interactive stream sends in one turn.
pub(crate) const INTERACTIVE_TURN: usize = 4 * 1024;
/// Bytes within about two epochs from which on a stream counts as bulk.
pub(crate) const INTERACTIVE_BURST: u32 = 16 * 1024;
/// More recent bytes than this are not counted, so that a bulk stream that pauses for about 400 ms
/// is interactive again.
pub(crate) const MAX_BURST: u32 = 1024 * 1024;
/// Bytes that a bulk stream of weight 1 sends in one turn, at least.
pub(crate) const BULK_TURN: usize = 16 * 1024;
/// The same at most.
pub(crate) const LONG_BULK_TURN: usize = 64 * 1024;
/// Turns that a batch is made for.
const TURNS: usize = 4;
/// Largest weight of a stream.
pub(crate) const MAX_WEIGHT: u8 = 16;
/// What is left of a turn and is less than this stays for the next one: no frame is made for it.
const MIN_LEFT: usize = 512 + HEADER_LEN;
/// Length of the epoch in which a stream's recent bytes are halved.
pub(crate) const EPOCH_MS: u128 = 64;

#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    /// Streams whose OPEN has not been sent, in the order of opening.
    pub(crate) opens: VecDeque<Key>,
    pub(crate) control: VecDeque<Key>,
    /// Streams whose RESET waits for the peer's answer or for time.
    pub(crate) held_resets: VecDeque<Key>,
    /// Flows that have datagrams to send.
    pub(crate) flows: VecDeque<Key>,
    pub(crate) interactive: VecDeque<Key>,
    pub(crate) bulk: VecDeque<Key>,
    /// Present length of a turn, if more than [`BULK_TURN`].
    turn: usize,
}

impl Scheduler {
    /// A batch of about `limit` bytes is built next.
    pub(crate) fn begin_batch(&mut self, limit: usize) {
        self.turn = (limit / TURNS).min(LONG_BULK_TURN);
    }

    /// Gives back the memory of empty lists.
    pub(crate) fn release(&mut self) {
        let Self {
            opens,
            control,
            held_resets,
            flows,
            interactive,
            bulk,
            turn: _,
        } = self;
        for list in [opens, control, held_resets, flows, interactive, bulk] {
            give_back(list);
        }
    }

    /// Places that memory is held for.
    #[cfg(test)]
    pub(crate) fn capacity(&self) -> usize {
        let lists = [
            &self.opens,
            &self.control,
            &self.held_resets,
            &self.flows,
            &self.interactive,
            &self.bulk,
        ];
        lists.iter().map(|list| list.capacity()).sum()
    }

    /// Puts a stream into the control list if it has control frames to send.
    pub(crate) fn mark_control(&mut self, stream: &mut Stream) {
        // Before the OPEN has been sent nothing else may be; then `id` is 0.
        if stream.pending.any() && !stream.in_control && stream.id != 0 {
            stream.in_control = true;
            self.control.push_back(stream.key);
        }
    }

    /// Puts a flow into its list if it has datagrams and may send them.
    pub(crate) fn mark_flow(&mut self, stream: &mut Stream) {
        let told = stream.id != 0 && !stream.pending.open_ok && stream.phase != Phase::Offered;
        let Some(flow) = stream.flow.as_deref_mut() else {
            return;
        };
        if told && !flow.listed && !flow.queue(Direction::Out).is_empty() {
            flow.listed = true;
            self.flows.push_back(stream.key);
        }
    }

    /// Whether streams have bytes to send.
    pub(crate) fn streams_wait(&self) -> bool {
        !(self.bulk.is_empty() && self.interactive.is_empty())
    }

    /// Puts a stream into a data list if it has data to send and stands in none.
    pub(crate) fn mark_data(&mut self, stream: &mut Stream, epoch: u32) {
        if stream.class != Class::None || !stream.has_data() {
            return;
        }
        let passed = epoch.wrapping_sub(stream.burst_epoch).min(31);
        stream.burst >>= passed;
        stream.burst_epoch = epoch;
        self.enlist(stream);
    }

    /// Payload bytes that the next frame of a stream may have by its class and weight.
    pub(crate) fn allowance(&self, stream: &mut Stream) -> usize {
        if stream.class != Class::Bulk {
            return INTERACTIVE_TURN;
        }
        if stream.deficit < MIN_LEFT {
            stream.deficit += self.turn.max(BULK_TURN) * usize::from(stream.weight);
        }
        stream.deficit - HEADER_LEN
    }

    /// Puts a stream that has just sent a frame of `length` bytes back, if it has more.
    pub(crate) fn requeue(&mut self, stream: &mut Stream, length: usize) {
        let was_bulk = std::mem::replace(&mut stream.class, Class::None) == Class::Bulk;
        if !stream.has_data() {
            stream.deficit = 0;
            return;
        }
        stream.deficit = stream.deficit.saturating_sub(length + HEADER_LEN);
        if was_bulk && stream.deficit >= MIN_LEFT {
            stream.class = Class::Bulk;
            self.bulk.push_front(stream.key);
        } else {
            self.enlist(stream);
        }
    }

    fn enlist(&mut self, stream: &mut Stream) {
        if stream.burst < INTERACTIVE_BURST {
            stream.class = Class::Interactive;
            self.interactive.push_back(stream.key);
        } else {
            stream.class = Class::Bulk;
            self.bulk.push_back(stream.key);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::stream::Fin;
    use crate::table::Table;
    use bytes::Bytes;

    /// Lets streams of these weights send for `bytes`, in batches of `batch`; their shares.
    fn shares(weights: &[u8], batch: usize, bytes: usize) -> Vec<usize> {
        let (mut table, mut scheduler) = (Table::default(), Scheduler::default());
        for (id, weight) in (1..).zip(weights) {
            let stream = table.insert(id, Phase::Open);
            (stream.weight, stream.burst) = (*weight, MAX_BURST);
            stream.outbox.push(Bytes::from(vec![0; 128 * 1024]));
            scheduler.mark_data(stream, 0);
        }
        let mut sent = vec![0; weights.len()];
        while sent.iter().sum::<usize>() < bytes {
            scheduler.begin_batch(batch);
            let mut room = batch;
            while room >= MIN_LEFT {
                let key = scheduler.bulk.pop_front().unwrap();
                let stream = table.get_mut(key).unwrap();
                let room_now = room - HEADER_LEN;
                let length = scheduler.allowance(stream).min(room_now).min(16_376);
                assert!(length >= 512, "a frame for {length} bytes");
                stream.outbox.pop(length).unwrap();
                stream.outbox.push(Bytes::from(vec![0; length]));
                sent[key.index()] += length;
                room -= length + HEADER_LEN;
                scheduler.requeue(stream, length);
            }
        }
        sent
    }

    #[test]
    fn bulk_streams_share_by_their_weights_whatever_the_batches() {
        for batch in [16 * 1024, 40_000, 256 * 1024] {
            let sent = shares(&[1, 1, 4, 16], batch, 176 << 20);
            for (weight, sent) in [1, 1, 4, 16].into_iter().zip(sent) {
                let fair = weight * (8 << 20);
                let difference = sent.abs_diff(fair);
                assert!(difference * 50 < fair, "{sent} instead of {fair}, {batch}");
            }
        }
    }

    #[test]
    fn turns_follow_the_size_of_batches() {
        let (mut table, mut scheduler) = (Table::default(), Scheduler::default());
        for (batch, turn) in [(1, 16), (64, 16), (128, 32), (256, 64), (1024, 64)] {
            let stream = table.insert(1, Phase::Open);
            (stream.burst, stream.class) = (MAX_BURST, Class::Bulk);
            scheduler.begin_batch(batch * 1024);
            assert_eq!(scheduler.allowance(stream), turn * 1024 - HEADER_LEN);
            stream.deficit = 0;
        }
    }

    #[test]
    fn a_stream_that_has_nothing_more_to_send_keeps_no_turn() {
        let (mut table, mut scheduler) = (Table::default(), Scheduler::default());
        let stream = table.insert(1, Phase::Open);
        (stream.weight, stream.burst) = (16, MAX_BURST);
        stream.fin_out = Fin::Queued;
        scheduler.mark_data(stream, 0);
        assert_eq!(stream.class, Class::Bulk);
        assert_eq!(scheduler.allowance(stream), 16 * BULK_TURN - HEADER_LEN);
        stream.fin_out = Fin::Sent;
        scheduler.bulk.clear();
        scheduler.requeue(stream, 0);
        assert_eq!((stream.deficit, stream.class), (0, Class::None));
        assert!(scheduler.bulk.is_empty());
    }
}
