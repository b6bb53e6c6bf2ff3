//! The records between the transport and the frames: kinds, cuts, offsets, acknowledgements.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::code::close;
use sg_tunnel::frame::{Frame, Settings};
use sg_tunnel::record::{kind, offset_record};
use sg_tunnel::{Config, Incoming, Key, Read};
use support::{Solo, record};

fn resumable() -> Config {
    Config {
        resume_time: Duration::from_secs(30),
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

fn data(id: u8, payload: &[u8]) -> Vec<u8> {
    let [a, b] = u16::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![0, 0, a, b, 0, 0, 0, id];
    bytes.extend_from_slice(payload);
    bytes
}

/// A node whose peer has opened stream 2, with nothing left to send or acknowledge.
fn accepted(config: Config) -> (Solo, Key) {
    let mut solo = Solo::node(config);
    solo.frame(&open(2));
    let Some(Incoming::Offer { key, .. }) = solo.end.poll_incoming() else {
        panic!("no offer");
    };
    solo.end.accept(key, Bytes::new());
    solo.sent();
    solo.end.handle_timeout(solo.now);
    solo.sent();
    (solo, key)
}

fn ack(solo: &mut Solo, offset: u64) {
    solo.raw(&offset_record(kind::ACK, offset));
}

/// What the end has sent of its logged stream, and the last offset that it acknowledged.
fn logged(solo: &mut Solo) -> (usize, Option<u64>) {
    let (mut length, mut told) = (0, None);
    for (kind, content) in solo.sent_records() {
        match kind {
            kind::LOGGED => length += content.len(),
            kind::ACK => told = Some(u64::from_be_bytes(content[..].try_into().unwrap())),
            _ => {}
        }
    }
    (length, told)
}

/// protocol 204
#[test]
fn unknown_kinds_and_wrong_lengths_end_the_tunnel() {
    let cases: [(&[u8], u32); 6] = [
        (&[4, 0, 0, 0], close::PROTOCOL_ERROR),
        (&[0x40, 0, 0, 9], close::PROTOCOL_ERROR),
        (&[0xff, 0, 0, 1], close::PROTOCOL_ERROR),
        (&[kind::ACK, 0, 0, 7], close::FRAME_SIZE),
        (&[kind::ACK, 0, 0, 0], close::FRAME_SIZE),
        (&[kind::RESUME, 1, 0, 8], close::FRAME_SIZE),
    ];
    for (header, expected) in cases {
        let mut solo = Solo::node(resumable());
        solo.raw(header);
        assert_eq!(solo.violation(), Some(expected), "{header:?}");
    }
}

/// protocol 204, 205, 302: TLS cuts records, records cut frames, anywhere and together.
#[test]
fn records_and_frames_may_be_cut_at_every_byte() {
    let mut stream = put(&open(2));
    stream.extend(put(&Frame::Control(Bytes::from_static(b"message"))));
    stream.extend(put(&Frame::Control(Bytes::new())));
    stream.extend([0x41, 0, 0, 3, 0, 0, 0, 0, 9, 9, 9]);
    stream.extend(data(2, b"payload"));
    stream.extend(data(2, b""));
    for cut in 1..stream.len() {
        let mut raw = record(kind::LOGGED, &stream[..cut]);
        raw.extend(record(kind::UNLOGGED, &put(&Frame::Ping(7))));
        raw.extend(offset_record(kind::ACK, 32));
        raw.extend(record(kind::LOGGED, &stream[cut..]));
        for step in [1, 2, 3, 5, 11, raw.len()] {
            let mut solo = Solo::node(resumable());
            let mut key = None;
            for piece in raw.chunks(step) {
                solo.raw(piece);
                while let Some(incoming) = solo.end.poll_incoming() {
                    match incoming {
                        Incoming::Offer { key: offered, .. } => {
                            solo.end.accept(offered, Bytes::new());
                            solo.sent();
                            key = Some(offered);
                        }
                        Incoming::Control(message) => {
                            assert!(message.is_empty() || message == "message");
                        }
                        Incoming::Draining => panic!("nobody drains"),
                    }
                }
                // The stream must be open before its DATA comes.
                if step == raw.len() {
                    break;
                }
            }
            if step == raw.len() {
                assert_eq!(solo.violation(), Some(close::FLOW_CONTROL), "{cut}");
                continue;
            }
            assert_eq!(solo.end.closed(), None, "cut {cut}, step {step}");
            let mut got = Vec::new();
            while let Ok(Read::Chunk(chunk)) = solo.end.read(key.unwrap(), 100) {
                got.extend_from_slice(&chunk);
            }
            assert_eq!(got, b"payload", "cut {cut}, step {step}");
        }
    }
}

/// protocol 205, 1001
#[test]
fn empty_records_are_useless_work() {
    for kind in [kind::LOGGED, kind::UNLOGGED] {
        let (mut solo, _) = accepted(resumable());
        for _ in 0..100 {
            solo.record(kind, b"");
        }
        assert_eq!(solo.end.closed(), None);
        for _ in 0..30_000 {
            solo.record(kind, b"");
        }
        assert_eq!(solo.violation(), Some(close::TOO_MUCH));
    }
}

/// protocol 206
#[test]
fn each_frame_has_its_kind_of_record() {
    let unlogged = [
        Frame::Ping(1),
        Frame::Pong(1),
        Frame::Datagram {
            id: 2,
            payload: Bytes::new(),
        },
    ];
    for frame in unlogged {
        let (mut solo, _) = accepted(resumable());
        solo.record(kind::LOGGED, &put(&frame));
        assert_eq!(
            solo.violation(),
            Some(close::PROTOCOL_ERROR),
            "{frame:?} logged"
        );
    }
    let logged = [
        open(4),
        Frame::Reset { id: 2, code: 1 },
        Frame::Window { id: 2, limit: 9 },
        Frame::Control(Bytes::new()),
        Frame::Streams { total: 500 },
        Frame::Settings(Settings::DEFAULT),
        Frame::OpenOk {
            id: 1,
            credit: 0,
            answer: Bytes::new(),
        },
        Frame::Goaway {
            code: close::DRAIN,
            message: Bytes::new(),
        },
    ];
    for frame in logged {
        let (mut solo, _) = accepted(resumable());
        solo.record(kind::UNLOGGED, &put(&frame));
        assert_eq!(
            solo.violation(),
            Some(close::PROTOCOL_ERROR),
            "{frame:?} unlogged"
        );
    }
    let (mut solo, _) = accepted(resumable());
    solo.record(kind::UNLOGGED, &data(2, b"x"));
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    // Types that nobody knows are skipped in both.
    let (mut solo, _) = accepted(resumable());
    for kind in [kind::LOGGED, kind::UNLOGGED] {
        solo.record(kind, &[0x40, 7, 0, 2, 0, 0, 0, 5, 1, 2]);
    }
    assert_eq!(solo.end.closed(), None);
}

/// protocol 206
#[test]
fn an_unlogged_record_holds_whole_frames() {
    let ping = put(&Frame::Ping(7));
    for cut in 1..ping.len() {
        let (mut solo, _) = accepted(resumable());
        solo.record(kind::UNLOGGED, &ping[..cut]);
        assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR), "{cut}");
    }
    let (mut solo, _) = accepted(resumable());
    let mut two = ping.clone();
    two.extend(&ping);
    solo.record(kind::UNLOGGED, &two);
    assert_eq!(solo.sent(), put(&Frame::Pong(7)));
}

