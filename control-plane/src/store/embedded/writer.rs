//! The one thread that changes the embedded store's file.
//!
//! It takes whatever transactions wait (up to 64), runs them in one transaction of the database,
//! each with its own revision, syncs once, and only then answers them. It also deletes what
//! expires and compacts the log. A thread of its own, because syncing blocks and because order is
//! its whole point. It is owned by [`Writer`], whose drop waits for it.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use redb::Database;
use tokio::sync::{oneshot, watch};

use super::super::error::StoreError;
use super::super::types::{Revision, Txn, TxnOutcome};
use super::state::WriterState;
use super::tables::Tables;
use super::{CALL_TIMEOUT, broken};

/// Requests that may wait for the writer; more are refused as unavailable.
const QUEUE: usize = 1024;
/// Most requests in one sync.
const GROUP: usize = 64;
/// Most keys that expire in one revision.
const EXPIRE_AT_ONCE: usize = 1000;

enum Request {
    Txn {
        txn: Txn,
        answer: oneshot::Sender<Result<TxnOutcome, StoreError>>,
    },
    Compact {
        revision: Revision,
        answer: oneshot::Sender<Result<(), StoreError>>,
    },
}

/// The handle of the thread.
pub(super) struct Writer {
    requests: Option<SyncSender<Request>>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    /// Starts the thread; the receiver carries the newest committed revision.
    pub(super) fn start(
        database: Arc<Database>,
        state: WriterState,
        clock: Clock,
    ) -> io::Result<(Self, watch::Receiver<Revision>)> {
        let (requests, inbox) = sync_channel(QUEUE);
        let (newest, newest_seen) = watch::channel(state.revision);
        let work = Loop {
            database,
            state,
            newest,
            clock,
            failure: None,
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || work.run(&inbox))?;
        let writer = Self {
            requests: Some(requests),
            thread: Some(thread),
        };
        Ok((writer, newest_seen))
    }

    pub(super) async fn txn(&self, txn: Txn) -> Result<TxnOutcome, StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Txn { txn, answer })?;
        wait_for(answered).await
    }

    pub(super) async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let (answer, answered) = oneshot::channel();
        self.send(Request::Compact { revision, answer })?;
        wait_for(answered).await
    }

    /// Fails if the thread has died.
    pub(super) fn alive(&self) -> Result<(), StoreError> {
        match &self.thread {
            Some(thread) if !thread.is_finished() => Ok(()),
            _ => Err(stopped()),
        }
    }

    fn send(&self, request: Request) -> Result<(), StoreError> {
        let Some(requests) = &self.requests else {
            return Err(stopped());
        };
        requests.try_send(request).map_err(|error| match error {
            TrySendError::Full(_) => {
                StoreError::unavailable(format!("{QUEUE} writes are waiting for the disk already"))
            }
            TrySendError::Disconnected(_) => stopped(),
        })
    }
}

impl Drop for Writer {
    /// Waits for the last sync, so that the file is free when the store is gone.
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the writer of the embedded store had died");
        }
    }
}

async fn wait_for<T>(answered: oneshot::Receiver<Result<T, StoreError>>) -> Result<T, StoreError> {
    match tokio::time::timeout(CALL_TIMEOUT, answered).await {
        Ok(Ok(result)) => result,
        Ok(Err(_)) => Err(StoreError::UnknownOutcome(
            "the writer died before it answered".to_owned(),
        )),
        Err(_) => Err(StoreError::UnknownOutcome(format!(
            "the disk took longer than {CALL_TIMEOUT:?}"
        ))),
    }
}

fn stopped() -> StoreError {
    StoreError::broken("the writer of the store has stopped; restart the control plane")
}

