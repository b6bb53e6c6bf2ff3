//! The machine: one side of one tunnel.
//!
//! Order of calls for a driver: [`Connection::handle_input`] with what came in,
//! [`Connection::handle_timeout`], then [`Connection::poll_event`] until empty,
//! [`Connection::poll_transmit`] into an empty batch, and [`Connection::poll_timeout`] for when to
//! come back. Commands (`open`, `write`, `read`, ...) may come at any time between; what they queue
//! is sent by the next `poll_transmit`.
//!
//! * `commands`: what the owner of the tunnel and of its streams wants.
//! * `records`: what comes in, down to single frames.
//! * `input`: what the frames do.
//! * `output`: what goes out, in which order.
//! * `flows`: streams that carry datagrams.
//! * `resuming`: how the tunnel outlives its transport.
//! * `abuse`: what a peer may make us do for nothing.
//! * `reports`: what it is doing, for people.
//! * `closing`: how streams and the tunnel end.

mod abuse;
mod closing;
mod commands;
mod flows;
mod input;
mod output;
mod records;
mod reports;
mod resuming;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;

use self::records::Intake;
use crate::closed::{CloseReason, Closed};
use crate::config::Config;
use crate::datagram::{Direction, Shelf};
use crate::event::{Event, Incoming};
use crate::frame::Settings;
use crate::keepalive::Keepalive;

use crate::limits::{Guard, Limit, LimitCounter, LimitCounts};
use crate::log::Log;
use crate::scheduler::{EPOCH_MS, Scheduler};
use crate::send_queues::SendQueues;
use crate::stream::Key;
use crate::table::Table;
use crate::window::Pool;

/// Which end of the connection this is: it decides the parity of stream ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected; it opens even ids.
    Client,
    /// The side that accepted the connection; it opens odd ids.
    Node,
}

/// Counters of one tunnel since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Bytes received, frames included.
    pub received_bytes: u64,
    /// Bytes handed to the transport, frames included.
    pub sent_bytes: u64,
    /// Streams opened by this side.
    pub streams_opened: u64,
    /// Streams opened by the peer.
    pub streams_accepted: u64,
    /// Credit that the streams hold above their base window, in bytes.
    pub growth_used: u64,
    /// Received bytes that wait for their application.
    pub unread_bytes: u64,
    /// Bytes of streams that wait to be sent.
    pub queued_bytes: u64,
    /// Datagrams handed to the transport.
    pub datagrams_sent: u64,
    /// Datagrams received for a flow that was there.
    pub datagrams_received: u64,
    /// Sent bytes that are kept until the peer acknowledges them.
    pub retained_bytes: u64,
    /// How often a new connection has been attached.
    pub resumes: u64,
    pub(crate) limits: LimitCounts,
}

impl Stats {
    /// What each limit refused, dropped or ended since the start: its word and how often.
    pub fn limits(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts = self.limits;
        Limit::ALL
            .into_iter()
            .map(move |limit| (limit.word(), counts.get(limit)))
    }

    /// What one limit refused, dropped or ended since the start.
    #[must_use]
    pub fn limit(&self, limit: Limit) -> u64 {
        self.limits.get(limit)
    }
}

/// The part of [`Stats`] that is counted here; see there.
#[derive(Debug, Default)]
struct Counts {
    received_bytes: u64,
    sent_bytes: u64,
    streams_opened: u64,
    streams_accepted: u64,
    datagrams_sent: u64,
    datagrams_received: u64,
    resumes: u64,
}

/// One side of one tunnel. See the module for the order of calls.
#[derive(Debug)]
pub struct Connection {
    side: Side,
    config: Arc<Config>,
    streams: Table,
    scheduler: Scheduler,
    keepalive: Keepalive,
    guard: Guard,
    pool: Pool,
    events: VecDeque<Event>,
    incoming: VecDeque<Incoming>,
    /// CONTROL messages and bytes in `incoming`.
    waiting_controls: (usize, usize),
    /// The owner takes no more incoming streams and messages.
    deaf: bool,
    counts: Counts,
    limits: LimitCounter,
    start: Instant,
    /// Coarse time for the scheduler; commands use the last one seen.
    epoch: u32,

    /// Limits of the peer; `None` until its SETTINGS came.
    peer: Option<Settings>,
    /// Streams that the peer lets us open in all.
    peer_allows: u32,
    opened: u32,
    next_id: u32,
    /// Streams that the peer has opened, and that we let it open, in all.
    accepted: u32,
    announced: u32,
    returned: u32,
    /// Streams of the peer that wait for our answer.
    offered: u32,
    intake: Intake,
    /// What we sent and the peer may not have.
    log: Log,
    /// RESUME must be sent before anything else.
    resume_due: bool,
    /// DATA frame in the middle of which the input stands.
    partial: Option<Partial>,
    /// Datagrams that wait for their turn, and for their readers.
    unsent: Shelf,
    unread_datagrams: Shelf,
    /// Bytes of datagrams that may still go into this batch; below zero they were sent in advance.
    datagram_share: i64,
    /// Pieces in all inboxes that may hold on to receive buffers.
    references: usize,
    /// Slot of the table where the search for one to copy goes on.
    copying: usize,
    /// Bytes in all inboxes.
    unread_bytes: usize,
    /// Bytes in all outboxes.
    send_queues: SendQueues,

