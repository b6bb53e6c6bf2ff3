//! Load that must not do harm: readers that stop, floods of single bytes, streams that stand still
//! beside others. Nothing here asserts a speed; figures are the business of `sg-bench`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::{Client, Daemon, Gateway, Site, bytes, eventually, prepare, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

/// For what takes a few seconds on an idle machine.
const LONG: Duration = Duration::from_secs(60);

const MIB: u64 = 1 << 20;

/// A resource that sends on every connection as long as anybody takes it, and never reads.
struct Flood {
    address: String,
    sent: Arc<AtomicU64>,
    _server: JoinSet<()>,
}

impl Flood {
    async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("bind")?;
        let address = listener.local_addr().context("address")?.to_string();
        let sent = Arc::new(AtomicU64::new(0));
        let mut server = JoinSet::new();
        let counted = Arc::clone(&sent);
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let counted = Arc::clone(&counted);
                connections.spawn(async move {
                    let block = vec![7; 64 * 1024];
                    while let Ok(count @ 1..) = stream.write(&block).await {
                        counted.fetch_add(count as u64, Ordering::Relaxed);
                    }
                });
            }
        });
        Ok(Self {
            address,
            sent,
            _server: server,
        })
    }

    /// Waits until nobody takes any more; answers the bytes that were taken in all.
    async fn stands_still(&self) -> Result<u64> {
        let mut last = 0;
        let mut since = Instant::now();
        eventually(LONG, "the resource can send no more", async || {
            let sent = self.sent.load(Ordering::Relaxed);
            if sent != last {
                (last, since) = (sent, Instant::now());
            }
            ensure!(
                sent > 0 && since.elapsed() > Duration::from_secs(1),
                "{sent}"
            );
            Ok(sent)
        })
        .await
    }
}

async fn installation() -> Result<(Site, Gateway, Client)> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    Ok((site, gateway, client))
}

/// Resident memory of a process in bytes.
fn resident(daemon: &Daemon) -> Result<u64> {
    let path = format!("/proc/{}/status", daemon.id());
    let status = std::fs::read_to_string(path).context("status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.context("VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse::<u64>().context("VmRSS")? * 1024)
}

#[tokio::test]
async fn two_hundred_stopped_readers_take_no_more_memory_than_they_were_promised() -> Result<()> {
    const READERS: usize = 200;
    // Some read much before they stop, until windows have grown as far as they may.
    const FAST: usize = 16;
    const READ_FIRST: usize = 24 * 1024 * 1024;
    // What may be added to each process: the growth budget of all streams (64 MiB), for each stream
    // the window that it is sure of (16 KiB, 3 MiB in all), their queues (16 MiB), the 128 receive buffers that
    // unread pieces may hold on to (32 MiB), and what the process keeps when it is freed (16 MiB).
    const BUDGET: u64 = (64 + 3 + 16 + 32 + 16) * MIB;
    let flood = Flood::start().await?;
    let echo = Echo::start().await?;
    let (mut site, gateway, client) = installation().await?;
    let stopped = site
        .destination(&gateway, "flood", &flood.address, &[])
        .await?;
    let running = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    let before = (resident(site.node())?, resident(&client.daemon)?);
    let mut users = Vec::new();
    for _ in 0..READERS {
        users.push(stopped.connect().await?);
    }
    let mut first = vec![0; READ_FIRST];
    for user in users.iter_mut().take(FAST) {
        let read = within(LONG, "24 MiB", user.read_exact(&mut first)).await?;
        read.context("reading fast")?;
    }
    let sent = flood.stands_still().await?;
    let after = (resident(site.node())?, resident(&client.daemon)?);
    for (process, before, after) in [("node", before.0, after.0), ("client", before.1, after.1)] {
        ensure!(
            after < before + BUDGET,
            "{process}: {} MiB before, {} MiB after {} MiB were sent",
            before / MIB,
            after / MIB,
            sent / MIB
        );
    }
    // It was put to the test: the node's windows have grown.
    let metrics = site.node().metrics().await?;
    let windows = metrics.sum("sg_tunnel_memory_bytes", &[("kind", "windows")]);
    ensure!(windows >= 16.0 * MIB as f64, "windows of {windows} bytes");
    // Others go on meanwhile.
    let mut user = running.connect().await?;
    let echoed = bytes::echo(&mut user, 1, 1_000_000);
    within(LONG, "an echo beside the stopped", echoed).await??;
    // And one that reads again gets more than was held for it.
    let mut reader = users.pop().context("a user")?;
    let mut rest = vec![0; 16 * 1024 * 1024];
    let read = within(LONG, "16 MiB", reader.read_exact(&mut rest)).await?;
    read.context("reading again")?;
    ensure!(rest.iter().all(|byte| *byte == 7), "a byte differs");
    drop((users, client));
    site.finish()
}