/// protocol 207
#[test]
fn received_bytes_are_acknowledged_after_25_ms() {
    let (mut solo, key) = accepted(resumable());
    solo.data(2, b"x", false);
    assert!(!solo.end.wants_transmit());
    assert_eq!(logged(&mut solo), (0, None));
    let due = solo.now + Duration::from_millis(25);
    assert_eq!(solo.end.poll_timeout(), Some(due));
    // A byte that comes later does not put it off.
    solo.wait(Duration::from_millis(20));
    solo.data(2, b"y", false);
    assert_eq!(solo.end.poll_timeout(), Some(due));
    solo.wait(Duration::from_millis(5));
    assert!(solo.end.wants_transmit());
    // SETTINGS, OPEN and two DATA: nobody has read anything.
    assert_eq!(logged(&mut solo), (0, Some(32 + 12 + 9 + 9)));
    assert!(!solo.end.wants_transmit());
    assert!(solo.end.poll_timeout().unwrap() > due + Duration::from_secs(1));
    assert!(matches!(solo.end.read(key, 1), Ok(Read::Chunk(_))));
}

/// protocol 207
#[test]
fn received_bytes_are_acknowledged_with_anything_that_is_sent() {
    let (mut solo, key) = accepted(resumable());
    solo.data(2, b"x", false);
    solo.end.write(key, &mut Bytes::from_static(b"y")).unwrap();
    let records = solo.sent_records();
    let kinds: Vec<u8> = records.iter().map(|(kind, _)| *kind).collect();
    assert_eq!(kinds, [kind::ACK, kind::LOGGED]);
    solo.wait(Duration::from_millis(100));
    assert_eq!(logged(&mut solo), (0, None), "there is nothing new");
}

