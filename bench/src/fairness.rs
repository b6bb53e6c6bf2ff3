//! Whether streams leave each other alone: what streams whose readers stop cost those that run, and
//! what bulk costs small requests on a link that it fills.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use sg_tests::link::Shape;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout_at};

use crate::Plan;
use crate::installation::Installation;
use crate::load::{self, GRACE};
use crate::report::{Report, Row, Verdict, Wanted, median, quantile};
use crate::resource::{BLOCK, SEND, STALL, pattern};
use crate::throughput::Direction;

const GIB: f64 = (1_u64 << 30) as f64;

/// Streams that run, and as many that stand still beside them.
const STREAMS: usize = 8;

/// Bulk streams on the link, and those with small requests beside them.
const BULK: usize = 64;
const SMALL: usize = 8;

/// Bits per second of the link, and the time of one way.
const RATE: u64 = 200_000_000;
const ONE_WAY: Duration = Duration::from_millis(10);

/// Until stopped streams have filled what they may fill, and bulk has filled the link.
const SETTLE: Duration = Duration::from_secs(2);

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let mut report = Report::new("fairness");
    let installation = Installation::start(plan).await?;
    let ways = [
        ("direct", installation.resource()),
        ("product", installation.destination()),
    ];
    for direction in Direction::BOTH {
        report.push(beside_stalled(&ways, direction, plan).await?);
    }
    installation.finish()?;

    let shape = Shape::line(RATE, ONE_WAY);
    for direction in Direction::BOTH {
        let installation = Installation::start_linked(plan, shape).await?;
        let address = installation.destination();
        report.push(beside_bulk(address, direction, plan).await?);
        installation.finish()?;
    }
    Ok(report)
}

/// The rate of some streams alone, and beside as many whose readers have stopped.
async fn beside_stalled(
    ways: &[(&str, SocketAddr); 2],
    direction: Direction,
    plan: &Plan,
) -> Result<Row> {
    let streams = plan.streams.unwrap_or(STREAMS);
    let mut rates: [[Vec<f64>; 2]; 2] = Default::default();
    for _ in 0..plan.repeat {
        for ((_, address), [alone, beside]) in ways.iter().zip(&mut rates) {
            alone.push(rate(*address, direction, streams, plan).await?);
            let stalled = stall(*address, direction, streams).await?;
            beside.push(rate(*address, direction, streams, plan).await?);
            drop(stalled);
        }
    }
    let columns = ways.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut row = Row::with_columns(
        format!(
            "{}, {streams} streams alone and beside {streams} whose readers stop",
            direction.as_str()
        ),
        columns,
    );
    let line = |which: usize| -> Vec<f64> {
        rates
            .iter()
            .map(|rates| median(rates.get(which).map_or(&[], Vec::as_slice)))
            .collect()
    };
    let (alone, beside) = (line(0), line(1));
    let share: Vec<f64> = beside.iter().zip(&alone).map(|(b, a)| b / a).collect();
    for (name, values) in [
        ("alone_gib_per_s", &alone),
        ("beside_stalled_gib_per_s", &beside),
        ("share_kept", &share),
    ] {
        row.line(name, values.iter().copied().map(Some).collect());
    }
    if let Some(kept) = share.get(1) {
        row.verdict(Verdict {
            figure: "share_kept of the product".to_owned(),
            against: None,
            value: *kept,
            ratio: *kept,
            wanted: Wanted::AtLeast(0.95),
        });
    }
    Ok(row)
}

/// GiB a second of all streams together.
async fn rate(
    address: SocketAddr,
    direction: Direction,
    streams: usize,
    plan: &Plan,
) -> Result<f64> {
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
    Ok(bytes as f64 / GIB / start.elapsed().as_secs_f64())
}

/// Streams whose readers have stopped, and which are full of what nobody reads.
async fn stall(address: SocketAddr, direction: Direction, count: usize) -> Result<JoinSet<()>> {
    let mut stalled = JoinSet::new();
    for _ in 0..count {
        match direction {
            // The resource sends, and this end does not read.
            Direction::Down => {
                let stream = load::connect(address, SEND).await?;
                stalled.spawn(async move {
                    let _held = stream;
                    std::future::pending().await
                });
            }
            // This end sends, and the resource does not read.
            Direction::Up => {
                let mut stream = load::connect(address, STALL).await?;
                stalled.spawn(async move {
                    let block = pattern();
                    while stream.write_all(&block).await.is_ok() {}
                });
            }
        }
    }
    sleep(SETTLE).await;
    Ok(stalled)
}

