//! One core between a peer that may send anything at any time and an owner that may call anything in any
//! order: it never panics, promises what it can keep, and works in proportion to what it is given.

use std::io::ErrorKind;
use std::io::IoSlice;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sg_tunnel::{
    Batch, Budget, Config, Connection, Event, Incoming, Key, Peek, Rate, Read, Side, code,
};

use crate::targets::script::{self, ACK, Ids, LOGGED, RESUME, Script, UNLOGGED};
use crate::targets::wire::{Peer, Tap};

/// Operations of one input; longer ones teach nothing new.
const MOST_OPERATIONS: usize = 600;
/// Bytes that a core may send per byte that it received or was given, and per operation.
const ANSWER: u64 = 8;
const ANSWER_PER_OPERATION: u64 = 600;
/// Events per received byte are far below this.
const EVENTS: usize = 4;

struct Hostile {
    end: Connection,
    config: Config,
    budget: Arc<Budget>,
    now: Instant,
    input: BytesMut,
    keys: Vec<Key>,
    ids: Ids,
    tap: Tap,
    /// The peer's first RESUME on the present connection.
    resume: Option<u64>,
    /// The output can be understood: no arbitrary bytes came where RESUME belongs.
    tapped: bool,
    operations: u64,
}

pub fn hostile_peer(input: &[u8]) {
    let mut script = Script(input);
    let mut run = Hostile::new(&mut script);
    for _ in 0..MOST_OPERATIONS {
        if script.is_over() {
            break;
        }
        run.operation(&mut script);
        run.check();
    }
    run.end_of_run();
}

impl Hostile {
    fn new(script: &mut Script<'_>) -> Self {
        let shape = script.byte();
        let mut config = Config {
            max_streams: [4, 8, 100][usize::from(shape % 3)],
            growth_budget: 100_000,
            control_backlog: 10,
            resume_time: Duration::from_secs([0, 1, 30, 30][usize::from(shape >> 2 & 3)]),
            send_queues: 100_000,
            ..Config::default()
        };
        if shape & 0x10 != 0 {
            config.rates.opens = Rate::new(10, 5);
            config.rates.useless = Rate::new(10, 30);
            config.rates.empty_data = Rate::new(10, 10);
        }
        let budget = Arc::new(Budget::new(1_000_000));
        config.budget = budget.clone();
        let side = if shape & 0x20 == 0 {
            Side::Node
        } else {
            Side::Client
        };
        // A fixed point in time: runs are compared by what they do, not by when.
        let now = start();
        let mut run = Self {
            end: Connection::new(side, config.clone(), now),
            config,
            budget,
            now,
            input: BytesMut::new(),
            keys: Vec::new(),
            ids: Ids::default(),
            tap: Tap::new(),
            resume: Some(0),
            tapped: true,
            operations: 0,
        };
        if shape & 0xc0 != 0xc0 {
            run.peer_frame(LOGGED, &script::settings(20));
        }
        run
    }

    fn operation(&mut self, script: &mut Script<'_>) {
        self.operations += 1;
        match script.below(32) {
            0 => {
                let length = usize::from(script.byte());
                let bytes = script.take(length).to_vec();
                self.tapped &= self.resume.is_some();
                self.bytes(&bytes);
            }
            1..=9 => {
                let (kind, frame) = self.ids.frame(script);
                self.peer_frame(kind, &frame);
            }
            10 => {
                let (kind, frame) = self.ids.frame(script);
                let wrong = script.byte();
                if wrong < 16 {
                    self.peer_frame(kind ^ 1, &frame);
                } else {
                    // A frame over two records, with a PING between.
                    let (head, tail) = frame.split_at(usize::from(wrong) % (frame.len() + 1));
                    self.peer_frame(kind, head);
                    self.peer_frame(UNLOGGED, &script::frame(5, 0, 0, &[0; 8]));
                    self.peer_frame(kind, tail);
                }
            }
            11 => self.offset(ACK, script),
            12 => self.offset(RESUME, script),
            13 | 14 => self.transmit(usize::from(script.wide())),
            15 => self.pass(Duration::from_millis(script.byte().into())),
            16 => self.pass(Duration::from_secs(u64::from(script.byte()) / 4)),
            17 => {
                if let Some(at) = self.end.poll_timeout() {
                    self.pass(at.saturating_duration_since(self.now));
                }
            }
            18 => self.transport(script),
            _ => self.owner(script),
        }
        self.drain();
    }

