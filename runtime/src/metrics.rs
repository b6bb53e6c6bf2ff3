//! The registry of what this process counts, printed as OpenMetrics text on `/metrics`.
//!
//! Every name gets the prefix `sg_`. The library appends `_total` to counters and `_info` to
//! infos: register `streams_opened` to see `sg_streams_opened_total`, and
//! `stream_connect_seconds` to see just that. Addresses, paths and connections are no labels.

mod process;

use std::sync::{Arc, Mutex, PoisonError};

pub use prometheus_client;
pub use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text;
pub use prometheus_client::metrics::counter::Counter;
pub use prometheus_client::metrics::family::Family;
pub use prometheus_client::metrics::gauge::Gauge;
pub use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

/// What `/metrics` serves it as.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// The metrics of a process. Clones share the registry.
#[derive(Debug, Clone)]
pub struct Metrics {
    ours: Arc<Mutex<Registry>>,
    process: Arc<Registry>,
}

impl Metrics {
    /// A registry with `sg_build_info{version,component}` and the `process_*` series.
    #[must_use]
    pub fn new(component: &'static str, version: &'static str) -> Self {
        let mut ours = Registry::with_prefix("sg");
        let build = Info::new([("version", version), ("component", component)]);
        ours.register("build", "What is running", build);
        ours.register_collector(Box::new(process::LogCollector));
        let mut process = Registry::default();
        process.register_collector(Box::new(process::ProcessCollector));
        Self {
            ours: Arc::new(Mutex::new(ours)),
            process: Arc::new(process),
        }
    }

    /// Adds a metric under `sg_{name}` and hands it back, to be kept where it is counted.
    pub fn register<M: Metric + Clone>(&self, name: &str, help: &str, metric: M) -> M {
        self.with_registry(|registry| registry.register(name, help, metric.clone()));
        metric
    }

    /// For whatever else the registry can do, as collectors that are asked at each scrape.
    /// The registry is locked meanwhile; a scrape waits.
    pub fn with_registry<T>(&self, change: impl FnOnce(&mut Registry) -> T) -> T {
        change(&mut self.ours.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All metrics as OpenMetrics text.
    #[must_use]
    pub fn encode(&self) -> String {
        let mut out = String::with_capacity(16 * 1024);
        let encoded = self
            .with_registry(|ours| text::encode_registry(&mut out, ours))
            .and_then(|()| text::encode_registry(&mut out, &self.process))
            .and_then(|()| text::encode_eof(&mut out));
        encoded.expect("invariant: writing to a string succeeds");
        out
    }
}

/// Bounds, in seconds, for things that take from half a millisecond to a minute.
pub fn latency_buckets() -> impl Iterator<Item = f64> {
    [
        0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
        60.0,
    ]
    .into_iter()
}

/// Bounds, in seconds, for how long connections live: 10 ms to a day.
pub fn lifetime_buckets() -> impl Iterator<Item = f64> {
    [
        0.01, 0.1, 1.0, 10.0, 60.0, 300.0, 1800.0, 3600.0, 21_600.0, 86_400.0,
    ]
    .into_iter()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    #[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
    struct Labels {
        gateway: String,
        result: &'static str,
    }

    fn has(text: &str, line: &str) -> bool {
        text.lines().any(|found| found == line)
    }

    #[test]
    fn the_names_of_the_contract_come_out_exactly() {
        let metrics = Metrics::new("data-plane", "0.1.0");
        let opened = metrics.register(
            "streams_opened",
            "Streams",
            Family::<Labels, Counter>::default(),
        );
        opened
            .get_or_create(&Labels {
                gateway: "g1".into(),
                result: "ok",
            })
            .inc_by(3);
        let connect = Histogram::new(latency_buckets());
        let connect = metrics.register("stream_connect_seconds", "Connect time", connect);
        connect.observe(0.002);
        metrics
            .register("config_revision", "Revision", Gauge::<i64>::default())
            .set(7);
        metrics
            .register(
                "tunnel_rtt_seconds",
                "Round trip",
                Gauge::<f64, AtomicU64>::default(),
            )
            .set(0.25);
        let text = metrics.encode();
        for line in [
            "sg_build_info{version=\"0.1.0\",component=\"data-plane\"} 1",
            "sg_streams_opened_total{gateway=\"g1\",result=\"ok\"} 3",
            "sg_log_lines_lost_total 0",
            "sg_stream_connect_seconds_count 1",
            "sg_stream_connect_seconds_bucket{le=\"0.0025\"} 1",
            "sg_config_revision 7",
            "sg_tunnel_rtt_seconds 0.25",
            "# EOF",
        ] {
            assert!(has(&text, line), "{line} is missing in\n{text}");
        }
        assert_eq!(text.matches("# EOF").count(), 1);
    }

    #[test]
    fn label_values_cannot_break_the_text() {
        let metrics = Metrics::new("client", "0.1.0");
        let opened = metrics.register("x", "X", Family::<Labels, Counter>::default());
        opened
            .get_or_create(&Labels {
                gateway: "a\"b\n\\c".into(),
                result: "ok",
            })
            .inc();
        let text = metrics.encode();
        assert!(
            has(&text, r#"sg_x_total{gateway="a\"b\n\\c",result="ok"} 1"#),
            "{text}"
        );
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_process_describes_itself() {
        let text = Metrics::new("client", "0.1.0").encode();
        for name in [
            "process_cpu_seconds_total",
            "process_resident_memory_bytes",
            "process_virtual_memory_bytes",
            "process_open_fds",
            "process_max_fds",
            "process_threads",
            "process_start_time_seconds",
        ] {
            let value = text.lines().find_map(|line| {
                line.strip_prefix(name)?
                    .strip_prefix(' ')?
                    .parse::<f64>()
                    .ok()
            });
            let least = if name == "process_cpu_seconds_total" {
                0.0
            } else {
                1.0
            };
            assert!(
                value.is_some_and(|value| value >= least),
                "{name} in\n{text}"
            );
        }
    }
}
