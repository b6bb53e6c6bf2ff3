//! One watch on one member: opened, checked, grouped by revision, and never silently dead.
//!
//! It does not resume; [`super::super::follow`] does. Three things end a watch that hangs: HTTP/2
//! pings notice a dead connection, the require-leader header a member without quorum, and progress
//! requests a member that accepts but no longer answers. The revisions of progress answers are not
//! used: etcd before 3.4.25 sends them ahead of events.

use std::collections::VecDeque;
use std::time::Duration;

use etcd_client::{Client, Error, WatchOptions, WatchResponse};
use futures_util::stream;
use tokio::time::{Instant, sleep_until, timeout};

use super::super::error::{StoreError, WatchError};
use super::super::types::{Batch, Revision};
use super::super::watch::WatchStream;
use super::error::{Failure, judge};
use super::pool::{Pool, TOTAL};
use super::translate::{self, Namespace};

/// Opening a watch at one member.
const OPEN: Duration = Duration::from_secs(1);
/// How often to ask for progress, and how long a watch may stay silent.
const PROGRESS: Duration = Duration::from_secs(4);
const SILENCE: Duration = Duration::from_secs(10);
/// Catching up, etcd sends up to 1,000 revisions in one message.
const MAX_MESSAGE_BYTES: usize = 512 * 1024 * 1024;

/// Opens a watch at the first member that can.
pub(super) async fn open(
    pool: &Pool,
    namespace: &Namespace,
    prefix: &str,
    from: Revision,
) -> Result<WatchStream, StoreError> {
    let key = namespace.put_on(prefix);
    let mut tries = pool.tries(TOTAL);
    loop {
        let member = tries.next().await?;
        let opened = pool
            .attempt(member, OPEN, |client| open_at(client, key.clone(), from))
            .await;
        match opened {
            Ok(Ok(stream)) => {
                let watcher = Watcher {
                    stream,
                    namespace: namespace.clone(),
                    ready: VecDeque::new(),
                    last_message: Instant::now(),
                    next_progress: Instant::now() + PROGRESS,
                };
                return Ok(WatchStream::new(stream::unfold(
                    watcher,
                    |mut watcher| async move {
                        let item = watcher.next().await;
                        Some((item, watcher))
                    },
                )));
            }
            Ok(Err(error)) => {
                return Ok(WatchStream::new(stream::iter([Err(error)])));
            }
            Err(Failure::Answer(error)) => return Err(error),
            Err(Failure::Elsewhere { message, .. }) => tries.failed(member, message),
            Err(other) => return Err(StoreError::Internal(format!("{other:?}"))),
        }
    }
}

/// A watch, or why the cluster will not have it.
type Opened = Result<etcd_client::WatchStream, WatchError>;

async fn open_at(client: Client, key: String, from: Revision) -> Result<Opened, Error> {
    let options = WatchOptions::new()
        .with_prefix()
        .with_progress_notify()
        .with_start_revision(translate::raw(from));
    let mut watching = client
        .watch_client()
        .max_decoding_message_size(MAX_MESSAGE_BYTES)
        .watch(key, Some(options))
        .await?;
    // The first message says "created", also where a second one will say "compacted".
    match watching.message().await? {
        Some(message) => Ok(match cancelled(&message) {
            Some(error) => Err(error),
            None => Ok(watching),
        }),
        None => Err(Error::WatchError("the stream ended at once".to_owned())),
    }
}

/// Why etcd cancelled the watch, if it did.
fn cancelled(message: &WatchResponse) -> Option<WatchError> {
    if message.compact_revision() > 0 {
        return Some(WatchError::Compacted(translate::revision(
            message.compact_revision(),
        )));
    }
    let reason = match message.cancel_reason() {
        "" => "without a reason",
        reason => reason,
    };
    message
        .canceled()
        .then(|| WatchError::Ended(format!("etcd cancelled it: {reason}")))
}

struct Watcher {
    stream: etcd_client::WatchStream,
    namespace: Namespace,
    /// Received but not yet delivered.
    ready: VecDeque<Batch>,
    last_message: Instant,
    next_progress: Instant,
}

impl Watcher {
    async fn next(&mut self) -> Result<Batch, WatchError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(batch);
            }
            tokio::select! {
                message = self.stream.message() => {
                    let message = match message {
                        Ok(Some(message)) => message,
                        Ok(None) => return Err(WatchError::Ended("the member closed it".to_owned())),
                        Err(error) => return Err(lost(&error)),
                    };
                    self.last_message = Instant::now();
                    if let Some(error) = cancelled(&message) {
                        return Err(error);
                    }
                    self.take(&message);
                }
                () = sleep_until(self.next_progress) => self.ask_progress().await?,
            }
        }
    }

    /// Groups the events of a message by revision. etcd never splits a revision unless asked to.
    fn take(&mut self, message: &WatchResponse) {
        for event in message.events() {
            let Some((revision, event)) = self.namespace.event(event) else {
                tracing::warn!("a key in etcd is no text; somebody else writes under our prefix");
                continue;
            };
            match self.ready.back_mut() {
                Some(batch) if batch.revision == revision => batch.events.push(event),
                _ => self.ready.push_back(Batch {
                    revision,
                    events: vec![event],
                }),
            }
        }
    }

    async fn ask_progress(&mut self) -> Result<(), WatchError> {
        let silent = self.last_message.elapsed();
        if silent > SILENCE {
            return Err(WatchError::Ended(format!("no sign of life for {silent:?}")));
        }
        self.next_progress = Instant::now() + PROGRESS;
        match timeout(OPEN, self.stream.request_progress()).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(lost(&error)),
            Err(_) => Err(WatchError::Ended(
                "requests are not taken any more".to_owned(),
            )),
        }
    }
}

fn lost(error: &Error) -> WatchError {
    WatchError::Ended(match judge(error) {
        Failure::Elsewhere { message, .. } => message,
        Failure::Answer(error) => error.to_string(),
        Failure::AnswerTooLong => "a message was too long".to_owned(),
        Failure::LeaseGone => "a lease is gone".to_owned(),
    })
}
