//! What outlives a connection, and what does not.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::{Frame, Settings};
use sg_tunnel::record::{kind, offset_record};
use sg_tunnel::{
    CloseReason, Config, Connection, Event, Incoming, Key, OpenRefusal, OpenState, Read, Side,
    StreamEnd,
};
use support::{Solo, record, records, transmit};

const RESUME: Duration = Duration::from_secs(30);

fn resumable() -> Config {
    Config {
        resume_time: RESUME,
        ..Config::default()
    }
}

fn put(frame: &Frame) -> Vec<u8> {
    let mut bytes = Vec::new();
    frame.put(&mut bytes);
    bytes
}

fn open(id: u32) -> Frame {
    Frame::Open {
        id,
        credit: 1 << 30,
        flow: false,
        metadata: Bytes::new(),
    }
}

/// A node whose peer has opened stream 2. It has sent 44 bytes and received 44: SETTINGS, and OPEN_OK
/// or OPEN.
fn accepted(config: Config) -> (Solo, Key) {
    let mut solo = Solo::node(config);
    solo.frame(&open(2));
    let Some(Incoming::Offer { key, .. }) = solo.end.poll_incoming() else {
        panic!("no offer");
    };
    solo.end.accept(key, Bytes::new());
    solo.sent();
    (solo, key)
}

fn lose(solo: &mut Solo) {
    let now = solo.now;
    solo.end
        .transport_lost(now, ErrorKind::ConnectionReset, "reset");
}

fn resume(solo: &mut Solo, offset: u64) {
    solo.raw(&offset_record(kind::RESUME, offset));
}

fn events(solo: &mut Solo) -> Vec<Event> {
    std::iter::from_fn(|| solo.end.poll_event()).collect()
}

/// protocol 801, 806, 807, 810
#[test]
fn a_tunnel_goes_on_where_it_was_cut() {
    let (mut solo, key) = accepted(resumable());
    solo.end
        .write(key, &mut Bytes::from_static(b"lost on the way"))
        .unwrap();
    solo.sent();
    // The head of a frame, which the peer will not send again.
    solo.bytes(&[0, 0, 0, 5, 0, 0]);
    events(&mut solo);
    lose(&mut solo);
    assert!(solo.end.is_detached() && solo.end.closed().is_none());
    assert_eq!(events(&mut solo), [Event::Detached]);
    solo.end.attach(solo.now).unwrap();
    assert!(!solo.end.is_detached());
    assert_eq!(events(&mut solo), [Event::Attached]);
    assert_eq!(solo.end.stats().resumes, 1);
    // It says what it has, and waits for the same before it sends anything logged.
    solo.end
        .write(key, &mut Bytes::from_static(b"new"))
        .unwrap();
    let first = solo.sent_records();
    assert_eq!(first[0].0, kind::RESUME);
    assert_eq!(first[0].1[..], (44_u64 + 6).to_be_bytes());
    assert!(first.iter().all(|(kind, _)| *kind != kind::LOGGED));
    assert!(!solo.end.wants_transmit());
    resume(&mut solo, 44 + 10);
    let mut logged = Vec::new();
    while solo.end.wants_transmit() {
        for (kind, content) in solo.sent_records() {
            assert_eq!(kind, kind::LOGGED);
            logged.extend_from_slice(&content);
        }
    }
    let mut expected = b"st on the way"[..].to_vec();
    expected.extend([0, 0, 0, 3, 0, 0, 0, 2]);
    expected.extend(b"new");
    assert_eq!(logged, expected);
    // The rest of the frame that was cut.
    solo.bytes(&[0, 2, b'h', b'e', b'l', b'l', b'o']);
    let got = solo.end.read(key, 100);
    assert_eq!(got, Ok(Read::Chunk(Bytes::from_static(b"hello"))));
    assert_eq!(solo.end.closed(), None);
}

