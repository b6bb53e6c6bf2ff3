//! What keeps a tunnel going and what ends it, sentence by sentence: credit that is nobody else's, order,
//! signs of life, and the last words.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::{Frame, MAX_MESSAGE, kind};
use sg_tunnel::{CloseReason, Config, ControlRefusal, Incoming, Key, OpenState, Read};
use support::Solo;

fn offers(solo: &mut Solo) -> Vec<Key> {
    std::iter::from_fn(|| solo.end.poll_incoming())
        .map(|incoming| match incoming {
            Incoming::Offer { key, .. } => key,
            other => panic!("{other:?}"),
        })
        .collect()
}

fn open(solo: &mut Solo, id: u32) {
    solo.frame(&Frame::Open {
        id,
        credit: 65_536,
        flow: false,
        metadata: Bytes::new(),
    });
}

/// Kind, id and payload of each frame.
fn frames(mut bytes: Bytes) -> Vec<(u8, u32, Bytes)> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        let header = bytes.split_to(8);
        let length = usize::from(header[2]) << 8 | usize::from(header[3]);
        let id = u32::from_be_bytes(header[4..].try_into().unwrap());
        frames.push((header[0], id, bytes.split_to(length)));
    }
    frames
}

/// protocol 404: thousands of offers that nobody answers, and the one behind them is served at once.
#[test]
fn an_offer_without_an_answer_delays_no_other_stream() {
    let mut solo = Solo::node(Config::default());
    for i in 1..=4000 {
        open(&mut solo, i * 2);
    }
    let keys = offers(&mut solo);
    let last = keys[3999];
    solo.end.accept(last, Bytes::new());
    let mut sent = frames(solo.sent());
    solo.data(8000, b"question", false);
    let question = Bytes::from_static(b"question");
    assert_eq!(solo.end.read(last, 100), Ok(Read::Chunk(question)));
    solo.end
        .write(last, &mut Bytes::from_static(b"answer"))
        .unwrap();
    sent.extend(frames(solo.sent()));
    let of_last: Vec<u8> = sent.iter().filter(|f| f.1 == 8000).map(|f| f.0).collect();
    assert_eq!(of_last, [kind::OPEN_OK, kind::DATA]);
    // Nor does an open of ours that the peer leaves unanswered.
    let ours: Vec<Key> = (0..3)
        .map(|_| solo.end.open(Bytes::new()).unwrap())
        .collect();
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 5,
        credit: 10,
        answer: Bytes::new(),
    });
    assert_eq!(solo.end.open_state(ours[2]), Ok(OpenState::Open));
    assert_eq!(solo.end.open_state(ours[0]), Ok(OpenState::Waiting));
}

/// protocol 503: streams whose readers have stopped fill their own credit and nothing else.
#[test]
fn stalled_streams_take_nothing_from_the_others() {
    let mut solo = Solo::node(Config::default());
    for i in 1..=9 {
        open(&mut solo, i * 2);
    }
    let keys = offers(&mut solo);
    for key in &keys {
        solo.end.accept(*key, Bytes::new());
    }
    solo.sent();
    for i in 1..=8 {
        for _ in 0..4 {
            solo.data(i * 2, &[1; 16_376], false);
        }
    }
    let mut read = 0;
    for _ in 0..500 {
        solo.data(18, &[2; 16_000], false);
        while let Ok(Read::Chunk(chunk)) = solo.end.read(keys[8], usize::MAX) {
            read += chunk.len();
        }
        solo.sent();
    }
    assert_eq!(read, 500 * 16_000);
    assert_eq!(solo.end.closed(), None);
    assert_eq!(solo.end.stats().unread_bytes, 8 * 4 * 16_376);
}

