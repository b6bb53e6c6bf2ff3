//! The users of a UDP destination at its accepting end, from the socket to the access line: the node for on-premises
//! destinations, the client for cloud ones.
//!
//! One task owns the port: it reads the socket, finds the flow of each sender, and opens one for a sender that has
//! none. Who may have a flow and which tunnel carries it is for the [`FlowOpener`]. It waits for nothing: the first
//! datagrams go with the OPEN, and what cannot go now is dropped and counted. Each flow has a task of its own for the
//! answers; when it ends, for whatever reason, the next datagram of that user opens another, on another tunnel if
//! need be.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sg_tunnel_io::{Flow, code};
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::users::Users;
use super::{BATCH, Fate, Peer, UserSocket};
use crate::{DestinationMeter, StreamAccount, StreamEnd};

/// Flows at a time of a destination that sets no limit.
pub const MOST_FLOWS: u32 = 2500;
/// Pause after a socket error that is not of one datagram.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Decides over the users of one destination, and opens their flows.
pub trait FlowOpener: Send + 'static {
    /// Decides over access, chooses a tunnel and opens a flow on it, all without waiting.
    ///
    /// # Errors
    /// There is no flow for this user now; the books say why.
    fn begin(&self, peer: &Peer) -> Result<BegunFlow, NoFlow>;

    /// The series of the destination, for datagrams that have no flow; `None`: it is gone.
    fn meter(&self) -> Option<Arc<DestinationMeter>>;
}

/// A flow that was opened; whether the far side accepts it is not known yet.
#[allow(missing_debug_implementations)]
pub struct BegunFlow {
    /// The flow.
    pub flow: Flow,
    /// Its books.
    pub account: StreamAccount,
    /// To end it from outside.
    pub end: StreamEnd,
    /// How long it may be idle.
    pub idle: Duration,
    /// What is dropped when it has ended: its places in counts and registers.
    pub held: Box<dyn Send>,
}

/// Why there is no flow: what the datagram is counted as, and whether the user has to pause.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NoFlow {
    /// What became of the datagram.
    pub fate: Fate,
    /// Whether the user is not tried again for a while.
    pub pause: bool,
}

impl NoFlow {
    /// The user may not have one, or nobody can carry it.
    pub const REFUSED: Self = Self {
        fate: Fate::NoFlow,
        pause: true,
    };
    /// The destination has as many as it may.
    pub const FULL: Self = Self {
        fate: Fate::Limit,
        pause: true,
    };
}

/// Serves the users of a destination until `stop` is cancelled; then ends their flows, which cannot go on without the
/// port.
pub async fn serve_users(opener: impl FlowOpener, socket: UserSocket, stop: CancellationToken) {
    let socket = Arc::new(socket);
    let mut users = Users::new(opener, Arc::clone(&socket));
    loop {
        // Every arm can be cancelled without loss.
        tokio::select! {
            biased;
            () = stop.cancelled() => break,
            () = users.ended() => {}
            ready = socket.readable() => {
                if ready.is_err() || !take(&mut users, &socket) {
                    sleep(ERROR_PAUSE).await;
                }
                // However much comes, others get their turn.
                yield_now().await;
            }
        }
    }
    users.end_all(code::DRAINED).await;
}

/// Takes what is there, up to [`BATCH`] datagrams. False when the socket should be left alone for a while.
fn take(users: &mut Users<impl FlowOpener>, socket: &UserSocket) -> bool {
    let now = Instant::now();
    for _ in 0..BATCH {
        match socket.try_receive() {
            Ok((datagram, peer)) => users.take(now, &datagram, peer),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(error) => {
                tracing::debug!(%error, "cannot receive a datagram");
                return false;
            }
        }
    }
    true
}