/// protocol 801
#[test]
fn every_end_of_the_transport_without_a_word_detaches() {
    type End = fn(&mut Solo);
    let silence: End = |s| s.wait(Duration::from_secs(6));
    let stuck: End = |s| s.end.time_out(s.now);
    for end in [lose as End, silence, stuck] {
        let (mut solo, key) = accepted(resumable());
        end(&mut solo);
        assert!(solo.end.is_detached());
        assert_eq!(solo.end.ended(key), None);
        // Not so without a resume time.
        let (mut solo, key) = accepted(Config::default());
        end(&mut solo);
        assert!(!solo.end.is_detached());
        assert!(solo.end.closed().is_some());
        assert_eq!(solo.end.ended(key), Some(StreamEnd::Lost));
    }
}

/// protocol 801, 906
#[test]
fn ends_that_are_not_resumed() {
    type End = fn(&mut Solo);
    let goodbye: End = |s| s.end.transport_closed(s.now);
    let goaway: End = |s| {
        s.frame(&Frame::Goaway {
            code: close::NONE,
            message: Bytes::new(),
        });
    };
    let drained_there: End = |s| {
        s.frame(&Frame::Goaway {
            code: close::DRAIN,
            message: Bytes::new(),
        });
        assert_eq!(s.end.stats().retained_bytes, 0);
        lose(s);
    };
    let drained_here: End = |s| {
        s.end.goaway();
        s.sent();
        assert_eq!(s.end.stats().retained_bytes, 0);
        lose(s);
    };
    let violation: End = |s| s.raw(&[9, 0, 0, 0]);
    let own: End = |s| s.end.close(close::NONE, "");
    let owner_gone: End = |s| s.end.lose(ErrorKind::Interrupted, "driver was dropped");
    let ends = [
        goodbye,
        goaway,
        drained_there,
        drained_here,
        violation,
        own,
        owner_gone,
    ];
    for (i, end) in ends.into_iter().enumerate() {
        let (mut solo, key) = accepted(resumable());
        end(&mut solo);
        assert!(solo.end.closed().is_some(), "{i}");
        assert!(!solo.end.is_resumable() && !solo.end.is_detached(), "{i}");
        assert_eq!(solo.end.ended(key), Some(StreamEnd::Lost), "{i}");
        solo.end.attach(solo.now).unwrap_err();
        solo.sent();
        assert_eq!(solo.end.stats().retained_bytes, 0, "{i}");
    }
}

/// protocol 801: announced while there is no connection, the drain comes with the next one.
#[test]
fn a_drain_waits_for_the_connection() {
    let (mut solo, _) = accepted(resumable());
    lose(&mut solo);
    solo.end.goaway();
    assert!(solo.end.is_resumable() && solo.end.is_draining());
    solo.end.attach(solo.now).unwrap();
    solo.sent();
    resume(&mut solo, 44);
    assert!(solo.sent().starts_with(&[7, 0, 0, 4]));
    assert!(!solo.end.is_resumable());
}

/// protocol 802
#[test]
fn while_detached_streams_stay_and_opens_fail() {
    let (mut solo, key) = accepted(resumable());
    solo.data(2, b"came before", false);
    let unsent = solo.end.open(Bytes::new()).unwrap();
    lose(&mut solo);
    let retry = Err(StreamEnd::Reset(code::REFUSED_RETRY));
    assert_eq!(solo.end.open_state(unsent), retry);
    assert_eq!(solo.end.open(Bytes::new()), Err(OpenRefusal::Detached));
    solo.end.release(unsent, code::CANCEL);
    // Nothing goes out, nothing comes in.
    assert!(!solo.end.wants_transmit());
    assert!(solo.sent().is_empty());
    solo.data(2, b"stray", false);
    solo.raw(&[0xff; 20]);
    assert_eq!(solo.end.closed(), None);
    let got = solo.end.read(key, 100);
    assert_eq!(got, Ok(Read::Chunk(Bytes::from_static(b"came before"))));
    assert_eq!(solo.end.read(key, 100), Ok(Read::Pending));
    // Writes queue up to their bound, and no further.
    let mut chunk = Bytes::from(vec![7; 1_000_000]);
    assert_eq!(solo.end.write(key, &mut chunk), Ok(256 * 1024));
    assert_eq!(solo.end.write(key, &mut chunk), Ok(0));
    for _ in 0..256 {
        solo.end.send_control(Bytes::new()).unwrap();
    }
    solo.end.send_control(Bytes::new()).unwrap_err();
    solo.end.reset(key, code::PEER_RESET);
    solo.end.attach(solo.now).unwrap();
    solo.sent();
    resume(&mut solo, 44);
    let sent = solo.sent();
    assert_eq!(sent.len(), 256 * 8 + 12);
    let reset = put(&Frame::Reset {
        id: 2,
        code: code::PEER_RESET,
    });
    assert!(sent.ends_with(&reset));
}

