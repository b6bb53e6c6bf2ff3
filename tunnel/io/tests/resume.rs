//! A tunnel outlives its connections: cut after every byte, taken over, silent, expired, given up.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod pair;

use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use pair::cut::{Cut, How};
use pair::{Ends, eventually, pattern, tcp_pair, within};
use sg_tunnel_io::{
    CloseReason, Config, Event, Incoming, OpenError, StreamError, Tunnel, TunnelStream, code,
    transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

const RESUME: Duration = Duration::from_secs(30);

fn config() -> Config {
    Config {
        resume_time: RESUME,
        ..Config::default()
    }
}

/// A resumable tunnel over a pipe in memory of which the node's end is cut.
fn pair_cut(left: usize, how: How) -> Ends {
    let (a, b) = tokio::io::duplex(64 * 1024);
    Ends::over(
        Cut::after(a, left, how),
        transport::Stream::bare(b),
        config(),
    )
}

fn resumable() -> Ends {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let (a, b) = (transport::Stream::bare(a), transport::Stream::bare(b));
    Ends::over(a, b, config())
}

/// Brings a new connection to both ends at once, of which the node's is cut again.
fn attach_cut(ends: &Ends, left: usize, how: How) {
    let (a, b) = tokio::io::duplex(64 * 1024);
    ends.node
        .attach_with(Box::new(Cut::after(a, left, how)))
        .unwrap();
    ends.client
        .attach_with(Box::new(transport::Stream::bare(b)))
        .unwrap();
}

fn attach(ends: &Ends) {
    attach_cut(ends, usize::MAX, How::Error);
}

/// Cuts the connection of both ends and waits until both know.
async fn detach(ends: &Ends) {
    let (a, b) = tokio::io::duplex(1);
    let (a, b) = (Cut::after(a, 0, How::Error), Cut::after(b, 0, How::Error));
    ends.node.attach_with(Box::new(a)).unwrap();
    ends.client.attach_with(Box::new(b)).unwrap();
    eventually("both are detached", || {
        ends.node.is_detached() && ends.client.is_detached()
    })
    .await;
}

/// One short life: a stream is opened, bytes go both ways, both finish; then a second one is reset.
async fn conversation(node: Tunnel, incoming: &mut Incoming) -> Result<(), StreamError> {
    let ask = async {
        let mut stream = loop {
            match node.open(Bytes::from_static(b"for whom")).await {
                Ok(stream) => break stream,
                // Nothing was sent: tried again, as the owner of several tunnels would.
                Err(OpenError::Detached | OpenError::Limit)
                | Err(OpenError::Reset {
                    code: code::REFUSED_RETRY,
                }) => sleep(Duration::from_millis(1)).await,
                Err(error) => panic!("{error}"),
            }
        };
        assert_eq!(stream.answer(), "by whom");
        stream.write_chunk(pattern(1, 200).into()).await?;
        stream.finish()?;
        let mut got = Vec::new();
        while let Some(chunk) = stream.read_chunk().await? {
            got.extend_from_slice(&chunk);
        }
        assert_eq!(got, pattern(2, 300));
        Ok(())
    };
    let answer = async {
        let mut stream = loop {
            match incoming.next().await {
                Some(Event::Open(stream)) => {
                    assert_eq!(stream.metadata(), "for whom");
                    break stream.accept_with(Bytes::from_static(b"by whom"));
                }
                Some(Event::Detached | Event::Resumed) => {}
                other => panic!("{other:?}"),
            }
        };
        let mut got = Vec::new();
        while let Some(chunk) = stream.read_chunk().await? {
            got.extend_from_slice(&chunk);
        }
        assert_eq!(got, pattern(1, 200));
        stream.write_chunk(pattern(2, 300).into()).await?;
        stream.finish()?;
        // Held until the other side has read everything.
        while node.active_streams() > 0 {
            sleep(Duration::from_millis(1)).await;
        }
        Ok(())
    };
    let (asked, answered) = tokio::join!(ask, answer);
    asked.and(answered)
}

/// Plays the conversation while each connection is cut after the next number of bytes.
async fn survive(cuts: &[usize], how: How) -> usize {
    let mut cuts = cuts.iter().copied();
    let (a, b) = tokio::io::duplex(64 * 1024);
    let first = Cut::after(a, cuts.next().unwrap_or(usize::MAX), how);
    let (mut dead, mut carried) = (first.is_dead(), first.carried());
    let mut ends = Ends::over(first, transport::Stream::bare(b), config());
    let node = ends.node.clone();
    let conversation = conversation(node, &mut ends.client_incoming);
    tokio::pin!(conversation);
    loop {
        let cut = async {
            while !dead.load(Ordering::Relaxed) {
                // Paused time only moves when everybody sleeps.
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            biased;
            result = &mut conversation => {
                result.unwrap();
                return carried.load(Ordering::Relaxed);
            }
            () = cut => {}
        }
        let (a, b) = tokio::io::duplex(64 * 1024);
        let next = Cut::after(a, cuts.next().unwrap_or(usize::MAX), how);
        (dead, carried) = (next.is_dead(), next.carried());
        ends.node.attach_with(Box::new(next)).unwrap();
        ends.client
            .attach_with(Box::new(transport::Stream::bare(b)))
            .unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversation_survives_a_cut_after_every_byte() {
    let whole = within(60, survive(&[], How::Error)).await;
    assert!(whole > 700, "{whole}");
    for how in [How::Error, How::Vanish, How::Silence] {
        for at in 1..whole {
            within(60, survive(&[at], how)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_conversation_survives_cuts_in_the_middle_of_its_recovery() {
    let whole = within(60, survive(&[], How::Error)).await;
    for first in (1..whole).step_by(7) {
        for second in (1..60).chain((60..whole).step_by(31)) {
            let cuts = [first, second, second / 2 + 1, second];
            within(60, survive(&cuts, How::Error)).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_way_to_lose_a_connection_detaches_both_ends() {
    for how in [How::Error, How::Vanish, How::Silence] {
        let mut ends = pair_cut(2000, how);
        let (mut a, mut b) = ends.stream().await;
        let begin = Instant::now();
        a.write_chunk(pattern(1, 10_000).into()).await.unwrap();
        for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
            let event = within(20, incoming.next()).await;
            assert!(matches!(event, Some(Event::Detached)), "{how:?} {event:?}");
        }
        // What nobody tells is noticed by silence.
        let most = if how == How::Error { 0 } else { 9 };
        assert!(begin.elapsed().as_secs() <= most, "{how:?}");
        assert!(ends.node.is_detached() && ends.client.is_detached());
        assert!(!ends.node.is_closed() && !ends.client.is_closed());
        attach(&ends);
        for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
            let event = within(5, incoming.next()).await;
            assert!(matches!(event, Some(Event::Resumed)), "{how:?} {event:?}");
        }
        let mut got = vec![0; 10_000];
        within(5, b.read_exact(&mut got)).await.unwrap();
        assert_eq!(got, pattern(1, 10_000));
        assert_eq!(ends.node.stats().resumes, 1);
    }
}

#[tokio::test]
async fn an_orderly_end_and_a_drain_are_no_loss() {
    // close_notify: the peer does not want to come back.
    let (a, b) = tokio::io::duplex(64 * 1024);
    let (a, b) = (transport::Stream::new(a), transport::Stream::bare(b));
    let ends = Ends::over(a, b, config());
    eventually("both are there", || ends.node.rtt().is_some()).await;
    ends.client_driver.abort();
    let closed = within(5, ends.node_driver).await.unwrap();
    assert_eq!(closed.word(), "lost");

    // After GOAWAY nobody keeps anything.
    let ends = resumable();
    eventually("both are there", || ends.client.rtt().is_some()).await;
    ends.node.goaway();
    eventually("the drain is known", || ends.client.is_draining()).await;
    ends.client_driver.abort();
    assert_eq!(within(5, ends.node_driver).await.unwrap().word(), "lost");
    let (a, _b) = tokio::io::duplex(1);
    assert!(ends.node.attach(a).is_err());
}

#[tokio::test]
async fn a_goaway_is_seen_although_writing_fails_first() {
    struct FailsToWrite {
        io: transport::Stream<tokio::io::DuplexStream>,
        broken: std::sync::Arc<AtomicBool>,
        noticed: bool,
    }
    impl sg_tunnel_io::Transport for FailsToWrite {
        fn poll_read(
            &mut self,
            cx: &mut std::task::Context<'_>,
            pieces: &mut std::collections::VecDeque<bytes::BytesMut>,
        ) -> std::task::Poll<std::io::Result<usize>> {
            if self.broken.load(Ordering::Relaxed) && !self.noticed {
                return std::task::Poll::Pending;
            }
            self.io.poll_read(cx, pieces)
        }
        fn poll_write(
            &mut self,
            cx: &mut std::task::Context<'_>,
            slices: &[std::io::IoSlice<'_>],
        ) -> std::task::Poll<std::io::Result<usize>> {
            if self.broken.load(Ordering::Relaxed) {
                self.noticed = true;
                return std::task::Poll::Ready(Err(std::io::ErrorKind::BrokenPipe.into()));
            }
            self.io.poll_write(cx, slices)
        }
        fn poll_flush(
            &mut self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            self.io.poll_flush(cx)
        }
        fn poll_shutdown(
            &mut self,
            cx: &mut std::task::Context<'_>,
        ) -> std::task::Poll<std::io::Result<()>> {
            self.io.poll_shutdown(cx)
        }
        fn release(&mut self) {
            self.io.release();
        }
    }
    let (a, b) = tokio::io::duplex(64 * 1024);
    let broken = std::sync::Arc::new(AtomicBool::new(false));
    let a = FailsToWrite {
        io: transport::Stream::bare(a),
        broken: std::sync::Arc::clone(&broken),
        noticed: false,
    };
    let ends = Ends::over(a, transport::Stream::bare(b), config());
    eventually("both are there", || {
        ends.node.rtt().is_some() && ends.client.rtt().is_some()
    })
    .await;
    broken.store(true, Ordering::Relaxed);
    ends.client.close(code::close::REPLACED, "");
    within(5, ends.client_driver).await.unwrap();
    ends.node.send_control(Bytes::from_static(b"x")).unwrap();
    let closed = within(5, ends.node_driver).await.unwrap();
    let reason = CloseReason::Peer {
        code: code::close::REPLACED,
        message: "".into(),
    };
    assert_eq!(closed.reason, reason);
}

#[tokio::test]
async fn a_new_connection_takes_over_from_one_that_is_believed_alive() {
    let mut ends = resumable();
    let (mut a, mut b) = ends.stream().await;
    let sent = pattern(5, 3 << 20);
    let receive = tokio::spawn(async move {
        let mut got = Vec::new();
        b.read_to_end(&mut got).await.unwrap();
        // Held until the other side has let go.
        (got, b)
    });
    for piece in sent.chunks(100_000) {
        a.write_all(piece).await.unwrap();
        // In the middle of whatever goes on; the first end that hears closes the old connection.
        attach(&ends);
    }
    a.shutdown().await.unwrap();
    let (got, _b) = within(20, receive).await.unwrap();
    assert!(got == sent);
    assert!(ends.node.stats().resumes > 30);
    // The owner was told of the present state only.
    for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
        let event = within(5, incoming.next()).await;
        assert!(matches!(event, Some(Event::Resumed)), "{event:?}");
        let none = tokio::time::timeout(Duration::from_millis(20), incoming.next()).await;
        assert!(none.is_err(), "{none:?}");
    }
}

#[tokio::test]
async fn a_connection_that_is_lost_before_the_owner_has_looked_is_a_loss_of_its_own() {
    let mut ends = resumable();
    detach(&ends).await;
    for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
        let event = within(5, incoming.next()).await;
        assert!(matches!(event, Some(Event::Detached)), "{event:?}");
    }
    // The next connection comes and goes while nobody looks.
    detach(&ends).await;
    for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
        let event = within(5, incoming.next()).await;
        assert!(matches!(event, Some(Event::Detached)), "{event:?}");
    }
}

#[tokio::test]
async fn the_old_connection_is_closed_at_once() {
    let ends = resumable();
    let (a, mut old_peer) = tokio::io::duplex(64 * 1024);
    ends.node
        .attach_with(Box::new(transport::Stream::bare(a)))
        .unwrap();
    let (b, _new_peer) = tokio::io::duplex(64 * 1024);
    ends.node
        .attach_with(Box::new(transport::Stream::bare(b)))
        .unwrap();
    let mut rest = Vec::new();
    within(5, old_peer.read_to_end(&mut rest)).await.unwrap();
    assert!(!ends.node.is_detached());
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_does_not_come_back_expires_with_all_its_streams() {
    let mut ends = resumable();
    let (mut a, mut b) = ends.stream().await;
    detach(&ends).await;
    let begin = Instant::now();
    let opening = ends.node.open(Bytes::new()).await.unwrap_err();
    assert_eq!(opening, OpenError::Detached);
    assert!(opening.retry_elsewhere());
    assert_eq!(opening.code(), code::TUNNEL_LOST);
    for driver in [ends.node_driver, ends.client_driver] {
        let closed = within(60, driver).await.unwrap();
        assert_eq!(closed.reason, CloseReason::Expired);
        let late = begin.elapsed().saturating_sub(RESUME);
        assert!(late < Duration::from_millis(50), "{late:?}");
    }
    for stream in [&mut a, &mut b] {
        let error = stream.read_chunk().await.unwrap_err();
        let StreamError::Lost(closed) = &error else {
            panic!("{error}");
        };
        assert_eq!(closed.reason, CloseReason::Expired);
        assert_eq!(error.code(), code::TUNNEL_LOST);
    }
    for incoming in [&mut ends.node_incoming, &mut ends.client_incoming] {
        assert!(within(5, incoming.next()).await.is_none());
    }
    let (io, mut peer) = tokio::io::duplex(1);
    assert!(ends.node.attach(io).is_err());
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_may_come_back_again_and_again_in_the_last_moment() {
    let mut ends = resumable();
    let (mut a, mut b) = ends.stream().await;
    for round in 0..5 {
        detach(&ends).await;
        sleep(RESUME - Duration::from_millis(200)).await;
        attach(&ends);
        let sent = pattern(round, 70_000);
        let (wrote, got) = tokio::join!(a.write_all(&sent), async {
            let mut got = vec![0; sent.len()];
            within(5, b.read_exact(&mut got)).await.unwrap();
            got
        });
        wrote.unwrap();
        assert!(got == sent, "{round}");
        sleep(Duration::from_secs(100)).await;
    }
    assert!(!ends.node.is_closed() && !ends.client.is_closed());
}

#[tokio::test]
async fn a_peer_that_forgot_the_tunnel_ends_it_at_once() {
    let mut ends = resumable();
    let (mut a, _b) = ends.stream().await;
    detach(&ends).await;
    ends.node.abandon();
    let closed = within(5, ends.node_driver).await.unwrap();
    assert_eq!(closed.reason, CloseReason::Abandoned);
    assert_eq!(a.read_chunk().await.unwrap_err(), StreamError::Lost(closed));
    // Also while it is attached: nothing is said.
    abandoned_on_a_new_connection(&ends.client).await;
}

/// Gives up a tunnel that has just got a connection, of which the test holds the other end.
async fn abandoned_on_a_new_connection(client: &Tunnel) {
    let (a, mut peer) = tokio::io::duplex(64 * 1024);
    client
        .attach_with(Box::new(transport::Stream::bare(a)))
        .unwrap();
    // RESUME: kind 3, length 8.
    let mut resume = [0; 12];
    within(5, peer.read_exact(&mut resume)).await.unwrap();
    assert_eq!(resume[..4], [3, 0, 0, 8]);
    client.abandon();
    let closed = within(5, client.closed()).await;
    assert_eq!(closed.reason, CloseReason::Abandoned);
    let mut rest = Vec::new();
    within(5, peer.read_to_end(&mut rest)).await.unwrap();
}

#[tokio::test]
async fn closing_while_detached_ends_at_once() {
    let mut ends = resumable();
    let (mut a, _b) = ends.stream().await;
    detach(&ends).await;
    ends.node.close(code::close::REPLACED, "enough");
    let closed = within(1, ends.node_driver).await.unwrap();
    assert_eq!(
        closed.reason,
        CloseReason::Local {
            code: code::close::REPLACED
        }
    );
    assert_eq!(a.read_chunk().await.unwrap_err(), StreamError::Lost(closed));
}

#[tokio::test]
async fn a_driver_that_is_dropped_while_detached_ends_the_tunnel() {
    let mut ends = resumable();
    let (mut a, _b) = ends.stream().await;
    detach(&ends).await;
    ends.node_driver.abort();
    let closed = within(5, ends.node.closed()).await;
    assert_eq!(closed.word(), "lost");
    assert_eq!(
        within(5, a.read_chunk()).await.unwrap_err(),
        StreamError::Lost(closed)
    );
    assert!(!ends.node.is_detached());
    let (io, mut peer) = tokio::io::duplex(1);
    assert!(ends.node.attach(io).is_err());
    assert_eq!(peer.read(&mut [0]).await.unwrap(), 0);
}

#[tokio::test]
async fn what_is_written_while_detached_is_bounded_and_arrives() {
    let mut ends = resumable();
    let mut streams = Vec::new();
    for _ in 0..10 {
        streams.push(ends.stream().await);
    }
    detach(&ends).await;
    let mut queued = Vec::new();
    for (i, (a, _)) in streams.iter_mut().enumerate() {
        let sent = pattern(i, 1 << 20);
        let mut chunk = Bytes::from(sent);
        let mut count = 0;
        let full = async {
            loop {
                count += poll_fn(|cx| a.poll_write_chunk(cx, &mut chunk))
                    .await
                    .unwrap();
            }
        };
        let waited = tokio::time::timeout(Duration::from_millis(5), full).await;
        assert!(waited.is_err());
        assert!((1..=256 * 1024).contains(&count), "{count}");
        queued.push(count);
    }
    attach(&ends);
    for (i, (a, b)) in streams.iter_mut().enumerate() {
        a.finish().unwrap();
        let mut got = Vec::new();
        within(5, b.read_to_end(&mut got)).await.unwrap();
        assert!(got == pattern(i, 1 << 20)[..queued[i]]);
    }
}

#[tokio::test]
async fn resets_and_control_messages_wait_for_the_new_connection() {
    let mut ends = resumable();
    let (a, mut b) = ends.stream().await;
    detach(&ends).await;
    a.reset(code::PEER_RESET);
    ends.node
        .send_control(Bytes::from_static(b"while away"))
        .unwrap();
    attach(&ends);
    let error = within(5, b.read_chunk()).await.unwrap_err();
    assert_eq!(error.code(), code::PEER_RESET);
    drop(b);
    loop {
        match within(5, ends.client_incoming.next()).await {
            Some(Event::Control(message)) => break assert_eq!(message, "while away"),
            Some(Event::Detached | Event::Resumed) => {}
            other => panic!("{other:?}"),
        }
    }
    eventually("the stream is forgotten", || {
        ends.node.active_streams() + ends.client.active_streams() == 0
    })
    .await;
}

#[tokio::test]
async fn an_open_that_waits_for_its_answer_goes_on_and_one_that_was_not_sent_fails() {
    let mut ends = resumable();
    let node = ends.node.clone();
    let open = tokio::spawn(async move { node.open(Bytes::new()).await });
    let Some(Event::Open(offer)) = within(5, ends.client_incoming.next()).await else {
        panic!("no offer");
    };
    detach(&ends).await;
    let accepted = offer.accept();
    assert_eq!(
        ends.node.open(Bytes::new()).await.unwrap_err(),
        OpenError::Detached
    );
    attach(&ends);
    let mut opened = within(5, open).await.unwrap().unwrap();
    opened.write_all(b"hello").await.unwrap();
    let mut accepted = accepted;
    assert_eq!(
        within(5, accepted.read_chunk()).await.unwrap().unwrap(),
        "hello"
    );
}

/// How a TCP connection is broken.
#[derive(Clone, Copy, Debug)]
enum Break {
    Rst,
    Fin,
    Silence,
}

/// Echoes 24 MiB on eight streams while the connection breaks again and again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn over_tcp_no_byte_is_lost_or_wrong_by_resets_ends_and_silence() {
    let quick = Config {
        ping_active: Duration::from_millis(50),
        dead_active: Duration::from_millis(250),
        ..config()
    };
    let (a, b) = tcp_pair().await;
    let (a, b) = (transport::Stream::bare(a), transport::Stream::bare(b));
    let ends = Ends::over(a, b, quick);
    let echo = pair::echo(ends.client_incoming);
    let node = ends.node.clone();
    let mut streams = JoinSet::new();
    for i in 0..8 {
        let stream = within(5, node.open(Bytes::new())).await.unwrap();
        streams.spawn(echo_checked(stream, i, 3 << 20));
    }
    let breaks = [Break::Rst, Break::Fin, Break::Silence];
    let mut round = 0;
    while !streams.is_empty() {
        let (a, b) = tcp_pair().await;
        let left = 200_000 + round * 100_003 % 900_000;
        let how = breaks[round % breaks.len()];
        let a: Box<dyn sg_tunnel_io::Transport> = match how {
            Break::Rst => {
                socket2::SockRef::from(&a)
                    .set_linger(Some(Duration::ZERO))
                    .unwrap();
                Box::new(Cut::after(a, left, How::Vanish))
            }
            Break::Fin => Box::new(Cut::after(a, left, How::Vanish)),
            Break::Silence => Box::new(Cut::after(a, left, How::Silence)),
        };
        ends.node.attach_with(a).unwrap();
        ends.client
            .attach_with(Box::new(transport::Stream::bare(b)))
            .unwrap();
        round += 1;
        let lost = async {
            while !ends.node.is_detached() && !ends.client.is_detached() {
                sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::pin!(lost);
        loop {
            tokio::select! {
                () = &mut lost => break,
                done = within(60, streams.join_next()) => match done {
                    Some(done) => done.unwrap(),
                    None => break,
                },
            }
        }
    }
    assert!(round > 20, "{round}");
    assert!(!ends.node.is_closed() && !ends.client.is_closed());
    ends.node.close(code::close::NONE, "");
    within(10, ends.node.closed()).await;
    ends.client.abandon();
    within(5, echo).await.unwrap();
}

async fn echo_checked(stream: TunnelStream, seed: usize, size: usize) {
    let sent = pattern(seed, size);
    let (mut read, mut write) = tokio::io::split(stream);
    let send = async {
        write.write_all(&sent).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut got = Vec::new();
    let (_, read) = tokio::join!(send, read.read_to_end(&mut got));
    read.unwrap();
    assert!(got == sent, "stream {seed}");
}
