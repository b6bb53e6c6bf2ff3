//! Datagrams through the whole product: whole or not at all, each user's own, bounded in every way, and
//! never at the cost of connections.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::backend::Echo;
use sg_tests::counterpart::dns::{self, Dns};
use sg_tests::datagrams::{AGAIN, Resource, User};
use sg_tests::{
    AccessLine, Client, Daemon, Gateway, PATIENCE, Site, bytes, eventually, prepare, within,
};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval};

struct Setup {
    site: Site,
    gateway: Gateway,
    client: Client,
    listen: SocketAddr,
}

/// A destination of protocol udp with a client.
async fn setup(resource: SocketAddr, options: &[&str]) -> Result<Setup> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let resource = resource.to_string();
    site.sgctl
        .run(&["acl", "allow", "dev", &resource, "--wait", "10s"])
        .await?;
    let listen = create(&site, "udp", &resource, options).await?;
    Ok(Setup {
        site,
        gateway,
        client,
        listen,
    })
}

async fn create(site: &Site, name: &str, resource: &str, options: &[&str]) -> Result<SocketAddr> {
    let path = format!("dev/{name}");
    let mut arguments = vec!["destination", "create", &path, "--protocol", "udp"];
    arguments.extend(["--resource", resource, "--wait"]);
    arguments.extend(options);
    let made = site.sgctl.json(&arguments).await?;
    let port = made.get("cloudPort").and_then(serde_json::Value::as_u64);
    let port = u16::try_from(port.context("cloudPort")?)?;
    Ok(SocketAddr::new(Site::node_host(0), port))
}

async fn access_line(daemon: &Daemon, reason: &str) -> Result<AccessLine> {
    eventually(PATIENCE, &format!("a flow ends as {reason}"), async || {
        let lines = daemon.access()?;
        let found = lines.iter().find(|line| line.field("reason") == reason);
        match found {
            Some(line) => Ok(line.clone()),
            None => bail!("there are {lines:?}"),
        }
    })
    .await
}

async fn datagrams(daemon: &Daemon, direction: &str, result: &str) -> Result<f64> {
    let labels = [("direction", direction), ("result", result)];
    let metrics = daemon.metrics().await?;
    Ok(metrics.sum("sg_udp_datagrams_total", &labels))
}

