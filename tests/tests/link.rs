//! The link emulator itself: it does what it says, to the byte; times hold within what two busy cores allow.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::time::{Instant, timeout};

use sg_tests::link::{Cut, Direction, Door, End, Link, LinkSetup, Shape, UdpLink, UdpSetup, When};
use sg_tests::{PATIENCE, bytes, eventually, within};

/// A link, and both ends of one connection over it: near, far.
async fn connected(setup: impl FnOnce(LinkSetup) -> LinkSetup) -> (Link, TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let target = listener.local_addr().unwrap();
    let link = Link::with(setup(LinkSetup::to(target))).await.unwrap();
    let near = TcpStream::connect(link.address()).await.unwrap();
    let (far, _) = within(PATIENCE, "the target is connected to", listener.accept())
        .await
        .unwrap()
        .unwrap();
    (link, near, far)
}

/// What can be read before the end, and whether the end was in order.
async fn rest(stream: &mut TcpStream) -> (usize, bool) {
    let mut total = 0;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match within(PATIENCE, "an end comes", stream.read(&mut buffer))
            .await
            .unwrap()
        {
            Ok(0) => return (total, true),
            Ok(count) => total += count,
            Err(_) => return (total, false),
        }
    }
}

/// Tries three times, since others use the machine too.
async fn soon_enough(mut measure: impl AsyncFnMut() -> Result<()>) {
    let mut last = Ok(());
    for _ in 0..3 {
        last = measure().await;
        if last.is_ok() {
            return;
        }
    }
    last.unwrap();
}

#[tokio::test]
async fn bytes_go_through_unchanged_and_each_end_is_passed_on() {
    let (link, near, far) = connected(|setup| setup).await;
    let (near_read, mut near_write) = near.into_split();
    let (far_read, mut far_write) = far.into_split();
    let up = async {
        bytes::send(&mut near_write, 1, 1_000_000).await?;
        near_write.shutdown().await.map_err(anyhow::Error::from)
    };
    let down = bytes::send(&mut far_write, 2, 1_000_000);
    let at_far = async {
        let mut far_read = far_read;
        bytes::expect(&mut far_read, 1, 1_000_000).await?;
        ensure!(far_read.read(&mut [0; 1]).await? == 0, "no end");
        anyhow::Ok(())
    };
    let all = async { tokio::try_join!(up, down, at_far, bytes::expect(near_read, 2, 1_000_000)) };
    within(PATIENCE, "all bytes", all).await.unwrap().unwrap();
    assert_eq!(link.delivered(Direction::Up), 1_000_000);
    assert_eq!(link.delivered(Direction::Down), 1_000_000);
}

