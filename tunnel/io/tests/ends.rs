//! How tunnels end: close, drain, loss, silence, a dropped driver, a broken peer.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod pair;

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use pair::{Ends, duplex, eventually, tcp, within};
use sg_tunnel_io::{
    CloseReason, Config, ControlError, Event, OpenError, Side, StreamError, code, start,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

#[tokio::test]
async fn close_reaches_the_peer_with_code_and_text_and_ends_everything() {
    let mut ends = tcp(Config::default()).await;
    let (mut a, mut b) = ends.stream().await;
    ends.node
        .close(code::close::REPLACED, "a newer one is here");
    assert!(ends.node.is_closed());
    let there = within(5, ends.client_driver).await.unwrap();
    assert_eq!(
        there.reason,
        CloseReason::Peer {
            code: code::close::REPLACED,
            message: "a newer one is here".into()
        }
    );
    let here = within(5, ends.node_driver).await.unwrap();
    assert_eq!(
        here.reason,
        CloseReason::Local {
            code: code::close::REPLACED
        }
    );
    assert_eq!(
        a.read_chunk().await.unwrap_err(),
        StreamError::Lost(here.clone())
    );
    assert_eq!(
        b.read_chunk().await.unwrap_err(),
        StreamError::Lost(there.clone())
    );
    assert_eq!(ends.client.closed().await, there);
    assert_eq!(
        ends.client.open(Bytes::new()).await.unwrap_err(),
        OpenError::Closed(there.clone())
    );
    assert_eq!(
        ends.client.send_control(Bytes::new()).unwrap_err(),
        ControlError::Closed(there)
    );
    assert!(ends.client_incoming.next().await.is_none());
}

#[tokio::test]
async fn a_drain_refuses_new_streams_both_ways_and_keeps_the_others() {
    let mut ends = duplex(Config::default());
    let (mut a, mut b) = ends.stream().await;
    ends.node.goaway();
    assert!(matches!(
        within(5, ends.client_incoming.next()).await,
        Some(Event::PeerDraining)
    ));
    assert!(ends.client.is_draining() && ends.node.is_draining());
    for tunnel in [&ends.client, &ends.node] {
        let error = tunnel.open(Bytes::new()).await.unwrap_err();
        assert_eq!(error, OpenError::Draining);
        assert!(error.retry_elsewhere());
    }
    a.write_all(b"still here").await.unwrap();
    assert_eq!(
        within(5, b.read_chunk()).await.unwrap().unwrap(),
        "still here"
    );
}

#[tokio::test]
async fn an_open_that_crosses_the_drain_may_be_tried_elsewhere() {
    let ends = duplex(Config::default());
    eventually("settings have been exchanged", || {
        ends.client.rtt().is_some()
    })
    .await;
    // Both before the drivers run again.
    ends.node.goaway();
    let error = within(5, ends.client.open(Bytes::new())).await.unwrap_err();
    assert_eq!(
        error,
        OpenError::Reset {
            code: code::REFUSED_RETRY
        }
    );
    assert!(error.retry_elsewhere());
}

#[tokio::test]
async fn a_dropped_driver_ends_streams_opens_and_events() {
    let mut ends = tcp(Config::default()).await;
    let (mut a, mut b) = ends.stream().await;
    let node = ends.node.clone();
    let open = tokio::spawn(async move { node.open(Bytes::new()).await.unwrap_err() });
    let Some(Event::Open(mut offer)) = ends.client_incoming.next().await else {
        panic!("no offer");
    };
    ends.node_driver.abort();
    assert!(matches!(
        within(5, open).await.unwrap(),
        OpenError::Closed(_)
    ));
    assert!(matches!(
        within(5, a.read_chunk()).await,
        Err(StreamError::Lost(_))
    ));
    assert!(within(5, ends.node_incoming.next()).await.is_none());
    assert_eq!(within(5, ends.node.closed()).await.word(), "lost");
    // The other side sees the connection end without GOAWAY.
    let there = within(5, ends.client_driver).await.unwrap();
    assert_eq!(there.word(), "lost", "{there}");
    assert!(matches!(
        within(5, b.read_chunk()).await,
        Err(StreamError::Lost(_))
    ));
    assert_eq!(within(5, offer.cancelled()).await, StreamError::Lost(there));
}

#[tokio::test]
async fn what_came_completely_can_be_read_after_the_loss() {
    let mut ends = duplex(Config::default());
    let (mut a, mut b) = ends.stream().await;
    a.write_all(b"all of it").await.unwrap();
    a.shutdown().await.unwrap();
    eventually("it arrived", || ends.client.stats().unread_bytes == 9).await;
    // The FIN comes in the same frame as the bytes.
    ends.node_driver.abort();
    within(5, ends.client.closed()).await;
    assert_eq!(b.read_chunk().await.unwrap().unwrap(), "all of it");
    assert_eq!(b.read_chunk().await.unwrap(), None);
}

#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_dead_after_six_seconds_with_and_45_without_streams() {
    for (with_stream, least, most) in [(true, 5, 9), (false, 44, 62)] {
        let (a, mut b) = tokio::io::duplex(64 * 1024);
        let (tunnel, _incoming, driver) = start(a, Side::Node, Config::default());
        let driver = tokio::spawn(driver);
        // A peer that says hello and then nothing: SETTINGS with max_streams = 8.
        let hello = pair::logged(&[0x0a, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 8]);
        b.write_all(&hello).await.unwrap();
        let begin = tokio::time::Instant::now();
        let open = with_stream.then(|| {
            let tunnel = tunnel.clone();
            tokio::spawn(async move { tunnel.open(Bytes::new()).await.map(drop) })
        });
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(tunnel.is_suspect());
        let closed = driver.await.unwrap();
        assert_eq!(closed.reason, CloseReason::Timeout);
        let took = begin.elapsed().as_secs();
        assert!((least..=most).contains(&took), "{took} s");
        if let Some(open) = open {
            assert!(open.await.unwrap().is_err());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_idle_pair_stays_alive_and_measures() {
    let ends = duplex(Config::default());
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!ends.node.is_closed() && !ends.client.is_closed());
    assert!(ends.node.rtt().is_some() && !ends.node.is_suspect());
    // 240 pings each way, each 16 bytes, and their answers.
    let sent = ends.node.stats().sent_bytes;
    assert!((4_000..12_000).contains(&sent), "{sent}");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_makes_no_progress_ends_the_tunnel() {
    // The peer sends PONGs all the time but never reads.
    let (a, b) = tokio::io::duplex(1024);
    let (mut peer_read, mut peer_write) = tokio::io::split(b);
    let config = Config::default();
    let (tunnel, _incoming, driver) = start(a, Side::Node, config);
    let driver = tokio::spawn(driver);
    let hello = pair::logged(&[0x0a, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 8]);
    peer_write.write_all(&hello).await.unwrap();
    let chatter = tokio::spawn(async move {
        let pong = pair::unlogged(&[6, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        while peer_write.write_all(&pong).await.is_ok() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    });
    let begin = tokio::time::Instant::now();
    tunnel.send_control(Bytes::from(vec![0; 10_000])).unwrap();
    let closed = driver.await.unwrap();
    assert_eq!(closed.reason, CloseReason::Timeout);
    assert_eq!(begin.elapsed().as_secs(), 60);
    chatter.abort();
    let mut rest = Vec::new();
    peer_read.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn garbage_is_answered_with_a_goaway_and_an_end() {
    let (a, mut b) = tokio::io::duplex(64 * 1024);
    let (_tunnel, _incoming, driver) = start(a, Side::Node, Config::default());
    let driver = tokio::spawn(driver);
    b.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut got = Vec::new();
    within(5, b.read_to_end(&mut got)).await.unwrap();
    let text = String::from_utf8_lossy(&got).into_owned();
    assert!(text.contains("unknown record kind"), "{text}");
    drop(b);
    let closed = within(5, driver).await.unwrap();
    assert_eq!(closed.word(), "protocol", "{closed}");
}

#[tokio::test]
async fn control_messages_arrive_in_order_and_the_queue_is_bounded() {
    let mut ends: Ends = duplex(Config::default());
    let mut sent = 0_u32;
    let full = loop {
        match ends
            .client
            .send_control(Bytes::from(sent.to_be_bytes().to_vec()))
        {
            Ok(()) => sent += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(full, ControlError::Full);
    assert_eq!(
        ends.client.send_control(Bytes::from(vec![0; 16_385])),
        Err(ControlError::TooLong)
    );
    for i in 0..sent {
        match within(5, ends.node_incoming.next()).await {
            Some(Event::Control(message)) => assert_eq!(message, i.to_be_bytes()[..]),
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn streams_for_a_dropped_incoming_are_refused() {
    let ends = duplex(Config::default());
    drop(ends.client_incoming);
    let error = within(5, ends.node.open(Bytes::new())).await.unwrap_err();
    assert_eq!(
        error,
        OpenError::Reset {
            code: code::REFUSED_RETRY
        }
    );
}

/// Counts how often the driver runs.
struct Counted(
    sg_tunnel_io::Driver,
    std::sync::Arc<std::sync::atomic::AtomicU32>,
);

impl Future for Counted {
    type Output = sg_tunnel_io::Closed;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Pin::new(&mut self.0).poll(cx)
    }
}

#[tokio::test]
async fn a_driver_that_cannot_write_sleeps_even_when_a_ping_is_due() {
    let (a, b) = tokio::io::duplex(256);
    let (mut peer_read, mut peer_write) = tokio::io::split(b);
    let config = Config {
        ping_idle: Duration::from_millis(20),
        ..Config::default()
    };
    let (tunnel, _incoming, driver) = start(a, Side::Node, config);
    let polls = std::sync::Arc::default();
    let driver = tokio::spawn(Counted(driver, std::sync::Arc::clone(&polls)));
    let hello = pair::logged(&[0x0a, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 8]);
    peer_write.write_all(&hello).await.unwrap();
    // SETTINGS and the first PING, which is answered: the next one will be due.
    peer_read
        .read_exact(&mut [0; 4 + 16 + 4 + 32])
        .await
        .unwrap();
    let pong = pair::unlogged(&[6, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    peer_write.write_all(&pong).await.unwrap();
    eventually("the answer arrived", || tunnel.rtt().is_some()).await;
    // The link is full from here on, and nobody reads.
    tunnel.send_control(Bytes::from(vec![0; 10_000])).unwrap();
    tokio::time::sleep(Duration::from_millis(200)).await;
    let before = polls.load(std::sync::atomic::Ordering::Relaxed);
    for _ in 0..100 {
        tunnel
            .send_control(Bytes::from_static(b"no reason to wake"))
            .unwrap();
    }
    tokio::time::sleep(Duration::from_millis(200)).await;
    let after = polls.load(std::sync::atomic::Ordering::Relaxed);
    assert!(after - before <= 3, "{before} {after}");
    driver.abort();
}
