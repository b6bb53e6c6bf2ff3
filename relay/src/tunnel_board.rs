//! The tunnels of this process, for people and for metrics: the page `/debug/tunnels`, and the series that
//! add up over all tunnels, those that have ended included.
//!
//! It knows tunnels only to ask them; whoever serves a tunnel posts it here for as long as it lives.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use serde_json::{Value, json};
use sg_runtime::admin_http::extract::Path;
use sg_runtime::admin_http::http::StatusCode;
use sg_runtime::admin_http::{Json, Router, routing};
use sg_runtime::metrics::Metrics;
use sg_tunnel_io::{Budget, Datagrams, Limit, Report, StreamReport, Tunnel, TunnelStats};
use tokio::time::Instant;

/// Rates are taken over at least so long.
const RATE_OVER: Duration = Duration::from_secs(1);
/// Streams of one tunnel that are listed, those that hold most first.
const STREAMS_SHOWN: usize = 100;
/// The same when a single tunnel is asked for.
const STREAMS_SHOWN_ALONE: usize = 10_000;

/// All tunnels of a process. Clones are the same board.
#[derive(Debug, Clone)]
pub struct TunnelBoard(Arc<Board>);

#[derive(Debug)]
struct Board {
    budget: Arc<Budget>,
    entries: Mutex<Entries>,
}

#[derive(Debug, Default)]
struct Entries {
    last: u64,
    /// Boxed: half of a tree's room is free.
    live: BTreeMap<u64, Box<Entry>>,
    /// What the limits of tunnels that have ended came to, in the order of [`Limit::ALL`].
    ended: [u64; Limit::ALL.len()],
}

#[derive(Debug)]
struct Entry {
    info: TunnelInfo,
    tunnel: Tunnel,
    since: Instant,
    /// Once anybody has looked.
    rate: Option<Box<Rate>>,
}

/// Bytes per second between two looks that are far enough apart.
#[derive(Debug)]
struct Rate {
    at: Instant,
    sent: u64,
    received: u64,
    per_second: (u64, u64),
}

/// Whose tunnel it is.
#[derive(Debug, Clone)]
pub struct TunnelInfo {
    /// Name of the gateway.
    pub gateway: Arc<str>,
    /// The client, or the node, at the other end.
    pub peer: Arc<str>,
    /// Address of the other end when the tunnel began.
    pub address: Box<str>,
}

/// A posted tunnel; dropping it takes it off the board and keeps its counters.
#[derive(Debug)]
pub struct Posted {
    board: TunnelBoard,
    number: u64,
}

impl TunnelBoard {
    /// An empty board; `budget` is the one that all tunnels of the process share.
    #[must_use]
    pub fn new(budget: Arc<Budget>) -> Self {
        Self(Arc::new(Board {
            budget,
            entries: Mutex::default(),
        }))
    }

    /// Adds `sg_tunnel_limits_total{limit}` and `sg_tunnel_memory_bytes{kind}` to what is scraped.
    pub fn register(&self, metrics: &Metrics) {
        metrics.with_registry(|registry| registry.register_collector(Box::new(self.clone())));
    }

    /// Shows a tunnel until the answer is dropped.
    #[must_use]
    pub fn post(&self, info: TunnelInfo, tunnel: Tunnel) -> Posted {
        let now = Instant::now();
        let mut entries = self.lock();
        entries.last += 1;
        let number = entries.last;
        entries.live.insert(
            number,
            Box::new(Entry {
                info,
                tunnel,
                since: now,
                rate: None,
            }),
        );
        Posted {
            board: self.clone(),
            number,
        }
    }

    /// The page: all tunnels with their largest streams, or one of them with (nearly) all of its streams.
    /// `None` when there is no such tunnel.
    #[must_use]
    pub fn page(&self, only: Option<u64>) -> Option<Value> {
        let now = Instant::now();
        let streams = only.map_or(STREAMS_SHOWN, |_| STREAMS_SHOWN_ALONE);
        let mut entries = self.lock();
        let tunnels: Vec<Value> = entries
            .live
            .iter_mut()
            .filter(|(number, _)| only.is_none_or(|only| only == **number))
            .map(|(number, entry)| entry.show(*number, streams, now))
            .collect();
        drop(entries);
        if only.is_some() && tunnels.is_empty() {
            return None;
        }
        let budget = &self.0.budget;
        Some(json!({
            "memory": {
                "budget_bytes": budget.total(),
                "windows_bytes": budget.growth_used(),
                "log_bytes": budget.log_used(),
                "queues_bytes": budget.queues_used(),
            },
            "tunnels": tunnels,
        }))
    }

