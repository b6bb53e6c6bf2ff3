//! Two nodes and two control planes on one etcd.

use std::net::SocketAddr;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::backend::Echo;
use sg_tests::{
    Client, Destination, Gateway, PATIENCE, Sgctl, Site, SiteSetup, bytes, eventually, prepare,
};
use tokio::net::TcpStream;

struct Scaled {
    site: Site,
    gateway: Gateway,
    client: Client,
    destination: Destination,
    resource: Echo,
}

async fn scaled() -> Result<Scaled> {
    prepare();
    let resource = Echo::start().await?;
    let setup = SiteSetup {
        etcd: true,
        control_planes: 2,
        nodes: 2,
        ..SiteSetup::default()
    };
    let mut site = Site::with(setup).await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    Ok(Scaled {
        site,
        gateway,
        client,
        destination,
        resource,
    })
}

/// A user of the destination at one of the nodes.
async fn works_at(destination: &Destination, node: u8) -> Result<()> {
    let address = SocketAddr::new(Site::node_host(node), destination.port);
    let mut user = TcpStream::connect(address).await.context("connecting")?;
    bytes::echo(&mut user, u64::from(node), 20_000).await
}

/// Waits until the one client has a tunnel to each of two nodes, and no more than that.
async fn two_tunnels(site: &Site, gateway: &Gateway) -> Result<()> {
    eventually(
        PATIENCE,
        "the client has a tunnel to each node",
        async || {
            let rows = site.client_rows(gateway).await?;
            let tunnels = rows.first().context("no client")?["tunnels"]
                .as_array()
                .context("tunnels")?;
            let mut nodes: Vec<String> = tunnels
                .iter()
                .map(|tunnel| tunnel["node"].to_string())
                .collect();
            nodes.sort();
            ensure!(
                rows.len() == 1 && nodes == [r#""node-1""#, r#""node-2""#],
                "{rows:?}"
            );
            Ok(())
        },
    )
    .await
}

#[tokio::test]
async fn a_client_that_knows_one_node_serves_the_users_of_both() -> Result<()> {
    let scaled = scaled().await?;
    two_tunnels(&scaled.site, &scaled.gateway).await?;
    for node in [0, 1] {
        works_at(&scaled.destination, node)
            .await
            .with_context(|| format!("node {node}"))?;
    }
    // Each node has carried its own user.
    for node in &scaled.site.nodes {
        let opened = node
            .metrics()
            .await?
            .sum("sg_streams_opened_total", &[("result", "ok")]);
        ensure!((opened - 1.0).abs() < 0.1, "{opened} streams");
    }
    let status = scaled
        .site
        .sgctl
        .json(&["destination", "get", &scaled.destination.path])
        .await?;
    let nodes = status["status"]["nodes"].as_array().context("status")?;
    ensure!(
        nodes.len() == 2 && nodes.iter().all(|node| node["state"] == "listening"),
        "{status}"
    );
    drop((scaled.client, scaled.resource));
    scaled.site.finish()
}

#[tokio::test]
async fn with_one_node_killed_the_other_serves_and_both_do_after_its_return() -> Result<()> {
    let mut scaled = scaled().await?;
    two_tunnels(&scaled.site, &scaled.gateway).await?;
    // The node that the client was told of at its start: the other one was learned.
    scaled.site.nodes[0].kill()?;
    works_at(&scaled.destination, 1).await?;
    let made = scaled
        .site
        .sgctl
        .call(&["node", "list", "-o", "json"])
        .await?
        .json()?;
    ensure!(
        made["nodes"]
            .as_array()
            .is_some_and(|nodes| nodes.len() == 2),
        "{made}"
    );
    scaled.site.nodes[0].start().await?;
    two_tunnels(&scaled.site, &scaled.gateway).await?;
    for node in [0, 1] {
        works_at(&scaled.destination, node)
            .await
            .with_context(|| format!("node {node}"))?;
    }
    drop((scaled.client, scaled.resource));
    scaled.site.finish()
}

#[tokio::test]
async fn both_control_planes_serve_the_same_state() -> Result<()> {
    let scaled = scaled().await?;
    let ca = scaled.site.ca_file();
    let token = ca.with_file_name("admin.token");
    let addresses = scaled.site.control_addresses().to_vec();
    ensure!(addresses.len() == 2);
    for (index, address) in addresses.iter().enumerate() {
        let sgctl = Sgctl::new(address, &ca, &token);
        // What was made through the one is there through the other.
        let name = format!("through-{index}");
        sgctl.run(&["gateway", "create", &name]).await?;
        for other in &addresses {
            let other = Sgctl::new(other, &ca, &token);
            eventually(PATIENCE, "the other one has it", async || {
                other.json(&["gateway", "get", &name]).await
            })
            .await?;
        }
        eventually(
            PATIENCE,
            "each control plane sees all nodes and clients",
            async || {
                let nodes = sgctl.json(&["node", "list"]).await?;
                let nodes = nodes["nodes"].as_array().context("nodes")?;
                ensure!(
                    nodes.iter().filter(|node| node["state"] == "ready").count() == 2,
                    "{nodes:?}"
                );
                let clients = sgctl.json(&["client", "list", "dev"]).await?;
                ensure!(
                    clients["clients"]
                        .as_array()
                        .is_some_and(|rows| rows.len() == 1)
                );
                Ok(())
            },
        )
        .await?;
    }
    drop((scaled.client, scaled.resource));
    scaled.site.finish()
}

#[tokio::test]
async fn when_one_control_plane_dies_nodes_and_sgctl_use_the_other() -> Result<()> {
    for victim in [0, 1] {
        let mut scaled = scaled().await?;
        scaled.site.control_planes[victim].kill()?;
        // sgctl has both addresses; the nodes must hear of the new destination from the survivor.
        let resource = scaled.resource.address();
        let made = scaled
            .site
            .destination(&scaled.gateway, "later", &resource, &[])
            .await;
        let made = made.with_context(|| format!("control plane {victim} was killed"))?;
        two_tunnels(&scaled.site, &scaled.gateway).await?;
        for node in [0, 1] {
            works_at(&made, node)
                .await
                .with_context(|| format!("node {node}"))?;
        }
        // And back: the first one catches up with what it has missed.
        scaled.site.control_planes[victim].start().await?;
        let address = scaled.site.control_addresses()[victim].clone();
        let ca = scaled.site.ca_file();
        let sgctl = Sgctl::new(&address, &ca, &ca.with_file_name("admin.token"));
        eventually(PATIENCE, "it has caught up", async || {
            let got = sgctl.json(&["destination", "get", "dev/later"]).await?;
            match got["status"]["ready"].as_bool() {
                Some(true) => Ok(()),
                _ => bail!("{got}"),
            }
        })
        .await?;
        drop((scaled.client, scaled.resource));
        scaled.site.finish()?;
    }
    Ok(())
}

#[tokio::test]
async fn a_second_control_plane_without_the_key_of_the_store_is_refused() -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        etcd: true,
        nodes: 0,
        ..SiteSetup::default()
    })
    .await?;
    let etcd = site.etcd.as_ref().context("etcd")?.address();
    let data = site.folder().join("keyless");
    let port = site.ports().server();
    let launch = sg_tests::Launch::new(
        "keyless",
        sg_tests::product("sg-control-plane")?,
        site.folder(),
    )
    .option("--store", format!("etcd://{etcd}"))
    .option("--data-dir", &data)
    .option("--listen", format!("127.0.0.1:{port}"))
    .option("--http-listen", "127.0.0.1:0")
    .option("--admin-listen", "127.0.0.1:0");
    let mut process = launch.start()?;
    let status = process.ended(PATIENCE).await?;
    ensure!(status.code() == Some(2), "{status}: {}", process.output()?);
    ensure!(
        process.output()?.contains("store-key-file"),
        "{}",
        process.output()?
    );
    site.finish()
}
