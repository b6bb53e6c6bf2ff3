//! What a peer may and may not do: one scenario each, with the code that it is told.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::{Frame, Settings};
use sg_tunnel::record::kind;
use sg_tunnel::{Config, Event, Incoming, Key, OpenState, Peek, Read, StreamEnd};
use support::{Solo, record};

fn open(id: u32) -> Frame {
    Frame::Open {
        id,
        credit: 1000,
        flow: false,
        metadata: Bytes::from_static(b"meta"),
    }
}

/// A node with stream 2, opened by the peer and accepted.
fn accepted() -> (Solo, Key) {
    let mut solo = Solo::node(Config::default());
    solo.frame(&open(2));
    let Some(Incoming::Offer { key, metadata }) = solo.end.poll_incoming() else {
        panic!("no offer");
    };
    assert_eq!(metadata, "meta");
    solo.end.accept(key, Bytes::new());
    let sent = solo.sent();
    assert_eq!(sent[..12], [2, 0, 0, 4, 0, 0, 0, 2, 0, 1, 0, 0]);
    (solo, key)
}

/// A node with stream 1, opened by itself and accepted by the peer.
fn opened() -> (Solo, Key) {
    let mut solo = Solo::node(Config::default());
    let key = solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 1000,
        answer: Bytes::new(),
    });
    assert_eq!(solo.end.open_state(key), Ok(OpenState::Open));
    (solo, key)
}

fn refused(solo: &Solo, code: u32) {
    assert_eq!(solo.violation(), Some(code), "{:?}", solo.end.closed());
}

fn alive(solo: &Solo) {
    assert_eq!(solo.end.closed(), None);
}

/// protocol 303
#[test]
fn the_first_frame_must_be_settings_and_the_only_one() {
    let mut solo = Solo::silent(Config::default());
    solo.frame(&Frame::Control(Bytes::new()));
    refused(&solo, close::SETTINGS);
    let goaway = solo.sent();
    assert!(goaway.ends_with(b"SETTINGS is not the first frame"));
    let mut solo = Solo::node(Config::default());
    solo.frame(&Frame::Settings(Settings::DEFAULT));
    refused(&solo, close::SETTINGS);
}

/// protocol 302
#[test]
fn a_header_may_be_split_anywhere() {
    let mut bytes = Vec::new();
    Frame::Settings(Settings::DEFAULT).put(&mut bytes);
    open(2).put(&mut bytes);
    Frame::Control(Bytes::from_static(b"c")).put(&mut bytes);
    for cut in 0..bytes.len() {
        let mut solo = Solo::silent(Config::default());
        solo.bytes(&bytes[..cut]);
        solo.bytes(&bytes[cut..]);
        alive(&solo);
        assert!(matches!(
            solo.end.poll_incoming(),
            Some(Incoming::Offer { .. })
        ));
        assert_eq!(
            solo.end.poll_incoming(),
            Some(Incoming::Control(Bytes::from_static(b"c")))
        );
    }
}

/// protocol 301, 401
#[test]
fn stream_ids_have_parity_order_and_no_gaps() {
    for wrong in [1, 4, 0x8000_0002] {
        let mut solo = Solo::node(Config::default());
        solo.frame(&open(wrong));
        refused(&solo, close::STREAM_ID);
    }
    let mut solo = Solo::node(Config::default());
    solo.frame(&open(2));
    solo.frame(&open(2));
    refused(&solo, close::STREAM_ID);
}

/// protocol 409
#[test]
fn frames_for_streams_that_never_were_end_the_tunnel() {
    for id in [1, 2, 77] {
        let mut solo = Solo::node(Config::default());
        solo.data(id, b"x", false);
        refused(&solo, close::STREAM_ID);
        for frame in [
            Frame::Reset { id, code: 1 },
            Frame::Window { id, limit: 1 },
            Frame::OpenOk {
                id,
                credit: 1,
                answer: Bytes::new(),
            },
        ] {
            let mut solo = Solo::node(Config::default());
            solo.frame(&frame);
            refused(&solo, close::STREAM_ID);
        }
    }
}

