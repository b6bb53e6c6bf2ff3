//! The console of the client: what a person changes there reaches everybody, stays, and can be forbidden.

#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use sg_tests::backend::Echo;
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, PATIENCE, Site, SiteSetup, bytes, eventually,
    prepare,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

/// Open streams that a change forbids end within this time.
const CUT: Duration = Duration::from_secs(2);

/// A client with a console whose first node is this one.
async fn client(site: &mut Site, gateway: &Gateway, node: u8) -> Result<Client> {
    let setup = ClientSetup {
        nodes: vec![site.tunnel_address(node)],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(gateway, setup)?.with_console();
    client.connect().await?;
    Ok(client)
}

/// Waits until the console shows a list that is so.
async fn shows(client: &mut Client, what: &str, so: impl Fn(&str) -> bool) -> Result<String> {
    eventually(PATIENCE, what, async || {
        let shown = client.type_line("S").await?;
        match so(&shown) {
            true => Ok(shown),
            false => bail!("{shown}"),
        }
    })
    .await
}

/// Whether users get through on both nodes.
async fn passes(destination: &Destination) -> Result<()> {
    for node in 0..2 {
        let address = (Site::node_host(node), destination.port);
        let mut user = TcpStream::connect(address).await?;
        bytes::echo(&mut user, 1, 1000).await?;
    }
    Ok(())
}

async fn audited(site: &Site) -> Result<Vec<Value>> {
    let list = site
        .sgctl
        .json(&["audit", "list", "--gateway", "dev"])
        .await?;
    let records = list["auditRecords"].as_array().context("records")?.iter();
    let edits = records.filter(|record| record["method"] == "NodeSync.AclEdit");
    Ok(edits.cloned().collect())
}

#[tokio::test]
async fn a_change_at_one_client_reaches_the_others_and_the_nodes_and_stays() -> Result<()> {
    prepare();
    let echo = Echo::start().await?;
    let mut site = Site::with(SiteSetup {
        nodes: 2,
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let mut one = client(&mut site, &gateway, 0).await?;
    let mut two = client(&mut site, &gateway, 1).await?;
    let target = echo.address();
    let destination = site
        .destination_only(&gateway, "echo", &target, &[])
        .await?;

    // A: at one client, for all.
    let answer = one.type_line(&format!("A {target}")).await?;
    let expected = format!("allow {target}: generation 2, in force here\n");
    ensure!(answer == expected, "{answer}");
    let entry = |shown: &str| shown.contains(&target) && shown.contains("generation 2\n");
    shows(&mut two, "the other client has it", entry).await?;
    eventually(PATIENCE, "users get through", async || {
        passes(&destination).await
    })
    .await?;
    let again = one.type_line(&format!("acl allow {target}")).await?;
    ensure!(again.contains("says so already, generation 2"), "{again}");

    // The trail says who it was.
    let records = audited(&site).await?;
    ensure!(records.len() == 1, "{records:?}");
    let rows = site.client_rows(&gateway).await?;
    let ids: Vec<&str> = rows.iter().filter_map(|row| row["id"].as_str()).collect();
    let principal = records[0]["principal"].as_str().context("principal")?;
    ensure!(
        ids.iter()
            .any(|id| principal.starts_with(&format!("client/{id} via node/")))
            && principal.contains("(node-"),
        "{principal}"
    );
    ensure!(records[0]["source"] == "127.0.0.1", "{records:?}");

    // D: what is open and now forbidden ends, and nothing new begins.
    let mut open = destination.connect().await?;
    bytes::echo(&mut open, 2, 1000).await?;
    let begun = Instant::now();
    let answer = two.type_line(&format!("D {target}")).await?;
    ensure!(answer.contains("generation 3"), "{answer}");
    let end = tokio::time::timeout(CUT, open.read(&mut [0; 1])).await?;
    ensure!(end.is_err(), "it is reset: {end:?}");
    ensure!(begun.elapsed() < CUT, "{:?}", begun.elapsed());
    ensure!(passes(&destination).await.is_err(), "it is denied");

    // N with a target, and with none.
    let answer = two.type_line(&format!("N {target}")).await?;
    ensure!(
        answer.starts_with(&format!("no acl {target}: generation 4")),
        "{answer}"
    );
    let answer = one.type_line("N nowhere:1").await?;
    ensure!(answer.contains("says so already, generation 4"), "{answer}");

    // F: a whole file, or nothing of it.
    let file = site.folder().join("list.acl");
    std::fs::write(
        &file,
        format!("# ours\nacl allow {target}\nacl deny 192.0.2.0/24:\n"),
    )?;
    let load = format!("F {}", file.display());
    let answer = one.type_line(&load).await?;
    ensure!(
        answer == "list replaced: generation 5, in force here\n",
        "{answer}"
    );
    std::fs::write(&file, "acl allow x:1\nacl permit y:1\n")?;
    let answer = one.type_line(&load).await?;
    ensure!(
        answer.starts_with("error: ") && answer.contains("line 2"),
        "{answer}"
    );
    for nothing in ["F /nowhere", "F /dev/zero", "F /"] {
        let answer = one.type_line(nothing).await?;
        ensure!(answer.contains("cannot be read"), "{answer}");
    }
    let shown = shows(&mut one, "the file is in force", |shown| {
        shown.contains("generation 5\n")
    })
    .await?;
    ensure!(
        shown.contains("192.0.2.0/24:") && shown.contains(&target),
        "{shown}"
    );
    ensure!(
        shown.contains("unlisted rules are currently: denied"),
        "{shown}"
    );
    let kept = site.sgctl.run(&["acl", "list", "dev"]).await?.stdout;
    ensure!(kept.contains("192.0.2.0/24:"), "{kept}");

    // What is said survives everybody.
    site.control_plane().kill()?;
    one.daemon.kill()?;
    two.daemon.kill()?;
    for node in &mut site.nodes {
        node.kill()?;
    }
    site.control_plane().start().await?;
    for node in &mut site.nodes {
        node.start().await?;
    }
    one.connect().await?;
    two.connect().await?;
    shows(&mut one, "the list is there", |shown| {
        shown.contains("192.0.2.0/24:")
    })
    .await?;
    eventually(PATIENCE, "users get through again", async || {
        passes(&destination).await
    })
    .await?;
    let answer = one.type_line("N").await?;
    ensure!(answer.starts_with("no acl: generation 6"), "{answer}");
    shows(&mut two, "the list is empty", |shown| {
        !shown.contains(&target)
    })
    .await?;
    ensure!(
        audited(&site).await?.len() == 5,
        "one record for each change"
    );

    one.daemon.process()?.type_line("q")?;
    let status = one.daemon.process()?.ended(PATIENCE).await?;
    ensure!(status.success(), "{status}");
    site.finish()
}

#[tokio::test]
async fn a_gateway_may_keep_its_list_for_operators() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site
        .gateway_with("dev", &["--acl-edits", "operators"])
        .await?;
    let mut client = client(&mut site, &gateway, 0).await?;
    for line in ["A db:1", "D db:1", "N"] {
        let answer = client.type_line(line).await?;
        ensure!(answer.starts_with("error: not changed: "), "{answer}");
        ensure!(answer.ends_with("(operators-only)\n"), "{answer}");
    }
    site.sgctl
        .run(&["acl", "allow", "dev", "db:1", "--wait", "10s"])
        .await?;
    let shown = client.type_line("S").await?;
    ensure!(
        shown.contains("db:1"),
        "operators may, and S shows it: {shown}"
    );
    let read = site.sgctl.json(&["gateway", "get", "dev"]).await?;
    ensure!(read["aclEdits"] == "operators", "{read}");

    site.sgctl
        .run(&["gateway", "update", "dev", "--acl-edits", "clients"])
        .await?;
    let answer = client.type_line("A db:2").await?;
    ensure!(answer.contains("generation 3"), "{answer}");
    let wrong = site
        .sgctl
        .call(&["gateway", "update", "dev", "--acl-edits", "anybody"])
        .await?;
    ensure!(wrong.code == 2, "{wrong:?}");
    // Refusals are in the log for auditors, and not in the trail.
    let log = site.control_plane().log()?;
    ensure!(log.contains("operators-only"), "the log tells of it");
    ensure!(
        audited(&site).await?.len() == 1,
        "the trail has what was changed"
    );
    site.finish()
}

#[tokio::test]
async fn a_change_while_cut_off_is_refused_with_what_to_do() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let mut client = client(&mut site, &gateway, 0).await?;
    ensure!(client.type_line("A db:1").await?.contains("generation 2"));
    site.control_plane().stop(PATIENCE).await?;
    let refused = eventually(PATIENCE, "the node is cut off", async || {
        let answer = client.type_line("A db:2").await?;
        match answer.contains("(cut-off)") {
            true => Ok(answer),
            // The loss was not noticed yet, and the change waits for a control plane in vain.
            false => bail!("{answer}"),
        }
    })
    .await?;
    ensure!(refused.contains("nothing was changed"), "{refused}");
    ensure!(
        client.type_line("S").await?.contains("db:1"),
        "S still shows it"
    );

    site.control_plane().start().await?;
    eventually(PATIENCE, "changes are made again", async || {
        let answer = client.type_line("A db:3").await?;
        match answer.contains("generation") {
            true => Ok(()),
            false => bail!("{answer}"),
        }
    })
    .await?;
    // A client without a node says so, too.
    site.node().stop(PATIENCE).await?;
    let answer = client.type_line("A db:4").await?;
    ensure!(
        answer.contains("nothing was changed") && answer.contains("(no-node)"),
        "{answer}"
    );
    let shown = client.type_line("S").await?;
    ensure!(
        shown.contains("when the client was last connected"),
        "{shown}"
    );
    site.finish()
}

#[tokio::test]
async fn several_gateways_are_told_apart_and_a_local_list_is_told_of() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let (plant, office) = (site.gateway("plant").await?, site.gateway("office").await?);
    let tokens = site.secret_file("both", &format!("{}\n{}\n", plant.token, office.token))?;
    let local = site.folder().join("local.acl");
    std::fs::write(&local, "acl allow db:1\n")?;
    let setup = ClientSetup {
        token_file: Some(tokens),
        options: vec![
            office.id.clone(),
            format!("--local-acl={}", local.display()),
        ],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&plant, setup)?.with_console();
    client.connect().await?;
    let answer = client.type_line("A db:1").await?;
    ensure!(answer.contains("@plant or @office"), "{answer}");
    let answer = client.type_line("A db:1 @office").await?;
    ensure!(answer.contains("generation 2"), "{answer}");
    let answer = client.type_line(&format!("A db:2 @{}", plant.id)).await?;
    ensure!(answer.contains("generation 2"), "{answer}");
    let shown = client.type_line("S").await?;
    ensure!(
        shown.contains("gateway plant: ") && shown.contains("gateway office: "),
        "{shown}"
    );
    let shown = client.type_line("S @office").await?;
    ensure!(shown.contains("db:1") && !shown.contains("db:2"), "{shown}");
    ensure!(shown.contains("a list of its own"), "{shown}");
    let answer = client.type_line("A db:3 @nowhere").await?;
    ensure!(answer.contains("no gateway 'nowhere'"), "{answer}");
    ensure!(client.type_line("help").await?.contains("@GATEWAY"));
    site.finish()
}

#[tokio::test]
async fn the_end_of_standard_input_ends_the_console_alone() -> Result<()> {
    prepare();
    let echo = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let destination = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    // /dev/null from the first, and an input that ends later.
    let setup = ClientSetup {
        options: vec!["--console".to_owned()],
        ..ClientSetup::default()
    };
    let mut null = site.prepare_client(&gateway, setup)?;
    null.connect().await?;
    let mut ends = client(&mut site, &gateway, 0).await?;
    ends.daemon.process()?.end_input();
    for client in [&mut null, &mut ends] {
        let (id, daemon) = (client.daemon.id(), &client.daemon);
        eventually(PATIENCE, "the console is closed", async || {
            ensure!(daemon.log()?.contains("the console is closed"), "not yet");
            // Nobody is left who could spin.
            for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
                let name = std::fs::read_to_string(thread?.path().join("comm"))?;
                ensure!(name.trim() != "console", "its thread is there");
            }
            Ok(())
        })
        .await?;
        client.daemon.process()?.check_running()?;
    }
    for _ in 0..4 {
        let mut user = destination.connect().await?;
        bytes::echo(&mut user, 1, 1000).await?;
    }
    site.finish()
}
