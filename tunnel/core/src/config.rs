//! Limits, windows and intervals of one tunnel. Both sides may differ; what the peer must know
//! travels in SETTINGS.

use std::sync::Arc;
use std::time::Duration;

use crate::budget::Budget;

/// Settings of one side of a tunnel.
#[derive(Clone, Debug)]
pub struct Config {
    /// Streams that the peer may have open at a time.
    pub max_streams: u32,
    /// Streams of the peer that may wait for an answer; an OPEN beyond it is reset with LIMIT.
    pub pending_opens: u32,
    /// Largest stream id that this side would use; at three quarters of it, it drains.
    pub max_id: u32,
    /// Credit that every stream is sure of, in bytes.
    pub base_window: u32,
    /// Credit that a stream starts with while less than half of the growth budget is in use, in bytes.
    pub initial_window: u32,
    /// Largest credit of one stream, in bytes.
    pub max_window: u32,
    /// Bytes of credit that all streams together may hold above `base_window` each.
    pub growth_budget: u64,
    /// What all tunnels of the process may hold together: credit above `base_window`, sent bytes that are kept for a
    /// resumption, and bytes that are queued to send above 1 MiB a tunnel.
    pub budget: Arc<Budget>,
    /// Largest payload of a DATA frame that this side accepts, in bytes; 1,024 to 65,528.
    pub max_frame: u32,
    /// Bytes that one stream may have queued to send.
    pub send_queue: usize,
    /// Bytes that all streams of the tunnel may have queued to send; each is sure of 4 KiB.
    pub send_queues: usize,
    /// Longest metadata of an OPEN that this side accepts, in bytes.
    pub max_metadata: usize,
    /// CONTROL messages that may wait to be sent.
    pub control_queue: usize,
    /// Received CONTROL messages that may wait for the application; more end the tunnel.
    pub control_backlog: usize,
    /// How long the peer may take to send its SETTINGS.
    pub settings_time: Duration,
    /// Time between pings while a stream is open or being opened.
    pub ping_active: Duration,
    /// Silence after which the tunnel is dead while a stream is open or being opened.
    pub dead_active: Duration,
    /// Time between pings without streams.
    pub ping_idle: Duration,
    /// Silence after which the tunnel is dead without streams.
    pub dead_idle: Duration,
    /// Age of an unanswered ping from which on the tunnel is suspect.
    pub suspect_after: Duration,
    /// How long a write may make no progress before the tunnel ends.
    pub write_stall: Duration,
    /// How long a tunnel waits for another connection when it has lost its own; zero: not at all. Both
    /// sides must have agreed on whether it is zero.
    pub resume_time: Duration,
    /// How long a closing tunnel tries to deliver its GOAWAY.
    pub close_linger: Duration,
    /// Datagrams that may wait.
    pub datagrams: DatagramLimits,
    /// What the peer may do per second and at once.
    pub rates: Rates,
}

/// Bounds of waiting datagrams, the same for those to send and for received ones that wait for their
/// reader. What is over them is dropped, the oldest first, and counted.
#[derive(Clone, Debug)]
pub struct DatagramLimits {
    /// Datagrams of one flow, in one direction.
    pub flow_count: usize,
    /// Bytes of one flow, in one direction. A datagram that is longer is always dropped.
    pub flow_bytes: usize,
    /// Bytes of all flows of the tunnel, in one direction; each datagram costs 64 more than its length.
    pub tunnel_bytes: usize,
    /// Age from which on a datagram is not sent any more.
    pub max_age: Duration,
}

impl Default for DatagramLimits {
    fn default() -> Self {
        Self {
            flow_count: 64,
            flow_bytes: 64 * 1024,
            tunnel_bytes: 1024 * 1024,
            max_age: Duration::from_millis(200),
        }
    }
}

/// Token buckets against work that a peer causes without use.
#[derive(Clone, Debug)]
pub struct Rates {
    /// OPEN frames; beyond it a stream is reset with LIMIT.
    pub opens: Rate,
    /// OPENs that we refused, or that the peer gave up before our answer; beyond it new ones are reset
    /// with LIMIT.
    pub failed_opens: Rate,
    /// OPENs that were reset with LIMIT; beyond it the tunnel ends.
    pub excess_opens: Rate,
    /// RESET frames within a second of the OPEN and before our answer; beyond it the tunnel ends.
    pub early_resets: Rate,
    /// Opens of this side that the peer refused or that were given up here; beyond it `open` fails. Must
    /// be lower than the peer's `excess_opens`.
    pub own_failed_opens: Rate,
    /// RESETs of this side soon after the OPEN and before the peer's answer; beyond it they wait for that, or
    /// until it is their turn at this rate.
    /// Must be lower than the peer's `early_resets`.
    pub own_early_resets: Rate,
    /// PING frames; beyond it the tunnel ends.
    pub pings: Rate,
    /// CONTROL frames; beyond it the tunnel ends.
    pub controls: Rate,
    /// DATA frames without payload and without FIN; beyond it the tunnel ends.
    pub empty_data: Rate,
    /// WINDOW frames that raise nothing; beyond it the tunnel ends.
    pub empty_windows: Rate,
    /// Other frames without effect: unknown types, STREAMS that raise nothing, frames for streams that
    /// are gone. Every finished stream earns some back, because races produce them.
    pub useless: Rate,
    /// DGRAM frames; what is beyond it is dropped.
    pub datagrams: Rate,
}

/// One token bucket: `per_second` tokens flow in, at most `burst` are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens per second.
    pub per_second: u32,
    /// Size of the bucket.
    pub burst: u32,
}

impl Rate {
    /// A bucket of `burst` tokens that fills with `per_second`.
    #[must_use]
    pub const fn new(per_second: u32, burst: u32) -> Self {
        Self { per_second, burst }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_streams: 10_000,
            pending_opens: 4096,
            max_id: crate::frame::MAX_ID,
            base_window: 16 * 1024,
            initial_window: 64 * 1024,
            max_window: 4 * 1024 * 1024,
            growth_budget: 64 * 1024 * 1024,
            budget: Arc::new(Budget::unlimited()),
            max_frame: 16_376,
            send_queue: 256 * 1024,
            send_queues: 16 * 1024 * 1024,
            max_metadata: 4096,
            control_queue: 256,
            control_backlog: 1024,
            settings_time: Duration::from_secs(10),
            ping_active: Duration::from_secs(2),
            dead_active: Duration::from_secs(6),
            ping_idle: Duration::from_secs(15),
            dead_idle: Duration::from_secs(45),
            suspect_after: Duration::from_secs(1),
            write_stall: Duration::from_secs(60),
            resume_time: Duration::ZERO,
            close_linger: Duration::from_secs(2),
            datagrams: DatagramLimits::default(),
            rates: Rates {
                opens: Rate::new(20_000, 40_000),
                failed_opens: Rate::new(500, 2000),
                excess_opens: Rate::new(5000, 20_000),
                early_resets: Rate::new(200, 1000),
                own_failed_opens: Rate::new(2500, 10_000),
                own_early_resets: Rate::new(150, 750),
                pings: Rate::new(100, 200),
                controls: Rate::new(500, 2000),
                empty_data: Rate::new(100, 1000),
                empty_windows: Rate::new(100, 1000),
                useless: Rate::new(1000, 20_000),
                datagrams: Rate::new(200_000, 200_000),
            },
        }
    }
}