/// protocol 405, 406, 408, 501
#[test]
fn data_before_the_answer_after_the_fin_and_after_the_reset_ends_the_tunnel() {
    let mut solo = Solo::node(Config::default());
    solo.frame(&open(2));
    solo.data(2, b"x", false);
    refused(&solo, close::FLOW_CONTROL);

    let mut solo = Solo::node(Config::default());
    solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    solo.data(1, b"x", false);
    refused(&solo, close::PROTOCOL_ERROR);

    let (mut solo, _) = accepted();
    solo.data(2, b"x", true);
    solo.data(2, b"y", false);
    refused(&solo, close::STREAM_ID);

    let (mut solo, _) = accepted();
    solo.frame(&Frame::Reset {
        id: 2,
        code: code::CANCEL,
    });
    solo.data(2, b"y", false);
    refused(&solo, close::STREAM_ID);
}

/// protocol 501
#[test]
fn one_byte_beyond_the_credit_ends_the_tunnel() {
    let (mut solo, key) = accepted();
    for _ in 0..4 {
        solo.data(2, &[0; 16_376], false);
    }
    solo.data(2, &[0; 32], false);
    alive(&solo);
    assert_eq!(solo.end.stats().unread_bytes, 65_536);
    let mut more = solo;
    more.data(2, b"x", false);
    refused(&more, close::FLOW_CONTROL);
    assert_eq!(more.end.read(key, 100), Err(StreamEnd::Lost));
}

/// protocol 504, 505
#[test]
fn credit_comes_back_when_half_is_consumed_and_grows_when_used_fast() {
    let (mut solo, key) = accepted();
    for _ in 0..4 {
        solo.data(2, &[0; 16_376], false);
    }
    assert!(matches!(solo.end.read(key, 16_376), Ok(Read::Chunk(_))));
    assert!(!solo.end.wants_transmit());
    assert!(matches!(solo.end.read(key, 16_376), Ok(Read::Chunk(_))));
    assert!(matches!(solo.end.read(key, 16_376), Ok(Read::Chunk(_))));
    let window = solo.sent();
    assert_eq!(window[..8], [4, 0, 0, 8, 0, 0, 0, 2]);
    let limit = u64::from_be_bytes(window[8..16].try_into().unwrap());
    assert_eq!(limit, 3 * 16_376 + 128 * 1024);
}

/// protocol 502
#[test]
fn a_lower_or_equal_window_is_ignored_and_the_largest_does_not_overflow() {
    let (mut solo, key) = opened();
    assert_eq!(solo.end.write_budget(key), Ok(1000));
    solo.frame(&Frame::Window { id: 1, limit: 1000 });
    solo.frame(&Frame::Window { id: 1, limit: 10 });
    assert_eq!(solo.end.write_budget(key), Ok(1000));
    assert_eq!(
        solo.end.write(key, &mut Bytes::from(vec![0; 2000])),
        Ok(1000)
    );
    assert_eq!(solo.end.write_budget(key), Ok(0));
    solo.frame(&Frame::Window {
        id: 1,
        limit: u64::MAX,
    });
    assert_eq!(solo.end.poll_event(), Some(Event::Opened(key)));
    assert_eq!(solo.end.poll_event(), Some(Event::Writable(key)));
    assert_eq!(solo.end.write_budget(key), Ok(256 * 1024 - 1000));
    alive(&solo);
}

/// protocol 304, 305, 306, 307
#[test]
fn lengths_flags_and_types_are_checked_by_the_header_alone() {
    let cases: [(&[u8], u32); 9] = [
        (&[3, 0, 0, 5, 0, 0, 0, 2], close::FRAME_SIZE),
        (&[5, 0, 0, 7, 0, 0, 0, 0], close::FRAME_SIZE),
        (&[1, 0, 0x20, 0, 0, 0, 0, 2], close::FRAME_SIZE),
        (&[0, 0, 0x3f, 0xf9, 0, 0, 0, 2], close::FRAME_SIZE),
        (&[9, 0, 0x40, 1, 0, 0, 0, 0], close::FRAME_SIZE),
        (&[5, 1, 0, 8, 0, 0, 0, 0], close::PROTOCOL_ERROR),
        (&[0, 2, 0, 0, 0, 0, 0, 2], close::PROTOCOL_ERROR),
        (&[12, 0, 0, 0, 0, 0, 0, 2], close::PROTOCOL_ERROR),
        (&[5, 0, 0, 8, 0, 0, 0, 1], close::STREAM_ID),
    ];
    for (header, expected) in cases {
        let mut solo = Solo::node(Config::default());
        solo.bytes(header);
        refused(&solo, expected);
    }
}

