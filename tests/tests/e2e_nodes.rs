//! A node goes for good: one that is dead, and one that still runs; and it comes back as a new one.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sg_tests::backend::Echo;
use sg_tests::{PATIENCE, Site, SiteSetup, bytes, eventually, prepare};

async fn node(site: &Site, name: &str) -> Result<Value> {
    site.sgctl.json(&["node", "get", name]).await
}

async fn problems(site: &Site) -> Result<String> {
    Ok(site.sgctl.json(&["status"]).await?["problems"].to_string())
}

#[tokio::test]
async fn a_dead_node_is_forgotten_and_a_living_one_says_that_it_was_removed() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::with(SiteSetup {
        nodes: 2,
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    let app = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;

    // The second node dies for ever.
    let mut dead = site.nodes.pop().context("a second node")?;
    dead.kill()?;
    eventually(PATIENCE, "it is missed", async || {
        ensure!(node(&site, "node-2").await?["state"] == "disconnected");
        ensure!(problems(&site).await?.contains("node-2"));
        Ok(())
    })
    .await?;
    // Until the control plane has run for a while it cannot know which nodes live.
    let deleted = eventually(PATIENCE, "it may be deleted", async || {
        site.sgctl.json(&["node", "delete", "node-2"]).await
    })
    .await?;
    ensure!(deleted["name"] == "node-2", "{deleted}");
    ensure!(!problems(&site).await?.contains("node-2"));
    let answer = site.sgctl.call(&["node", "get", "node-2"]).await?;
    ensure!(answer.code == 3, "{}", answer.stderr);
    // The others go on.
    site.destination(&gateway, "next", &resource.address(), &[])
        .await?;

    // The first one lives: it is removed only by force, and says so.
    let mut connected = app.connect().await?;
    bytes::echo(&mut connected, 1, 1000).await?;
    let refused = site.sgctl.call(&["node", "delete", "node-1"]).await?;
    ensure!(refused.code == 5, "{}", refused.stderr);
    ensure!(
        refused.stderr.contains("NODE_CONNECTED"),
        "{}",
        refused.stderr
    );
    ensure!(refused.stderr.contains("--force"), "{}", refused.stderr);
    let forced = site
        .sgctl
        .run(&["node", "delete", "node-1", "--force"])
        .await?;
    ensure!(
        forced.stderr.contains("It was connected"),
        "{}",
        forced.stderr
    );
    eventually(PATIENCE, "its log says so", async || {
        let lines = site.nodes[0].lines()?;
        let said = lines.iter().find(|line| line.mentions("was removed"));
        let said = said.context("nothing is said")?;
        ensure!(said.level() == "ERROR");
        ensure!(said.mentions("sgctl node token create"), "{said:?}");
        Ok(())
    })
    .await?;
    // Whoever is connected through it stays so until somebody stops it.
    bytes::echo(&mut connected, 2, 1000).await?;
    drop(connected);
    bytes::echo(&mut app.connect().await?, 3, 1000).await?;
    let list = site.sgctl.json(&["node", "list"]).await?;
    ensure!(list["nodes"] == Value::Array(Vec::new()), "{list}");

    // With an empty folder and a new token it is a new node of the old name.
    site.nodes[0].stop(Duration::from_secs(20)).await?;
    let token = site.sgctl.json(&["node", "token", "create"]).await?;
    let token = token["token"].as_str().context("a token")?.to_owned();
    let folder = site.folder().to_owned();
    std::fs::write(folder.join("node-1.join-token"), &token)?;
    site.keep_secret(token);
    std::fs::remove_dir_all(folder.join("node-1"))?;
    std::fs::create_dir(folder.join("node-1"))?;
    site.nodes[0].start().await?;
    eventually(PATIENCE, "it serves again", async || {
        ensure!(node(&site, "node-1").await?["state"] == "ready");
        bytes::echo(&mut app.connect().await?, 2, 1000).await
    })
    .await?;
    drop(client);
    site.finish()
}
