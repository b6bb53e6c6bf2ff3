//! A queue of bytes that holds references to large pieces and collects small ones.
//!
//! Each stream has one per direction. An empty queue owns no buffer.

use std::collections::VecDeque;

use bytes::{Bytes, BytesMut};

/// Pieces shorter than this are copied together when they would otherwise pile up.
const SMALL: usize = 1024;
const TAIL_MIN: usize = 256;
const TAIL_MAX: usize = 16 * 1024;
/// Pieces that are shown at a time: what one vectored write of the relay takes.
const PEEKED: usize = 16;
/// Entries that an empty queue may keep allocated.
const KEEP_ENTRIES: usize = 16;

#[derive(Debug, Default)]
pub(crate) struct ByteQueue {
    chunks: VecDeque<Chunk>,
    /// How many of the chunks are references.
    references: usize,
    /// So many chunks at the front are not references.
    copied: usize,
    /// Youngest bytes, still growing.
    tail: BytesMut,
    len: usize,
}

#[derive(Debug)]
struct Chunk {
    bytes: Bytes,
    /// Came from outside, and may hold on to more memory than its own.
    is_reference: bool,
}

impl ByteQueue {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of pieces that were appended by reference and are still there, each perhaps a part of a larger buffer.
    pub(crate) fn references(&self) -> usize {
        self.references
    }

    /// Number of buffers that the queue holds on to.
    #[cfg(test)]
    fn pieces(&self) -> usize {
        self.chunks.len() + usize::from(!self.tail.is_empty())
    }

    /// Appends by reference, except small pieces behind others: those are collected.
    pub(crate) fn push(&mut self, bytes: Bytes) {
        if self.refers_to(bytes.len()) {
            self.push_reference(bytes);
        } else {
            self.push_copy(&bytes);
        }
    }

    /// Whether [`Self::push`] would keep a piece of this length by reference.
    pub(crate) fn refers_to(&self, length: usize) -> bool {
        length >= SMALL || self.len == 0
    }

    /// Appends by reference.
    fn push_reference(&mut self, bytes: Bytes) {
        if bytes.is_empty() {
            return;
        }
        self.seal_tail();
        self.len += bytes.len();
        self.references += 1;
        self.chunks.push_back(Chunk {
            bytes,
            is_reference: true,
        });
    }

    /// Appends a copy that costs about its size in memory.
    pub(crate) fn push_copy(&mut self, mut bytes: &[u8]) {
        self.len += bytes.len();
        while !bytes.is_empty() {
            let room = self.tail.capacity() - self.tail.len();
            if room == 0 {
                let grown = (self.tail.len() * 2).clamp(TAIL_MIN, TAIL_MAX);
                self.seal_tail();
                self.tail = BytesMut::with_capacity(grown.max(bytes.len().min(TAIL_MAX)));
                continue;
            }
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.tail.extend_from_slice(now);
            bytes = later;
        }
    }

    /// Takes up to `max` bytes from the front, as one piece.
    pub(crate) fn pop(&mut self, max: usize) -> Option<Bytes> {
        if self.chunks.is_empty() {
            self.seal_tail();
        }
        let front = self.chunks.front_mut()?;
        let piece = if front.bytes.len() <= max {
            let chunk = self.chunks.pop_front()?;
            self.references -= usize::from(chunk.is_reference);
            self.copied = self.copied.saturating_sub(1);
            chunk.bytes
        } else {
            front.bytes.split_to(max)
        };
        self.len -= piece.len();
        if self.len == 0 && self.chunks.capacity() > KEEP_ENTRIES {
            self.chunks = VecDeque::new();
        }
        Some(piece)
    }

    /// Appends up to `max` bytes from the front, and up to [`PEEKED`] pieces, to `out`, and keeps them; answers how many bytes.
    pub(crate) fn peek(&mut self, max: usize, out: &mut Vec<Bytes>) -> usize {
        if self.len - self.tail.len() < max {
            self.seal_tail();
        }
        let mut left = max;
        for chunk in self.chunks.iter().take(PEEKED) {
            if left == 0 {
                break;
            }
            let length = chunk.bytes.len().min(left);
            out.push(chunk.bytes.slice(..length));
            left -= length;
        }
        max - left
    }

    /// Drops up to `count` bytes from the front; answers how many.
    pub(crate) fn advance(&mut self, count: usize) -> usize {
        let mut left = count;
        while left > 0 {
            let Some(piece) = self.pop(left) else {
                break;
            };
            left -= piece.len();
        }
        count - left
    }