    /// Something that the side's own applications and owner do.
    fn owner(&mut self, script: &mut Script<'_>) {
        let what = script.below(20);
        let end = &mut self.end;
        let chosen = usize::from(script.byte());
        let key = (!self.keys.is_empty()).then(|| self.keys[chosen % self.keys.len()]);
        match (what, key) {
            (0, _) if self.keys.len() < 300 => {
                if let Ok(key) = end.open(Bytes::from(vec![1; chosen * 20])) {
                    self.keys.push(key);
                }
            }
            (1, _) if self.keys.len() < 300 => {
                if let Ok(key) = end.open_flow(Bytes::from(vec![1; chosen])) {
                    self.keys.push(key);
                }
            }
            (2, _) => done(end.send_control(Bytes::from(vec![3; chosen]))),
            (3, _) if chosen < 16 => end.goaway(),
            (3, _) if chosen < 24 => end.close(u32::from(script.byte()) % 16, "enough"),
            (3, _) if chosen < 28 => end.stop_incoming(),
            (4 | 5, Some(key)) => end.accept(key, Bytes::from(vec![4; chosen + 8])),
            (6, Some(key)) => {
                self.keys.retain(|other| *other != key);
                end.release(key, code::CANCEL);
            }
            (7, Some(key)) => end.reset(key, u32::from(script.wide())),
            (8 | 9, Some(key)) => {
                let mut piece = Bytes::from(vec![5; usize::from(script.wide())]);
                done(end.write(key, &mut piece));
            }
            (10..=12, Some(key)) => {
                let max = usize::from(script.wide());
                if let Ok(Read::Chunk(chunk)) = end.read(key, max) {
                    assert!(!chunk.is_empty() && chunk.len() <= max.max(1));
                }
                let mut shown = Vec::new();
                if let Ok(Peek::Bytes(count)) = end.peek(key, max, &mut shown) {
                    assert_eq!(shown.iter().map(Bytes::len).sum::<usize>(), count);
                    end.consume(key, count / 2);
                }
            }
            (13, Some(key)) => done(end.finish(key)),
            (14 | 15, Some(key)) => {
                let length = usize::from(script.wide());
                done(end.send_datagram(self.now, key, Bytes::from(vec![6; length])));
            }
            (16 | 17, Some(key)) => done(end.receive_datagram(key)),
            (18, Some(key)) => end.set_weight(key, script.byte()),
            (19, Some(key)) => {
                done(end.open_state(key));
                done(end.answer(key));
                done(end.ended(key));
                done(end.write_budget(key));
            }
            _ => {}
        }
    }

    fn transport(&mut self, script: &mut Script<'_>) {
        match script.below(16) {
            0..=5 => self
                .end
                .transport_lost(self.now, ErrorKind::ConnectionReset, "cut"),
            6..=11 => {
                let attached = self.end.attach(self.now).is_ok();
                self.input.clear();
                if attached {
                    self.tap.attach(0);
                    self.resume = None;
                    if script.byte() & 3 != 0 {
                        self.offset(RESUME, script);
                    }
                }
            }
            12 => self.end.transport_closed(self.now),
            13 => self.end.time_out(self.now),
            14 => self.end.abandon(),
            _ => self.end.lose(ErrorKind::Other, "gone"),
        }
    }

    /// An ACK or RESUME that is true, nearly true, or anything.
    fn offset(&mut self, kind: u8, script: &mut Script<'_>) {
        let end = self.tap.end();
        let offset = match script.byte() {
            0..=149 => end,
            150..=169 => end + 1,
            170..=200 => end / 2,
            byte @ 201..=230 => end.saturating_sub(byte.into()),
            _ => script.number(),
        };
        if kind == RESUME && self.resume.is_none() {
            self.resume = Some(offset);
        }
        let record = script::record(kind, &offset.to_be_bytes());
        self.bytes(&record);
    }

