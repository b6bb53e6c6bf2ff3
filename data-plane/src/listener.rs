//! Accepts the connections of users at one destination's port. It knows the destination's id and nothing of
//! policy; what happens to a connection is in `connection`.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use sg_model::DestinationId;
use sg_relay::ResetOnDrop;
use sg_runtime::net;
use sg_runtime::places::Occupancy;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::unconstrained;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::connection;
use crate::node::{Node, OpeningPlace};

/// Pause after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One accepted connection.
#[derive(Debug)]
pub(crate) struct Accepted {
    /// Reset when it is dropped, so that no failure looks like a clean end.
    pub(crate) tcp: ResetOnDrop,
    /// The user, or a balancer that will say who the user is.
    pub(crate) peer: SocketAddr,
    /// Counted until its stream is open.
    pub(crate) opening: OpeningPlace,
}

/// Accepts until `stop` is cancelled; then takes what the system has already accepted for it, and closes.
pub(crate) async fn run(
    node: Arc<Node>,
    listener: TcpListener,
    destination: DestinationId,
    occupancy: Occupancy,
    stop: CancellationToken,
) {
    // What this listener still takes after a drain has begun is waited for.
    let _may_open = node.opening.enter();
    loop {
        // Accepting loses nothing when it is cancelled.
        let accepted = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        if !take(&node, accepted, &destination, &occupancy) {
            sleep(ACCEPT_PAUSE).await;
        }
    }
    // Users whose connection the system completed already are served; closing the port would reset them.
    for _ in 0..net::BACKLOG {
        // Not subject to the budget of a task: an exhausted one would look like an empty queue.
        match unconstrained(listener.accept()).now_or_never() {
            Some(Ok(accepted)) => take(&node, Ok(accepted), &destination, &occupancy),
            _ => break,
        };
    }
}

/// False when the accept loop should pause.
fn take(
    node: &Arc<Node>,
    accepted: io::Result<(TcpStream, SocketAddr)>,
    destination: &DestinationId,
    occupancy: &Occupancy,
) -> bool {
    match accepted {
        Ok((tcp, peer)) => {
            let accepted = Accepted {
                tcp: ResetOnDrop::new(tcp),
                peer,
                opening: node.opening.enter(),
            };
            match node.connections.reserve() {
                Ok(slot) => slot.spawn(connection::serve(
                    Arc::clone(node),
                    accepted,
                    destination.clone(),
                    occupancy.clone(),
                )),
                Err(_) => connection::refuse(node, peer, destination),
            }
            true
        }
        Err(error) => {
            node.metrics.accept_error();
            tracing::warn!(%destination, %error, "cannot accept");
            of_one_connection(&error)
        }
    }
}

/// Whether only the connection in question is lost, so that the next one can be taken at once.
pub(crate) fn of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind as K;
    matches!(
        error.kind(),
        K::ConnectionAborted | K::ConnectionReset | K::Interrupted | K::WouldBlock
    )
}
