//! Datagrams the other way: users at the client, the resource at the node.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::counterpart::dns::{self, Dns};
use sg_tests::datagrams::{AGAIN, Resource, User};
use sg_tests::{
    AccessLine, Client, Daemon, Gateway, Launch, PATIENCE, Site, SiteSetup, bytes, debian,
    eventually, prepare,
};
use tokio::net::{TcpStream, UdpSocket};
use tokio::task::JoinSet;

struct Setup {
    site: Site,
    gateway: Gateway,
    client: Client,
}

/// An installation whose node may reach this machine, with a client.
async fn setup() -> Result<Setup> {
    prepare();
    let mut site = Site::with(SiteSetup {
        node_environment: vec![("SG_CLOUD_ALLOW", "127.0.0.0/8".to_owned())],
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    Ok(Setup {
        site,
        gateway,
        client,
    })
}

impl Setup {
    /// Makes a cloud destination; answers where its users send.
    async fn cloud(
        &mut self,
        name: &str,
        protocol: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<SocketAddr> {
        let path = format!("{}/{name}", self.gateway.name);
        let port = self.site.ports().server();
        let client_port = port.to_string();
        let mut arguments = vec!["destination", "create", &path, "--kind", "cloud"];
        arguments.extend(["--protocol", protocol, "--resource", resource]);
        arguments.extend(["--client-port", &client_port, "--wait"]);
        arguments.extend(options);
        self.site.sgctl.json(&arguments).await?;
        Ok((Ipv4Addr::LOCALHOST, port).into())
    }

    async fn udp(&mut self, resource: SocketAddr, options: &[&str]) -> Result<SocketAddr> {
        self.cloud("udp", "udp", &resource.to_string(), options)
            .await
    }

    fn finish(self) -> Result<()> {
        drop(self.client);
        self.site.finish()
    }
}

async fn access_line(daemon: &Daemon, reason: &str) -> Result<AccessLine> {
    eventually(PATIENCE, &format!("a flow ends as {reason}"), async || {
        let lines = daemon.access()?;
        let found = lines.iter().find(|line| line.field("reason") == reason);
        match found {
            Some(line) => Ok(line.clone()),
            None => bail!("there are {lines:?}"),
        }
    })
    .await
}

async fn datagrams(daemon: &Daemon, direction: &str, result: &str) -> Result<f64> {
    let labels = [("direction", direction), ("result", result)];
    let metrics = daemon.metrics().await?;
    Ok(metrics.sum("sg_udp_datagrams_total", &labels))
}

/// The state and the address that the client reports for the destination.
async fn listens(site: &Site, path: &str) -> Result<(String, String)> {
    let shown = site.sgctl.json(&["destination", "get", path]).await?;
    let client = shown.pointer("/status/clients/0").context("no client")?;
    let field = |name| {
        let value = client.get(name).and_then(serde_json::Value::as_str);
        value.unwrap_or_default().to_owned()
    };
    Ok((field("state"), field("address")))
}

#[tokio::test]
async fn datagrams_of_every_length_arrive_whole() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup().await?;
    let listen = s.udp(resource.address, &[]).await?;
    let told = listens(&s.site, "dev/udp").await?;
    ensure!(
        told == ("listening".to_owned(), listen.to_string()),
        "the client says {told:?}"
    );
    let user = User::of(listen).await?;
    let mut sequence = bytes::Sequence::new(7);
    for length in [
        1, 0, 2, 1199, 1472, 1473, 4096, 16_384, 16_385, 65_506, 65_507,
    ] {
        user.ask(&sequence.take(length)).await?;
    }
    s.finish()
}

#[tokio::test]
async fn users_get_their_own_answers_and_lose_none() -> Result<()> {
    const USERS: u32 = 20;
    const QUESTIONS: u32 = 50;
    let resource = Resource::echo().await?;
    let mut s = setup().await?;
    let listen = s.udp(resource.address, &[]).await?;
    let mut users = JoinSet::new();
    for number in 0..USERS {
        users.spawn(async move {
            let user = User::of(listen).await?;
            let mut own = HashSet::new();
            for turn in 0..QUESTIONS {
                let question = format!("question {turn} of user {number}");
                user.send(question.as_bytes()).await?;
                own.insert(question.into_bytes());
                // A few under way at a time.
                while own.len() > 4 || (turn + 1 == QUESTIONS && !own.is_empty()) {
                    let answer = user.answer(PATIENCE).await?.context("an answer is lost")?;
                    ensure!(own.remove(&answer), "an answer to somebody else");
                }
            }
            Ok(())
        });
    }
    for result in users.join_all().await {
        result?;
    }
    let total = f64::from(USERS * QUESTIONS);
    for direction in ["to_resource", "to_user"] {
        for daemon in [&*s.site.node(), &s.client.daemon] {
            let passed = datagrams(daemon, direction, "ok").await?;
            ensure!(
                (passed - total).abs() < 0.5,
                "{passed} of {total} {direction}"
            );
        }
    }
    s.finish()
}

#[tokio::test]
async fn dig_asks_a_name_server_in_the_cloud_by_udp_and_by_tcp() -> Result<()> {
    let mut s = setup().await?;
    let port = s.site.ports().server();
    let server = Dns::start(s.site.folder(), port).await?;
    let by_udp = s.cloud("dns", "udp", &server.address(), &[]).await?;
    let by_tcp = s.cloud("dns-tcp", "tcp", &server.address(), &[]).await?;
    for _ in 0..3 {
        let answer = dns::dig(by_udp.port(), dns::NAME).await?;
        ensure!(answer == dns::ADDRESS, "dig gets {answer:?} by UDP");
        let answer = dns::dig_by_tcp(by_tcp.port(), dns::NAME).await?;
        ensure!(answer == dns::ADDRESS, "dig gets {answer:?} by TCP");
    }
    for (name, protocol) in [("dns", "udp"), ("dns-tcp", "tcp")] {
        let labels = [
            ("gateway", "dev"),
            ("destination", name),
            ("protocol", protocol),
            ("result", "ok"),
        ];
        for daemon in [&*s.site.node(), &s.client.daemon] {
            let metrics = daemon.metrics().await?;
            let opened = metrics.sum("sg_streams_opened_total", &labels);
            ensure!(opened >= 3.0, "{opened} of {name} were counted");
        }
    }
    s.finish()
}

#[tokio::test]
async fn an_idle_flow_ends_and_the_next_datagram_opens_another() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup().await?;
    let listen = s.udp(resource.address, &["--idle-timeout", "1s"]).await?;
    let user = User::of(listen).await?;
    user.ask(b"one").await?;
    for daemon in [&s.client.daemon, &*s.site.node()] {
        let line = access_line(daemon, "idle-timeout").await?;
        ensure!(line.number("bytes_to_resource") == 3, "{line:?}");
        ensure!(line.number("bytes_to_user") == 3, "{line:?}");
    }
    user.ask(b"two").await?;
    s.finish()
}

#[tokio::test]
async fn what_is_disabled_ends_its_flows_and_closes_its_port() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup().await?;
    let listen = s.udp(resource.address, &[]).await?;
    let user = User::of(listen).await?;
    user.ask(b"may I?").await?;
    let disable = ["destination", "disable", "dev/udp", "--wait"];
    s.site.sgctl.run(&disable).await?;
    access_line(&s.client.daemon, "disabled").await?;
    access_line(s.site.node(), "disabled").await?;
    // Free for others, for a moment.
    drop(
        eventually(PATIENCE, "the port is free", async || {
            Ok(UdpSocket::bind(listen).await?)
        })
        .await?,
    );
    let enable = ["destination", "enable", "dev/udp", "--wait"];
    s.site.sgctl.run(&enable).await?;
    User::of(listen).await?.ask(b"again?").await?;
    s.finish()
}