#[tokio::test]
async fn a_flood_of_single_bytes_arrives_whole_and_the_tunnel_lives() -> Result<()> {
    // Every 5 ms one byte on each of 100 streams: 20,000 writes a second.
    const STREAMS: u64 = 100;
    const WRITES: usize = 600;
    const EVERY: Duration = Duration::from_millis(5);
    let echo = Echo::start().await?;
    let (mut site, gateway, client) = installation().await?;
    let destination = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    let mut users = JoinSet::new();
    for seed in 0..STREAMS {
        users.spawn(drip(destination.address, seed, WRITES, EVERY));
    }
    let all = async {
        while let Some(result) = users.join_next().await {
            result??;
        }
        anyhow::Ok(())
    };
    within(LONG, "all bytes", all).await??;
    // The same tunnel as at the start: nobody had to make another.
    let opened = site.node().log()?.matches("\"tunnel open\"").count();
    ensure!(opened == 1, "{opened} tunnels");
    drop(client);
    site.finish()
}

/// Writes a sequence byte by byte, and compares what the echo sends back.
async fn drip(address: SocketAddr, seed: u64, writes: usize, every: Duration) -> Result<()> {
    let user = TcpStream::connect(address).await.context("connecting")?;
    user.set_nodelay(true)?;
    let (from, mut to) = user.into_split();
    let write = async {
        // Late ticks are made up for, so the number of writes does not depend on the machine.
        let mut ticks = interval(every);
        for byte in bytes::Sequence::new(seed).take(writes) {
            ticks.tick().await;
            to.write_all(&[byte]).await.context("writing")?;
        }
        to.shutdown().await.context("ending")
    };
    let read = async {
        let mut got = Vec::new();
        let mut from = from.take(writes as u64 + 1);
        from.read_to_end(&mut got).await.context("reading")?;
        ensure!(
            got == bytes::Sequence::new(seed).take(writes),
            "{} bytes came, or others",
            got.len()
        );
        Ok(())
    };
    tokio::try_join!(write, read).map(drop)
}

#[tokio::test]
async fn eight_that_stand_still_do_not_keep_eight_others_from_finishing() -> Result<()> {
    const EACH: usize = 4;
    let flood = Flood::start().await?;
    let echo = Echo::start().await?;
    let (site, gateway, client) = installation().await?;
    let floods = site
        .destination(&gateway, "flood", &flood.address, &[])
        .await?;
    let echoes = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    // Some users do not read, and some write to a resource that does not read.
    let mut still = Vec::new();
    let mut writers = JoinSet::new();
    for _ in 0..EACH {
        still.push(floods.connect().await?);
        let mut user = floods.connect().await?;
        writers.spawn(async move {
            let block = vec![1; 64 * 1024];
            while user.write_all(&block).await.is_ok() {}
        });
    }
    flood.stands_still().await?;
    let mut users = JoinSet::new();
    for seed in 0..8 {
        let address = echoes.address;
        users.spawn(async move {
            let mut user = TcpStream::connect(address).await.context("connecting")?;
            bytes::echo(&mut user, seed, 4_000_000).await
        });
    }
    for result in within(LONG, "the others finish", users.join_all()).await? {
        result?;
    }
    drop((still, writers, client));
    site.finish()
}
