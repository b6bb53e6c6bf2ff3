//! Links as they are: TLS, slow ones, and many threads that open, cancel and reset at will.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod pair;

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use pair::{Ends, echo, eventually, pattern, tcp_pair, within};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use sg_tunnel_io::{
    CloseReason, Config, Event, Side, StreamError, Transport, code, start, transport,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsStream;

/// An established TLS 1.3 connection over loopback TCP: the accepting and the connecting end.
async fn tls_pair() -> (TlsStream<TcpStream>, TlsStream<TcpStream>) {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let server = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(made.cert.der().clone()).unwrap();
    let client = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let (a, b) = tcp_pair().await;
    let name = ServerName::try_from("localhost").unwrap();
    let (accepted, connected) = tokio::join!(
        tokio_rustls::TlsAcceptor::from(Arc::new(server)).accept(a),
        tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, b),
    );
    (accepted.unwrap().into(), connected.unwrap().into())
}

async fn tls() -> Ends {
    let (a, b) = tls_pair().await;
    Ends::new(a, b, Config::default(), Config::default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn over_tls_every_byte_of_two_hundred_streams_comes_back() {
    let ends = tls().await;
    let echo = echo(ends.client_incoming);
    let mut tasks = JoinSet::new();
    for i in 0..200_usize {
        let node = ends.node.clone();
        tasks.spawn(async move {
            let sent = pattern(i, 1 + i * 2000);
            let mut stream = node.open(Bytes::new()).await.unwrap();
            let (mut read, mut write) = tokio::io::split(&mut stream);
            let send = async {
                for chunk in sent.chunks(1 + i * 301) {
                    write.write_all(chunk).await.unwrap();
                }
                write.shutdown().await.unwrap();
            };
            let mut got = Vec::new();
            let (_, n) = tokio::join!(send, read.read_to_end(&mut got));
            n.unwrap();
            assert!(got == sent, "stream {i}");
        });
    }
    within(30, async {
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
    })
    .await;
    ends.node.close(code::close::NONE, "all done");
    let there = within(5, ends.client_driver).await.unwrap();
    let CloseReason::Peer { message, .. } = there.reason else {
        panic!("{there}");
    };
    assert_eq!(&*message, "all done");
    within(5, ends.node_driver).await.unwrap();
    within(5, echo).await.unwrap();
}

#[tokio::test]
async fn tls_that_ends_with_or_without_close_notify_is_a_loss() {
    for notify in [true, false] {
        let (mut a, b) = tls_pair().await;
        let (tunnel, _incoming, driver) = start(b, Side::Client, Config::default());
        let driver = tokio::spawn(driver);
        // SETTINGS with room for a stream, so that the open waits for its answer.
        let hello = pair::logged(&[0x0a, 0, 0, 8, 0, 0, 0, 0, 0, 1, 0, 4, 0, 0, 0, 8]);
        a.write_all(&hello).await.unwrap();
        let open = tokio::spawn(async move { tunnel.open(Bytes::new()).await.map(drop) });
        // PING, SETTINGS and OPEN.
        let mut sent = [0; 4 + 16 + 4 + 32 + 12];
        a.read_exact(&mut sent).await.unwrap();
        if notify {
            a.shutdown().await.unwrap();
        } else {
            a.get_mut().0.shutdown().await.unwrap();
        }
        let closed = within(5, driver).await.unwrap();
        let CloseReason::Lost { kind, .. } = closed.reason else {
            panic!("{closed}");
        };
        assert_eq!(kind, io::ErrorKind::UnexpectedEof);
        assert!(
            within(5, open)
                .await
                .unwrap()
                .unwrap_err()
                .retry_elsewhere()
        );
    }
}

/// Carries bytes at a rate, with little buffering, until an end closes.
async fn throttle(a: DuplexStream, b: DuplexStream, bytes_per_second: u32) {
    let (a_read, a_write) = tokio::io::split(a);
    let (b_read, b_write) = tokio::io::split(b);
    let lane = |mut from: tokio::io::ReadHalf<DuplexStream>,
                mut to: tokio::io::WriteHalf<DuplexStream>| async move {
        let mut buffer = vec![0; 8192];
        loop {
            let count = from.read(&mut buffer).await.unwrap_or(0);
            if count == 0 || to.write_all(&buffer[..count]).await.is_err() {
                return;
            }
            let time = f64::from(u32::try_from(count).unwrap()) / f64::from(bytes_per_second);
            tokio::time::sleep(Duration::from_secs_f64(time)).await;
        }
    };
    tokio::join!(lane(a_read, b_write), lane(b_read, a_write));
}

#[tokio::test(start_paused = true)]
async fn on_a_slow_link_small_streams_stay_fast_beside_bulk() {
    // 4 MiB/s; 32 KiB fit between the writer and the bottleneck: 8 ms.
    let (node_io, left) = tokio::io::duplex(16 * 1024);
    let (client_io, right) = tokio::io::duplex(16 * 1024);
    let link = tokio::spawn(throttle(left, right, 4 << 20));
    let mut ends = Ends::new(node_io, client_io, Config::default(), Config::default());
    let mut bulk = JoinSet::new();
    for _ in 0..64 {
        let (mut a, mut b) = ends.stream().await;
        bulk.spawn(async move {
            while a
                .write_chunk(Bytes::from_static(&[0; 16_384]))
                .await
                .is_ok()
            {}
        });
        bulk.spawn(async move { while let Ok(Some(_)) = b.read_chunk().await {} });
    }
    let (mut a, mut b) = ends.stream().await;
    let answer = tokio::spawn(async move {
        while let Ok(Some(chunk)) = b.read_chunk().await {
            b.write_chunk(chunk).await.unwrap();
        }
    });
    let mut times = Vec::new();
    for _ in 0..200 {
        let start = tokio::time::Instant::now();
        a.write_chunk(Bytes::from_static(b"quick")).await.unwrap();
        within(60, a.read_chunk()).await.unwrap().unwrap();
        times.push(start.elapsed());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    times.sort_unstable();
    let (median, p99) = (times[100], times[198]);
    assert!(median < Duration::from_millis(40), "median {median:?}");
    assert!(p99 < Duration::from_millis(80), "p99 {p99:?}");
    let rate = ends.node.stats().sent_bytes;
    assert!(rate > 4 << 20, "bulk starves: {rate}");
    ends.node.close(code::close::NONE, "");
    a.reset(code::CANCEL);
    while bulk.join_next().await.is_some() {}
    answer.await.unwrap();
    link.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn opens_cancels_and_resets_from_many_threads_leave_nothing_behind() {
    let (a, b) = tcp_pair().await;
    let Ends {
        node,
        client,
        mut client_incoming,
        node_incoming,
        ..
    } = Ends::new(a, b, pair::may_give_up(), pair::may_give_up());
    let served = tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        let mut count = 0_u32;
        while let Some(event) = client_incoming.next().await {
            let Event::Open(mut offer) = event else {
                continue;
            };
            count += 1;
            match count % 5 {
                0 => offer.refuse(code::REFUSED),
                1 => drop(offer),
                2 => {
                    tasks.spawn(async move {
                        offer.cancelled().await;
                        drop(offer.accept());
                    });
                }
                _ => {
                    let mut stream = offer.accept();
                    tasks.spawn(async move {
                        while let Ok(Some(chunk)) = stream.read_chunk().await {
                            if stream.write_chunk(chunk).await.is_err() {
                                return;
                            }
                        }
                        let _finished: Result<(), StreamError> = stream.finish();
                    });
                }
            }
            while tasks.try_join_next().is_some() {}
        }
        while tasks.join_next().await.is_some() {}
    });
    let mut users = JoinSet::new();
    for user in 0..16_u32 {
        let node = node.clone();
        users.spawn(async move {
            for i in 0..300_u32 {
                let open = node.open(Bytes::from(vec![0; 50]));
                let patience = Duration::from_micros(u64::from((user * 300 + i) * 7919 % 3000));
                let Ok(Ok(mut stream)) = tokio::time::timeout(patience, open).await else {
                    continue;
                };
                // The stream may be reset at any moment; nothing here may hang or panic.
                let payload = Bytes::from(vec![1; (i as usize * 37) % 9000 + 1]);
                if stream.write_chunk(payload.clone()).await.is_err() {
                    continue;
                }
                match i % 4 {
                    0 => stream.reset(code::PEER_RESET),
                    1 => drop(stream),
                    2 => {
                        let _finished: Result<(), StreamError> = stream.finish();
                    }
                    _ => {
                        let _finished: Result<(), StreamError> = stream.finish();
                        let mut got = 0;
                        while let Ok(Some(chunk)) = stream.read_chunk().await {
                            got += chunk.len();
                        }
                        assert_eq!(got, payload.len());
                    }
                }
            }
        });
    }
    within(60, async {
        while let Some(done) = users.join_next().await {
            done.unwrap();
        }
    })
    .await;
    eventually("all streams are forgotten", || {
        node.active_streams() == 0 && client.active_streams() == 0
    })
    .await;
    assert!(!node.is_closed() && !client.is_closed());
    assert_eq!(node.stats().growth_used + client.stats().growth_used, 0);
    assert_eq!(node.stats().unread_bytes + client.stats().unread_bytes, 0);
    node.close(code::close::NONE, "");
    within(5, served).await.unwrap();
    drop(node_incoming);
}

#[tokio::test]
async fn a_transport_tells_an_orderly_end_from_a_bare_one() {
    for notify in [true, false] {
        let (mut a, b) = tls_pair().await;
        let mut transport = transport::Stream::new(b);
        a.write_all(b"last words").await.unwrap();
        if notify {
            a.shutdown().await.unwrap();
        }
        drop(a);
        let mut pieces = VecDeque::new();
        let end = loop {
            let read = poll_fn(|cx| transport.poll_read(cx, &mut pieces));
            match within(5, read).await {
                Ok(0) => break Ok(()),
                Ok(_) => {}
                Err(error) => break Err(error.kind()),
            }
        };
        let heard: BytesMut = pieces.into_iter().flatten().collect();
        assert_eq!(heard, "last words");
        let bare = Err(io::ErrorKind::UnexpectedEof);
        assert_eq!(end, if notify { Ok(()) } else { bare });
    }
    // A stream without goodbyes of its own never ends in order.
    let (a, b) = tcp_pair().await;
    drop(a);
    let mut transport = transport::Stream::bare(b);
    let mut pieces = VecDeque::new();
    let read = poll_fn(|cx| transport.poll_read(cx, &mut pieces));
    let end = within(5, read).await.unwrap_err();
    assert_eq!(end.kind(), io::ErrorKind::UnexpectedEof);
}

/// Counts how often its memory was asked back.
struct Counting {
    io: transport::Stream<DuplexStream>,
    released: Arc<AtomicU32>,
}

impl Transport for Counting {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        self.io.poll_read(cx, pieces)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.io.poll_write(cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.io.poll_shutdown(cx)
    }

    fn release(&mut self) {
        self.released.fetch_add(1, Ordering::Relaxed);
        self.io.release();
    }
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_keeps_buffers_while_it_is_used_and_not_before() {
    let (a, b) = tokio::io::duplex(64 * 1024);
    let released = [(); 2].map(|()| Arc::new(AtomicU32::new(0)));
    let counting = |io, end: usize| Counting {
        io: transport::Stream::new(io),
        released: Arc::clone(&released[end]),
    };
    let start = tokio::time::Instant::now();
    let (node_io, client_io) = (counting(a, 0), counting(b, 1));
    let mut ends = Ends::over(node_io, client_io, Config::default());
    let count = || [0, 1].map(|end: usize| released[end].load(Ordering::Relaxed));
    eventually("both ends have said what they are and rest", || {
        ends.node.rtt().is_some()
            && ends.client.rtt().is_some()
            && count().iter().all(|times| *times > 0)
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(1), "by their timers");

    let (mut opened, mut accepted) = ends.stream().await;
    let before = count();
    for _ in 0..10 {
        let word = Bytes::from_static(b"word");
        opened.write_chunk(word.clone()).await.unwrap();
        assert_eq!(accepted.read_chunk().await.unwrap(), Some(word));
    }
    drop((opened, accepted));
    eventually("the stream is forgotten", || {
        ends.node.active_streams() == 0 && ends.client.active_streams() == 0
    })
    .await;
    assert!(start.elapsed() < Duration::from_secs(1), "by their timers");
    assert_eq!(count(), before, "the next stream may come at once");
    tokio::time::sleep(Duration::from_secs(60)).await;
    let after = count();
    assert!(after[0] > before[0] && after[1] > before[1], "{after:?}");
}