#[tokio::test]
async fn a_changed_destination_reaches_open_ports() -> Result<()> {
    let first = Resource::echo().await?;
    let mut s = setup().await?;
    let options = ["--max-connections", "1"];
    let listen = s.udp(first.address, &options).await?;
    let user = User::of(listen).await?;
    user.ask(b"the only one").await?;
    let other = User::of(listen).await?;
    other.send(b"another").await?;
    ensure!(other.answer(AGAIN).await?.is_none(), "a second flow");
    ensure!(datagrams(&s.client.daemon, "to_resource", "limit").await? >= 1.0);
    let mut wider = vec!["destination", "update", "dev/udp"];
    wider.extend(["--max-connections", "2", "--wait"]);
    s.site.sgctl.run(&wider).await?;
    other.ask(b"another again").await?;
    user.ask(b"the first still").await?;
    s.finish()
}

#[tokio::test]
async fn source_rules_decide_over_users_at_the_client() -> Result<()> {
    let resource = Resource::echo().await?;
    let mut s = setup().await?;
    let listen = s.udp(resource.address, &[]).await?;
    let user = User::of(listen).await?;
    user.ask(b"may I?").await?;
    let mut restrict = vec!["destination", "update", "dev/udp", "--restrict"];
    restrict.extend(["--allow-source", "127.0.0.9", "--wait"]);
    s.site.sgctl.run(&restrict).await?;
    access_line(&s.client.daemon, "policy-changed").await?;
    user.send(b"still?").await?;
    access_line(&s.client.daemon, "source-denied").await?;
    let admitted = User::from("127.0.0.9", listen).await?;
    admitted.ask(b"may I, from there?").await?;
    ensure!(user.answer(AGAIN).await?.is_none(), "an answer after all");
    s.finish()
}

