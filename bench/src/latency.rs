//! Small requests and their answers, one at a time on each stream.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Plan;
use crate::account::Meter;
use crate::installation::{Installation, Path};
use crate::load;
use crate::report::{Report, Row, median, quantile};

/// One measurement.
struct Run {
    p50: f64,
    p99: f64,
    rate: f64,
    /// CPU microseconds per request of each process.
    cpu: Vec<(&'static str, f64)>,
}

pub(crate) async fn measure(plan: Plan) -> Result<Report> {
    let mut installation = Installation::start(plan).await?;
    let mut report = Report::new("latency");
    for streams in plan.series(&[1, 64, 512]) {
        let mut runs = [Vec::new(), Vec::new()];
        for _ in 0..plan.repeat {
            for (path, runs) in Path::BOTH.into_iter().zip(&mut runs) {
                runs.push(run(&mut installation, path, streams, plan).await?);
            }
        }
        report.push(row(&format!("64-byte requests, {streams} streams"), &runs));
    }
    installation.finish()?;
    Ok(report)
}

async fn run(
    installation: &mut Installation,
    path: Path,
    streams: usize,
    plan: Plan,
) -> Result<Run> {
    let address = installation.address(path);
    let meter = Meter::start(&installation.processes())?;
    let start = Instant::now();
    let end = start + plan.time;
    let mut users = JoinSet::new();
    for _ in 0..streams {
        users.spawn(load::ping_pong(address, end));
    }
    let mut times = Vec::new();
    while let Some(result) = users.join_next().await {
        times.extend(result??.into_iter().map(f64::from));
    }
    let requests = times.len() as f64;
    let rate = requests / start.elapsed().as_secs_f64();
    let spent = meter.spent()?;
    let cpu = spent
        .into_iter()
        .map(|(name, spent)| (name, spent * 1e6 / requests))
        .collect();
    Ok(Run {
        p50: quantile(&times, 0.5),
        p99: quantile(&times, 0.99),
        rate,
        cpu,
    })
}

fn row(what: &str, runs: &[Vec<Run>; 2]) -> Row {
    let [direct, product] = runs;
    let of = |runs: &[Run], figure: fn(&Run) -> f64| {
        median(&runs.iter().map(figure).collect::<Vec<_>>())
    };
    let mut row = Row::new(what);
    for (path, runs) in Path::BOTH.into_iter().zip([direct, product]) {
        let path = path.as_str();
        row.figure(format!("{path}_p50_us"), of(runs, |run| run.p50));
        row.figure(format!("{path}_p99_us"), of(runs, |run| run.p99));
        row.figure(format!("{path}_requests_per_s"), of(runs, |run| run.rate));
    }
    row.figure(
        "p99_ratio",
        of(product, |run| run.p99) / of(direct, |run| run.p99),
    );
    row.figure(
        "rate_ratio",
        of(product, |run| run.rate) / of(direct, |run| run.rate),
    );
    for index in 0..product.first().map_or(0, |run| run.cpu.len()) {
        let name = product
            .first()
            .and_then(|run| run.cpu.get(index))
            .map_or("", |(name, _)| name);
        let values: Vec<f64> = product
            .iter()
            .filter_map(|run| run.cpu.get(index).map(|(_, cpu)| *cpu))
            .collect();
        row.figure(format!("{name}_cpu_us_per_request"), median(&values));
    }
    row
}
