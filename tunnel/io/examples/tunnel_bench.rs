//! Measures the tunnel alone, both ends in one process over loopback TCP without TLS:
//! bulk with 1 and 16 streams, 64-byte round trips on 1, 64 and 512 streams, opens, idle memory.
//!
//! `cargo run --release -p sg-tunnel-io --example tunnel_bench -- [current] [resumable] [NAME...]`
//! CPU is that of the whole process: both drivers and both applications.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::time::{Duration, Instant};

use bytes::Bytes;
use sg_tunnel_io::{Config, Event, Side, Tunnel, TunnelStream, start};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let mut builder = if args.iter().any(|a| a == "current") {
        tokio::runtime::Builder::new_current_thread()
    } else {
        tokio::runtime::Builder::new_multi_thread()
    };
    let names: Vec<&String> = args
        .iter()
        .filter(|a| *a != "current" && *a != "resumable")
        .collect();
    let runtime = builder.enable_all().build().unwrap();
    let wanted = |name: &str| names.is_empty() || names.iter().any(|n| *n == name);
    for streams in [1, 16] {
        if wanted("bulk") {
            runtime.block_on(bulk(streams, Duration::from_secs(2)));
        }
    }
    for streams in [1, 64, 512] {
        if wanted("rr") {
            runtime.block_on(round_trips(streams, Duration::from_secs(2)));
        }
    }
    if wanted("open") {
        runtime.block_on(opens(64, Duration::from_secs(2)));
    }
    if wanted("idle") {
        runtime.block_on(idle(8000));
    }
}

/// Sends on `streams` streams for a time; prints rate and CPU per GiB.
async fn bulk(streams: usize, time: Duration) {
    let (node, serve) = tunnel(Serve::Sink).await;
    let block = Bytes::from(vec![7; 64 * 1024]);
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let mut stream = node.open(Bytes::new()).await.unwrap();
        let block = block.clone();
        tasks.spawn(async move {
            let mut sent = 0_u64;
            while begin.elapsed() < time {
                stream.write_chunk(block.clone()).await.unwrap();
                sent += block.len() as u64;
            }
            stream.finish().unwrap();
            while stream.read_chunk().await.unwrap().is_some() {}
            sent
        });
    }
    let mut sent = 0;
    while let Some(done) = tasks.join_next().await {
        sent += done.unwrap();
    }
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    #[allow(clippy::cast_precision_loss)]
    let mib = sent as f64 / f64::from(1 << 20);
    println!(
        "bulk {streams:4} streams: {:7.0} MiB/s  {:.3} CPU-s/GiB",
        mib / wall,
        cpu * 1024.0 / mib
    );
    finish(&node, serve).await;
}

/// 64 bytes there and back, one at a time per stream.
async fn round_trips(streams: usize, time: Duration) {
    let (node, serve) = tunnel(Serve::Echo).await;
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = JoinSet::new();
    for _ in 0..streams {
        let mut stream = node.open(Bytes::new()).await.unwrap();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while begin.elapsed() < time {
                let start = Instant::now();
                stream
                    .write_chunk(Bytes::from_static(&[1; 64]))
                    .await
                    .unwrap();
                let mut got = 0;
                while got < 64 {
                    got += stream.read_chunk().await.unwrap().unwrap().len();
                }
                times.push(start.elapsed());
            }
            times
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done.unwrap());
    }
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    times.sort_unstable();
    let at = |q: usize| times[(times.len() - 1) * q / 1000].as_micros();
    #[allow(clippy::cast_precision_loss)]
    let count = times.len() as f64;
    println!(
        "rr   {streams:4} streams: {:7.0} /s  {:5.2} us CPU each  p50 {} us  p99 {} us  p99.9 {} us",
        count / wall,
        cpu * 1e6 / count,
        at(500),
        at(990),
        at(999)
    );
    finish(&node, serve).await;
}

