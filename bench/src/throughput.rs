//! Bulk data one way, over one stream and over several.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Plan;
use crate::account::Meter;
use crate::installation::{Installation, Path};
use crate::load;
use crate::report::{Report, Row, median};

const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Clone, Copy)]
enum Direction {
    Up,
    Down,
}

/// One measurement.
struct Run {
    gib_per_second: f64,
    /// CPU seconds per GiB of each process; empty for the direct path.
    cpu: Vec<(&'static str, f64)>,
}

pub(crate) async fn measure(plan: Plan) -> Result<Report> {
    let mut installation = Installation::start(plan).await?;
    let mut report = Report::new("throughput");
    for streams in plan.series(&[1, 16]) {
        for (direction, word) in [(Direction::Up, "up"), (Direction::Down, "down")] {
            let mut runs = [Vec::new(), Vec::new()];
            for _ in 0..plan.repeat {
                // By turns, so that what else the machine does meets both.
                for (path, runs) in Path::BOTH.into_iter().zip(&mut runs) {
                    runs.push(run(&mut installation, path, direction, streams, plan).await?);
                }
            }
            report.push(row(&format!("{word}, {streams} streams"), &runs));
        }
    }
    installation.finish()?;
    Ok(report)
}

async fn run(
    installation: &mut Installation,
    path: Path,
    direction: Direction,
    streams: usize,
    plan: Plan,
) -> Result<Run> {
    let address = installation.address(path);
    let meter = Meter::start(&installation.processes())?;
    let start = Instant::now();
    let end = start + plan.time;
    let mut users = JoinSet::new();
    for _ in 0..streams {
        users.spawn(async move {
            match direction {
                Direction::Up => load::upload(address, end).await,
                Direction::Down => load::download(address, end).await,
            }
        });
    }
    let mut bytes = 0;
    while let Some(result) = users.join_next().await {
        bytes += result??;
    }
    let gib = bytes as f64 / GIB;
    let seconds = start.elapsed().as_secs_f64();
    let cpu = match path {
        Path::Direct => Vec::new(),
        Path::Product => meter
            .spent()?
            .into_iter()
            .map(|(name, spent)| (name, spent / gib))
            .collect(),
    };
    Ok(Run {
        gib_per_second: gib / seconds,
        cpu,
    })
}

fn row(what: &str, runs: &[Vec<Run>; 2]) -> Row {
    let [direct, product] = runs;
    let speed = |runs: &[Run]| {
        median(
            &runs
                .iter()
                .map(|run| run.gib_per_second)
                .collect::<Vec<_>>(),
        )
    };
    let mut row = Row::new(what);
    row.figure("direct_gib_per_s", speed(direct));
    row.figure("product_gib_per_s", speed(product));
    row.figure("ratio", speed(product) / speed(direct));
    let mut all = 0.0;
    for index in 0..product.first().map_or(0, |run| run.cpu.len()) {
        let values: Vec<(&str, f64)> = product
            .iter()
            .filter_map(|run| run.cpu.get(index).copied())
            .collect();
        let cpu = median(&values.iter().map(|(_, cpu)| *cpu).collect::<Vec<_>>());
        all += cpu;
        row.figure(
            format!(
                "{}_cpu_s_per_gib",
                values.first().map_or("", |(name, _)| name)
            ),
            cpu,
        );
    }
    row.figure("product_cpu_s_per_gib", all);
    row
}
