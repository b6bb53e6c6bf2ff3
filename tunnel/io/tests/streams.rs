//! Many streams, half-close, resets, stalled readers: over an in-memory pipe and over TCP.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod pair;

use std::time::Duration;

use bytes::Bytes;
use pair::{Ends, duplex, echo, pattern, tcp, within};
use sg_tunnel_io::{Config, Event, OpenError, StreamError, code};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

#[tokio::test]
async fn a_thousand_streams_carry_every_byte_back() {
    let ends = tcp(Config::default()).await;
    let echo = echo(ends.client_incoming);
    let mut tasks = JoinSet::new();
    for i in 0..1000_usize {
        let node = ends.node.clone();
        tasks.spawn(async move {
            let size = 1 + (i * 997) % 60_000;
            let sent = pattern(i, size);
            let mut stream = node.open(Bytes::from(i.to_string())).await.unwrap();
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let send = async {
                for chunk in sent.chunks(1 + i * 13) {
                    write.write_all(chunk).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, n) = tokio::join!(send, read.read_to_end(&mut got));
            n.unwrap();
            assert_eq!(got, sent, "stream {i}");
        });
    }
    within(30, async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    pair::eventually("all streams are forgotten", || {
        ends.node.active_streams() == 0 && ends.client.active_streams() == 0
    })
    .await;
    assert_eq!(ends.node.stats().growth_used, 0);
    assert_eq!(ends.node.stats().streams_opened, 1000);
    ends.node.close(code::close::NONE, "done");
    within(5, echo).await.unwrap();
}

#[tokio::test]
async fn either_side_may_finish_first_and_the_other_direction_goes_on() {
    let mut ends = duplex(Config::default());
    for opener_first in [true, false] {
        let (mut a, mut b) = ends.stream().await;
        if !opener_first {
            std::mem::swap(&mut a, &mut b);
        }
        a.write_all(b"last words").await.unwrap();
        a.shutdown().await.unwrap();
        let mut got = Vec::new();
        within(5, b.read_to_end(&mut got)).await.unwrap();
        assert_eq!(got, b"last words");
        let answer = pattern(7, 300_000);
        let (sent, got) = tokio::join!(
            async {
                b.write_all(&answer).await.unwrap();
                b.shutdown().await.unwrap();
            },
            async {
                let mut got = Vec::new();
                within(5, a.read_to_end(&mut got)).await.unwrap();
                got
            }
        );
        let () = sent;
        assert_eq!(got, answer);
        assert_eq!(
            a.write_all(b"x").await.unwrap_err().kind(),
            std::io::ErrorKind::BrokenPipe
        );
        drop((a, b));
        pair::eventually("the stream is forgotten", || {
            ends.node.active_streams() + ends.client.active_streams() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn a_reset_reaches_a_peer_that_does_not_read_and_overtakes_queued_bytes() {
    let mut ends = tcp(Config::default()).await;
    for opener_resets in [true, false] {
        let (mut a, mut b) = ends.stream().await;
        if !opener_resets {
            std::mem::swap(&mut a, &mut b);
        }
        // Fill everything: the reader does not read, so the sender cannot write any more.
        let full = async {
            loop {
                a.write_chunk(Bytes::from_static(&[1; 8192])).await.unwrap();
            }
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(50), full)
                .await
                .is_err()
        );
        let reset = std::future::poll_fn(|cx| b.poll_reset(cx));
        a.reset(code::PEER_RESET);
        let error = within(5, reset).await;
        assert_eq!(
            error,
            StreamError::Reset {
                code: code::PEER_RESET
            }
        );
        // Nothing is delivered after the reset, and it is not an end of file.
        let error = b.read_chunk().await.unwrap_err();
        assert_eq!(error.code(), code::PEER_RESET);
        let io_error = b.read(&mut [0; 10]).await.unwrap_err();
        assert_eq!(io_error.kind(), std::io::ErrorKind::ConnectionReset);
        assert_eq!(StreamError::from_io(&io_error), Some(&error));
        assert!(b.write_chunk(Bytes::from_static(b"x")).await.is_err());
        drop(b);
        pair::eventually("the stream is forgotten", || {
            ends.node.active_streams() + ends.client.active_streams() == 0
        })
        .await;
    }
}

#[tokio::test]
async fn dropping_a_stream_resets_it_with_cancel() {
    let mut ends = duplex(Config::default());
    let (a, mut b) = ends.stream().await;
    drop(a);
    let error = within(5, b.read_chunk()).await.unwrap_err();
    assert_eq!(error, StreamError::Reset { code: code::CANCEL });
}

#[tokio::test]
async fn stalled_readers_do_not_slow_the_others() {
    let mut ends = tcp(Config::default()).await;
    let mut stalled = Vec::new();
    for _ in 0..64 {
        let (mut a, b) = ends.stream().await;
        // Write as much as goes; nobody reads it.
        let full = async {
            while a
                .write_chunk(Bytes::from_static(&[7; 16_384]))
                .await
                .is_ok()
            {}
        };
        assert!(
            tokio::time::timeout(Duration::from_millis(10), full)
                .await
                .is_err()
        );
        stalled.push((a, b));
    }
    let sent = pattern(3, 20 << 20);
    let (mut a, mut b) = ends.stream().await;
    let receive = tokio::spawn(async move {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        got
    });
    a.write_all(&sent).await.unwrap();
    a.shutdown().await.unwrap();
    assert!(within(20, receive).await.unwrap() == sent);
    assert_eq!(stalled.len(), 64);
}

#[tokio::test]
async fn an_open_that_nobody_answers_blocks_no_other() {
    let mut ends = duplex(pair::may_give_up());
    let mut waiting = JoinSet::new();
    for _ in 0..2000 {
        let node = ends.node.clone();
        waiting.spawn(async move { node.open(Bytes::new()).await.map(drop) });
    }
    let mut offered = Vec::new();
    while offered.len() < 2000 {
        match within(10, ends.client_incoming.next()).await {
            Some(Event::Open(stream)) => offered.push(stream),
            other => panic!("{other:?}"),
        }
    }
    let (mut a, mut b) = ends.stream().await;
    a.write_all(b"through").await.unwrap();
    assert_eq!(within(5, b.read_chunk()).await.unwrap().unwrap(), "through");
    // The openers give up; the acceptor hears of each.
    waiting.shutdown().await;
    for mut stream in offered {
        let why = within(5, stream.cancelled()).await;
        assert_eq!(why, StreamError::Reset { code: code::CANCEL });
        assert_eq!(
            stream.accept().read_chunk().await.unwrap_err().code(),
            code::CANCEL
        );
    }
    drop((a, b));
    pair::eventually("all streams are forgotten", || {
        ends.node.active_streams() + ends.client.active_streams() == 0
    })
    .await;
}

#[tokio::test]
async fn a_refusal_carries_its_code_and_a_drop_refuses_with_internal() {
    let mut ends = duplex(Config::default());
    for expected in [code::ACL_DENIED, code::INTERNAL] {
        let refuse = async {
            match ends.client_incoming.next().await {
                Some(Event::Open(stream)) if expected == code::ACL_DENIED => {
                    assert_eq!(stream.metadata(), "to whom");
                    stream.refuse(expected);
                }
                Some(Event::Open(stream)) => drop(stream),
                other => panic!("{other:?}"),
            }
        };
        let open = ends.node.open(Bytes::from_static(b"to whom"));
        let (opened, ()) = within(5, async { tokio::join!(open, refuse) }).await;
        let error = opened.unwrap_err();
        assert_eq!(error, OpenError::Reset { code: expected });
        assert!(!error.retry_elsewhere());
    }
}

#[tokio::test]
async fn streams_beyond_the_limit_are_told_and_slots_come_back() {
    let config = Config {
        max_streams: 10,
        ..Config::default()
    };
    let ends = duplex(config);
    let echo = echo(ends.client_incoming);
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(within(5, ends.node.open(Bytes::new())).await.unwrap());
    }
    let error = ends.node.open(Bytes::new()).await.unwrap_err();
    assert_eq!(error, OpenError::Limit);
    assert!(error.retry_elsewhere());
    drop(open);
    let mut again = None;
    for _ in 0..1000 {
        again = ends.node.open(Bytes::new()).await.ok();
        if again.is_some() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(again.is_some());
    drop(again);
    ends.client.close(code::close::NONE, "");
    within(5, echo).await.unwrap();
}

#[tokio::test]
async fn writes_wait_for_room_and_are_woken() {
    let mut ends: Ends = duplex(Config::default());
    let (mut a, mut b) = ends.stream().await;
    let ready = std::future::poll_fn(|cx| a.poll_write_ready(cx))
        .await
        .unwrap();
    assert!((1..=256 * 1024).contains(&ready));
    let writer = tokio::spawn(async move {
        for i in 0..400_u32 {
            let piece = Bytes::from(vec![i.to_le_bytes()[0]; 10_000]);
            a.write_chunk(piece).await.unwrap();
        }
        a.finish().unwrap();
        // Held until the reader is done: a drop after both FINs is silent.
        a
    });
    let (mut total, mut count) = (0, 0);
    let mut pieces = Vec::new();
    loop {
        let look = std::future::poll_fn(|cx| {
            let done = std::mem::take(&mut count);
            b.poll_peek_chunks(cx, done, &mut pieces, 100_000)
        });
        count = within(5, look).await.unwrap();
        if count == 0 {
            break;
        }
        let bytes: usize = pieces.drain(..).map(|p| p.len()).sum();
        assert_eq!(bytes, count);
        total += count;
    }
    assert_eq!(total, 4_000_000);
    b.finish().unwrap();
    drop(within(5, writer).await.unwrap());
}
