//! The `process_*` series, read from `/proc/self` at each scrape. Where there is no `/proc` they
//! are left out.

use std::fmt;
use std::fs;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::telemetry;

/// Clock ticks per second in `/proc`. The kernel's interface fixes it at 100 on every platform
/// that we build for.
const TICKS_PER_SECOND: f64 = 100.0;

/// What the log could not take.
#[derive(Debug)]
pub(super) struct LogCollector;

impl Collector for LogCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let (name, help) = (
            "log_lines_lost",
            "Lines of the log that were lost because nobody read them in time",
        );
        let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
        ConstCounter::new(telemetry::lines_lost()).encode(metric)
    }
}

#[derive(Debug)]
pub(super) struct ProcessCollector;

impl Collector for ProcessCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        if let Some((cpu, start)) = times() {
            let (name, help) = ("process_cpu_seconds", "User and system CPU time spent");
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(cpu).encode(metric)?;
            gauge(
                &mut encoder,
                "process_start_time_seconds",
                "Start, since 1970",
                Some(start),
            )?;
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let bytes = |key| field(&status, key).map(|kibibytes| kibibytes * 1024.0);
        let resident = bytes("VmRSS:");
        gauge(
            &mut encoder,
            "process_resident_memory_bytes",
            "Memory in RAM",
            resident,
        )?;
        let virtual_memory = bytes("VmSize:");
        gauge(
            &mut encoder,
            "process_virtual_memory_bytes",
            "Address space",
            virtual_memory,
        )?;
        gauge(
            &mut encoder,
            "process_threads",
            "Threads",
            field(&status, "Threads:"),
        )?;
        gauge(
            &mut encoder,
            "process_open_fds",
            "Open file descriptors",
            open_fds(),
        )?;
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let most = field(&limits, "Max open files");
        gauge(
            &mut encoder,
            "process_max_fds",
            "Limit of open file descriptors",
            most,
        )
    }
}

fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    value: Option<f64>,
) -> Result<(), fmt::Error> {
    let Some(value) = value else { return Ok(()) };
    let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
    ConstGauge::new(value).encode(metric)
}

/// CPU seconds so far, and the start in seconds since 1970.
fn times() -> Option<(f64, f64)> {
    let stat = fs::read_to_string("/proc/self/stat").ok()?;
    // The second field is the program's name in parentheses and may hold anything.
    let (_, fields) = stat.rsplit_once(')')?;
    let ticks = |at: usize| fields.split_ascii_whitespace().nth(at)?.parse::<f64>().ok();
    let cpu = (ticks(11)? + ticks(12)?) / TICKS_PER_SECOND;
    let boot = field(&fs::read_to_string("/proc/stat").ok()?, "btime")?;
    Some((cpu, boot + ticks(19)? / TICKS_PER_SECOND))
}

/// The first number after `key` at the start of a line.
fn field(text: &str, key: &str) -> Option<f64> {
    let rest = text.lines().find_map(|line| line.strip_prefix(key))?;
    rest.split_ascii_whitespace().next()?.parse().ok()
}

fn open_fds() -> Option<f64> {
    // The directory that is being read is open itself.
    let count = fs::read_dir("/proc/self/fd")
        .ok()?
        .count()
        .saturating_sub(1);
    u32::try_from(count).ok().map(f64::from)
}
