//! Clients exchange their security token for a certificate, go on without the token, renew, and are revoked: real processes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::backend::Echo;
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, Launch, PATIENCE, Site, SiteSetup, bytes,
    eventually, prepare, product, within,
};
use tokio::time::Instant;

/// What revocation may take.
const CUT: Duration = Duration::from_secs(2);

fn file(client: &Client, gateway: &Gateway) -> PathBuf {
    client.data.join(format!("certificate-{}.pem", gateway.id))
}

/// Waits until the client has a certificate other than `old`; answers its text.
async fn certificate(path: &Path, old: &str) -> Result<String> {
    eventually(
        PATIENCE,
        "a certificate is in the data directory",
        async || {
            let text = std::fs::read_to_string(path).context("certificate")?;
            ensure!(text != old, "it is the old one");
            Ok(text)
        },
    )
    .await
}

async fn credential(site: &Site, gateway: &Gateway, wanted: &str) -> Result<()> {
    eventually(
        PATIENCE,
        "the client is listed with its credential",
        async || {
            let rows = site.client_rows(gateway).await?;
            let row = rows.first().context("a client")?;
            ensure!(row["credential"] == wanted, "{row}");
            Ok(())
        },
    )
    .await
}

/// Waits until the client's log has a line with this reason.
async fn said(client: &Client, reason: &str) -> Result<()> {
    eventually(PATIENCE, reason, async || {
        let lines = client.daemon.lines()?;
        let found = lines
            .iter()
            .any(|line| line.field("reason").as_deref() == Some(reason));
        ensure!(found, "it has not said {reason}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_client_exchanges_its_token_for_a_certificate_and_needs_none_any_more() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("plant").await?;
    let mut client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let path = file(&client, &gateway);
    certificate(&path, "").await?;
    ensure!(!sg_runtime::files::readable_by_others(&path)?, "its mode");
    credential(&site, &gateway, "certificate").await?;

    // Neither a token nor a control plane.
    client.daemon.stop(PATIENCE).await?;
    client.forget_token();
    site.control_plane().stop(PATIENCE).await?;
    client.connect().await?;
    bytes::echo(&mut destination.connect().await?, 1, 100_000).await?;
    site.control_plane().start().await?;
    credential(&site, &gateway, "certificate").await?;

    // Another client has nothing of it, not even with the file.
    let setup = ClientSetup {
        once: true,
        ..ClientSetup::default()
    };
    let mut thief = site.prepare_client(&gateway, setup)?;
    std::fs::copy(&path, file(&thief, &gateway)).context("copy")?;
    thief.forget_token();
    thief.daemon.launch()?;
    thief.daemon.process()?.ended(PATIENCE).await?;
    said(&thief, "unauthenticated").await?;

    // A rotated token takes the certificates of the old one with it.
    let begun = Instant::now();
    site.sgctl
        .run(&["gateway", "token", "rotate", "plant"])
        .await?;
    said(&client, "certificate-withdrawn").await?;
    ensure!(
        begun.elapsed() < CUT + Duration::from_secs(2),
        "{:?}",
        begun.elapsed()
    );
    site.finish()
}

#[tokio::test]
async fn certificates_are_renewed_on_living_tunnels() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::with(SiteSetup {
        control_plane_options: ["--client-certificate-life", "6s"]
            .map(str::to_owned)
            .to_vec(),
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site
        .gateway_with("plant", &["--token-expiry", "cut"])
        .await?;
    let mut client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let mut user = destination.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    let path = file(&client, &gateway);
    let mut last = certificate(&path, "").await?;
    for round in 0..4 {
        last = certificate(&path, &last).await?;
        bytes::echo(&mut user, round, 50_000).await?;
    }
    // The stream has outlived the first certificate by far, and the tunnel with it.
    let ended = client.daemon.log()?.contains("tunnel ended");
    ensure!(!ended, "the tunnel was cut");
    drop(user);
    client.daemon.stop(PATIENCE).await?;
    client.forget_token();
    client.connect().await?;
    site.finish()
}

#[tokio::test]
async fn a_gateway_that_wants_no_certificates_gives_none() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site
        .gateway_with("plant", &["--client-certificates", "off"])
        .await?;
    let client = site.client(&gateway).await?;
    credential(&site, &gateway, "token").await?;
    site.sgctl
        .run(&["gateway", "update", "plant", "--client-certificates", "on"])
        .await?;
    let mut client = client;
    client.daemon.stop(PATIENCE).await?;
    client.connect().await?;
    let path = file(&client, &gateway);
    certificate(&path, "").await?;
    credential(&site, &gateway, "certificate").await?;
    // Switched off again, the tunnel ends and the token is shown once more.
    site.sgctl
        .run(&["gateway", "update", "plant", "--client-certificates", "off"])
        .await?;
    credential(&site, &gateway, "token").await?;
    site.finish()
}

/// Row 45: whoever has stolen a client's key, certificate and token is cut off, and so is the client.
#[tokio::test]
async fn threat_45_a_stolen_key_is_cut_off_within_two_seconds_and_stays_out() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("plant").await?;
    let client = site.client(&gateway).await?;
    certificate(&file(&client, &gateway), "").await?;
    let mut thief = site.prepare_client(&gateway, ClientSetup::default())?;
    for name in ["client.key", &format!("certificate-{}.pem", gateway.id)] {
        std::fs::copy(client.data.join(name), thief.data.join(name)).context("theft")?;
    }
    let mut honest = site.prepare_client(&gateway, ClientSetup::default())?;
    honest.connect().await?;
    thief.connect().await?;
    let rows = site.clients_listed(&gateway, 2).await?;
    let honest_id = honest.daemon.ready().await?["client_id"]
        .as_str()
        .context("id")?
        .to_owned();
    let stolen = rows
        .iter()
        .filter_map(|row| row["id"].as_str())
        .find(|id| *id != honest_id)
        .context("the stolen id")?
        .to_owned();

    site.sgctl
        .run(&["client", "revoke", &stolen, "--gateway", "plant"])
        .await?;
    let begun = Instant::now();
    within(CUT, "the cut", said(&thief, "client-revoked")).await??;
    ensure!(begun.elapsed() < CUT, "{:?}", begun.elapsed());
    // With the token, with the certificate, and anew: nothing opens.
    thief.daemon.kill()?;
    thief.daemon.launch()?;
    let rows = eventually(PATIENCE, "one is connected, one is revoked", async || {
        let rows = site.client_rows(&gateway).await?;
        let states: Vec<_> = rows
            .iter()
            .map(|row| {
                (
                    row["revoked"] == true,
                    row["tunnels"].as_array().map_or(0, Vec::len),
                )
            })
            .collect();
        match states
            .iter()
            .filter(|(revoked, tunnels)| *revoked && *tunnels == 0)
            .count()
            == 1
            && states
                .iter()
                .filter(|(revoked, tunnels)| !revoked && *tunnels == 1)
                .count()
                == 1
        {
            true => Ok(rows),
            false => bail!("{states:?}"),
        }
    })
    .await?;
    ensure!(rows.len() == 2, "{rows:?}");
    thief.forget_token();
    thief.daemon.kill()?;
    thief.daemon.launch()?;
    eventually(PATIENCE, "it is refused three times over", async || {
        let log = thief.daemon.log()?;
        ensure!(log.matches("client-revoked").count() >= 3, "not yet");
        Ok(())
    })
    .await?;
    let records = site
        .sgctl
        .json(&["audit", "list", "--gateway", "plant"])
        .await?;
    let records = records["auditRecords"].as_array().context("records")?;
    let last = records.last().context("a record")?;
    ensure!(last["method"] == "Clients.RevokeClient", "{last}");

    thief.daemon.kill()?;
    site.sgctl
        .run(&["client", "restore", &format!("plant/{stolen}")])
        .await?;
    thief.connect().await?;
    drop(honest);
    site.finish()
}

/// Echoes over one stream, and over a new connection each time, until told to end; answers how many rounds both made.
async fn load(destination: Destination, end: Arc<AtomicBool>) -> Result<u64> {
    let mut standing = destination.connect().await?;
    let mut rounds = 0;
    while !end.load(Ordering::Relaxed) {
        bytes::echo(&mut standing, rounds, 20_000)
            .await
            .context("the standing stream")?;
        let mut new = destination.connect().await?;
        bytes::echo(&mut new, rounds, 1000)
            .await
            .with_context(|| format!("connection {rounds}"))?;
        rounds += 1;
    }
    Ok(rounds)
}

fn issued(path: &Path) -> Result<[u8; 32]> {
    let chain = sg_runtime::identity::read_certificates(path)?;
    Ok(sg_runtime::crypto::sha256(chain.first().context("a leaf")?))
}

#[tokio::test(flavor = "multi_thread")]
async fn all_certificates_are_renewed_under_load_and_nobody_notices() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let lives = [
        "--client-certificate-life",
        "--node-certificate-life",
        "--own-certificate-life",
    ];
    let mut site = Site::with(SiteSetup {
        control_plane_options: lives
            .iter()
            .flat_map(|option| [(*option).to_owned(), "8s".to_owned()])
            .collect(),
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("plant").await?;
    let client = site.client(&gateway).await?;
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let end = Arc::new(AtomicBool::new(false));
    let mut loads = tokio::task::JoinSet::new();
    loads.spawn(load(destination.clone(), Arc::clone(&end)));
    let client_file = file(&client, &gateway);
    let node_file = site.folder().join("node-1/node.pem");
    let mut last = (certificate(&client_file, "").await?, issued(&node_file)?);
    for _ in 0..3 {
        let renewed = certificate(&client_file, &last.0).await?;
        let node = eventually(PATIENCE, "the node has another certificate", async || {
            let now = issued(&node_file)?;
            ensure!(now != last.1, "it is the old one");
            Ok(now)
        })
        .await?;
        last = (renewed, node);
    }
    let said = "own certificate renewed";
    eventually(PATIENCE, said, async || {
        let times = site.control_plane().log()?.matches(said).count();
        ensure!(times >= 2, "{times}");
        Ok(())
    })
    .await?;
    // Whoever connects now is shown what is new, in both directions.
    site.sgctl.run(&["status"]).await?;
    let mut late = site.prepare_client(&gateway, ClientSetup::default())?;
    late.connect().await?;
    end.store(true, Ordering::Relaxed);
    let rounds = within(PATIENCE, "the load", loads.join_next())
        .await?
        .context("load")??;
    let rounds = rounds?;
    ensure!(rounds > 20, "{rounds} rounds");
    let mut client = client;
    ensure!(
        !client.daemon.log()?.contains("tunnel ended"),
        "the tunnel was lost"
    );
    // The node comes back with the certificate that it has written down.
    site.node().stop(PATIENCE).await?;
    site.node().start().await?;
    client.connected(PATIENCE).await?;
    client.daemon.stop(PATIENCE).await?;
    site.finish()
}

#[tokio::test]
async fn whoever_has_lost_every_admin_token_makes_one_with_the_store() -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        nodes: 0,
        ..SiteSetup::default()
    })
    .await?;
    site.gateway("plant").await?;
    site.control_plane().stop(PATIENCE).await?;
    let data = site.folder().join("control-plane-1");
    let store = format!("embedded:{}", data.join("store.redb").display());
    let recover = Launch::new("recover", product("sg-control-plane")?, site.folder())
        .option("--store", store)
        .option("--data-dir", &data)
        .arg("--recover-admin");
    recover.run().await?;
    let file = data.join("recovered-admin.token");
    ensure!(!sg_runtime::files::readable_by_others(&file)?, "its mode");
    let token = std::fs::read_to_string(&file).context("token")?;
    let file = site.secret_file("recovered.token", token.trim())?;
    site.control_plane().start().await?;
    let recovered = site.sgctl_with(&file);
    recovered
        .run(&["token", "create", "new", "--role", "admin"])
        .await?;
    let records = recovered.json(&["audit", "list"]).await?;
    let records = records["auditRecords"].as_array().context("records")?;
    let methods: Vec<_> = records
        .iter()
        .filter_map(|r| r["method"].as_str())
        .collect();
    ensure!(methods.contains(&"RecoverAdmin"), "{methods:?}");
    let listed = recovered.json(&["token", "list"]).await?;
    let ends = listed["adminTokens"]
        .as_array()
        .context("tokens")?
        .iter()
        .find(|token| {
            token["name"]
                .as_str()
                .is_some_and(|name| name.starts_with("recovered-"))
        })
        .context("the token")?
        .get("expireTime")
        .cloned();
    ensure!(ends.is_some(), "it ends");
    recovered.run(&["audit", "verify"]).await?;

    // An empty store has nothing to recover, and another key opens nothing.
    let elsewhere = site.folder().join("elsewhere");
    std::fs::create_dir(&elsewhere).context("folder")?;
    let empty = Launch::new("empty", product("sg-control-plane")?, site.folder())
        .option("--store", "memory:")
        .option("--data-dir", &elsewhere)
        .arg("--recover-admin");
    let mut ended = empty.start()?;
    ensure!(ended.ended(PATIENCE).await?.code() == Some(2), "exit code");
    site.finish()
}

