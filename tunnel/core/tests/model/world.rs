//! Two ends, the links between them, and the time. One link is in use at a time; while a new one is
//! being set up the node may still believe the old one alive, as in the product: the client connects,
//! the node takes over, the client gets the answer later or never.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use sg_tunnel::{Budget, CloseReason, Config, Connection, DatagramLimits, Event, Key, Side, code};

use crate::streams::Stream;
use crate::support::link::{Link, Shape};
use crate::support::wire::Tap;
use crate::support::{Random, transmit_into};

/// One end with its driver's buffers.
pub(crate) struct End {
    pub(crate) conn: Connection,
    /// The link that its driver uses.
    link: Option<u32>,
    outgoing: BytesMut,
    input: BytesMut,
    pub(crate) tap: Tap,
    /// When the driver learns that its link is gone; `None` means never.
    notice: Option<Instant>,
    detached_at: Option<Instant>,
    attached_at: Instant,
}

/// A connection attempt of the client.
struct Attempt {
    at: Instant,
    /// The link that the node has taken already.
    link: Option<u32>,
}

/// How often things go wrong in this run, in thousandths of a step.
struct Faults {
    cut: usize,
    migrate: usize,
    close: usize,
    drain: usize,
}

pub(crate) struct World {
    pub(crate) random: Random,
    pub(crate) now: Instant,
    pub(crate) ends: [End; 2],
    links: Vec<(u32, Link)>,
    next_link: u32,
    shape: Shape,
    faults: Faults,
    attempt: Option<Attempt>,
    pub(crate) configs: [Config; 2],
    pub(crate) streams: Vec<Stream>,
    /// Stream of each key, by the key's index.
    keys: [HashMap<Key, usize>; 2],
    /// Streams that have a key, for a choice at random; may be stale.
    live: [Vec<usize>; 2],
    pub(crate) opening: Vec<(usize, usize)>,
    /// Messages sent and received, by sender.
    pub(crate) controls: [(u32, u32); 2],
    pub(crate) codes: u32,
    pub(crate) drained: [bool; 2],
    closed_by: [bool; 2],
    abandoned: [bool; 2],
    /// The end of the run: links are good and nothing is stalled.
    pub(crate) calm: bool,
    pub(crate) tunnels: u32,
    pub(crate) resumes: u64,
    trace: bool,
}

/// More than all streams of a run together have queued.
pub(crate) const ROOMY: usize = 16 * 1024 * 1024;

impl World {
    pub(crate) fn new(seed: u64, trace: bool) -> Self {
        let mut random = Random(seed);
        let budget = Arc::new(Budget::new([400_000, 4_000_000, 1 << 30][random.below(3)]));
        let resume = Duration::from_millis([0, 1000, 10_000, 30_000, 30_000][random.below(5)]);
        let configs = [0, 1].map(|_| Config {
            max_streams: 1 + random.below(40) as u32,
            growth_budget: random.below(300_000) as u64,
            max_frame: [1024, 16_376, 65_528][random.below(3)],
            send_queue: 1024 + [0, random.below(100_000)][random.below(2)],
            send_queues: [1024, 50_000, ROOMY][random.below(3)],
            base_window: [1000, 4096, 16_384][random.below(3)],
            initial_window: [4096, 16_384, 65_536][random.below(3)],
            resume_time: resume,
            datagrams: DatagramLimits {
                flow_count: [4, 64][random.below(2)],
                tunnel_bytes: [70_000, 1024 * 1024][random.below(2)],
                ..DatagramLimits::default()
            },
            budget: budget.clone(),
            ..Config::default()
        });
        let shape = Shape {
            latency: Duration::from_millis(random.below(40) as u64),
            rate: [None, Some(100_000 + random.below(10_000_000) as u64)][random.below(2)],
            buffer: [4096, 65_536, 4_000_000][random.below(3)],
        };
        let faults = Faults {
            cut: [0, 3, 20, 60][random.below(4)],
            migrate: [0, 0, 3][random.below(3)],
            close: [0, 0, 0, 1][random.below(4)],
            drain: [0, 0, 0, 1][random.below(4)],
        };
        let now = Instant::now();
        let mut world = Self {
            random,
            now,
            ends: [Side::Node, Side::Client].map(|side| {
                End::new(
                    side,
                    configs[usize::from(side == Side::Client)].clone(),
                    now,
                )
            }),
            links: Vec::new(),
            next_link: 0,
            shape,
            faults,
            attempt: None,
            configs,
            streams: Vec::new(),
            keys: Default::default(),
            live: Default::default(),
            opening: Vec::new(),
            controls: [(0, 0); 2],
            codes: 0,
            drained: [false; 2],
            closed_by: [false; 2],
            abandoned: [false; 2],
            calm: false,
            tunnels: 0,
            resumes: 0,
            trace,
        };
        world.connect_first();
        world
    }

