//! Compressed destinations through the whole product: the same bytes, fewer of them in the tunnel, and the
//! same ends, also when the tunnel's connection is cut in between.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::{Echo, Manual};
use sg_tests::counterpart::postgres::Postgres;
use sg_tests::link::{Direction, End, Link};
use sg_tests::{Client, ClientSetup, Destination, PATIENCE, Site, eventually, prepare, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A client that reaches its node through a link, so that what travels can be measured and cut.
async fn linked() -> Result<(Site, sg_tests::Gateway, Client, Link)> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let link = Link::start(site.tunnel_address(0)).await?;
    let setup = ClientSetup {
        nodes: vec![link.address()],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    Ok((site, gateway, client, link))
}

/// Text as programs send it: repeating, and not the same twice.
fn text(length: usize) -> Vec<u8> {
    let mut text = Vec::with_capacity(length + 100);
    let mut line = 0_u64;
    while text.len() < length {
        line += 1;
        let value = line.wrapping_mul(0x9e37_79b9) % 100_000;
        text.extend_from_slice(format!("{line};machine-{};value={value}\n", line % 17).as_bytes());
    }
    text.truncate(length);
    text
}

/// Sends to an echo and checks what comes back; `middle` is called when a part of it has.
async fn echo(stream: &mut TcpStream, sent: &[u8], middle: impl FnOnce()) -> Result<()> {
    let (mut from, mut to) = stream.split();
    let send = async {
        to.write_all(sent).await.context("writing")?;
        to.shutdown().await.context("shutdown")
    };
    let read = async {
        let mut received = vec![0; sent.len() / 4];
        from.read_exact(&mut received).await.context("reading")?;
        middle();
        from.read_to_end(&mut received)
            .await
            .context("reading on")?;
        ensure!(
            received == sent,
            "what came back differs from what was sent"
        );
        Ok(())
    };
    tokio::try_join!(send, read).map(drop)
}

async fn compressed_echo(codec: &str, cut: bool) -> Result<()> {
    const LENGTH: usize = 4 * 1024 * 1024;
    let (mut site, gateway, client, link) = linked().await?;
    let server = Echo::start().await?;
    let echoes: Destination = site
        .destination(
            &gateway,
            "echo",
            &server.address(),
            &["--compression", codec],
        )
        .await?;
    let before = link.delivered(Direction::Up) + link.delivered(Direction::Down);
    let mut stream = echoes.connect().await?;
    let sent = text(LENGTH);
    let work = echo(&mut stream, &sent, || {
        if cut {
            link.cut(End::Reset);
        }
    });
    within(Duration::from_secs(60), "the echo", work).await??;
    let travelled = link.delivered(Direction::Up) + link.delivered(Direction::Down) - before;
    let plain = 2 * LENGTH as u64;
    if !cut {
        ensure!(
            travelled * 2 < plain,
            "{travelled} bytes travelled for {plain}"
        );
    }
    // What is counted is what the user sent and got.
    let node = site.node();
    for direction in ["to_resource", "to_user"] {
        eventually(PATIENCE, "all bytes are counted", async || {
            let metrics = node.metrics().await?;
            let counted = metrics.sum("sg_bytes_total", &[("direction", direction)]);
            ensure!((counted - LENGTH as f64).abs() < 0.5, "{counted}");
            Ok(())
        })
        .await?;
    }
    drop(client);
    site.finish()
}

#[tokio::test]
async fn zstd_carries_the_same_bytes_in_fewer() -> Result<()> {
    compressed_echo("zstd", false).await
}

#[tokio::test]
async fn lz4_carries_the_same_bytes_in_fewer() -> Result<()> {
    compressed_echo("lz4", false).await
}

#[tokio::test]
async fn a_compressed_stream_outlives_its_connection() -> Result<()> {
    compressed_echo("zstd", true).await
}

#[tokio::test]
async fn a_reset_of_the_user_is_seen_at_the_resource() -> Result<()> {
    let (site, gateway, client, _link) = linked().await?;
    let resource = Manual::start()?;
    let destination = site
        .destination(
            &gateway,
            "app",
            &resource.address()?,
            &["--compression", "zstd"],
        )
        .await?;
    let mut user = destination.connect().await?;
    user.write_all(&text(10_000)).await?;
    let (mut server, _) = resource.accept().await?;
    let mut received = vec![0; 10_000];
    within(PATIENCE, "the bytes", server.read_exact(&mut received)).await??;
    ensure!(received == text(10_000));
    user.set_zero_linger()?;
    drop(user);
    let end = within(PATIENCE, "the end", server.read(&mut [0; 1])).await?;
    ensure!(end.is_err(), "a reset looks like an end");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn psql_copies_through_a_compressed_destination() -> Result<()> {
    let (mut site, gateway, client, link) = linked().await?;
    let postgres = Postgres::start(site.ports().server()).await?;
    let database = site
        .destination(
            &gateway,
            "db",
            &postgres.address(),
            &["--compression", "zstd"],
        )
        .await?;
    let port = database.port;
    let file = postgres.file("rows.csv");
    let rows = "select i, 'row ' || i, i % 97 from generate_series(1, 200000) i";
    let before = link.delivered(Direction::Up);
    postgres
        .psql(
            port,
            &format!(r"\copy ({rows}) to '{}' csv", file.display()),
        )
        .await?;
    let length = std::fs::metadata(&file)?.len();
    let travelled = link.delivered(Direction::Up) - before;
    ensure!(length > 3_000_000, "the file has {length} bytes");
    ensure!(
        travelled * 2 < length,
        "{travelled} bytes travelled for {length}"
    );
    postgres
        .psql(port, "create table rows (i int, t text, m int)")
        .await?;
    postgres
        .psql(port, &format!(r"\copy rows from '{}' csv", file.display()))
        .await?;
    let same = format!("select count(*) from (select * from rows except {rows}) x");
    ensure!(postgres.psql(port, &same).await? == "0");
    let count = postgres.psql(port, "select count(*) from rows").await?;
    ensure!(count == "200000", "{count} rows");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn compression_is_refused_where_it_does_harm_or_no_good() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    site.gateway("dev").await?;
    let create = ["destination", "create", "dev/x", "--resource", "h:1"];
    for (protocol, why) in [("https", "secret"), ("udp", "datagrams")] {
        let mut arguments = create.to_vec();
        arguments.extend(["--protocol", protocol, "--compression", "lz4"]);
        let refused = site.sgctl.run(&arguments).await;
        let text = format!("{:?}", refused.err().context("it was accepted")?);
        ensure!(text.contains(why), "{text}");
    }
    site.finish()
}