/// Open, one byte there and back, close; `parallel` at a time.
async fn opens(parallel: usize, time: Duration) {
    let (node, serve) = tunnel(Serve::Echo).await;
    let (begin, cpu) = (Instant::now(), cpu_seconds());
    let mut tasks = JoinSet::new();
    for _ in 0..parallel {
        let node = node.clone();
        tasks.spawn(async move {
            let mut count = 0_u32;
            while begin.elapsed() < time {
                let mut stream = node.open(Bytes::from_static(&[9; 100])).await.unwrap();
                stream.write_chunk(Bytes::from_static(b"x")).await.unwrap();
                stream.finish().unwrap();
                while stream.read_chunk().await.unwrap().is_some() {}
                count += 1;
            }
            count
        });
    }
    let mut count = 0;
    while let Some(done) = tasks.join_next().await {
        count += done.unwrap();
    }
    let (wall, cpu) = (begin.elapsed().as_secs_f64(), cpu_seconds() - cpu);
    let count = f64::from(count);
    println!(
        "open {parallel:4} at once: {:7.0} /s  {:5.2} us CPU each",
        count / wall,
        cpu * 1e6 / count
    );
    finish(&node, serve).await;
}

/// Memory of open streams on which 64 bytes went each way, both ends and their tasks included.
async fn idle(streams: usize) {
    let (node, serve) = tunnel(Serve::Echo).await;
    let before = resident_kib();
    let mut open = Vec::new();
    for _ in 0..streams {
        let mut stream = node.open(Bytes::new()).await.unwrap();
        stream
            .write_chunk(Bytes::from_static(&[1; 64]))
            .await
            .unwrap();
        stream.read_chunk().await.unwrap();
        open.push(stream);
    }
    let used = resident_kib() - before;
    #[allow(clippy::cast_precision_loss)]
    let each = used as f64 / streams as f64;
    println!("idle {streams:4} streams: {each:.2} KiB each, both ends");
    drop(open);
    finish(&node, serve).await;
}

#[derive(Clone, Copy)]
enum Serve {
    Echo,
    Sink,
}

async fn tunnel(serve: Serve) -> (Tunnel, JoinSet<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let connect = TcpStream::connect(listener.local_addr().unwrap());
    let (accepted, connected) = tokio::join!(listener.accept(), connect);
    let (a, b) = (accepted.unwrap().0, connected.unwrap());
    sg_tunnel_io::socket::tune(&a).unwrap();
    sg_tunnel_io::socket::tune(&b).unwrap();
    let config = Config {
        rates: sg_tunnel_io::Rates {
            opens: sg_tunnel_io::Rate::new(1_000_000, 1_000_000),
            ..Config::default().rates
        },
        resume_time: if std::env::args().any(|a| a == "resumable") {
            Duration::from_secs(30)
        } else {
            Duration::ZERO
        },
        ..Config::default()
    };
    let (node, _, node_driver) = start(a, Side::Node, config.clone());
    let (_, mut incoming, client_driver) = start(b, Side::Client, config);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move { drop(node_driver.await) });
    tasks.spawn(async move { drop(client_driver.await) });
    tasks.spawn(async move {
        let mut streams = JoinSet::new();
        while let Some(event) = incoming.next().await {
            if let Event::Open(offer) = event {
                streams.spawn(answer(offer.accept(), serve));
            }
            while streams.try_join_next().is_some() {}
        }
    });
    (node, tasks)
}

async fn answer(mut stream: TunnelStream, serve: Serve) {
    while let Ok(Some(chunk)) = stream.read_chunk().await {
        if matches!(serve, Serve::Echo) && stream.write_chunk(chunk).await.is_err() {
            return;
        }
    }
    drop(stream.finish());
}

async fn finish(node: &Tunnel, mut tasks: JoinSet<()>) {
    node.close(0, "");
    while tasks.join_next().await.is_some() {}
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let (_, fields) = stat.rsplit_once(") ").unwrap();
    let mut fields = fields.split(' ').skip(11);
    let user: f64 = fields.next().unwrap().parse().unwrap();
    let system: f64 = fields.next().unwrap().parse().unwrap();
    (user + system) / 100.0
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}
