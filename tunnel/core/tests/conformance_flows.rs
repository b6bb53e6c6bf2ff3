//! Answers of OPEN_OK, and streams that carry datagrams: one scenario each.
#![allow(clippy::unwrap_used, clippy::print_stderr, clippy::disallowed_methods)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::{Frame, MAX_DATAGRAM};
use sg_tunnel::record::kind;
use sg_tunnel::{Config, Event, Incoming, Key, Limit, OpenState, Rate, StreamEnd};
use support::{Pair, Random, Solo, record};

fn offer(pair: &mut Pair, side: usize) -> Key {
    match pair.ends[side].poll_incoming() {
        Some(Incoming::Offer { key, .. }) => key,
        other => panic!("no offer: {other:?}"),
    }
}

/// protocol 405
#[test]
fn the_acceptor_answers_the_opener() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let key = pair.ends[0].open(Bytes::new()).unwrap();
    pair.settle();
    assert_eq!(pair.ends[0].answer(key), Bytes::new());
    let there = offer(&mut pair, 1);
    let answer = Bytes::from(vec![7; 256]);
    pair.ends[1].accept(there, answer.clone());
    pair.settle();
    assert_eq!(pair.ends[0].open_state(key), Ok(OpenState::Open));
    assert_eq!(pair.ends[0].answer(key), answer);
    assert_eq!(pair.ends[1].answer(there), Bytes::new());
}

/// protocol 306, 405
#[test]
fn an_answer_that_is_too_long_is_the_acceptors_fault() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let key = pair.ends[0].open(Bytes::new()).unwrap();
    pair.settle();
    let there = offer(&mut pair, 1);
    pair.ends[1].accept(there, Bytes::from(vec![7; 257]));
    pair.settle();
    let end = StreamEnd::Reset(code::INTERNAL);
    assert_eq!(pair.ends[0].ended(key), Some(end));
    assert_eq!(pair.ends[1].ended(there), Some(end));

    let mut solo = Solo::node(Config::default());
    solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 1,
        answer: Bytes::from(vec![7; 257]),
    });
    assert_eq!(solo.violation(), Some(close::FRAME_SIZE));
}

/// A flow that side 0 opened and side 1 accepted; both keys.
fn flow(pair: &mut Pair) -> [Key; 2] {
    let here = pair.ends[0].open_flow(Bytes::from_static(b"udp")).unwrap();
    pair.settle();
    let there = offer(pair, 1);
    assert!(pair.ends[1].is_flow(there));
    pair.ends[1].accept(there, Bytes::new());
    pair.settle();
    pair.drop_events();
    [here, there]
}

fn send(pair: &mut Pair, side: usize, key: Key, payload: &[u8]) {
    let payload = Bytes::copy_from_slice(payload);
    pair.ends[side]
        .send_datagram(pair.now, key, payload)
        .unwrap();
}

fn datagram(id: u32, payload: &[u8]) -> Frame {
    Frame::Datagram {
        id,
        payload: Bytes::copy_from_slice(payload),
    }
}

/// A node with flow 2, opened by the peer, not yet accepted.
fn offered(config: Config) -> (Solo, Key) {
    let mut solo = Solo::node(config);
    solo.frame(&Frame::Open {
        id: 2,
        credit: 0,
        flow: true,
        metadata: Bytes::new(),
    });
    let Some(Incoming::Offer { key, .. }) = solo.end.poll_incoming() else {
        panic!("no offer");
    };
    (solo, key)
}

