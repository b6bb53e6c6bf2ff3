//! One batch of bytes for the transport: small things copied together, large ones chained.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::ops::Range;

use bytes::Bytes;

use crate::frame::Frame;

/// Pieces up to this size are copied next to their header instead of being a slice of their own.
const COPY: usize = 1024;

/// Bytes on their way to the transport. Filled by [`crate::Connection::poll_transmit`], emptied by
/// the driver with [`Batch::slices`] and [`Batch::advance`].
#[derive(Debug, Default)]
pub struct Batch {
    /// Headers and small payloads, one behind the other.
    scratch: Vec<u8>,
    parts: VecDeque<Part>,
    len: usize,
}

#[derive(Debug)]
enum Part {
    Scratch(Range<usize>),
    Chunk(Bytes),
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
            *slot = IoSlice::new(match part {
                Part::Scratch(range) => &self.scratch[range.clone()],
                Part::Chunk(bytes) => bytes,
            });
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
        while count > 0 {
            let Some(part) = self.parts.front_mut() else {
                break;
            };
            let left = match part {
                Part::Scratch(range) => {
                    let step = count.min(range.len());
                    range.start += step;
                    count -= step;
                    range.len()
                }
                Part::Chunk(bytes) => {
                    let step = count.min(bytes.len());
                    *bytes = bytes.split_off(step);
                    count -= step;
                    bytes.len()
                }
            };
            if left > 0 {
                break;
            }
            self.parts.pop_front();
        }
        if self.len == 0 {
            self.parts.clear();
            self.scratch.clear();
        }
    }

    /// Gives back the memory of an empty batch.
    pub fn release(&mut self) {
        if self.is_empty() {
            *self = Self::default();
        }
    }

    pub(crate) fn push_frame(&mut self, frame: &Frame) {
        let start = self.scratch.len();
        frame.put(&mut self.scratch);
        self.cover(start);
    }

    pub(crate) fn push_small(&mut self, bytes: &[u8]) {
        let start = self.scratch.len();
        self.scratch.extend_from_slice(bytes);
        self.cover(start);
    }

    pub(crate) fn push(&mut self, bytes: Bytes) {
        if bytes.len() <= COPY {
            self.push_small(&bytes);
        } else {
            self.len += bytes.len();
            self.parts.push_back(Part::Chunk(bytes));
        }
    }

    /// Makes the scratch bytes from `start` on part of the batch.
    fn cover(&mut self, start: usize) {
        let end = self.scratch.len();
        self.len += end - start;
        match self.parts.back_mut() {
            Some(Part::Scratch(range)) if range.end == start => range.end = end,
            _ => self.parts.push_back(Part::Scratch(start..end)),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_batch_is_written_in_order_in_steps_of_any_size() {
        for step in [1, 7, 1000, 5000] {
            let mut batch = Batch::default();
            let mut expected = Vec::new();
            for size in [0, 1, 1024, 1025, 3, 9000, 8, 8] {
                let bytes: Vec<u8> = (0..size).map(|i| (i % 251) as u8).collect();
                expected.extend_from_slice(&bytes);
                batch.push(bytes.into());
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
        }
    }
}