/// protocol 305
#[test]
fn unknown_types_from_0x40_on_are_skipped() {
    let mut solo = Solo::node(Config::default());
    let mut bytes = vec![0x40, 0xff, 0xff, 0xff, 0, 0, 0, 9];
    bytes.extend(std::iter::repeat_n(0xaa, 65_535));
    for piece in bytes.chunks(1000) {
        solo.bytes(piece);
    }
    solo.frame(&Frame::Ping(5));
    assert!(
        solo.sent()
            .starts_with(&[6, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 5])
    );
}

/// protocol 407, 408
#[test]
fn a_reset_is_answered_once_and_the_stream_is_gone_when_released() {
    let (mut solo, key) = accepted();
    solo.frame(&Frame::Reset {
        id: 2,
        code: code::PEER_RESET,
    });
    assert_eq!(
        solo.end.read(key, 10),
        Err(StreamEnd::Reset(code::PEER_RESET))
    );
    let mut answer = Vec::new();
    Frame::Reset {
        id: 2,
        code: code::PEER_RESET,
    }
    .put(&mut answer);
    assert_eq!(solo.sent(), answer);
    assert_eq!(solo.end.streams(), 1);
    solo.end.release(key, code::CANCEL);
    assert_eq!(solo.end.streams(), 0);
    assert!(solo.sent().is_empty());
}

/// protocol 408, 409
#[test]
fn late_data_after_our_reset_is_dropped_within_the_promise_only() {
    let (mut solo, key) = accepted();
    solo.end.release(key, code::IDLE_TIMEOUT);
    assert_eq!(solo.sent()[..8], [3, 0, 0, 4, 0, 0, 0, 2]);
    // A tombstone: the peer has not answered.
    assert_eq!(solo.end.streams(), 1);
    solo.data(2, &[0; 16_000], false);
    solo.frame(&Frame::Window { id: 2, limit: 5000 });
    alive(&solo);
    assert_eq!(solo.end.stats().unread_bytes, 0);
    solo.data(2, b"last", true);
    assert_eq!(solo.end.streams(), 0);
    // Whatever crosses the end is ignored, except DATA.
    solo.frame(&Frame::Reset { id: 2, code: 1 });
    solo.frame(&Frame::Window { id: 2, limit: 9000 });
    alive(&solo);
    solo.data(2, b"x", false);
    refused(&solo, close::STREAM_ID);
}

/// protocol 407
#[test]
fn a_reset_goes_ahead_of_queued_data_and_drops_it() {
    let (mut solo, key) = opened();
    solo.end.write(key, &mut Bytes::from(vec![1; 900])).unwrap();
    solo.end.reset(key, code::PEER_RESET);
    let mut reset = Vec::new();
    Frame::Reset {
        id: 1,
        code: code::PEER_RESET,
    }
    .put(&mut reset);
    assert_eq!(solo.sent(), reset);
}

/// protocol 408, 409
#[test]
fn reset_and_fin_may_cross_in_either_order() {
    // Our FIN is out, the peer's RESET needs no answer.
    let (mut solo, key) = accepted();
    solo.end.finish(key).unwrap();
    assert_eq!(solo.sent()[..], [0, 1, 0, 0, 0, 0, 0, 2]);
    solo.frame(&Frame::Reset { id: 2, code: 1 });
    solo.end.release(key, code::CANCEL);
    assert!(solo.sent().is_empty());
    assert_eq!(solo.end.streams(), 0);
    // Our RESET is out, the peer's FIN is its answer.
    let (mut solo, key) = accepted();
    solo.end.release(key, code::CANCEL);
    solo.sent();
    solo.data(2, b"", true);
    assert_eq!(solo.end.streams(), 0);
    alive(&solo);
}