/// protocol 410, 414
#[test]
fn datagrams_arrive_whole_and_in_order_whatever_the_limit_of_data() {
    let config = Config {
        max_frame: 1024,
        ..Config::default()
    };
    let mut pair = Pair::new(config.clone(), config);
    let keys = flow(&mut pair);
    for (side, other) in [(0, 1), (1, 0)] {
        for size in [0, 1, 1200, MAX_DATAGRAM] {
            let payload = vec![size.to_le_bytes()[0]; size];
            assert_eq!(pair.ends[other].receive_datagram(keys[other]), Ok(None));
            send(&mut pair, side, keys[side], &payload);
            pair.settle();
            assert_eq!(
                pair.ends[other].poll_event(),
                Some(Event::Readable(keys[other]))
            );
            let got = pair.ends[other].receive_datagram(keys[other]);
            assert_eq!(got, Ok(Some(Bytes::from(payload))));
        }
        for i in 0..50 {
            send(&mut pair, side, keys[side], &[i]);
        }
        pair.settle();
        for i in 0..50 {
            let got = pair.ends[other].receive_datagram(keys[other]);
            assert_eq!(got, Ok(Some(Bytes::copy_from_slice(&[i]))));
        }
    }
    // One byte more than any datagram may have is never sent.
    send(&mut pair, 0, keys[0], &vec![0; MAX_DATAGRAM + 1]);
    pair.settle();
    assert_eq!(pair.ends[1].receive_datagram(keys[1]), Ok(None));
    assert_eq!(pair.ends[0].stats().limit(Limit::DatagramLength), 1);
    assert_eq!(pair.ends[0].stats().datagrams_sent, 54);
    assert_eq!(pair.ends[1].stats().datagrams_received, 54);
}

/// protocol 204, 410
#[test]
fn a_datagram_may_be_cut_anywhere() {
    let (mut solo, key) = offered(Config::default());
    let mut bytes = Vec::new();
    datagram(2, b"first one").put(&mut bytes);
    datagram(2, b"second").put(&mut bytes);
    let bytes = record(kind::UNLOGGED, &bytes);
    for cut in 0..bytes.len() {
        solo.raw(&bytes[..cut]);
        solo.raw(&bytes[cut..]);
        for expected in [&b"first one"[..], b"second"] {
            let got = solo.end.receive_datagram(key);
            assert_eq!(got, Ok(Some(Bytes::from_static(expected))));
        }
        assert_eq!(solo.end.receive_datagram(key), Ok(None));
    }
}

/// protocol 412
#[test]
fn datagrams_may_follow_the_open_and_are_kept_within_bounds_until_the_accept() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    let here = pair.ends[0].open_flow(Bytes::new()).unwrap();
    for i in 0..100 {
        send(&mut pair, 0, here, &[i]);
        pair.settle();
    }
    let there = offer(&mut pair, 1);
    // What the acceptor says before it has accepted waits for its OPEN_OK.
    send(&mut pair, 1, there, b"early answer");
    assert_eq!(
        support::transmit(&mut pair.ends[1], pair.now, 1000),
        Bytes::new()
    );
    pair.ends[1].accept(there, Bytes::new());
    for i in 36..100 {
        let got = pair.ends[1].receive_datagram(there);
        assert_eq!(got, Ok(Some(Bytes::copy_from_slice(&[i]))));
    }
    assert_eq!(pair.ends[1].stats().limit(Limit::DatagramsUnread), 36);
    pair.settle();
    let got = pair.ends[0].receive_datagram(here);
    assert_eq!(got, Ok(Some(Bytes::from_static(b"early answer"))));
}

/// protocol 410
#[test]
fn a_flow_needs_no_credit() {
    let mut solo = Solo::node(Config::default());
    let key = solo.end.open_flow(Bytes::from_static(b"m")).unwrap();
    let sent = solo.sent();
    assert_eq!(sent[..13], [1, 1, 0, 5, 0, 0, 0, 1, 0, 0, 0, 0, b'm']);
    assert_eq!(solo.end.stats().growth_used, 0);
    // A credit that the peer sends all the same means nothing.
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 5000,
        answer: Bytes::from_static(b"ok"),
    });
    assert_eq!(solo.end.answer(key), "ok");
    assert_eq!(solo.end.write_budget(key), Err(StreamEnd::Finished));
}

/// protocol 410, 411
#[test]
fn what_is_for_streams_is_not_for_flows_and_the_reverse() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let [key, _] = flow(&mut pair);
    let end = &mut pair.ends[0];
    let wrong = Err(StreamEnd::Finished);
    assert_eq!(end.write(key, &mut Bytes::from_static(b"x")), wrong);
    assert_eq!(end.finish(key), Err(StreamEnd::Finished));
    let stream = end.open(Bytes::new()).unwrap();
    assert!(!end.is_flow(stream));
    assert_eq!(
        end.send_datagram(pair.now, stream, Bytes::new()),
        Err(StreamEnd::Finished)
    );
    assert_eq!(end.receive_datagram(stream), Err(StreamEnd::Finished));
    pair.settle();
    assert_eq!(pair.ends[0].closed(), None);
}

