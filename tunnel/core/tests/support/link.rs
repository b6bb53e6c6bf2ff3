//! A link between two ends in virtual time: latency, a rate, a bounded buffer in each direction, and
//! an end that may come at any byte of either direction. What it carries is none of its business.
#![allow(dead_code, unreachable_pub, missing_debug_implementations)]

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use bytes::BytesMut;

/// What a link is like in both directions.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub latency: Duration,
    /// Bytes per second; `None` is without limit.
    pub rate: Option<u64>,
    /// Bytes that may be under way in one direction.
    pub buffer: usize,
}

/// One direction: pieces with the time at which they have arrived.
#[derive(Default)]
struct Lane {
    pieces: VecDeque<(Instant, BytesMut)>,
    length: usize,
    /// When the last byte leaves the sender, at the rate of the link.
    free_at: Option<Instant>,
}

/// Side 0 is the node, side 1 the client; lane 0 is what the node has written.
pub struct Link {
    shape: Shape,
    lanes: [Lane; 2],
    cut: bool,
}

impl Link {
    pub fn new(shape: Shape) -> Self {
        Self {
            shape,
            lanes: Default::default(),
            cut: false,
        }
    }

    /// Bytes that `side` can write now. A link that is cut swallows everything.
    pub fn room(&self, side: usize) -> usize {
        self.shape.buffer.saturating_sub(self.lanes[side].length)
    }

    /// Lets more bytes be under way.
    pub fn widen(&mut self, buffer: usize) {
        self.shape.buffer = buffer;
    }

    pub fn write(&mut self, side: usize, now: Instant, bytes: BytesMut) {
        if self.cut || bytes.is_empty() {
            return;
        }
        let lane = &mut self.lanes[side];
        let mut leaves = lane.free_at.map_or(now, |at| at.max(now));
        if let Some(rate) = self.shape.rate {
            leaves += Duration::from_nanos(bytes.len() as u64 * 1_000_000_000 / rate);
        }
        lane.free_at = Some(leaves);
        lane.length += bytes.len();
        lane.pieces.push_back((leaves + self.shape.latency, bytes));
    }

    /// At most `limit` bytes that have arrived at `side`.
    pub fn read(&mut self, side: usize, now: Instant, limit: usize) -> Option<BytesMut> {
        let lane = &mut self.lanes[1 - side];
        let (arrival, piece) = lane.pieces.front_mut()?;
        if *arrival > now {
            return None;
        }
        let taken = if piece.len() <= limit {
            lane.pieces.pop_front()?.1
        } else {
            piece.split_to(limit)
        };
        lane.length -= taken.len();
        Some(taken)
    }

    /// When the next bytes arrive at `side`.
    pub fn arrival(&self, side: usize) -> Option<Instant> {
        Some(self.lanes[1 - side].pieces.front()?.0)
    }

    /// Bytes under way from `side`.
    pub fn under_way(&self, side: usize) -> usize {
        self.lanes[side].length
    }

    /// Ends the link: of what is under way from each side only the first `keep` bytes still arrive.
    pub fn cut(&mut self, keep: [usize; 2]) {
        self.cut = true;
        for (lane, mut keep) in self.lanes.iter_mut().zip(keep) {
            lane.pieces.retain_mut(|(_, piece)| {
                piece.truncate(keep);
                keep -= piece.len();
                !piece.is_empty()
            });
            lane.length = lane.pieces.iter().map(|(_, piece)| piece.len()).sum();
        }
    }

    pub fn is_cut(&self) -> bool {
        self.cut
    }
}
