//! Bytes echoed and checked while the tunnel's connection is killed again and again: by reset, by
//! FIN and by silence in turn, each time a while after it has recovered.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::bytes;
use sg_tests::link::{End, Link, Shape};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::Plan;
use crate::account::{Process, resident_kib};
use crate::installation::Installation;
use crate::load;
use crate::report::{Report, Row, Verdict, Wanted, median, tell};
use crate::resource::ECHO_BULK;

/// Bytes of all streams together.
const BYTES: usize = 1 << 30;
const STREAMS: usize = 8;

/// The link between client and node: slow enough that there is time to be killed often.
const RATE: u64 = 400_000_000;
const ONE_WAY: Duration = Duration::from_millis(2);

/// From a recovery to the next kill.
const PAUSE: Duration = Duration::from_secs(2);

/// Until nothing more is to be hoped for: beyond the resume time.
const LOST: Duration = Duration::from_secs(60);

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(2);

/// Memory that node and client together may add to what they had, in MiB: the log of unacknowledged
/// bytes at both ends, and what the streams hold.
const MEMORY_BOUND_MIB: f64 = 128.0;

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let streams = plan.streams.unwrap_or(STREAMS);
    let shape = Shape::line(RATE, ONE_WAY);
    let mut installation = Installation::start_linked(plan, shape).await?;
    let processes = installation.processes();
    let before = memory(&processes)?;
    let verified = Arc::new(AtomicU64::new(0));
    let mut users = JoinSet::new();
    for seed in 0..streams as u64 {
        let verified = Arc::clone(&verified);
        users.spawn(user(
            installation.destination(),
            seed,
            BYTES / streams,
            verified,
        ));
    }
    let start = Instant::now();
    let mut kills = Kills::default();
    let mut highest = before.clone();
    {
        let killing = kill(installation.link()?, &verified, &mut kills);
        let watching = watch(&processes, &mut highest);
        let all = async {
            while let Some(result) = users.join_next().await {
                result?.context("a stream was lost")?;
            }
            anyhow::Ok(())
        };
        tokio::select! {
            done = all => done?,
            failed = killing => failed?,
            failed = watching => failed?,
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let total = verified.load(Ordering::Relaxed);
    ensure!(total == (BYTES / streams * streams) as u64, "{total} bytes");
    let mut report = Report::new("resumption");
    report.push(row(
        total, streams, seconds, &kills, &processes, &before, &highest,
    ));
    installation.finish()?;
    Ok(report)
}

fn row(
    total: u64,
    streams: usize,
    seconds: f64,
    kills: &Kills,
    processes: &[Process],
    before: &[f64],
    highest: &[f64],
) -> Row {
    let mut row = Row::new(format!(
        "{total} bytes echoed over {streams} streams and checked"
    ));
    row.figure("seconds", seconds);
    row.figure("streams_lost", 0.0);
    row.figure("recoveries", kills.0.len() as f64);
    for how in HOWS {
        let mine = kills.0.iter().filter(|(which, _)| *which == how);
        let times: Vec<f64> = mine.map(|(_, time)| time.as_secs_f64()).collect();
        let word = word(how);
        row.figure(format!("recoveries_from_{word}"), times.len() as f64);
        row.figure(format!("recovery_from_{word}_median_s"), median(&times));
        let worst = times.iter().copied().fold(0.0, f64::max);
        row.figure(format!("recovery_from_{word}_worst_s"), worst);
    }
    let mut added = 0.0;
    for ((process, before), highest) in processes.iter().zip(before).zip(highest) {
        row.figure(format!("{}_rss_before_mib", process.name), before / 1024.0);
        row.figure(
            format!("{}_rss_highest_mib", process.name),
            highest / 1024.0,
        );
        added += (highest - before) / 1024.0;
    }
    row.verdict(Verdict {
        figure: "memory added by node and client, MiB".to_owned(),
        against: None,
        value: added,
        ratio: added,
        wanted: Wanted::AtMost(MEMORY_BOUND_MIB),
    });
    row
}

/// How each kill was done, and how long it took until the next byte.
#[derive(Debug, Default)]
struct Kills(Vec<(End, Duration)>);

const HOWS: [End; 3] = [End::Reset, End::Fin, End::Silence];

fn word(how: End) -> &'static str {
    match how {
        End::Reset => "reset",
        End::Fin => "fin",
        End::Silence => "silence",
    }
}

/// Kills and waits, for ever.
async fn kill(link: &Link, verified: &AtomicU64, kills: &mut Kills) -> Result<()> {
    for how in HOWS.into_iter().cycle() {
        sleep(PAUSE).await;
        let connections = link.accepted_connections();
        link.cut(how);
        let start = Instant::now();
        // What had been delivered already is still being read.
        while link.accepted_connections() == connections {
            ensure!(start.elapsed() < LOST, "no new connection after {how:?}");
            sleep(LOOK).await;
        }
        let then = verified.load(Ordering::Relaxed);
        while verified.load(Ordering::Relaxed) == then {
            ensure!(start.elapsed() < LOST, "no byte after {how:?}");
            sleep(LOOK).await;
        }
        kills.0.push((how, start.elapsed()));
        tell(&format!(
            "resumption: back {:.3} s after {}, {} MiB verified",
            start.elapsed().as_secs_f64(),
            word(how),
            then >> 20
        ));
    }
    Ok(())
}

async fn watch(processes: &[Process], highest: &mut [f64]) -> Result<()> {
    loop {
        for (highest, now) in highest.iter_mut().zip(memory(processes)?) {
            *highest = highest.max(now);
        }
        sleep(Duration::from_millis(50)).await;
    }
}

fn memory(processes: &[Process]) -> Result<Vec<f64>> {
    processes
        .iter()
        .map(|process| resident_kib(*process))
        .collect()
}

/// Sends a sequence of its own to the echo, and compares what comes back.
async fn user(
    address: SocketAddr,
    seed: u64,
    length: usize,
    verified: Arc<AtomicU64>,
) -> Result<()> {
    let stream = load::connect(address, ECHO_BULK).await?;
    let (from, to) = TcpStream::into_split(stream);
    tokio::try_join!(
        bytes::send(to, seed, length),
        check(from, seed, length, &verified)
    )
    .map(drop)
}

async fn check(
    mut from: impl AsyncRead + Unpin,
    seed: u64,
    length: usize,
    verified: &AtomicU64,
) -> Result<()> {
    let mut sequence = bytes::Sequence::new(seed);
    let (mut wanted, mut got) = (vec![0; 16 * 1024], vec![0; 16 * 1024]);
    let mut done = 0;
    while done < length {
        let size = (length - done).min(wanted.len());
        wanted.truncate(size);
        got.truncate(size);
        sequence.fill(&mut wanted);
        timeout(LOST, from.read_exact(&mut got))
            .await
            .context("a stream stalled")?
            .with_context(|| format!("reading after {done} bytes"))?;
        ensure!(wanted == got, "a byte differs after {done}");
        done += size;
        verified.fetch_add(size as u64, Ordering::Relaxed);
    }
    Ok(())
}
