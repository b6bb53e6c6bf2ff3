//! Many tunnels on one node, open and silent: what each of them takes at the node, and how long all of them take to
//! come up. Some clients, each with every gateway and 16 connections for each.

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::{Client, ClientSetup, Gateway, Site, SiteSetup, eventually};
use tokio::time::{Instant, sleep};

use crate::Plan;
use crate::account::{Meter, Process, memory_kib};
use crate::load;
use crate::report::{Report, Row, Verdict, Wanted};
use crate::resource::Resource;

/// Tunnels of each client: 50 gateways with as many connections as one client may have.
const GATEWAYS: usize = 50;
const CONNECTIONS: usize = 16;
const OF_A_CLIENT: usize = GATEWAYS * CONNECTIONS;

/// As many clients as come below 10,000 tunnels, which is half of the 20,000 descriptors that some systems allow a process.
const USUAL: usize = 9_600;

/// For all tunnels to come up.
const PATIENCE: Duration = Duration::from_secs(120);

/// Until what coming up took is let go of again.
const SETTLED: Duration = Duration::from_secs(5);

const WANTED_KIB: f64 = 16.0;

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let count = plan.streams.unwrap_or(USUAL).next_multiple_of(OF_A_CLIENT);
    ensure!(
        count > OF_A_CLIENT,
        "more than {OF_A_CLIENT} tunnels, or there is nothing to compare"
    );
    let resource = Resource::start()?;
    let mut site = Site::with(SiteSetup {
        etcd: plan.etcd,
        ..SiteSetup::default()
    })
    .await?;
    let mut gateways = Vec::new();
    for number in 0..GATEWAYS {
        gateways.push(site.gateway(&format!("bench-{number}")).await?);
    }
    let first = gateways.first().context("a gateway")?.clone();
    let address = resource.address().to_string();
    let destination = site.destination(&first, "load", &address, &[]).await?;
    let node = [Process {
        name: "node",
        id: site.node().id(),
    }];

    // What the first tunnels cost is not what each costs.
    let mut clients = vec![connect(&mut site, &gateways).await?];
    up(&site, OF_A_CLIENT).await?;
    sleep(SETTLED).await;
    let before = memory_kib(node[0])?;
    let (start, meter) = (Instant::now(), Meter::start(&node)?);
    while clients.len() * OF_A_CLIENT < count {
        clients.push(connect(&mut site, &gateways).await?);
    }
    up(&site, count).await?;
    let (taken, spent) = (start.elapsed(), cpu(&meter)?);
    let more = (count - OF_A_CLIENT) as f64;
    sleep(SETTLED).await;
    let after = memory_kib(node[0])?;

    let meter = Meter::start(&node)?;
    sleep(plan.time).await;
    let idle = cpu(&meter)? / plan.time.as_secs_f64();
    up(&site, count).await?;
    let mut stream = load::open_and_hold(destination.address).await?;
    load::still_answers(&mut stream).await?;
    drop(stream);

    let mut row = Row::new(format!(
        "{count} tunnels of {} clients on one node",
        clients.len()
    ));
    let each = (after - before) / more;
    row.figure("node_kib_per_tunnel", each);
    row.figure("node_kib_in_all", after);
    row.figure("tunnels_up_per_s", more / taken.as_secs_f64());
    row.figure("node_cpu_us_per_tunnel_up", spent * 1e6 / more);
    row.figure("node_cpu_percent_while_idle", idle * 100.0);
    row.verdict(Verdict {
        figure: "node_kib_per_tunnel".to_owned(),
        against: None,
        value: each,
        ratio: each,
        wanted: Wanted::AtMost(WANTED_KIB),
    });
    let mut report = Report::new("tunnels");
    report.push(row);
    drop(clients);
    site.finish()?;
    Ok(report)
}

fn cpu(meter: &Meter) -> Result<f64> {
    Ok(meter.spent()?.iter().map(|spent| spent.cpu).sum())
}

/// One more client of all gateways.
async fn connect(site: &mut Site, gateways: &[Gateway]) -> Result<Client> {
    let first = gateways.first().context("a gateway")?;
    let mut tokens = String::new();
    for gateway in gateways {
        writeln!(tokens, "{}", gateway.token).context("tokens")?;
    }
    let token_file = site.secret_file("all.tokens", &tokens)?;
    let others = gateways.iter().skip(1);
    let mut options: Vec<String> = others.map(|gateway| gateway.id.clone()).collect();
    options.push(format!("--connections={CONNECTIONS}"));
    let setup = ClientSetup {
        token_file: Some(token_file),
        options,
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(first, setup)?;
    client.daemon.start().await?;
    Ok(client)
}

/// Waits until the node has so many tunnels.
async fn up(site: &Site, count: usize) -> Result<()> {
    let node = site.nodes.first().context("a node")?;
    eventually(PATIENCE, "all tunnels are up", async || {
        let tunnels = node.metrics().await?.sum("sg_tunnels", &[]);
        ensure!(tunnels == count as f64, "{tunnels} tunnels");
        Ok(())
    })
    .await
}
