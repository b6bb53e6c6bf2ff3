//! One conversation twice: once record by record and in one batch, once with other records, other reads
//! and small batches. What the owner sees and what each stream carries must be the same.

use std::collections::BTreeMap;
use std::io::IoSlice;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sg_tunnel::{Batch, Config, Connection, Incoming, Key, Read, Side, code};

use crate::targets::hostile::start;
use crate::targets::script::{self, ACK, Ids, LOGGED, Script};

const MOST_OPERATIONS: usize = 300;

/// What the peer sends between two acts of the owner.
#[derive(Default)]
struct Segment(Vec<(u8, Vec<u8>)>);

/// One of the two runs.
struct Run {
    end: Connection,
    now: Instant,
    keys: Vec<Key>,
    input: BytesMut,
    /// LOGGED bytes that came out.
    logged: u64,
    /// ACK is allowed.
    acks: bool,
    /// Everything that was seen, in words; what was read and what was sent.
    seen: Vec<String>,
    read: Vec<Vec<u8>>,
    sent: Vec<Sent>,
}

pub fn batching(input: &[u8]) {
    let mut script = Script(input);
    let seed = script.wide();
    let shape = script.byte();
    let mut runs = [Run::new(shape), Run::new(shape)];
    let mut ids = Ids::default();
    let mut cuts = Cuts(u32::from(seed) + 1);
    let mut segment = Segment::default();
    segment.0.push((LOGGED, script::settings(20)));
    for _ in 0..MOST_OPERATIONS {
        if script.is_over() {
            break;
        }
        if script.byte() < 160 {
            segment.0.push(ids.frame(&mut script));
            continue;
        }
        let act = [script.byte(), script.byte(), script.byte()];
        step(&mut runs, &mut segment, &mut cuts, act);
    }
    step(&mut runs, &mut segment, &mut cuts, [0, 0, 0]);
}

fn step(runs: &mut [Run; 2], segment: &mut Segment, cuts: &mut Cuts, act: [u8; 3]) {
    let [plain, cut] = runs;
    for (kind, content) in &segment.0 {
        plain.deliver(&script::record(*kind, content));
    }
    for piece in segment.with_other_boundaries(cuts) {
        cut.deliver(&piece);
    }
    segment.0.clear();
    for run in [&mut *plain, &mut *cut] {
        run.act(act);
        run.look();
    }
    if act[0] & 1 == 0 {
        plain.transmit(1 << 24);
        cut.transmit(1024 + cuts.below(8000));
    }
    assert_eq!(plain.seen, cut.seen);
    assert!(plain.read == cut.read, "other bytes were read");
    assert!(plain.sent == cut.sent, "other frames were sent");
    for run in [plain, cut] {
        run.seen.clear();
        run.read.clear();
        run.sent.clear();
    }
}

impl Segment {
    /// The same frames in other records, and those in other reads.
    fn with_other_boundaries(&self, cuts: &mut Cuts) -> Vec<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut items = self.0.iter().peekable();
        while let Some((kind, content)) = items.next() {
            let mut content = content.clone();
            while let Some((_, more)) = items.next_if(|(next, _)| next == kind) {
                content.extend_from_slice(more);
            }
            if *kind != LOGGED {
                bytes.extend(script::record(*kind, &content));
                continue;
            }
            let mut rest = &content[..];
            while !rest.is_empty() {
                let (now, later) = rest.split_at(cuts.piece(rest.len()));
                bytes.extend(script::record(LOGGED, now));
                rest = later;
            }
        }
        let mut reads = Vec::new();
        let mut rest = &bytes[..];
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cuts.piece(rest.len()));
            reads.push(now.to_vec());
            rest = later;
        }
        reads
    }
}

/// Where to cut.
struct Cuts(u32);

impl Cuts {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 8) as usize % end
    }

    fn piece(&mut self, most: usize) -> usize {
        let wanted = match self.below(4) {
            0 => 1 + self.below(8),
            1 => 1 + self.below(40),
            2 => 1 + self.below(3000),
            _ => most,
        };
        wanted.min(most)
    }
}

impl Run {
    fn new(shape: u8) -> Self {
        let config = Config {
            max_streams: [8, 100][usize::from(shape & 1)],
            growth_budget: [0, 100_000][usize::from(shape >> 1 & 1)],
            resume_time: Duration::from_secs([0, 30][usize::from(shape >> 2 & 1)]),
            ..Config::default()
        };
        Self {
            end: Connection::new(Side::Node, config, start()),
            now: start(),
            keys: Vec::new(),
            input: BytesMut::new(),
            logged: 0,
            acks: shape >> 2 & 1 == 1,
            seen: Vec::new(),
            read: Vec::new(),
            sent: Vec::new(),
        }
    }

    fn deliver(&mut self, bytes: &[u8]) {
        self.end.handle_received(self.now, bytes.len());
        self.input.extend_from_slice(bytes);
        self.end.handle_input(self.now, &mut self.input);
    }

