//! The story of a user's datagrams at one destination's port, from the socket to the access line.
//!
//! One task owns the port: it reads the socket, finds the flow of each sender, and opens one for a sender
//! that has none. Deciding over access and choosing a tunnel is as for connections (see `connection`), with
//! one difference: nothing is waited for. The first datagrams go with the OPEN, and what cannot go now is
//! dropped and counted. Each flow has a task of its own for the answers; when it ends, for whatever reason,
//! the next datagram of that user opens another, on another tunnel if need be.

mod pace;
mod users;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use sg_model::DestinationId;
use sg_relay::udp::{BATCH, UserSocket};
use sg_tunnel_io::code;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::listener::Occupancy;
use crate::node::Node;
use users::Users;

/// Pause after a socket error that is not of one datagram.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// Serves the users of a destination until `stop` is cancelled; then ends their flows, which cannot go on
/// without the port.
pub(crate) async fn run(
    node: Arc<Node>,
    socket: UserSocket,
    destination: DestinationId,
    occupancy: Occupancy,
    stop: CancellationToken,
) {
    let mut users = Users::new(node, Arc::new(socket), destination, occupancy);
    let socket = Arc::clone(users.socket());
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
fn take(users: &mut Users, socket: &UserSocket) -> bool {
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
