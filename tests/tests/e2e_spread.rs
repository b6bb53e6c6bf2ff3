//! Several clients of one gateway share its connections.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Manual;
use sg_tests::{Client, Destination, Site, owner, prepare, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval};

const CLIENTS: usize = 3;

async fn three_clients() -> Result<(Site, Vec<Client>, Destination, Manual)> {
    prepare();
    let resource = Manual::start()?;
    let mut site = Site::start().await?;
    // What a killed client carried ends with its connection, not later.
    let gateway = site.gateway_with("dev", &["--resume-time", "0s"]).await?;
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(site.client(&gateway).await?);
    }
    let rows = site.clients_listed(&gateway, CLIENTS).await?;
    let ids: BTreeSet<String> = rows.iter().map(|row| row["id"].to_string()).collect();
    ensure!(
        ids.len() == CLIENTS,
        "each client has an id of its own: {ids:?}"
    );
    let destination = site
        .destination(&gateway, "app", &resource.address()?, &[])
        .await?;
    Ok((site, clients, destination, resource))
}

#[tokio::test]
async fn thirty_connections_give_each_of_three_clients_ten() -> Result<()> {
    let (site, clients, destination, resource) = three_clients().await?;
    let processes: Vec<u32> = clients.iter().map(|client| client.daemon.id()).collect();
    let mut carried: BTreeMap<u32, u32> = BTreeMap::new();
    let mut open = Vec::new();
    for _ in 0..30 {
        let user = destination.connect().await?;
        let (server, peer) = resource.accept().await?;
        let process = owner::of(peer, &processes).context("a client has the connection")?;
        *carried.entry(process).or_default() += 1;
        open.push((user, server));
    }
    let expected: BTreeMap<u32, u32> = processes.iter().map(|process| (*process, 10)).collect();
    ensure!(carried == expected, "{carried:?}");
    drop(clients);
    site.finish()
}

/// What the resource knows of the connections of the killed client.
#[derive(Debug, Default)]
struct Carried {
    /// Numbers that users have sent on them.
    numbers: BTreeSet<u64>,
    /// How many of them ended before the number came.
    unnamed: usize,
}

#[tokio::test]
async fn killing_one_client_fails_only_what_it_carried() -> Result<()> {
    const CONNECTIONS: u64 = 160;
    const EVERY: Duration = Duration::from_millis(50);
    const KILL_AT: u64 = 60;
    let (site, mut clients, destination, resource) = three_clients().await?;
    let mut victim = clients.swap_remove(1);
    let killed = victim.daemon.id();
    let processes = [clients[0].daemon.id(), clients[1].daemon.id(), killed];

    let carried = Arc::new(Mutex::new(Carried::default()));
    let mut server = JoinSet::new();
    server.spawn(serve(resource, processes, killed, Arc::clone(&carried)));
    let mut users = JoinSet::new();
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Burst);
    for number in 0..CONNECTIONS {
        ticks.tick().await;
        if number == KILL_AT {
            victim.daemon.kill()?;
        }
        let address = destination.address;
        users.spawn(async move { (number, user(address, number).await) });
    }
    let ended = within(Duration::from_secs(30), "all users", users.join_all()).await?;
    server.shutdown().await;

    let failed: BTreeMap<u64, String> = ended
        .into_iter()
        .filter_map(|(number, result)| Some((number, format!("{:#}", result.err()?))))
        .collect();
    let carried = carried.lock().expect("nobody panicked with it");
    ensure!(
        !carried.numbers.is_empty(),
        "the killed client carried nothing, so nothing is shown"
    );
    let others: Vec<_> = failed
        .iter()
        .filter(|(number, _)| !carried.numbers.contains(number))
        .collect();
    ensure!(
        others.len() <= carried.unnamed,
        "these failed without having been carried by the killed client: {others:?}"
    );
    drop(clients);
    site.finish()
}

/// One user: says its number, and reads it back after a while.
async fn user(address: std::net::SocketAddr, number: u64) -> Result<()> {
    let mut stream = TcpStream::connect(address).await.context("connecting")?;
    stream.write_u64(number).await.context("writing")?;
    let answer = within(Duration::from_secs(10), "the answer", stream.read_u64()).await?;
    ensure!(answer.context("reading")? == number);
    Ok(())
}

/// Answers each number 300 ms late, so that several connections are open at any time.
async fn serve(
    resource: Manual,
    processes: [u32; CLIENTS],
    killed: u32,
    carried: Arc<Mutex<Carried>>,
) {
    let mut connections = JoinSet::new();
    while let Ok((mut stream, peer)) = resource.accept().await {
        // A process that is gone has no descriptors any more, so nobody means the killed one.
        let by_killed = owner::of(peer, &processes).is_none_or(|process| process == killed);
        let carried = Arc::clone(&carried);
        connections.spawn(async move {
            let number = stream.read_u64().await;
            if by_killed {
                let mut carried = carried.lock().expect("nobody panicked with it");
                match number {
                    Ok(number) => {
                        carried.numbers.insert(number);
                    }
                    Err(_) => carried.unnamed += 1,
                }
            }
            let Ok(number) = number else { return };
            // Part of what is measured, not a way to wait for something.
            tokio::time::sleep(Duration::from_millis(300)).await;
            if stream.write_u64(number).await.is_ok() {
                // Until the user has closed.
                drop(stream.read(&mut [0; 1]).await);
            }
        });
    }
}
