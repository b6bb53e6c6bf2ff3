//! What each limit refuses, drops or ends, and that honest use never meets one.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::{Frame, MAX_DATAGRAM, Settings};
use sg_tunnel::{Budget, Config, Event, Incoming, Key, Limit, OpenRefusal, Rate, Read, StreamEnd};
use support::{Pair, Solo};

fn open(id: u32) -> Frame {
    Frame::Open {
        id,
        credit: 1000,
        flow: false,
        metadata: Bytes::new(),
    }
}

fn reset(id: u32) -> Frame {
    let code = code::CANCEL;
    Frame::Reset { id, code }
}

fn offer(solo: &mut Solo) -> Option<Key> {
    match solo.end.poll_incoming()? {
        Incoming::Offer { key, .. } => Some(key),
        other => panic!("{other:?}"),
    }
}

/// A node that takes any number of streams.
fn roomy() -> Solo {
    Solo::node(Config {
        max_streams: 1_000_000,
        ..Config::default()
    })
}

/// A node with stream 2, opened by the peer and accepted.
fn accepted(config: Config) -> (Solo, Key) {
    let mut solo = Solo::node(config);
    solo.frame(&open(2));
    let key = offer(&mut solo).unwrap();
    solo.end.accept(key, Bytes::new());
    solo.sent();
    (solo, key)
}

fn datagram(payload: Bytes) -> Frame {
    Frame::Datagram { id: 2, payload }
}

/// A node with flow 2, opened by the peer and accepted.
fn flow(config: Config) -> (Solo, Key) {
    let mut solo = Solo::node(config);
    solo.frame(&Frame::Open {
        id: 2,
        credit: 0,
        flow: true,
        metadata: Bytes::new(),
    });
    let key = offer(&mut solo).unwrap();
    solo.end.accept(key, Bytes::new());
    solo.sent();
    (solo, key)
}

/// Does a million times what `f` does, or until the tunnel has ended.
fn flood(mut solo: Solo, mut f: impl FnMut(&mut Solo, u32)) -> Solo {
    for i in 0..1_000_000 {
        f(&mut solo, i);
        if solo.end.closed().is_some() {
            break;
        }
    }
    solo
}

/// Reads all that the peer may send on stream 2, so that its window wants to grow.
fn grow(config: Config) -> Solo {
    let (mut solo, key) = accepted(config);
    for _ in 0..8 {
        solo.data(2, &[0; 8000], false);
        while matches!(solo.end.read(key, 8000), Ok(Read::Chunk(_))) {}
        solo.sent();
    }
    solo
}

/// Sends to a peer that acknowledges nothing until it is not sent any more.
fn unacknowledged(budget: Budget) -> Solo {
    let mut solo = Solo::node(Config {
        resume_time: Duration::from_secs(30),
        budget: Arc::new(budget),
        ..Config::default()
    });
    let key = solo.end.open(Bytes::new()).unwrap();
    solo.sent();
    solo.frame(&Frame::OpenOk {
        id: 1,
        credit: 1 << 30,
        answer: Bytes::new(),
    });
    loop {
        let room = solo.end.write_budget(key).unwrap();
        solo.end.write(key, &mut vec![0; room].into()).unwrap();
        if solo.sent().is_empty() {
            return solo;
        }
    }
}

/// Writes to twenty streams as much as they take, of which nothing can be sent for now, and then sends it
/// (protocol 508).
fn stuffed(config: Config) -> Solo {
    let mut solo = Solo::node(config);
    let mut open = |_| solo.end.open(Bytes::new()).unwrap();
    let keys: Vec<_> = (0..20).map(&mut open).collect();
    solo.sent();
    for id in (1..40).step_by(2) {
        solo.frame(&Frame::OpenOk {
            id,
            credit: 1 << 30,
            answer: Bytes::new(),
        });
    }
    while solo.end.poll_event().is_some() {}
    let mut queued = [0; 20];
    for (key, queued) in keys.iter().zip(&mut queued) {
        loop {
            match solo.end.write_budget(*key).unwrap().min(5000) {
                0 => break,
                room => *queued += solo.end.write(*key, &mut vec![0; room].into()).unwrap(),
            }
        }
    }
    assert!(queued.iter().all(|queued| *queued >= 4096), "{queued:?}");
    let all: usize = queued.iter().sum();
    assert_eq!(solo.end.stats().queued_bytes, all as u64);
    // When it has left, all writers are told, and nothing is held any more.
    while !solo.sent().is_empty() {}
    let told: Vec<_> = std::iter::from_fn(|| solo.end.poll_event()).collect();
    for key in keys {
        assert!(told.contains(&Event::Writable(key)));
        assert!(solo.end.write_budget(key).unwrap() > 0);
    }
    assert_eq!(solo.end.stats().queued_bytes, 0);
    solo
}

