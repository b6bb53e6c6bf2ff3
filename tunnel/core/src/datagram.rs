//! Datagrams that wait: a short queue per flow and direction, one bound per tunnel and direction, and
//! whoever is full loses the oldest.
//!
//! Nothing here makes anybody wait, and nothing here is shared with the streams that carry bytes. What
//! a datagram may do on the wire is in `connection::flows`.
//!
//! The bound of the tunnel takes the datagram that came first, of whichever flow. So a flow that
//! nobody reads loses its own datagrams and never those of the others. [`Shelf`] remembers the order
//! of all; what was taken from the middle stays listed there until it comes to the front, or until
//! such stale entries are half of the list.

use std::collections::VecDeque;
use std::time::Instant;

use bytes::Bytes;

use crate::config::DatagramLimits;
use crate::stream::Key;
use crate::table::Table;

/// What a waiting datagram costs besides its bytes, charged to the bound of the tunnel.
const OVERHEAD: usize = 64;
/// Stale entries that may stay listed in any case.
const STALE: usize = 64;
/// Entries that an empty queue may keep allocated.
const KEEP_ENTRIES: usize = 8;
/// Datagrams that may wait as slices of the buffers that they came in, whatever else these hold.
const HELD_BUFFERS: usize = 128;
/// A longer datagram never is copied: it is an eighth of such a buffer at least.
const LARGE: usize = 8 * 1024;

#[derive(Clone, Copy, Debug)]
pub(crate) enum Direction {
    In,
    Out,
}

/// The datagrams of one flow.
#[derive(Debug, Default)]
pub(crate) struct Flow {
    inbox: FlowQueue,
    outbox: FlowQueue,
    /// Bytes that the flow may still send in this turn; below zero it has sent them in advance.
    pub(crate) deficit: i64,
    /// In the scheduler's list of flows.
    pub(crate) listed: bool,
}

impl Flow {
    pub(crate) fn queue(&self, direction: Direction) -> &FlowQueue {
        match direction {
            Direction::In => &self.inbox,
            Direction::Out => &self.outbox,
        }
    }

    fn queue_mut(&mut self, direction: Direction) -> &mut FlowQueue {
        match direction {
            Direction::In => &mut self.inbox,
            Direction::Out => &mut self.outbox,
        }
    }
}

/// Datagrams of one flow in one direction, the oldest first.
#[derive(Debug, Default)]
pub(crate) struct FlowQueue {
    list: VecDeque<Waiting>,
    bytes: usize,
}

#[derive(Debug)]
struct Waiting {
    serial: u64,
    since: Instant,
    payload: Bytes,
}

impl FlowQueue {
    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Number of datagrams and their bytes.
    pub(crate) fn size(&self) -> (usize, usize) {
        (self.list.len(), self.bytes)
    }

    fn holds(&self, serial: u64) -> bool {
        self.list.front().is_some_and(|w| w.serial <= serial)
    }
}

/// All datagrams of a tunnel that wait in one direction.
#[derive(Debug)]
pub(crate) struct Shelf {
    direction: Direction,
    /// Every waiting datagram in the order of arrival, and some that are gone.
    order: VecDeque<(Key, u64)>,
    waiting: usize,
    bytes: usize,
    next_serial: u64,
}

impl Shelf {
    pub(crate) fn new(direction: Direction) -> Self {
        Self {
            direction,
            order: VecDeque::new(),
            waiting: 0,
            bytes: 0,
            next_serial: 0,
        }
    }

    /// Number of waiting datagrams.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// What waits, in bytes, with what it costs besides.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds a datagram; returns how many others (or itself) had to go for it.
    pub(crate) fn push(
        &mut self,
        table: &mut Table,
        key: Key,
        now: Instant,
        payload: Bytes,
        limits: &DatagramLimits,
    ) -> u64 {
        let cost = payload.len() + OVERHEAD;
        let fits = payload.len() <= limits.flow_bytes && cost <= limits.tunnel_bytes;
        if !fits || limits.flow_count == 0 {
            return 1;
        }
        let mut dropped = 0;
        let Some(flow) = flow(table, key) else {
            return 1;
        };
        loop {
            let (count, bytes) = flow.queue(self.direction).size();
            if count < limits.flow_count && bytes + payload.len() <= limits.flow_bytes {
                break;
            }
            self.take(flow);
            dropped += 1;
        }
        let serial = self.next_serial;
        self.next_serial += 1;
        self.bytes += cost;
        self.waiting += 1;
        self.order.push_back((key, serial));
        let payload = match payload.len() >= LARGE || self.waiting <= HELD_BUFFERS {
            true => payload,
            false => Bytes::copy_from_slice(&payload),
        };
        let queue = flow.queue_mut(self.direction);
        queue.bytes += payload.len();
        queue.list.push_back(Waiting {
            serial,
            since: now,
            payload,
        });
        while self.bytes > limits.tunnel_bytes && self.drop_oldest(table) {
            dropped += 1;
        }
        self.forget_stale(table);
        dropped
    }

    /// Takes the oldest datagram of a flow, with the time at which it came.
    pub(crate) fn take(&mut self, flow: &mut Flow) -> Option<(Bytes, Instant)> {
        let queue = flow.queue_mut(self.direction);
        let taken = queue.list.pop_front()?;
        queue.bytes -= taken.payload.len();
        if queue.list.is_empty() && queue.list.capacity() > KEEP_ENTRIES {
            queue.list = VecDeque::new();
        }
        self.bytes -= taken.payload.len() + OVERHEAD;
        self.waiting -= 1;
        if self.order.front().is_some_and(|(_, s)| *s == taken.serial) {
            self.order.pop_front();
        }
        if self.waiting == 0 {
            self.order = VecDeque::new();
        }
        Some((taken.payload, taken.since))
    }