#[tokio::test]
async fn what_the_node_may_not_reach_is_refused() -> Result<()> {
    let mut s = setup().await?;
    // Never ready: the node says that it will not serve it.
    let port = s.site.ports().server();
    let client_port = port.to_string();
    let mut arguments = vec!["destination", "create", "dev/udp", "--kind", "cloud"];
    arguments.extend(["--protocol", "udp", "--resource", "192.0.2.1:53"]);
    arguments.extend(["--client-port", &client_port]);
    s.site.sgctl.json(&arguments).await?;
    let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    eventually(PATIENCE, "the client listens", async || {
        let (state, _) = listens(&s.site, "dev/udp").await?;
        ensure!(state == "listening", "it is {state}");
        Ok(())
    })
    .await?;
    let user = User::of(listen).await?;
    user.send(b"anybody?").await?;
    access_line(&s.client.daemon, "cloud-denied").await?;
    access_line(s.site.node(), "cloud-denied").await?;
    s.finish()
}

#[tokio::test]
async fn datagrams_do_not_go_round_and_round() -> Result<()> {
    let mut s = setup().await?;
    // The on-premises destination leads to the client's own port, and that one to the node's.
    let client_port = s.site.ports().server();
    let back = format!("127.0.0.1:{client_port}");
    s.site
        .sgctl
        .run(&["acl", "allow", "dev", &back, "--wait", "10s"])
        .await?;
    let mut arguments = vec!["destination", "create", "dev/there", "--protocol", "udp"];
    arguments.extend(["--resource", &back, "--wait"]);
    let made = s.site.sgctl.json(&arguments).await?;
    let port = made.get("cloudPort").and_then(serde_json::Value::as_u64);
    let port = u16::try_from(port.context("cloudPort")?)?;
    let there = SocketAddr::new(Site::node_host(0), port);
    let (there_text, client_port) = (there.to_string(), client_port.to_string());
    let mut arguments = vec!["destination", "create", "dev/back", "--kind", "cloud"];
    arguments.extend(["--protocol", "udp", "--resource", &there_text]);
    arguments.extend(["--client-port", &client_port, "--wait"]);
    s.site.sgctl.json(&arguments).await?;
    User::of(there).await?.send(b"hello?").await?;
    access_line(&s.client.daemon, "loop").await?;
    let at_client: SocketAddr = back.parse()?;
    User::of(at_client).await?.send(b"hello?").await?;
    let node = s.site.node();
    eventually(PATIENCE, "the node refuses its own port", async || {
        let lines = node.access()?;
        let count = lines.iter().filter(|l| l.field("reason") == "loop").count();
        ensure!(count >= 2, "{count} lines");
        Ok(())
    })
    .await?;
    s.finish()
}

