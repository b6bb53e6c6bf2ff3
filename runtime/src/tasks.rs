//! Tasks that somebody owns. `tokio::spawn` is banned elsewhere, because a dropped handle loses
//! panics and early ends.
//!
//! * [`TaskGroup`] holds the few long-lived, named tasks of a process or of a component. The owner
//!   awaits [`TaskGroup::join_next`] and decides what an end means; dropping the group aborts them.
//! * [`TaskPool`] holds the many short-lived tasks of one kind, as one per connection: bounded,
//!   counted, reaped by themselves; a panic is logged and counted and harms nobody else.

use std::any::Any;
use std::collections::HashMap;
use std::fmt;
use std::future::{Future, poll_fn};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{Id, JoinSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::gate::{First, race};

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// It returned.
    Finished,
    /// It returned an error, whose text this is.
    Failed(String),
    /// It panicked with this message.
    Panicked(String),
    /// It was aborted with its group.
    Aborted,
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finished => f.write_str("finished"),
            Self::Failed(error) => write!(f, "failed: {error}"),
            Self::Panicked(message) => write!(f, "panicked: {message}"),
            Self::Aborted => f.write_str("aborted"),
        }
    }
}

/// What a task's future may return: nothing, or a result whose error can be shown.
pub trait Outcome: Send + 'static {
    /// How this return value counts.
    fn ended(self) -> Ended;
}

impl Outcome for () {
    fn ended(self) -> Ended {
        Ended::Finished
    }
}

impl<E: fmt::Display + Send + 'static> Outcome for Result<(), E> {
    fn ended(self) -> Ended {
        match self {
            Ok(()) => Ended::Finished,
            Err(error) => Ended::Failed(error.to_string()),
        }
    }
}

/// Named tasks with one owner.
#[derive(Debug, Default)]
pub struct TaskGroup {
    tasks: JoinSet<Ended>,
    names: HashMap<Id, String>,
}

impl TaskGroup {
    /// An empty group.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Starts a task.
    pub fn spawn<F>(&mut self, name: impl Into<String>, future: F)
    where
        F: Future<Output: Outcome> + Send + 'static,
    {
        let handle = self.tasks.spawn(async move { future.await.ended() });
        self.names.insert(handle.id(), name.into());
    }

    /// Waits until a task ends; `None` when none is left. Cancelling the wait loses nothing.
    pub async fn join_next(&mut self) -> Option<(String, Ended)> {
        let (id, ended) = match self.tasks.join_next_with_id().await? {
            Ok((id, ended)) => (id, ended),
            Err(error) => {
                let id = error.id();
                let ended = match error.try_into_panic() {
                    Ok(panic) => Ended::Panicked(panic_message(panic.as_ref())),
                    Err(_) => Ended::Aborted,
                };
                (id, ended)
            }
        };
        Some((self.names.remove(&id).unwrap_or_default(), ended))
    }

    /// How many tasks have not been joined.
    #[must_use]
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// True if none is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Waits up to `limit` for all tasks, then aborts the rest. Answers the names of those that
    /// had to be aborted; ends that are no good ends are logged.
    pub async fn finish(mut self, limit: Duration) -> Vec<String> {
        let all = async {
            while let Some((name, ended)) = self.join_next().await {
                if ended != Ended::Finished {
                    tracing::warn!(task = name, %ended, "task ended badly during shutdown");
                }
            }
        };
        if tokio::time::timeout(limit, all).await.is_ok() {
            return Vec::new();
        }
        self.tasks.shutdown().await;
        let mut names: Vec<_> = self.names.into_values().collect();
        names.sort_unstable();
        names
    }

    /// Aborts all tasks and waits until they are gone.
    pub async fn abort(mut self) {
        self.tasks.shutdown().await;
    }
}

/// Many tasks of one kind, bounded in number. Clones are handles to the same pool.
#[derive(Debug, Clone)]
pub struct TaskPool {
    inner: Arc<Pool>,
}