/// protocol 802: an open that was sent keeps waiting for its answer.
#[test]
fn an_open_that_was_sent_is_answered_after_the_resumption() {
    let mut solo = Solo::node(resumable());
    let key = solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    lose(&mut solo);
    assert_eq!(solo.end.open_state(key), Ok(OpenState::Waiting));
    solo.end.attach(solo.now).unwrap();
    solo.sent();
    resume(&mut solo, 32);
    assert_eq!(
        solo.sent(),
        put(&Frame::Open {
            id: 1,
            credit: 65_536,
            flow: false,
            metadata: Bytes::new()
        })
    );
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 9,
        answer: Bytes::new(),
    });
    assert_eq!(solo.end.open_state(key), Ok(OpenState::Open));
}

/// protocol 803
#[test]
fn a_tunnel_that_does_not_come_back_ends_with_its_streams() {
    let (mut solo, key) = accepted(resumable());
    lose(&mut solo);
    // It does not begin again when the loss is told twice.
    solo.wait(Duration::from_secs(10));
    lose(&mut solo);
    solo.end.time_out(solo.now);
    solo.end.transport_closed(solo.now);
    assert_eq!(
        solo.end.poll_timeout(),
        Some(solo.now + Duration::from_secs(20))
    );
    solo.wait(Duration::from_millis(19_999));
    assert!(solo.end.is_detached());
    assert!(!solo.end.is_suspect(solo.now));
    events(&mut solo);
    solo.wait(Duration::from_millis(1));
    assert!(!solo.end.is_detached());
    assert_eq!(solo.end.closed().unwrap().reason, CloseReason::Expired);
    assert_eq!(solo.end.ended(key), Some(StreamEnd::Lost));
    assert_eq!(
        events(&mut solo),
        [Event::Ended(key), Event::Incoming, Event::Closed]
    );
    assert!(solo.end.attach(solo.now).is_err());
    assert!(solo.sent().is_empty());
    assert_eq!(solo.end.stats().retained_bytes, 0);
}

/// protocol 804
#[test]
fn a_new_connection_takes_over_from_one_that_is_believed_alive() {
    let (mut solo, key) = accepted(resumable());
    solo.raw(&[kind::LOGGED, 0, 0]);
    solo.end.attach(solo.now).unwrap();
    solo.end.attach(solo.now).unwrap();
    assert_eq!(solo.end.stats().resumes, 2);
    resume(&mut solo, 44);
    solo.data(2, b"x", false);
    assert!(matches!(solo.end.read(key, 9), Ok(Read::Chunk(_))));
}

/// protocol 805
#[test]
fn resume_comes_first_and_once() {
    let wrong: [&[u8]; 4] = [
        &offset_record(kind::ACK, 44),
        &record(kind::LOGGED, &[0, 0, 0, 0, 0, 0, 0, 2]),
        &record(kind::UNLOGGED, &put(&Frame::Ping(1))),
        &[kind::LOGGED, 0, 0, 0],
    ];
    for first in wrong {
        let (mut solo, _) = accepted(resumable());
        solo.end.attach(solo.now).unwrap();
        solo.raw(first);
        assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR), "{first:?}");
        // The peer has not said what it has: there is nothing that could be told.
        for (kind, _) in solo.sent_records() {
            assert_eq!(kind, kind::RESUME);
        }
    }
    let (mut solo, _) = accepted(resumable());
    solo.end.attach(solo.now).unwrap();
    resume(&mut solo, 44);
    resume(&mut solo, 44);
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    // Not on a first connection either.
    let (mut solo, _) = accepted(resumable());
    resume(&mut solo, 44);
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
}