    /// One act of the owner.
    fn act(&mut self, [what, which, much]: [u8; 3]) {
        let key = self
            .keys
            .get(usize::from(which) % self.keys.len().max(1))
            .copied();
        let end = &mut self.end;
        match (what >> 1 & 15, key) {
            (0, _) => {
                if let Ok(key) = end.open(Bytes::from(vec![1; much.into()])) {
                    self.keys.push(key);
                }
            }
            (1, _) => {
                if let Ok(key) = end.open_flow(Bytes::from(vec![1; much.into()])) {
                    self.keys.push(key);
                }
            }
            (2, _) => drop(end.send_control(Bytes::from(vec![2; much.into()]))),
            (3, _) => {
                self.now += Duration::from_millis(much.into());
                end.handle_timeout(self.now);
            }
            (4, Some(key)) => end.release(key, code::CANCEL),
            (5, Some(key)) => end.reset(key, much.into()),
            (6 | 7, Some(key)) => {
                let mut piece = Bytes::from(vec![which; usize::from(much) * 300]);
                self.seen
                    .push(format!("write {:?}", end.write(key, &mut piece)));
            }
            (8 | 9, Some(key)) => self.read_all(key),
            (10, Some(key)) => self.seen.push(format!("finish {:?}", end.finish(key))),
            (11, Some(key)) => {
                let sent = end.send_datagram(self.now, key, Bytes::from(vec![3; much.into()]));
                self.seen.push(format!("datagram {sent:?}"));
            }
            (12, Some(key)) => self.seen.push(format!("{:?}", end.receive_datagram(key))),
            (13, Some(key)) => end.set_weight(key, much),
            (14, _) => {
                // Everything that was sent has arrived there.
                let record = script::record(ACK, &self.logged.to_be_bytes());
                self.deliver(&record);
            }
            (15, _) if much == 0 => end.goaway(),
            _ => {}
        }
    }

    fn read_all(&mut self, key: Key) {
        let mut bytes = Vec::new();
        let last = loop {
            match self.end.read(key, 5000) {
                Ok(Read::Chunk(chunk)) => bytes.extend_from_slice(&chunk),
                other => break other,
            }
        };
        self.seen.push(format!("read {last:?}"));
        self.read.push(bytes);
    }

    /// Events in any order, offers and messages in theirs.
    fn look(&mut self) {
        let mut events = Vec::new();
        while let Some(event) = self.end.poll_event() {
            events.push(format!("{event:?}"));
        }
        events.sort();
        events.dedup();
        self.seen.extend(events);
        while let Some(incoming) = self.end.poll_incoming() {
            if let Incoming::Offer { key, .. } = &incoming {
                if self.keys.len() % 4 == 3 {
                    self.end.release(*key, code::REFUSED);
                } else {
                    self.end.accept(*key, Bytes::from_static(b"answer"));
                    self.keys.push(*key);
                }
            }
            self.seen.push(format!("{incoming:?}"));
        }
        let stats = self.end.stats();
        let numbers = (stats.unread_bytes, stats.growth_used, self.end.streams());
        self.seen
            .push(format!("{numbers:?} {:?}", self.end.closed()));
    }

    /// Sends everything in batches of `limit`; what each stream carries is put together again. The peer
    /// acknowledges each batch, so that nothing waits for the log.
    fn transmit(&mut self, limit: usize) {
        let mut sent = Sent::default();
        for _ in 0..10_000 {
            let mut batch = Batch::default();
            self.end.poll_transmit(self.now, &mut batch, limit);
            if batch.is_empty() {
                break;
            }
            let before = self.logged;
            while !batch.is_empty() {
                let mut slices = [IoSlice::new(&[]); 16];
                let count = batch.slices(&mut slices);
                let mut step = 0;
                for slice in &slices[..count] {
                    sent.raw.extend_from_slice(slice);
                    step += slice.len();
                }
                batch.advance(step);
            }
            sent.records(&mut self.logged);
            if self.acks && self.logged > before {
                let record = script::record(ACK, &self.logged.to_be_bytes());
                self.deliver(&record);
            }
        }
        sent.frames();
        if self.end.closed().is_some() {
            // How much of its last input a tunnel had taken when it ended is nobody's business.
            sent.ack.clear();
        }
        self.sent.push(sent);
        self.look();
    }
}

/// What was sent, without the boundaries.
#[derive(Debug, Default, PartialEq)]
struct Sent {
    /// Records, logged frames and others that are not taken apart yet.
    raw: Vec<u8>,
    log: Vec<u8>,
    others: Vec<u8>,
    /// Per stream: its bytes, and its other frames, each in order.
    streams: BTreeMap<u32, (Vec<u8>, Vec<Vec<u8>>)>,
    tunnel: Vec<Vec<u8>>,
    /// Only the last of these counts.
    streams_credit: Vec<u8>,
    ack: Vec<u8>,
}

impl Sent {
    fn records(&mut self, logged: &mut u64) {
        let raw = std::mem::take(&mut self.raw);
        let mut bytes = &raw[..];
        while let [kind, a, b, c, rest @ ..] = bytes {
            let length = usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c);
            let (content, after) = rest.split_at(length);
            match kind {
                0 => {
                    self.log.extend_from_slice(content);
                    *logged += length as u64;
                }
                1 => self.others.extend_from_slice(content),
                _ => self.ack = content.to_vec(),
            }
            bytes = after;
        }
    }

    fn frames(&mut self) {
        for bytes in [
            std::mem::take(&mut self.log),
            std::mem::take(&mut self.others),
        ] {
            self.sort(&bytes);
        }
    }

    fn sort(&mut self, mut bytes: &[u8]) {
        while let [kind, flags, a, b, id @ ..] = bytes {
            let length = usize::from(*a) << 8 | usize::from(*b);
            let (id, rest) = id.split_at(4);
            let number = u32::from_be_bytes(id.try_into().expect("invariant: four bytes"));
            let (payload, after) = rest.split_at(length);
            let whole = bytes[..8 + length].to_vec();
            match kind {
                0 => {
                    let (data, others) = self.streams.entry(number).or_default();
                    data.extend_from_slice(payload);
                    if flags & 1 != 0 {
                        others.push(b"FIN".to_vec());
                    }
                }
                0x0b => self.streams_credit = payload.to_vec(),
                _ if number == 0 => self.tunnel.push(whole),
                _ => self.streams.entry(number).or_default().1.push(whole),
            }
            bytes = after;
        }
    }
}
