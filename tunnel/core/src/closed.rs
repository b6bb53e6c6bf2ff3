//! How a tunnel ended: one value that every handle, stream and owner gets to see.

use std::fmt;
use std::io;
use std::sync::Arc;

use crate::code;

/// The end of a tunnel. Cheap to clone: all handles of the tunnel share the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Closed {
    /// Why it ended and who ended it.
    pub reason: CloseReason,
}

/// Who ended a tunnel, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// This side closed it with this code of [`code::close`].
    Local {
        /// Code that was sent in GOAWAY.
        code: u32,
    },
    /// The peer closed it.
    Peer {
        /// Code that came in GOAWAY.
        code: u32,
        /// The peer's text, at most 256 bytes; made printable.
        message: Arc<str>,
    },
    /// The connection beneath ended or failed without GOAWAY.
    Lost {
        /// Kind of the transport's error; `UnexpectedEof` when it just ended.
        kind: io::ErrorKind,
        /// The transport's error text.
        text: Arc<str>,
    },
    /// Nothing was received, or no write made progress, for too long.
    Timeout,
    /// The resume time of a detached tunnel passed without a new connection.
    Expired,
    /// The peer no longer knew the detached tunnel.
    Abandoned,
    /// The peer broke the protocol; it was told this code.
    Protocol {
        /// Code that was sent in GOAWAY.
        code: u32,
        /// What it did, for the log.
        detail: &'static str,
    },
}

impl Closed {
    /// The end of the transport without a GOAWAY.
    #[must_use]
    pub fn lost(kind: io::ErrorKind, text: &str) -> Self {
        Self {
            reason: CloseReason::Lost {
                kind,
                text: text.into(),
            },
        }
    }

    /// One word for metrics: `local`, `peer`, `lost`, `timeout`, `expired`, `abandoned`,
    /// `protocol`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self.reason {
            CloseReason::Local { .. } => "local",
            CloseReason::Peer { .. } => "peer",
            CloseReason::Lost { .. } => "lost",
            CloseReason::Timeout => "timeout",
            CloseReason::Expired => "expired",
            CloseReason::Abandoned => "abandoned",
            CloseReason::Protocol { .. } => "protocol",
        }
    }
}

impl fmt::Display for Closed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            CloseReason::Local { code } => {
                write!(f, "tunnel closed here ({})", code::close::word(*code))
            }
            CloseReason::Peer { code, message } if message.is_empty() => {
                write!(
                    f,
                    "tunnel closed by the peer ({})",
                    code::close::word(*code)
                )
            }
            CloseReason::Peer { code, message } => write!(
                f,
                "tunnel closed by the peer ({}): {message}",
                code::close::word(*code)
            ),
            CloseReason::Lost { text, .. } => write!(f, "tunnel lost: {text}"),
            CloseReason::Timeout => write!(f, "tunnel timed out"),
            CloseReason::Expired => write!(f, "tunnel did not come back in time"),
            CloseReason::Abandoned => write!(f, "the peer no longer knows the tunnel"),
            CloseReason::Protocol { code, detail } => write!(
                f,
                "peer broke the tunnel protocol ({}): {detail}",
                code::close::word(*code)
            ),
        }
    }
}

impl std::error::Error for Closed {}
