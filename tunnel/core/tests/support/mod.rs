//! Two connections and a link between them, all in virtual time; a random source that a seed replays.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::disallowed_methods
)]

pub mod link;
pub mod wire;

use std::collections::VecDeque;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sg_tunnel::frame::{Frame, Settings};
use sg_tunnel::record::{RecordHeader, is_unlogged, kind};
use sg_tunnel::{Batch, Config, Connection, Side};

/// SplitMix64: good enough to choose, small enough to read.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % end.max(1) as u64).expect("invariant: below a usize")
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// One direction of the link: bytes with the time at which they arrive.
#[derive(Default)]
struct Lane {
    chunks: VecDeque<(Instant, Bytes)>,
}

/// Side 0 is the node, side 1 the client.
pub struct Pair {
    pub now: Instant,
    pub ends: [Connection; 2],
    lanes: [Lane; 2],
    inputs: [BytesMut; 2],
    pub latency: Duration,
}

impl Pair {
    pub fn new(node: Config, client: Config) -> Self {
        let now = Instant::now();
        Self {
            now,
            ends: [
                Connection::new(Side::Node, node, now),
                Connection::new(Side::Client, client, now),
            ],
            lanes: Default::default(),
            inputs: Default::default(),
            latency: Duration::ZERO,
        }
    }

    /// Moves at most `limit` bytes out of one end onto the link.
    pub fn send(&mut self, side: usize, limit: usize) {
        let bytes = transmit(&mut self.ends[side], self.now, limit);
        if !bytes.is_empty() {
            let arrival = self.now + self.latency;
            self.lanes[side].chunks.push_back((arrival, bytes));
        }
    }

    /// Delivers at most `limit` bytes that have arrived at `side`.
    pub fn receive(&mut self, side: usize, limit: usize) {
        let Some((arrival, chunk)) = self.lanes[1 - side].chunks.front_mut() else {
            return;
        };
        if *arrival > self.now {
            return;
        }
        let piece = chunk.split_to(limit.min(chunk.len()));
        if chunk.is_empty() {
            self.lanes[1 - side].chunks.pop_front();
        }
        self.ends[side].handle_received(self.now, piece.len());
        self.inputs[side].extend_from_slice(&piece);
        self.ends[side].handle_input(self.now, &mut self.inputs[side]);
    }

    /// Everything that can move without anybody acting has moved.
    pub fn settle(&mut self) {
        for _ in 0..1000 {
            self.now += self.latency;
            for side in [0, 1] {
                self.send(side, 64 * 1024);
                for _ in 0..64 {
                    self.receive(side, usize::MAX);
                }
            }
            let quiet = self.ends.iter().all(|c| !c.wants_transmit());
            if quiet && self.lanes.iter().all(|l| l.chunks.is_empty()) {
                return;
            }
        }
        panic!("the pair never comes to rest");
    }

    pub fn drop_events(&mut self) {
        for end in &mut self.ends {
            while end.poll_event().is_some() {}
        }
    }
}

/// Appends one batch to `out`.
pub fn transmit_into(end: &mut Connection, now: Instant, limit: usize, out: &mut BytesMut) {
    let mut batch = Batch::default();
    end.poll_transmit(now, &mut batch, limit);
    while !batch.is_empty() {
        let mut slices = [IoSlice::new(&[]); 16];
        let count = batch.slices(&mut slices);
        let mut step = 0;
        for slice in &slices[..count] {
            out.extend_from_slice(slice);
            step += slice.len();
        }
        batch.advance(step);
    }
}

/// One batch as plain bytes.
pub fn transmit(end: &mut Connection, now: Instant, limit: usize) -> Bytes {
    let mut bytes = BytesMut::new();
    transmit_into(end, now, limit, &mut bytes);
    bytes.freeze()
}

/// A record with its header.
pub fn record(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut bytes = RecordHeader { kind, length }.to_bytes().to_vec();
    bytes.extend_from_slice(content);
    bytes
}

/// Cuts what was sent into records; they are whole.
pub fn records(mut bytes: Bytes) -> Vec<(u8, Bytes)> {
    let mut records = Vec::new();
    while !bytes.is_empty() {
        let header = bytes.split_to(4);
        let header = RecordHeader::parse([header[0], header[1], header[2], header[3]]);
        let RecordHeader { kind, length } = header.expect("a record of ours");
        records.push((kind, bytes.split_to(length)));
    }
    records
}

/// One end with a scripted peer.
pub struct Solo {
    pub end: Connection,
    pub now: Instant,
    input: BytesMut,
}

impl Solo {
    /// The end under test is the node; the script plays the client.
    pub fn node(config: Config) -> Self {
        let mut solo = Self::silent(config);
        solo.frame(&Frame::Settings(Settings {
            max_streams: 100,
            max_frame: 16_376,
            max_metadata: 4096,
        }));
        solo.sent();
        solo
    }

    /// Before the peer's SETTINGS.
    pub fn silent(config: Config) -> Self {
        let now = Instant::now();
        Self {
            end: Connection::new(Side::Node, config, now),
            now,
            input: BytesMut::new(),
        }
    }

    pub fn frame(&mut self, frame: &Frame) {
        let mut bytes = Vec::new();
        frame.put(&mut bytes);
        let unlogged = is_unlogged(bytes[0]);
        self.record(u8::from(unlogged), &bytes);
    }

    /// A piece of the logged stream, in a record of its own.
    pub fn bytes(&mut self, bytes: &[u8]) {
        if !bytes.is_empty() {
            self.record(kind::LOGGED, bytes);
        }
    }

    pub fn record(&mut self, kind: u8, content: &[u8]) {
        self.raw(&record(kind, content));
    }

    /// Bytes as they come from the transport.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.end.handle_received(self.now, bytes.len());
        self.input.extend_from_slice(bytes);
        self.end.handle_input(self.now, &mut self.input);
    }

    pub fn data(&mut self, id: u32, payload: &[u8], fin: bool) {
        let mut bytes = vec![0, u8::from(fin)];
        let length = u16::try_from(payload.len()).expect("invariant: test frames are short");
        bytes.extend_from_slice(&length.to_be_bytes());
        bytes.extend_from_slice(&id.to_be_bytes());
        bytes.extend_from_slice(payload);
        self.bytes(&bytes);
    }

    /// The frames that the end wants to send now.
    pub fn sent(&mut self) -> Bytes {
        self.sent_up_to(256 * 1024)
    }

    pub fn sent_up_to(&mut self, limit: usize) -> Bytes {
        records(transmit(&mut self.end, self.now, limit))
            .into_iter()
            .filter(|(kind, _)| matches!(*kind, kind::LOGGED | kind::UNLOGGED))
            .flat_map(|(_, content)| content)
            .collect::<Vec<u8>>()
            .into()
    }

    /// The records that the end wants to send now.
    pub fn sent_records(&mut self) -> Vec<(u8, Bytes)> {
        records(transmit(&mut self.end, self.now, 256 * 1024))
    }

    pub fn wait(&mut self, time: Duration) {
        self.now += time;
        self.end.handle_timeout(self.now);
    }

    /// Code of the violation that ended it.
    pub fn violation(&self) -> Option<u32> {
        match self.end.closed()?.reason {
            sg_tunnel::CloseReason::Protocol { code, .. } => Some(code),
            _ => None,
        }
    }
}