/// Times of small requests on the empty link, and beside bulk that fills it.
async fn beside_bulk(address: SocketAddr, direction: Direction, plan: &Plan) -> Result<Row> {
    let count = plan.streams.unwrap_or(BULK);
    let mut row = Row::with_columns(
        format!(
            "small requests beside {count} bulk streams {}, on a link of {} Mbit/s and {} ms there and back",
            direction.as_str(),
            RATE / 1_000_000,
            2 * ONE_WAY.as_millis()
        ),
        ["empty", "full"].map(str::to_owned).to_vec(),
    );
    let (mut p50, mut p99, mut bulk_rates) = ([vec![], vec![]], [vec![], vec![]], vec![]);
    for _ in 0..plan.repeat {
        let empty = small(address, plan).await?;
        let mut bulk = Bulk::start(address, direction, count).await?;
        bulk.settle().await;
        let before = bulk.bytes();
        let start = Instant::now();
        let full = small(address, plan).await?;
        let seconds = start.elapsed().as_secs_f64();
        bulk_rates.push((bulk.bytes() - before) as f64 * 8.0 / 1e6 / seconds);
        bulk.check()?;
        drop(bulk);
        for (index, times) in [empty, full].iter().enumerate() {
            if let (Some(p50), Some(p99)) = (p50.get_mut(index), p99.get_mut(index)) {
                p50.push(quantile(times, 0.5) / 1e3);
                p99.push(quantile(times, 0.99) / 1e3);
            }
        }
        // What is left of the bulk leaves the link.
        sleep(SETTLE).await;
    }
    let medians = |runs: &[Vec<f64>; 2]| runs.each_ref().map(|runs| median(runs));
    let (p50, p99) = (medians(&p50), medians(&p99));
    row.line("p50_ms", p50.map(Some).to_vec());
    row.line("p99_ms", p99.map(Some).to_vec());
    row.line("bulk_mbit_per_s", vec![None, Some(median(&bulk_rates))]);
    let [empty, full] = p99;
    row.verdict(Verdict {
        figure: "p99_ms of small requests".to_owned(),
        against: Some(("the empty link".to_owned(), empty)),
        value: full,
        ratio: full / empty,
        wanted: Wanted::AtMost(2.0),
    });
    Ok(row)
}

/// Microseconds of small requests, for the time of one measurement.
async fn small(address: SocketAddr, plan: &Plan) -> Result<Vec<f64>> {
    let mut opened = Vec::new();
    for _ in 0..SMALL {
        opened.push(load::open_for_requests(address).await?);
    }
    let end = Instant::now() + plan.time;
    let mut users = JoinSet::new();
    for stream in opened {
        users.spawn(load::ping_pong(stream, end));
    }
    let mut times = Vec::new();
    while let Some(result) = users.join_next().await {
        times.extend(result??.into_iter().map(f64::from));
    }
    Ok(times)
}

/// Streams that send as fast as they may, until dropped.
struct Bulk {
    streams: JoinSet<Result<()>>,
    bytes: std::sync::Arc<std::sync::atomic::AtomicU64>,
}

impl Bulk {
    async fn start(address: SocketAddr, direction: Direction, count: usize) -> Result<Self> {
        let bytes = std::sync::Arc::default();
        let mut streams = JoinSet::new();
        for _ in 0..count {
            let counted = std::sync::Arc::clone(&bytes);
            let mode = match direction {
                Direction::Up => crate::resource::COUNT,
                Direction::Down => SEND,
            };
            let connected = load::connect(address, mode);
            let stream = timeout_at(Instant::now() + GRACE, connected)
                .await
                .context("a bulk stream")??;
            streams.spawn(transfer(stream, direction, counted));
        }
        Ok(Self { streams, bytes })
    }

    async fn settle(&self) {
        sleep(SETTLE).await;
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Fails if one of them has ended.
    fn check(&mut self) -> Result<()> {
        match self.streams.try_join_next() {
            None => Ok(()),
            Some(ended) => ended?.context("a bulk stream ended"),
        }
    }
}

async fn transfer(
    mut stream: TcpStream,
    direction: Direction,
    counted: std::sync::Arc<std::sync::atomic::AtomicU64>,
) -> Result<()> {
    // Reset when it is dropped: what the system still holds of it would fill the link for seconds.
    stream.set_zero_linger()?;
    let mut buffer = match direction {
        Direction::Up => pattern(),
        Direction::Down => vec![0; BLOCK],
    };
    loop {
        let count = match direction {
            Direction::Up => stream.write(&buffer).await?,
            Direction::Down => stream.read(&mut buffer).await?,
        };
        anyhow::ensure!(count > 0, "it ended in order");
        counted.fetch_add(count as u64, std::sync::atomic::Ordering::Relaxed);
    }
}
