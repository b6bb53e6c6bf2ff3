//! Flows of datagrams: whole, never waited for, never stale, beside streams and across connections.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod pair;

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use pair::{Ends, duplex, eventually, pattern, tcp, within};
use sg_tunnel_io::{Config, Event, Flow, StreamError, code, transport};
use tokio::io::AsyncWriteExt;
use tokio::time::sleep;

/// Opens a flow from the node and accepts it at the client.
async fn flow(ends: &mut Ends) -> (Flow, Flow) {
    let opened = ends.node.open_flow(Bytes::from_static(b"to whom")).unwrap();
    loop {
        match within(5, ends.client_incoming.next()).await {
            Some(Event::Open(offer)) => {
                assert!(offer.is_flow());
                assert_eq!(offer.metadata(), "to whom");
                return (opened, offer.accept_flow());
            }
            Some(Event::Detached | Event::Resumed) => {}
            other => panic!("{other:?}"),
        }
    }
}

fn dropped(ends: &Ends) -> u64 {
    let count = |stats: sg_tunnel_io::TunnelStats| stats.limits().map(|(_, n)| n).sum::<u64>();
    count(ends.node.stats()) + count(ends.client.stats())
}

#[tokio::test]
async fn datagrams_of_every_size_arrive_whole_and_in_order() {
    let mut ends = tcp(Config::default()).await;
    let (a, b) = flow(&mut ends).await;
    for size in [0, 1, 1200, 1472, 16_376, 16_377, 40_000, 65_507] {
        let sent = Bytes::from(pattern(size, size));
        a.send(sent.clone()).unwrap();
        assert_eq!(within(5, b.recv()).await.unwrap(), sent, "{size}");
        b.send(sent.clone()).unwrap();
        assert_eq!(within(5, a.recv()).await.unwrap(), sent, "{size}");
    }
    // What no UDP packet holds is dropped and counted.
    assert_eq!(dropped(&ends), 0);
    a.send(Bytes::from(vec![0; 65_508])).unwrap();
    a.send(Bytes::from_static(b"behind it")).unwrap();
    assert_eq!(within(5, b.recv()).await.unwrap(), "behind it");
    assert_eq!(dropped(&ends), 1);
    assert!(a.id() == b.id() && a.id() != 0);
}

#[tokio::test]
async fn datagrams_may_follow_the_open_at_once_and_wait_for_its_acceptance() {
    let mut ends = duplex(Config::default());
    let opened = ends.node.open_flow(Bytes::from_static(b"to whom")).unwrap();
    for i in 0..10 {
        opened.send(Bytes::from(vec![i; 100])).unwrap();
    }
    let Some(Event::Open(offer)) = within(5, ends.client_incoming.next()).await else {
        panic!("no offer");
    };
    let accepted = offer.accept_flow();
    let mut got = Vec::new();
    while got.len() < 10 {
        let many = poll_fn(|cx| accepted.poll_recv_many(cx, &mut got, 4));
        assert!((1..=4).contains(&within(5, many).await.unwrap()));
    }
    assert!(got.iter().zip(0..).all(|(d, i)| d[..] == [i; 100]));
}

#[tokio::test]
async fn a_refused_flow_and_one_that_is_let_go_end_with_their_codes() {
    let mut ends = duplex(Config::default());
    let opened = ends.node.open_flow(Bytes::new()).unwrap();
    match within(5, ends.client_incoming.next()).await {
        Some(Event::Open(offer)) => offer.refuse(code::ACL_DENIED),
        other => panic!("{other:?}"),
    }
    let refused = StreamError::Reset {
        code: code::ACL_DENIED,
    };
    assert_eq!(within(5, opened.recv()).await.unwrap_err(), refused);
    assert_eq!(opened.send(Bytes::new()).unwrap_err(), refused);
    drop(opened);

    for (reset, code) in [(true, code::IDLE_TIMEOUT), (false, code::CANCEL)] {
        let (a, b) = flow(&mut ends).await;
        a.send(Bytes::from_static(b"overtaken")).unwrap();
        // One future that waits for both, as a relay does.
        let both = poll_fn(|cx| {
            if let Poll::Ready(error) = b.poll_reset(cx) {
                return Poll::Ready(error);
            }
            while let Poll::Ready(Ok(_)) = b.poll_recv(cx) {}
            Poll::Pending
        });
        let end = async {
            tokio::task::yield_now().await;
            if reset {
                a.reset(code);
            }
            drop(a);
        };
        let (error, ()) = within(5, async { tokio::join!(both, end) }).await;
        assert_eq!(error, StreamError::Reset { code });
        drop(b);
    }
    eventually("all flows are forgotten", || {
        ends.node.active_streams() + ends.client.active_streams() == 0
    })
    .await;
}

#[tokio::test]
async fn a_flow_that_is_taken_for_a_stream_is_reset_and_the_other_way_round() {
    let mut ends = duplex(Config::default());
    let internal = StreamError::Reset {
        code: code::INTERNAL,
    };
    let opened = ends.node.open_flow(Bytes::new()).unwrap();
    let Some(Event::Open(offer)) = within(5, ends.client_incoming.next()).await else {
        panic!("no offer");
    };
    let mut wrong = offer.accept();
    assert_eq!(wrong.read_chunk().await.unwrap_err(), internal);
    drop(wrong);
    assert_eq!(within(5, opened.recv()).await.unwrap_err(), internal);

    let accept = async {
        match ends.client_incoming.next().await {
            Some(Event::Open(offer)) => offer.accept_flow(),
            other => panic!("{other:?}"),
        }
    };
    let (opened, wrong) = within(5, async {
        tokio::join!(ends.node.open(Bytes::new()), accept)
    })
    .await;
    assert!(opened.is_err());
    assert_eq!(wrong.send(Bytes::new()).unwrap_err(), internal);
}

