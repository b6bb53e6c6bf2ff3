//! What a tunnel is doing at this moment, for people: plain numbers and words, no handles.
//!
//! Counters since the start are in [`crate::Stats`]; rates are the owner's to compute from two reports.

use std::time::Duration;

use crate::connection::Stats;

/// One tunnel at one moment. Made by [`crate::Connection::report`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// `attached`, `detached`, `draining` or `closed`.
    pub state: &'static str,
    /// A ping has been unanswered for too long.
    pub suspect: bool,
    /// Round-trip time of the last answered ping.
    pub rtt: Option<Duration>,
    /// Smallest round-trip time of the last 5 to 10 s.
    pub min_rtt: Option<Duration>,
    /// Counters since the start, and what is held now: retained, growth, unread.
    pub stats: Stats,
    /// Bytes that may be kept for a resumption at present; 0 when the tunnel is not resumable.
    pub retained_limit: u64,
    /// Sent bytes are being sent again on a new connection.
    pub replaying: bool,
    /// Bytes of credit that all streams together may hold above their base window.
    pub growth_budget: u64,
    /// Streams in the table.
    pub streams: usize,
    /// Those of the peer that wait for our answer.
    pub offered: usize,
    /// What waits to be sent.
    pub waiting: Waiting,
    /// Datagrams that wait to be sent.
    pub datagrams_unsent: Datagrams,
    /// Received datagrams that wait for their reader.
    pub datagrams_unread: Datagrams,
    /// The streams that hold most, at most as many as were asked for.
    pub list: Vec<StreamReport>,
}

/// Entries of the lists of a tunnel that has something to send. Streams that have ended meanwhile may
/// still be counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// Opens that have not been sent.
    pub opens: usize,
    /// Streams with a RESET, OPEN_OK or WINDOW.
    pub control: usize,
    /// CONTROL messages.
    pub messages: usize,
    /// Flows with datagrams.
    pub flows: usize,
    /// Interactive streams with bytes.
    pub interactive: usize,
    /// Bulk streams with bytes.
    pub bulk: usize,
    /// CONTROL messages that were received and wait for their owner.
    pub incoming_messages: usize,
}

/// Datagrams of all flows that wait in one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Datagrams {
    /// Their number.
    pub count: usize,
    /// What they cost of the tunnel's bound, in bytes.
    pub bytes: usize,
}

/// One stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamReport {
    /// Id on the wire; 0 before its OPEN was sent.
    pub id: u32,
    /// It carries datagrams.
    pub flow: bool,
    /// This side opened it.
    pub opened_here: bool,
    /// `opening`, `offered`, `open`, `finished-here`, `finished-there`, `finished`, `resetting` (the peer
    /// has not confirmed our RESET), or `reset` (by the peer; nobody here has let go of it yet).
    pub state: &'static str,
    /// `interactive`, `bulk`, or `idle` with nothing to send.
    pub class: &'static str,
    /// Share among bulk streams.
    pub weight: u8,
    /// Payload bytes (of a flow: nothing) handed to the transport.
    pub sent: u64,
    /// Payload bytes received.
    pub received: u64,
    /// Bytes that wait to be sent.
    pub queued: u64,
    /// Bytes that the peer lets us send beyond those that were sent.
    pub credit: u64,
    /// Received bytes that wait for the application.
    pub unread: u64,
    /// Bytes that the peer may still send.
    pub granted: u64,
    /// Present size of the window, in bytes.
    pub window: u64,
    /// The application waits for something to read.
    pub waits_read: bool,
    /// The application waits for room to write: for credit if `credit` is no more than `queued`, else
    /// for the transport.
    pub waits_write: bool,
    /// The application waits for the answer to its open.
    pub waits_open: bool,
}