#[tokio::test]
async fn dig_asks_a_name_server_behind_the_client() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let port = site.ports().server();
    let server = Dns::start(site.folder(), port).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    site.sgctl
        .run(&["acl", "allow", "dev", &server.address(), "--wait", "10s"])
        .await?;
    let listen = create(&site, "dns", &server.address(), &[]).await?;
    for _ in 0..5 {
        let answer = dns::dig(listen.port(), dns::NAME).await?;
        ensure!(answer == dns::ADDRESS, "dig gets {answer:?}");
    }
    let metrics = site.node().metrics().await?;
    let labels = [
        ("gateway", "dev"),
        ("destination", "dns"),
        ("protocol", "udp"),
        ("result", "ok"),
    ];
    let opened = metrics.sum("sg_streams_opened_total", &labels);
    ensure!(opened >= 5.0, "each dig is a flow; {opened} were counted");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn datagrams_of_every_length_arrive_whole() -> Result<()> {
    let resource = Resource::echo().await?;
    let s = setup(resource.address, &[]).await?;
    let user = User::of(s.listen).await?;
    let mut sequence = bytes::Sequence::new(7);
    for length in [
        1, 0, 2, 100, 1199, 1200, 1472, 1473, 4095, 4096, 8192, 9000, 16_384, 16_385, 40_000,
        65_506, 65_507,
    ] {
        user.ask(&sequence.take(length)).await?;
    }
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn users_get_their_own_answers_and_lose_none() -> Result<()> {
    const USERS: u32 = 40;
    const QUESTIONS: u32 = 50;
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &[]).await?;
    let mut users = JoinSet::new();
    for number in 0..USERS {
        let listen = s.listen;
        users.spawn(async move {
            let user = User::of(listen).await?;
            let mut own = HashSet::new();
            for turn in 0..QUESTIONS {
                let question = format!("question {turn} of user {number}");
                user.send(question.as_bytes()).await?;
                own.insert(question.into_bytes());
                // A few under way at a time.
                while own.len() > 4 {
                    let answer = user.answer(PATIENCE).await?.context("an answer is lost")?;
                    ensure!(own.remove(&answer), "an answer to somebody else");
                }
            }
            while !own.is_empty() {
                let answer = user.answer(PATIENCE).await?.context("an answer is lost")?;
                ensure!(own.remove(&answer), "an answer to somebody else");
            }
            Ok(())
        });
    }
    for result in users.join_all().await {
        result?;
    }
    let total = f64::from(USERS * QUESTIONS);
    for direction in ["to_resource", "to_user"] {
        for daemon in [&*s.site.node(), &s.client.daemon] {
            let passed = datagrams(daemon, direction, "ok").await?;
            ensure!(
                (passed - total).abs() < 0.5,
                "{passed} of {total} {direction}"
            );
        }
    }
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn an_idle_flow_ends_and_the_next_datagram_opens_another() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &["--idle-timeout", "1s"]).await?;
    let user = User::of(s.listen).await?;
    user.ask(b"one").await?;
    let line = access_line(s.site.node(), "idle-timeout").await?;
    ensure!(line.number("bytes_to_resource") == 3 && line.number("bytes_to_user") == 3);
    ensure!(!line.field("client").is_empty(), "{line:?}");
    let client_line = access_line(&s.client.daemon, "idle-timeout").await?;
    ensure!(client_line.number("bytes_to_resource") == 3);
    user.ask(b"two").await?;
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn a_resource_that_nobody_serves_ends_the_flow_until_somebody_does() -> Result<()> {
    let nobody = UdpSocket::bind("127.0.0.1:0").await?;
    let address = nobody.local_addr()?;
    drop(nobody);
    let mut s = setup(address, &[]).await?;
    let user = User::of(s.listen).await?;
    // The network's refusal answers the first datagram; the second finds the flow ended, or opens another.
    user.send(b"anybody?").await?;
    access_line(&s.client.daemon, "refused").await?;
    let line = access_line(s.site.node(), "refused").await?;
    ensure!(line.number("bytes_to_user") == 0);
    let _resource = Resource::answering(&address.to_string(), 1).await?;
    user.ask(b"anybody now?").await?;
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn the_access_control_list_decides_over_flows_that_are_open_too() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &[]).await?;
    let user = User::of(s.listen).await?;
    user.ask(b"may I?").await?;
    let address = resource.address.to_string();
    s.site
        .sgctl
        .run(&["acl", "deny", &s.gateway.name, &address, "--wait", "10s"])
        .await?;
    access_line(s.site.node(), "policy-changed").await?;
    user.send(b"still?").await?;
    access_line(s.site.node(), "acl-denied").await?;
    ensure!(user.answer(AGAIN).await?.is_none(), "an answer after all");
    ensure!(datagrams(s.site.node(), "to_resource", "no-flow").await? >= 1.0);
    s.site
        .sgctl
        .run(&["acl", "allow", &s.gateway.name, &address, "--wait", "10s"])
        .await?;
    user.ask(b"again?").await?;
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn a_destination_has_as_many_flows_as_it_may() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &["--max-connections", "2"]).await?;
    let users = [User::of(s.listen).await?, User::of(s.listen).await?];
    for user in &users {
        user.ask(b"one of two").await?;
    }
    let third = User::of(s.listen).await?;
    third.send(b"the third").await?;
    ensure!(third.answer(AGAIN).await?.is_none(), "a third flow");
    ensure!(datagrams(s.site.node(), "to_resource", "limit").await? >= 1.0);
    for user in &users {
        user.ask(b"still there").await?;
    }
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn nobody_is_sent_much_more_than_he_asked_for() -> Result<()> {
    let resource = Resource::answering("127.0.0.1:0", 10).await?;
    let mut s = setup(resource.address, &[]).await?;
    let user = User::of(s.listen).await?;
    let question = [7; 500];
    user.send(&question).await?;
    let node = s.site.node();
    eventually(PATIENCE, "the answer is held back", async || {
        let held = datagrams(node, "to_user", "amplification").await?;
        ensure!(held > 0.5, "{held} were");
        Ok(())
    })
    .await?;
    ensure!(user.answer(Duration::ZERO).await?.is_none());
    // Whoever asks again after an answer has come is where he says he is.
    user.send(&question).await?;
    let answer = user.answer(PATIENCE).await?.context("no answer")?;
    ensure!(answer.len() == 5000, "{} bytes", answer.len());
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn flows_go_on_with_a_client_that_comes_back() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &[]).await?;
    let user = User::of(s.listen).await?;
    user.ask(b"before").await?;
    s.client.daemon.kill()?;
    user.send(b"into the void").await?;
    s.client.connect().await?;
    user.ask(b"after").await?;
    drop(s.client);
    s.site.finish()
}

#[tokio::test]
async fn a_flood_of_datagrams_leaves_connections_their_way() -> Result<()> {
    const LENGTH: usize = 8 * 1024 * 1024;
    let resource = Resource::echo().await?;
    let mut s = setup(resource.address, &[]).await?;
    let echo = Echo::start().await?;
    let tcp = s
        .site
        .destination(&s.gateway, "tcp", &echo.address(), &[])
        .await?;
    let mut flood = JoinSet::new();
    for _ in 0..4 {
        let listen = s.listen;
        flood.spawn(async move {
            let user = User::of(listen).await?;
            let mut tick = interval(Duration::from_millis(2));
            // 5,000 a second from each of four users; nobody reads the answers.
            loop {
                tick.tick().await;
                for _ in 0..10 {
                    user.try_send(&[1; 300]);
                }
            }
            #[allow(unreachable_code)]
            Ok::<(), anyhow::Error>(())
        });
    }
    let started = Instant::now();
    let mut stream = TcpStream::connect(tcp.address).await?;
    within(
        Duration::from_secs(30),
        "8 MiB beside the flood",
        bytes::echo(&mut stream, 3, LENGTH),
    )
    .await??;
    stream.shutdown().await?;
    eprintln!("8 MiB both ways beside the flood: {:?}", started.elapsed());
    let passed = datagrams(s.site.node(), "to_resource", "ok").await?;
    ensure!(passed > 100.0, "{passed} datagrams were no flood");
    flood.shutdown().await;
    drop(s.client);
    s.site.finish()
}
