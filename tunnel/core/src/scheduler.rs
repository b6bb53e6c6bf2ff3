//! Who may send next: lists of streams that have something to send.
//!
//! Entries are keys and may be stale; whoever pops one looks at the stream. A stream stands in at
//! most one data list at a time ([`Class`]) and at most once in the control list.
//!
//! Interactive means: at most [`INTERACTIVE_BURST`] bytes lately. Such streams go first, in turns of
//! [`INTERACTIVE_TURN`], but take at most half of a batch when bulk waits. Bulk is deficit round
//! robin; frames can have any length, so no deficit is ever left over.

use std::collections::VecDeque;

use crate::datagram::Direction;
use crate::stream::{Class, Key, Phase, Stream};

/// Bytes that an interactive stream sends in one turn.
pub(crate) const INTERACTIVE_TURN: usize = 4 * 1024;
/// Bytes within about two epochs from which on a stream counts as bulk.
pub(crate) const INTERACTIVE_BURST: u32 = 16 * 1024;
/// More recent bytes than this are not counted, so that a bulk stream that pauses for about 400 ms
/// is interactive again.
pub(crate) const MAX_BURST: u32 = 1024 * 1024;
/// Bytes that a bulk stream sends in one turn.
pub(crate) const BULK_TURN: usize = 16 * 1024;
/// Length of the epoch in which a stream's recent bytes are halved.
pub(crate) const EPOCH_MS: u128 = 64;

#[derive(Debug, Default)]
pub(crate) struct Scheduler {
    /// Streams whose OPEN has not been sent, in the order of opening.
    pub(crate) opens: VecDeque<Key>,
    pub(crate) control: VecDeque<Key>,
    /// Flows that have datagrams to send.
    pub(crate) flows: VecDeque<Key>,
    pub(crate) interactive: VecDeque<Key>,
    pub(crate) bulk: VecDeque<Key>,
}

impl Scheduler {
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

    /// Puts a stream that has just had a turn back, if it has more.
    pub(crate) fn requeue(&mut self, stream: &mut Stream) {
        stream.class = Class::None;
        if stream.has_data() {
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
