//! Figures of the product: each benchmark starts the real release programs on loopback, measures
//! through them and against a direct connection in the same run, by turns, and prints the ratio
//! and what each process spent. Nothing is kept between runs.
//!
//! `installation` is what is measured, `load` makes the load and `resource` answers it, `account`
//! reads what the processes spent, `report` prints. One file for each benchmark: `throughput`,
//! `latency`, `open_rate`, `idle`, `push`.

mod account;
mod idle;
mod installation;
mod latency;
mod load;
mod open_rate;
mod push;
mod report;
mod resource;
mod throughput;

use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, ValueEnum};

/// Measures the product on this machine.
#[derive(Debug, Parser)]
#[command(name = "sg-bench", version)]
struct Arguments {
    /// What to measure
    name: Name,

    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Length of one measurement
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,

    /// Streams at a time, instead of the usual series
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=8000))]
    streams: Option<u32>,

    /// Measurements of each kind; the median is printed
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,

    /// Use etcd as the store instead of the embedded one
    #[arg(long)]
    etcd: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Name {
    /// Bytes per second and CPU per GiB: 1 and 16 streams, up and down
    Throughput,
    /// Requests of 64 bytes and their answers: 1, 64 and 512 streams
    Latency,
    /// Connections opened, used once and closed: 64 at a time
    OpenRate,
    /// Memory of idle connections: 2,000, or as many as --streams says
    Idle,
    /// From the call that makes a destination to its open port: 50 times --repeat
    Push,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How much to measure.
#[derive(Debug, Clone, Copy)]
struct Plan {
    time: Duration,
    streams: Option<usize>,
    repeat: usize,
    etcd: bool,
}

impl Plan {
    /// The number asked for, or each of the usual ones.
    fn series(&self, usual: &[usize]) -> Vec<usize> {
        self.streams
            .map_or_else(|| usual.to_vec(), |streams| vec![streams])
    }
}

fn main() -> ExitCode {
    sg_runtime::crypto::install();
    let arguments = Arguments::parse();
    let number = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
    let plan = Plan {
        time: Duration::from_secs(arguments.seconds),
        streams: arguments.streams.map(number),
        repeat: number(arguments.repeat),
        etcd: arguments.etcd,
    };
    match run(arguments.name, plan) {
        Ok(report) => {
            report.print(matches!(arguments.output, Format::Json));
            ExitCode::SUCCESS
        }
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

fn run(name: Name, plan: Plan) -> anyhow::Result<report::Report> {
    sg_runtime::net::raise_nofile_limit()?;
    installation::build()?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match name {
            Name::Throughput => throughput::measure(plan).await,
            Name::Latency => latency::measure(plan).await,
            Name::OpenRate => open_rate::measure(plan).await,
            Name::Idle => idle::measure(plan).await,
            Name::Push => push::measure(plan).await,
        }
    })
}
