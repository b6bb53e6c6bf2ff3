//! A tunnel outlives its connection: the streams of users and resources go on when the client comes back, and end, at
//! both ends and with the reason, when it does not.
//!
//! `SG_RESUME_MIB` makes the long test longer: 1024 is what the product promises.

use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::backend::{Echo, Manual};
use sg_tests::link::{Door, End, Link, LinkSetup, Shape};
use sg_tests::{
    Client, ClientSetup, Daemon, Destination, Gateway, PATIENCE, Site, bytes, eventually, prepare,
    within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What node and client may hold beyond what they held when idle, each: both logs at their limit, and the windows of all
/// streams.
const MOST_GROWTH_KIB: u64 = 160 * 1024;

struct Running {
    site: Site,
    gateway: Gateway,
    link: Link,
    client: Client,
}

/// One client, whose only way to the node is the link.
async fn running(resume_time: &str, setup: impl FnOnce(LinkSetup) -> LinkSetup) -> Result<Running> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site
        .gateway_with("dev", &["--resume-time", resume_time])
        .await?;
    let link = Link::with(setup(LinkSetup::to(site.tunnel_address(0)))).await?;
    let setup = ClientSetup {
        nodes: vec![link.address()],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    Ok(Running {
        site,
        gateway,
        link,
        client,
    })
}

impl Running {
    async fn destination(&self, name: &str, resource: &str) -> Result<Destination> {
        self.site
            .destination(&self.gateway, name, resource, &[])
            .await
    }

    /// Nobody gets through any more, and what is open breaks like this.
    fn cut_off(&self, how: End) {
        self.link.door(Door::Shut(how));
        self.link.cut(how);
    }

    async fn node_tunnels(&mut self, count: f64) -> Result<()> {
        let node = self.site.node();
        eventually(PATIENCE, "the node counts its tunnels", async || {
            let tunnels = node.metrics().await?.sum("sg_tunnels", &[]);
            ensure!(tunnels == count, "{tunnels}");
            Ok(())
        })
        .await
    }
}

async fn resumes(daemon: &Daemon, result: &str) -> Result<f64> {
    let metrics = daemon.metrics().await?;
    Ok(metrics.sum("sg_tunnel_resumes_total", &[("result", result)]))
}

/// Waits until a daemon has counted so many of a result.
async fn counted(daemon: &Daemon, result: &str, count: f64) -> Result<()> {
    eventually(PATIENCE, &format!("{result} is counted"), async || {
        let seen = resumes(daemon, result).await?;
        ensure!(seen >= count, "{seen}");
        Ok(())
    })
    .await
}

/// The highest resident memory of a process so far, in KiB.
fn peak_kib(daemon: &Daemon) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.id()))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .context("VmHWM")?;
    let number = line.trim().trim_end_matches(" kB").trim();
    number.parse().context("VmHWM")
}

async fn open(destination: &Destination) -> Result<TcpStream> {
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    Ok(user)
}

/// The connection is reset, and nothing else comes before that.
async fn reset(stream: &mut TcpStream, limit: Duration) -> Result<()> {
    match within(limit, "the reset", stream.read(&mut [0; 1])).await? {
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => Ok(()),
        other => bail!("{other:?} instead of a reset"),
    }
}