/// A tunnel that has met this limit, and how it ended if it did.
#[allow(clippy::too_many_lines)]
fn meet(limit: Limit) -> (Solo, Option<u32>) {
    let too_much = Some(close::TOO_MUCH);
    let send = |solo: &mut Solo, key, size| {
        let payload = Bytes::from(vec![0; size]);
        solo.end.send_datagram(solo.now, key, payload).unwrap();
    };
    match limit {
        Limit::Streams => {
            let mut solo = Solo::node(Config::default());
            for _ in 0..100 {
                solo.end.open(Bytes::new()).unwrap();
            }
            assert_eq!(solo.end.open(Bytes::new()), Err(OpenRefusal::Limit));
            (solo, None)
        }
        Limit::Opens => {
            let mut solo = roomy();
            for i in 1..=40_001 {
                solo.frame(&open(i * 2));
                if let Some(key) = offer(&mut solo) {
                    solo.end.accept(key, Bytes::new());
                }
            }
            assert_eq!(solo.end.stats().streams_accepted, 40_000);
            (solo, None)
        }
        Limit::FailedOpens => {
            let mut solo = roomy();
            for i in 1..=2001 {
                solo.frame(&open(i * 2));
                if let Some(key) = offer(&mut solo) {
                    solo.end.release(key, code::REFUSED);
                }
            }
            assert_eq!(solo.end.stats().streams_accepted, 2000);
            (solo, None)
        }
        Limit::PendingOpens => {
            let mut solo = roomy();
            for i in 1..=4097 {
                solo.frame(&open(i * 2));
            }
            let offers = std::iter::from_fn(|| offer(&mut solo)).count();
            assert_eq!(offers, 4096);
            (solo, None)
        }
        Limit::ExcessOpens => {
            let solo = flood(roomy(), |s, i| s.frame(&open((i + 1) * 2)));
            assert_eq!(solo.end.stats().streams_accepted, 4096);
            assert_eq!(solo.end.stats().limit(Limit::PendingOpens), 20_001);
            (solo, too_much)
        }
        Limit::EarlyResets => {
            let solo = flood(roomy(), |s, i| {
                s.frame(&open((i + 1) * 2));
                s.frame(&reset((i + 1) * 2));
            });
            assert_eq!(solo.end.stats().streams_accepted, 1001);
            (solo, too_much)
        }
        Limit::OwnFailedOpens | Limit::HeldResets => {
            let mut solo = Solo::node(Config::default());
            solo.frame(&Frame::Streams { total: 1_000_000 });
            for _ in 0..10_000 {
                let key = solo.end.open(Bytes::new()).unwrap();
                solo.sent();
                solo.end.release(key, code::CANCEL);
                solo.sent();
            }
            assert_eq!(solo.end.open(Bytes::new()), Err(OpenRefusal::Limit));
            assert_eq!(solo.end.stats().limit(Limit::HeldResets), 9250);
            (solo, None)
        }
        Limit::Pings => {
            let solo = Solo::node(Config::default());
            (flood(solo, |s, _| s.frame(&Frame::Ping(1))), too_much)
        }
        Limit::Controls => {
            let solo = Solo::node(Config::default());
            let end = flood(solo, |s, _| {
                s.frame(&Frame::Control(Bytes::new()));
                s.end.poll_incoming();
            });
            (end, too_much)
        }
        Limit::ControlBacklog => {
            let mut solo = Solo::node(Config::default());
            for i in 0..=1024 {
                assert_eq!(solo.violation(), None, "{i}");
                solo.frame(&Frame::Control(Bytes::new()));
            }
            (solo, too_much)
        }
        Limit::ControlQueue => {
            let mut solo = Solo::node(Config::default());
            for _ in 0..256 {
                solo.end.send_control(Bytes::new()).unwrap();
            }
            solo.end.send_control(Bytes::new()).unwrap_err();
            (solo, None)
        }
        Limit::EmptyData => {
            let (solo, _) = accepted(Config::default());
            (flood(solo, |s, _| s.data(2, b"", false)), too_much)
        }
        Limit::EmptyWindows => {
            let (solo, _) = accepted(Config::default());
            let window = Frame::Window { id: 2, limit: 1000 };
            (flood(solo, |s, _| s.frame(&window)), too_much)
        }
        Limit::UselessFrames => {
            let (solo, _) = accepted(Config::default());
            (flood(solo, |s, _| s.frame(&Frame::Pong(999))), too_much)
        }
        Limit::FrameSize => {
            let (mut solo, _) = accepted(Config::default());
            solo.data(2, &[0; 16_377], false);
            (solo, Some(close::FRAME_SIZE))
        }
        Limit::SettingsTime => {
            let mut solo = Solo::silent(Config::default());
            solo.wait(Duration::from_millis(9999));
            assert_eq!(solo.violation(), None);
            assert!(solo.end.poll_timeout().unwrap() <= solo.now + Duration::from_millis(1));
            solo.wait(Duration::from_millis(1));
            (solo, Some(close::SETTINGS))
        }
        Limit::DatagramRate => {
            let (mut solo, key) = flow(Config::default());
            for _ in 0..200_010 {
                solo.frame(&datagram(Bytes::from_static(b"d")));
                let _ = solo.end.receive_datagram(key).unwrap();
            }
            assert_eq!(solo.end.stats().datagrams_received, 200_000);
            (solo, None)
        }
        Limit::DatagramsUnread => {
            let (mut solo, _) = flow(Config::default());
            for _ in 0..65 {
                solo.frame(&datagram(Bytes::from_static(b"d")));
            }
            (solo, None)
        }
        Limit::DatagramsUnsent => {
            let (mut solo, key) = flow(Config::default());
            send(&mut solo, key, 30_000);
            send(&mut solo, key, 30_000);
            send(&mut solo, key, 30_000);
            (solo, None)
        }
        Limit::DatagramAge => {
            let (mut solo, key) = flow(Config::default());
            send(&mut solo, key, 10);
            solo.now += Duration::from_millis(201);
            assert!(
                !solo
                    .sent()
                    .windows(8)
                    .any(|w| w == [8, 0, 0, 10, 0, 0, 0, 2])
            );
            (solo, None)
        }
        Limit::DatagramsDetached => {
            let (mut solo, key) = flow(Config {
                resume_time: Duration::from_secs(30),
                ..Config::default()
            });
            send(&mut solo, key, 10);
            solo.end
                .transport_lost(solo.now, std::io::ErrorKind::ConnectionReset, "cut");
            send(&mut solo, key, 10);
            assert_eq!(solo.end.stats().limit(Limit::DatagramsDetached), 2);
            (solo, None)
        }
        Limit::DatagramLength => {
            let (mut solo, key) = flow(Config::default());
            send(&mut solo, key, MAX_DATAGRAM + 1);
            (solo, None)
        }
        Limit::DatagramsLate => {
            let (mut solo, key) = flow(Config::default());
            solo.end.release(key, code::CANCEL);
            solo.frame(&datagram(Bytes::new()));
            (solo, None)
        }
        Limit::TunnelGrowth => {
            let solo = grow(Config {
                growth_budget: 100_000,
                ..Config::default()
            });
            assert_eq!(solo.end.stats().limit(Limit::ProcessGrowth), 0);
            (solo, None)
        }
        Limit::ProcessGrowth => {
            let solo = grow(Config {
                budget: Arc::new(Budget::new(100_000)),
                ..Config::default()
            });
            assert_eq!(solo.end.stats().limit(Limit::TunnelGrowth), 0);
            (solo, None)
        }
        Limit::TunnelLog => {
            let solo = unacknowledged(Budget::unlimited());
            assert_eq!(solo.end.stats().limit(Limit::ProcessLog), 0);
            (solo, None)
        }
        Limit::ProcessLog => {
            let solo = unacknowledged(Budget::new(300_000));
            assert_eq!(solo.end.stats().limit(Limit::TunnelLog), 0);
            (solo, None)
        }
        Limit::TunnelQueues => {
            let solo = stuffed(Config {
                send_queues: 200_000,
                ..Config::default()
            });
            assert_eq!(solo.end.stats().limit(Limit::ProcessQueues), 0);
            (solo, None)
        }
        Limit::ProcessQueues => {
            let budget = Arc::new(Budget::new(4_000_000));
            let solo = stuffed(Config {
                budget: Arc::clone(&budget),
                ..Config::default()
            });
            assert_eq!(solo.end.stats().limit(Limit::TunnelQueues), 0);
            assert_eq!(budget.queues_used(), 0);
            (solo, None)
        }
    }
}