/// protocol 411, 412
#[test]
fn frames_of_the_other_kind_end_the_tunnel() {
    // DATA and WINDOW on a flow.
    let (mut solo, _) = offered(Config::default());
    solo.data(2, b"x", false);
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    let (mut solo, _) = offered(Config::default());
    solo.data(2, b"", true);
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    let (mut solo, _) = offered(Config::default());
    solo.frame(&Frame::Window { id: 2, limit: 9 });
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    // DGRAM on a stream that is no flow.
    let mut solo = Solo::node(Config::default());
    solo.frame(&Frame::Open {
        id: 2,
        credit: 0,
        flow: false,
        metadata: Bytes::new(),
    });
    solo.frame(&datagram(2, b"x"));
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
    // DGRAM before OPEN_OK.
    let mut solo = Solo::node(Config::default());
    solo.end.open_flow(Bytes::new()).unwrap();
    solo.sent();
    solo.frame(&datagram(1, b"x"));
    assert_eq!(solo.violation(), Some(close::PROTOCOL_ERROR));
}

/// protocol 304, 306, 307, 413
#[test]
fn a_datagram_is_checked_by_its_header_alone() {
    let cases: [(&[u8], u32); 5] = [
        (&[8, 1, 0, 1, 0, 0, 0, 2], close::PROTOCOL_ERROR),
        (&[8, 0, 0xff, 0xe4, 0, 0, 0, 2], close::FRAME_SIZE),
        (&[8, 0, 0, 1, 0, 0, 0, 0], close::STREAM_ID),
        (&[8, 0, 0, 1, 0x80, 0, 0, 2], close::STREAM_ID),
        (&[1, 2, 0, 4, 0, 0, 0, 4], close::PROTOCOL_ERROR),
    ];
    for (header, expected) in cases {
        let (mut solo, _) = offered(Config::default());
        solo.bytes(header);
        assert_eq!(solo.violation(), Some(expected), "{header:?}");
    }
    let (mut solo, _) = offered(Config::default());
    solo.frame(&datagram(4, b"x"));
    assert_eq!(solo.violation(), Some(close::STREAM_ID));
}

/// protocol 413
#[test]
fn datagrams_for_a_flow_that_is_gone_are_dropped_and_counted() {
    let (mut solo, key) = offered(Config::default());
    solo.end.accept(key, Bytes::new());
    solo.sent();
    solo.end.release(key, code::IDLE_TIMEOUT);
    assert_eq!(solo.sent()[..8], [3, 0, 0, 4, 0, 0, 0, 2]);
    for _ in 0..40_000 {
        solo.frame(&datagram(2, b"late"));
    }
    solo.frame(&Frame::Reset { id: 2, code: 1 });
    assert_eq!(solo.end.streams(), 0);
    for _ in 0..40_000 {
        solo.frame(&datagram(2, b"later"));
    }
    assert_eq!(solo.violation(), None);
    assert_eq!(solo.end.stats().limit(Limit::DatagramsLate), 80_000);
    assert_eq!(solo.end.stats().datagrams_received, 0);
}

/// protocol 407, 410
#[test]
fn a_reset_discards_what_waits_and_tells_its_code() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let keys = flow(&mut pair);
    send(&mut pair, 0, keys[0], b"unread");
    pair.settle();
    send(&mut pair, 0, keys[0], b"unsent");
    pair.ends[0].reset(keys[0], code::IDLE_TIMEOUT);
    pair.settle();
    let end = StreamEnd::Reset(code::IDLE_TIMEOUT);
    assert_eq!(pair.ends[1].receive_datagram(keys[1]), Err(end));
    let more = pair.ends[1].send_datagram(pair.now, keys[1], Bytes::new());
    assert_eq!(more, Err(end));
    assert_eq!(pair.ends[1].stats().datagrams_received, 1);
    for side in [0, 1] {
        pair.ends[side].release(keys[side], code::CANCEL);
    }
    pair.settle();
    for end in &pair.ends {
        assert_eq!(end.streams(), 0);
    }
}

