//! The limits of tunnels as flags of a daemon, and the one [`Config`] that comes of them. What each limit is
//! for, and what happens beyond it, is in `docs/tunnel-protocol.md`, section 10.
//!
//! Flatten [`TunnelLimits`] into the daemon's own flags; make the `Config` once per process, because the
//! memory budget in it is shared by all tunnels that get a clone.

use std::str::FromStr;
use std::sync::Arc;

use clap::Args;
use sg_runtime::memory;
use sg_runtime::size::ByteSize;
use sg_tunnel_io::{Budget, Config, Rate};

/// Memory for all tunnels together where the system does not say how much there is.
const MEMORY_UNKNOWN: u64 = 1 << 30;
/// Least memory that tunnels can do with: one grown stream and one log.
const MEMORY_LEAST: u64 = 32 << 20;
/// The other end keeps to half of this by itself, so less would end the tunnels of honest peers.
const EARLY_RESETS: Rate = Rate::new(200, 1000);
/// A tunnel ends only when opens beyond the limit of those that fail come in at so many times its rate.
const EXCESS: u32 = 10;

/// What the other end of a tunnel may do, and what tunnels may take. Both ends have these.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Limits of tunnels")]
pub struct TunnelLimits {
    /// Streams that the other end may have open in one tunnel
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit_streams: u32,
    /// Streams that the other end may open, per second and at once
    #[arg(long, value_name = "RATE[:BURST]", default_value = "20000:40000")]
    pub limit_opens: RateArg,
    /// The same for streams that come to nothing: refused, failed, or given up before the answer
    #[arg(long, value_name = "RATE[:BURST]", default_value = "500:2000")]
    pub limit_failed_opens: RateArg,
    /// Streams that the other end may give up before they are answered; beyond it the tunnel ends; not less than the default
    #[arg(long, value_name = "RATE[:BURST]", default_value = "200:1000", value_parser = rate_at_least(EARLY_RESETS))]
    pub limit_early_resets: RateArg,
    /// Empty pieces of streams, and windows that raise nothing; beyond it the tunnel ends
    #[arg(long, value_name = "RATE[:BURST]", default_value = "100:1000")]
    pub limit_empty_frames: RateArg,
    /// Messages between the ends themselves; beyond it the tunnel ends
    #[arg(long, value_name = "RATE[:BURST]", default_value = "500:2000")]
    pub limit_messages: RateArg,
    /// Datagrams that are taken; what is beyond it is dropped
    #[arg(long, value_name = "RATE[:BURST]", default_value = "200000:200000")]
    pub limit_datagrams: RateArg,
    /// Datagrams that wait in one tunnel, in each direction; the oldest are dropped beyond it
    #[arg(long, value_name = "SIZE", default_value = "1MiB", value_parser = size(64 << 10, 1 << 30))]
    pub limit_datagram_queue: ByteSize,
    /// Streams of the other end that may wait for an answer
    #[arg(long, value_name = "N", default_value_t = 4096, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub limit_pending_opens: u32,
    /// Largest piece of a stream in one frame
    #[arg(long, value_name = "SIZE", default_value = "16376", value_parser = size(1024, 65_528))]
    pub limit_frame: ByteSize,
    /// Longest description of a stream that the other end opens
    #[arg(long, value_name = "SIZE", default_value = "4KiB", value_parser = size(1024, 16 << 10))]
    pub limit_metadata: ByteSize,
    /// Largest window of one stream
    #[arg(long, value_name = "SIZE", default_value = "4MiB", value_parser = size(64 << 10, 16 << 20))]
    pub limit_window: ByteSize,
    /// What the windows of one tunnel may hold beyond 16 KiB a stream
    #[arg(long, value_name = "SIZE", default_value = "64MiB", value_parser = size(1 << 20, 16 << 30))]
    pub limit_windows: ByteSize,
    /// What the streams of one tunnel may together have queued to send beyond 4 KiB a stream
    #[arg(long, value_name = "SIZE", default_value = "16MiB", value_parser = size(128 << 10, 1 << 30))]
    pub limit_queues: ByteSize,
    /// What windows, queues and unacknowledged bytes of all tunnels together may hold [default: a quarter of the memory]
    #[arg(long, value_name = "SIZE", value_parser = size(MEMORY_LEAST, 1 << 50))]
    pub limit_memory: Option<ByteSize>,
}

impl TunnelLimits {
    /// The configuration of tunnels; clones share the memory budget.
    #[must_use]
    pub fn config(&self) -> Config {
        let mut config = Config {
            max_streams: self.limit_streams,
            pending_opens: self.limit_pending_opens,
            max_window: narrow(self.limit_window),
            growth_budget: self.limit_windows.get(),
            send_queues: narrow(self.limit_queues) as usize,
            budget: Arc::new(Budget::new(self.memory())),
            max_frame: narrow(self.limit_frame),
            max_metadata: narrow(self.limit_metadata) as usize,
            ..Config::default()
        };
        config.datagrams.tunnel_bytes = narrow(self.limit_datagram_queue) as usize;
        let rates = &mut config.rates;
        rates.opens = self.limit_opens.0;
        rates.failed_opens = self.limit_failed_opens.0;
        // Never less than the default, to which honest peers keep.
        let excess = &mut rates.excess_opens;
        let Rate { per_second, burst } = rates.failed_opens;
        excess.per_second = excess.per_second.max(per_second.saturating_mul(EXCESS));
        excess.burst = excess.burst.max(burst.saturating_mul(EXCESS));
        rates.early_resets = self.limit_early_resets.0;
        rates.empty_data = self.limit_empty_frames.0;
        rates.empty_windows = self.limit_empty_frames.0;
        rates.controls = self.limit_messages.0;
        rates.datagrams = self.limit_datagrams.0;
        config
    }