async fn logged(daemon: &Daemon, reason: &str, count: usize) -> Result<()> {
    eventually(
        PATIENCE,
        &format!("access lines say {reason}"),
        async || {
            let lines = daemon.access()?;
            let seen = lines.iter().filter(|l| l.field("reason") == reason).count();
            ensure!(seen == count, "{seen} of {count}: {lines:?}");
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn no_stream_is_lost_and_no_byte_is_wrong_whatever_ends_the_connection() -> Result<()> {
    const STREAMS: usize = 8;
    let mib: usize = match std::env::var("SG_RESUME_MIB") {
        Ok(text) => text.parse().context("SG_RESUME_MIB")?,
        Err(_) => 32,
    };
    // In the short test each kind has its turn twice; in the long one it goes on as long as there are bytes.
    let (lives_for, most_cuts) = match mib {
        0..1024 => (Duration::from_millis(500), 6),
        _ => (Duration::from_secs(2), u32::MAX),
    };
    let line = Shape::line(160_000_000, Duration::from_millis(2));
    let mut running = running("30s", |link| link.shaped(line)).await?;
    let resource = Echo::start().await?;
    let destination = running.destination("app", &resource.address()).await?;
    open(&destination).await?;
    let before = [
        peak_kib(running.site.node())?,
        peak_kib(&running.client.daemon)?,
    ];

    let mut users = JoinSet::new();
    for seed in 0..STREAMS {
        let address = destination.address;
        users.spawn(async move {
            let mut user = TcpStream::connect(address).await.context("connecting")?;
            let length = mib * 1024 * 1024 / STREAMS;
            let seed = u64::try_from(seed).context("seed")?;
            bytes::echo(&mut user, seed, length)
                .await
                .with_context(|| format!("user {seed}"))
        });
    }
    let mut cuts = 0_u32;
    let mut kinds = [End::Reset, End::Fin, End::Silence].into_iter().cycle();
    let started = Instant::now();
    loop {
        tokio::select! {
            ended = users.join_next() => match ended {
                Some(ended) => { ended.context("a user's task")??; continue }
                None => break,
            },
            () = tokio::time::sleep(lives_for), if cuts < most_cuts => {}
        }
        let Some(kind) = kinds.next() else { break };
        running.link.cut(kind);
        cuts += 1;
        counted(running.site.node(), "resumed", f64::from(cuts))
            .await
            .with_context(|| format!("cut {cuts}, {kind:?}"))?;
    }
    let seconds = started.elapsed().as_secs_f64();
    ensure!(
        cuts >= 3,
        "only {cuts} cuts: not every kind has had its turn"
    );

    let node = running.site.node();
    let growth = peak_kib(node)?.saturating_sub(before[0]);
    let of_client = peak_kib(&running.client.daemon)?.saturating_sub(before[1]);
    println!(
        "{mib} MiB echoed over {STREAMS} streams in {seconds:.1} s with {cuts} cuts; \
         memory grew by {growth} KiB at the node and {of_client} KiB at the client"
    );
    ensure!(growth <= MOST_GROWTH_KIB, "the node grew by {growth} KiB");
    ensure!(
        of_client <= MOST_GROWTH_KIB,
        "the client grew by {of_client} KiB"
    );
    // Each cut was answered by exactly one resumption, and by no new tunnel.
    for daemon in [running.site.node(), &mut running.client.daemon] {
        ensure!(resumes(daemon, "refused").await? == 0.0);
        ensure!(resumes(daemon, "expired").await? == 0.0);
    }
    logged(running.site.node(), "finished", STREAMS + 1).await?;
    logged(&running.client.daemon, "finished", STREAMS + 1).await?;
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn a_tunnel_that_does_not_come_back_resets_its_streams_at_both_ends() -> Result<()> {
    let mut running = running("2s", |link| link).await?;
    let resource = Manual::start()?;
    let destination = running.destination("app", &resource.address()?).await?;
    let mut user = destination.connect().await?;
    let (mut served, _) = resource.accept().await?;
    user.write_all(b"x").await?;
    served.read_u8().await?;

    let started = Instant::now();
    running.cut_off(End::Reset);
    // It leaves the counts and the lists at once, and readiness of the client with it.
    running.node_tunnels(0.0).await?;
    running.site.clients_listed(&running.gateway, 0).await?;
    ensure!(started.elapsed() < Duration::from_secs(2));
    let admin = running.client.daemon.admin();
    let (status, _) = sg_tests::get(admin, "/readyz").await?;
    ensure!(status == 503, "/readyz answers {status}");

    let limit = Duration::from_secs(4);
    let ends = async { tokio::join!(reset(&mut user, limit), reset(&mut served, limit)) };
    let (at_user, at_resource) = ends.await;
    at_user.context("the user's end")?;
    at_resource.context("the resource's end")?;
    ensure!(started.elapsed() >= Duration::from_millis(1900));
    logged(running.site.node(), "tunnel-lost", 1).await?;
    logged(&running.client.daemon, "tunnel-lost", 1).await?;
    counted(running.site.node(), "expired", 1.0).await?;
    counted(&running.client.daemon, "expired", 1.0).await?;

    running.link.door(Door::Open);
    running.client.connected(Duration::from_secs(5)).await?;
    running.node_tunnels(1.0).await?;
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn a_new_process_of_the_client_ends_the_streams_of_the_old_one_at_once() -> Result<()> {
    let mut running = running("60s", |link| link).await?;
    let resource = Echo::start().await?;
    let destination = running.destination("app", &resource.address()).await?;
    let mut user = open(&destination).await?;
    running.client.daemon.kill()?;
    running.node_tunnels(0.0).await?;
    running.client.daemon.launch()?;
    reset(&mut user, Duration::from_secs(5)).await?;
    counted(running.site.node(), "replaced", 1.0).await?;
    open(&destination).await?;
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn a_restarted_node_knows_nothing_and_the_client_ends_what_it_kept() -> Result<()> {
    let mut running = running("60s", |link| link).await?;
    let resource = Manual::start()?;
    let destination = running.destination("app", &resource.address()?).await?;
    let mut user = destination.connect().await?;
    let (mut served, _) = resource.accept().await?;
    user.write_all(b"x").await?;
    served.read_u8().await?;
    running.site.node().kill()?;
    running.site.node().launch()?;
    reset(&mut served, Duration::from_secs(10)).await?;
    counted(&running.client.daemon, "refused", 1.0).await?;
    // It went on with a new tunnel on the same connection.
    running.client.connected(Duration::from_secs(5)).await?;
    let lines = running.client.daemon.lines()?;
    ensure!(
        !lines.iter().any(|line| line.mentions("tunnel ended")),
        "the session has ended: {}",
        running.client.daemon.log()?
    );
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn a_list_that_was_tightened_meanwhile_ends_what_it_forbids_and_nothing_else() -> Result<()> {
    let mut running = running("60s", |link| link).await?;
    let (allowed, forbidden) = (Echo::start().await?, Manual::start()?);
    let stays = running.destination("stays", &allowed.address()).await?;
    let address = forbidden.address()?;
    let goes = running.destination("goes", &address).await?;
    let mut staying = open(&stays).await?;
    let mut going = goes.connect().await?;
    let (mut served, _) = forbidden.accept().await?;
    going.write_all(b"x").await?;
    served.read_u8().await?;

    running.cut_off(End::Reset);
    running.node_tunnels(0.0).await?;
    running
        .site
        .sgctl
        .run(&["acl", "remove", "dev", &address])
        .await?;
    reset(&mut going, Duration::from_secs(5)).await?;
    // The client has not heard of it yet.
    staying.write_all(b"while detached").await?;
    running.link.door(Door::Open);
    reset(&mut served, Duration::from_secs(5)).await?;
    let mut back = [0; 14];
    within(PATIENCE, "the echo", staying.read_exact(&mut back)).await??;
    ensure!(&back == b"while detached");
    bytes::echo(&mut staying, 2, 100_000).await?;
    counted(&running.client.daemon, "resumed", 1.0).await?;
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn a_node_that_drains_does_not_wait_for_those_who_cannot_come_back() -> Result<()> {
    let mut running = running("60s", |link| link).await?;
    let resource = Echo::start().await?;
    let destination = running.destination("app", &resource.address()).await?;
    let mut user = open(&destination).await?;
    running.cut_off(End::Reset);
    running.node_tunnels(0.0).await?;
    let status = running.site.node().stop(Duration::from_secs(5)).await?;
    ensure!(status.success(), "{status}");
    reset(&mut user, Duration::from_secs(1)).await?;
    drop(running.client);
    running.site.finish()
}

#[tokio::test]
async fn without_a_resume_time_streams_end_with_their_connection() -> Result<()> {
    let running = running("0s", |link| link).await?;
    let resource = Echo::start().await?;
    let destination = running.destination("app", &resource.address()).await?;
    for how in [End::Reset, End::Fin] {
        let mut user = open(&destination).await?;
        running.link.cut(how);
        reset(&mut user, Duration::from_secs(3))
            .await
            .with_context(|| format!("{how:?}"))?;
        eventually(Duration::from_secs(5), "a new user is served", async || {
            open(&destination).await
        })
        .await?;
    }
    drop(running.client);
    running.site.finish()
}