/// protocol 306, 414, 504, 1003
#[test]
fn every_limit_holds_and_counts() {
    for limit in Limit::ALL {
        let (solo, ended) = meet(limit);
        assert_eq!(solo.violation(), ended, "{limit:?}");
        let stats = solo.end.stats();
        assert!(stats.limit(limit) > 0, "{limit:?}");
        let word = limit.word();
        assert!(
            stats
                .limits()
                .any(|(w, n)| w == word && n == stats.limit(limit))
        );
    }
}

/// protocol 1004
#[test]
fn opens_that_fail_are_refused_from_then_on_and_come_back_with_time() {
    let (mut solo, _) = meet(Limit::FailedOpens);
    let mut id = 4002;
    solo.wait(Duration::from_secs(1));
    let mut offers = 0;
    for _ in 0..600 {
        id += 2;
        solo.frame(&open(id));
        if let Some(key) = offer(&mut solo) {
            offers += 1;
            solo.end.release(key, code::REFUSED);
        }
    }
    assert!((500..=532).contains(&offers), "{offers}");
    // What is answered does not count: all of these are served.
    solo.wait(Duration::from_secs(1));
    for _ in 0..5000 {
        id += 2;
        solo.frame(&open(id));
        let key = offer(&mut solo).unwrap();
        solo.end.accept(key, Bytes::new());
        solo.end.release(key, code::CANCEL);
        solo.frame(&reset(id));
    }
    assert_eq!(solo.violation(), None);
}