    fn memory(&self) -> u64 {
        match self.limit_memory {
            Some(size) => size.get(),
            None => memory::total()
                .map_or(MEMORY_UNKNOWN, |bytes| bytes / 4)
                .max(MEMORY_LEAST),
        }
    }
}

/// The flags have bounds far below 4 GiB where this is used.
fn narrow(size: ByteSize) -> u32 {
    u32::try_from(size.get()).unwrap_or(u32::MAX)
}

fn size(least: u64, most: u64) -> impl Fn(&str) -> Result<ByteSize, String> + Clone {
    move |text| {
        let size = ByteSize::from_str(text).map_err(|error| error.to_string())?;
        if (least..=most).contains(&size.get()) {
            Ok(size)
        } else {
            Err(format!("must be {} to {}", ByteSize(least), ByteSize(most)))
        }
    }
}

fn rate_at_least(least: Rate) -> impl Fn(&str) -> Result<RateArg, String> + Clone {
    move |text| {
        let RateArg(rate) = RateArg::from_str(text)?;
        if rate.per_second < least.per_second || rate.burst < least.burst {
            return Err(format!(
                "must be {}:{} or more",
                least.per_second, least.burst
            ));
        }
        Ok(RateArg(rate))
    }
}

/// How often something may happen: `RATE` per second, `BURST` at once (as much as the rate if left out).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RateArg(pub Rate);

impl FromStr for RateArg {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const WRONG: &str = "write how often per second, and how many at once if that is another number: 500 or 500:2000";
        let (rate, burst) = text.split_once(':').unwrap_or((text, text));
        let number = |text: &str| {
            let digits = text.bytes().all(|byte| byte.is_ascii_digit());
            text.parse().ok().filter(|n: &u32| digits && *n > 0)
        };
        match (number(rate), number(burst)) {
            (Some(rate), Some(burst)) => Ok(Self(Rate::new(rate, burst))),
            _ => Err(WRONG),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Flags {
        #[command(flatten)]
        limits: TunnelLimits,
    }

    fn parse(flags: &[&str]) -> Result<Config, clap::Error> {
        Flags::try_parse_from(["x"].iter().chain(flags)).map(|flags| flags.limits.config())
    }

    /// So that the flags' defaults and the protocol's table cannot drift apart.
    #[test]
    fn without_flags_the_limits_are_those_of_the_protocol() {
        let (ours, theirs) = (parse(&[]).unwrap(), Config::default());
        let text = |config: &Config| {
            let mut config = config.clone();
            config.budget = Arc::new(Budget::new(1));
            format!("{config:?}")
        };
        assert_eq!(text(&ours), text(&theirs));
        assert!(ours.budget.total() >= MEMORY_LEAST);
    }

    #[test]
    fn every_flag_arrives() {
        let flags = "--limit-streams 7 --limit-opens 1:2 --limit-failed-opens 3 --limit-early-resets 400:5000 --limit-pending-opens 9 \
            --limit-empty-frames 6:7 --limit-messages 8:9 --limit-datagrams 10:11 --limit-datagram-queue 128KiB \
            --limit-frame 2KiB --limit-metadata 8KiB --limit-window 1MiB --limit-windows 2MiB --limit-queues 1MiB --limit-memory 64MiB";
        let flags: Vec<&str> = flags.split_whitespace().collect();
        let config = parse(&flags).unwrap();
        let rates = &config.rates;
        assert_eq!((config.max_streams, config.pending_opens), (7, 9));
        assert_eq!(rates.opens, Rate::new(1, 2));
        assert_eq!(rates.failed_opens, Rate::new(3, 3));
        assert_eq!(rates.early_resets, Rate::new(400, 5000));
        assert_eq!(rates.empty_data, Rate::new(6, 7));
        assert_eq!(rates.empty_windows, Rate::new(6, 7));
        assert_eq!(rates.controls, Rate::new(8, 9));
        assert_eq!(rates.datagrams, Rate::new(10, 11));
        assert_eq!(config.datagrams.tunnel_bytes, 128 << 10);
        assert_eq!((config.max_frame, config.max_metadata), (2048, 8192));
        assert_eq!(
            (config.max_window, config.growth_budget),
            (1 << 20, 2 << 20)
        );
        assert_eq!(
            (config.send_queues, config.budget.total()),
            (1 << 20, 64 << 20)
        );
    }

    #[test]
    fn a_higher_limit_of_failures_raises_what_ends_a_tunnel() {
        let excess = |flag| {
            parse(&["--limit-failed-opens", flag])
                .unwrap()
                .rates
                .excess_opens
        };
        assert_eq!(excess("5000:20000"), Rate::new(50_000, 200_000));
        assert_eq!(excess("1"), Config::default().rates.excess_opens);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        for flags in [
            ["--limit-streams", "0"],
            ["--limit-opens", "0"],
            ["--limit-opens", "1:"],
            ["--limit-opens", "+1"],
            ["--limit-early-resets", "100:1000"],
            ["--limit-early-resets", "200"],
            ["--limit-frame", "64KiB"],
            ["--limit-frame", "12"],
            ["--limit-window", "1GiB"],
            ["--limit-memory", "1MiB"],
        ] {
            assert!(parse(&flags).is_err(), "{flags:?}");
        }
    }
}
