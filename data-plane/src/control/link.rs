//! One control plane: connected, kept alive, and connected again, for ever. Passes on what comes and knows
//! nothing of what it means.
//!
//! A node that was removed asks on, but seldom: it may be there again when a store is restored, and until somebody stops it, it
//! serves what it has like any node that is cut off.

use std::time::Duration;

use sg_model::HostPort;
use sg_proto::node::node_sync_client::NodeSyncClient;
use sg_proto::node::{ControlMessage, Hello, NodeMessage, Welcome, control_message, node_message};
use sg_runtime::backoff::Backoff;
use sg_runtime::telemetry;
use sg_runtime::tls::ClientTls;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};
use tonic_types::StatusExt as _;

use super::channel;

/// Number of a link, unique in the process.
pub(super) type LinkId = u64;

/// Messages that may wait to be sent on a link.
pub(super) const OUTGOING: usize = 64;
/// Silence after which a link is given up; a control plane sends a heartbeat every 2 s.
const SILENCE: Duration = Duration::from_secs(8);
/// Time for the first answer.
const FIRST_ANSWER: Duration = Duration::from_secs(5);
/// Largest message: parts of a snapshot have at most 1 MiB, a delta may have more.
const LARGEST_MESSAGE: usize = 64 * 1024 * 1024;
/// A link that was up for so long was a good one.
const STEADY: Duration = Duration::from_secs(3);
const BACKOFF_BASE: Duration = Duration::from_millis(100);
const BACKOFF_LONGEST: Duration = Duration::from_secs(2);
/// Pause of a node that a control plane does not know any more.
const REMOVED_PAUSE: Duration = Duration::from_secs(60);
/// It is said again after so many of these.
const REMOVED_SAID: u32 = 10;

/// What happens on a link.
#[derive(Debug)]
pub(super) enum LinkEvent {
    /// It is up; messages for the control plane go into the channel.
    Up(Welcome, mpsc::Sender<NodeMessage>),
    /// A message came.
    Message(control_message::Message),
    /// It is down; it will try again.
    Down,
}

/// What every link needs.
#[derive(Debug, Clone)]
pub(super) struct Dialer {
    /// Newest first: each connection is made with what holds then.
    pub(super) tls: watch::Receiver<ClientTls>,
    pub(super) hello: Hello,
}

/// Why there is no link, or no longer.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Lost {
    /// This node is not in the store (any more).
    Removed,
    /// Anything that passes.
    For(String),
}

impl Lost {
    fn told(status: &Status) -> Self {
        let details = status.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        match (status.code(), reason) {
            (Code::PermissionDenied, Some("NODE_REMOVED")) => Self::Removed,
            (code, _) => Self::For(format!("{code:?}: {}", status.message())),
        }
    }
}

impl From<&str> for Lost {
    fn from(reason: &str) -> Self {
        Self::For(reason.to_owned())
    }
}

/// Keeps the link; returns only when nobody listens to `events` any more.
pub(super) async fn run(
    id: LinkId,
    address: HostPort,
    dialer: Dialer,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
) {
    let mut pace = Pace::new();
    loop {
        sleep(pace.next_pause()).await;
        let lost = match Box::pin(connect(&address, &dialer)).await {
            Ok((welcome, outgoing, incoming)) => {
                let since = Instant::now();
                tracing::info!(control_plane = %address, id = welcome.control_plane_id, "connected to control plane");
                if events
                    .send((id, LinkEvent::Up(welcome, outgoing)))
                    .await
                    .is_err()
                {
                    return;
                }
                let lost = forward(id, incoming, &events).await;
                // One that takes the link and drops it at once is not to be asked again at once for ever.
                if since.elapsed() > STEADY {
                    pace.backoff.reset();
                }
                if let Lost::For(reason) = &lost {
                    tracing::warn!(control_plane = %address, reason, "control plane lost");
                }
                if events.send((id, LinkEvent::Down)).await.is_err() {
                    return;
                }
                lost
            }
            Err(lost) => {
                if let Lost::For(reason) = &lost {
                    tracing::debug!(control_plane = %address, reason, "control plane not reached");
                    if pace.backoff.failures() == 3 {
                        tracing::warn!(control_plane = %address, reason, "control plane not reached; trying on");
                    }
                }
                lost
            }
        };
        if pace.lost(&lost) {
            say_removed(&address);
        }
    }
}