#[tokio::test(flavor = "multi_thread")]
async fn another_authority_takes_over_under_load_and_nobody_notices() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    // A tenth of a life is the time within which all ask for certificates of the new one.
    let lives = ["--client-certificate-life", "--node-certificate-life"];
    let mut site = Site::with(SiteSetup {
        etcd: true,
        control_planes: 2,
        nodes: 2,
        control_plane_options: lives
            .iter()
            .flat_map(|option| [(*option).to_owned(), "30s".to_owned()])
            .collect(),
        ..SiteSetup::default()
    })
    .await?;
    let old = sg_runtime::identity::read_certificates(&site.ca_file())?;
    let old_pin = sg_runtime::identity::spki_sha256(old.first().context("a root")?)?;
    let old_pin = format!("sha256:{}", sg_runtime::crypto::hex(&old_pin));
    let old_file = site.folder().join("old-ca.pem");
    std::fs::copy(site.ca_file(), &old_file).context("the old CA")?;
    let old_file = old_file.display().to_string();
    let gateway = site.gateway("plant").await?;
    let by = |ca: &str| ClientSetup {
        ca: Some(ca.to_owned()),
        ..ClientSetup::default()
    };
    let mut clients = Vec::new();
    for ca in [&old_pin, &old_file] {
        let mut client = site.prepare_client(&gateway, by(ca))?;
        client.connect().await?;
        certificate(&file(&client, &gateway), "").await?;
        clients.push(client);
    }
    let destination = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let end = Arc::new(AtomicBool::new(false));
    let mut loads = tokio::task::JoinSet::new();
    loads.spawn(load(destination.clone(), Arc::clone(&end)));

    site.sgctl.run(&["ca", "rotate"]).await?;
    // In between: clients that begin now and know only the old authority, and a control plane that is reached by it.
    for ca in [&old_pin, &old_file] {
        let mut late = site.prepare_client(&gateway, by(ca))?;
        late.connect().await?;
        late.daemon.stop(PATIENCE).await?;
    }
    eventually(PATIENCE, "no node lags", async || {
        let shown = site.sgctl.json(&["ca", "show"]).await?;
        let lagging = shown["laggingNodes"].as_array().map_or(0, Vec::len);
        ensure!(lagging == 0, "{shown}");
        Ok(())
    })
    .await?;
    // Every client trusts the new one, and has a certificate of it.
    for client in &clients {
        eventually(PATIENCE, "the client knows both", async || {
            let known = sg_runtime::identity::read_certificates(&client.data.join("trust.pem"))?;
            let own = sg_runtime::identity::read_certificates(&file(client, &gateway))?;
            ensure!(
                (known.len(), own.len()) == (2, 2),
                "{} {}",
                known.len(),
                own.len()
            );
            Ok(())
        })
        .await?;
    }
    site.sgctl.run(&["ca", "finish"]).await?;
    for client in &clients {
        eventually(PATIENCE, "the client knows the new one only", async || {
            let known = sg_runtime::identity::read_certificates(&client.data.join("trust.pem"))?;
            ensure!(
                known.len() == 1 && !old.contains(&known[0]),
                "{}",
                known.len()
            );
            Ok(())
        })
        .await?;
    }
    end.store(true, Ordering::Relaxed);
    let rounds = within(PATIENCE, "the load", loads.join_next())
        .await?
        .context("load")???;
    ensure!(rounds > 20, "{rounds} rounds");
    for client in &clients {
        ensure!(
            !client.daemon.log()?.contains("tunnel ended"),
            "a tunnel was lost"
        );
    }
    // All of them come back, still started with the old authority and without a token.
    for node in &mut site.nodes {
        node.stop(PATIENCE).await?;
        node.start().await?;
    }
    for client in &mut clients {
        client.daemon.stop(PATIENCE).await?;
        client.forget_token();
        client.connect().await?;
    }
    bytes::echo(&mut destination.connect().await?, 3, 10_000).await?;
    // Whoever has not heard of it in time needs the new authority from an operator.
    let mut stranger = site.prepare_client(
        &gateway,
        ClientSetup {
            once: true,
            ..by(&old_pin)
        },
    )?;
    stranger.daemon.launch()?;
    stranger.daemon.process()?.ended(PATIENCE).await?;
    said(&stranger, "wrong-peer").await?;
    let methods = site.sgctl.json(&["audit", "list"]).await?.to_string();
    for method in ["RotateAuthority", "FinishAuthorityRotation"] {
        ensure!(methods.contains(method), "{method} is written down");
    }
    site.finish()
}