/// protocol 402, 403
#[test]
fn opens_beyond_the_stream_credit_end_the_tunnel_and_slots_return_in_steps() {
    let config = Config {
        max_streams: 8,
        ..Config::default()
    };
    let mut solo = Solo::node(config);
    for i in 1..=8 {
        solo.frame(&open(i * 2));
    }
    alive(&solo);
    while let Some(Incoming::Offer { key, .. }) = solo.end.poll_incoming() {
        solo.end.release(key, code::REFUSED);
    }
    solo.sent();
    // Refused, but the opener has not confirmed: no slot yet.
    for i in 1..=4 {
        solo.frame(&Frame::Reset { id: i * 2, code: 1 });
    }
    let mut streams = Vec::new();
    Frame::Streams { total: 12 }.put(&mut streams);
    assert_eq!(solo.sent(), streams);
    for i in 9..=12 {
        solo.frame(&open(i * 2));
    }
    alive(&solo);
    solo.frame(&open(26));
    refused(&solo, close::PROTOCOL_ERROR);
}

/// protocol 309
#[test]
fn opens_wait_for_settings_and_what_is_too_much_fails() {
    let mut solo = Solo::silent(Config::default());
    let keys: Vec<Key> = (0..5)
        .map(|_| solo.end.open(Bytes::new()).unwrap())
        .collect();
    let first = solo.sent();
    assert_eq!((first[0], first[16]), (5, 0x0a));
    assert_eq!(first.len(), 16 + 32, "PING and SETTINGS, no OPEN");
    solo.frame(&Frame::Settings(Settings {
        max_streams: 3,
        ..Settings::DEFAULT
    }));
    let states: Vec<_> = keys.iter().map(|k| solo.end.open_state(*k)).collect();
    assert_eq!(states[2], Ok(OpenState::Waiting));
    assert_eq!(states[3], Err(StreamEnd::Reset(code::LIMIT)));
    let opens = solo.sent();
    assert_eq!(opens.len(), 3 * 12);
    assert_eq!(opens[24..32], [1, 0, 0, 4, 0, 0, 0, 5]);
    assert!(solo.end.open(Bytes::new()).is_err());
}

/// protocol 703
#[test]
fn an_open_carries_a_ping_and_an_unanswered_one_makes_the_tunnel_suspect() {
    let mut solo = Solo::node(Config::default());
    solo.frame(&Frame::Pong(1));
    assert!(solo.end.rtt().is_some());
    solo.wait(Duration::from_secs(1));
    solo.end.open(Bytes::new()).unwrap();
    let sent = solo.sent();
    assert_eq!(sent.len(), 16 + 12);
    assert_eq!((sent[0], sent[16]), (5, 1));
    solo.wait(Duration::from_millis(999));
    assert!(!solo.end.is_suspect(solo.now));
    solo.wait(Duration::from_millis(1));
    assert!(solo.end.is_suspect(solo.now));
    solo.wait(Duration::from_secs(4));
    alive(&solo);
    solo.wait(Duration::from_secs(1));
    assert_eq!(solo.end.closed().unwrap().word(), "timeout");
}

/// protocol 704
#[test]
fn any_received_byte_keeps_the_tunnel_alive() {
    let (mut solo, _) = accepted();
    for _ in 0..20 {
        solo.wait(Duration::from_secs(5));
        solo.data(2, b"x", false);
    }
    alive(&solo);
}

/// protocol 901
#[test]
fn an_open_after_our_goaway_is_refused_for_retry() {
    let mut solo = Solo::node(Config::default());
    solo.end.goaway();
    solo.sent();
    solo.frame(&open(2));
    let mut reset = Vec::new();
    Frame::Reset {
        id: 2,
        code: code::REFUSED_RETRY,
    }
    .put(&mut reset);
    assert_eq!(solo.sent(), reset);
    assert_eq!(solo.end.poll_incoming(), None);
}