/// protocol 507: without any credit everything but bytes still goes.
#[test]
fn only_data_needs_credit() {
    let mut solo = Solo::node(Config::default());
    let refused = solo.end.open(Bytes::new()).unwrap();
    let key = solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    for id in [1, 3] {
        solo.frame(&Frame::OpenOk {
            id,
            credit: 0,
            answer: Bytes::new(),
        });
    }
    assert_eq!(solo.end.write_budget(key), Ok(0));
    solo.data(3, &[0; 16_000], false);
    solo.data(3, &[0; 16_376], false);
    while let Ok(Read::Chunk(_)) = solo.end.read(key, usize::MAX) {}
    solo.data(3, &[0; 16_376], false);
    while let Ok(Read::Chunk(_)) = solo.end.read(key, usize::MAX) {}
    solo.end.reset(refused, code::CANCEL);
    solo.end.finish(key).unwrap();
    solo.end.send_control(Bytes::from_static(b"m")).unwrap();
    let kinds: Vec<u8> = frames(solo.sent()).iter().map(|f| f.0).collect();
    for expected in [kind::CONTROL, kind::RESET, kind::WINDOW, kind::DATA] {
        assert!(kinds.contains(&expected), "{expected} in {kinds:?}");
    }
}

/// protocol 604: OPEN, OPEN_OK, DATA and FIN of one stream keep their order, in small batches too.
#[test]
fn the_frames_of_one_stream_keep_their_order() {
    let mut solo = Solo::node(Config::default());
    let ours = solo.end.open(Bytes::new()).unwrap();
    open(&mut solo, 2);
    let theirs = offers(&mut solo)[0];
    solo.end.accept(theirs, Bytes::new());
    let text = Bytes::from(
        (0..20_000_u32)
            .map(|i| (i % 251) as u8)
            .collect::<Vec<u8>>(),
    );
    solo.end.write(theirs, &mut text.clone()).unwrap();
    solo.end.finish(theirs).unwrap();
    solo.end.finish(ours).unwrap();
    let mut all = Vec::new();
    for _ in 0..40 {
        all.extend(frames(solo.sent_up_to(1024)));
        if all.iter().any(|f| f.1 == 1) {
            solo.frame(&Frame::OpenOk {
                id: 1,
                credit: 10,
                answer: Bytes::new(),
            });
            break;
        }
    }
    for _ in 0..60 {
        all.extend(frames(solo.sent_up_to(1024)));
    }
    let of = |id| -> Vec<u8> { all.iter().filter(|f| f.1 == id).map(|f| f.0).collect() };
    assert_eq!(of(1), [kind::OPEN, kind::DATA]);
    let second = of(2);
    assert_eq!(second[0], kind::OPEN_OK);
    assert!(second.len() > 10 && second[1..].iter().all(|k| *k == kind::DATA));
    let bytes: Vec<u8> = all
        .iter()
        .filter(|f| f.1 == 2 && f.0 == kind::DATA)
        .flat_map(|f| f.2.to_vec())
        .collect();
    assert_eq!(bytes, text);
}

/// protocol 701: only the latest PING is answered, and with its value.
#[test]
fn the_latest_ping_is_answered() {
    let mut solo = Solo::node(Config::default());
    for value in [7, 8, 9] {
        solo.frame(&Frame::Ping(value));
    }
    let pongs: Vec<Bytes> = frames(solo.sent())
        .into_iter()
        .filter(|f| f.0 == kind::PONG)
        .map(|f| f.2)
        .collect();
    assert_eq!(pongs, [Bytes::copy_from_slice(&9_u64.to_be_bytes())]);
}

fn pings(solo: &mut Solo) -> usize {
    frames(solo.sent())
        .iter()
        .filter(|f| f.0 == kind::PING)
        .count()
}

/// protocol 701, 702: at most one PING is out; every 2 s with streams, every 15 s without.
#[test]
fn pings_come_at_their_intervals_and_one_at_a_time() {
    for (with_stream, interval) in [(true, 2), (false, 15)] {
        let mut solo = Solo::node(Config::default());
        if with_stream {
            open(&mut solo, 2);
        }
        // The first one was sent at once.
        solo.frame(&Frame::Pong(1));
        pings(&mut solo);
        solo.wait(Duration::from_millis(interval * 1000 - 1));
        assert_eq!(pings(&mut solo), 0);
        solo.wait(Duration::from_millis(1));
        assert_eq!(pings(&mut solo), 1);
        // It is not answered: there is no second one, but the tunnel lives on other bytes.
        for _ in 0..10 {
            solo.wait(Duration::from_secs(interval));
            solo.frame(&Frame::Control(Bytes::new()));
            assert_eq!(pings(&mut solo), 0);
        }
        assert_eq!(solo.end.closed(), None);
    }
}