    /// `/debug/tunnels`, and `/debug/tunnels/NUMBER` for one of them, as JSON.
    pub fn routes(&self) -> Router {
        let (all, one) = (self.clone(), self.clone());
        Router::new()
            .route(
                "/debug/tunnels",
                routing::get(async move || Json(all.page(None))),
            )
            .route(
                "/debug/tunnels/{number}",
                routing::get(async move |Path(number): Path<u64>| {
                    one.page(Some(number)).map(Json).ok_or((
                        StatusCode::NOT_FOUND,
                        "no tunnel has this number now; see /debug/tunnels\n",
                    ))
                }),
            )
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        self.0
            .entries
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Posted {
    fn drop(&mut self) {
        let mut entries = self.board.lock();
        let entry = entries.live.remove(&self.number);
        if let Some(entry) = &entry {
            add_limits(&mut entries.ended, &entry.tunnel.stats());
        }
        // The handle goes outside of the lock.
        drop(entries);
        drop(entry);
    }
}

fn add_limits(sums: &mut [u64; Limit::ALL.len()], stats: &TunnelStats) {
    for (sum, (_, count)) in sums.iter_mut().zip(stats.limits()) {
        *sum += count;
    }
}

impl Entry {
    fn show(&mut self, number: u64, streams: usize, now: Instant) -> Value {
        let report = self.tunnel.report(streams);
        let (sent, received) = self
            .rate
            .get_or_insert_with(|| Box::new(Rate::start(self.since)))
            .look(&report.stats, now);
        json!({
            "number": number,
            "gateway": *self.info.gateway,
            "peer": *self.info.peer,
            "address": self.info.address,
            "age_seconds": now.saturating_duration_since(self.since).as_secs(),
            "state": report.state,
            "suspect": report.suspect,
            "rtt_micros": report.rtt.map(micros),
            "min_rtt_micros": report.min_rtt.map(micros),
            "sent_bytes_per_second": sent,
            "received_bytes_per_second": received,
            "sent_bytes": report.stats.sent_bytes,
            "received_bytes": report.stats.received_bytes,
            "resumes": report.stats.resumes,
            "retained_bytes": report.stats.retained_bytes,
            "unread_bytes": report.stats.unread_bytes,
            "queued_bytes": report.stats.queued_bytes,
            "windows_bytes": report.stats.growth_used,
            "windows_budget_bytes": report.growth_budget,
            "datagrams_sent": report.stats.datagrams_sent,
            "datagrams_received": report.stats.datagrams_received,
            "datagrams_unsent": datagrams(report.datagrams_unsent),
            "datagrams_unread": datagrams(report.datagrams_unread),
            "streams_here": report.stats.streams_opened,
            "streams_there": report.stats.streams_accepted,
            "streams": report.streams,
            "offered": report.offered,
            "waiting": waiting(&report),
            "limits": limits(&report.stats),
            "stream_list": report.list.iter().map(stream).collect::<Vec<_>>(),
        })
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn datagrams(waiting: Datagrams) -> Value {
    json!({ "count": waiting.count, "bytes": waiting.bytes })
}

fn waiting(report: &Report) -> Value {
    let list = &report.waiting;
    json!({
        "opens": list.opens,
        "control": list.control,
        "messages": list.messages,
        "flows": list.flows,
        "interactive": list.interactive,
        "bulk": list.bulk,
        "incoming_messages": list.incoming_messages,
    })
}

/// Only what has refused anything.
fn limits(stats: &TunnelStats) -> Value {
    stats
        .limits()
        .filter(|(_, count)| *count > 0)
        .map(|(word, count)| (word.to_owned(), count.into()))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn stream(stream: &StreamReport) -> Value {
    let waits = [
        (stream.waits_open, "open"),
        (stream.waits_read, "read"),
        (stream.waits_write, "write"),
    ];
    let waits: Vec<&str> = waits
        .into_iter()
        .filter_map(|(waits, word)| waits.then_some(word))
        .collect();
    json!({
        "id": stream.id,
        "kind": if stream.flow { "flow" } else { "stream" },
        "opened_here": stream.opened_here,
        "state": stream.state,
        "class": stream.class,
        "weight": stream.weight,
        "sent_bytes": stream.sent,
        "received_bytes": stream.received,
        "queued_bytes": stream.queued,
        "credit_bytes": stream.credit,
        "unread_bytes": stream.unread,
        "granted_bytes": stream.granted,
        "window_bytes": stream.window,
        "waits": waits,
    })
}

impl Rate {
    fn start(now: Instant) -> Self {
        Self {
            at: now,
            sent: 0,
            received: 0,
            per_second: (0, 0),
        }
    }

    /// Bytes per second, sent and received, since the last look that is far enough back.
    fn look(&mut self, stats: &TunnelStats, now: Instant) -> (u64, u64) {
        let time = now.saturating_duration_since(self.at);
        if time >= RATE_OVER {
            let per_second = |bytes: u64| {
                let rate = u128::from(bytes) * 1_000_000 / time.as_micros().max(1);
                u64::try_from(rate).unwrap_or(u64::MAX)
            };
            self.per_second = (
                per_second(stats.sent_bytes.saturating_sub(self.sent)),
                per_second(stats.received_bytes.saturating_sub(self.received)),
            );
            (self.at, self.sent, self.received) = (now, stats.sent_bytes, stats.received_bytes);
        }
        self.per_second
    }
}

impl Collector for TunnelBoard {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut sums = {
            let entries = self.lock();
            let mut sums = entries.ended;
            for entry in entries.live.values() {
                add_limits(&mut sums, &entry.tunnel.stats());
            }
            sums.into_iter()
        };
        let mut family = encoder.encode_descriptor(
            "tunnel_limits",
            "What the limits of tunnels refused, dropped or ended",
            None,
            MetricType::Counter,
        )?;
        for limit in Limit::ALL {
            let count = ConstCounter::new(sums.next().unwrap_or_default());
            count.encode(family.encode_family(&[("limit", limit.word())])?)?;
        }
        let mut family = encoder.encode_descriptor(
            "tunnel_memory_bytes",
            "What all tunnels together hold of their memory budget",
            None,
            MetricType::Gauge,
        )?;
        let budget = &self.0.budget;
        for (kind, bytes) in [
            ("windows", budget.growth_used()),
            ("log", budget.log_used()),
            ("queues", budget.queues_used()),
            ("budget", budget.total()),
        ] {
            let bytes = ConstGauge::new(i64::try_from(bytes).unwrap_or(i64::MAX));
            bytes.encode(family.encode_family(&[("kind", kind)])?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use bytes::Bytes;
    use sg_tunnel_io::{Config, Event, OpenError, Rate as LimitRate, Side, code, start};
    use tokio::task::JoinSet;

    use super::*;

    #[tokio::test]
    async fn the_page_shows_streams_and_the_counters_outlive_the_tunnel() {
        let mut config = Config::default();
        config.rates.opens = LimitRate::new(1, 1);
        let board = TunnelBoard::new(Arc::clone(&config.budget));
        let metrics = Metrics::new("test", "0");
        board.register(&metrics);
        let (near, far) = tokio::io::duplex(64 * 1024);
        let (opener, _events, driver) = start(near, Side::Node, Config::default());
        let (acceptor, mut incoming, other) = start(far, Side::Client, config);
        let mut drivers = JoinSet::new();
        drivers.spawn(driver);
        drivers.spawn(other);
        let info = TunnelInfo {
            gateway: "plant".into(),
            peer: "node-1".into(),
            address: "192.0.2.1:9000".into(),
        };
        let posted = board.post(info, acceptor);

        let accept = async {
            match incoming.next().await {
                Some(Event::Open(stream)) => stream.accept(),
                other => panic!("{other:?}"),
            }
        };
        let (opened, mut accepted) = tokio::join!(opener.open(Bytes::new()), accept);
        let mut stream = opened.unwrap();
        stream
            .write_chunk(Bytes::from_static(b"four"))
            .await
            .unwrap();
        assert_eq!(accepted.read_chunk().await.unwrap().unwrap().len(), 4);
        let refused = opener.open(Bytes::new()).await.unwrap_err();
        assert_eq!(refused, OpenError::Reset { code: code::LIMIT });

        let page = board.page(None).unwrap();
        let tunnel = &page["tunnels"][0];
        assert_eq!(
            (&tunnel["gateway"], &tunnel["state"]),
            (&json!("plant"), &json!("attached"))
        );
        assert_eq!(tunnel["limits"], json!({ "opens": 1 }));
        let streams = tunnel["stream_list"].as_array().unwrap();
        let stream = streams.iter().find(|s| s["id"] == 1).unwrap();
        assert_eq!(
            (&stream["state"], &stream["received_bytes"]),
            (&json!("open"), &json!(4))
        );
        assert_eq!(board.page(Some(1)).unwrap()["tunnels"][0]["number"], 1);
        assert!(board.page(Some(2)).is_none());

        let line = "sg_tunnel_limits_total{limit=\"opens\"} 1";
        assert!(metrics.encode().contains(line), "{}", metrics.encode());
        drop(posted);
        assert_eq!(board.page(None).unwrap()["tunnels"], json!([]));
        assert!(metrics.encode().contains(line), "it went with its tunnel");
        assert!(
            metrics
                .encode()
                .contains("sg_tunnel_memory_bytes{kind=\"windows\"}")
        );
    }
}