/// protocol 1005
#[test]
fn streams_that_waited_before_they_were_given_up_do_not_end_the_tunnel() {
    let mut solo = roomy();
    for i in 1..=1500 {
        solo.frame(&open(i * 2));
    }
    solo.wait(Duration::from_millis(1200));
    for i in 1..=1500 {
        solo.frame(&reset(i * 2));
    }
    assert_eq!(solo.violation(), None);
    let keys: Vec<Key> = std::iter::from_fn(|| offer(&mut solo)).collect();
    assert_eq!(keys.len(), 1500);
    for key in keys {
        let gone = Some(StreamEnd::Reset(code::CANCEL));
        assert_eq!(solo.end.ended(key), gone);
        solo.end.release(key, code::CANCEL);
    }
    solo.sent();
    assert_eq!(solo.end.streams(), 0);
}

/// protocol 1004, 1005: whatever the users behind a side do, its peer keeps the tunnel.
#[test]
fn an_opener_never_drives_its_peer_to_end_the_tunnel() {
    for refused in [false, true] {
        let mut pair = Pair::new(Config::default(), Config::default());
        pair.latency = Duration::from_millis(5);
        pair.settle();
        let mut opened = 0;
        for _ in 0..400 {
            // 5,000 a second that are given up at once, or refused.
            let mut keys = Vec::new();
            for _ in 0..50 {
                keys.extend(pair.ends[0].open(Bytes::new()));
            }
            opened += keys.len();
            pair.send(0, 1 << 20);
            if !refused {
                for key in &keys {
                    pair.ends[0].release(*key, code::CANCEL);
                }
            }
            pair.now += Duration::from_millis(10);
            for side in [0, 1] {
                pair.send(side, 1 << 20);
                for _ in 0..10 {
                    pair.receive(side, usize::MAX);
                }
            }
            while let Some(Incoming::Offer { key, .. }) = pair.ends[1].poll_incoming() {
                pair.ends[1].release(key, code::REFUSED);
            }
            if refused {
                pair.settle();
                for key in &keys {
                    pair.ends[0].release(*key, code::CANCEL);
                }
            }
            pair.drop_events();
        }
        assert!(pair.ends.iter().all(|end| end.closed().is_none()));
        assert!(opened > 10_000, "{opened}");
        pair.settle();
        assert_eq!(pair.ends.each_ref().map(|end| end.streams()), [0, 0]);
    }
}