/// protocol 702, 706: dead after 6 s of silence with streams, 45 s without; a tunnel that cannot be resumed
/// says IDLE, a resumable one is detached.
#[test]
fn silence_ends_or_detaches_a_tunnel() {
    for (with_stream, silence) in [(true, 6), (false, 45)] {
        for resume in [0, 30] {
            let mut solo = Solo::node(Config {
                resume_time: Duration::from_secs(resume),
                ..Config::default()
            });
            if with_stream {
                open(&mut solo, 2);
            }
            solo.wait(Duration::from_millis(silence * 1000 - 1));
            assert!(solo.end.closed().is_none() && !solo.end.is_detached());
            solo.wait(Duration::from_millis(1));
            assert_eq!(solo.end.is_detached(), resume > 0);
            if resume == 0 {
                assert_eq!(solo.end.closed().unwrap().reason, CloseReason::Timeout);
                let last = frames(solo.sent()).pop().unwrap();
                assert_eq!(
                    (last.0, &last.2[..4]),
                    (kind::GOAWAY, &close::IDLE.to_be_bytes()[..])
                );
            }
        }
    }
}

/// protocol 903: the receiver of a GOAWAY that ends the tunnel says nothing more.
#[test]
fn a_goaway_is_not_answered() {
    let mut solo = Solo::node(Config::default());
    open(&mut solo, 2);
    solo.frame(&Frame::Goaway {
        code: close::REPLACED,
        message: Bytes::new(),
    });
    assert!(!solo.end.wants_transmit());
    assert!(solo.sent_records().is_empty());
}

/// protocol 904: the text is cut between characters, and made printable by its receiver.
#[test]
fn the_text_of_a_goaway_is_short_and_printable() {
    let mut solo = Solo::node(Config::default());
    solo.end.close(close::INTERNAL, &"ä".repeat(300));
    let last = frames(solo.sent()).pop().unwrap();
    assert_eq!(last.0, kind::GOAWAY);
    assert_eq!(
        std::str::from_utf8(&last.2[4..]).unwrap(),
        "ä".repeat(MAX_MESSAGE / 2)
    );

    let mut solo = Solo::node(Config::default());
    solo.frame(&Frame::Goaway {
        code: close::NONE,
        message: Bytes::from_static(b"a\x1b[31m\nb\xff"),
    });
    let CloseReason::Peer { message, .. } = &solo.end.closed().unwrap().reason else {
        panic!("not closed by the peer");
    };
    assert_eq!(&**message, "a [31m b\u{fffd}");
}

/// protocol 905: messages arrive whole and in order; what the queue does not take is told.
#[test]
fn messages_keep_their_order_and_the_queue_its_bound() {
    let mut solo = Solo::node(Config::default());
    for i in 0..256_u32 {
        let message = Bytes::copy_from_slice(&i.to_be_bytes());
        assert_eq!(solo.end.send_control(message), Ok(()));
    }
    assert_eq!(
        solo.end.send_control(Bytes::new()),
        Err(ControlRefusal::Full)
    );
    let sent = frames(solo.sent());
    let numbers: Vec<u32> = sent
        .iter()
        .filter(|f| f.0 == kind::CONTROL)
        .map(|f| u32::from_be_bytes(f.2[..].try_into().unwrap()))
        .collect();
    assert_eq!(numbers, (0..256).collect::<Vec<_>>());
    for i in 0..3 {
        solo.frame(&Frame::Control(Bytes::from(vec![i; 16_384])));
    }
    for i in 0..3 {
        let message = Incoming::Control(Bytes::from(vec![i; 16_384]));
        assert_eq!(solo.end.poll_incoming(), Some(message));
    }
}

/// protocol 705: a write that is stuck ends the transport, not a stream; the driver tells when.
#[test]
fn a_stuck_write_detaches_a_resumable_tunnel_and_ends_another() {
    assert_eq!(Config::default().write_stall, Duration::from_secs(60));
    for resume in [0, 30] {
        let mut solo = Solo::node(Config {
            resume_time: Duration::from_secs(resume),
            ..Config::default()
        });
        open(&mut solo, 2);
        let key = offers(&mut solo)[0];
        solo.end.accept(key, Bytes::new());
        solo.end.time_out(solo.now);
        assert_eq!(solo.end.is_detached(), resume > 0);
        assert_eq!(solo.end.closed().is_some(), resume == 0);
        assert_eq!(solo.end.ended(key).is_some(), resume == 0);
    }
}
