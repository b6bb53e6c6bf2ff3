//! Two connections, a link that fragments and delays, random commands, and a small model of what
//! must come out: delivered is a prefix of sent, FIN exactly at its end, nothing after a reset,
//! memory within the promise, no state left behind, and progress.
//!
//! A failure prints its seed; `SEED=n cargo test -p sg-tunnel --test model` replays it.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::let_underscore_must_use
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::{Config, Event, Incoming, Key, OpenState, Read, StreamEnd, code};
use support::{Pair, Random};

/// One stream as the model sees it; index 0 is the node's end, 1 the client's.
#[derive(Debug, Default)]
struct Stream {
    key: [Option<Key>; 2],
    ready: [bool; 2],
    sent: [u64; 2],
    finished: [bool; 2],
    read: [u64; 2],
    fin_read: [bool; 2],
    /// Somebody reset, refused or dropped it: from then on errors are legal.
    broken: bool,
    /// An error was seen here; nothing may follow.
    failed: [bool; 2],
    /// A read found nothing, a write no room: an event must tell when that changes.
    waits_read: [bool; 2],
    waits_write: [bool; 2],
}

struct World {
    pair: Pair,
    random: Random,
    streams: Vec<Stream>,
    config: Config,
    controls: [(u32, u32); 2],
}

