//! Bulk data one way, over one stream and over several.

use anyhow::Result;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::Plan;
use crate::compare::{Case, Goal, Measured, Unit, compare};
use crate::lineup::{Contender, Lineup};
use crate::load;
use crate::report::{Report, Wanted};

const GIB: f64 = (1_u64 << 30) as f64;

#[derive(Debug, Clone, Copy)]
pub(crate) enum Direction {
    /// From users to the resource.
    Up,
    /// From the resource to users.
    Down,
}

impl Direction {
    pub(crate) const BOTH: [Self; 2] = [Self::Up, Self::Down];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let lineup = Lineup::start(plan).await?;
    let mut report = Report::new("throughput");
    for streams in plan.series(&[1, 16]) {
        for direction in Direction::BOTH {
            let case = Case {
                what: format!("{}, {streams} streams", direction.as_str()),
                unit: Unit::Gib,
                goals: &goals(streams),
            };
            let run = async |contender: &Contender| run(contender, direction, streams, plan).await;
            report.push(compare(&lineup, plan, case, run).await?);
        }
    }
    lineup.finish()?;
    Ok(report)
}

fn goals(streams: usize) -> [Goal; 2] {
    let rate = if streams == 1 { 1.4 } else { 1.5 };
    [
        Goal {
            figure: "cpu_s_per_gib",
            wanted: Wanted::AtMost(0.67),
        },
        Goal {
            figure: "gib_per_s",
            wanted: Wanted::AtLeast(rate),
        },
    ]
}

async fn run(
    contender: &Contender,
    direction: Direction,
    streams: usize,
    plan: &Plan,
) -> Result<Measured> {
    let address = contender.address;
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
    Ok(Measured::new(gib).figure("gib_per_s", gib / seconds))
}