/// protocol 1005
#[test]
fn a_reset_that_was_held_back_follows_the_answer() {
    let mut config = Config::default();
    config.rates.own_early_resets = Rate::new(1, 0);
    let answers = [
        Frame::OpenOk {
            id: 1,
            credit: 9,
            answer: Bytes::new(),
        },
        reset(1),
    ];
    for answer in answers {
        let mut solo = Solo::node(config.clone());
        let key = solo.end.open(Bytes::new()).unwrap();
        solo.sent();
        solo.end.release(key, code::CANCEL);
        assert!(solo.sent().is_empty());
        assert_eq!(solo.end.stats().limit(Limit::HeldResets), 1);
        solo.frame(&answer);
        let mut expected = Vec::new();
        reset(1).put(&mut expected);
        assert_eq!(solo.sent(), expected);
        if matches!(answer, Frame::OpenOk { .. }) {
            assert_eq!(solo.end.streams(), 1);
            solo.frame(&reset(1));
        }
        assert_eq!(solo.end.streams(), 0);
    }
}

/// protocol 1001: the WINDOW of a peer that has not seen our FIN yet is no abuse.
#[test]
fn windows_that_cross_a_fin_are_natural() {
    let mut solo = roomy();
    for i in 1..=10_000 {
        let id = i * 2;
        solo.frame(&open(id));
        let key = offer(&mut solo).unwrap();
        solo.end.accept(key, Bytes::new());
        solo.end.finish(key).unwrap();
        solo.sent();
        solo.frame(&Frame::Window { id, limit: 5000 });
        solo.data(id, b"", true);
        assert_eq!(solo.end.read(key, 1), Ok(Read::Fin));
        solo.end.release(key, code::CANCEL);
        solo.wait(Duration::from_micros(100));
    }
    assert_eq!(solo.violation(), None);
    assert_eq!(solo.end.streams(), 0);
}

/// protocol 1002: a peer that makes us answer and does not read costs no more memory for that.
#[test]
fn what_waits_to_be_sent_is_bounded_by_the_streams() {
    let (mut solo, _) = accepted(Config::default());
    for i in 0..900_u64 {
        solo.frame(&Frame::Ping(i));
        solo.frame(&Frame::Window { id: 2, limit: 1000 });
        solo.wait(Duration::from_millis(11));
    }
    // One PONG, for the last PING, whatever came.
    let mut pong = Vec::new();
    Frame::Pong(899).put(&mut pong);
    assert!(solo.sent().starts_with(&pong));
    assert!(solo.end.waiting_frames() <= 1);
}

/// protocol 303, 1003
#[test]
fn settings_that_come_in_time_end_the_wait() {
    let mut solo = Solo::silent(Config::default());
    solo.wait(Duration::from_secs(9));
    solo.frame(&Frame::Settings(Settings::DEFAULT));
    solo.wait(Duration::from_secs(20));
    assert_eq!(solo.violation(), None);
}

/// protocol 1005
#[test]
fn resets_that_were_held_back_leave_with_time() {
    let mut solo = Solo::node(Config::default());
    solo.frame(&Frame::Streams { total: 1000 });
    let keys: Vec<Key> = (0..1000)
        .map(|_| solo.end.open(Bytes::new()).unwrap())
        .collect();
    while !solo.sent().is_empty() {}
    for key in keys {
        solo.end.release(key, code::CANCEL);
    }
    let mut sent = solo.sent().len() / 12;
    assert_eq!(sent, 750);
    let start = solo.now;
    // The peer never answers; it is alive, though.
    while sent < 1000 {
        let next = solo.end.poll_timeout().unwrap();
        assert!(next > solo.now, "a timer that rings for nothing");
        solo.now = next;
        solo.end.handle_timeout(next);
        sent += solo.sent().iter().filter(|byte| **byte == 3).count().min(1);
        solo.frame(&Frame::Ping(3));
    }
    let seconds = (solo.now - start).as_secs_f64();
    assert!((1.5..1.8).contains(&seconds), "{seconds}");
    assert!(!solo.end.wants_transmit() || solo.end.waiting_frames() == 0);
}