#[derive(Debug)]
struct Pool {
    name: &'static str,
    limit: usize,
    slots: Arc<Semaphore>,
    tasks: TaskTracker,
    abort: CancellationToken,
    panics: AtomicU64,
}

/// The pool has as many tasks as it may have, or is being ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the limit of simultaneous tasks is reached")]
pub struct PoolFull;

/// A place in a pool, to be taken before something is accepted that could then not be served.
#[derive(Debug)]
pub struct Slot {
    permit: OwnedSemaphorePermit,
    pool: Arc<Pool>,
}

impl TaskPool {
    /// A pool of at most `limit` tasks; `name` appears in logs.
    #[must_use]
    pub fn new(name: &'static str, limit: usize) -> Self {
        let limit = limit.min(Semaphore::MAX_PERMITS);
        let tasks = TaskTracker::new();
        // Closed only means that waiting ends when none runs; tasks can still be started.
        tasks.close();
        let inner = Pool {
            name,
            limit,
            slots: Arc::new(Semaphore::new(limit)),
            tasks,
            abort: CancellationToken::new(),
            panics: AtomicU64::new(0),
        };
        Self {
            inner: Arc::new(inner),
        }
    }

    /// Starts a task, if there is room. What it returns is dropped.
    ///
    /// # Errors
    /// [`PoolFull`]; the future was not started.
    pub fn spawn<F>(&self, future: F) -> Result<(), PoolFull>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.reserve().map(|slot| slot.spawn(future))
    }

    /// Takes a place without using it yet.
    ///
    /// # Errors
    /// [`PoolFull`].
    pub fn reserve(&self) -> Result<Slot, PoolFull> {
        if self.inner.abort.is_cancelled() {
            return Err(PoolFull);
        }
        let permit = Arc::clone(&self.inner.slots)
            .try_acquire_owned()
            .map_err(|_| PoolFull)?;
        Ok(Slot {
            permit,
            pool: Arc::clone(&self.inner),
        })
    }

    /// Waits for a place. Cancelling the wait is safe.
    pub async fn reserve_wait(&self) -> Slot {
        let permit = Arc::clone(&self.inner.slots).acquire_owned().await;
        let permit = permit.expect("invariant: the semaphore of a pool is never closed");
        Slot {
            permit,
            pool: Arc::clone(&self.inner),
        }
    }

    /// How many tasks run now.
    #[must_use]
    pub fn active(&self) -> usize {
        self.inner.tasks.len()
    }

    /// How many tasks have panicked so far.
    #[must_use]
    pub fn panics(&self) -> u64 {
        self.inner.panics.load(Ordering::Relaxed)
    }

    /// The most tasks at a time.
    #[must_use]
    pub fn limit(&self) -> usize {
        self.inner.limit
    }

    /// Waits up to `limit` until no task runs; answers whether that came about. New tasks may
    /// still start meanwhile and are waited for too.
    pub async fn wait_idle(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.inner.tasks.wait())
            .await
            .is_ok()
    }

    /// Drops all running tasks at their next await point; nothing starts any more.
    pub fn abort_all(&self) {
        self.inner.abort.cancel();
    }
}

impl Slot {
    /// Starts a task in this place.
    pub fn spawn<F>(self, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let Self { permit, pool } = self;
        let tracker = pool.tasks.clone();
        // On the heap by itself: everything that is wrapped around it would otherwise hold room for it again.
        let mut future = Box::pin(future);
        // The tracker counts it, the abort token ends it, and its panic is handled inside: the
        // handle has nothing left to tell.
        drop(tracker.spawn(async move {
            let _permit = permit;
            let caught = poll_fn(move |cx| poll_caught(future.as_mut(), cx));
            let aborted = pin!(pool.abort.cancelled());
            match race(caught, aborted).await {
                First::Main(Ok(())) | First::Seldom(()) => {}
                First::Main(Err(message)) => {
                    pool.panics.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(pool = pool.name, message, "a task panicked");
                }
            }
        }));
    }
}