#[tokio::test]
async fn sending_never_waits_and_never_holds_streams_up() {
    let mut ends = tcp(Config::default()).await;
    let (a, b) = flow(&mut ends).await;
    let (mut stream, mut reader) = ends.stream().await;
    // Far more than every queue takes, at once; and nobody receives.
    for _ in 0..20_000 {
        a.send(Bytes::from_static(&[5; 1200])).unwrap();
    }
    let sent = pattern(1, 4 << 20);
    let (wrote, got) = tokio::join!(
        async {
            stream.write_all(&sent).await.unwrap();
            stream.finish().unwrap();
        },
        async {
            let mut got = Vec::new();
            while let Some(chunk) = within(10, reader.read_chunk()).await.unwrap() {
                got.extend_from_slice(&chunk);
            }
            got
        }
    );
    let () = wrote;
    assert!(got == sent);
    assert!(dropped(&ends) > 19_000, "{}", dropped(&ends));
    // What is received is the youngest, and bounded.
    let mut got = Vec::new();
    let many = poll_fn(|cx| b.poll_recv_many(cx, &mut got, usize::MAX));
    assert!(within(5, many).await.unwrap() <= 64);
}

#[tokio::test]
async fn a_flow_may_be_used_by_two_tasks_at_a_time() {
    let mut ends = tcp(Config::default()).await;
    let (a, b) = flow(&mut ends).await;
    let (a, b) = (Arc::new(a), Arc::new(b));
    let echo = tokio::spawn({
        let b = Arc::clone(&b);
        async move {
            while let Ok(datagram) = b.recv().await {
                b.send(datagram).unwrap();
            }
        }
    });
    let sender = tokio::spawn({
        let a = Arc::clone(&a);
        async move {
            for i in 0..2000_u32 {
                a.send(Bytes::from(i.to_be_bytes().to_vec())).unwrap();
                if i % 16 == 0 {
                    sleep(Duration::from_millis(1)).await;
                }
            }
            a.send(Bytes::from_static(b"the end")).unwrap();
        }
    });
    let mut next = 0;
    loop {
        let datagram = within(10, a.recv()).await.unwrap();
        let Ok(number) = <[u8; 4]>::try_from(&datagram[..]) else {
            break;
        };
        let number = u32::from_be_bytes(number);
        assert!(number >= next, "{number} after {next}");
        next = number + 1;
    }
    assert!(next > 1000, "{next}");
    sender.await.unwrap();
    a.reset(code::CANCEL);
    within(5, echo).await.unwrap();
}

fn resumable() -> Ends {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let (a, b) = (transport::Stream::bare(a), transport::Stream::bare(b));
    let config = Config {
        resume_time: Duration::from_secs(30),
        ..Config::default()
    };
    Ends::over(a, b, config)
}

fn attach(ends: &Ends) {
    let (a, b) = tokio::io::duplex(64 * 1024);
    for (tunnel, io) in [(&ends.node, a), (&ends.client, b)] {
        let io = transport::Stream::bare(io);
        tunnel.attach_with(Box::new(io)).unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn no_datagram_is_stale_after_a_resumption() {
    let mut ends = resumable();
    let (a, b) = flow(&mut ends).await;
    a.send(Bytes::from_static(b"before")).unwrap();
    assert_eq!(within(5, b.recv()).await.unwrap(), "before");
    for round in 0..3_u8 {
        // One end of a connection that goes nowhere.
        let (io, gone) = tokio::io::duplex(64 * 1024);
        ends.node
            .attach_with(Box::new(transport::Stream::bare(io)))
            .unwrap();
        drop(gone);
        eventually("the tunnel is detached", || {
            ends.node.is_detached() && ends.client.is_detached()
        })
        .await;
        for _ in 0..10 {
            a.send(Bytes::from_static(b"stale")).unwrap();
        }
        sleep(Duration::from_secs(3)).await;
        attach(&ends);
        a.send(Bytes::from(vec![round])).unwrap();
        assert_eq!(within(5, b.recv()).await.unwrap(), vec![round]);
    }
    // And the other way.
    b.send(Bytes::from_static(b"still there")).unwrap();
    assert_eq!(within(5, a.recv()).await.unwrap(), "still there");
}

#[tokio::test]
async fn no_datagram_comes_twice_however_often_the_connection_changes() {
    let mut ends = resumable();
    let (a, b) = flow(&mut ends).await;
    let receiver = tokio::spawn(async move {
        let (mut next, mut count) = (0, 0_u32);
        while let Ok(datagram) = b.recv().await {
            let number = u32::from_be_bytes(datagram[..].try_into().unwrap());
            assert!(number >= next, "{number} after {next}");
            next = number + 1;
            count += 1;
        }
        count
    });
    for i in 0..5000_u32 {
        a.send(Bytes::from(i.to_be_bytes().to_vec())).unwrap();
        if i % 50 == 0 {
            attach(&ends);
        }
        if i % 10 == 0 {
            tokio::task::yield_now().await;
        }
    }
    eventually("most of them arrived", || {
        ends.client.stats().datagrams_received > 500
    })
    .await;
    a.reset(code::CANCEL);
    let count = within(5, receiver).await.unwrap();
    assert!(count > 100, "{count}");
}
