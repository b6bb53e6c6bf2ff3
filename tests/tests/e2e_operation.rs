//! What an operator relies on: ports that follow the configuration, statuses that tell the truth,
//! exit codes, health, metrics and orderly ends.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, PATIENCE, Site, bytes, eventually, get, prepare,
    within,
};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

async fn site() -> Result<(Site, Gateway, Client, Echo)> {
    prepare();
    let resource = Echo::start().await?;
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    Ok((site, gateway, client, resource))
}

async fn closed(destination: &Destination) -> Result<()> {
    eventually(PATIENCE, "the port is closed", async || {
        ensure!(
            TcpStream::connect(destination.address).await.is_err(),
            "it accepts"
        );
        Ok(())
    })
    .await
}

#[tokio::test]
async fn a_port_is_open_when_create_returns_and_follows_every_change() -> Result<()> {
    let (site, gateway, client, resource) = site().await?;
    for number in 0..10 {
        let name = format!("app-{number}");
        let made = site
            .destination(&gateway, &name, &resource.address(), &[])
            .await?;
        // No second attempt: the answer promises that it accepts.
        let mut user = made.connect().await?;
        bytes::echo(&mut user, number, 1000).await?;
    }
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let path = made.path.as_str();
    site.sgctl
        .run(&["destination", "disable", path, "--wait"])
        .await?;
    ensure!(made.connect().await.is_err(), "disabled, and it accepts");
    site.sgctl
        .run(&["destination", "enable", path, "--wait"])
        .await?;
    bytes::echo(&mut made.connect().await?, 1, 1000).await?;
    // To another resource, on the same port.
    let other = Echo::start().await?;
    site.sgctl
        .run(&["acl", "allow", "dev", &other.address(), "--wait", "10s"])
        .await?;
    let options = [
        "destination",
        "update",
        path,
        "--resource",
        &other.address(),
        "--wait",
    ];
    site.sgctl.run(&options).await?;
    drop(resource);
    bytes::echo(&mut made.connect().await?, 2, 1000).await?;
    site.sgctl.run(&["destination", "delete", path]).await?;
    closed(&made).await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn a_port_that_is_taken_shows_as_status_and_recovers() -> Result<()> {
    let (site, gateway, client, resource) = site().await?;
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let path = made.path.as_str();
    site.sgctl
        .run(&["destination", "disable", path, "--wait"])
        .await?;
    let thief = TcpListener::bind(made.address).await?;
    site.sgctl.run(&["destination", "enable", path]).await?;
    let node_status = async || {
        let got = site.sgctl.json(&["destination", "get", path]).await?;
        Ok::<_, anyhow::Error>(got["status"].clone())
    };
    eventually(PATIENCE, "the status says why", async || {
        let status = node_status().await?;
        let node = &status["nodes"][0];
        ensure!(
            node["state"] == "failed" && status["ready"] == false,
            "{status}"
        );
        ensure!(node["reason"] == "address-in-use", "{status}");
        Ok(())
    })
    .await?;
    drop(thief);
    eventually(PATIENCE, "it has recovered", async || {
        let status = node_status().await?;
        ensure!(status["ready"] == true, "{status}");
        Ok(())
    })
    .await?;
    bytes::echo(&mut made.connect().await?, 1, 1000).await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn names_and_ports_are_unique() -> Result<()> {
    let (mut site, gateway, client, resource) = site().await?;
    let address = resource.address();
    let made = site.destination(&gateway, "app", &address, &[]).await?;
    let other = site.gateway("other").await?;
    let port = made.port.to_string();
    let create = ["destination", "create"];
    let tcp = ["--protocol", "tcp", "--resource", &address];
    for (what, arguments) in [
        (
            "a gateway of the same name",
            vec!["gateway", "create", "dev"],
        ),
        (
            "a destination of the same name",
            [&create[..], &["dev/app"], &tcp].concat(),
        ),
        (
            "the same port in another gateway",
            [&create[..], &["other/app"], &tcp, &["--cloud-port", &port]].concat(),
        ),
    ] {
        let answer = site.sgctl.call(&arguments).await?;
        ensure!(answer.code == 5, "{what}: {answer:?}");
        ensure!(
            answer.stdout.is_empty() && !answer.stderr.is_empty(),
            "{what}: {answer:?}"
        );
    }
    // The same name in another gateway is another destination.
    let second = site.destination(&other, "app", &address, &[]).await?;
    ensure!(second.port != made.port);
    drop(client);
    site.finish()
}

#[tokio::test]
async fn exit_codes_tell_what_went_wrong() -> Result<()> {
    let (mut site, gateway, client, resource) = site().await?;
    site.destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let sgctl = site.sgctl.clone();
    let code = async |arguments: &[&str]| {
        let answer = sgctl.call(arguments).await?;
        let context = format!("{arguments:?}: {answer:?}");
        Ok::<_, anyhow::Error>((answer.code, context))
    };
    for (arguments, expected) in [
        (&["gateway", "get", "dev"][..], 0),
        (&["gateway", "get"][..], 2),
        (&["no-such-command"][..], 2),
        (&["gateway", "get", "missing"][..], 3),
        (&["destination", "get", "dev/missing"][..], 3),
        (&["gateway", "create", "dev"][..], 5),
        (&["gateway", "create", "Not A Name"][..], 2),
    ] {
        let (got, context) = code(arguments).await?;
        ensure!(got == expected, "expected {expected}: {context}");
    }
    // As JSON, a failure is one object that programs can read.
    let answer = sgctl
        .call(&["gateway", "get", "missing", "-o", "json"])
        .await?;
    let failure = answer.json()?;
    for field in ["code", "reason", "message"] {
        ensure!(!failure[field].is_null(), "{field} in {failure}");
    }
    // Two editors: the second has an etag that is no longer the newest.
    let first = sgctl.json(&["gateway", "get", "dev"]).await?;
    let etag = first["etag"].as_str().context("etag")?;
    let update = [
        "gateway",
        "update",
        "dev",
        "--description",
        "a",
        "--etag",
        etag,
    ];
    sgctl.run(&update).await?;
    let (got, context) = code(&update).await?;
    ensure!(got == 5, "{context}");
    // A wrong admin token, and no control plane.
    let ca = site.ca_file();
    let token = site.secret_file("wrong.admin-token", &format!("sga_{}", "ab".repeat(32)))?;
    let server = site.control_addresses()[0].clone();
    let stranger = sg_tests::Sgctl::new(&server, &ca, &token);
    ensure!(stranger.call(&["gateway", "list"]).await?.code == 4);
    let nobody = format!("127.0.0.1:{}", site.ports().server());
    let lost = sg_tests::Sgctl::new(&nobody, &ca, &ca.with_file_name("admin.token"));
    ensure!(
        lost.call(&["gateway", "list", "--timeout", "2s"])
            .await?
            .code
            == 6
    );
    drop(client);
    site.finish()
}

#[tokio::test]
async fn health_readiness_and_metrics_are_served_by_every_daemon() -> Result<()> {
    let (mut site, gateway, client, resource) = site().await?;
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let mut user = made.connect().await?;
    bytes::echo(&mut user, 1, 5000).await?;
    for admin in [
        site.control_plane().admin(),
        site.node().admin(),
        client.daemon.admin(),
    ] {
        for path in ["/livez", "/readyz"] {
            let (status, body) = get(admin, path).await?;
            ensure!(status == 200, "{admin}{path}: {status} {body}");
        }
        let metrics = sg_tests::Metrics::read(admin).await?;
        ensure!(metrics.has("sg_build_info"), "{admin} has no sg_build_info");
        ensure!(
            metrics.has("process_resident_memory_bytes"),
            "{admin} has no process_*"
        );
        let resource = resource.address();
        let secret = gateway.token.as_str();
        let bad = metrics
            .label_values()
            .find(|value| *value == resource || *value == secret);
        ensure!(bad.is_none(), "{bad:?} is a label at {admin}");
    }
    let node = site.node().metrics().await?;
    let labels = [("gateway", "dev"), ("destination", "app")];
    let active = node.sum("sg_streams_active", &labels);
    ensure!((active - 1.0).abs() < 0.1, "{active} streams are active");
    let tunnels = node.sum("sg_tunnels", &[("gateway", "dev")]);
    ensure!((tunnels - 1.0).abs() < 0.1, "{tunnels} tunnels");
    let connected = node.sum("sg_control_plane_connected", &[]);
    ensure!(connected > 0.5, "connected: {connected}");
    for name in ["sg_config_revision", "sg_stream_connect_seconds_count"] {
        ensure!(node.sum(name, &[]) > 0.0, "{name}");
    }
    drop(user);

    // One line at the end of the stream, with all that an operator looks for.
    let node = site.node();
    eventually(PATIENCE, "the stream is logged", async || {
        let lines = node.access()?;
        ensure!(lines.len() == 1, "{lines:?}");
        let line = &lines[0];
        for (field, value) in [
            ("gateway", "dev"),
            ("destination", "app"),
            ("reason", "finished"),
        ] {
            ensure!(line.field(field) == value, "{field} in {line:?}");
        }
        ensure!(line.field("resource") == resource.address(), "{line:?}");
        for field in ["client", "node", "user"] {
            ensure!(!line.field(field).is_empty(), "{field} in {line:?}");
        }
        ensure!(line.number("bytes_to_resource") == 5000, "{line:?}");
        ensure!(line.number("bytes_to_user") == 5000, "{line:?}");
        Ok(())
    })
    .await?;
    drop(client);
    site.finish()
}

#[tokio::test]
async fn readiness_names_what_is_missing() -> Result<()> {
    prepare();
    let mut site = Site::start().await?;
    let gateway = site.gateway("dev").await?;
    // Nobody listens where this client is sent.
    let nobody = std::net::SocketAddr::from(([127, 0, 0, 1], site.ports().server()));
    let setup = ClientSetup {
        nodes: vec![nobody],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.daemon.launch()?;
    let admin = client.daemon.admin();
    let (status, body) = sg_tests::get_when_served(admin, "/readyz").await?;
    ensure!(
        status == 503 && body.contains(&gateway.id),
        "{status} {body}"
    );
    ensure!(get(admin, "/livez").await?.0 == 200);
    site.finish()
}

#[tokio::test]
async fn sigterm_lets_open_streams_end_and_exits_0() -> Result<()> {
    let (mut site, gateway, mut client, resource) = site().await?;
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let mut user = made.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;

    // The node: no new user, but the open stream goes on until it ends by itself.
    site.node().process()?.terminate()?;
    closed(&made).await?;
    bytes::echo(&mut user, 2, 100_000)
        .await
        .context("while the node drains")?;
    drop(user);
    let status = site.node().process()?.ended(Duration::from_secs(5)).await?;
    ensure!(status.success(), "node: {status}");
    site.node().start().await?;

    // The client, the same.
    client.connected(PATIENCE).await?;
    let mut user = eventually(PATIENCE, "a user gets through", async || {
        let mut user = made.connect().await?;
        bytes::echo(&mut user, 3, 1000).await?;
        Ok(user)
    })
    .await?;
    client.daemon.process()?.terminate()?;
    bytes::echo(&mut user, 4, 100_000)
        .await
        .context("while the client drains")?;
    drop(user);
    let status = client
        .daemon
        .process()?
        .ended(Duration::from_secs(5))
        .await?;
    ensure!(status.success(), "client: {status}");

    let status = site.control_plane().stop(Duration::from_secs(5)).await?;
    ensure!(status.success(), "control plane: {status}");
    let status = site.node().stop(Duration::from_secs(5)).await?;
    ensure!(status.success(), "node without a control plane: {status}");
    site.finish()
}

#[tokio::test]
async fn a_second_signal_ends_a_drain_at_once() -> Result<()> {
    let (mut site, gateway, client, resource) = site().await?;
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let mut user = made.connect().await?;
    bytes::echo(&mut user, 1, 1000).await?;
    site.node().process()?.terminate()?;
    closed(&made).await?;
    site.node()
        .process()?
        .check_running()
        .context("it waits for the open stream")?;
    site.node().process()?.terminate()?;
    let status = site.node().process()?.ended(Duration::from_secs(3)).await?;
    ensure!(status.success(), "{status}");
    let rest = within(PATIENCE, "the stream ends", user.read(&mut [0; 1])).await?;
    ensure!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    drop(client);
    site.finish()
}

#[tokio::test]
async fn lists_and_status_show_what_is_there() -> Result<()> {
    let (site, gateway, client, resource) = site().await?;
    let made = site
        .destination(&gateway, "app", &resource.address(), &[])
        .await?;
    let mut user = made.connect().await?;
    bytes::echo(&mut user, 1, 7000).await?;
    let rows = eventually(PATIENCE, "the client's stream is listed", async || {
        let rows = site.client_rows(&gateway).await?;
        ensure!(rows.len() == 1 && rows[0]["activeStreams"] == 1, "{rows:?}");
        Ok(rows)
    })
    .await?;
    for field in [
        "id",
        "name",
        "version",
        "address",
        "connectTime",
        "rttMs",
        "aclGeneration",
    ] {
        ensure!(!rows[0][field].is_null(), "{field} in {rows:?}");
    }
    drop(user);
    eventually(PATIENCE, "the bytes are listed", async || {
        let rows = site.client_rows(&gateway).await?;
        ensure!(rows[0]["activeStreams"] == 0, "{rows:?}");
        // 64-bit numbers are text in JSON.
        ensure!(
            rows[0]["bytesToUser"] == "7000" && rows[0]["bytesToResource"] == "7000",
            "{rows:?}"
        );
        Ok(())
    })
    .await?;
    let nodes = site.sgctl.json(&["node", "list"]).await?;
    let node = &nodes["nodes"][0];
    ensure!(
        node["name"] == "node-1" && node["state"] == "ready" && node["tunnels"] == 1,
        "{nodes}"
    );
    let list = site.sgctl.json(&["acl", "list", "dev"]).await?;
    ensure!(list["entries"][0]["action"] == "allow", "{list}");
    let status = site.sgctl.json(&["status"]).await?;
    ensure!(
        status["nodesConnected"] == 1 && status["clients"] == 1,
        "{status}"
    );
    // As tables, each names what it lists.
    for (command, word) in [
        (&["gateway", "list"][..], "dev"),
        (&["destination", "list", "dev"][..], "app"),
        (&["node", "list"][..], "node-1"),
    ] {
        let answer = site.sgctl.run(command).await?;
        ensure!(answer.stdout.contains(word), "{command:?}: {answer:?}");
    }
    drop(client);
    site.finish()
}