/// protocol 414
#[test]
fn datagrams_beyond_the_rate_are_dropped_and_counted() {
    let mut config = Config::default();
    config.rates.datagrams = Rate::new(10, 5);
    let (mut solo, key) = offered(config);
    for i in 0..20 {
        solo.frame(&datagram(2, &[i]));
    }
    solo.wait(Duration::from_millis(200));
    for i in 20..30 {
        solo.frame(&datagram(2, &[i]));
    }
    let mut got = Vec::new();
    while let Ok(Some(payload)) = solo.end.receive_datagram(key) {
        got.push(payload[0]);
    }
    assert_eq!(got, [0, 1, 2, 3, 4, 20, 21]);
    assert_eq!(solo.end.stats().limit(Limit::DatagramRate), 23);
    assert_eq!(solo.violation(), None);
}

/// protocol 605
#[test]
fn what_does_not_leave_in_time_is_dropped() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let keys = flow(&mut pair);
    for i in 0..100 {
        send(&mut pair, 0, keys[0], &[i]);
    }
    pair.now += Duration::from_millis(150);
    send(&mut pair, 0, keys[0], b"young");
    pair.now += Duration::from_millis(51);
    pair.settle();
    let got = pair.ends[1].receive_datagram(keys[1]);
    assert_eq!(got, Ok(Some(Bytes::from_static(b"young"))));
    assert_eq!(pair.ends[1].receive_datagram(keys[1]), Ok(None));
    let stats = pair.ends[0].stats();
    assert_eq!(stats.limit(Limit::DatagramsUnsent), 37);
    assert_eq!(stats.limit(Limit::DatagramAge), 63);
}

/// protocol 414, 605
#[test]
fn flows_and_streams_share_what_they_send() {
    let mut solo = Solo::node(Config::default());
    let stream = solo.end.open(Bytes::new()).unwrap();
    let flows = [0; 8].map(|_| solo.end.open_flow(Bytes::new()).unwrap());
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 1 << 30,
        answer: Bytes::new(),
    });
    let mut bytes = [0; 256];
    for round in 0..400 {
        let room = solo.end.write_budget(stream).unwrap();
        let mut chunk = Bytes::from(vec![1; room]);
        solo.end.write(stream, &mut chunk).unwrap();
        for key in flows {
            // Of any size: a large one is paid for by the batches that follow.
            let size = if round % 7 == 0 { 60_000 } else { 1200 };
            let payload = Bytes::from(vec![2; size]);
            solo.end.send_datagram(solo.now, key, payload).unwrap();
        }
        let batch = solo.sent_up_to(16 * 1024);
        let mut at = 0;
        while at < batch.len() {
            let length = usize::from(u16::from_be_bytes([batch[at + 2], batch[at + 3]]));
            bytes[usize::from(batch[at])] += 8 + length;
            at += 8 + length;
        }
    }
    let (data, dgram) = (bytes[0], bytes[8]);
    assert!(dgram > 400 * 7000, "{data} of DATA, {dgram} of DGRAM");
    assert!(data >= dgram, "{data} of DATA, {dgram} of DGRAM");
    // Without bytes of streams the datagrams have it all.
    solo.end.reset(stream, code::CANCEL);
    while !solo.sent().is_empty() {}
    for key in flows {
        let payload = Bytes::from(vec![2; 2000]);
        solo.end.send_datagram(solo.now, key, payload).unwrap();
    }
    assert_eq!(solo.sent().len(), 8 * 2008);
    assert!(!solo.end.wants_transmit());
}

