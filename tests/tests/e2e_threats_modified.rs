//! Row 3 of the threat table: both ends decide over every stream. A node that was modified opens a thousand random targets on
//! a real client, and a client that was modified a thousand on a real node; all are refused by the other side, and
//! nothing is dialled. `SEED=...` repeats a run.

mod played;

use anyhow::{Context as _, Result, ensure};
use played::{Random, Untouched, connect, hello, stream_open};
use sg_proto::tunnel::StreamOpen;
use sg_tests::backend::Echo;
use sg_tests::{
    ClientSetup, Launch, Metrics, PATIENCE, Site, SiteSetup, eventually, get, prepare, product,
};
use sg_tunnel_io::code;

const TARGETS: usize = 1000;

#[tokio::test(flavor = "multi_thread")]
async fn threat_03_a_modified_node_reaches_nothing_that_the_client_does_not_allow() -> Result<()> {
    prepare();
    let mut random = Random::of_environment()?;
    let folder = tempfile::tempdir()?;
    let untouched = Untouched::bind(8).await?;
    let allowed = Echo::start().await?;
    let target: std::net::SocketAddr = allowed.address().parse()?;
    let (node, ca) = played::Node::start(folder.path()).await?;
    let ready = folder.path().join("ready.json");
    let client = Launch::new("client", product("sg-client")?, folder.path())
        .arg("dev")
        .option("-g", node.address.to_string())
        .option("-t", "sgt_1")
        .option("--ca", ca)
        .option("--data-dir", folder.path().join("data"))
        .option("--admin-listen", "127.0.0.1:0")
        .option("--ready-file", &ready)
        .arg("--noUI");
    let mut process = client.start()?;
    let mut peer = node
        .tunnel(&format!("acl allow 127.0.0.1:{}", target.port()))
        .await?;
    // It says which list it enforces before it is asked for anything.
    peer.incoming.next().await.context("the client's answer")?;
    let ready = eventually(PATIENCE, "the ready file", async || {
        Ok(std::fs::read_to_string(&ready)?)
    })
    .await?;
    let ready: serde_json::Value = serde_json::from_str(&ready)?;
    let admin: std::net::SocketAddr = ready["admin_listen"].as_str().context("admin")?.parse()?;

    let mut ports = untouched.ports();
    ports.extend([admin.port(), node.address.port(), 22, 80, 443, 5432]);
    for number in 0..TARGETS {
        let host = match random.below(10) {
            0..=2 => "127.0.0.1".to_owned(),
            3 => "localhost".to_owned(),
            4 => "::1".to_owned(),
            5 => "::ffff:127.0.0.1".to_owned(),
            6 => format!(
                "127.{}.{}.{}",
                random.below(256),
                random.below(256),
                random.below(256)
            ),
            7 => std::net::Ipv4Addr::from(u32::try_from(random.next() >> 32)?).to_string(),
            8 => std::net::Ipv6Addr::from(u128::from(random.next()) << 64 | 1).to_string(),
            _ => format!("host-{}.invalid", random.below(1000)),
        };
        let port = match random.below(3) {
            0 => random.port(),
            _ => *random.pick(&ports),
        };
        if port == target.port() {
            continue;
        }
        let mut open = stream_open(&host, port);
        // The rest of what it says is as modified as the target.
        open.destination_id = format!("d{}", random.below(3));
        open.acl_epoch = random.next() % 2;
        open.acl_generation = random.next() % 2;
        open.http = u32::try_from(random.next() % 3)?;
        let refusal = peer.refusal(&open).await?;
        ensure!(
            refusal == Some(code::ACL_DENIED),
            "target {number}, {host}:{port}: {refusal:x?}"
        );
    }
    untouched.check().await?;
    process.check_running()?;
    // Each decision was counted, and the check can fail: what is allowed is reached.
    let denied = Metrics::read(admin)
        .await?
        .sum("sg_acl_decisions_total", &[("decision", "deny")]);
    ensure!(denied > 900.0, "{denied} were counted");
    let refusal = peer
        .refusal(&stream_open("127.0.0.1", target.port()))
        .await?;
    ensure!(refusal.is_none(), "{refusal:x?}");
    ensure!(get(admin, "/livez").await?.0 == 200);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn threat_03_a_modified_client_reaches_nothing_that_is_not_its_own() -> Result<()> {
    prepare();
    let mut random = Random::of_environment()?;
    let untouched = Untouched::bind(6).await?;
    let allowed = Echo::start().await?;
    let mut site = Site::with(SiteSetup {
        // All resources of cloud destinations but one may be reached: it is not this that refuses the others.
        node_environment: vec![(
            "SG_CLOUD_ALLOW",
            format!("{},127.0.0.1:{}", allowed.address(), untouched.ports()[0]),
        )],
        ..SiteSetup::default()
    })
    .await?;
    let own = site.gateway("own").await?;
    let other = site.gateway("other").await?;
    let make = async |path: &str, port: u16, more: &[&str]| {
        let resource = format!("127.0.0.1:{port}");
        let mut arguments = vec!["destination", "create", path, "--protocol", "tcp"];
        arguments.extend(["--resource", &resource]);
        arguments.extend(more);
        let made = site.sgctl.json(&arguments).await?;
        anyhow::Ok(made["id"].as_str().context("id")?.to_owned())
    };
    let allowed_port: std::net::SocketAddr = allowed.address().parse()?;
    let cloud = ["--kind", "cloud", "--client-port", "7001"];
    let cloud_2 = ["--kind", "cloud", "--client-port", "7002"];
    let cloud_3 = ["--kind", "cloud", "--client-port", "7003", "--disabled"];
    let mine = make("own/mine", allowed_port.port(), &cloud).await?;
    let not_allowed = make("own/not-allowed", untouched.ports()[1], &cloud_2).await?;
    let disabled = make("own/disabled", untouched.ports()[0], &cloud_3).await?;
    let on_premises = make("own/on-premises", untouched.ports()[0], &[]).await?;
    let foreign = make("other/foreign", untouched.ports()[0], &cloud).await?;
    let foreign_on_premises = make("other/on-premises", untouched.ports()[0], &[]).await?;

    let (accepted, client) = connect(&site, &hello(&own))
        .await?
        .map_err(|refused| anyhow::anyhow!("refused: {}", refused.reason))?;
    // What the node gave the client to resume with is a secret too.
    site.keep_secret(sg_runtime::crypto::hex(&accepted.resume_secret));
    let lure = |id: &str, host: &str, port: u16| StreamOpen {
        destination_id: id.to_owned(),
        ..stream_open(host, port)
    };
    // The node knows them all by now, or soon.
    eventually(PATIENCE, "its own destination works", async || {
        let refusal = client.refusal(&lure(&mine, "x", 1)).await?;
        ensure!(refusal.is_none(), "{refusal:x?}");
        let refusal = client.refusal(&lure(&not_allowed, "x", 1)).await?;
        ensure!(refusal == Some(code::CLOUD_DENIED), "{refusal:x?}");
        let refusal = client.refusal(&lure(&disabled, "x", 1)).await?;
        ensure!(refusal == Some(code::DISABLED), "{refusal:x?}");
        Ok(())
    })
    .await?;

    let known = [
        (not_allowed.as_str(), code::CLOUD_DENIED),
        (&disabled, code::DISABLED),
        (&on_premises, code::NO_DESTINATION),
        (&foreign, code::NO_DESTINATION),
        (&foreign_on_premises, code::NO_DESTINATION),
        (&own.id, code::NO_DESTINATION),
        (&other.id, code::NO_DESTINATION),
    ];
    let alphabet = b"0123456789ABCDEFGHJKMNPQRSTVWXYZabc/.-_ %\0";
    for number in 0..TARGETS {
        let (id, expected) = match random.below(3) {
            0 => {
                let (id, expected) = *random.pick(&known);
                (id.to_owned(), expected)
            }
            1 => {
                // One character of a real one is another.
                let mut id = random.pick(&[mine.as_str(), &foreign]).as_bytes().to_vec();
                let at = random.below(id.len());
                id[at] = if id[at] == b'0' { b'1' } else { b'0' };
                (String::from_utf8(id)?, code::NO_DESTINATION)
            }
            _ => {
                let length = random.below(40);
                let id = (0..length).map(|_| *random.pick(alphabet)).collect();
                (String::from_utf8(id)?, code::NO_DESTINATION)
            }
        };
        let port = *random.pick(&untouched.ports());
        let host = *random.pick(&["127.0.0.1", "localhost", "::1", "169.254.169.254", ""]);
        let mut open = lure(&id, host, port);
        open.protocol = (*random.pick(&["tcp", "udp", "tls", "http", ""])).to_owned();
        open.look_up = random.below(2) == 0;
        open.generation = random.next() % 3;
        let refusal = client.refusal(&open).await?;
        ensure!(
            refusal == Some(expected),
            "target {number}, {id:?}: {refusal:x?}, not {expected:x}"
        );
    }
    untouched.check().await?;
    // A real client goes on beside it.
    let mut real = site.prepare_client(&own, ClientSetup::default())?;
    real.connect().await?;
    ensure!(client.refusal(&lure(&mine, "x", 1)).await?.is_none());
    site.finish()
}
