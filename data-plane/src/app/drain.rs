//! The end of a node, in stages: stop accepting → let what is being opened finish → tell the clients → wait for
//! the streams → reset the rest.

use std::time::Duration;

use sg_runtime::duration::HumanDuration;
use sg_runtime::tasks::TaskPool;
use sg_tunnel_io::code::{self, close};
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use crate::node::Node;

/// How long connections that were accepted before the drain may still take to open.
const OPENING: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);
/// Time for resets to reach users and clients.
const RESETS: Duration = Duration::from_millis(500);
/// Time for tunnels to say goodbye.
const GOODBYE: Duration = Duration::from_millis(700);

/// Drains until nothing is left, the time is over, or a second signal comes.
pub(crate) async fn run(node: &Node, tunnels: &TaskPool, stop_accepting: &CancellationToken) {
    let shutdown = &node.shutdown;
    tracing::info!(streams = (node.streams.len() + node.cloud.len()), timeout = %whole_seconds(shutdown.remaining()), "draining");
    stop_accepting.cancel();
    // A tunnel that drains opens nothing more, so that what was accepted already would be lost.
    let limit = Instant::now() + OPENING.min(shutdown.remaining());
    while node.opening.count() > 0 && Instant::now() < limit {
        sleep(LOOK).await;
    }
    node.registry.drain();
    let idle = shutdown.run(async {
        node.connections.wait_idle(shutdown.remaining()).await;
        // A stream that has ended here may still have bytes on their way to its client.
        sent(node, shutdown.remaining()).await
    });
    if idle.await != Some(true) {
        tracing::warn!(
            streams = (node.streams.len() + node.cloud.len()),
            "the time is over: resetting the streams that are left"
        );
        node.streams.end_all(code::DRAINED);
        node.cloud.end_all(code::DRAINED);
        if !node.connections.wait_idle(RESETS).await || !sent(node, RESETS).await {
            tracing::warn!(
                streams = (node.streams.len() + node.cloud.len()),
                "streams did not end in time"
            );
        }
    }
    for session in node.registry.all() {
        session.tunnel.close(close::NONE, "the node shuts down");
    }
    if !tunnels.wait_idle(GOODBYE).await {
        tunnels.abort_all();
    }
}

/// What is left of the time, for people: a moment of it has passed already.
fn whole_seconds(left: Duration) -> HumanDuration {
    HumanDuration(Duration::from_secs(
        (left + Duration::from_millis(500)).as_secs(),
    ))
}

/// Waits until no tunnel has a stream any more, at most so long; answers whether that came about.
async fn sent(node: &Node, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while node.connections.active() > 0
        || node
            .registry
            .all()
            .iter()
            .any(|s| s.tunnel.active_streams() > 0)
    {
        if Instant::now() >= end {
            return false;
        }
        sleep(LOOK).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_that_is_left_is_told_in_whole_seconds() {
        let told = |millis| whole_seconds(Duration::from_millis(millis)).to_string();
        assert_eq!([29_999, 30_000, 100].map(told), ["30s", "30s", "0s"]);
    }
}
