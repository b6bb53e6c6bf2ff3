//! What a report says about tunnels and streams in each of their states.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::{Config, Incoming, Key, Read, StreamReport, code};
use support::Pair;

fn words(report: &StreamReport) -> (u32, &'static str, &'static str) {
    (report.id, report.state, report.class)
}

fn one(pair: &Pair, side: usize) -> StreamReport {
    pair.ends[side].report(pair.now, 1).list.remove(0)
}

fn accept(pair: &mut Pair) -> Key {
    let Some(Incoming::Offer { key, .. }) = pair.ends[1].poll_incoming() else {
        panic!("no offer");
    };
    pair.ends[1].accept(key, Bytes::new());
    pair.settle();
    key
}

#[test]
fn a_stream_is_told_in_every_state_of_its_life() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    let key = pair.ends[0].open(Bytes::new()).unwrap();
    assert_eq!(words(&one(&pair, 0)), (0, "opening", "idle"));
    assert!(one(&pair, 0).waits_open && one(&pair, 0).opened_here);
    assert_eq!(pair.ends[0].report(pair.now, 0).waiting.opens, 1);
    pair.settle();
    assert_eq!(words(&one(&pair, 1)), (1, "offered", "idle"));
    assert_eq!(pair.ends[1].report(pair.now, 9).offered, 1);
    let there = accept(&mut pair);
    assert_eq!(words(&one(&pair, 0)), (1, "open", "idle"));
    assert!(!one(&pair, 0).waits_open && !one(&pair, 1).opened_here);

    // 64 KiB of credit: 60,000 bytes arrive and are not read, 5,536 more may come.
    let mut bytes = Bytes::from(vec![1; 60_000]);
    pair.ends[0].write(key, &mut bytes).unwrap();
    let queued = one(&pair, 0);
    assert_eq!((queued.queued, queued.sent), (60_000, 0));
    assert_eq!(pair.ends[0].report(pair.now, 0).waiting.interactive, 1);
    pair.settle();
    let (sent, got) = (one(&pair, 0), one(&pair, 1));
    assert_eq!((sent.queued, sent.sent, sent.credit), (0, 60_000, 5536));
    assert_eq!((got.unread, got.received), (60_000, 60_000));
    assert_eq!((got.granted, got.window), (5536, 65_536));
    let mut bytes = Bytes::from(vec![1; 10_000]);
    pair.ends[0].write(key, &mut bytes).unwrap();
    assert_eq!(pair.ends[0].write_budget(key), Ok(0));
    pair.settle();
    assert!(one(&pair, 0).waits_write);
    assert_eq!(one(&pair, 0).credit, 0);
    assert_eq!(pair.ends[1].report(pair.now, 0).stats.unread_bytes, 65_536);

    while matches!(pair.ends[1].read(there, 1 << 20), Ok(Read::Chunk(_))) {}
    assert!(one(&pair, 1).waits_read);
    pair.ends[0].set_weight(key, 4);
    assert_eq!(one(&pair, 0).weight, 4);
    pair.ends[0].finish(key).unwrap();
    pair.settle();
    assert_eq!(one(&pair, 0).state, "finished-here");
    assert_eq!(one(&pair, 1).state, "finished-there");
    pair.ends[1].finish(there).unwrap();
    pair.settle();
    assert_eq!(one(&pair, 0).state, "finished");
    for (side, key) in [(0, key), (1, there)] {
        pair.ends[side].release(key, code::CANCEL);
        assert!(pair.ends[side].report(pair.now, 9).list.is_empty());
    }
}

#[test]
fn resets_are_told_apart_by_who_waits_for_whom() {
    let mut pair = Pair::new(Config::default(), Config::default());
    let key = pair.ends[0].open(Bytes::new()).unwrap();
    pair.settle();
    accept(&mut pair);
    pair.ends[0].release(key, code::CANCEL);
    pair.send(0, 1000);
    assert_eq!(one(&pair, 0).state, "resetting");
    pair.settle();
    assert_eq!(one(&pair, 1).state, "reset");
    assert_eq!(pair.ends[0].report(pair.now, 9).streams, 0);
}

#[test]
fn the_streams_that_hold_most_come_first_and_flows_are_told() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    let keys = [0; 5].map(|_| pair.ends[0].open(Bytes::new()).unwrap());
    pair.settle();
    for _ in keys {
        accept(&mut pair);
    }
    for key in keys {
        let size = 1000 * (1 + key.index());
        let mut bytes = Bytes::from(vec![0; size]);
        pair.ends[0].write(key, &mut bytes).unwrap();
    }
    let flow = pair.ends[0].open_flow(Bytes::new()).unwrap();
    let payload = Bytes::from(vec![0; 6000]);
    pair.ends[0].send_datagram(pair.now, flow, payload).unwrap();
    let report = pair.ends[0].report(pair.now, 3);
    let held: Vec<u64> = report.list.iter().map(|s| s.queued).collect();
    assert_eq!(held, [6000, 5000, 4000]);
    assert_eq!(report.streams, 6);
    assert!(report.list[0].flow && !report.list[1].flow);
    assert_eq!(report.datagrams_unsent.count, 1);
    assert_eq!(report.datagrams_unsent.bytes, 6064);
    pair.settle();
    let report = pair.ends[1].report(pair.now, 1);
    assert_eq!((report.datagrams_unread.count, report.offered), (1, 1));
    assert_eq!(report.list[0].unread, 6000);
}

#[test]
fn a_tunnel_is_told_by_one_word() {
    let config = Config {
        resume_time: Duration::from_secs(30),
        ..Config::default()
    };
    let mut pair = Pair::new(config.clone(), config);
    pair.latency = Duration::from_millis(3);
    pair.settle();
    let state = |pair: &Pair| pair.ends[0].report(pair.now, 0).state;
    let report = pair.ends[0].report(pair.now, 0);
    assert_eq!(report.state, "attached");
    assert!(report.retained_limit >= 256 * 1024 && !report.replaying);
    assert!(report.rtt.is_some() && report.min_rtt <= report.rtt);
    pair.ends[0].transport_lost(pair.now, std::io::ErrorKind::ConnectionReset, "cut");
    assert_eq!(state(&pair), "detached");
    pair.ends[0].abandon();
    assert_eq!(state(&pair), "closed");
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    pair.ends[1].goaway();
    pair.settle();
    assert_eq!(state(&pair), "draining");
    assert_eq!(pair.ends[0].report(pair.now, 0).retained_limit, 0);
}
