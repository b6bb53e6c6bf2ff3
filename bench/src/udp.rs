//! Datagrams at a steady rate to an echo and back, over a few flows.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};

use crate::Plan;
use crate::compare::{Case, Goal, Measured, Unit, compare};
use crate::lineup::{Contender, Lineup};
use crate::report::{Report, Wanted, quantile};
use crate::resource::UDP_BUFFER;

/// Flows, all of them together so many datagrams a second, of so many bytes each.
const FLOWS: usize = 4;
const RATE: u32 = 20_000;
const SIZE: usize = 512;

/// Between two bursts of a flow. Shorter is below what the timer can do.
const TICK: Duration = Duration::from_millis(1);

/// How long answers may still come after the last datagram.
const LATE: Duration = Duration::from_secs(1);

const GOALS: [Goal; 1] = [Goal {
    figure: "cpu_us_per_datagram",
    wanted: Wanted::AtMost(0.7),
}];

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let mut lineup = Lineup::start_udp(plan).await?;
    lineup
        .contenders
        .retain(|contender| contender.udp.is_some());
    let flows = plan.streams.unwrap_or(FLOWS);
    let case = Case {
        what: format!("{SIZE}-byte datagrams, {RATE}/s offered, {flows} flows"),
        unit: Unit::Each("datagram"),
        goals: &GOALS,
    };
    let run = async |contender: &Contender| {
        let address = contender.udp.context("it carries no datagrams")?;
        run(address, flows, plan).await
    };
    let mut report = Report::new("udp");
    report.push(compare(&lineup, plan, case, run).await?);
    lineup.finish()?;
    Ok(report)
}

async fn run(address: SocketAddr, flows: usize, plan: &Plan) -> Result<Measured> {
    let start = Instant::now();
    let mut users = JoinSet::new();
    for _ in 0..flows {
        users.spawn(flow(address, f64::from(RATE) / flows as f64, plan.time));
    }
    let (mut sent, mut times) = (0, Vec::new());
    while let Some(result) = users.join_next().await {
        let (by_this, of_this) = result??;
        sent += by_this;
        times.extend(of_this);
    }
    let seconds = plan.time.as_secs_f64();
    debug_assert!(start.elapsed() >= plan.time);
    let echoed = times.len() as f64;
    let loss = (sent as f64 - echoed) * 100.0 / (sent as f64).max(1.0);
    Ok(Measured::new(sent as f64)
        .figure("sent_per_s", sent as f64 / seconds)
        .figure("echoed_per_s", echoed / seconds)
        .figure("loss_percent", loss)
        .figure("p50_us", quantile(&times, 0.5))
        .figure("p99_us", quantile(&times, 0.99)))
}

/// One flow; answers how many were sent, and the microseconds of each that came back.
async fn flow(address: SocketAddr, rate: f64, time: Duration) -> Result<(usize, Vec<f64>)> {
    let socket = UdpSocket::bind("127.0.0.1:0").await.context("bind")?;
    SockRef::from(&socket).set_recv_buffer_size(UDP_BUFFER)?;
    socket.connect(address).await.context("connect")?;
    let start = Instant::now();
    let stopped = Arc::new(AtomicBool::new(false));
    let socket = Arc::new(socket);
    let receiver = {
        let (socket, stopped) = (Arc::clone(&socket), Arc::clone(&stopped));
        async move {
            let mut times = Vec::new();
            let mut buffer = [0; 2048];
            loop {
                match timeout(LATE, socket.recv(&mut buffer)).await {
                    // Nothing for a while: the end, or a lossy peer in the midst of it.
                    Err(_) if stopped.load(Ordering::Relaxed) => return times,
                    Err(_) => {}
                    Ok(Ok(SIZE)) => {
                        let stamp = buffer.first_chunk().copied().map_or(0, u64::from_be_bytes);
                        let sent = Duration::from_nanos(stamp);
                        let taken = start.elapsed().saturating_sub(sent);
                        times.push(taken.as_secs_f64() * 1e6);
                    }
                    // Another's, or an error about one sent before.
                    Ok(_) => tokio::task::yield_now().await,
                }
            }
        }
    };
    let sender = async {
        let mut ticks = interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut datagram = [0_u8; SIZE];
        let mut sent = 0_usize;
        while start.elapsed() < time {
            ticks.tick().await;
            // As many as are due by now, so that a late timer changes the bursts, not the rate.
            let due = start.elapsed().min(time).as_secs_f64() * rate;
            while (sent as f64) < due {
                let stamp = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
                for (to, from) in datagram.iter_mut().zip(stamp.to_be_bytes()) {
                    *to = from;
                }
                // Refused is lost, and shows as such.
                drop(socket.send(&datagram).await);
                sent += 1;
            }
        }
        stopped.store(true, Ordering::Relaxed);
        sent
    };
    let (sent, times) = tokio::join!(sender, receiver);
    Ok((sent, times))
}