    /// A fresh tunnel over a fresh link.
    fn begin_tunnel(&mut self) {
        for (side, name) in [(0, Side::Node), (1, Side::Client)] {
            self.ends[side] = End::new(name, self.configs[side].clone(), self.now);
        }
        self.streams.clear();
        self.opening.clear();
        self.keys = Default::default();
        self.live = Default::default();
        self.controls = [(0, 0); 2];
        self.drained = [false; 2];
        self.closed_by = [false; 2];
        self.abandoned = [false; 2];
        self.attempt = None;
        self.connect_first();
    }

    fn connect_first(&mut self) {
        self.links.clear();
        let link = self.new_link();
        for end in &mut self.ends {
            end.link = Some(link);
        }
        self.tunnels += 1;
    }

    fn new_link(&mut self) -> u32 {
        self.next_link += 1;
        self.links.push((self.next_link, Link::new(self.shape)));
        self.next_link
    }

    fn link(&mut self, id: u32) -> Option<&mut Link> {
        self.links
            .iter_mut()
            .find(|(i, _)| *i == id)
            .map(|(_, link)| link)
    }

    pub(crate) fn say(&self, what: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{}", what());
        }
    }

    pub(crate) fn register(&mut self, number: usize, side: usize, key: Key) {
        self.keys[side].insert(key, number);
        self.live[side].push(number);
    }

    /// A stream or flow that `side` can use.
    pub(crate) fn choose(&mut self, side: usize, flow: bool) -> Option<usize> {
        for _ in 0..4 {
            let live = &mut self.live[side];
            if live.is_empty() {
                return None;
            }
            let at = self.random.below(live.len());
            let number = live[at];
            let stream = &self.streams[number];
            if stream.ends[side].key.is_none() {
                live.swap_remove(at);
                continue;
            }
            let usable = stream.ends[side].ready || (flow && stream.opener == side);
            if stream.flow == flow && usable {
                return Some(number);
            }
        }
        None
    }

    /// One step: an application acts, bytes move, time passes, and something may break.
    pub(crate) fn step(&mut self) {
        self.command();
        self.move_bytes();
        self.pass_time();
        self.break_something();
        self.after();
        if self.random.chance(3) {
            self.check_queues();
        }
    }

    /// What follows from whatever happened.
    fn after(&mut self) {
        self.look_after_drivers();
        self.try_attempt();
        for side in [0, 1] {
            self.take_incoming(side);
        }
        self.take_events();
        self.see_answers();
        self.invariants();
        if self.ends.iter().all(|end| end.conn.closed().is_some()) && self.flushed() {
            self.tunnel_has_ended();
            if !self.calm {
                self.begin_tunnel();
            }
        }
    }

    fn pass_time(&mut self) {
        let quiet = self.ends.iter().all(|end| end.link.is_none());
        let micros = match self.random.below(100) {
            0 if self.random.chance(2) => 7_000_000,
            0 => 100_000,
            _ if quiet => self.random.below(400_000),
            _ => self.random.below(4000),
        };
        self.advance(Duration::from_micros(micros as u64));
    }

    pub(crate) fn advance(&mut self, time: Duration) {
        self.now += time;
        for side in [0, 1] {
            let conn = &mut self.ends[side].conn;
            conn.handle_timeout(self.now);
            // At any moment, and without effect on anything else.
            if time.subsec_micros().is_multiple_of(4) {
                conn.release_memory();
            }
        }
    }

    fn move_bytes(&mut self) {
        for side in [0, 1] {
            if self.random.chance(60) {
                let limit = [1 + self.random.below(2000), 1 + self.random.below(60_000)]
                    [self.random.below(2)];
                self.send(side, limit);
            }
            for _ in 0..self.random.below(4) {
                let limit = match self.random.below(3) {
                    0 => 1 + self.random.below(12),
                    1 => 1 + self.random.below(3000),
                    _ => usize::MAX,
                };
                self.receive(side, limit);
            }
        }
    }

    /// Builds a batch when the one before has left, and writes what the link takes.
    pub(crate) fn send(&mut self, side: usize, limit: usize) {
        let [one, two] = &mut self.ends;
        let (end, peer) = if side == 0 { (one, two) } else { (two, one) };
        if end.link.is_none() && end.conn.closed().is_some() {
            return;
        }
        if end.outgoing.is_empty() {
            transmit_into(&mut end.conn, self.now, limit, &mut end.outgoing);
            if let Some(id) = end.link {
                end.tap.write(&end.outgoing, peer.tap.peer(id));
                peer.tap.forget(end.tap.acknowledged());
                end.tap.assert_whole();
            } else {
                assert!(end.outgoing.is_empty(), "bytes without a connection");
            }
        }
        let Some(id) = end.link else {
            return;
        };
        let now = self.now;
        let Some((_, link)) = self.links.iter_mut().find(|(i, _)| *i == id) else {
            return;
        };
        let count = link.room(side).min(end.outgoing.len());
        if count > 0 {
            link.write(side, now, end.outgoing.split_to(count));
        }
    }

    pub(crate) fn receive(&mut self, side: usize, limit: usize) {
        let end = &mut self.ends[side];
        let Some(id) = end.link else {
            return;
        };
        let Some((_, link)) = self.links.iter_mut().find(|(i, _)| *i == id) else {
            return;
        };
        let Some(piece) = link.read(side, self.now, limit) else {
            return;
        };
        end.conn.handle_received(self.now, piece.len());
        if end.input.is_empty() {
            end.input = piece;
        } else {
            end.input.extend_from_slice(&piece);
        }
        end.conn.handle_input(self.now, &mut end.input);
    }

    fn break_something(&mut self) {
        let dice = self.random.below(1000);
        let side = self.random.below(2);
        if dice < self.faults.cut {
            // Any of the links, at any byte of either direction.
            if !self.links.is_empty() {
                let at = self.random.below(self.links.len());
                let id = self.links[at].0;
                self.cut(id);
            }
        } else if dice < self.faults.cut + self.faults.migrate {
            self.say(|| "the client connects again".into());
            self.start_attempt();
        } else if dice == 999 && self.faults.drain > 0 && self.random.chance(20) {
            self.say(|| format!("{side} drains"));
            self.ends[side].conn.goaway();
            self.drained[side] |= self.ends[side].conn.closed().is_none();
        } else if dice == 998 && self.faults.close > 0 && self.random.chance(20) {
            self.say(|| format!("{side} closes"));
            let open = self.ends[side].conn.closed().is_none();
            self.ends[side].conn.close(code::close::NONE, "bye");
            self.closed_by[side] |= open;
        }
    }

    fn cut(&mut self, id: u32) {
        let now = self.now;
        let random = &mut self.random;
        let Some((_, link)) = self.links.iter_mut().find(|(i, _)| *i == id) else {
            return;
        };
        if link.is_cut() {
            return;
        }
        let keep = [0, 1].map(|side| match random.below(3) {
            0 => 0,
            1 => link.under_way(side),
            _ => random.below(link.under_way(side) + 1),
        });
        link.cut(keep);
        for end in &mut self.ends {
            if end.link == Some(id) {
                end.notice = match random.below(10) {
                    0..=3 => Some(now),
                    4..=7 => Some(now + Duration::from_millis(random.below(60) as u64)),
                    8 => Some(now + Duration::from_millis(random.below(4000) as u64)),
                    // Only silence tells, or the other side.
                    _ => None,
                };
            }
        }
        self.say(|| format!("link {id} is cut, {keep:?} bytes still arrive"));
    }

    /// What the drivers do when their link or their connection has ended.
    fn look_after_drivers(&mut self) {
        for side in [0, 1] {
            let now = self.now;
            let end = &mut self.ends[side];
            let detached = end.conn.is_detached();
            if end.link.is_some()
                && end.notice.is_some_and(|at| at <= now)
                && end.conn.closed().is_none()
                && !detached
            {
                end.conn
                    .transport_lost(now, ErrorKind::ConnectionReset, "cut");
            }
            let end = &mut self.ends[side];
            let closed = end.conn.closed().is_some();
            if end.conn.is_detached() && end.detached_at.is_none() {
                end.detached_at = Some(now);
            }
            let flushed = end.outgoing.is_empty() && !end.conn.wants_transmit();
            let gone = end.notice.is_some_and(|at| at <= now);
            if end.conn.is_detached() || (closed && (flushed || gone)) {
                self.drop_link(side);
            }
        }
        let Self {
            ends,
            links,
            attempt,
            ..
        } = self;
        links.retain(|(id, _)| {
            ends.iter().any(|end| end.link == Some(*id))
                || attempt.as_ref().is_some_and(|a| a.link == Some(*id))
        });
        if self.ends[1].conn.is_detached() && self.attempt.is_none() {
            self.start_attempt();
        }
        // The client is gone: its node learns that from a new process, or the time runs out.
        let lost = self.ends[1].conn.closed().is_some() && self.ends[0].conn.is_detached();
        if lost && self.random.chance(3) {
            self.say(|| "0 abandons".into());
            self.abandon(0);
        }
    }

    /// The driver of `side` lets go of its link: the other side learns it some time.
    fn drop_link(&mut self, side: usize) {
        let Some(id) = self.ends[side].link.take() else {
            return;
        };
        self.say(|| format!("{side} leaves link {id}"));
        self.ends[side].outgoing.clear();
        self.ends[side].input.clear();
        self.ends[side].notice = None;
        let now = self.now;
        let Some((_, link)) = self.links.iter_mut().find(|(i, _)| *i == id) else {
            return;
        };
        if !link.is_cut() {
            // What was written before still arrives.
            let keep = [link.under_way(0), link.under_way(1)];
            link.cut(keep);
            let other = &mut self.ends[1 - side];
            if other.link == Some(id) {
                let later = [0, 5, 100][self.random.below(3)];
                other.notice = Some(now + self.shape.latency * 4 + Duration::from_millis(later));
            }
        }
    }

    fn abandon(&mut self, side: usize) {
        self.abandoned[side] |= self.ends[side].conn.closed().is_none();
        self.ends[side].conn.abandon();
    }

    fn start_attempt(&mut self) {
        if self.attempt.is_some() {
            return;
        }
        let longest = self.configs[1].resume_time.as_millis() as usize * 5 / 4;
        let millis = match self.random.below(10) {
            _ if self.calm => 0,
            0..=5 => self.random.below(30),
            6..=8 => self.random.below(1000),
            _ => self.random.below(longest + 1),
        };
        self.attempt = Some(Attempt {
            at: self.now + Duration::from_millis(millis as u64),
            link: None,
        });
    }

    /// The client connects; the node takes over; the client gets the answer.
    fn try_attempt(&mut self) {
        let Some(attempt) = self.attempt.take_if(|attempt| attempt.at <= self.now) else {
            return;
        };
        let now = self.now;
        if self.ends[1].conn.closed().is_some() {
            if let Some(id) = attempt.link {
                self.cut(id);
            }
            return;
        }
        let Some(id) = attempt.link else {
            if self.ends[0].conn.closed().is_some() || !self.ends[0].conn.is_resumable() {
                self.say(|| "the node does not know the tunnel".into());
                self.abandon(1);
                return;
            }
            let id = self.new_link();
            self.drop_link(0);
            self.attach(0, id);
            let delay = self.shape.latency + Duration::from_micros(self.random.below(5000) as u64);
            self.attempt = Some(Attempt {
                at: now + delay,
                link: Some(id),
            });
            return;
        };
        if self.link(id).is_none_or(|link| link.is_cut()) || self.ends[0].link != Some(id) {
            return;
        }
        if !self.calm && self.random.chance(10) {
            self.cut(id);
            return;
        }
        self.drop_link(1);
        self.attach(1, id);
    }

    fn attach(&mut self, side: usize, id: u32) {
        self.say(|| format!("{side} attaches to link {id}"));
        let end = &mut self.ends[side];
        let resumable = end.conn.is_resumable();
        let attached = end.conn.attach(self.now);
        assert_eq!(attached.is_ok(), resumable, "attach: {attached:?}");
        end.link = Some(id);
        end.notice = None;
        end.detached_at = None;
        end.attached_at = self.now;
        end.outgoing.clear();
        end.input.clear();
        end.tap.attach(id);
        if attached.is_err() {
            self.drop_link(side);
        } else {
            assert!(!self.ends[side].conn.is_detached());
            self.resumes += 1;
        }
    }

    pub(crate) fn take_events(&mut self) {
        for side in [0, 1] {
            while let Some(event) = self.ends[side].conn.poll_event() {
                let (key, read, write) = match event {
                    Event::Readable(key) => (key, true, false),
                    Event::Writable(key) => (key, false, true),
                    Event::Ended(key) => (key, true, true),
                    Event::Opened(_)
                    | Event::Incoming
                    | Event::Closed
                    | Event::Detached
                    | Event::Attached => continue,
                };
                if let Some(number) = self.keys[side].get(&key) {
                    let half = &mut self.streams[*number].ends[side];
                    half.waits_read &= !read;
                    half.waits_write &= !write;
                }
            }
        }
    }

    fn invariants(&self) {
        for (side, end) in self.ends.iter().enumerate() {
            let config = &self.configs[side];
            let stats = end.conn.stats();
            assert!(stats.growth_used <= config.growth_budget);
            let promise = end.conn.streams() as u64 * u64::from(config.base_window);
            // What was promised before a window shrank is promised still.
            assert!(stats.unread_bytes <= promise + config.growth_budget);
            assert!(
                stats.queued_bytes <= config.send_queues as u64 + end.conn.streams() as u64 * 4096
            );
            assert!(stats.retained_bytes <= 16 * 1024 * 1024 + 64 * 1024);
            if let Some(since) = end.detached_at.filter(|_| end.conn.is_detached()) {
                assert!(
                    self.now < since + config.resume_time,
                    "{side} never expires"
                );
            }
            if let Some(closed) = end.conn.closed() {
                self.check_reason(side, &closed.reason);
            }
        }
    }

    /// What a report tells besides, now and then because it costs more.
    fn check_queues(&self) {
        for (end, config) in self.ends.iter().zip(&self.configs) {
            let report = end.conn.report(self.now, 0);
            let limits = &config.datagrams;
            let flows = self.streams.iter().filter(|stream| stream.flow).count();
            for queue in [report.datagrams_unsent, report.datagrams_unread] {
                assert!(queue.bytes <= limits.tunnel_bytes, "{queue:?}");
                assert!(queue.count <= flows * limits.flow_count, "{queue:?}");
            }
            assert!(report.waiting.messages <= config.control_queue);
        }
    }

    fn check_reason(&self, side: usize, reason: &CloseReason) {
        let end = &self.ends[side];
        let resumable = !self.configs[side].resume_time.is_zero()
            && !self.drained.contains(&true)
            && !self.closed_by.contains(&true);
        match reason {
            CloseReason::Local { .. } => assert!(self.closed_by[side], "closed by nobody"),
            CloseReason::Peer { code, .. } => {
                let timeout = *code == code::close::IDLE && !resumable;
                let late = *code == code::close::SETTINGS && self.settings_are_late(1 - side);
                let known = self.closed_by[1 - side] || timeout || late;
                assert!(known, "{side}: {reason:?}");
            }
            CloseReason::Lost { .. } | CloseReason::Timeout => {
                assert!(!resumable, "{side} could have resumed: {reason:?}");
            }
            CloseReason::Expired => {
                let since = end.detached_at.expect("expired without being detached");
                assert!(
                    self.now >= since + self.configs[side].resume_time,
                    "too early"
                );
            }
            CloseReason::Abandoned => assert!(self.abandoned[side], "abandoned by nobody"),
            // On a link that was cut before the first bytes had passed, and nobody has said so.
            CloseReason::Protocol { .. } => {
                assert!(self.settings_are_late(side), "{side}: {reason:?}");
            }
        }
    }

    /// This end has waited in vain for the peer's SETTINGS on the present connection, and long enough.
    fn settings_are_late(&self, side: usize) -> bool {
        let end = &self.ends[side];
        let closed = end.conn.closed().map(|closed| &closed.reason);
        let late = CloseReason::Protocol {
            code: code::close::SETTINGS,
            detail: "no SETTINGS in time",
        };
        let due = end.attached_at + self.configs[side].settings_time;
        closed == Some(&late) && self.now >= due
    }

    /// Both have sent what a closed end sends.
    fn flushed(&self) -> bool {
        self.ends.iter().all(|end| end.link.is_none())
    }

    /// The tunnel has ended on both sides: nothing is left of it when the applications let go.
    fn tunnel_has_ended(&mut self) {
        self.say(|| "the tunnel has ended".into());
        for number in 0..self.streams.len() {
            for side in [0, 1] {
                let half = &self.streams[number].ends[side];
                let (Some(key), ready, flow) = (half.key, half.ready, self.streams[number].flow)
                else {
                    continue;
                };
                if ready && !flow {
                    self.read_to_the_end(number, side);
                }
                self.forget_key(number, side);
                self.ends[side].conn.release(key, code::CANCEL);
            }
        }
        for side in [0, 1] {
            self.take_incoming(side);
            self.release_accepted(side);
        }
        self.assert_nothing_left();
    }

    /// What has been received completely may still be read.
    fn read_to_the_end(&mut self, number: usize, side: usize) {
        loop {
            let before = self.streams[number].ends[side].read;
            self.read(number, side, usize::MAX);
            let half = &self.streams[number].ends[side];
            assert!(!half.waits_read || half.read > before, "waits for nothing");
            if half.failed.is_some() || half.fin_read {
                break;
            }
        }
    }

    /// Streams that were offered before the end and accepted behind it.
    fn release_accepted(&mut self, side: usize) {
        for number in 0..self.streams.len() {
            if let Some(key) = self.streams[number].ends[side].key.take() {
                self.ends[side].conn.release(key, code::CANCEL);
            }
        }
    }

    pub(crate) fn assert_nothing_left(&self) {
        for end in &self.ends {
            assert_eq!(end.conn.streams(), 0, "streams left behind");
            let stats = end.conn.stats();
            assert_eq!(stats.growth_used, 0, "credit is not given back");
            assert_eq!((stats.unread_bytes, stats.queued_bytes), (0, 0));
            assert_eq!(stats.retained_bytes, 0, "retained bytes left behind");
        }
        let budget = &self.configs[0].budget;
        let used = budget.growth_used() + budget.log_used() + budget.queues_used();
        assert_eq!(used, 0, "the budget of the process");
    }

    /// Whether nothing is under way and nobody wants to send.
    fn at_rest(&self) -> bool {
        let quiet = self.ends.iter().all(|end| {
            let mute = end.link.is_none() && end.conn.closed().is_some();
            mute || (end.outgoing.is_empty() && !end.conn.wants_transmit())
        });
        quiet
            && self.attempt.is_none()
            && self
                .links
                .iter()
                .all(|(_, link)| link.under_way(0) + link.under_way(1) == 0)
    }

    /// From now on the link holds, the time passes, and the drivers do all that they can.
    pub(crate) fn settle(&mut self) {
        self.calm = true;
        self.shape.buffer = 4_000_000;
        for (_, link) in &mut self.links {
            link.widen(4_000_000);
        }
        if let Some(attempt) = &mut self.attempt {
            attempt.at = attempt.at.min(self.now);
        }
        for end in &mut self.ends {
            let id = end.link;
            if self
                .links
                .iter()
                .any(|(i, link)| Some(*i) == id && link.is_cut())
            {
                end.notice = Some(self.now);
            }
        }
        for _ in 0..4000 {
            self.advance(Duration::from_millis(5));
            for side in [0, 1] {
                self.send(side, 200_000);
                for _ in 0..50 {
                    self.receive(side, usize::MAX);
                }
            }
            self.after();
            if self.at_rest() {
                return;
            }
        }
        panic!("the pair never comes to rest: {}", self.state());
    }

    fn state(&self) -> String {
        let ends = self.ends.iter().map(|end| {
            let (conn, unsent) = (&end.conn, end.outgoing.len());
            format!(
                "link {:?}, {unsent} unsent, wants {}, detached {}, closed {:?}, {:?}",
                end.link,
                conn.wants_transmit(),
                conn.is_detached(),
                conn.closed(),
                conn.stats()
            )
        });
        let links = self
            .links
            .iter()
            .map(|(id, link)| format!("link {id}: {:?}", [link.under_way(0), link.under_way(1)]));
        ends.chain(links).collect::<Vec<_>>().join("\n")
    }
}

impl End {
    fn new(side: Side, config: Config, now: Instant) -> Self {
        Self {
            conn: Connection::new(side, config, now),
            link: None,
            outgoing: BytesMut::new(),
            input: BytesMut::new(),
            tap: Tap::new(),
            notice: None,
            detached_at: None,
            attached_at: now,
        }
    }
}