/// protocol 207
#[test]
fn received_bytes_are_acknowledged_when_there_are_128_kib() {
    let (mut solo, key) = accepted(resumable());
    let mut received = 32 + 12;
    let payload = [0; 8 * 1024 - 8];
    for _ in 0..15 {
        solo.data(2, &payload, false);
        received += 8 * 1024;
        // Read, so that there is credit; a WINDOW would carry an ACK.
        while matches!(solo.end.read(key, 10_000), Ok(Read::Chunk(_))) {}
        let (_, told) = logged(&mut solo);
        if told.is_some() {
            assert_eq!(told, Some(received));
        }
    }
    let (mut solo, _) = accepted(resumable());
    for i in 0..20_000 {
        solo.frame(&Frame::Reset { id: 2, code: 1 });
        if solo.end.wants_transmit() && i > 0 {
            let (_, told) = logged(&mut solo);
            assert!(told.unwrap() >= 128 * 1024, "{told:?} at {i}");
            return;
        }
        solo.sent();
    }
    panic!("never acknowledged");
}

/// protocol 208
#[test]
fn a_tunnel_that_is_not_resumable_has_no_acknowledgements_and_keeps_nothing() {
    let (mut solo, key) = accepted(Config::default());
    solo.data(2, b"x", false);
    solo.end
        .write(key, &mut Bytes::from(vec![0; 100_000]))
        .unwrap();
    assert_eq!(logged(&mut solo).1, None);
    assert_eq!(solo.end.stats().retained_bytes, 0);
    solo.wait(Duration::from_secs(1));
    assert_eq!(logged(&mut solo).1, None);
    for kind in [kind::ACK, kind::RESUME] {
        let (mut solo, _) = accepted(Config::default());
        solo.raw(&offset_record(kind, 0));
        assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    }
}

/// protocol 209
#[test]
fn an_offset_that_cannot_be_true_ends_the_tunnel() {
    let (mut solo, key) = accepted(resumable());
    // SETTINGS and OPEN_OK are out.
    let sent = 32 + 12;
    assert_eq!(solo.end.stats().retained_bytes, sent);
    ack(&mut solo, 32);
    assert_eq!(solo.end.stats().retained_bytes, 12);
    ack(&mut solo, 32);
    assert_eq!(solo.end.closed(), None, "no news is useless, not wrong");
    solo.end.write(key, &mut Bytes::from_static(b"y")).unwrap();
    let mut beyond = solo;
    ack(&mut beyond, sent + 1);
    assert_eq!(beyond.violation(), Some(close::PROTOCOL_ERROR));
    let (mut solo, _) = accepted(resumable());
    ack(&mut solo, sent);
    assert_eq!(solo.end.stats().retained_bytes, 0);
    ack(&mut solo, sent - 1);
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
}

/// protocol 209, 1001
#[test]
fn acknowledgements_without_news_are_useless_work() {
    let (mut solo, _) = accepted(resumable());
    for _ in 0..30_000 {
        ack(&mut solo, 0);
    }
    assert_eq!(solo.violation(), Some(close::TOO_MUCH));
}

