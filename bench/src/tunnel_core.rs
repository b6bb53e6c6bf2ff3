//! The tunnel protocol alone: two sides of one tunnel in this thread, without sockets, TLS and
//! tasks. What one sends is copied once into what the other takes, as a transport would; that copy
//! is in the figures.

use std::io::IoSlice;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, bail, ensure};
use bytes::{Bytes, BytesMut};
use sg_tunnel::{Batch, Config, Connection, Incoming, Key, Read, Side, StreamEnd};
use stats_alloc::Region;

use crate::Plan;
use crate::account::own_cpu_seconds;
use crate::load::REQUEST;
use crate::report::{Report, Row, median};
use crate::resource::pattern;

const GIB: f64 = (1_u64 << 30) as f64;
const MIB: f64 = (1_u64 << 20) as f64;

/// Bytes that one side sends at a time.
const BATCH: usize = 64 * 1024;

/// Pieces of a batch that are copied at a time.
const SLICES: usize = 64;

/// How long a tunnel with resumption may be detached; it never is here.
const RESUME: Duration = Duration::from_secs(30);

pub(crate) fn measure(plan: &Plan) -> Result<Report> {
    let mut report = Report::new("tunnel-core");
    for streams in plan.series(&[1, 16]) {
        let what = format!("bulk, {streams} streams");
        report.push(both(&what, plan, |resume| {
            bulk(streams, resume, plan.time)
        })?);
    }
    for streams in plan.series(&[1, 64]) {
        let what = format!("64-byte round trips, {streams} streams at a time");
        report.push(both(&what, plan, |resume| {
            round_trips(streams, resume, plan.time)
        })?);
    }
    let what = "streams opened, used for one byte and closed";
    report.push(both(what, plan, |resume| opens(resume, plan.time))?);
    Ok(report)
}

