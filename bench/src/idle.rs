//! Memory of connections that are open and silent. A direct connection costs no process of the
//! product anything, so it is not measured; the figure is KiB per connection.

use anyhow::{Result, ensure};

use crate::Plan;
use crate::account::{Process, memory_kib};
use crate::compare::{Case, Goal, Measured, Unit, compare};
use crate::lineup::{Contender, Kind, Lineup};
use crate::load;
use crate::report::{Report, Wanted};

const USUAL: usize = 2000;

/// Opened at a time, so that no queue of new connections overflows.
const BATCH: usize = 100;

/// Descriptors of a process that are not for connections.
const OTHER_FILES: usize = 500;

const GOALS: [Goal; 1] = [Goal {
    figure: "kib_per_connection",
    wanted: Wanted::AtMost(0.5),
}];

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let count = plan.streams.unwrap_or(USUAL);
    // This process holds both ends of each, and node and client two sockets.
    let limit = usize::try_from(sg_runtime::net::raise_nofile_limit()?).unwrap_or(usize::MAX);
    let most = limit.saturating_sub(OTHER_FILES) / 2;
    ensure!(
        count <= most,
        "at most {most} connections with {limit} open files (ulimit -n)"
    );
    let mut lineup = Lineup::start(plan).await?;
    lineup
        .contenders
        .retain(|contender| contender.kind != Kind::Direct);
    let case = Case {
        what: format!("{count} idle connections"),
        unit: Unit::None,
        goals: &GOALS,
    };
    // Memory that a process has taken once is not given back at once: one measurement.
    let once = Plan {
        repeat: 1,
        syscalls: false,
        ..plan.clone()
    };
    let run = async |contender: &Contender| run(contender, count).await;
    let mut report = Report::new("idle");
    report.push(compare(&lineup, &once, case, run).await?);
    lineup.finish()?;
    Ok(report)
}

async fn run(contender: &Contender, count: usize) -> Result<Measured> {
    let address = contender.address;
    // What the first connections cost is not what each costs.
    let mut held = open(address, BATCH).await?;
    let before = memory(&contender.processes)?;
    while held.len() < BATCH + count {
        let batch = BATCH.min(BATCH + count - held.len());
        held.extend(open(address, batch).await?);
    }
    let after = memory(&contender.processes)?;
    for stream in &mut held {
        load::still_answers(stream).await?;
    }
    let mut measured = Measured::new(count as f64);
    let mut all = 0.0;
    for (process, (before, after)) in contender.processes.iter().zip(before.iter().zip(after)) {
        let each = (after - before) / count as f64;
        all += each;
        measured = measured
            .figure(format!("{}_kib_before", process.name), *before)
            .figure(format!("{}_kib_with_them", process.name), after)
            .figure(format!("{}_kib_per_connection", process.name), each);
    }
    Ok(measured.figure("kib_per_connection", all))
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
        .map(|process| memory_kib(*process))
        .collect()
}