/// The wall clock as it was at the start, moved on by the monotonic one: setting the clock while
/// the store runs neither kills keys nor keeps them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    pub(super) fn start() -> Self {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Self {
            started: Instant::now(),
            started_ms: millis(wall),
        }
    }

    /// Milliseconds since 1970.
    pub(super) fn now_ms(&self) -> u64 {
        self.started_ms
            .saturating_add(millis(self.started.elapsed()))
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The thread itself.
struct Loop {
    database: Arc<Database>,
    state: WriterState,
    newest: watch::Sender<Revision>,
    clock: Clock,
    /// Set once the file has failed: what is in memory may then differ from it, so nothing more
    /// is written until the store is opened again.
    failure: Option<StoreError>,
}

/// What to answer after the sync.
enum Answer {
    Txn(oneshot::Sender<Result<TxnOutcome, StoreError>>, TxnOutcome),
    Compact(
        oneshot::Sender<Result<(), StoreError>>,
        Result<(), StoreError>,
    ),
}

impl Answer {
    /// Gives the answer, or what came between. The caller may have gone away, which is fine.
    fn give(self, failure: Option<&StoreError>) {
        match self {
            Self::Txn(answer, outcome) => {
                let result = failure.map_or(Ok(outcome), |error| Err(error.clone()));
                drop(answer.send(result));
            }
            Self::Compact(answer, result) => {
                let result = failure.map_or(result, |error| Err(error.clone()));
                drop(answer.send(result));
            }
        }
    }
}

impl Loop {
    /// Runs until the store is dropped.
    fn run(mut self, inbox: &Receiver<Request>) {
        loop {
            let first = match self.until_due() {
                Some(wait) => match inbox.recv_timeout(wait) {
                    Ok(request) => Some(request),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => return,
                },
                None => match inbox.recv() {
                    Ok(request) => Some(request),
                    Err(_) => return,
                },
            };
            let group: Vec<Request> = first
                .into_iter()
                .chain(std::iter::from_fn(|| inbox.try_recv().ok()))
                .take(GROUP)
                .collect();
            self.commit(group);
        }
    }

    /// How long until something expires; `None` if nothing ever does.
    fn until_due(&self) -> Option<Duration> {
        if self.failure.is_some() {
            return None;
        }
        let due = self.state.next_due_ms()?;
        Some(Duration::from_millis(
            due.saturating_sub(self.clock.now_ms()),
        ))
    }

    /// Runs a group of requests and what is due, syncs, publishes, answers.
    fn commit(&mut self, group: Vec<Request>) {
        let mut answers = Vec::with_capacity(group.len());
        if let Some(failure) = &self.failure {
            for request in group {
                refuse(request, failure.clone());
            }
            return;
        }
        let mut waiting = group.into_iter();
        let committed = self.write(&mut waiting, &mut answers);
        let failure = match committed {
            Ok(()) => {
                self.newest.send_if_modified(|newest| {
                    std::mem::replace(newest, self.state.revision) != self.state.revision
                });
                None
            }
            Err(error) => {
                let failure = broken(&error);
                tracing::error!(error = %failure, "the embedded store stops");
                self.failure = Some(failure.clone());
                Some(StoreError::UnknownOutcome(failure.to_string()))
            }
        };
        for answer in answers {
            answer.give(failure.as_ref());
        }
        for request in waiting {
            refuse(request, self.failure.clone().unwrap_or_else(stopped));
        }
    }

    /// Everything of one group in one transaction of the database.
    fn write(
        &mut self,
        waiting: &mut impl Iterator<Item = Request>,
        answers: &mut Vec<Answer>,
    ) -> Result<(), redb::Error> {
        let now_ms = self.clock.now_ms();
        let before = (self.state.revision, self.state.compacted);
        let txn = self.database.begin_write()?;
        {
            let mut tables = Tables::open(&txn)?;
            let due = self.state.due(now_ms, EXPIRE_AT_ONCE);
            tables.expire(&mut self.state, &due)?;
            for request in waiting {
                match request {
                    Request::Txn { txn, answer } => {
                        match tables.txn(&mut self.state, &txn, now_ms) {
                            Ok(outcome) => answers.push(Answer::Txn(answer, outcome)),
                            Err(error) => {
                                drop(answer.send(Err(broken(&error))));
                                return Err(error);
                            }
                        }
                    }
                    Request::Compact { revision, answer } => {
                        let result = if revision > self.state.revision {
                            Err(StoreError::Future)
                        } else if revision <= self.state.compacted {
                            Err(StoreError::Compacted)
                        } else {
                            tables.compact(&mut self.state, revision)?;
                            Ok(())
                        };
                        answers.push(Answer::Compact(answer, result));
                    }
                }
            }
            if let Some(revision) = self.state.overgrown() {
                tables.compact(&mut self.state, revision)?;
            }
        }
        if before == (self.state.revision, self.state.compacted) {
            // Conflicts only: nothing to sync.
            txn.abort()?;
        } else {
            txn.commit()?;
        }
        Ok(())
    }
}

fn refuse(request: Request, error: StoreError) {
    match request {
        Request::Txn { answer, .. } => drop(answer.send(Err(error))),
        Request::Compact { answer, .. } => drop(answer.send(Err(error))),
    }
}
