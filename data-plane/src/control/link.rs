//! One control plane: connected, kept alive, and connected again, for ever. Passes on what comes and knows
//! nothing of what it means.

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
use tonic::Streaming;

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

/// Keeps the link; returns only when nobody listens to `events` any more.
pub(super) async fn run(
    id: LinkId,
    address: HostPort,
    dialer: Dialer,
    events: mpsc::Sender<(LinkId, LinkEvent)>,
) {
    let mut backoff = Backoff::new(BACKOFF_BASE, BACKOFF_LONGEST);
    loop {
        sleep(backoff.next_delay()).await;
        match Box::pin(connect(&address, &dialer)).await {
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
                let reason = forward(id, incoming, &events).await;
                // One that takes the link and drops it at once is not to be asked again at once for ever.
                if since.elapsed() > STEADY {
                    backoff.reset();
                }
                tracing::warn!(control_plane = %address, reason, "control plane lost");
                if events.send((id, LinkEvent::Down)).await.is_err() {
                    return;
                }
            }
            Err(reason) => {
                tracing::debug!(control_plane = %address, reason, "control plane not reached");
                if backoff.failures() == 3 {
                    tracing::warn!(control_plane = %address, reason, "control plane not reached; trying on");
                }
            }
        }
    }
}

type Connected = (
    Welcome,
    mpsc::Sender<NodeMessage>,
    Streaming<ControlMessage>,
);

async fn connect(address: &HostPort, dialer: &Dialer) -> Result<Connected, String> {
    let tls = dialer.tls.borrow().clone();
    let channel = channel::connect(address, &tls)
        .await
        .map_err(|error| telemetry::chain(&error))?;
    let (outgoing, queue) = mpsc::channel(OUTGOING);
    let hello = NodeMessage {
        message: Some(node_message::Message::Hello(dialer.hello.clone())),
    };
    outgoing
        .try_send(hello)
        .map_err(|error| error.to_string())?;
    let mut client = NodeSyncClient::new(channel).max_decoding_message_size(LARGEST_MESSAGE);
    let answer = async {
        let mut incoming = client.sync(ReceiverStream::new(queue)).await?.into_inner();
        let first = incoming.message().await?;
        Ok::<_, tonic::Status>((first, incoming))
    };
    let (first, incoming) = timeout(FIRST_ANSWER, answer)
        .await
        .map_err(|_| "no answer in time".to_owned())?
        .map_err(|status| format!("{:?}: {}", status.code(), status.message()))?;
    match first.and_then(|message| message.message) {
        Some(control_message::Message::Welcome(welcome)) => Ok((welcome, outgoing, incoming)),
        _ => Err("its first message is no welcome".to_owned()),
    }
}

/// Passes messages on until the link is down; answers why.
async fn forward(
    id: LinkId,
    mut incoming: Streaming<ControlMessage>,
    events: &mpsc::Sender<(LinkId, LinkEvent)>,
) -> String {
    loop {
        let message = match timeout(SILENCE, incoming.message()).await {
            Err(_) => return "silent for too long".to_owned(),
            Ok(Err(status)) => return format!("{:?}: {}", status.code(), status.message()),
            Ok(Ok(None)) => return "it ended the stream".to_owned(),
            Ok(Ok(Some(message))) => message,
        };
        if let Some(message) = message.message
            && events
                .send((id, LinkEvent::Message(message)))
                .await
                .is_err()
        {
            return "the node ends".to_owned();
        }
    }
}