    /// Replaces the oldest reference by a copy of its bytes; `false` if there is none.
    pub(crate) fn copy_oldest_reference(&mut self) -> bool {
        while let Some(chunk) = self.chunks.get_mut(self.copied) {
            self.copied += 1;
            if chunk.is_reference {
                chunk.bytes = Bytes::copy_from_slice(&chunk.bytes);
                chunk.is_reference = false;
                self.references -= 1;
                return true;
            }
        }
        false
    }

    pub(crate) fn clear(&mut self) {
        *self = Self::default();
    }

    fn seal_tail(&mut self) {
        let tail = std::mem::take(&mut self.tail);
        if !tail.is_empty() {
            self.chunks.push_back(Chunk {
                bytes: tail.freeze(),
                is_reference: false,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_come_out_in_order_whatever_way_they_went_in() {
        let mut queue = ByteQueue::default();
        let mut expected = Vec::new();
        for i in 0..2000_u32 {
            let piece = vec![i.to_le_bytes()[0]; 1 + (i as usize * 7) % 1500];
            expected.extend_from_slice(&piece);
            match i % 3 {
                0 => queue.push(piece.into()),
                1 => queue.push_copy(&piece),
                _ => queue.push_reference(piece.into()),
            }
        }
        assert_eq!(queue.len(), expected.len());
        let mut seen = Vec::new();
        assert_eq!(queue.peek(1000, &mut seen), 1000);
        assert_eq!(seen.concat(), expected[..1000]);
        assert_eq!((queue.advance(0), queue.advance(700)), (0, 700));
        expected.drain(..700);
        seen.clear();
        let count = queue.peek(usize::MAX, &mut seen);
        assert_eq!(seen.len(), PEEKED);
        assert_eq!(seen.concat(), expected[..count]);
        drop(seen);
        let mut got = Vec::new();
        while let Some(piece) = queue.pop(777) {
            assert!(!piece.is_empty() && piece.len() <= 777);
            got.extend_from_slice(&piece);
        }
        assert_eq!(got, expected);
        assert!(queue.is_empty());
        assert_eq!((queue.advance(1), queue.peek(1, &mut Vec::new())), (0, 0));
        assert_eq!((queue.pieces(), queue.references()), (0, 0));
    }

    #[test]
    fn references_count_until_the_last_byte_of_them_is_taken() {
        let mut queue = ByteQueue::default();
        queue.push_copy(&[1; 100]);
        queue.push_reference(vec![2; 100].into());
        queue.push_copy(&[3; 100]);
        queue.push_reference(vec![4; 100].into());
        assert_eq!(queue.references(), 2);
        let counts: Vec<usize> =
            std::iter::from_fn(|| queue.pop(60).map(|_| queue.references())).collect();
        assert_eq!(counts, [2, 2, 2, 1, 1, 1, 1, 0]);
        queue.push_reference(vec![5; 100].into());
        queue.clear();
        assert_eq!(queue.references(), 0);
    }

    #[test]
    fn references_become_copies_from_the_oldest_on() {
        let outside = Bytes::from(vec![7; 100]);
        let mut queue = ByteQueue::default();
        queue.push_copy(&[1; 100]);
        queue.push_reference(outside.clone());
        queue.push_copy(&[2; 100]);
        queue.push_reference(outside.clone());
        assert!(queue.copy_oldest_reference());
        assert_eq!(queue.references(), 1);
        // What is taken at the front does not make the next one be passed over.
        assert_eq!(queue.pop(100).map(|piece| piece[0]), Some(1));
        assert_eq!(queue.pop(100).map(|piece| piece[0]), Some(7));
        assert_eq!(queue.pop(100).map(|piece| piece[0]), Some(2));
        queue.push_reference(outside.clone());
        assert!(queue.copy_oldest_reference() && queue.copy_oldest_reference());
        assert!(!queue.copy_oldest_reference());
        assert_eq!(queue.references(), 0);
        assert!(outside.is_unique());
        let rest: Vec<u8> = std::iter::from_fn(|| queue.pop(100).map(|piece| piece[99])).collect();
        assert_eq!(rest, [7, 7]);
    }

    #[test]
    fn many_tiny_pieces_cost_about_their_size() {
        let mut queue = ByteQueue::default();
        for _ in 0..65_536 {
            queue.push(Bytes::from_static(b"x"));
        }
        assert!(queue.pieces() < 20, "{}", queue.pieces());
    }
}