/// protocol 902, 906
#[test]
fn an_orderly_close_does_not_cut_streams_that_have_finished_both_ways() {
    type Close = fn(&mut Solo);
    let by_peer: Close = |s| {
        s.frame(&Frame::Goaway {
            code: close::NONE,
            message: Bytes::new(),
        });
    };
    let here: Close = |s| s.end.close(close::NONE, "");
    let lost: Close = |s| {
        s.end
            .transport_lost(s.now, std::io::ErrorKind::UnexpectedEof, "gone")
    };
    for (how, orderly) in [(by_peer, true), (here, true), (lost, false)] {
        for (fin_in, fin_out) in [(true, true), (true, false), (false, true)] {
            let (mut solo, key) = accepted();
            solo.data(2, b"all of it", fin_in);
            if fin_out {
                solo.end.finish(key).unwrap();
                solo.sent();
            }
            how(&mut solo);
            let survives = orderly && fin_in && fin_out;
            let ended = solo.end.ended(key);
            assert_eq!(ended, (!survives).then_some(StreamEnd::Lost));
            if fin_in {
                let all = Bytes::from_static(b"all of it");
                assert_eq!(solo.end.read(key, 100), Ok(Read::Chunk(all)));
                assert_eq!(solo.end.read(key, 100), Ok(Read::Fin));
            }
            solo.end.release(key, code::CANCEL);
            assert_eq!(solo.end.streams(), 0);
        }
    }
    // A FIN that was still queued is never sent.
    let (mut solo, key) = accepted();
    solo.data(2, b"x", true);
    solo.end.finish(key).unwrap();
    by_peer(&mut solo);
    assert_eq!(solo.end.ended(key), Some(StreamEnd::Lost));
}

/// protocol 1001
#[test]
fn floods_of_useless_work_end_the_tunnel_and_honest_rates_do_not() {
    let limit = std::cell::Cell::new(1000);
    let floods: [&dyn Fn(&mut Solo); 8] = [
        &|s| {
            limit.set(limit.get() + 1);
            s.frame(&Frame::Window {
                id: 2,
                limit: limit.get(),
            });
        },
        &|s| {
            s.frame(&Frame::Goaway {
                code: close::DRAIN,
                message: Bytes::new(),
            })
        },
        &|s| s.frame(&Frame::Ping(1)),
        &|s| s.frame(&Frame::Pong(999)),
        &|s| s.data(2, b"", false),
        &|s| s.frame(&Frame::Window { id: 2, limit: 1 }),
        &|s| s.frame(&Frame::Streams { total: 1 }),
        &|s| s.bytes(&[0x77, 0, 0, 0, 0, 0, 0, 0]),
    ];
    for (i, flood) in floods.iter().enumerate() {
        let (mut solo, _) = accepted();
        for _ in 0..30_000 {
            flood(&mut solo);
        }
        assert_eq!(solo.violation(), Some(close::TOO_MUCH), "flood {i}");
        let (mut solo, _) = accepted();
        for _ in 0..3000 {
            flood(&mut solo);
            solo.wait(Duration::from_millis(20));
        }
        assert_eq!(solo.violation(), None, "honest {i}");
    }
}

#[test]
fn opens_beyond_the_rate_are_refused_without_asking_anybody() {
    let mut config = Config::default();
    config.rates.opens = sg_tunnel::Rate::new(1, 3);
    let mut solo = Solo::node(config);
    for i in 1..=5 {
        solo.frame(&open(i * 2));
    }
    let offers = std::iter::from_fn(|| solo.end.poll_incoming()).count();
    assert_eq!(offers, 3);
    let mut resets = Vec::new();
    for id in [8, 10] {
        Frame::Reset {
            id,
            code: code::LIMIT,
        }
        .put(&mut resets);
    }
    assert_eq!(solo.sent(), resets);
}

/// protocol 1002
#[test]
fn unread_control_messages_are_bounded() {
    let config = Config {
        control_backlog: 10,
        ..Config::default()
    };
    let mut solo = Solo::node(config);
    for _ in 0..10 {
        solo.frame(&Frame::Control(Bytes::from_static(b"m")));
    }
    alive(&solo);
    solo.frame(&Frame::Control(Bytes::new()));
    refused(&solo, close::TOO_MUCH);
}

/// protocol 506
#[test]
fn small_pieces_do_not_hold_on_to_large_buffers_for_ever() {
    // 5,000 one-byte frames for a reader that never reads: copied together, not 5,000 references.
    let (mut solo, key) = accepted();
    for _ in 0..5000 {
        solo.data(2, b"x", false);
    }
    let mut pieces = 0;
    let mut bytes = 0;
    while let Ok(Read::Chunk(chunk)) = solo.end.read(key, usize::MAX) {
        pieces += 1;
        bytes += chunk.len();
    }
    assert_eq!(bytes, 5000);
    assert!(pieces < 20, "{pieces}");
}