/// Polls `future` and turns a panic inside it into an error; after that it is never polled again, only dropped.
fn poll_caught<F: Future<Output = ()>>(
    future: Pin<&mut F>,
    cx: &mut Context<'_>,
) -> Poll<Result<(), String>> {
    match catch_unwind(AssertUnwindSafe(|| future.poll(cx))) {
        Ok(poll) => poll.map(Ok),
        Err(panic) => Poll::Ready(Err(panic_message(panic.as_ref()))),
    }
}

/// The text of a panic, if it has one.
pub(crate) fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("no message")
        .to_owned()
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::*;

    const SOON: Duration = Duration::from_secs(5);

    #[tokio::test]
    async fn a_group_tells_which_task_ended_and_how() {
        let mut group = TaskGroup::new();
        group.spawn("good", async {});
        group.spawn("bad", async { Err::<(), _>("broken") });
        let number = 7;
        group.spawn(
            "ugly",
            async move { assert!(number < 7, "at number {number}") },
        );
        assert_eq!(group.len(), 3);
        let mut ends = Vec::new();
        while let Some(end) = group.join_next().await {
            ends.push(end);
        }
        ends.sort_by(|left, right| left.0.cmp(&right.0));
        let expected = [
            ("bad".to_owned(), Ended::Failed("broken".to_owned())),
            ("good".to_owned(), Ended::Finished),
            ("ugly".to_owned(), Ended::Panicked("at number 7".to_owned())),
        ];
        assert_eq!(ends, expected);
        assert!(group.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn finishing_names_what_had_to_be_aborted() {
        let mut group = TaskGroup::new();
        group.spawn("quick", async {});
        group.spawn("stuck-b", std::future::pending::<()>());
        group.spawn("stuck-a", std::future::pending::<()>());
        assert_eq!(group.finish(SOON).await, ["stuck-a", "stuck-b"]);
        assert!(TaskGroup::new().finish(SOON).await.is_empty());
    }

    #[tokio::test]
    async fn a_dropped_group_aborts_its_tasks() {
        let (held, dropped) = oneshot::channel::<()>();
        let mut group = TaskGroup::new();
        group.spawn("holder", async move {
            let _held = held;
            std::future::pending::<()>().await;
        });
        drop(group);
        assert!(dropped.await.is_err(), "the task's values are dropped");
    }

    #[tokio::test]
    async fn a_pool_is_bounded_and_empties_itself() {
        let pool = TaskPool::new("test", 2);
        let (first, wait) = oneshot::channel::<()>();
        let waiting = |wait: oneshot::Receiver<()>| async move { drop(wait.await) };
        pool.spawn(waiting(wait)).expect("room");
        let slot = pool.reserve().expect("room");
        assert_eq!(pool.spawn(async {}), Err(PoolFull));
        drop(slot);
        pool.spawn(async {}).expect("room again");
        assert!(!pool.wait_idle(Duration::from_millis(1)).await);
        drop(first);
        assert!(pool.wait_idle(SOON).await);
        assert_eq!(pool.active(), 0);
        pool.spawn(async {}).expect("goes on after waiting");
    }

    #[tokio::test]
    async fn a_panic_in_a_pool_is_counted_and_frees_its_slot() {
        let pool = TaskPool::new("test", 1);
        pool.spawn(async { panic!("on purpose") }).expect("room");
        let slot = tokio::time::timeout(SOON, pool.reserve_wait())
            .await
            .expect("freed");
        assert_eq!(pool.panics(), 1);
        let (done, wait) = oneshot::channel();
        slot.spawn(async move { done.send(1).expect("the receiver waits") });
        assert_eq!(wait.await, Ok(1));
    }

    #[tokio::test]
    async fn aborting_a_pool_drops_its_tasks_and_takes_no_more() {
        let pool = TaskPool::new("test", 8);
        for _ in 0..3 {
            pool.spawn(std::future::pending()).expect("room");
        }
        assert_eq!(pool.active(), 3);
        pool.abort_all();
        assert!(pool.wait_idle(SOON).await);
        assert_eq!(pool.spawn(async {}), Err(PoolFull));
    }
}