/// protocol 209, 807
#[test]
fn an_offset_in_resume_must_be_possible() {
    for (acked, offset, good) in [
        (0, 0, true),
        (32, 31, false),
        (32, 32, true),
        (0, 44, true),
        (0, 45, false),
        (0, u64::MAX, false),
    ] {
        let (mut solo, _) = accepted(resumable());
        if acked > 0 {
            solo.raw(&offset_record(kind::ACK, acked));
        }
        solo.end.attach(solo.now).unwrap();
        resume(&mut solo, offset);
        let expected = (!good).then_some(close::PROTOCOL_ERROR);
        assert_eq!(solo.violation(), expected, "{acked} {offset}");
    }
    // Nor may what has not been sent again be acknowledged.
    let (mut solo, key) = accepted(resumable());
    solo.end
        .write(key, &mut Bytes::from(vec![0; 100_000]))
        .unwrap();
    solo.sent();
    solo.end.attach(solo.now).unwrap();
    resume(&mut solo, 44);
    transmit(&mut solo.end, solo.now, 5000);
    solo.raw(&offset_record(kind::ACK, 5000));
    assert_eq!(solo.end.closed(), None);
    solo.raw(&offset_record(kind::ACK, 50_000));
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
}

/// protocol 806
#[test]
fn what_is_new_waits_until_the_replay_has_left() {
    let mut solo = Solo::node(resumable());
    let stream = solo.end.open(Bytes::new()).unwrap();
    let flow = solo.end.open_flow(Bytes::new()).unwrap();
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 1 << 20,
        answer: Bytes::new(),
    });
    solo.end
        .write(stream, &mut Bytes::from(vec![1; 60_000]))
        .unwrap();
    let before = solo.sent().len();
    solo.end.attach(solo.now).unwrap();
    solo.sent();
    solo.end
        .write(stream, &mut Bytes::from(vec![2; 60_000]))
        .unwrap();
    solo.end
        .send_datagram(solo.now, flow, Bytes::from_static(b"live"))
        .unwrap();
    resume(&mut solo, 32);
    let mut replayed = 0;
    let all = 12 + 12 + before;
    while replayed < all {
        for (kind, content) in records(transmit(&mut solo.end, solo.now, 7000)) {
            assert_eq!(kind, kind::LOGGED);
            replayed += content.len();
        }
    }
    assert_eq!(replayed, all);
    let next = solo.sent_records();
    assert_eq!(next[0].0, kind::UNLOGGED);
    assert_eq!(
        next[0].1[..12],
        [8, 0, 0, 4, 0, 0, 0, 3, b'l', b'i', b'v', b'e']
    );
    assert_eq!(next[1].0, kind::LOGGED);
    assert_eq!(next[1].1[8], 2);
}

/// protocol 808
#[test]
fn a_resumed_connection_starts_with_fresh_life_signs() {
    let (mut solo, _) = accepted(resumable());
    solo.frame(&Frame::Ping(9));
    solo.wait(Duration::from_secs(5));
    assert!(solo.end.is_suspect(solo.now));
    lose(&mut solo);
    solo.wait(Duration::from_secs(20));
    assert!(solo.end.is_detached());
    solo.end.attach(solo.now).unwrap();
    assert!(!solo.end.is_suspect(solo.now));
    let sent = solo.sent();
    // A ping of its own, with another number; no answer to what the old connection asked.
    assert_eq!((sent.len(), sent[0]), (16, 5));
    resume(&mut solo, 44);
    solo.frame(&Frame::Pong(1));
    solo.wait(Duration::from_millis(5999));
    assert!(!solo.end.is_detached());
    solo.wait(Duration::from_millis(1));
    assert!(solo.end.is_detached());
}

/// protocol 809
#[test]
fn a_tunnel_that_the_peer_forgot_ends_at_once() {
    let (mut solo, key) = accepted(resumable());
    lose(&mut solo);
    solo.end.abandon();
    assert_eq!(solo.end.closed().unwrap().reason, CloseReason::Abandoned);
    assert_eq!(solo.end.ended(key), Some(StreamEnd::Lost));
    assert!(!solo.end.wants_transmit());
    assert!(solo.sent().is_empty());
}