#[test]
fn random_runs_match_the_model() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..250).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| World::new(seed).run());
        if let Err(panic) = run {
            eprintln!("replay with SEED={seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

/// The byte that stream `number` carries from `side` at `offset`.
fn byte_at(number: usize, side: usize, offset: u64) -> u8 {
    let mixed =
        (offset ^ (number as u64) << 20 ^ (side as u64) << 50).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 56) as u8
}

impl World {
    fn new(seed: u64) -> Self {
        let mut random = Random(seed);
        let config = Config {
            max_streams: 1 + u32::try_from(random.below(40)).unwrap(),
            growth_budget: random.below(300_000) as u64,
            max_frame: [1024, 16_376, 65_528][random.below(3)],
            send_queue: 1024 + [0, random.below(100_000)][random.below(2)],
            ..Config::default()
        };
        let mut pair = Pair::new(config.clone(), config.clone());
        pair.latency = Duration::from_millis(random.below(40) as u64);
        Self {
            pair,
            random,
            streams: Vec::new(),
            config,
            controls: [(0, 0); 2],
        }
    }

    fn run(mut self) {
        for _ in 0..600 {
            self.command();
            self.link();
            self.invariants();
        }
        self.nobody_was_forgotten();
        self.finish_everything();
    }

    fn link(&mut self) {
        self.pair.now += Duration::from_micros(self.random.below(8000) as u64);
        for side in [0, 1] {
            self.pair.ends[side].handle_timeout(self.pair.now);
            if self.random.chance(60) {
                let limit = 1 + self.random.below(40_000);
                self.pair.send(side, limit);
            }
            for _ in 0..self.random.below(4) {
                let limit = match self.random.below(3) {
                    0 => 1 + self.random.below(12),
                    1 => 1 + self.random.below(3000),
                    _ => usize::MAX,
                };
                self.pair.receive(side, limit);
            }
            self.take_incoming(side);
        }
        self.take_events();
        self.see_answers();
    }

    fn take_events(&mut self) {
        for side in [0, 1] {
            while let Some(event) = self.pair.ends[side].poll_event() {
                let (key, read, write) = match event {
                    Event::Readable(key) => (key, true, false),
                    Event::Writable(key) => (key, false, true),
                    Event::Ended(key) => (key, true, true),
                    Event::Opened(_)
                    | Event::Incoming
                    | Event::Detached
                    | Event::Attached
                    | Event::Closed => continue,
                };
                let found = self.streams.iter_mut().find(|s| s.key[side] == Some(key));
                if let Some(stream) = found {
                    stream.waits_read[side] &= !read;
                    stream.waits_write[side] &= !write;
                }
            }
        }
    }

    /// Nobody sleeps who could go on: everything that moved was told.
    fn nobody_was_forgotten(&mut self) {
        for _ in 0..2 {
            self.pair.settle();
            self.take_events();
            for side in [0, 1] {
                self.take_incoming(side);
            }
            self.see_answers();
        }
        for stream in &self.streams {
            for side in [0, 1] {
                let Some(key) = stream.key[side].filter(|_| stream.ready[side]) else {
                    continue;
                };
                let end = &mut self.pair.ends[side];
                if stream.waits_read[side] {
                    assert_eq!(end.read(key, 1), Ok(Read::Pending), "reader was not told");
                }
                if stream.waits_write[side] && !stream.finished[side] {
                    assert_eq!(end.write_budget(key), Ok(0), "writer was not told");
                }
            }
        }
    }

    fn command(&mut self) {
        let side = self.random.below(2);
        match self.random.below(12) {
            0 | 1 => {
                let number = u32::try_from(self.streams.len()).unwrap();
                let metadata = Bytes::copy_from_slice(&number.to_be_bytes());
                if let Ok(key) = self.pair.ends[side].open(metadata) {
                    let mut stream = Stream::default();
                    stream.key[side] = Some(key);
                    self.streams.push(stream);
                }
            }
            2..=5 => {
                let size = 1 + self.random.below(30_000);
                self.with_stream(side, |w, n| w.write(n, side, size));
            }
            6..=8 => {
                let max = 1 + self.random.below(40_000);
                self.with_stream(side, |w, n| w.read(n, side, max));
            }
            9 if self.random.chance(40) => self.with_stream(side, |w, n| w.finish(n, side)),
            10 if self.random.chance(20) => {
                let reset = self.random.chance(50);
                self.with_stream(side, |w, n| w.abandon(n, side, reset));
            }
            11 => {
                let next = self.controls[side].0;
                let message = Bytes::copy_from_slice(&next.to_be_bytes());
                if self.pair.ends[side].send_control(message).is_ok() {
                    self.controls[side].0 += 1;
                }
            }
            _ => {}
        }
    }

    fn with_stream(&mut self, side: usize, f: impl FnOnce(&mut Self, usize)) {
        let usable: Vec<usize> = (0..self.streams.len())
            .filter(|n| self.streams[*n].key[side].is_some() && self.streams[*n].ready[side])
            .collect();
        if !usable.is_empty() {
            let number = usable[self.random.below(usable.len())];
            f(self, number);
        }
    }

    fn take_incoming(&mut self, side: usize) {
        while let Some(incoming) = self.pair.ends[side].poll_incoming() {
            match incoming {
                Incoming::Offer { key, metadata } => {
                    let number = u32::from_be_bytes(metadata[..].try_into().unwrap()) as usize;
                    let stream = &mut self.streams[number];
                    if self.random.chance(10) {
                        stream.broken = true;
                        self.pair.ends[side].release(key, code::REFUSED);
                    } else {
                        self.pair.ends[side].accept(key, Bytes::new());
                        stream.key[side] = Some(key);
                        stream.ready[side] = true;
                    }
                }
                Incoming::Control(message) => {
                    let number = u32::from_be_bytes(message[..].try_into().unwrap());
                    assert_eq!(number, self.controls[1 - side].1, "control order");
                    self.controls[1 - side].1 += 1;
                }
                Incoming::Draining => panic!("nobody drains"),
            }
        }
    }

    /// Looks after opens that wait for an answer.
    fn see_answers(&mut self) {
        for number in 0..self.streams.len() {
            for side in [0, 1] {
                let stream = &mut self.streams[number];
                let Some(key) = stream.key[side].filter(|_| !stream.ready[side]) else {
                    continue;
                };
                match self.pair.ends[side].open_state(key) {
                    Ok(OpenState::Waiting) => {}
                    Ok(OpenState::Open) => stream.ready[side] = true,
                    Err(end) => {
                        // Too many before SETTINGS, or refused.
                        assert!(stream.broken || end == StreamEnd::Reset(code::LIMIT));
                        stream.broken = true;
                        stream.key[side] = None;
                        self.pair.ends[side].release(key, code::CANCEL);
                    }
                }
            }
        }
    }

    fn write(&mut self, number: usize, side: usize, size: usize) {
        let stream = &mut self.streams[number];
        let key = stream.key[side].unwrap();
        let bytes: Vec<u8> = (0..size as u64)
            .map(|i| byte_at(number, side, stream.sent[side] + i))
            .collect();
        match self.pair.ends[side].write(key, &mut Bytes::from(bytes)) {
            Ok(count) => {
                assert!(!stream.failed[side], "a write after an error");
                stream.waits_write[side] = count == 0;
                stream.sent[side] += count as u64;
            }
            Err(StreamEnd::Finished) => assert!(stream.finished[side]),
            Err(end) => self.error(number, side, end),
        }
    }

    fn read(&mut self, number: usize, side: usize, max: usize) {
        let stream = &mut self.streams[number];
        let key = stream.key[side].unwrap();
        match self.pair.ends[side].read(key, max) {
            Ok(Read::Chunk(chunk)) => {
                assert!(!stream.failed[side], "bytes after an error");
                assert!(!stream.fin_read[side], "bytes after FIN");
                assert!(!chunk.is_empty() && chunk.len() <= max);
                for byte in chunk {
                    assert_eq!(byte, byte_at(number, 1 - side, stream.read[side]));
                    stream.read[side] += 1;
                }
                assert!(stream.read[side] <= stream.sent[1 - side]);
            }
            Ok(Read::Fin) => {
                assert!(stream.finished[1 - side], "FIN that nobody sent");
                assert_eq!(stream.read[side], stream.sent[1 - side], "FIN too early");
                stream.fin_read[side] = true;
            }
            Ok(Read::Pending) => {
                assert!(!stream.fin_read[side]);
                stream.waits_read[side] = true;
            }
            Err(end) => self.error(number, side, end),
        }
    }

    fn finish(&mut self, number: usize, side: usize) {
        let key = self.streams[number].key[side].unwrap();
        match self.pair.ends[side].finish(key) {
            Ok(()) => self.streams[number].finished[side] = true,
            Err(end) => self.error(number, side, end),
        }
    }

    fn abandon(&mut self, number: usize, side: usize, reset: bool) {
        let stream = &mut self.streams[number];
        let key = stream.key[side].take().unwrap();
        stream.broken = true;
        if reset {
            self.pair.ends[side].reset(key, code::PEER_RESET);
        }
        self.pair.ends[side].release(key, code::CANCEL);
    }

    fn error(&mut self, number: usize, side: usize, end: StreamEnd) {
        let stream = &mut self.streams[number];
        assert!(stream.broken, "stream {number} failed for nothing: {end:?}");
        assert!(matches!(end, StreamEnd::Reset(_)), "{end:?}");
        stream.failed[side] = true;
    }

    fn invariants(&self) {
        for (side, end) in self.pair.ends.iter().enumerate() {
            assert_eq!(end.closed(), None, "side {side}");
            let stats = end.stats();
            assert!(stats.growth_used <= self.config.growth_budget);
            let promise = end.streams() as u64 * u64::from(self.config.base_window);
            // What was promised before a window shrank is promised still.
            assert!(stats.unread_bytes <= promise + self.config.growth_budget);
        }
    }

    /// Everything that is still open must be able to come to its end, and leave nothing behind.
    fn finish_everything(&mut self) {
        for _ in 0..3000 {
            self.pair.now += Duration::from_millis(5);
            let mut waiting = false;
            for side in [0, 1] {
                self.pair.send(side, 200_000);
                for _ in 0..20 {
                    self.pair.receive(side, usize::MAX);
                }
                self.take_incoming(side);
            }
            self.take_events();
            self.see_answers();
            for number in 0..self.streams.len() {
                for side in [0, 1] {
                    waiting |= self.finish_one(number, side);
                }
            }
            self.invariants();
            if !waiting {
                break;
            }
        }
        self.pair.settle();
        for end in &self.pair.ends {
            assert_eq!(end.streams(), 0, "streams left behind");
            assert_eq!(end.stats().growth_used, 0);
            assert_eq!(end.stats().unread_bytes, 0);
        }
        for side in [0, 1] {
            self.take_incoming(side);
            assert_eq!(self.controls[side].0, self.controls[side].1);
        }
        for (number, stream) in self.streams.iter().enumerate() {
            assert!(
                stream.broken || stream.fin_read == [true; 2],
                "{number}: {stream:?}"
            );
        }
    }

    /// Reads and finishes one end; true while it is not done.
    fn finish_one(&mut self, number: usize, side: usize) -> bool {
        let Some(key) = self.streams[number].key[side] else {
            return false;
        };
        if !self.streams[number].ready[side] {
            return true;
        }
        self.finish(number, side);
        for _ in 0..50 {
            self.read(number, side, usize::MAX);
        }
        let stream = &mut self.streams[number];
        if stream.fin_read[side] || stream.failed[side] {
            stream.key[side] = None;
            self.pair.ends[side].release(key, code::CANCEL);
            return false;
        }
        true
    }
}

#[test]
fn arbitrary_bytes_never_panic_and_never_grow_memory() {
    for seed in 0..400 {
        let mut random = Random(seed);
        let mut solo = support::Solo::node(Config::default());
        for _ in 0..200 {
            // Mostly valid types and small ids, so that states are reached.
            let length = random.below(20);
            let mut bytes = vec![
                u8::try_from(random.below(14)).unwrap(),
                u8::from(random.chance(10)),
                0,
                u8::try_from(length).unwrap(),
                0,
                0,
                0,
                u8::try_from(random.below(8)).unwrap(),
            ];
            bytes.extend((0..length).map(|_| (random.next() >> 60) as u8));
            solo.bytes(&bytes);
            if random.chance(30) {
                if let Some(Incoming::Offer { key, .. }) = solo.end.poll_incoming() {
                    solo.end.accept(key, Bytes::new());
                }
                let _ = solo.end.open(Bytes::new());
                solo.sent();
            }
            while solo.end.poll_event().is_some() {}
            if solo.end.closed().is_some() {
                break;
            }
            assert!(solo.end.streams() < 500);
        }
    }
}
