//! Connections opened, used for one byte and closed.

use anyhow::{Context as _, Result};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use crate::Plan;
use crate::account::Meter;
use crate::installation::{Installation, Path};
use crate::load::{self, GRACE};
use crate::report::{Report, Row, median};

/// One measurement.
struct Run {
    rate: f64,
    /// CPU microseconds per connection of each process.
    cpu: Vec<(&'static str, f64)>,
}

pub(crate) async fn measure(plan: Plan) -> Result<Report> {
    let mut installation = Installation::start(plan).await?;
    let mut report = Report::new("open-rate");
    for users in plan.series(&[64]) {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..plan.repeat {
            for (path, runs) in Path::BOTH.into_iter().zip(&mut runs) {
                runs.push(run(&mut installation, path, users, plan).await?);
            }
        }
        report.push(row(&format!("{users} users at a time"), &runs));
    }
    installation.finish()?;
    Ok(report)
}

async fn run(installation: &mut Installation, path: Path, users: usize, plan: Plan) -> Result<Run> {
    let address = installation.address(path);
    let meter = Meter::start(&installation.processes())?;
    let start = Instant::now();
    let end = start + plan.time;
    let mut tasks = JoinSet::new();
    for _ in 0..users {
        tasks.spawn(async move {
            let mut opened = 0_u32;
            while Instant::now() < end {
                let one = timeout_at(end + GRACE, load::open_and_close(address));
                one.await.context("a connection stalled")??;
                opened += 1;
            }
            anyhow::Ok(opened)
        });
    }
    let mut opened = 0.0;
    while let Some(result) = tasks.join_next().await {
        opened += f64::from(result??);
    }
    let rate = opened / start.elapsed().as_secs_f64();
    let spent = meter.spent()?;
    let cpu = spent
        .into_iter()
        .map(|(name, spent)| (name, spent * 1e6 / opened))
        .collect();
    Ok(Run { rate, cpu })
}

fn row(what: &str, runs: &[Vec<Run>; 2]) -> Row {
    let [direct, product] = runs;
    let rate = |runs: &[Run]| median(&runs.iter().map(|run| run.rate).collect::<Vec<_>>());
    let mut row = Row::new(what);
    row.figure("direct_connections_per_s", rate(direct));
    row.figure("product_connections_per_s", rate(product));
    row.figure("ratio", rate(product) / rate(direct));
    for index in 0..product.first().map_or(0, |run| run.cpu.len()) {
        let name = product
            .first()
            .and_then(|run| run.cpu.get(index))
            .map_or("", |(name, _)| name);
        let values: Vec<f64> = product
            .iter()
            .filter_map(|run| run.cpu.get(index).map(|(_, cpu)| *cpu))
            .collect();
        row.figure(format!("{name}_cpu_us_per_connection"), median(&values));
    }
    row
}
