//! Connections opened, used for one byte and closed.

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::Plan;
use crate::compare::{Case, Goal, Measured, Unit, compare};
use crate::lineup::{Contender, Lineup};
use crate::load::{self, GRACE};
use crate::report::{Report, Wanted, quantile};

const GOALS: [Goal; 2] = [
    Goal {
        figure: "connections_per_s",
        wanted: Wanted::AtLeast(2.5),
    },
    Goal {
        figure: "cpu_us_per_connection",
        wanted: Wanted::AtMost(0.7),
    },
];

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let lineup = Lineup::start(plan).await?;
    let mut report = Report::new("open-rate");
    for users in plan.series(&[64]) {
        let case = Case {
            what: format!("{users} users at a time"),
            unit: Unit::Each("connection"),
            goals: &GOALS,
        };
        let run = async |contender: &Contender| run(contender, users, plan).await;
        report.push(compare(&lineup, plan, case, run).await?);
    }
    lineup.finish()?;
    Ok(report)
}

async fn run(contender: &Contender, users: usize, plan: &Plan) -> Result<Measured> {
    let address = contender.address;
    let start = Instant::now();
    let end = start + plan.time;
    let mut tasks = JoinSet::new();
    for _ in 0..users {
        tasks.spawn(async move {
            let mut times = Vec::new();
            while Instant::now() < end {
                let start = Instant::now();
                let one = timeout_at(end + GRACE, load::open_and_close(address));
                one.await.context("a connection stalled")??;
                times.push(start.elapsed().as_secs_f64() * 1e6);
            }
            anyhow::Ok(times)
        });
    }
    let mut times = Vec::new();
    while let Some(result) = tasks.join_next().await {
        times.extend(result??);
    }
    let opened = times.len() as f64;
    let rate = opened / start.elapsed().as_secs_f64();
    Ok(Measured::new(opened)
        .figure("connections_per_s", rate)
        .figure("p50_us", quantile(&times, 0.5))
        .figure("p99_us", quantile(&times, 0.99)))
}
