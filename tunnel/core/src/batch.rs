//! One batch of bytes for the transport: small things copied together, large ones chained, and records
//! around them.
//!
//! While a batch is built its small things lie in one growing buffer, because the length in front of a
//! record is known only at its end. [`Batch::finish`] freezes that buffer; from then on the batch and
//! the log of unacknowledged bytes share its memory.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;
use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use crate::frame::Frame;
use crate::log::Log;
use crate::record::{RECORD_LEN, RecordHeader, kind, offset_record};

/// Pieces up to this size are copied next to their header instead of being a slice of their own.
const COPY: usize = 1024;
/// Sizes of the buffers for small things: each is twice the one before, so that an idle tunnel keeps a small one.
const FIRST_BLOCK: usize = 1024;
const LAST_BLOCK: usize = 16 * 1024;
/// A new buffer is taken when less than this is left.
const MIN_BLOCK: usize = 256;

/// Bytes on their way to the transport. Filled by [`crate::Connection::poll_transmit`], emptied by
/// the driver with [`Batch::slices`] and [`Batch::advance`].
#[derive(Debug, Default)]
pub struct Batch {
    /// Finished, in order.
    parts: VecDeque<Bytes>,
    /// Headers and small payloads of what is being built, one behind the other.
    scratch: BytesMut,
    /// Size of its last buffer.
    block: usize,
    building: Vec<Part>,
    record: Record,
    len: usize,
}

/// A part of what is being built, and whether the log keeps it.
#[derive(Debug)]
enum Part {
    Scratch(Range<usize>, bool),
    Chunk(Bytes, bool),
}

/// The record that is being built.
#[derive(Clone, Copy, Debug, Default)]
enum Record {
    #[default]
    None,
    /// Begun, but without content: it may never appear.
    Begun { kind: u8, keep: bool },
    Open {
        kind: u8,
        keep: bool,
        /// Where its header lies in the scratch, and what the batch held with it.
        header: usize,
        start: usize,
    },
}

impl Batch {
    /// Bytes that are still to be written.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether everything has been written.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `out` with the next bytes in order; returns how many slices were set.
    pub fn slices<'a>(&'a self, out: &mut [IoSlice<'a>]) -> usize {
        let mut count = 0;
        for (slot, part) in out.iter_mut().zip(&self.parts) {
            *slot = IoSlice::new(part);
            count += 1;
        }
        count
    }

    /// Drops `count` written bytes from the front.
    ///
    /// # Panics
    ///
    /// If `count` is more than [`Self::len`]: the transport wrote more than it was given.
    pub fn advance(&mut self, mut count: usize) {
        assert!(count <= self.len, "transport wrote more than it was given");
        self.len -= count;
        while let Some(part) = self.parts.front_mut() {
            if part.len() > count {
                part.advance(count);
                break;
            }
            count -= part.len();
            self.parts.pop_front();
        }
    }

    /// Gives back the memory of an empty batch.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    /// An ACK or RESUME.
    pub(crate) fn push_offset(&mut self, kind: u8, offset: u64) {
        self.end_record();
        self.small(&offset_record(kind, offset), false);
    }

    /// From here on frames travel in a LOGGED record.
    pub(crate) fn begin_logged(&mut self) {
        self.begin(kind::LOGGED, true);
    }

    /// What follows are logged bytes that the log keeps already.
    pub(crate) fn begin_replay(&mut self) {
        self.begin(kind::LOGGED, false);
    }

    /// From here on frames travel in an UNLOGGED record.
    pub(crate) fn begin_unlogged(&mut self) {
        self.begin(kind::UNLOGGED, false);
    }

    pub(crate) fn push_frame(&mut self, frame: &Frame) {
        let keep = self.open_record();
        let start = self.room_for(COPY);
        frame.put(&mut self.scratch);
        self.cover(start, keep);
    }

    pub(crate) fn push_small(&mut self, bytes: &[u8]) {
        let keep = self.open_record();
        self.small(bytes, keep);
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        let keep = self.open_record();
        if bytes.len() <= COPY {
            self.small(&bytes, keep);
        } else {
            self.len += bytes.len();
            self.building.push(Part::Chunk(bytes, keep));
        }
    }

    /// Makes what was built ready to be written, and keeps the logged part of it.
    pub(crate) fn finish(&mut self, log: &mut Log, now: Instant) {
        self.end_record();
        if self.building.is_empty() {
            return;
        }
        let block = self.scratch.split().freeze();
        // Neighbours in the block become one part, whether they are kept or not.
        let mut run = 0..0;
        for part in self.building.drain(..) {
            match part {
                Part::Scratch(range, keep) => {
                    if keep {
                        log.push(|| block.slice(range.clone()), range.len(), now);
                    }
                    run.end = range.end;
                }
                Part::Chunk(bytes, keep) => {
                    if !run.is_empty() {
                        self.parts.push_back(block.slice(run.clone()));
                    }
                    run.start = run.end;
                    if keep {
                        log.push(|| bytes.clone(), bytes.len(), now);
                    }
                    self.parts.push_back(bytes);
                }
            }
        }
        if run.len() == block.len() {
            self.parts.push_back(block);
        } else if !run.is_empty() {
            self.parts.push_back(block.slice(run));
        }
    }