/// Unread pieces of all streams of a tunnel that may be references.
const REFERENCES: usize = 128;

/// A scripted peer whose receive buffers stay, so that what refers to one can be told from a copy.
struct Referring {
    solo: Solo,
    buffers: Vec<BytesMut>,
}

impl Referring {
    const FRAME: usize = 2000;

    fn new() -> Self {
        Self {
            solo: Solo::node(Config {
                base_window: 8 * 1024 * 1024,
                ..Config::default()
            }),
            buffers: Vec::new(),
        }
    }

    fn stream(&mut self, id: u32) -> Key {
        self.solo.frame(&open(id));
        let Some(Incoming::Offer { key, .. }) = self.solo.end.poll_incoming() else {
            panic!("no offer");
        };
        self.solo.end.accept(key, Bytes::new());
        self.solo.sent();
        key
    }

    fn send(&mut self, id: u32, count: usize) {
        let length = u16::try_from(Self::FRAME).unwrap().to_be_bytes();
        let mut frame = vec![0, 0, length[0], length[1]];
        frame.extend_from_slice(&id.to_be_bytes());
        frame.resize(8 + Self::FRAME, 7);
        for _ in 0..count {
            let mut buffer = BytesMut::from(&record(kind::LOGGED, &frame)[..]);
            self.solo.end.handle_input(self.solo.now, &mut buffer);
            self.buffers.push(buffer);
        }
    }

    /// Reads up to so many frames: how many pieces of them are references, and how many copies.
    fn read(&mut self, key: Key, frames: usize) -> (usize, usize) {
        let mut counts = (0, 0);
        let mut left = frames * Self::FRAME;
        while left > 0 {
            let Ok(Read::Chunk(piece)) = self.solo.end.read(key, left) else {
                panic!("{left} bytes are missing");
            };
            assert!(piece.iter().all(|byte| *byte == 7));
            left -= piece.len();
            if piece.is_unique() {
                counts.1 += 1;
            } else {
                counts.0 += 1;
            }
        }
        counts
    }
}

/// protocol 506
#[test]
fn what_stopped_readers_leave_is_copied_when_others_need_its_references() {
    let mut peer = Referring::new();
    let running = peer.stream(2);
    let stopped = [4, 6, 8].map(|id| peer.stream(id));
    for id in [4, 6, 8] {
        peer.send(id, 400);
    }
    // Ten at a time for one that is read: copies are made of those of all in turn, until the others have ten fewer.
    let mut copies = 0;
    for round in 0..300 {
        peer.send(2, 10);
        let (references, copied) = peer.read(running, 10);
        assert_eq!(references + copied, 10);
        assert!(round < 4 || copied == 0, "{copied} copied, round {round}");
        copies += copied;
    }
    assert!(copies <= 10, "{copies}");
    let of_stopped: Vec<(usize, usize)> = stopped.iter().map(|key| peer.read(*key, 400)).collect();
    let references: usize = of_stopped.iter().map(|(references, _)| references).sum();
    assert_eq!(references, REFERENCES - 10);
    assert_eq!(
        of_stopped.iter().map(|(_, copies)| copies).sum::<usize>(),
        1200 - (REFERENCES - 10)
    );
}

/// protocol 506
#[test]
fn pieces_are_copied_where_the_search_for_a_reference_comes_to_none() {
    let mut peer = Referring::new();
    // Behind the one that has all references, so many without any that one search does not get round.
    let full = peer.stream(2);
    let idle: Vec<Key> = (2..=40).map(|i| peer.stream(2 * i)).collect();
    peer.send(2, REFERENCES);
    peer.send(80, 1);
    peer.send(78, 60);
    let (references, copies) = peer.read(idle[37], 60);
    // The searches that came to none had their pieces copied, together.
    assert!(references > 0 && copies > 3, "{references} and {copies}");
    assert_eq!(
        peer.read(full, REFERENCES).0 + peer.read(idle[38], 1).0 + references,
        REFERENCES
    );
    // What ended has made room.
    peer.send(2, REFERENCES);
    peer.solo.frame(&Frame::Reset { id: 2, code: 1 });
    peer.send(80, REFERENCES);
    assert_eq!(peer.read(idle[38], REFERENCES), (REFERENCES, 0));
}

