//! Answers of OPEN_OK, and streams that carry datagrams: one scenario each.
#![allow(clippy::unwrap_used)]

mod support;

use bytes::Bytes;
use sg_tunnel::code::{self, close};
use sg_tunnel::frame::Frame;
use sg_tunnel::{Config, Incoming, Key, OpenState, StreamEnd};
use support::{Pair, Solo};

fn offer(pair: &mut Pair, side: usize) -> Key {
    match pair.ends[side].poll_incoming() {
        Some(Incoming::Offer { key, .. }) => key,
        other => panic!("no offer: {other:?}"),
    }
}

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
