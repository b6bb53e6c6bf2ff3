//! Figures of the product: each benchmark starts the real release programs on loopback, measures
//! through them and against a direct connection in the same run, by turns, and prints the ratio
//! and what each process spent; with `--peers` other programs of the kind are measured beside them.
//! Nothing is kept between runs.
//!
//! `lineup` is who is measured: the product (`installation`), the direct way, and `peers`. `load`
//! makes the load and `resource` answers it, on its `own_thread`; `compare` measures a case for all of them by turns,
//! `account` and `trace` read what processes spent, `machine` what it was spent on, `report` prints. One file for each benchmark:
//! `throughput`, `latency`, `open_rate`, `idle`, `udp`, `fairness`, `tunnel_core`, `resumption`,
//! `push`, `tunnels`. `link_tool` is no benchmark but the emulated link for use by hand.

mod account;
mod compare;
mod fairness;
mod idle;
mod installation;
mod latency;
mod lineup;
mod link_tool;
mod load;
mod machine;
mod open_rate;
mod own_thread;
mod peers;
mod protocols;
mod push;
mod report;
mod resource;
mod resumption;
mod throughput;
mod trace;
mod tunnel_core;
mod tunnels;
mod udp;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand, ValueEnum};

use link_tool::LinkArguments;
use peers::Peer;
use report::Report;

/// The system's allocator, with counters for `tunnel_core`.
#[global_allocator]
static ALLOCATOR: &stats_alloc::StatsAlloc<std::alloc::System> = &stats_alloc::INSTRUMENTED_SYSTEM;

/// Measures the product on this machine.
#[derive(Debug, Parser)]
#[command(name = "sg-bench", version)]
struct Arguments {
    #[command(subcommand)]
    name: Name,

    /// How to print it
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    output: Format,

    /// Length of one measurement
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=60))]
    seconds: u64,

    /// Streams at a time, instead of the usual series
    #[arg(long, global = true, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    streams: Option<u32>,

    /// Measurements of each kind; the median is printed
    #[arg(long, global = true, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=1000))]
    repeat: u32,

    /// Other programs to measure beside the product: names with commas between them, or all that
    /// are installed (throughput, latency, open-rate, idle, udp)
    #[arg(long, global = true, value_delimiter = ',', value_name = "NAMES")]
    peers: Vec<String>,

    /// Folder with sg-data-plane and sg-client of another build, to measure beside this one (throughput,
    /// latency, open-rate, idle, udp)
    #[arg(long, global = true, value_name = "FOLDER")]
    baseline: Option<PathBuf>,

    /// Count system calls with strace, in one more run of each kind
    #[arg(long, global = true)]
    syscalls: bool,

    /// Use etcd as the store instead of the embedded one
    #[arg(long, global = true)]
    etcd: bool,

    /// Other destinations that are stored before (push)
    #[arg(long, global = true, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    stored: u32,
}

#[derive(Debug, Subcommand)]
enum Name {
    /// Bytes per second and CPU per GiB: 1 and 16 streams, up and down
    Throughput,
    /// Requests of 64 bytes and their answers: 1, 64 and 512 streams
    Latency,
    /// Connections opened, used once and closed: 64 at a time
    OpenRate,
    /// Memory of idle connections: 2,000, or as many as --streams says
    Idle,
    /// Datagrams of 512 bytes, 20,000 a second over 4 flows: loss, times, CPU
    Udp,
    /// Streams beside others whose readers stop, and small requests beside bulk on a slow link
    Fairness,
    /// The tunnel protocol alone, in memory: CPU and allocations, with and without resumption
    TunnelCore,
    /// 1 GiB echoed while the tunnel's connection is killed again and again
    Resumption,
    /// From the call that makes a destination to its open port: 50 times --repeat
    Push,
    /// Many idle tunnels on one node, 9,600 or as many as --streams says: memory and CPU of each
    Tunnels,
    /// What TLS and HTTP cost: one download through destinations of each protocol, as ratios to tcp
    Protocols,
    /// Runs an emulated link by hand: rate, delay, queue, cuts
    Link(LinkArguments),
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Format {
    Table,
    Json,
}

/// How much to measure.
#[derive(Debug, Clone)]
struct Plan {
    time: Duration,
    streams: Option<usize>,
    repeat: usize,
    peers: Vec<Peer>,
    baseline: Option<PathBuf>,
    syscalls: bool,
    etcd: bool,
    stored: usize,
}

impl Plan {
    fn new(arguments: &Arguments) -> anyhow::Result<Self> {
        // Before anything is built: that takes minutes.
        if let Some(folder) = &arguments.baseline {
            for program in ["sg-data-plane", "sg-client"] {
                let path = folder.join(program);
                anyhow::ensure!(path.is_file(), "--baseline: {} is missing", path.display());
            }
        }
        let number = |value: u32| usize::try_from(value).unwrap_or(usize::MAX);
        Ok(Self {
            time: Duration::from_secs(arguments.seconds),
            streams: arguments.streams.map(number),
            repeat: number(arguments.repeat),
            peers: Peer::parse(&arguments.peers)?,
            baseline: arguments.baseline.clone(),
            syscalls: arguments.syscalls,
            etcd: arguments.etcd,
            stored: number(arguments.stored),
        })
    }

    /// The number asked for, or each of the usual ones.
    fn series(&self, usual: &[usize]) -> Vec<usize> {
        self.streams
            .map_or_else(|| usual.to_vec(), |streams| vec![streams])
    }
}

fn main() -> ExitCode {
    sg_runtime::crypto::install();
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(Some(report)) => {
            report.print(matches!(arguments.output, Format::Json));
            ExitCode::SUCCESS
        }
        Ok(None) => ExitCode::SUCCESS,
        Err(error) => {
            report::complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// The users of most benchmarks have one thread, and the resource another (`own_thread`).
fn runtime_for(name: &Name) -> std::io::Result<tokio::runtime::Runtime> {
    let mut builder = match name {
        Name::Throughput | Name::Latency | Name::OpenRate | Name::Idle | Name::Udp => {
            tokio::runtime::Builder::new_current_thread()
        }
        // With more in this process than users: an emulated link, the checks of every byte.
        _ => tokio::runtime::Builder::new_multi_thread(),
    };
    builder.enable_all().build()
}

fn run(arguments: &Arguments) -> anyhow::Result<Option<Report>> {
    sg_runtime::net::raise_nofile_limit()?;
    let plan = Plan::new(arguments)?;
    let runtime = runtime_for(&arguments.name)?;
    match &arguments.name {
        Name::Link(link) => return runtime.block_on(link_tool::run(link)).map(|()| None),
        Name::TunnelCore => return tunnel_core::measure(&plan).map(Some),
        _ => {}
    }
    installation::build()?;
    let report = runtime.block_on(async {
        match arguments.name {
            Name::Throughput => throughput::measure(&plan).await,
            Name::Latency => latency::measure(&plan).await,
            Name::OpenRate => open_rate::measure(&plan).await,
            Name::Idle => idle::measure(&plan).await,
            Name::Udp => udp::measure(&plan).await,
            Name::Fairness => fairness::measure(&plan).await,
            Name::Resumption => resumption::measure(&plan).await,
            Name::Protocols => Box::pin(protocols::measure(&plan)).await,
            Name::Tunnels => tunnels::measure(&plan).await,
            Name::Push => Box::pin(push::measure(&plan)).await,
            Name::TunnelCore | Name::Link(_) => anyhow::bail!("not reached"),
        }
    });
    report.map(Some)
}