#[tokio::test]
async fn the_rate_holds_for_all_connections_together() {
    const EACH: usize = 500_000;
    let shape = Shape::line(20_000_000, Duration::from_millis(5));
    soon_enough(async || {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let link = Link::with(LinkSetup::to(listener.local_addr()?).shaped(shape)).await?;
        let start = Instant::now();
        let mut transfers = tokio::task::JoinSet::new();
        for seed in 0..2 {
            let near = TcpStream::connect(link.address()).await?;
            let (far, _) = listener.accept().await?;
            transfers.spawn(async move {
                let sent = bytes::send(near, seed, EACH);
                tokio::try_join!(sent, bytes::expect(far, seed, EACH)).map(drop)
            });
        }
        while let Some(result) = transfers.join_next().await {
            result??;
        }
        let ideal = (2 * EACH * 8) as f64 / 20e6;
        let share = start.elapsed().as_secs_f64() / ideal;
        ensure!((0.98..1.1).contains(&share), "{share} of the ideal time");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn the_delay_is_that_of_both_directions() {
    let shape = Shape::delayed(Duration::from_millis(30));
    let (_link, mut near, mut far) = connected(|setup| setup.shaped(shape)).await;
    soon_enough(async || {
        let start = Instant::now();
        near.write_all(b"x").await?;
        far.read_u8().await?;
        let once = start.elapsed();
        far.write_all(b"y").await?;
        near.read_u8().await?;
        let both = start.elapsed();
        ensure!(once >= Duration::from_millis(30), "{once:?}");
        ensure!(both >= Duration::from_millis(60), "{both:?}");
        ensure!(both < Duration::from_millis(66), "{both:?}");
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn jitter_delays_and_swaps_nothing() {
    let shape = Shape {
        jitter: Duration::from_millis(5),
        slice: Some(700),
        ..Shape::default()
    };
    let (_link, near, far) = connected(|setup| setup.shaped(shape)).await;
    let both = async {
        tokio::try_join!(
            bytes::send(near, 3, 200_000),
            bytes::expect(far, 3, 200_000)
        )
    };
    within(PATIENCE, "all bytes", both).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_cut_comes_after_exactly_so_many_bytes() {
    for how in [End::Reset, End::Fin, End::Silence] {
        for (direction, count) in [
            (Direction::Up, 0),
            (Direction::Up, 1),
            (Direction::Down, 70_001),
        ] {
            let cut = Cut {
                when: When::Bytes(direction, count),
                how,
            };
            let (link, near, far) = connected(|mut setup| {
                setup.cut_each = Some(cut);
                setup
            })
            .await;
            let (mut from, mut to) = match direction {
                Direction::Up => (near, far),
                Direction::Down => (far, near),
            };
            let sending = async {
                // The cut may come in the midst of it.
                drop(from.write_all(&vec![7; 200_000]).await);
                std::future::pending::<()>().await;
            };
            let receiving = async {
                match how {
                    End::Silence => {
                        let wanted = usize::try_from(count).unwrap();
                        to.read_exact(&mut vec![0; wanted]).await.unwrap();
                        let more = timeout(Duration::from_millis(50), to.read_u8()).await;
                        assert!(more.is_err(), "{cut:?}: {more:?}");
                    }
                    _ => {
                        let (total, in_order) = rest(&mut to).await;
                        assert_eq!(total as u64, count, "{cut:?}");
                        assert_eq!(in_order, how == End::Fin, "{cut:?}");
                    }
                }
            };
            tokio::select! {
                () = sending => {}
                () = receiving => {}
            }
            assert_eq!(link.delivered(direction), count, "{cut:?}");
        }
    }
}

#[tokio::test]
async fn both_sides_see_a_cut_and_the_next_connection_is_whole() {
    for (how, in_order) in [(End::Reset, false), (End::Fin, true)] {
        let (link, mut near, mut far) = connected(|setup| setup).await;
        bytes_pass(&mut near, &mut far).await;
        link.cut(how);
        assert_eq!(rest(&mut near).await, (0, in_order), "{how:?}");
        assert_eq!(rest(&mut far).await, (0, in_order), "{how:?}");
    }
}

async fn bytes_pass(near: &mut TcpStream, far: &mut TcpStream) {
    near.write_all(b"hello").await.unwrap();
    let mut seen = [0; 5];
    within(PATIENCE, "five bytes", far.read_exact(&mut seen))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&seen, b"hello");
}

#[tokio::test]
async fn cuts_are_given_to_connections_in_order() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let link = Link::start(listener.local_addr().unwrap()).await.unwrap();
    link.cut_next(Cut {
        when: When::After(Duration::ZERO),
        how: End::Reset,
    });
    let mut first = TcpStream::connect(link.address()).await.unwrap();
    assert_eq!(rest(&mut first).await, (0, false));
    link.door(Door::Shut(End::Fin));
    let mut refused = TcpStream::connect(link.address()).await.unwrap();
    assert_eq!(rest(&mut refused).await, (0, true));
    link.door(Door::Open);
    let mut near = TcpStream::connect(link.address()).await.unwrap();
    let mut far = far_of(&listener, &near).await;
    bytes_pass(&mut near, &mut far).await;
    assert_eq!(link.accepted_connections(), 3);
}

/// The connection that the target got for `near`: those of connections that were cut at once may
/// wait before it.
async fn far_of(listener: &TcpListener, near: &TcpStream) -> TcpStream {
    loop {
        let (far, _) = within(PATIENCE, "a connection", listener.accept())
            .await
            .unwrap()
            .unwrap();
        near.writable().await.unwrap();
        let mut byte = [0; 1];
        if !matches!(
            timeout(Duration::from_millis(20), far.peek(&mut byte)).await,
            Ok(Ok(0) | Err(_))
        ) {
            return far;
        }
    }
}

#[tokio::test]
async fn a_stalled_direction_goes_on_where_it_stopped_and_holds_little() {
    let shape = Shape::line(1_000_000_000, Duration::ZERO);
    let (link, near, mut far) = connected(|setup| setup.shaped(shape)).await;
    link.stall(Direction::Up);
    // The other direction does not stand still with it.
    let (mut near_read, mut near_write) = near.into_split();
    far.write_all(b"y").await.unwrap();
    let byte = within(PATIENCE, "a byte", near_read.read_u8()).await;
    assert_eq!(byte.unwrap().unwrap(), b'y');
    let sending = async { bytes::send(&mut near_write, 4, 8_000_000).await.unwrap() };
    let later = async {
        let early = timeout(Duration::from_millis(100), far.read_u8()).await;
        assert!(early.is_err(), "a byte came: {early:?}");
        assert_eq!(link.delivered(Direction::Up), 0);
        link.pass(Direction::Up);
        bytes::expect(&mut far, 4, 8_000_000).await.unwrap();
    };
    within(PATIENCE, "all bytes", async {
        tokio::join!(sending, later)
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn nothing_comes_out_of_a_black_hole_until_it_closes() {
    let (link, mut near, mut far) = connected(|setup| setup).await;
    link.black_hole();
    let mut late = TcpStream::connect(link.address()).await.unwrap();
    late.write_all(b"x").await.unwrap();
    near.write_all(b"hello").await.unwrap();
    let early = timeout(Duration::from_millis(50), far.read_u8()).await;
    assert!(early.is_err(), "a byte came: {early:?}");
    link.pass_all();
    bytes_pass(&mut near, &mut far).await;
}

#[tokio::test]
async fn one_byte_slices_all_arrive() {
    let shape = Shape {
        slice: Some(1),
        ..Shape::default()
    };
    let (link, near, far) = connected(|setup| setup.shaped(shape)).await;
    let both =
        async { tokio::try_join!(bytes::send(near, 5, 20_000), bytes::expect(far, 5, 20_000)) };
    within(PATIENCE, "all bytes", both).await.unwrap().unwrap();
    assert_eq!(link.delivered(Direction::Up), 20_000);
}

#[tokio::test]
async fn datagrams_are_lost_by_the_seed_and_none_in_quiet() {
    for (loss, expected) in [(0, 0..=0), (100_000, 4..=50)] {
        let target = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let setup = UdpSetup {
            loss,
            ..UdpSetup::to(target.local_addr().unwrap())
        };
        let link = UdpLink::start(setup).await.unwrap();
        let user = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let mut buffer = [0; 2000];
        let mut came = 0;
        // Few at a time, so that none is lost in the system's buffers.
        for sent in (0..200).step_by(50) {
            for _ in 0..50 {
                user.send_to(b"datagram", link.address()).await.unwrap();
            }
            eventually(PATIENCE, "each has come or is lost", async || {
                ensure!(link.lost() + link.delivered() == sent + 50);
                Ok(())
            })
            .await
            .unwrap();
            while target.try_recv(&mut buffer).is_ok() {
                came += 1;
            }
        }
        assert_eq!(came + link.lost(), 200);
        assert!(expected.contains(&link.lost()), "{} lost", link.lost());
    }
}
