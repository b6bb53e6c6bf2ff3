//! The bytes of a connection: all of them, in order, and each end of it passed on as what it is.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::{Echo, Manual};
use sg_tests::{Client, Destination, PATIENCE, Site, bytes, eventually, prepare, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

/// The longest until one end's reset or close is seen at the other.
const PASSED_ON: Duration = Duration::from_secs(1);

/// A site whose resource the test plays by hand.
async fn by_hand() -> Result<(Site, Client, Destination, Manual)> {
    prepare();
    let resource = Manual::start()?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address()?, &[])
        .await?;
    Ok((site, client, destination, resource))
}

#[tokio::test]
async fn a_thousand_connections_at_once_keep_every_byte() -> Result<()> {
    const CONNECTIONS: u64 = 1000;
    const LENGTH: usize = 64 * 1024;
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "echo", &resource.address(), &[])
        .await?;

    // Nobody sends bulk before all are connected through to the resource.
    let all_open = Arc::new(Barrier::new(usize::try_from(CONNECTIONS)?));
    let mut users = JoinSet::new();
    for seed in 0..CONNECTIONS {
        let (address, all_open) = (destination.address, Arc::clone(&all_open));
        users.spawn(async move {
            let mut stream = TcpStream::connect(address).await.context("connecting")?;
            bytes::echo(&mut stream, seed, 16)
                .await
                .context("first bytes")?;
            all_open.wait().await;
            bytes::echo(&mut stream, !seed, LENGTH).await?;
            stream.shutdown().await?;
            ensure!(stream.read(&mut [0; 1]).await? == 0, "bytes after the end");
            Ok(())
        });
    }
    let ended = within(
        Duration::from_secs(60),
        "1,000 connections",
        users.join_all(),
    )
    .await?;
    for result in ended {
        result?;
    }
    let node = site.node();
    let metrics = node.metrics().await?;
    let opened = metrics.sum("sg_streams_opened_total", &[("result", "ok")]);
    ensure!(
        (opened - 1000.0).abs() < 0.5,
        "{opened} streams were counted"
    );
    for direction in ["to_resource", "to_user"] {
        // Every byte is counted, but the counters are brought up to date at the streams' ends.
        eventually(PATIENCE, "all bytes are counted", async || {
            let metrics = node.metrics().await?;
            let counted = metrics.sum("sg_bytes_total", &[("direction", direction)]);
            let expected = 1000.0 * 65_552.0;
            ensure!(
                (counted - expected).abs() < 0.5,
                "{counted} bytes {direction}"
            );
            Ok(())
        })
        .await?;
    }
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_user_may_end_its_side_and_still_read() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    let mut user = destination.connect().await?;
    user.write_all(b"question").await?;
    user.shutdown().await?;
    let (mut server, _) = resource.accept().await?;
    let mut question = String::new();
    within(
        PATIENCE,
        "the resource reads to the end",
        server.read_to_string(&mut question),
    )
    .await??;
    ensure!(question == "question");
    // The other direction goes on after the end of the first.
    bytes::send(&mut server, 1, 300_000).await?;
    bytes::expect(&mut user, 1, 300_000).await?;
    drop(server);
    let rest = within(PASSED_ON, "the user sees the end", user.read(&mut [0; 1])).await??;
    ensure!(rest == 0);
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_resource_may_end_its_side_and_still_read() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    let mut user = destination.connect().await?;
    let (mut server, _) = resource.accept().await?;
    server.write_all(b"banner").await?;
    server.shutdown().await?;
    let mut banner = String::new();
    within(
        PATIENCE,
        "the user reads to the end",
        user.read_to_string(&mut banner),
    )
    .await??;
    ensure!(banner == "banner");
    bytes::send(&mut user, 2, 300_000).await?;
    bytes::expect(&mut server, 2, 300_000).await?;
    drop(user);
    let rest = within(
        PASSED_ON,
        "the resource sees the end",
        server.read(&mut [0; 1]),
    )
    .await??;
    ensure!(rest == 0);
    drop(client);
    site.finish()
}

/// `first` ends its side while everything that `second` has sent to it lies unread; both directions still come
/// to their end, whole.
async fn end_beside_unread(mut first: TcpStream, mut second: TcpStream, seed: u64) -> Result<()> {
    const UNREAD: usize = 400_000;
    const LAST: usize = 100_000;
    bytes::send(&mut second, seed, UNREAD).await?;
    bytes::send(&mut first, !seed, LAST).await?;
    first.shutdown().await?;
    bytes::expect(&mut second, !seed, LAST).await?;
    let end = within(PASSED_ON, "the end is seen", second.read(&mut [0; 1])).await??;
    ensure!(end == 0, "a byte after the end");
    // Nothing of what lay unread is lost, and the second end is an end too.
    second.shutdown().await?;
    bytes::expect(&mut first, seed, UNREAD).await?;
    let end = within(PASSED_ON, "the other end is seen", first.read(&mut [0; 1])).await??;
    ensure!(end == 0, "a byte after the other end");
    Ok(())
}

