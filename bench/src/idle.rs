//! Memory of connections that are open and silent. A direct connection costs no process of the
//! product anything, so there is no ratio here; the figure is KiB per connection.

use anyhow::{Result, ensure};

use crate::Plan;
use crate::account::{Process, memory_kib};
use crate::installation::{Installation, Path};
use crate::load;
use crate::report::{Report, Row};

const USUAL: usize = 2000;

/// Opened at a time, so that no queue of new connections overflows.
const BATCH: usize = 100;

/// Descriptors of a process that are not for connections.
const OTHER_FILES: usize = 500;

pub(crate) async fn measure(plan: Plan) -> Result<Report> {
    let count = plan.streams.unwrap_or(USUAL);
    // This process holds both ends of each, and node and client two sockets.
    let limit = usize::try_from(sg_runtime::net::raise_nofile_limit()?).unwrap_or(usize::MAX);
    let most = limit.saturating_sub(OTHER_FILES) / 2;
    ensure!(
        count <= most,
        "at most {most} connections with {limit} open files (ulimit -n)"
    );

    let mut installation = Installation::start(plan).await?;
    let address = installation.address(Path::Product);
    let processes = installation.processes();
    // What the first connections cost is not what each costs.
    let mut held = open(address, BATCH).await?;
    let before = memory(&processes)?;
    while held.len() < BATCH + count {
        let batch = BATCH.min(BATCH + count - held.len());
        held.extend(open(address, batch).await?);
    }
    let after = memory(&processes)?;
    for stream in &mut held {
        load::still_answers(stream).await?;
    }
    let mut row = Row::new(format!("{count} idle connections"));
    let mut all = 0.0;
    for (process, (before, after)) in processes.iter().zip(before.into_iter().zip(after)) {
        let each = (after - before) / count as f64;
        all += each;
        row.figure(format!("{}_kib_before", process.name), before);
        row.figure(format!("{}_kib_with_them", process.name), after);
        row.figure(format!("{}_kib_per_connection", process.name), each);
    }
    row.figure("product_kib_per_connection", all);
    let mut report = Report::new("idle");
    report.push(row);
    drop(held);
    installation.finish()?;
    Ok(report)
}

async fn open(address: std::net::SocketAddr, count: usize) -> Result<Vec<tokio::net::TcpStream>> {
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..count {
        tasks.spawn(load::open_and_hold(address));
    }
    let mut held = Vec::with_capacity(count);
    while let Some(result) = tasks.join_next().await {
        held.push(result??);
    }
    Ok(held)
}

fn memory(processes: &[Process]) -> Result<Vec<f64>> {
    processes
        .iter()
        .map(|process| memory_kib(process.id))
        .collect()
}