/// A certificate and its key.
async fn certificate(
    folder: &Path,
    name: &str,
    basic: &str,
    issuer: &[(&str, PathBuf)],
) -> Result<(PathBuf, PathBuf)> {
    let file = |kind: &str| folder.join(format!("{name}.{kind}"));
    let (certificate, key) = (file("pem"), file("key"));
    let mut launch = Launch::new(&format!("openssl-{name}"), debian("openssl")?, folder)
        .arg("req")
        .arg("-x509")
        .arg("-nodes")
        .option("-newkey", "ec")
        .option("-pkeyopt", "ec_paramgen_curve:prime256v1")
        .option("-keyout", &key)
        .option("-out", &certificate)
        .option("-days", "2")
        .option("-subj", format!("/CN={name}"))
        .option("-addext", format!("subjectAltName=DNS:{name}"))
        .option("-addext", format!("basicConstraints=critical,{basic}"));
    for (option, file) in issuer {
        launch = launch.option(option, file);
    }
    launch.run().await?;
    Ok((certificate, key))
}

#[tokio::test]
async fn http_3_goes_through_in_both_directions() -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let python = root.join("../.venv/bin/python");
    ensure!(
        python.is_file(),
        "{} is missing: ./test makes it",
        python.display()
    );
    let mut s = setup().await?;
    let folder = s.site.folder().to_owned();
    let ca = certificate(&folder, "ca", "CA:TRUE", &[]).await?;
    let issuer = [("-CA", ca.0.clone()), ("-CAkey", ca.1)];
    let (certificate, key) = certificate(&folder, "localhost", "CA:FALSE", &issuer).await?;
    let (port, tcp) = (s.site.ports().server(), s.site.ports().server());
    let server = Launch::new("hypercorn", &python, &folder)
        .arg("-m")
        .arg("hypercorn")
        .option("--bind", format!("127.0.0.1:{tcp}"))
        .option("--quic-bind", format!("127.0.0.1:{port}"))
        .option("--certfile", &certificate)
        .option("--keyfile", &key)
        .arg("http3:app")
        .directory(&root.join("python"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .start()?;
    eventually(Duration::from_secs(30), "hypercorn listens", async || {
        Ok(TcpStream::connect(("127.0.0.1", tcp)).await?)
    })
    .await?;
    let resource = format!("127.0.0.1:{port}");
    let at_client = s.cloud("h3", "udp", &resource, &[]).await?;
    s.site
        .sgctl
        .run(&["acl", "allow", "dev", &resource, "--wait", "10s"])
        .await?;
    let mut arguments = vec!["destination", "create", "dev/h3-there", "--protocol", "udp"];
    arguments.extend(["--resource", &resource, "--wait"]);
    let made = s.site.sgctl.json(&arguments).await?;
    let at_node = made.get("cloudPort").and_then(serde_json::Value::as_u64);
    for listen in [
        u64::from(at_client.port()),
        at_node.context("cloud port of the destination")?,
    ] {
        let said = Launch::new("http3", &python, &folder)
            .arg("http3.py")
            .arg(listen.to_string())
            .arg(&ca.0)
            .directory(&root.join("python"))
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .run()
            .await?;
        ensure!(said.contains("HTTP/3"), "{said}");
    }
    drop(server);
    s.finish()
}
