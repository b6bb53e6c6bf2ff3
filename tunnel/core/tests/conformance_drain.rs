//! How a tunnel is left in favour of another one.
#![allow(clippy::unwrap_used)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::code;
use sg_tunnel::{Config, Incoming, Key, OpenRefusal, OpenState, Read, StreamEnd};
use support::Pair;

fn take_offer(pair: &mut Pair, side: usize) -> Option<Key> {
    match pair.ends[side].poll_incoming()? {
        Incoming::Offer { key, .. } => {
            pair.ends[side].accept(key, Bytes::new());
            Some(key)
        }
        other => panic!("{other:?}"),
    }
}

/// protocol 401, 901: streams that are there go on, and new ones go elsewhere, until the last is done.
#[test]
fn a_side_whose_ids_run_out_drains() {
    let config = Config {
        max_id: 40,
        ..Config::default()
    };
    let mut pair = Pair::new(config.clone(), config);
    pair.latency = Duration::from_millis(1);
    pair.settle();
    let mut streams = Vec::new();
    while !pair.ends[0].is_draining() {
        let here = pair.ends[0].open(Bytes::new()).unwrap();
        pair.settle();
        if let Some(there) = take_offer(&mut pair, 1) {
            pair.settle();
            streams.push((here, there));
        }
        assert!(streams.len() < 30, "it never drains");
    }
    // 1, 3, ..., 29; 31 is beyond three quarters.
    assert_eq!(streams.len(), 15);
    for (side, end) in pair.ends.iter_mut().enumerate() {
        assert!(end.is_draining());
        assert_eq!(end.open(Bytes::new()), Err(OpenRefusal::Draining), "{side}");
    }
    assert_eq!(pair.ends[1].poll_incoming(), Some(Incoming::Draining));
    for (here, there) in streams {
        let mut chunk = Bytes::from_static(b"goes on");
        pair.ends[0].write(here, &mut chunk).unwrap();
        pair.ends[0].finish(here).unwrap();
        pair.ends[1].finish(there).unwrap();
        pair.settle();
        let got = pair.ends[1].read(there, 100);
        assert_eq!(got, Ok(Read::Chunk(Bytes::from_static(b"goes on"))));
        pair.ends[0].release(here, code::CANCEL);
        pair.ends[1].release(there, code::CANCEL);
    }
    assert!(pair.ends.iter().all(|end| end.streams() == 0));
    assert!(pair.ends.iter().all(|end| end.closed().is_none()));
}

/// protocol 901
#[test]
fn opens_that_cross_the_drain_or_wait_behind_it_may_be_retried() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    pair.latency = Duration::from_millis(20);
    let crossing = pair.ends[0].open(Bytes::new()).unwrap();
    pair.send(0, 10_000);
    pair.ends[1].goaway();
    let waiting = pair.ends[0].open(Bytes::new()).unwrap();
    let retry = Err(StreamEnd::Reset(code::REFUSED_RETRY));
    assert_eq!(pair.ends[0].open_state(crossing), Ok(OpenState::Waiting));
    pair.send(1, 10_000);
    pair.now += Duration::from_millis(20);
    pair.receive(0, usize::MAX);
    assert_eq!(pair.ends[0].open_state(waiting), retry);
    pair.settle();
    assert_eq!(pair.ends[0].open_state(crossing), retry);
    for key in [crossing, waiting] {
        pair.ends[0].release(key, code::CANCEL);
    }
    pair.settle();
    assert_eq!(pair.ends[1].poll_incoming(), None);
    assert!(pair.ends.iter().all(|end| end.streams() == 0));
}

/// protocol 901: behind its own GOAWAY a side opens nothing either.
#[test]
fn opens_that_wait_behind_our_own_drain_may_be_retried() {
    let mut pair = Pair::new(Config::default(), Config::default());
    pair.settle();
    let key = pair.ends[0].open(Bytes::new()).unwrap();
    pair.ends[0].goaway();
    let retry = Err(StreamEnd::Reset(code::REFUSED_RETRY));
    assert_eq!(pair.ends[0].open_state(key), retry);
    pair.settle();
    assert_eq!(pair.ends[1].stats().streams_accepted, 0);
    assert_eq!(pair.ends[1].streams(), 0);
}
