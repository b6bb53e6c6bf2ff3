//! A network that misbehaves between client and node. A link of the test's own stands there.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::link::{End, Link};
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, Site, bytes, eventually, prepare, within,
};
use tokio::net::TcpStream;

struct Faulty {
    site: Site,
    gateway: Gateway,
    link: Link,
    client: Client,
    destination: Destination,
    _resource: Echo,
}

/// One client, whose only way to the node is the link.
async fn faulty() -> Result<Faulty> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let link = Link::start(site.tunnel_address(0)).await?;
    let setup = ClientSetup {
        nodes: vec![link.address()],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    Ok(Faulty {
        site,
        gateway,
        link,
        client,
        destination,
        _resource: resource,
    })
}

async fn open(destination: &Destination) -> Result<TcpStream> {
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    Ok(user)
}

#[tokio::test]
async fn a_tunnel_that_is_cut_comes_back_and_brings_its_streams() -> Result<()> {
    let faulty = faulty().await?;
    for cut in [End::Reset, End::Fin] {
        let mut user = open(&faulty.destination).await?;
        faulty.link.cut(cut);
        within(
            Duration::from_secs(5),
            "the stream goes on",
            bytes::echo(&mut user, 2, 100_000),
        )
        .await?
        .with_context(|| format!("{cut:?}"))?;
        eventually(Duration::from_secs(5), "a new user is served", async || {
            open(&faulty.destination).await
        })
        .await
        .with_context(|| format!("{cut:?}"))?;
    }
    drop((faulty.client, faulty.gateway));
    faulty.site.finish()
}

#[tokio::test]
async fn a_slow_network_loses_and_swaps_nothing() -> Result<()> {
    let faulty = faulty().await?;
    faulty.link.delay(Duration::from_millis(30));
    let mut users = tokio::task::JoinSet::new();
    for seed in 0..20 {
        let address = faulty.destination.address;
        users.spawn(async move {
            let mut user = TcpStream::connect(address).await.context("connecting")?;
            bytes::echo(&mut user, seed, 300_000).await
        });
    }
    for result in within(Duration::from_secs(30), "all users", users.join_all()).await? {
        result?;
    }
    // And the product knows how slow it is.
    let limit = Duration::from_secs(20);
    eventually(limit, "the round-trip time is measured", async || {
        let rows = faulty.site.client_rows(&faulty.gateway).await?;
        let rtt = rows
            .first()
            .and_then(|row| row["rttMs"].as_f64())
            .context("rttMs")?;
        ensure!(rtt > 50.0, "{rtt} ms");
        Ok(())
    })
    .await?;
    drop(faulty.client);
    faulty.site.finish()
}

#[tokio::test]
async fn beside_a_tunnel_fallen_silent_another_client_takes_the_users() -> Result<()> {
    let mut faulty = faulty().await?;
    let second = faulty.site.client(&faulty.gateway).await?;
    faulty.site.clients_listed(&faulty.gateway, 2).await?;
    faulty.link.black_hole();
    // Half of the users are given to the silent tunnel at first. None of them fails, and none
    // waits for longer than it takes to suspect it.
    for _ in 0..6 {
        within(
            Duration::from_secs(3),
            "a user is served",
            open(&faulty.destination),
        )
        .await??;
    }
    // When the network is back, so is the first client.
    faulty.link.pass_all();
    faulty.site.clients_listed(&faulty.gateway, 2).await?;
    open(&faulty.destination).await?;
    drop((faulty.client, second));
    faulty.site.finish()
}

#[tokio::test]
async fn a_client_goes_to_the_next_address_when_the_first_does_not_answer() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], site.ports().server()));
    let setup = ClientSetup {
        nodes: vec![nobody, site.tunnel_address(0)],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    open(&destination).await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn resources_are_reached_by_name_and_by_ipv6() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let resource = Echo::start().await?;
    let port = resource
        .address()
        .split(':')
        .next_back()
        .context("port")?
        .to_owned();
    let by_name = site
        .destination(&gateway, "by-name", &format!("localhost:{port}"), &[])
        .await?;
    open(&by_name).await.context("by name")?;
    let six = Echo::start_at("[::1]:0").await?;
    let by_six = site
        .destination(&gateway, "six", &six.address(), &[])
        .await?;
    open(&by_six).await.context("by IPv6 address")?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_local_list_narrows_what_the_gateway_allows() -> Result<()> {
    prepare();
    let (open_to_all, forbidden_here) = (Echo::start().await?, Echo::start().await?);
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let list = site.folder().join("local.acl");
    std::fs::write(&list, format!("acl allow {}\n", open_to_all.address()))?;
    let setup = ClientSetup {
        options: vec!["--local-acl".to_owned(), list.display().to_string()],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    let allowed = site
        .destination(&gateway, "allowed", &open_to_all.address(), &[])
        .await?;
    open(&allowed).await?;
    let forbidden = site
        .destination(&gateway, "forbidden", &forbidden_here.address(), &[])
        .await?;
    ensure!(
        open(&forbidden).await.is_err(),
        "the client's own list does not allow it"
    );
    // The user is told before the line is written.
    eventually(
        Duration::from_secs(5),
        "the refusal is logged",
        async || {
            let lines = site.node().access()?;
            let line = lines
                .iter()
                .find(|line| line.field("destination") == "forbidden");
            ensure!(
                line.context("no line")?.field("reason") == "acl-denied",
                "{lines:?}"
            );
            Ok(())
        },
    )
    .await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_token_on_the_command_line_works_with_a_warning() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let setup = ClientSetup {
        token_argument: true,
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    site.clients_listed(&gateway, 1).await?;
    let warned = client
        .daemon
        .lines()?
        .iter()
        .any(|line| line.level() == "WARN");
    ensure!(warned, "{}", client.daemon.log()?);
    drop(client);
    site.finish()
}