/// When to ask again, and when to say that there is no use.
struct Pace {
    backoff: Backoff,
    /// How often in turn the control plane has said that the node was removed.
    removed: u32,
}

impl Pace {
    fn new() -> Self {
        Self {
            backoff: Backoff::new(BACKOFF_BASE, BACKOFF_LONGEST),
            removed: 0,
        }
    }

    fn next_pause(&mut self) -> Duration {
        match self.removed {
            0 => self.backoff.next_delay(),
            _ => REMOVED_PAUSE,
        }
    }

    /// Takes note of the end of an attempt, or of a link; whether a person is to be told that the node was removed.
    fn lost(&mut self, lost: &Lost) -> bool {
        if *lost != Lost::Removed {
            self.removed = 0;
            return false;
        }
        let said = self.removed.is_multiple_of(REMOVED_SAID);
        self.removed = self.removed.saturating_add(1);
        said
    }
}

fn say_removed(address: &HostPort) {
    tracing::error!(
        control_plane = %address,
        "this node was removed: it gets no configuration any more and serves on what it has; stop it. To let it join again, start it \
         with an empty --data-dir and --join-token-file with a new token (sgctl node token create)"
    );
}

type Connected = (
    Welcome,
    mpsc::Sender<NodeMessage>,
    Streaming<ControlMessage>,
);

async fn connect(address: &HostPort, dialer: &Dialer) -> Result<Connected, Lost> {
    let tls = dialer.tls.borrow().clone();
    let channel = channel::connect(address, &tls)
        .await
        .map_err(|error| Lost::For(telemetry::chain(&error)))?;
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let hello = NodeMessage {
        message: Some(node_message::Message::Hello(dialer.hello.clone())),
    };
    outgoing
        .try_send(hello)
        .map_err(|error| Lost::For(error.to_string()))?;
    let mut client = NodeSyncClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let answer = async {
        let mut incoming = client.sync(ReceiverStream::new(queue)).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, Status>((first, incoming))
    };
    let (first, incoming) = timeout(FIRST_ANSWER, answer)
        .await
        .map_err(|_| Lost::from("no answer in time"))?
        .map_err(|status| Lost::told(&status))?;
    match first.and_then(|message| message.message) {
        Some(control_message::Message::Welcome(welcome)) => Ok((welcome, outgoing, incoming)),
        _ => Err("its first message is no welcome".into()),
    }
}

/// Passes messages on until the link is down; answers why.
async fn forward(
    id: LinkId,
    mut incoming: Streaming<ControlMessage>,
    events: &mpsc::Sender<(LinkId, LinkEvent)>,
) -> Lost {
    loop {
        let message = match timeout(SILENCE, incoming.message()).await {
            Err(_) => return "silent for too long".into(),
            Ok(Err(status)) => return Lost::told(&status),
            Ok(Ok(None)) => return "it ended the stream".into(),
            Ok(Ok(Some(message))) => message,
        };
        if let Some(message) = message.message
            && events
                .send((id, LinkEvent::Message(message)))
                .await
                .is_err()
        {
            return "the node ends".into();
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn only_the_word_says_that_a_node_was_removed() {
        let of = |reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "secure-gateway", []);
            let text = "the node was removed";
            Lost::told(&Status::with_error_details(
                Code::PermissionDenied,
                text,
                details,
            ))
        };
        assert_eq!(of("NODE_REMOVED"), Lost::Removed);
        let other = Lost::For("PermissionDenied: the node was removed".to_owned());
        assert_eq!(of("ROLE_NOT_SUFFICIENT"), other);
        assert_eq!(
            Lost::told(&Status::permission_denied("the node was removed")),
            other
        );
    }

    #[test]
    fn who_was_removed_asks_seldom_and_says_it_now_and_then() {
        let mut pace = Pace::new();
        let said: Vec<_> = (0..21).map(|_| pace.lost(&Lost::Removed)).collect();
        let when: Vec<_> = (0..21).filter(|n| said[*n]).collect();
        assert_eq!(when, [0, 10, 20]);
        assert_eq!(pace.next_pause(), REMOVED_PAUSE);
        // A control plane that is away says nothing of the kind.
        assert!(!pace.lost(&"it ended the stream".into()));
        assert!(pace.next_pause() <= BACKOFF_LONGEST);
        assert!(pace.lost(&Lost::Removed));
    }
}