/// protocol 505, 506
#[test]
fn what_is_shown_and_not_taken_is_unread() {
    let mut peer = Referring::new();
    let (stopped, running) = (peer.stream(2), peer.stream(4));
    peer.send(2, REFERENCES);
    // Shown as it is, in as many pieces as one write takes, as often as somebody looks.
    let mut shown = Vec::new();
    for _ in 0..2 {
        shown.clear();
        let all = peer.solo.end.peek(stopped, 1 << 20, &mut shown);
        assert_eq!(all, Ok(Peek::Bytes(16 * Referring::FRAME)));
        assert_eq!(shown.len(), 16);
        assert!(shown.concat().iter().all(|byte| *byte == 7));
    }
    shown.clear();
    assert_eq!(
        peer.solo.end.stats().unread_bytes,
        (REFERENCES * Referring::FRAME) as u64
    );
    // They can be copied for others, since nobody holds on to them: of both streams in turn.
    peer.send(4, 100);
    assert_eq!(peer.read(running, 100), (50, 50));
    let part = peer.solo.end.peek(stopped, 5, &mut shown);
    assert_eq!(part, Ok(Peek::Bytes(5)));
    peer.solo.end.consume(stopped, 3);
    assert_eq!(
        peer.solo.end.peek(stopped, 1997, &mut shown),
        Ok(Peek::Bytes(1997))
    );
    peer.solo.end.consume(stopped, 1997);
    let rest = REFERENCES - 1;
    assert_eq!(peer.read(stopped, rest), (rest - 49, 49));
    shown.clear();
    assert_eq!(
        peer.solo.end.peek(stopped, 1, &mut shown),
        Ok(Peek::Pending)
    );
    // Of the credit only what was taken comes back.
    let (mut solo, key) = accepted();
    solo.data(2, &[0; 16_000], false);
    solo.data(2, &[0; 16_000], false);
    solo.data(2, &[0; 16_000], false);
    assert_eq!(
        solo.end.peek(key, 48_000, &mut shown),
        Ok(Peek::Bytes(48_000))
    );
    assert_eq!(solo.sent(), Bytes::new());
    solo.end.consume(key, 48_000);
    assert!(!solo.sent().is_empty());
    solo.data(2, &[0; 100], true);
    assert_eq!(solo.end.peek(key, 1, &mut shown), Ok(Peek::Bytes(1)));
    solo.end.consume(key, 100);
    assert_eq!(solo.end.peek(key, 1, &mut shown), Ok(Peek::Fin));
    // A reset is final for what was shown as well.
    solo.end.reset(key, 7);
    assert_eq!(solo.end.peek(key, 1, &mut shown), Err(StreamEnd::Reset(7)));
    solo.end.consume(key, 1);
    assert_eq!(solo.end.stats().unread_bytes, 0);
}

/// protocol 601, 602
#[test]
fn an_interactive_stream_goes_before_bulk() {
    let mut solo = Solo::node(Config::default());
    let keys: Vec<Key> = (0..9)
        .map(|_| solo.end.open(Bytes::new()).unwrap())
        .collect();
    solo.sent();
    for i in 0..9 {
        solo.frame(&Frame::OpenOk {
            id: 1 + 2 * i,
            credit: 10_000_000,
            answer: Bytes::new(),
        });
    }
    // Eight streams have shown that they are bulk.
    for _ in 0..2 {
        for key in &keys[..8] {
            solo.end
                .write(*key, &mut Bytes::from(vec![0; 60_000]))
                .unwrap();
        }
        while !support::transmit(&mut solo.end, solo.now, 65_536).is_empty() {}
    }
    for key in &keys[..8] {
        solo.end
            .write(*key, &mut Bytes::from(vec![0; 60_000]))
            .unwrap();
    }
    solo.end
        .write(keys[8], &mut Bytes::from_static(b"quick"))
        .unwrap();
    let batch = solo.sent_up_to(65_536);
    assert_eq!(batch[..8], [0, 0, 0, 5, 0, 0, 0, 17]);
    // And bulk takes turns.
    let ids: Vec<u8> = [13, 13 + 16_384, 13 + 2 * 16_384]
        .iter()
        .map(|at| batch[at + 7])
        .collect();
    assert_eq!(ids, [1, 3, 5]);
}
