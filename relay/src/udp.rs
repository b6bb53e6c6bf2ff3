//! Datagrams of UDP: the sockets at both ends of a flow, and what they are allowed.
//!
//! A flow is one peer of a UDP socket: at the accepting end one address of a user, at the dialling end one connected
//! socket to the resource. Nothing here waits for room: a datagram that a full socket does not take, or
//! that would answer more than was asked, is dropped and counted ([`Fate`]). Boundaries are kept.
//!
//! Not here: which tunnel carries a flow, and who may have one.
//!
//! Where to start: [`serve_users`] is the accepting end, of many flows; [`join_flow`] the dialling end, of one.

mod answers;
mod inbox;
mod join;
mod own;
mod pace;
mod resource;
mod serve;
mod user_flow;
mod user_socket;
mod users;

pub use answers::AnswerLimit;
pub use join::join_flow;
pub use resource::dial_udp;
pub use serve::{BegunFlow, FlowOpener, MOST_FLOWS, NoFlow, serve_users};
pub use user_flow::{IDLE_TIMEOUT, UNANSWERED_TIMEOUT, UserFlow};
pub use user_socket::{Peer, UserSocket};

/// Datagrams that are moved before other tasks get their turn.
pub const BATCH: usize = 64;

/// What became of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It went on.
    Passed,
    /// The socket had no room for it.
    SocketFull,
    /// The system did not send it, as when it is too long for the path.
    NotSent,
    /// It would have answered an unconfirmed user with more than three times what he sent.
    Amplification,
    /// There is no flow for it: refused, or nobody is connected who could carry it.
    NoFlow,
    /// There are as many flows as there may be.
    Limit,
}

impl Fate {
    /// Every fate.
    pub const ALL: [Self; 6] = [
        Self::Passed,
        Self::SocketFull,
        Self::NotSent,
        Self::Amplification,
        Self::NoFlow,
        Self::Limit,
    ];

    /// The word in the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::SocketFull => "socket-full",
            Self::NotSent => "not-sent",
            Self::Amplification => "amplification",
            Self::NoFlow => "no-flow",
            Self::Limit => "limit",
        }
    }
}

/// Where a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the user.
    ToResource,
    /// From the resource.
    ToUser,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::ToResource, Self::ToUser];

    /// The word in the metric.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ToResource => "to_resource",
            Self::ToUser => "to_user",
        }
    }
}
