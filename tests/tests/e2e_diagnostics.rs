//! What an operator sees of tunnels: the page of each end, the series of their limits, and limits by flags.

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sg_tests::backend::Echo;
use sg_tests::{
    ClientSetup, Daemon, Destination, PATIENCE, Site, SiteSetup, bytes, eventually, get, prepare,
    within,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

async fn page(daemon: &Daemon, path: &str) -> Result<(u16, String)> {
    get(daemon.admin(), path).await
}

/// The only tunnel of a process.
async fn only_tunnel(daemon: &Daemon) -> Result<Value> {
    let (status, body) = page(daemon, "/debug/tunnels").await?;
    ensure!(status == 200, "{status}: {body}");
    let page: Value = serde_json::from_str(&body)?;
    ensure!(page["memory"]["budget_bytes"].as_u64() > Some(0), "{page}");
    let tunnels = page["tunnels"].as_array().context("no list")?;
    ensure!(tunnels.len() == 1, "{page}");
    Ok(tunnels[0].clone())
}

#[tokio::test]
async fn both_ends_show_their_tunnel_and_its_streams() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "echo", &resource.address(), &[])
        .await?;
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 5000).await?;

    for (daemon, opened_here) in [(&*site.node(), true), (&client.daemon, false)] {
        let tunnel = only_tunnel(daemon).await?;
        ensure!(tunnel["gateway"] == "dev", "{tunnel}");
        ensure!(tunnel["state"] == "attached", "{tunnel}");
        ensure!(tunnel["rtt_micros"].as_u64() > Some(0), "{tunnel}");
        let streams = tunnel["stream_list"].as_array().context("no streams")?;
        let stream = streams
            .iter()
            .find(|stream| stream["state"] == "open")
            .with_context(|| format!("no open stream: {tunnel}"))?;
        ensure!(stream["opened_here"] == opened_here, "{stream}");
        ensure!(
            stream["sent_bytes"] == 5000 && stream["received_bytes"] == 5000,
            "{stream}"
        );
        ensure!(stream["waits"] == serde_json::json!(["read"]), "{stream}");

        let number = tunnel["number"].as_u64().context("no number")?;
        let (status, _) = page(daemon, &format!("/debug/tunnels/{number}")).await?;
        ensure!(status == 200, "{status}");
        let (status, _) = page(daemon, "/debug/tunnels/999").await?;
        ensure!(status == 404, "{status}");
        let metrics = daemon.metrics().await?;
        ensure!(metrics.has("sg_tunnel_limits_total") && metrics.has("sg_tunnel_memory_bytes"));
    }
    drop((user, client));
    site.finish()
}

/// Opens `count` connections that work, and one more, which must end by itself.
async fn one_too_many(destination: &Destination, count: u64) -> Result<Vec<TcpStream>> {
    let mut users = Vec::new();
    for seed in 0..count {
        let mut user = destination.connect().await?;
        bytes::echo(&mut user, seed, 100).await?;
        users.push(user);
    }
    // The reset may come before the connection is known to be there.
    let further = async {
        let mut further = TcpStream::connect(destination.address).await?;
        further.read(&mut [0; 1]).await
    };
    let end = within(PATIENCE, "the further one ends", further).await?;
    ensure!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    Ok(users)
}

async fn refused_for_the_limit(site: &mut Site) -> Result<()> {
    let node = site.node();
    eventually(PATIENCE, "the refusal is logged", async || {
        let lines = node.access()?;
        let refused = lines.iter().filter(|line| line.field("reason") == "limit");
        ensure!(refused.count() == 1, "{lines:?}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_limit_of_streams_given_to_a_client_holds_and_is_counted() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let setup = ClientSetup {
        options: ["--limit-streams", "2"].map(str::to_owned).into(),
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    let destination = site
        .destination(&gateway, "echo", &resource.address(), &[])
        .await?;
    let mut users = one_too_many(&destination, 2).await?;
    refused_for_the_limit(&mut site).await?;
    let metrics = site.node().metrics().await?;
    let counted = metrics.sum("sg_tunnel_limits_total", &[("limit", "streams")]);
    ensure!(counted >= 1.0, "{counted}");
    // What is open is not disturbed, and an end makes room.
    bytes::echo(&mut users[0], 7, 5000).await?;
    users.remove(0);
    eventually(PATIENCE, "there is room again", async || {
        let mut user = destination.connect().await?;
        bytes::echo(&mut user, 8, 100).await
    })
    .await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_limit_of_streams_per_source_address_holds() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let setup = SiteSetup {
        node_environment: vec![("SG_LIMIT_STREAMS_PER_SOURCE", "3".to_owned())],
        ..SiteSetup::default()
    };
    let mut site = Site::with(setup).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "echo", &resource.address(), &[])
        .await?;
    let users = one_too_many(&destination, 3).await?;
    refused_for_the_limit(&mut site).await?;
    drop((users, client));
    site.finish()
}
