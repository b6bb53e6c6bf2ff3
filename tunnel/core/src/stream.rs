//! One relayed stream: what is queued, what is promised, and how far its life has gone.
//!
//! ```text
//!   opener                               acceptor
//!   Opening --OPEN_OK--> Open            Offered --accept--> Open        (phase)
//!
//!   per direction:   open --FIN--> finished        either side, any time: RESET ends both
//!
//!   An entry leaves the table when this side has sent FIN or RESET, has received FIN or RESET, and
//!   nobody here holds the stream any more. A side that gets RESET answers with RESET unless it has
//!   already sent FIN or RESET, so each side sends exactly one last DATA-bearing frame, and an id
//!   that is gone can be told from one that is wrong.
//! ```

use bytes::Bytes;

use crate::datagram::Flow;
use crate::queue::ByteQueue;
use crate::window::Window;

/// Names a stream for the commands of [`crate::Connection`]. Never reused within a tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    pub(crate) index: u32,
    pub(crate) serial: u32,
}

impl Key {
    /// A small number that no other stream has at the same time; for tables beside the connection.
    #[must_use]
    pub fn index(self) -> usize {
        self.index as usize
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// We want it; the peer has not answered.
    Opening,
    /// The peer wants it; the application has not decided.
    Offered,
    /// Both want it.
    Open,
}

/// Where the sending direction is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fin {
    No,
    Queued,
    Sent,
}

/// Control frames that a stream has to send, at most one of each.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Pending {
    pub(crate) open_ok: bool,
    pub(crate) window: bool,
    pub(crate) reset: Option<u32>,
}

impl Pending {
    pub(crate) fn any(self) -> bool {
        self.open_ok || self.window || self.reset.is_some()
    }
}

/// Which data list of the scheduler the stream stands in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    None,
    Interactive,
    Bulk,
}

#[derive(Debug)]
#[allow(clippy::struct_excessive_bools)]
pub(crate) struct Stream {
    pub(crate) key: Key,
    /// Wire id; 0 until the OPEN has been sent.
    pub(crate) id: u32,
    /// Opened by the peer: its end returns a slot.
    pub(crate) theirs: bool,
    pub(crate) phase: Phase,
    /// Epoch in which its OPEN was sent or received.
    pub(crate) born: u32,
    /// The application has a handle.
    pub(crate) held: bool,
    /// Code of the RESET that ended it, from either side.
    pub(crate) reset: Option<u32>,
    pub(crate) pending: Pending,
    /// In the list of streams with pending control frames.
    pub(crate) in_control: bool,

    pub(crate) inbox: ByteQueue,
    pub(crate) window: Window,
    pub(crate) fin_in: bool,
    pub(crate) reset_in: bool,
    pub(crate) want_read: bool,

    pub(crate) outbox: ByteQueue,
    pub(crate) sent: u64,
    pub(crate) send_limit: u64,
    pub(crate) fin_out: Fin,
    pub(crate) reset_out: bool,
    pub(crate) want_write: bool,

    /// Its datagrams, if it carries those.
    pub(crate) flow: Option<Box<Flow>>,

    pub(crate) class: Class,
    /// Share of the stream among those that send in bulk.
    pub(crate) weight: u8,
    /// Bytes that it may still send in this turn, as bulk.
    pub(crate) deficit: usize,
    /// Bytes sent lately, halved in every epoch: tells interactive streams from bulk.
    pub(crate) burst: u32,
    pub(crate) burst_epoch: u32,
    /// Metadata of our OPEN or answer of our OPEN_OK until it is sent; then the peer's answer.
    pub(crate) words: Bytes,
}

impl Stream {
    pub(crate) fn new(key: Key, id: u32, phase: Phase) -> Self {
        Self {
            key,
            id,
            theirs: phase == Phase::Offered,
            phase,
            born: 0,
            held: true,
            reset: None,
            pending: Pending::default(),
            in_control: false,
            inbox: ByteQueue::default(),
            window: Window::default(),
            fin_in: false,
            reset_in: false,
            want_read: false,
            outbox: ByteQueue::default(),
            sent: 0,
            send_limit: 0,
            fin_out: Fin::No,
            reset_out: false,
            want_write: false,
            flow: None,
            class: Class::None,
            weight: 1,
            deficit: 0,
            burst: 0,
            burst_epoch: 0,
            words: Bytes::new(),
        }
    }

    /// Bytes that the application may queue now, if it may have `limit` of them queued.
    pub(crate) fn write_budget(&self, limit: usize) -> usize {
        self.write_credit()
            .min(limit.saturating_sub(self.outbox.len()))
    }

    /// Bytes that the peer takes of it beyond those that are queued.
    pub(crate) fn write_credit(&self) -> usize {
        if self.phase != Phase::Open || self.fin_out != Fin::No || self.reset.is_some() {
            return 0;
        }
        let promised = self.sent + self.outbox.len() as u64;
        usize::try_from(self.send_limit.saturating_sub(promised)).unwrap_or(usize::MAX)
    }

    /// Whether there is data or a FIN to send.
    pub(crate) fn has_data(&self) -> bool {
        self.reset.is_none() && (!self.outbox.is_empty() || self.fin_out == Fin::Queued)
    }

    /// Whether this side has nothing more to send on the wire, ever.
    pub(crate) fn is_done_out(&self) -> bool {
        self.reset_out || (self.fin_out == Fin::Sent && self.pending.reset.is_none())
    }

    /// Whether the peer has nothing more to send.
    pub(crate) fn is_done_in(&self) -> bool {
        self.fin_in || self.reset_in
    }
}
