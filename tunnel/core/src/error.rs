//! What a command or a peer can do wrong, by who is to blame.

use crate::code::close;

/// The peer broke the protocol. Ends the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Code for the GOAWAY.
    pub code: u32,
    /// What the peer did, for the log.
    pub detail: &'static str,
}

impl Violation {
    pub(crate) fn new(code: u32, detail: &'static str) -> Self {
        Self { code, detail }
    }

    pub(crate) fn protocol(detail: &'static str) -> Self {
        Self::new(close::PROTOCOL_ERROR, detail)
    }

    pub(crate) fn too_much(detail: &'static str) -> Self {
        Self::new(close::TOO_MUCH, detail)
    }
}

/// A stream cannot be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenRefusal {
    /// The tunnel has ended.
    Closed,
    /// Either side drains.
    Draining,
    /// The tunnel has no transport at present.
    Detached,
    /// The peer has no room for another stream.
    Limit,
    /// The metadata is longer than the peer accepts. A fault of the caller.
    MetadataTooLong,
}

/// A CONTROL message cannot be queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlRefusal {
    /// The tunnel has ended.
    Closed,
    /// The queue is full.
    Full,
    /// The message is longer than [`crate::frame::MAX_CONTROL`]. A fault of the caller.
    TooLong,
}

/// Why a stream can no longer be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamEnd {
    /// One side reset it with this code.
    Reset(u32),
    /// The tunnel has ended: see [`crate::Connection::closed`].
    Lost,
    /// This side has already finished its direction, or the stream is not of the kind that this is for
    /// (bytes, or datagrams). A fault of the caller.
    Finished,
}