/// Sends as much as the log allows; returns how many bytes of the logged stream that were.
fn fill(solo: &mut Solo, key: Key) -> u64 {
    let before = solo.end.stats().retained_bytes;
    loop {
        let room = solo.end.write_budget(key).unwrap();
        solo.end
            .write(key, &mut Bytes::from(vec![0; room]))
            .unwrap();
        if solo.sent().is_empty() {
            return solo.end.stats().retained_bytes - before;
        }
    }
}

/// protocol 210
#[test]
fn at_the_limit_of_the_log_only_data_waits() {
    let (mut solo, key) = accepted(resumable());
    fill(&mut solo, key);
    let full = solo.end.stats().retained_bytes;
    assert!((1_047_000..=1_050_000).contains(&full), "{full}");
    assert!(!solo.end.wants_transmit());
    // Other frames have a reserve, and it ends too.
    solo.end
        .send_control(Bytes::from_static(b"still there"))
        .unwrap();
    assert_eq!(solo.sent().len(), 8 + 11);
    for _ in 0..40 {
        solo.end.send_control(Bytes::from(vec![0; 8000])).unwrap();
    }
    solo.sent();
    let most = solo.end.stats().retained_bytes;
    assert!(most < full + 64 * 1024 + 9000, "{most}");
    assert!(!solo.end.wants_transmit());
    // An acknowledgement lets everything go on.
    ack(&mut solo, 900_000);
    assert!(solo.end.wants_transmit());
    assert!(solo.sent().len() > 200_000);
}

/// protocol 211
#[test]
fn the_limit_of_the_log_doubles_when_acknowledged_fast_and_halves_when_not_used() {
    let (mut solo, key) = accepted(resumable());
    let mut acked = 0;
    let mut limits = Vec::new();
    for _ in 0..8 {
        fill(&mut solo, key);
        acked += solo.end.stats().retained_bytes;
        solo.now += Duration::from_millis(5);
        limits.push(solo.end.stats().retained_bytes >> 20);
        ack(&mut solo, acked);
    }
    assert_eq!(limits, [1, 2, 4, 8, 16, 16, 16, 16]);
    // A slow receiver does not need more: a whole limit takes it longer than four round trips.
    let (mut slow, key) = accepted(resumable());
    let mut acked = 0;
    for _ in 0..5 {
        fill(&mut slow, key);
        acked += slow.end.stats().retained_bytes;
        slow.now += Duration::from_millis(9);
        assert!(slow.end.stats().retained_bytes < 1_060_000);
        ack(&mut slow, acked);
    }
    // Little used: it comes down to its least.
    for _ in 0..6 {
        for _ in 0..12 {
            slow.now += Duration::from_secs(1);
            slow.end
                .write(key, &mut Bytes::from_static(b"little"))
                .unwrap();
            slow.sent();
            acked += slow.end.stats().retained_bytes;
            ack(&mut slow, acked);
        }
    }
    fill(&mut slow, key);
    let least = slow.end.stats().retained_bytes;
    assert!((261_000..=264_000).contains(&least), "{least}");
}

/// protocol 212
#[test]
fn a_peer_that_acknowledges_nothing_for_90_seconds_ends_the_tunnel() {
    let (mut solo, key) = accepted(resumable());
    ack(&mut solo, 44);
    solo.wait(Duration::from_secs(3));
    let deadline = |s: &mut Solo| {
        s.data(2, b"alive", false);
        s.wait(Duration::from_secs(1));
        s.sent();
        s.end.closed().is_some()
    };
    for _ in 0..100 {
        assert!(!deadline(&mut solo), "there is nothing to acknowledge");
    }
    solo.end.write(key, &mut Bytes::from_static(b"y")).unwrap();
    solo.sent();
    for second in 1..90 {
        assert!(!deadline(&mut solo), "{second}");
    }
    assert!(deadline(&mut solo));
    assert_eq!(solo.end.closed().unwrap().word(), "timeout");
    assert!(!solo.end.is_detached());
}