/// Figures of one measurement, always the same ones in the same order.
type Figures = Vec<(&'static str, f64)>;

/// With and without resumption, by turns; medians.
fn both(what: &str, plan: &Plan, run: impl Fn(Duration) -> Result<Figures>) -> Result<Row> {
    let mut runs: [Vec<Figures>; 2] = Default::default();
    for _ in 0..plan.repeat {
        for (resume, runs) in [Duration::ZERO, RESUME].into_iter().zip(&mut runs) {
            runs.push(run(resume)?);
        }
    }
    let columns = ["plain", "resumable"].map(str::to_owned).to_vec();
    let mut row = Row::with_columns(what, columns);
    let names = runs.iter().flatten().next().cloned().unwrap_or_default();
    for (index, (name, _)) in names.into_iter().enumerate() {
        let medians = runs.iter().map(|runs| {
            let values = runs.iter().filter_map(|run| run.get(index));
            Some(median(&values.map(|figure| figure.1).collect::<Vec<_>>()))
        });
        row.line(name, medians.collect());
    }
    Ok(row)
}

/// What a piece of work cost this thread.
struct Cost {
    cpu: f64,
    allocations: f64,
}

/// Works until the time is over; `work` answers how much it has done.
fn spend(time: Duration, mut work: impl FnMut() -> Result<u64>) -> Result<(f64, Cost)> {
    let end = Instant::now() + time;
    let region = Region::new(crate::ALLOCATOR);
    let before = own_cpu_seconds()?;
    let mut done = 0;
    while Instant::now() < end {
        done += work()?;
    }
    let change = region.change();
    let cost = Cost {
        cpu: own_cpu_seconds()? - before,
        allocations: (change.allocations + change.reallocations) as f64,
    };
    Ok((done as f64, cost))
}

fn bulk(streams: usize, resume: Duration, time: Duration) -> Result<Figures> {
    let mut pair = Pair::new(resume);
    let keys = pair.open(streams)?;
    let block = Bytes::from(pattern());
    let (bytes, cost) = spend(time, || {
        let mut taken = 0;
        for (from, _) in &keys {
            let mut chunk = block.clone();
            went(pair.node.write(*from, &mut chunk))?;
        }
        let mut more = true;
        while more {
            more = pair.feed_client();
            for (_, to) in &keys {
                while let Read::Chunk(chunk) = went(pair.client.read(*to, BATCH))? {
                    taken += chunk.len() as u64;
                }
            }
        }
        pair.feed_node();
        pair.check()?;
        Ok(taken)
    })?;
    Ok(vec![
        ("cpu_s_per_gib", cost.cpu * GIB / bytes),
        ("allocations_per_mib", cost.allocations * MIB / bytes),
    ])
}

fn round_trips(streams: usize, resume: Duration, time: Duration) -> Result<Figures> {
    let mut pair = Pair::new(resume);
    let keys = pair.open(streams)?;
    let request = Bytes::from(vec![7; REQUEST]);
    let (count, cost) = spend(time, || {
        for (from, _) in &keys {
            went(pair.node.write(*from, &mut request.clone()))?;
        }
        pair.feed_client();
        for (_, to) in &keys {
            let Read::Chunk(mut chunk) = went(pair.client.read(*to, BATCH))? else {
                bail!("a request did not arrive");
            };
            went(pair.client.write(*to, &mut chunk))?;
        }
        pair.feed_node();
        for (from, _) in &keys {
            let Read::Chunk(chunk) = went(pair.node.read(*from, BATCH))? else {
                bail!("an answer did not arrive");
            };
            ensure!(chunk.len() == REQUEST, "an answer in pieces");
        }
        pair.check()?;
        Ok(keys.len() as u64)
    })?;
    Ok(vec![
        ("ns_per_round_trip", cost.cpu * 1e9 / count),
        ("allocations_per_round_trip", cost.allocations / count),
    ])
}

/// Streams at a time whose whole life is measured.
const LIVES: usize = 16;

fn opens(resume: Duration, time: Duration) -> Result<Figures> {
    let mut pair = Pair::new(resume);
    let byte = Bytes::from_static(b"x");
    // The rates that tunnels are held to would be the measure otherwise.
    let (count, cost) = spend(time, || {
        let keys = pair.open(LIVES)?;
        for (from, _) in &keys {
            went(pair.node.write(*from, &mut byte.clone()))?;
            went(pair.node.finish(*from))?;
        }
        pair.feed_client();
        for (_, to) in &keys {
            while let Read::Chunk(_) = went(pair.client.read(*to, BATCH))? {}
            went(pair.client.finish(*to))?;
            pair.client.release(*to, 0);
        }
        pair.feed_node();
        for (from, _) in &keys {
            ensure!(
                went(pair.node.read(*from, BATCH))? == Read::Fin,
                "no FIN came"
            );
            pair.node.release(*from, 0);
        }
        pair.exchange();
        pair.check()?;
        Ok(keys.len() as u64)
    })?;
    Ok(vec![
        ("ns_per_stream", cost.cpu * 1e9 / count),
        ("allocations_per_stream", cost.allocations / count),
    ])
}

fn went<T>(result: Result<T, StreamEnd>) -> Result<T> {
    result.map_err(|end| anyhow!("a stream ended: {end:?}"))
}

/// Both sides of a tunnel, and what lies between them.
struct Pair {
    node: Connection,
    client: Connection,
    batch: Batch,
    /// What has come and is not taken, at each side.
    at_client: BytesMut,
    at_node: BytesMut,
}

impl Pair {
    fn new(resume_time: Duration) -> Self {
        let mut config = Config {
            resume_time,
            ..Config::default()
        };
        // Not to be the limit of a measurement without a network.
        config.rates.opens = sg_tunnel::Rate::new(u32::MAX, u32::MAX);
        let now = Instant::now();
        let mut pair = Self {
            node: Connection::new(Side::Node, config.clone(), now),
            client: Connection::new(Side::Client, config, now),
            batch: Batch::default(),
            at_client: BytesMut::new(),
            at_node: BytesMut::new(),
        };
        pair.exchange();
        pair
    }

    /// Streams from node to client; the keys at both.
    fn open(&mut self, count: usize) -> Result<Vec<(Key, Key)>> {
        let mut keys = Vec::with_capacity(count);
        for _ in 0..count {
            let opened = self.node.open(Bytes::from_static(b"metadata"));
            keys.push(opened.map_err(|refusal| anyhow!("{refusal:?}"))?);
        }
        self.feed_client();
        let mut accepted = Vec::with_capacity(count);
        while let Some(incoming) = self.client.poll_incoming() {
            if let Incoming::Offer { key, .. } = incoming {
                self.client.accept(key, Bytes::new());
                accepted.push(key);
            }
        }
        ensure!(accepted.len() == count, "{} offers", accepted.len());
        self.feed_node();
        self.check()?;
        Ok(keys.into_iter().zip(accepted).collect())
    }

    /// Carries one batch; answers whether there is more.
    fn feed_client(&mut self) -> bool {
        carry(
            &mut self.node,
            &mut self.client,
            &mut self.batch,
            &mut self.at_client,
        )
    }

    fn feed_node(&mut self) -> bool {
        carry(
            &mut self.client,
            &mut self.node,
            &mut self.batch,
            &mut self.at_node,
        )
    }

    fn exchange(&mut self) {
        while self.feed_client() {}
        while self.feed_node() {}
    }

    /// Fails if the tunnel has ended; takes the events, as a driver does.
    fn check(&mut self) -> Result<()> {
        for side in [&mut self.node, &mut self.client] {
            while side.poll_event().is_some() {}
            if let Some(closed) = side.closed() {
                bail!("the tunnel ended: {closed:?}");
            }
        }
        Ok(())
    }
}

/// Sends one batch of what one side has; answers whether there is more.
fn carry(
    from: &mut Connection,
    to: &mut Connection,
    batch: &mut Batch,
    input: &mut BytesMut,
) -> bool {
    let now = Instant::now();
    from.handle_timeout(now);
    let more = from.poll_transmit(now, batch, BATCH);
    let count = batch.len();
    input.reserve(count);
    while !batch.is_empty() {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let filled = batch.slices(&mut slices);
        let mut copied = 0;
        for slice in slices.iter().take(filled) {
            input.extend_from_slice(slice);
            copied += slice.len();
        }
        batch.advance(copied);
    }
    if count > 0 {
        to.handle_received(now, count);
        to.handle_input(now, input);
    }
    more
}