    settings_sent: bool,
    /// When the peer's must have come.
    settings_due: Instant,
    /// PONG to send; only the latest matters.
    pong: Option<u64>,
    controls: VecDeque<Bytes>,
    goaway: Option<(u32, Bytes)>,
    /// GOAWAY has been handed to the transport.
    goaway_sent: bool,
    draining_here: bool,
    draining_there: bool,
    /// End of the resume time while there is no transport.
    detached_until: Option<Instant>,
    closed: Option<Closed>,
}

/// Gives back the memory of a list if it is empty.
pub(crate) fn give_back<T>(list: &mut VecDeque<T>) {
    if list.is_empty() {
        *list = VecDeque::new();
    }
}

/// Rest of a DATA frame whose header has been read.
#[derive(Clone, Copy, Debug)]
struct Partial {
    /// `None`: the bytes are dropped.
    key: Option<Key>,
    left: usize,
    fin: bool,
}

impl Connection {
    /// A fresh tunnel. Its first `poll_transmit` gives SETTINGS.
    #[must_use]
    pub fn new(side: Side, config: impl Into<Arc<Config>>, now: Instant) -> Self {
        let config = config.into();
        Self {
            side,
            streams: Table::default(),
            scheduler: Scheduler::default(),
            keepalive: Keepalive::new(now),
            guard: Guard::new(&config.rates, now),
            pool: Pool::new(config.growth_budget, Arc::clone(&config.budget)),
            events: VecDeque::new(),
            incoming: VecDeque::new(),
            waiting_controls: (0, 0),
            deaf: false,
            counts: Counts::default(),
            limits: LimitCounter::default(),
            start: now,
            epoch: 0,
            peer: None,
            peer_allows: 0,
            opened: 0,
            next_id: match side {
                Side::Client => 2,
                Side::Node => 1,
            },
            accepted: 0,
            announced: config.max_streams,
            returned: 0,
            offered: 0,
            intake: Intake::default(),
            log: Log::new(
                !config.resume_time.is_zero(),
                Arc::clone(&config.budget),
                now,
            ),
            resume_due: false,
            partial: None,
            unsent: Shelf::new(Direction::Out),
            unread_datagrams: Shelf::new(Direction::In),
            datagram_share: 0,
            references: 0,
            copying: 0,
            unread_bytes: 0,
            send_queues: SendQueues::new(Arc::clone(&config.budget)),
            settings_sent: false,
            settings_due: now + config.settings_time,
            pong: None,
            controls: VecDeque::new(),
            goaway: None,
            goaway_sent: false,
            draining_here: false,
            draining_there: false,
            detached_until: None,
            closed: None,
            config,
        }
    }

    /// The next thing that somebody waits for.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// The next thing that the peer asks for.
    pub fn poll_incoming(&mut self) -> Option<Incoming> {
        let next = self.incoming.pop_front()?;
        if let Incoming::Control(message) = &next {
            self.waiting_controls.0 -= 1;
            self.waiting_controls.1 -= message.len();
        }
        Some(next)
    }

    /// Gives back the memory of what is empty, for a tunnel that carries nothing at present: the next stream or message
    /// allocates it again.
    pub fn release_memory(&mut self) {
        give_back(&mut self.events);
        give_back(&mut self.incoming);
        give_back(&mut self.controls);
        self.log.release();
        self.scheduler.release();
        self.streams.release();
    }