    /// Forgets what a flow has waiting; returns how much that was.
    pub(crate) fn clear(&mut self, flow: &mut Flow) -> u64 {
        let mut count = 0;
        while self.take(flow).is_some() {
            count += 1;
        }
        count
    }

    /// Forgets everything; returns how much that was.
    pub(crate) fn clear_all(&mut self, table: &mut Table) -> u64 {
        let mut count = 0;
        while self.drop_oldest(table) {
            count += 1;
        }
        count
    }

    fn drop_oldest(&mut self, table: &mut Table) -> bool {
        while let Some((key, serial)) = self.order.pop_front() {
            let Some(flow) = flow(table, key) else {
                continue;
            };
            if flow.queue(self.direction).holds(serial) {
                self.take(flow);
                return true;
            }
        }
        false
    }

    fn forget_stale(&mut self, table: &mut Table) {
        if self.order.len() > 2 * self.waiting + STALE {
            let direction = self.direction;
            self.order.retain(|(key, serial)| {
                flow(table, *key).is_some_and(|flow| flow.queue(direction).holds(*serial))
            });
        }
    }
}

fn flow(table: &mut Table, key: Key) -> Option<&mut Flow> {
    table.get_mut(key)?.flow.as_deref_mut()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::stream::Phase;

    fn flows(count: u32) -> (Table, Vec<Key>) {
        let mut table = Table::default();
        let keys = (1..=count)
            .map(|id| {
                let stream = table.insert(id, Phase::Offered);
                stream.flow = Some(Box::default());
                stream.key
            })
            .collect();
        (table, keys)
    }

    fn limits() -> DatagramLimits {
        DatagramLimits::default()
    }

    fn take(shelf: &mut Shelf, table: &mut Table, key: Key) -> Option<Bytes> {
        let flow = flow(table, key)?;
        shelf.take(flow).map(|(payload, _)| payload)
    }

    #[test]
    fn a_full_flow_loses_its_oldest_by_count_and_by_bytes() {
        let (mut table, keys) = flows(1);
        let mut shelf = Shelf::new(Direction::Out);
        let now = Instant::now();
        let mut dropped = 0;
        for i in 0..70_u8 {
            let payload = Bytes::copy_from_slice(&[i]);
            dropped += shelf.push(&mut table, keys[0], now, payload, &limits());
        }
        assert_eq!(dropped, 6);
        let first = take(&mut shelf, &mut table, keys[0]);
        assert_eq!(first.as_deref(), Some(&[6][..]));
        let large = Bytes::from(vec![1; 65_507]);
        let dropped = shelf.push(&mut table, keys[0], now, large, &limits());
        assert_eq!(
            dropped, 34,
            "63 were left, 29 bytes fit beside the large one"
        );
        assert_eq!(shelf.waiting(), 30);
        assert_eq!(
            shelf.push(
                &mut table,
                keys[0],
                now,
                Bytes::from(vec![0; 65_537]),
                &limits()
            ),
            1
        );
        assert_eq!(shelf.waiting(), 30, "what never fits drops nothing else");
        while take(&mut shelf, &mut table, keys[0]).is_some() {}
        assert_eq!((shelf.waiting(), shelf.bytes, shelf.order.len()), (0, 0, 0));
    }

    #[test]
    fn what_waits_holds_on_to_few_buffers() {
        for (length, most) in [(1, HELD_BUFFERS), (LARGE - 1, HELD_BUFFERS), (LARGE, 200)] {
            let (mut table, keys) = flows(200);
            let mut shelf = Shelf::new(Direction::Out);
            let buffers: Vec<Bytes> = keys.iter().map(|_| Bytes::from(vec![7; LARGE])).collect();
            let unbounded = DatagramLimits {
                tunnel_bytes: usize::MAX,
                ..limits()
            };
            for (key, buffer) in keys.iter().zip(&buffers) {
                let payload = buffer.slice(..length);
                shelf.push(&mut table, *key, Instant::now(), payload, &unbounded);
            }
            assert_eq!(shelf.waiting(), 200);
            let held = buffers.iter().filter(|buffer| !buffer.is_unique());
            assert_eq!(held.count(), most, "{length} bytes");
            for key in keys {
                let payload = take(&mut shelf, &mut table, key).unwrap();
                assert_eq!(payload, vec![7; length]);
            }
        }
    }

    #[test]
    fn a_full_tunnel_loses_the_oldest_of_whichever_flow() {
        let (mut table, keys) = flows(40);
        let mut shelf = Shelf::new(Direction::In);
        let now = Instant::now();
        let mut dropped = 0;
        // 17 flows that nobody reads fill the tunnel.
        for key in &keys[..17] {
            for _ in 0..4 {
                let payload = Bytes::from(vec![0; 16_000]);
                dropped += shelf.push(&mut table, *key, now, payload, &limits());
            }
        }
        assert_eq!(dropped, 3);
        // Others go on as if they were alone.
        for round in 0..1000_usize {
            let key = keys[17 + round % 23];
            let payload = Bytes::from(vec![1; 1200]);
            shelf.push(&mut table, key, now, payload.clone(), &limits());
            assert_eq!(take(&mut shelf, &mut table, key), Some(payload));
            assert!(shelf.bytes <= limits().tunnel_bytes);
            assert!(shelf.order.len() <= 2 * shelf.waiting() + STALE + 2);
        }
        for key in keys {
            shelf.clear(flow(&mut table, key).unwrap());
        }
        assert_eq!((shelf.waiting(), shelf.bytes, shelf.order.len()), (0, 0, 0));
    }
}
