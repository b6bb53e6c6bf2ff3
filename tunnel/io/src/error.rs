//! What can go wrong for the user of a tunnel, by who is to blame.

use std::io;

use sg_tunnel::{Closed, code};
use thiserror::Error;

/// A stream could not be opened.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum OpenError {
    /// The peer refused the stream.
    #[error("the peer refused the stream ({})", code::word(*code))]
    Reset {
        /// Reason, one of [`code`].
        code: u32,
    },
    /// The tunnel has ended.
    #[error("{0}")]
    Closed(Closed),
    /// Either side drains the tunnel.
    #[error("the tunnel is draining")]
    Draining,
    /// The tunnel has lost its connection, and there is no new one yet.
    #[error("the tunnel has no connection at present")]
    Detached,
    /// The peer takes no more streams at present.
    #[error("the tunnel has no room for another stream")]
    Limit,
}

impl OpenError {
    /// Whether another tunnel of the same gateway may take the stream: nothing was done for it on this one.
    #[must_use]
    pub fn retry_elsewhere(&self) -> bool {
        match self {
            Self::Reset { code } => code::retry_elsewhere(*code),
            Self::Closed(_) | Self::Draining | Self::Detached | Self::Limit => true,
        }
    }

    /// The reset code that says the same, for logs and for the user's side of the stream.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Reset { code } => *code,
            Self::Closed(_) | Self::Detached => code::TUNNEL_LOST,
            Self::Draining => code::REFUSED_RETRY,
            Self::Limit => code::LIMIT,
        }
    }
}

/// A CONTROL message could not be queued.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum ControlError {
    /// Too many messages wait to be sent; the peer or the link is slow.
    #[error("too many control messages wait to be sent")]
    Full,
    /// The message is longer than 16 KiB. A fault of the caller.
    #[error("control message longer than 16 KiB")]
    TooLong,
    /// The tunnel has ended.
    #[error("{0}")]
    Closed(Closed),
}

/// A stream has ended without a FIN.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum StreamError {
    /// The peer (or this side, by policy) reset the stream.
    #[error("stream reset ({})", code::word(*code))]
    Reset {
        /// Reason, one of [`code`].
        code: u32,
    },
    /// The tunnel that carried the stream has ended.
    #[error("{0}")]
    Lost(Closed),
}

impl StreamError {
    /// The reset code that says the same, for logs and for the other half of a relay.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Reset { code } => *code,
            Self::Lost(_) => code::TUNNEL_LOST,
        }
    }

    /// The stream error inside an [`io::Error`] that came from a tunnel stream.
    #[must_use]
    pub fn from_io(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }
}

impl From<StreamError> for io::Error {
    fn from(error: StreamError) -> Self {
        Self::new(io::ErrorKind::ConnectionReset, error)
    }
}
