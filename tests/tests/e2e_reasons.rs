//! Connections that cannot be carried: each ends at once for the user, and log and metric say why.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::{Echo, Silent};
use sg_tests::{Client, Destination, Gateway, PATIENCE, Site, bytes, eventually, prepare, within};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::time::Instant;

async fn site() -> Result<(Site, Gateway, Client)> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    Ok((site, gateway, client))
}

/// Connects as a user and measures until the connection is over; no byte may come.
async fn time_to_end(destination: &Destination) -> Result<(Duration, &'static str)> {
    let start = Instant::now();
    let whole = async {
        // A reset that is quick enough is seen by connect already.
        let mut user = TcpStream::connect(destination.address).await?;
        user.read(&mut [0; 1]).await
    };
    let end = within(PATIENCE, "the user's connection is closed", whole).await?;
    let how = match end {
        Ok(0) => "end",
        Ok(_) => "byte",
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => "reset",
        Err(_) => "error",
    };
    Ok((start.elapsed(), how))
}

/// The node's log and metric carry this reason for the one stream of the destination.
async fn expect_reason(site: &mut Site, destination: &Destination, reason: &str) -> Result<()> {
    let name = destination
        .path
        .split('/')
        .nth(1)
        .context("name")?
        .to_owned();
    let node = site.node();
    eventually(
        PATIENCE,
        &format!("{reason} is logged and counted"),
        async || {
            let lines = node.access()?;
            let line = lines
                .iter()
                .find(|line| line.field("destination") == name)
                .context("no line")?;
            ensure!(
                line.field("reason") == reason,
                "the reason is {:?}",
                line.field("reason")
            );
            let labels = [("destination", name.as_str()), ("result", reason)];
            let counted = node
                .metrics()
                .await?
                .sum("sg_streams_opened_total", &labels);
            ensure!((counted - 1.0).abs() < 0.1, "counted {counted}");
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn a_resource_that_refuses_is_named_as_such() -> Result<()> {
    let (mut site, gateway, client) = site().await?;
    // Held by the test's block of ports, and nobody listens there.
    let resource = format!("127.0.0.1:{}", site.ports().server());
    let destination = site
        .destination(&gateway, "refused", &resource, &[])
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    ensure!(
        how == "reset" && time < Duration::from_secs(1),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "refused").await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_resource_without_a_route_is_named_as_such() -> Result<()> {
    let (mut site, gateway, client) = site().await?;
    // The broadcast address of the loopback network: the system refuses at once to connect there.
    let destination = site
        .destination(&gateway, "unreachable", "127.255.255.255:9", &[])
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    ensure!(
        how == "reset" && time < Duration::from_secs(1),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "unreachable").await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_resource_whose_name_is_unknown_is_named_as_such() -> Result<()> {
    let (mut site, gateway, client) = site().await?;
    let destination = site
        .destination(&gateway, "unknown", "nowhere.invalid:5432", &[])
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    ensure!(
        how == "reset" && time < Duration::from_secs(11),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "name-unknown").await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_silent_resource_is_given_up_after_the_connect_timeout() -> Result<()> {
    let (mut site, gateway, client) = site().await?;
    let silent = Silent::start().await?;
    let options = ["--connect-timeout", "1s"];
    let destination = site
        .destination(&gateway, "silent", &silent.address()?, &options)
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    let prompt = Duration::from_millis(900)..Duration::from_millis(2500);
    ensure!(
        how == "reset" && prompt.contains(&time),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "connect-timeout").await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn what_the_acl_does_not_allow_is_denied() -> Result<()> {
    let (mut site, gateway, client) = site().await?;
    let resource = Echo::start().await?;
    let destination = site
        .destination_only(&gateway, "app", &resource.address(), &[])
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    ensure!(
        how == "reset" && time < Duration::from_secs(1),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "acl-denied").await?;

    // Allowed, it works at once; taken back, it is denied again at once.
    let address = resource.address();
    site.sgctl
        .run(&["acl", "allow", "dev", &address, "--wait", "10s"])
        .await?;
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    site.sgctl
        .run(&["acl", "remove", "dev", &address, "--wait", "10s"])
        .await?;
    let (_, how) = time_to_end(&destination).await?;
    ensure!(how == "reset", "{how}");
    // The decision holds for what is open too.
    let rest = within(PATIENCE, "the open stream ends", user.read(&mut [0; 1])).await?;
    ensure!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn without_any_client_a_user_is_reset_at_once() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let destination = site
        .destination(&gateway, "app", "127.0.0.1:1", &[])
        .await?;
    let (time, how) = time_to_end(&destination).await?;
    ensure!(
        how == "reset" && time < Duration::from_millis(500),
        "{how} after {time:?}"
    );
    expect_reason(&mut site, &destination, "no-client").await?;
    site.finish()
}

#[tokio::test]
async fn after_a_recent_client_a_user_is_held_for_at_most_a_second() -> Result<()> {
    let (mut site, gateway, mut client) = site().await?;
    let resource = Echo::start().await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    client.daemon.kill()?;
    site.clients_listed(&gateway, 0).await?;

    let (time, how) = time_to_end(&destination).await?;
    let held = Duration::from_millis(500)..Duration::from_millis(1500);
    ensure!(
        how == "reset" && held.contains(&time),
        "{how} after {time:?}"
    );

    // Whoever is held when the client is back is served, whenever that is within the second.
    client.daemon.launch()?;
    eventually(Duration::from_secs(5), "a user gets through", async || {
        let mut user = destination.connect().await?;
        bytes::echo(&mut user, 2, 5000).await
    })
    .await?;
    ensure!(
        site.node()
            .access()?
            .iter()
            .any(|line| line.field("reason") == "no-client")
    );
    site.finish()
}
