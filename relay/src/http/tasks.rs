//! What runs beside the served connection, inside the same task: connections to the far side, the requests of
//! HTTP/2, the bytes after an upgrade. Whoever drops [`Tasks`] drops all of them at once, so that nothing of a
//! user's connection outlives it.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use futures_util::stream::{FuturesUnordered, Stream as _};

type Task = Pin<Box<dyn Future<Output = ()> + Send>>;

/// The owner: it must be polled for the tasks to run.
pub(super) struct Tasks {
    running: FuturesUnordered<Task>,
    queue: Spawner,
}

/// Adds tasks.
#[derive(Clone)]
pub(super) struct Spawner(Arc<Mutex<Queue>>);

#[derive(Default)]
struct Queue {
    new: Vec<Task>,
    waker: Option<Waker>,
    closed: bool,
}

impl Tasks {
    pub(super) fn new() -> Self {
        Self {
            running: FuturesUnordered::new(),
            queue: Spawner(Arc::default()),
        }
    }

    pub(super) fn spawner(&self) -> Spawner {
        self.queue.clone()
    }

    /// Runs what can run; ready while there is nothing left.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let new = {
                let mut queue = self.queue.lock();
                if !queue
                    .waker
                    .as_ref()
                    .is_some_and(|waker| waker.will_wake(cx.waker()))
                {
                    queue.waker = Some(cx.waker().clone());
                }
                std::mem::take(&mut queue.new)
            };
            let added = !new.is_empty();
            self.running.extend(new);
            match Pin::new(&mut self.running).poll_next(cx) {
                Poll::Ready(Some(())) => {}
                Poll::Ready(None) if !added => return Poll::Ready(()),
                Poll::Ready(None) => {}
                Poll::Pending if self.queue.lock().new.is_empty() => return Poll::Pending,
                Poll::Pending => {}
            }
        }
    }
}

impl Drop for Tasks {
    fn drop(&mut self) {
        let new = {
            let mut queue = self.queue.lock();
            queue.closed = true;
            std::mem::take(&mut queue.new)
        };
        drop(new);
    }
}

impl Spawner {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut queue = self.lock();
        if queue.closed {
            return;
        }
        queue.new.push(Box::pin(task));
        if let Some(waker) = &queue.waker {
            waker.wake_by_ref();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<F: Future<Output = ()> + Send + 'static> hyper::rt::Executor<F> for Spawner {
    fn execute(&self, task: F) {
        self.spawn(task);
    }
}

impl fmt::Debug for Spawner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Spawner").finish_non_exhaustive()
    }
}
