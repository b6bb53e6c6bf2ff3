//! What goes into the machine and what comes out of it.

use std::time::Duration;

use sg_model::{HostPort, NodeId};

use super::pace::Retry;

/// One attempt to connect and, if it succeeds, the tunnel. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SessionId(pub(super) u64);

impl SessionId {
    /// The number, for logs.
    #[must_use]
    pub const fn number(self) -> u64 {
        self.0
    }
}

/// A node of the group and where it may be dialled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// The node.
    pub node: NodeId,
    /// Where it says it can be reached.
    pub address: HostPort,
}

/// What has happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The handshake of a session proved who answers.
    Identified {
        /// The session.
        session: SessionId,
        /// Who answers.
        node: NodeId,
    },
    /// The node accepted the hello.
    Up {
        /// The session.
        session: SessionId,
        /// The gateway's id, whatever it was called on the command line.
        gateway: String,
    },
    /// The node takes no new streams on this tunnel; it goes on with those it has.
    Draining {
        /// The session.
        session: SessionId,
    },
    /// The session is over before it was up.
    Failed {
        /// The session.
        session: SessionId,
        /// Whether it can go better soon.
        retry: Retry,
    },
    /// The tunnel of the session is gone.
    Lost {
        /// The session.
        session: SessionId,
    },
    /// A node told all nodes of its group.
    Endpoints {
        /// The session that it told this on.
        session: SessionId,
        /// All nodes of the group.
        endpoints: Vec<Endpoint>,
    },
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Start a session: dial after a wait.
    Connect {
        /// Its id.
        session: SessionId,
        /// Whom to dial.
        address: HostPort,
        /// How long to wait first.
        after: Duration,
    },
    /// Say hello: this tunnel is wanted.
    Proceed {
        /// The session.
        session: SessionId,
    },
    /// End the session, whatever it does.
    Close {
        /// The session.
        session: SessionId,
        /// Why, in a word for the log.
        why: &'static str,
    },
    /// Let the tunnel's streams end, then end it.
    Drain {
        /// The session.
        session: SessionId,
        /// Why, in a word for the log.
        why: &'static str,
    },
    /// Nothing is tried any more.
    GiveUp,
}