    fn begin(&mut self, kind: u8, keep: bool) {
        self.end_record();
        self.record = Record::Begun { kind, keep };
    }

    /// Puts the header of a record in front of its first content; returns whether that is kept.
    fn open_record(&mut self) -> bool {
        match self.record {
            Record::None => false,
            Record::Open { keep, .. } => keep,
            Record::Begun { kind, keep } => {
                let header = self.room_for(RECORD_LEN);
                self.scratch.extend_from_slice(&[0; RECORD_LEN]);
                self.cover(header, false);
                let start = self.len;
                self.record = Record::Open {
                    kind,
                    keep,
                    header,
                    start,
                };
                keep
            }
        }
    }

    /// Fills in the length of the record.
    fn end_record(&mut self) {
        if let Record::Open {
            kind,
            header,
            start,
            ..
        } = std::mem::take(&mut self.record)
        {
            let length = self.len - start;
            let bytes = RecordHeader { kind, length }.to_bytes();
            self.scratch[header..header + RECORD_LEN].copy_from_slice(&bytes);
        }
    }

    fn small(&mut self, bytes: &[u8], keep: bool) {
        let start = self.room_for(bytes.len());
        self.scratch.extend_from_slice(bytes);
        self.cover(start, keep);
    }

    /// Takes a new buffer if there is little left of the last one, which the log may still need.
    fn room_for(&mut self, bytes: usize) -> usize {
        let start = self.scratch.len();
        let room = self.scratch.capacity() - start;
        if room < bytes || (start == 0 && room < MIN_BLOCK) {
            self.block = (2 * self.block).clamp(FIRST_BLOCK, LAST_BLOCK);
            self.scratch.reserve(bytes.max(self.block));
        }
        start
    }

    /// Makes the scratch bytes from `start` on part of the batch.
    fn cover(&mut self, start: usize, keep: bool) {
        let end = self.scratch.len();
        self.len += end - start;
        match self.building.last_mut() {
            Some(Part::Scratch(range, kept)) if *kept == keep => range.end = end,
            _ => self.building.push(Part::Scratch(start..end, keep)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::budget::Budget;

    fn pattern(size: usize) -> Vec<u8> {
        (0..size).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn a_batch_is_written_in_order_in_steps_of_any_size_and_kept_without_its_records() {
        for step in [1, 7, 1000, 5000] {
            let now = Instant::now();
            let mut log = Log::new(true, Budget::unlimited().into(), now);
            let mut batch = Batch::default();
            let (mut expected, mut kept) = (Vec::new(), Vec::new());
            for round in 0..3 {
                batch.push_offset(kind::ACK, round);
                expected.extend_from_slice(&offset_record(kind::ACK, round));
                batch.begin_unlogged();
                batch.begin_logged();
                let sizes = [1024, 1025, 3, 9000, 8, 8, 0, 2000, 3000];
                let total = sizes.iter().sum();
                let header = RecordHeader {
                    kind: kind::LOGGED,
                    length: total,
                };
                expected.extend_from_slice(&header.to_bytes());
                for size in sizes {
                    let bytes = pattern(size);
                    expected.extend_from_slice(&bytes);
                    kept.extend_from_slice(&bytes);
                    batch.push(bytes.into());
                }
                batch.begin_unlogged();
                batch.push(pattern(2000).into());
                expected.extend_from_slice(&[kind::UNLOGGED, 0, 7, 208]);
                expected.extend_from_slice(&pattern(2000));
                batch.finish(&mut log, now);
            }
            assert_eq!(batch.len(), expected.len());
            let mut got = Vec::new();
            while !batch.is_empty() {
                let mut slices = [IoSlice::new(&[]); 3];
                let count = batch.slices(&mut slices);
                let flat: Vec<u8> = slices[..count].iter().flat_map(|s| s.to_vec()).collect();
                let n = step.min(flat.len());
                got.extend_from_slice(&flat[..n]);
                batch.advance(n);
            }
            assert_eq!(got, expected);
            assert!(log.resume(0, now));
            let mut again = Vec::new();
            while let Some(piece) = log.next_replay(777) {
                again.extend_from_slice(&piece);
            }
            assert_eq!(again, kept);
        }
    }

    #[test]
    fn a_small_batch_is_one_slice_and_its_memory_is_used_again() {
        let now = Instant::now();
        let mut log = Log::new(true, Budget::unlimited().into(), now);
        let mut batch = Batch::default();
        let mut blocks = 0;
        let mut end = std::ptr::null();
        for _ in 0..10_000 {
            batch.begin_logged();
            batch.push_small(&[1; 72]);
            batch.finish(&mut log, now);
            let mut slices = [IoSlice::new(&[]); 3];
            assert_eq!(batch.slices(&mut slices), 1);
            blocks += usize::from(slices[0].as_ptr() != end);
            end = slices[0].as_ptr_range().end;
            batch.advance(76);
            let sent = log.retained();
            assert_eq!(log.acknowledge(72 + log.acked(), None, now), Some(true));
            assert!(sent == 72);
        }
        assert!(blocks <= 60, "{blocks}");
    }
}