    /// When [`Self::handle_timeout`] must be called at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        match (&self.closed, self.detached_until) {
            (Some(_), _) => None,
            (None, Some(until)) => Some(until),
            (None, None) => {
                let alive = self.keepalive.next_timeout(&self.config);
                let others = [
                    self.settings_deadline(),
                    self.next_held_reset(),
                    self.intake.ack_at(),
                    self.log.stuck_at(),
                ];
                others.into_iter().flatten().chain([alive]).min()
            }
        }
    }

    /// Tells the time. A ping that is due is sent by the next `poll_transmit`.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.see_time(now);
        if self.closed.is_some() {
            return;
        }
        if let Some(until) = self.detached_until {
            if until <= now {
                self.end(CloseReason::Expired, None);
            }
            return;
        }
        self.keepalive.see_time(&self.config, now);
        self.intake.see_time(now);
        self.release_held_resets(now);
        if self.keepalive.dead_at(&self.config) <= now {
            self.time_out(now);
        } else if self.log.stuck_at().is_some_and(|at| at <= now) {
            self.end_timeout();
        } else {
            self.check_settings(now);
        }
    }

    /// How the tunnel ended, once it has.
    #[must_use]
    pub fn closed(&self) -> Option<&Closed> {
        self.closed.as_ref()
    }

    /// Whether either side has announced the drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.draining_here || self.draining_there
    }

    /// Round-trip time of the last answered ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.keepalive.rtt()
    }

    /// Whether a ping has been unanswered for too long to trust the peer with new streams.
    #[must_use]
    pub fn is_suspect(&self, now: Instant) -> bool {
        !self.is_detached()
            && self
                .keepalive
                .unanswered_for(now)
                .is_some_and(|age| age >= self.config.suspect_after)
    }

    /// Streams in the table: open, being opened, or waiting for the peer's last frame.
    #[must_use]
    pub fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> Stats {
        let mut limits = self.limits.counts();
        let [tunnel, process] = self.pool.refused();
        limits.count(Limit::TunnelGrowth, tunnel);
        limits.count(Limit::ProcessGrowth, process);
        let [tunnel, process] = self.log.refused();
        limits.count(Limit::TunnelLog, tunnel);
        limits.count(Limit::ProcessLog, process);
        let [tunnel, process] = self.send_queues.refused();
        limits.count(Limit::TunnelQueues, tunnel);
        limits.count(Limit::ProcessQueues, process);
        Stats {
            limits,
            growth_used: self.pool.used(),
            unread_bytes: self.unread_bytes as u64,
            queued_bytes: self.send_queues.queued() as u64,
            retained_bytes: self.log.retained(),
            received_bytes: self.counts.received_bytes,
            sent_bytes: self.counts.sent_bytes,
            streams_opened: self.counts.streams_opened,
            streams_accepted: self.counts.streams_accepted,
            datagrams_sent: self.counts.datagrams_sent,
            datagrams_received: self.counts.datagrams_received,
            resumes: self.counts.resumes,
        }
    }

    fn see_time(&mut self, now: Instant) {
        let epochs = now.saturating_duration_since(self.start).as_millis() / EPOCH_MS;
        #[allow(clippy::cast_possible_truncation)]
        {
            // Only differences of nearby epochs are used.
            self.epoch = epochs as u32;
        }
        self.keepalive.set_active(self.streams.len() > 0, now);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]

    use super::*;
    use crate::batch::Batch;
    use crate::code;

    fn capacity(end: &Connection) -> usize {
        end.events.capacity()
            + end.incoming.capacity()
            + end.controls.capacity()
            + end.log.capacity()
            + end.scheduler.capacity()
            + end.streams.capacity()
    }

    /// Carries what both ends have to say, until they have nothing more.
    fn talk(ends: &mut [Connection; 2], now: Instant) {
        let mut silent = 0;
        for turn in 0.. {
            let mut batch = Batch::default();
            ends[turn % 2].poll_transmit(now, &mut batch, 1 << 20);
            silent = if batch.is_empty() { silent + 1 } else { 0 };
            if silent == 2 {
                return;
            }
            let mut slices = [std::io::IoSlice::new(&[]); 64];
            let count = batch.slices(&mut slices);
            let mut input = bytes::BytesMut::new();
            for slice in &slices[..count] {
                input.extend_from_slice(slice);
            }
            assert_eq!(input.len(), batch.len());
            let peer = &mut ends[(turn + 1) % 2];
            peer.handle_received(now, input.len());
            peer.handle_input(now, &mut input);
        }
    }

    #[test]
    fn a_tunnel_at_rest_holds_no_lists() {
        let now = Instant::now();
        let mut ends =
            [Side::Client, Side::Node].map(|side| Connection::new(side, Config::default(), now));
        talk(&mut ends, now);
        let open = |end: &mut Connection| end.open(Bytes::new()).unwrap();
        let keys: Vec<_> = (0..10).map(|_| open(&mut ends[0])).collect();
        ends[0].send_control(Bytes::from_static(b"word")).unwrap();
        talk(&mut ends, now);
        for end in &mut ends {
            end.release_memory();
            assert!(capacity(end) >= 10, "what is used stays");
        }
        for key in keys {
            ends[0].release(key, code::CANCEL);
        }
        talk(&mut ends, now);
        for end in &mut ends {
            while let Some(incoming) = end.poll_incoming() {
                if let Incoming::Offer { key, .. } = incoming {
                    end.release(key, code::CANCEL);
                }
            }
            while end.poll_event().is_some() {}
        }
        talk(&mut ends, now);
        for end in &mut ends {
            assert_eq!(end.streams(), 0);
            assert!(capacity(end) > 0);
            end.release_memory();
            assert_eq!(capacity(end), 0);
        }
    }
}