/// protocol 902: the last word comes behind the replay, or not at all.
#[test]
fn a_close_in_the_middle_of_the_replay_is_said_behind_it() {
    let (mut solo, key) = accepted(resumable());
    solo.end
        .write(key, &mut Bytes::from(vec![7; 50_000]))
        .unwrap();
    solo.sent();
    solo.end.attach(solo.now).unwrap();
    solo.sent();
    resume(&mut solo, 44);
    transmit(&mut solo.end, solo.now, 1000);
    solo.end.close(close::AUTH_REVOKED, "go");
    let mut logged = Vec::new();
    while solo.end.wants_transmit() {
        logged.extend_from_slice(&solo.sent());
    }
    assert!(logged.len() > 45_000);
    let goaway = put(&Frame::Goaway {
        code: close::AUTH_REVOKED,
        message: Bytes::from_static(b"go"),
    });
    assert!(logged.ends_with(&goaway));
    assert_eq!(solo.end.stats().retained_bytes, 0);
}

/// Two ends, and what is on its way between them.
struct Wire {
    ends: [Connection; 2],
    inputs: [BytesMut; 2],
    now: Instant,
    /// Bytes that may still come through, both ways together.
    left: usize,
}

impl Wire {
    fn new() -> Self {
        let now = Instant::now();
        Self {
            ends: [Side::Node, Side::Client].map(|side| Connection::new(side, resumable(), now)),
            inputs: Default::default(),
            now,
            left: usize::MAX,
        }
    }

    /// Carries bytes until nothing moves; true if it was cut before.
    fn run(&mut self) -> bool {
        for round in 0.. {
            assert!(round < 1000, "the wire never rests");
            let mut moved = false;
            for from in [0, 1] {
                let sent = transmit(&mut self.ends[from], self.now, 700);
                moved |= !sent.is_empty();
                let through = self.left.min(sent.len());
                self.left -= through;
                let input = &mut self.inputs[1 - from];
                input.extend_from_slice(&sent[..through]);
                self.ends[1 - from].handle_received(self.now, through);
                self.ends[1 - from].handle_input(self.now, input);
                if through < sent.len() {
                    return true;
                }
            }
            if !moved {
                return false;
            }
        }
        false
    }

    fn reconnect(&mut self, both_notice: bool) {
        self.left = usize::MAX;
        for (i, end) in self.ends.iter_mut().enumerate() {
            if both_notice || i == 1 {
                end.transport_lost(self.now, ErrorKind::ConnectionReset, "cut");
            }
            end.attach(self.now).unwrap();
        }
    }
}

/// The scripted session: streams from both sides with data, FIN, RESET and messages.
#[derive(Default)]
struct Script {
    step: usize,
    near: Vec<Key>,
    far: Vec<Key>,
    got: [Vec<u8>; 2],
    messages: usize,
}

const STEPS: usize = 9;

impl Script {
    fn next(&mut self, wire: &mut Wire) {
        let node = &mut wire.ends[0];
        match self.step {
            // SETTINGS and PING.
            0 => {}
            1 => self.near = vec![node.open(Bytes::from_static(b"one")).unwrap()],
            2 => self
                .near
                .push(node.open(Bytes::from_static(b"two")).unwrap()),
            3 => {
                let mut chunk = Bytes::from(vec![b'a'; 1500]);
                node.write(self.near[0], &mut chunk).unwrap();
            }
            4 => {
                let mut chunk = Bytes::from_static(b"answer");
                wire.ends[1].write(self.far[0], &mut chunk).unwrap();
            }
            5 => node.send_control(Bytes::from_static(b"policy")).unwrap(),
            6 => wire.ends[1].reset(self.far[1], code::PEER_RESET),
            7 => node.finish(self.near[0]).unwrap(),
            _ => wire.ends[1].finish(self.far[0]).unwrap(),
        }
        self.step += 1;
    }