    fn peer_frame(&mut self, kind: u8, frame: &[u8]) {
        let record = script::record(kind, frame);
        self.bytes(&record);
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.end.handle_received(self.now, bytes.len());
        self.input.extend_from_slice(bytes);
        self.end.handle_input(self.now, &mut self.input);
        assert!(self.input.is_empty(), "input is always taken");
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.end.handle_timeout(self.now);
        if let Some(at) = self.end.poll_timeout() {
            assert!(
                at > self.now || self.end.wants_transmit(),
                "a timeout that never passes"
            );
        }
    }

    /// What comes out obeys the protocol, whatever went in.
    fn transmit(&mut self, limit: usize) {
        let mut batch = Batch::default();
        self.end.poll_transmit(self.now, &mut batch, limit);
        assert!(
            batch.len() <= limit + 70_000,
            "{} for a limit of {limit}",
            batch.len()
        );
        while !batch.is_empty() {
            let mut slices = [IoSlice::new(&[]); 16];
            let count = batch.slices(&mut slices);
            let mut step = 0;
            let peer = Peer {
                end: u64::MAX,
                resume: self.resume,
            };
            // The offset in the RESUME of a peer that was caught lying says nothing.
            let tapped = self.tapped && self.end.closed().is_none();
            for slice in &slices[..count] {
                if tapped {
                    self.tap.write(slice, peer);
                }
                step += slice.len();
            }
            batch.advance(step);
        }
        self.tap.assert_whole();
    }

    fn drain(&mut self) {
        let mut events = 0;
        while let Some(event) = self.end.poll_event() {
            events += 1;
            if event == Event::Incoming {
                while let Some(incoming) = self.end.poll_incoming() {
                    if let Incoming::Offer { key, metadata } = incoming {
                        assert!(metadata.len() <= self.config.max_metadata);
                        self.keys.push(key);
                    }
                }
            }
        }
        let most = EVENTS * (self.end.streams() + self.keys.len() + 300);
        assert!(events <= most, "{events} events at once");
    }

    fn check(&self) {
        let stats = self.end.stats();
        let streams = self.end.streams() as u64;
        // Ours, and those of the peer.
        assert!(streams <= 300 + u64::from(self.config.max_streams));
        assert!(stats.growth_used <= self.config.growth_budget);
        let promise = streams * u64::from(self.config.base_window) + self.config.growth_budget;
        assert!(
            stats.unread_bytes <= promise,
            "{} unread",
            stats.unread_bytes
        );
        assert!(stats.queued_bytes <= self.config.send_queues as u64 + streams * 4096);
        assert!(stats.retained_bytes <= 1024 * 1024 + 64 * 1024 + 300 * 4200);
        let given = stats.received_bytes + 130_000 * self.operations;
        assert!(stats.sent_bytes <= ANSWER * given + ANSWER_PER_OPERATION * self.operations);
    }

    /// Whatever happened: it can be ended, and nothing stays.
    fn end_of_run(mut self) {
        self.transmit(1 << 20);
        self.drain();
        self.end.lose(ErrorKind::Other, "end");
        self.drain();
        for key in std::mem::take(&mut self.keys) {
            self.end.release(key, code::CANCEL);
        }
        assert_eq!(self.end.streams(), 0);
        let stats = self.end.stats();
        assert_eq!(
            (stats.growth_used, stats.unread_bytes, stats.retained_bytes),
            (0, 0, 0)
        );
        drop(self.end);
        assert_eq!(stats.queued_bytes, 0);
        let shared = &self.budget;
        let used = shared.growth_used() + shared.log_used() + shared.queues_used();
        assert_eq!(used, 0);
    }
}

/// What came of it does not matter here.
fn done<T>(_: T) {}

/// Any point in time, the same for all runs of a process.
pub(crate) fn start() -> Instant {
    use std::sync::OnceLock;
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now)
}
