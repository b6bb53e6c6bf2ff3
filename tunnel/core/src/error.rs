//! What a command or a peer can do wrong, by who is to blame.

use crate::code::close;
use crate::limits::Limit;

/// The peer broke the protocol. Ends the tunnel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Code for the GOAWAY.
    pub code: u32,
    /// What the peer did, for the log.
    pub detail: &'static str,
    /// The limit that it exceeded, if it was one.
    pub(crate) limit: Option<Limit>,
}

impl Violation {
    pub(crate) fn new(code: u32, detail: &'static str) -> Self {
        Self {
            code,
            detail,
            limit: None,
        }
    }

    pub(crate) fn protocol(detail: &'static str) -> Self {
        Self::new(close::PROTOCOL_ERROR, detail)
    }

    /// Too much of what `limit` counts.
    pub(crate) fn limit(limit: Limit, detail: &'static str) -> Self {
        Self {
            code: close::TOO_MUCH,
            detail,
            limit: Some(limit),
        }
    }

    /// A frame that is longer than this side takes.
    pub(crate) fn too_long(detail: &'static str) -> Self {
        Self {
            code: close::FRAME_SIZE,
            detail,
            limit: Some(Limit::FrameSize),
        }
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
    /// The peer has no room for another stream, or so many opens have failed lately that it would soon
    /// refuse all of them.
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