    /// What the applications do whenever they can.
    fn serve(&mut self, wire: &mut Wire) {
        while let Some(incoming) = wire.ends[1].poll_incoming() {
            match incoming {
                Incoming::Offer { key, .. } => {
                    wire.ends[1].accept(key, Bytes::from_static(b"yes"));
                    self.far.push(key);
                }
                Incoming::Control(message) => {
                    assert_eq!(message, "policy");
                    self.messages += 1;
                }
                Incoming::Draining => panic!("nobody drains"),
            }
        }
        for (side, key) in [(0, self.near.first()), (1, self.far.first())] {
            let Some(key) = key else { continue };
            while let Ok(Read::Chunk(chunk)) = wire.ends[side].read(*key, 10_000) {
                self.got[side].extend_from_slice(&chunk);
            }
        }
    }

    fn check(&self, wire: &mut Wire) {
        assert_eq!(self.got[0], b"answer");
        assert_eq!(self.got[1], vec![b'a'; 1500]);
        assert_eq!(self.messages, 1);
        assert_eq!(self.far.len(), 2);
        for (side, key) in [(0, self.near[0]), (1, self.far[0])] {
            assert_eq!(wire.ends[side].read(key, 1), Ok(Read::Fin));
        }
        let end = wire.ends[0].open_state(self.near[1]);
        assert_eq!(end, Err(StreamEnd::Reset(code::PEER_RESET)));
        for (side, keys) in [(0, &self.near), (1, &self.far)] {
            for key in keys {
                wire.ends[side].release(*key, code::CANCEL);
            }
            assert_eq!(wire.ends[side].closed(), None);
            assert_eq!(wire.ends[side].streams(), 0);
        }
    }
}

/// Runs the script with a cut after `cut` bytes, and another one `again` bytes into the next
/// connection; returns whether it came to the first.
fn session(cut: usize, again: Option<usize>) -> bool {
    let mut wire = Wire::new();
    let mut script = Script::default();
    wire.left = cut;
    let mut cuts = 0;
    while script.step < STEPS {
        script.next(&mut wire);
        for round in 0.. {
            assert!(round < 1000, "no progress: {cut} {again:?}");
            let was_cut = wire.run();
            script.serve(&mut wire);
            if was_cut {
                cuts += 1;
                wire.reconnect(cut.is_multiple_of(2));
                if let Some(again) = again.filter(|_| cuts == 1) {
                    wire.left = again;
                }
            } else if !wire.ends.iter().any(Connection::wants_transmit) {
                break;
            }
        }
    }
    script.check(&mut wire);
    assert_eq!(wire.ends[0].stats().resumes, cuts);
    cuts > 0
}

/// protocol 801 to 810, at every byte of a session
#[test]
fn a_session_that_is_cut_at_any_byte_goes_on_as_if_it_were_not() {
    let mut cut = 0;
    while session(cut, None) {
        cut += 1;
    }
    assert!(cut > 1800, "{cut}");
}

/// protocol 805, 806, 807: a replay that is itself cut, at every byte
#[test]
fn a_replay_that_is_cut_at_any_byte_begins_again() {
    for cut in [0, 50, 93, 140, 200, 611, 1204, 1700, 1750] {
        for again in (0..300).chain((300..2500).step_by(7)) {
            assert!(session(cut, Some(again)), "{cut} {again}");
        }
    }
}

/// protocol 303, 810: the settings were sent once, and are sent again like all that was lost.
#[test]
fn settings_are_replayed_to_a_peer_that_never_got_them() {
    let now = Instant::now();
    let mut node = Connection::new(Side::Node, resumable(), now);
    assert!(!transmit(&mut node, now, 10_000).is_empty());
    node.transport_lost(now, ErrorKind::UnexpectedEof, "cut");
    node.attach(now).unwrap();
    let mut input = BytesMut::from(&offset_record(kind::RESUME, 0)[..]);
    let settings = put(&Frame::Settings(Settings::DEFAULT));
    input.extend_from_slice(&record(kind::LOGGED, &settings));
    node.handle_input(now, &mut input);
    let sent = records(transmit(&mut node, now, 10_000));
    assert_eq!(sent[0].0, kind::RESUME);
    let logged = sent.iter().find(|(kind, _)| *kind == kind::LOGGED).unwrap();
    assert_eq!((logged.1[0], logged.1.len()), (0x0a, 32));
}
