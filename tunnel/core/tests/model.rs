//! Two ends of a tunnel, links that fragment, delay and break at any byte, random commands, and a
//! small model of what must come out: delivered is a prefix of sent, FIN exactly at its end, nothing
//! after a reset, datagrams whole and at most once, memory within the promise, every byte on the wire
//! as the protocol allows it, no state left behind, and progress.
//!
//! A failure prints its seed, the fewest steps that still fail, and the command that replays them:
//! `SEED=7 STEPS=120 TRACE=1 cargo test -p sg-tunnel --test model`. `SEEDS=100000` runs longer.
#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    clippy::disallowed_methods,
    clippy::cast_possible_truncation
)]

#[path = "model/streams.rs"]
mod streams;
mod support;
#[path = "model/world.rs"]
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::time::Instant;

use bytes::Bytes;
use sg_tunnel::Read;
use streams::{DATAGRAM_HEAD, LONGEST};
use world::{ROOMY, World};

/// Runs of the pull-request tier, and commands in each.
const SEEDS: u64 = 1000;
const STEPS: usize = 2000;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}

#[test]
fn random_runs_match_the_model() {
    let steps = number("STEPS").map_or(STEPS, |steps| steps as usize);
    let seeds = match number("SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..number("SEEDS").unwrap_or(SEEDS),
    };
    let start = Instant::now();
    let count = seeds.end - seeds.start;
    let (mut tunnels, mut resumes) = (0, 0);
    for seed in seeds {
        match catch_unwind(|| run(seed, steps)) {
            Ok(world) => {
                tunnels += world.0;
                resumes += world.1;
            }
            Err(panic) => {
                if number("SEED").is_none() {
                    let fewest = fewest_steps(seed, steps);
                    eprintln!(
                        "replay with: SEED={seed} STEPS={fewest} TRACE=1 cargo test -p sg-tunnel --test model random_runs"
                    );
                }
                resume_unwind(panic);
            }
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    eprintln!(
        "{count} seeds of {steps} steps in {seconds:.1} s ({:.0} a second), {tunnels} tunnels, {resumes} resumptions",
        count as f64 / seconds
    );
}

fn run(seed: u64, steps: usize) -> (u64, u64) {
    let mut world = World::new(seed, std::env::var("TRACE").is_ok());
    for _ in 0..steps {
        world.step();
    }
    world.nobody_was_forgotten();
    world.everybody_may_write();
    world.finish_everything();
    (u64::from(world.tunnels), world.resumes)
}

/// Doubles the steps until the run fails, then closes in.
fn fewest_steps(seed: u64, steps: usize) -> usize {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let fails = |steps| catch_unwind(AssertUnwindSafe(|| run(seed, steps))).is_err();
    let mut high = 1;
    while high < steps && !fails(high) {
        high = (high * 2).min(steps);
    }
    let mut low = high / 2;
    while low + 1 < high {
        let middle = usize::midpoint(low, high);
        if fails(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    std::panic::set_hook(hook);
    high
}

impl World {
    /// One command of an application, at random.
    fn command(&mut self) {
        let side = self.random.below(2);
        match self.random.below(16) {
            0 => self.open(side, false),
            1 if self.random.chance(40) => self.open(side, true),
            2..=5 => {
                let size = self.random_size();
                if let Some(n) = self
                    .choose(side, false)
                    .filter(|n| !self.streams[*n].ends[side].finished)
                {
                    self.write(n, side, size);
                }
            }
            6..=9 => {
                let max = [1 + self.random.below(2000), 1 + self.random.below(40_000)]
                    [self.random.below(2)];
                if let Some(n) = self
                    .choose(side, false)
                    .filter(|n| !self.streams[*n].ends[side].stalled)
                {
                    self.read(n, side, max);
                }
            }
            10 if self.random.chance(30) => {
                if let Some(n) = self.choose(side, false) {
                    self.finish(n, side);
                }
            }
            11 if self.random.chance(20) => {
                let flow = self.random.chance(20);
                if let Some(n) = self.choose(side, flow) {
                    match self.random.below(3) {
                        0 => self.reset(n, side, true),
                        1 => self.reset(n, side, false),
                        _ => self.let_go(n, side),
                    }
                }
            }
            12 => self.control(side),
            13 | 14 => {
                let room = [100, 2000, 65_507][self.random.below(3)] - DATAGRAM_HEAD;
                let length = DATAGRAM_HEAD + self.random.below(room + 1);
                if let Some(n) = self.choose(side, true) {
                    self.send_datagram(n, side, length);
                }
            }
            15 => {
                if let Some(n) = self
                    .choose(side, true)
                    .filter(|n| self.streams[*n].ends[side].ready)
                {
                    self.receive_datagram(n, side);
                }
            }
            _ => {}
        }
    }

    fn random_size(&mut self) -> usize {
        1 + match self.random.below(20) {
            0 => self.random.below(LONGEST),
            1..=5 => self.random.below(5000),
            _ => self.random.below(300),
        }
    }

    fn control(&mut self, side: usize) {
        let next = self.controls[side].0;
        let message = Bytes::copy_from_slice(&next.to_be_bytes());
        if self.ends[side].conn.send_control(message).is_ok() {
            self.controls[side].0 += 1;
        }
    }

    /// Nobody sleeps who could go on: everything that moved was told.
    fn nobody_was_forgotten(&mut self) {
        self.settle();
        self.settle();
        for stream in &self.streams {
            for side in [0, 1] {
                let half = &stream.ends[side];
                let Some(key) = half.key.filter(|_| half.ready) else {
                    continue;
                };
                let conn = &mut self.ends[side].conn;
                if half.waits_read && stream.flow {
                    assert_eq!(
                        conn.receive_datagram(key),
                        Ok(None),
                        "receiver was not told"
                    );
                } else if half.waits_read {
                    assert_eq!(conn.read(key, 1), Ok(Read::Pending), "reader was not told");
                }
                if half.waits_write && !half.finished {
                    let room = conn.write_budget(key);
                    // Kept from writing by what others had queued: told when its own has left, at the latest.
                    let waits_for_its_own = || {
                        let (id, report) = (conn.wire_id(key), conn.report(self.now, usize::MAX));
                        report.list.iter().any(|s| s.id == id && s.queued > 0)
                    };
                    let told = room == Ok(0)
                        || self.configs[side].send_queues < ROOMY && waits_for_its_own();
                    assert!(told, "writer was not told: {room:?}");
                }
            }
        }
    }

    /// When everything has been read, every writer has credit again.
    fn everybody_may_write(&mut self) {
        for _ in 0..3 {
            self.settle();
            for number in 0..self.streams.len() {
                for side in [0, 1] {
                    self.read_all(number, side);
                }
            }
        }
        self.settle();
        for number in 0..self.streams.len() {
            for side in [0, 1] {
                if let Some(key) = self.healthy_writer(number, side) {
                    let room = self.ends[side].conn.write_budget(key);
                    assert!(
                        room.is_ok_and(|room| room > 0),
                        "{number}: no credit: {room:?}"
                    );
                }
            }
        }
    }

    /// Everything that is still open must be able to come to its end, and leave nothing behind.
    fn finish_everything(&mut self) {
        let mut waiting = true;
        for _ in 0..3000 {
            self.settle();
            waiting = false;
            for number in 0..self.streams.len() {
                for side in [0, 1] {
                    waiting |= self.finish_one(number, side);
                }
            }
            if !waiting {
                break;
            }
        }
        assert!(!waiting, "no progress: {}", self.what_waits());
        self.settle();
        let closed = self.ends.iter().any(|end| end.conn.closed().is_some());
        if !closed {
            // The last acknowledgement comes by time.
            self.advance(std::time::Duration::from_millis(30));
            self.settle();
            self.assert_complete();
            self.assert_nothing_left();
            assert_eq!(self.controls[0].0, self.controls[0].1);
            assert_eq!(self.controls[1].0, self.controls[1].1);
        }
    }

    fn what_waits(&self) -> String {
        let waiting = |(number, stream): (usize, &streams::Stream)| {
            let held = stream.ends.iter().any(|end| end.key.is_some());
            held.then(|| format!("{number}: {stream:#?}"))
        };
        let streams: Vec<String> = self
            .streams
            .iter()
            .enumerate()
            .filter_map(waiting)
            .collect();
        streams.join("\n")
    }
}
