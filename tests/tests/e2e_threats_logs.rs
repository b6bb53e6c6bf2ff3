//! Row 46 of the threat table: whatever somebody else puts into a name, a path, a message or an error, one line of a log stays
//! one line, without control characters, in both forms.

mod played;

use anyhow::{Result, ensure};
use played::{connect, hello, say, stream_open};
use sg_proto::tunnel::{Refused, server_hello};
use sg_tests::backend::Echo;
use sg_tests::secure;
use sg_tests::{Launch, PATIENCE, Site, SiteSetup, eventually, prepare, product};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// It ends the line, forges another, moves the cursor, colours, and turns text around.
const EVIL: &str = "x\r\n2026-01-01T00:00:00.000000Z  INFO forged: all is well\n\
                    {\"level\":\"ERROR\",\"message\":\"forged\"}\u{1b}[2J\u{1b}[31m\u{9b}31m\u{7}\u{8}\u{0}\u{7f}\u{2028}\u{202e}";

/// Each line begins as the program's lines do and has no control character.
fn check(log: &str, json: bool) -> Result<()> {
    ensure!(log.lines().count() > 3, "{log}");
    let unsafe_one = log.chars().find(|c| {
        (c.is_control() && *c != '\n') || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202e}')
    });
    ensure!(unsafe_one.is_none(), "{unsafe_one:?} in {log:?}");
    for line in log.lines() {
        if json {
            let line: serde_json::Value = serde_json::from_str(line)?;
            ensure!(line["message"] != "forged", "{line}");
        } else {
            let time = line.split(' ').next().unwrap_or_default();
            let own = time.ends_with('Z') && time.len() > 20 && !time.starts_with("2026-01-01");
            ensure!(own, "{line:?}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_46_what_clients_and_users_say_stays_on_its_line_of_a_node() -> Result<()> {
    prepare();
    for format in ["text", "json"] {
        let resource = Echo::start().await?;
        let mut site = Site::with(SiteSetup {
            node_environment: vec![
                ("SG_LOG_FORMAT", format.to_owned()),
                ("SG_LOG", "debug".to_owned()),
            ],
            ..SiteSetup::default()
        })
        .await?;
        let gateway = site.gateway("dev").await?;
        let _client = site.client(&gateway).await?;
        let mut good = hello(&gateway);
        good.client_name = EVIL.to_owned();
        good.software = EVIL.to_owned();
        let mut bad = good.clone();
        bad.gateway = EVIL.to_owned();
        bad.token = EVIL.to_owned();
        ensure!(connect(&site, &bad).await?.is_err());
        let (_, client) = connect(&site, &good)
            .await?
            .map_err(|refused| anyhow::anyhow!("{}", refused.reason))?;
        // Fields of streams, and what is no message at all.
        let mut open = stream_open(EVIL, 1);
        open.destination_id = EVIL.to_owned();
        open.destination = EVIL.to_owned();
        open.user_address = EVIL.to_owned();
        client.refusal(&open).await?;
        drop(client.tunnel.open(EVIL.as_bytes().into()).await);
        drop(client.tunnel.send_control(EVIL.as_bytes().into()));

        // Users: paths, hosts, agents; and a name in TLS.
        for (name, protocol) in [("web", "http"), ("secure", "tls")] {
            site.sgctl
                .run(&["acl", "allow", "dev", &resource.address(), "--wait", "10s"])
                .await?;
            let path = format!("dev/{name}");
            let options = ["--protocol", protocol];
            let port = secure::create(&site, &path, &resource.address(), &options).await?;
            let mut user = TcpStream::connect(("127.0.0.1", port)).await?;
            let encoded = "%0d%0a%1b%5b31m";
            let request = format!(
                "GET /{encoded}{EVIL} HTTP/1.1\r\nHost: {EVIL}\r\nUser-Agent: {EVIL}\r\n\r\n"
            );
            drop(user.write_all(request.as_bytes()).await);
            drop(user.shutdown().await);
            drop(user.read_to_end(&mut Vec::new()).await);
            let mut user = TcpStream::connect(("127.0.0.1", port)).await?;
            let request = format!(
                "GET /{encoded} HTTP/1.1\r\nHost: a.test\r\nUser-Agent: a\u{9b}31m\u{202e}b\r\n\r\n"
            );
            drop(user.write_all(request.as_bytes()).await);
            drop(user.shutdown().await);
            drop(user.read_to_end(&mut Vec::new()).await);
        }
        // A stranger at the tunnel port and at the admin port.
        for address in [site.tunnel_address(0), site.node().admin()] {
            let mut stranger = TcpStream::connect(address).await?;
            let request = format!("GET /{EVIL} HTTP/1.1\r\nHost: {EVIL}\r\n\r\n");
            stranger.write_all(request.as_bytes()).await?;
            drop(stranger.read_to_end(&mut Vec::new()).await);
        }
        let node = site.node();
        eventually(PATIENCE, "the tunnel is in the log", async || {
            let log = node.log()?;
            ensure!(log.contains("forged"), "it was said in the name");
            Ok(())
        })
        .await?;
        check(&site.node().log()?, format == "json")?;
        check(&site.control_plane().log()?, true)?;
        site.finish()?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_46_what_nodes_say_stays_on_its_line_of_a_client() -> Result<()> {
    prepare();
    for format in ["text", "json"] {
        let folder = tempfile::tempdir()?;
        let (node, ca) = played::Node::start(folder.path()).await?;
        let client = Launch::new("client", product("sg-client")?, folder.path())
            .arg("dev")
            .option("-g", node.address.to_string())
            .option("-t", "sgt_1")
            .option("--ca", ca)
            .option("--data-dir", folder.path().join("data"))
            .option("--admin-listen", "127.0.0.1:0")
            .option("--log-format", format)
            .option("--log-level", "debug")
            .arg("--noUI");
        let process = client.start()?;
        let (_, mut io) = node.arrival().await?;
        let refused = Refused {
            reason: EVIL.to_owned(),
            message: EVIL.to_owned(),
            retry: true,
        };
        say(&mut io, server_hello::Answer::Refused(refused)).await?;
        drop(io);
        let (_, mut io) = node.arrival().await?;
        let mut accepted = played::accepted("acl allow :")?;
        accepted.node_name = EVIL.to_owned();
        accepted.gateway_name = EVIL.to_owned();
        say(&mut io, server_hello::Answer::Accepted(accepted)).await?;
        drop(io);
        let peer = node.tunnel("acl allow :").await?;
        let mut open = stream_open("127.0.0.1", 1);
        open.destination = EVIL.to_owned();
        open.user_address = EVIL.to_owned();
        peer.refusal(&open).await?;
        let mut open = stream_open("127.0.0.1", 1);
        open.resource_host = EVIL.to_owned();
        open.protocol = EVIL.to_owned();
        peer.refusal(&open).await?;
        peer.tunnel.close(1, EVIL);
        eventually(PATIENCE, "all that is in the log", async || {
            let log = process.output()?;
            ensure!(log.lines().count() > 5 && log.contains("forged"), "{log}");
            Ok(())
        })
        .await?;
        check(&process.output()?, format == "json")?;
    }
    Ok(())
}
