//! kill -9 of each part, alone, and its return. What needs neither the control plane nor etcd goes
//! on without them.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::{Client, Destination, Gateway, Site, SiteSetup, bytes, eventually, prepare};

/// The longest from the restart of a killed part to a connection that works.
const RECOVERY: Duration = Duration::from_secs(5);

struct Running {
    site: Site,
    gateway: Gateway,
    client: Client,
    destination: Destination,
    resource: Echo,
}

async fn running() -> Result<Running> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::with(SiteSetup {
        etcd: true,
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    works(&destination).await?;
    Ok(Running {
        site,
        gateway,
        client,
        destination,
        resource,
    })
}

/// One user's whole connection.
async fn works(destination: &Destination) -> Result<()> {
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 10_000).await
}

/// From now on, within the promise.
async fn works_again(destination: &Destination) -> Result<()> {
    eventually(RECOVERY, "a connection works", async || {
        works(destination).await
    })
    .await
}

/// A change goes all the way: from `sgctl` through the store to an open port.
async fn changes_again(running: &Running, name: &str) -> Result<()> {
    let Running {
        site,
        gateway,
        resource,
        ..
    } = running;
    let mut attempt = 0;
    let made = eventually(RECOVERY, "a destination can be made", async || {
        attempt += 1;
        let name = format!("{name}-{attempt}");
        site.destination(gateway, &name, &resource.address(), &[])
            .await
    })
    .await?;
    works(&made).await
}

#[tokio::test]
async fn a_killed_client_comes_back() -> Result<()> {
    let mut running = running().await?;
    running.client.daemon.kill()?;
    running.client.daemon.launch()?;
    works_again(&running.destination).await?;
    // It is the same client, by its key.
    let rows = running.site.clients_listed(&running.gateway, 1).await?;
    let connected = rows.first().context("row")?;
    let log = running.client.daemon.lines()?;
    let id = connected["id"].as_str().context("id")?;
    ensure!(
        log.iter().any(|line| line.mentions(id)),
        "{id} is not in the client's own log"
    );
    running.site.finish()
}

#[tokio::test]
async fn a_killed_node_comes_back() -> Result<()> {
    let mut running = running().await?;
    running.site.node().kill()?;
    ensure!(
        running.destination.connect().await.is_err(),
        "nobody listens"
    );
    running.site.node().launch()?;
    works_again(&running.destination).await?;
    running.site.finish()
}

#[tokio::test]
async fn a_killed_control_plane_is_missed_by_no_user_and_comes_back() -> Result<()> {
    let mut running = running().await?;
    running.site.control_plane().kill()?;
    works(&running.destination)
        .await
        .context("while the control plane is down")?;
    running.site.control_plane().launch()?;
    works(&running.destination)
        .await
        .context("right after its restart")?;
    changes_again(&running, "after").await?;
    running.site.finish()
}

#[tokio::test]
async fn a_killed_etcd_is_missed_by_no_user_and_comes_back() -> Result<()> {
    let mut running = running().await?;
    let etcd = running.site.etcd.as_mut().context("etcd")?;
    etcd.kill()?;
    works(&running.destination)
        .await
        .context("while etcd is down")?;
    // A change is refused as such, not held for ever.
    let answer = running
        .site
        .sgctl
        .call(&["gateway", "create", "other", "--timeout", "3s"])
        .await?;
    ensure!(answer.code == 6, "{answer:?}");
    running.site.etcd.as_mut().context("etcd")?.launch()?;
    works(&running.destination)
        .await
        .context("right after its restart")?;
    changes_again(&running, "after").await?;
    running.site.finish()
}

#[tokio::test]
async fn with_control_plane_and_etcd_down_users_and_clients_still_connect() -> Result<()> {
    let mut running = running().await?;
    running.site.control_plane().kill()?;
    running.site.etcd.as_mut().context("etcd")?.kill()?;
    works(&running.destination).await.context("a new user")?;

    running.client.daemon.kill()?;
    running.client.daemon.launch()?;
    works_again(&running.destination)
        .await
        .context("a client that was restarted")?;

    // The node has what it needs on its disk.
    running.site.node().kill()?;
    running.site.node().launch()?;
    works_again(&running.destination)
        .await
        .context("a node that was restarted")?;

    // Both return, and nothing has been forgotten.
    running.site.etcd.as_mut().context("etcd")?.launch()?;
    running.site.control_plane().launch()?;
    changes_again(&running, "after").await?;
    works(&running.destination).await?;
    running.site.finish()
}

#[tokio::test]
async fn an_open_connection_outlives_control_plane_and_etcd() -> Result<()> {
    let mut running = running().await?;
    let mut user = running.destination.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    running.site.control_plane().kill()?;
    running.site.etcd.as_mut().context("etcd")?.kill()?;
    bytes::echo(&mut user, 2, 100_000)
        .await
        .context("both down")?;
    running.site.etcd.as_mut().context("etcd")?.launch()?;
    running.site.control_plane().start().await?;
    changes_again(&running, "after").await?;
    bytes::echo(&mut user, 3, 100_000)
        .await
        .context("both back")?;
    running.site.finish()
}

#[tokio::test]
async fn the_embedded_store_keeps_what_was_acknowledged_over_a_kill() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    site.control_plane().kill()?;
    works(&destination)
        .await
        .context("while the control plane is down")?;
    site.control_plane().start().await?;
    let got = site
        .sgctl
        .json(&["destination", "get", &destination.path])
        .await?;
    ensure!(got["cloudPort"] == destination.port, "{got}");
    let running = Running {
        site,
        gateway,
        client,
        destination,
        resource,
    };
    changes_again(&running, "after").await?;
    running.site.finish()
}
