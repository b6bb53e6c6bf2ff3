//! Looks at everything, changes nothing: what [`Report`] says.

use std::cmp::Reverse;
use std::time::Instant;

use super::Connection;
use crate::datagram::{Direction, Shelf};
use crate::report::{Datagrams, Report, StreamReport, Waiting};
use crate::stream::{Class, Fin, Phase, Stream};

impl Connection {
    /// What the tunnel is doing, with at most `max_streams` of its streams: those that hold most bytes.
    /// Looks at every stream once.
    #[must_use]
    pub fn report(&self, now: Instant, max_streams: usize) -> Report {
        let list = &self.scheduler;
        let mut streams: Vec<&Stream> = self.streams.iter().collect();
        streams.sort_unstable_by_key(|stream| Reverse(held_bytes(stream)));
        Report {
            state: if self.closed.is_some() {
                "closed"
            } else if self.is_detached() {
                "detached"
            } else if self.is_draining() {
                "draining"
            } else {
                "attached"
            },
            suspect: self.is_suspect(now),
            rtt: self.rtt(),
            min_rtt: self.keepalive.min_rtt(),
            stats: self.stats(),
            retained_limit: self.log.limit(),
            replaying: self.log.is_replaying(),
            growth_budget: self.config.growth_budget,
            streams: self.streams.len(),
            offered: self.offered as usize,
            waiting: Waiting {
                opens: list.opens.len(),
                control: list.control.len(),
                messages: self.controls.len(),
                flows: list.flows.len(),
                interactive: list.interactive.len(),
                bulk: list.bulk.len(),
                incoming_messages: self.waiting_controls.0,
            },
            datagrams_unsent: datagrams(&self.unsent),
            datagrams_unread: datagrams(&self.unread_datagrams),
            list: streams.into_iter().take(max_streams).map(report).collect(),
        }
    }
}

fn datagrams(shelf: &Shelf) -> Datagrams {
    Datagrams {
        count: shelf.waiting(),
        bytes: shelf.bytes(),
    }
}

fn held_bytes(stream: &Stream) -> u64 {
    let (queued, unread) = waiting_bytes(stream);
    queued + unread
}

/// Bytes to send and to read, whatever the stream carries.
fn waiting_bytes(stream: &Stream) -> (u64, u64) {
    let flow = |direction| {
        let queue = stream.flow.as_ref().map(|flow| flow.queue(direction));
        queue.map_or(0, |queue| queue.size().1)
    };
    let queued = stream.outbox.len() + flow(Direction::Out);
    let unread = stream.inbox.len() + flow(Direction::In);
    (queued as u64, unread as u64)
}

fn report(stream: &Stream) -> StreamReport {
    let (queued, unread) = waiting_bytes(stream);
    StreamReport {
        id: stream.id,
        flow: stream.flow.is_some(),
        opened_here: !stream.theirs,
        state: state(stream),
        class: match stream.class {
            Class::None => "idle",
            Class::Interactive => "interactive",
            Class::Bulk => "bulk",
        },
        weight: stream.weight,
        sent: stream.sent,
        received: stream.window.received(),
        queued,
        credit: stream.send_limit.saturating_sub(stream.sent),
        unread,
        granted: stream.window.granted(),
        window: stream.window.size().into(),
        waits_read: stream.want_read,
        waits_write: stream.want_write,
        waits_open: stream.phase == Phase::Opening && stream.held && stream.reset.is_none(),
    }
}

fn state(stream: &Stream) -> &'static str {
    match (stream.reset, stream.phase) {
        (Some(_), _) if stream.reset_in => "reset",
        (Some(_), _) => "resetting",
        (None, Phase::Opening) => "opening",
        (None, Phase::Offered) => "offered",
        (None, Phase::Open) => match (stream.fin_out != Fin::No, stream.fin_in) {
            (false, false) => "open",
            (true, false) => "finished-here",
            (false, true) => "finished-there",
            (true, true) => "finished",
        },
    }
}