/// protocol 605
#[test]
fn flows_take_turns() {
    let mut solo = Solo::node(Config::default());
    let keys = [0; 3].map(|_| solo.end.open_flow(Bytes::new()).unwrap());
    solo.sent();
    // One has a lot to say, in large pieces and small ones; the others little.
    let mut say = |key, size: usize| {
        let payload = Bytes::from(vec![0; size]);
        solo.end.send_datagram(solo.now, key, payload).unwrap();
    };
    for _ in 0..3 {
        say(keys[0], 20_000);
    }
    for _ in 0..4 {
        say(keys[1], 1000);
        say(keys[2], 1000);
    }
    let batch = solo.sent_up_to(1_000_000);
    let (mut at, mut ids) = (0, Vec::new());
    while at < batch.len() {
        let length = usize::from(u16::from_be_bytes([batch[at + 2], batch[at + 3]]));
        ids.push(batch[at + 7]);
        at += 8 + length;
    }
    assert_eq!(ids, [1, 3, 3, 3, 3, 5, 5, 5, 5, 1, 1]);
}

/// protocol 414: random flows and datagrams both ways: what comes out is what went in, whole, in order and at most
/// once, and everything that does not come out is counted.
#[test]
fn every_datagram_is_delivered_once_or_counted() {
    let seeds = match std::env::var("SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..30).collect::<Vec<u64>>(),
    };
    for seed in seeds {
        let run = std::panic::catch_unwind(|| random_flows(seed));
        if let Err(panic) = run {
            eprintln!("replay with SEED={seed} cargo test -p sg-tunnel --test conformance_flows");
            std::panic::resume_unwind(panic);
        }
    }
}

fn random_flows(seed: u64) {
    let mut random = Random(seed);
    let mut config = Config::default();
    config.datagrams.tunnel_bytes = 1 + random.below(300_000);
    config.datagrams.flow_count = 1 + random.below(64);
    let mut pair = Pair::new(config.clone(), config);
    pair.latency = Duration::from_millis(random.below(30) as u64);
    pair.settle();
    let mut flows = Vec::new();
    for _ in 0..1 + random.below(20) {
        flows.push([pair.ends[0].open_flow(Bytes::new()).unwrap(); 2]);
    }
    let mut accepted = 0;
    let mut sent = [0_u64; 2];
    let mut delivered = [0_u64; 2];
    let mut last = vec![[0_u32; 2]; flows.len()];
    let mut next = vec![[1_u32; 2]; flows.len()];
    for _ in 0..1500 {
        let side = random.below(2);
        let number = random.below(flows.len());
        let known = side == 0 || number < accepted;
        match random.below(10) {
            0..=4 if known => {
                for _ in 0..random.below(20) {
                    let mut payload = next[number][side].to_be_bytes().to_vec();
                    next[number][side] += 1;
                    let size = [random.below(100), random.below(3000), random.below(60_000)];
                    let fill = payload[3];
                    payload.resize(4 + size[random.below(3)], fill);
                    send(&mut pair, side, flows[number][side], &payload);
                    sent[side] += 1;
                }
            }
            5..=7 if known => {
                for _ in 0..random.below(30) {
                    let end = &mut pair.ends[side];
                    let Some(got) = end.receive_datagram(flows[number][side]).unwrap() else {
                        break;
                    };
                    let serial = u32::from_be_bytes(got[..4].try_into().unwrap());
                    assert!(serial > last[number][side], "old or twice");
                    assert!(got[4..].iter().all(|b| *b == got[3]), "mixed up");
                    last[number][side] = serial;
                    delivered[side] += 1;
                }
            }
            8 => pair.now += Duration::from_millis(random.below(60) as u64),
            _ => {
                pair.send(side, 1 + random.below(100_000));
                for _ in 0..random.below(20) {
                    pair.receive(side, 1 + random.below(40_000));
                }
            }
        }
        while let Some(Incoming::Offer { key, .. }) = pair.ends[1].poll_incoming() {
            pair.ends[1].accept(key, Bytes::new());
            flows[accepted][1] = key;
            accepted += 1;
        }
        assert!(pair.ends.iter().all(|end| end.closed().is_none()));
    }
    pair.settle();
    for (side, other) in [(0, 1), (1, 0)] {
        for number in 0..accepted {
            let key = flows[number][other];
            while let Some(got) = pair.ends[other].receive_datagram(key).unwrap() {
                let serial = u32::from_be_bytes(got[..4].try_into().unwrap());
                assert!(serial > last[number][other]);
                last[number][other] = serial;
                delivered[other] += 1;
            }
        }
        let (from, to) = (pair.ends[side].stats(), pair.ends[other].stats());
        let dropped = from.limit(Limit::DatagramsUnsent) + from.limit(Limit::DatagramAge);
        assert_eq!(sent[side], from.datagrams_sent + dropped);
        assert_eq!(from.datagrams_sent, to.datagrams_received);
        let unread = to.limit(Limit::DatagramsUnread);
        assert_eq!(to.datagrams_received, delivered[other] + unread);
    }
    for key in flows.iter().take(accepted) {
        pair.ends[0].release(key[0], code::CANCEL);
        pair.ends[1].release(key[1], code::CANCEL);
    }
    pair.settle();
    assert!(pair.ends.iter().all(|end| end.streams() == 0));
}

