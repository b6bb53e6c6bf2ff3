//! Access control lists as an operator uses them: load a file, ask what it means, and see both ends keep to it.

#![allow(clippy::unwrap_used)]

use anyhow::{Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::{Destination, Site, bytes, prepare};

async fn passes(destination: &Destination) -> bool {
    let Ok(mut user) = destination.connect().await else {
        return false;
    };
    bytes::echo(&mut user, 1, 1000).await.is_ok()
}

#[tokio::test]
async fn a_list_from_a_file_is_enforced_explained_and_checked() -> Result<()> {
    prepare();
    let (one, other) = (Echo::start().await?, Echo::start().await?);
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let _client = site.client(&gateway).await?;
    let allowed = site
        .destination_only(&gateway, "allowed", &one.address(), &[])
        .await?;
    let denied = site
        .destination_only(&gateway, "denied", &other.address(), &[])
        .await?;
    let port = |address: &str| address.rsplit(':').next().unwrap().parse::<u16>();
    let (one_port, other_port) = (port(&one.address())?, port(&other.address())?);
    let file = site.folder().join("list.acl");
    let text = format!(
        "# everything on loopback, but for one port\r\n\
         acl allow 127.0.0.0/8:1024-65535\r\n\
         ACL Deny 127.0.0.0/8:{other_port}\r\n\
         acl allow 127.0.0.0/8:{one_port}\r\n"
    );
    std::fs::write(&file, text)?;
    let name = file.display().to_string();
    site.sgctl
        .run(&["acl", "load", "dev", &name, "--wait", "10s"])
        .await?;
    ensure!(passes(&allowed).await, "a network and a port allow it");
    ensure!(!passes(&denied).await, "the narrower entry denies it");

    let explained = site
        .sgctl
        .json(&["acl", "explain", "dev", &other.address()])
        .await?;
    ensure!(explained["allowed"] == false, "{explained}");
    ensure!(explained["number"] == 2, "{explained}");
    let entry = format!("deny 127.0.0.0/8:{other_port}");
    ensure!(explained["entry"] == entry.as_str(), "{explained}");

    std::fs::write(&file, "acl allow :\nacl deny 192.0.2.0/24:\n")?;
    site.sgctl
        .run(&["acl", "load", "dev", &name, "--wait", "10s"])
        .await?;
    ensure!(passes(&denied).await, "everything is allowed");
    let found = site
        .sgctl
        .call(&["acl", "lint", "dev", "-o", "json"])
        .await?;
    ensure!(found.code == 7, "{found:?}");
    let kinds: Vec<String> = found.json()?["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| finding["kind"].as_str().unwrap_or_default().to_owned())
        .collect();
    ensure!(kinds == ["unreachable", "allow-all"], "{kinds:?}");

    // What only paths are allowed of is closed for streams that nobody reads.
    std::fs::write(&file, format!("acl allow {}/api\n", one.address()))?;
    site.sgctl
        .run(&["acl", "load", "dev", &name, "--wait", "10s"])
        .await?;
    ensure!(!passes(&allowed).await, "a stream has no paths");
    site.finish()
}