#[tokio::test]
async fn an_end_is_passed_on_although_the_same_side_has_not_read() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    let (user, server) = connected(&destination, &resource).await?;
    end_beside_unread(user, server, 7)
        .await
        .context("the user ends first")?;
    let (user, server) = connected(&destination, &resource).await?;
    end_beside_unread(server, user, 8)
        .await
        .context("the resource ends first")?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn closing_with_unread_bytes_is_a_reset_at_the_other_end() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    // A socket that is closed although bytes lie unread in it sends RST, not FIN.
    let (user, mut server) = connected(&destination, &resource).await?;
    bytes::send(&mut server, 9, 10_000).await?;
    within(PATIENCE, "the bytes arrive", user.peek(&mut [0; 1])).await??;
    drop(user);
    expect_reset(&mut server).await.context("at the resource")?;

    let (mut user, server) = connected(&destination, &resource).await?;
    bytes::send(&mut user, 10, 10_000).await?;
    within(PATIENCE, "the bytes arrive", server.peek(&mut [0; 1])).await??;
    drop(server);
    expect_reset(&mut user).await.context("at the user")?;
    drop(client);
    site.finish()
}

/// Waits for the reset at this end, while reading, and says how it came otherwise.
async fn expect_reset(stream: &mut TcpStream) -> Result<()> {
    let mut buffer = [0; 1024];
    let seen = within(PASSED_ON, "a reset is seen", async {
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return "an ordinary end".to_owned(),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => {
                    return "reset".to_owned();
                }
                Err(error) => return error.to_string(),
            }
        }
    })
    .await?;
    ensure!(
        seen == "reset",
        "the other end reset the connection; here it looked like {seen}"
    );
    Ok(())
}

/// Two connected ends that have exchanged a byte each way.
async fn connected(destination: &Destination, resource: &Manual) -> Result<(TcpStream, TcpStream)> {
    let mut user = destination.connect().await?;
    let (mut server, _) = resource.accept().await?;
    user.write_all(b"u").await?;
    ensure!(server.read_u8().await? == b'u');
    server.write_all(b"r").await?;
    ensure!(user.read_u8().await? == b'r');
    Ok((user, server))
}

#[tokio::test]
async fn a_reset_is_passed_on_as_a_reset_both_ways() -> Result<()> {
    let (mut site, client, destination, resource) = by_hand().await?;
    let (user, mut server) = connected(&destination, &resource).await?;
    user.set_zero_linger()?;
    drop(user);
    expect_reset(&mut server).await.context("at the resource")?;

    let (mut user, server) = connected(&destination, &resource).await?;
    server.set_zero_linger()?;
    drop(server);
    expect_reset(&mut user).await.context("at the user")?;

    let node = site.node();
    eventually(PATIENCE, "both streams are logged", async || {
        ensure!(node.access()?.len() == 2);
        Ok(())
    })
    .await?;
    for line in node.access()? {
        ensure!(line.field("reason").contains("reset"), "{line:?}");
    }
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_reset_is_passed_on_although_the_other_end_does_not_read() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    // The resource stops reading and the user fills every buffer in between.
    let (mut user, server) = connected(&destination, &resource).await?;
    let filling = async { bytes::send(&mut user, 3, 1 << 30).await };
    let filled = tokio::time::timeout(Duration::from_millis(500), filling).await;
    ensure!(filled.is_err(), "1 GiB cannot fit into buffers");
    server.set_zero_linger()?;
    drop(server);
    expect_reset(&mut user)
        .await
        .context("at the user, who has unsent bytes")?;

    // And the other way round.
    let (user, mut server) = connected(&destination, &resource).await?;
    let filling = async { bytes::send(&mut server, 4, 1 << 30).await };
    let filled = tokio::time::timeout(Duration::from_millis(500), filling).await;
    ensure!(filled.is_err(), "1 GiB cannot fit into buffers");
    user.set_zero_linger()?;
    drop(user);
    expect_reset(&mut server)
        .await
        .context("at the resource, which has unsent bytes")?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn one_end_that_does_not_read_slows_nobody_else() -> Result<()> {
    let (site, client, destination, resource) = by_hand().await?;
    let (mut stalled, held) = connected(&destination, &resource).await?;
    let filling = async { bytes::send(&mut stalled, 5, 1 << 30).await };
    ensure!(
        tokio::time::timeout(Duration::from_millis(500), filling)
            .await
            .is_err()
    );

    let (mut user, mut server) = connected(&destination, &resource).await?;
    let transfer = async {
        tokio::try_join!(
            bytes::send(&mut user, 6, 8_000_000),
            bytes::expect(&mut server, 6, 8_000_000)
        )
    };
    within(
        Duration::from_secs(10),
        "8 MB beside a stalled connection",
        transfer,
    )
    .await??;
    drop((held, client));
    site.finish()
}