/// protocol 602
#[test]
fn a_heavier_stream_sends_more_but_never_all() {
    let mut solo = Solo::node(Config::default());
    let keys = [0; 3].map(|_| solo.end.open(Bytes::new()).unwrap());
    solo.sent();
    for id in [1, 3, 5] {
        solo.frame(&Frame::OpenOk {
            id,
            credit: 1 << 30,
            answer: Bytes::new(),
        });
    }
    // Out of range: 1 and 16.
    solo.end.set_weight(keys[0], 0);
    solo.end.set_weight(keys[1], 4);
    solo.end.set_weight(keys[2], 200);
    let mut bytes = [0; 8];
    for _ in 0..1000 {
        for key in keys {
            let room = solo.end.write_budget(key).unwrap();
            let mut chunk = Bytes::from(vec![1; room]);
            solo.end.write(key, &mut chunk).unwrap();
        }
        let batch = solo.sent_up_to(64 * 1024);
        let mut at = 0;
        while at < batch.len() {
            let length = usize::from(u16::from_be_bytes([batch[at + 2], batch[at + 3]]));
            if batch[at] == 0 {
                bytes[usize::from(batch[at + 7])] += length;
            }
            at += 8 + length;
        }
    }
    let ratio = |id: usize| bytes[id] * 10 / bytes[1];
    assert!((38..=42).contains(&ratio(3)), "{bytes:?}");
    assert!((150..=165).contains(&ratio(5)), "{bytes:?}");
}

/// protocol 206, 414, 802, 806
#[test]
fn a_datagram_is_never_sent_again_and_never_ahead_of_a_replay() {
    let (mut solo, key) = offered(Config {
        resume_time: Duration::from_secs(30),
        ..Config::default()
    });
    solo.end.accept(key, Bytes::new());
    let say = |solo: &mut Solo, text: &'static [u8]| {
        let payload = Bytes::from_static(text);
        solo.end.send_datagram(solo.now, key, payload).unwrap();
    };
    solo.end.send_control(Bytes::from(vec![7; 1000])).unwrap();
    say(&mut solo, b"sent, and lost");
    assert!(solo.sent().ends_with(b"sent, and lost"));
    say(&mut solo, b"queued");
    let reset = std::io::ErrorKind::ConnectionReset;
    solo.end.transport_lost(solo.now, reset, "cut");
    say(&mut solo, b"detached");
    solo.end.attach(solo.now).unwrap();
    say(&mut solo, b"attached");
    let datagrams = |bytes: &[u8]| bytes.windows(2).filter(|w| w == b"ed").count();
    assert_eq!(datagrams(&solo.sent()), 0, "no RESUME yet");
    // The peer has nothing of what was sent: all of it comes again, then the datagram.
    solo.record(kind::RESUME, &[0; 8]);
    let mut again = Vec::new();
    while again.len() < 1000 {
        let piece = solo.sent_up_to(100);
        assert_eq!(datagrams(&piece), 0);
        again.extend_from_slice(&piece);
    }
    let mut rest = Vec::new();
    while solo.end.wants_transmit() {
        rest.extend_from_slice(&solo.sent_up_to(100));
    }
    assert_eq!(datagrams(&rest), 1);
    assert!(rest.windows(8).any(|w| w == b"attached"));
    assert_eq!(solo.end.stats().limit(Limit::DatagramsDetached), 2);
    assert_eq!(solo.violation(), None);
}
