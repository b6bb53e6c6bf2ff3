//! Small requests and their answers, one at a time on each stream.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Plan;
use crate::account::Meter;
use crate::compare::{Case, Goal, Measured, Unit, compare};
use crate::lineup::{Contender, Lineup};
use crate::load;
use crate::report::{Report, Wanted, quantile};

/// Opened at a time.
const BATCH: usize = 32;

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let lineup = Lineup::start(plan).await?;
    let mut report = Report::new("latency");
    for streams in plan.series(&[1, 64, 512]) {
        let case = Case {
            what: format!("64-byte requests, {streams} streams"),
            unit: Unit::Each("request"),
            goals: goals(streams),
        };
        let run = async |contender: &Contender| run(contender, streams, plan).await;
        report.push(compare(&lineup, plan, case, run).await?);
    }
    lineup.finish()?;
    Ok(report)
}

const CPU: Goal = Goal {
    figure: "cpu_us_per_request",
    wanted: Wanted::AtMost(0.75),
};
const RATE: Goal = Goal {
    figure: "requests_per_s",
    wanted: Wanted::AtLeast(1.4),
};
const P99: Goal = Goal {
    figure: "p99_us",
    wanted: Wanted::AtMost(0.8),
};

fn goals(streams: usize) -> &'static [Goal] {
    match streams {
        64 => &[CPU, RATE, P99],
        count if count > 1 => &[CPU, RATE],
        _ => &[],
    }
}

async fn run(contender: &Contender, streams: usize, plan: &Plan) -> Result<Measured> {
    let address = contender.address;
    // Connecting is not measured, which for some is dear.
    let mut opened = Vec::with_capacity(streams);
    while opened.len() < streams {
        let batch = BATCH.min(streams - opened.len());
        let mut opening = JoinSet::new();
        for _ in 0..batch {
            opening.spawn(load::open_for_requests(address));
        }
        while let Some(stream) = opening.join_next().await {
            opened.push(stream??);
        }
    }
    let meter = Meter::start(&contender.processes)?;
    let start = Instant::now();
    let end = start + plan.time;
    let mut users = JoinSet::new();
    for stream in opened {
        users.spawn(load::ping_pong(stream, end));
    }
    let mut times = Vec::new();
    while let Some(result) = users.join_next().await {
        times.extend(result??.into_iter().map(f64::from));
    }
    let requests = times.len() as f64;
    let rate = requests / start.elapsed().as_secs_f64();
    Ok(Measured::new(requests)
        .spent(meter.spent()?)
        .figure("requests_per_s", rate)
        .figure("p50_us", quantile(&times, 0.5))
        .figure("p99_us", quantile(&times, 0.99))
        .figure("p999_us", quantile(&times, 0.999)))
}
