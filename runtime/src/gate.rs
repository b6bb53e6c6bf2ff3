//! Polls what is seldom ready only when it has asked for it.
//!
//! A task that waits for several things is polled as a whole whenever one of them happens, and asking each of
//! the others again costs a lock or two. A [`Gate`] gives one part of the task a waker of its own: unless that
//! was called, the part need not be asked. [`race`] is the ready-made form for "this, unless that ends it".

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

/// Guards one part of a task. Each gate belongs to one task at a time.
#[derive(Debug)]
pub struct Gate {
    bell: Arc<Bell>,
    /// The task's waker as the bell has it.
    task: Option<Waker>,
}

#[derive(Debug)]
struct Bell {
    rung: AtomicBool,
    task: Mutex<Option<Waker>>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            bell: Arc::new(Bell {
                // Whatever is behind the gate has to be polled once.
                rung: AtomicBool::new(true),
                task: Mutex::new(None),
            }),
            task: None,
        }
    }
}

impl Gate {
    /// A gate that is open once.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The waker to poll with, if what is behind the gate must be polled now: for the first time, or because
    /// it has called that waker since the last time. It must then be polled until it is pending.
    pub fn open(&mut self, cx: &Context<'_>) -> Option<Waker> {
        if !self.task.as_ref().is_some_and(|t| t.will_wake(cx.waker())) {
            self.task = Some(cx.waker().clone());
            // Before the look at the bell, so that whoever rings after it wakes the present task.
            self.bell.set_task(self.task.clone());
        }
        let rung =
            self.bell.rung.load(Ordering::Acquire) && self.bell.rung.swap(false, Ordering::AcqRel);
        rung.then(|| Waker::from(Arc::clone(&self.bell)))
    }
}

impl Bell {
    fn set_task(&self, task: Option<Waker>) {
        let old = std::mem::replace(
            &mut *self.task.lock().unwrap_or_else(PoisonError::into_inner),
            task,
        );
        // Outside of the lock: a waker may run anything when it is dropped.
        drop(old);
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        let task = {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.clone()
        };
        if let Some(task) = task {
            task.wake();
        }
    }
}

/// Which of two futures was first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum First<M, S> {
    /// The main one.
    Main(M),
    /// The seldom one.
    Seldom(S),
}

/// Waits for `main`, unless `seldom` is ready first, which comes first also when both are. `main` is polled at
/// every wake-up, `seldom` only at its own.
pub fn race<M, S>(mut main: M, mut seldom: S) -> impl Future<Output = First<M::Output, S::Output>>
where
    M: Future + Unpin,
    S: Future + Unpin,
{
    let mut gate = Gate::new();
    poll_fn(move |cx| {
        if let Some(waker) = gate.open(cx)
            && let Poll::Ready(output) =
                Pin::new(&mut seldom).poll(&mut Context::from_waker(&waker))
        {
            return Poll::Ready(First::Seldom(output));
        }
        Pin::new(&mut main).poll(cx).map(First::Main)
    })
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::oneshot;

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    #[test]
    fn a_gate_opens_once_and_then_only_when_it_was_rung() {
        let mut gate = Gate::new();
        let (first, second) = (Arc::new(Count::default()), Arc::new(Count::default()));
        let wakers = [
            Waker::from(Arc::clone(&first)),
            Waker::from(Arc::clone(&second)),
        ];
        let bell = gate
            .open(&Context::from_waker(&wakers[0]))
            .expect("open at first");
        assert!(gate.open(&Context::from_waker(&wakers[0])).is_none());
        bell.wake_by_ref();
        assert_eq!(first.0.load(Ordering::Relaxed), 1);
        assert!(gate.open(&Context::from_waker(&wakers[0])).is_some());
        // The task was polled from elsewhere meanwhile: its new waker is the one that counts.
        assert!(gate.open(&Context::from_waker(&wakers[1])).is_none());
        bell.wake();
        let counts = [&first, &second].map(|count| count.0.load(Ordering::Relaxed));
        assert_eq!(counts, [1, 1]);
        assert!(gate.open(&Context::from_waker(&wakers[1])).is_some());
    }

    #[tokio::test]
    async fn the_seldom_one_ends_the_main_one_and_is_not_polled_in_between() {
        let polls = AtomicUsize::new(0);
        let (end, ended) = oneshot::channel();
        let mut ended = pin!(ended);
        let seldom = poll_fn(|cx| {
            polls.fetch_add(1, Ordering::Relaxed);
            ended.as_mut().poll(cx)
        });
        let main = pin!(async {
            for _ in 0..10 {
                tokio::task::yield_now().await;
            }
            end.send(7).expect("it still waits");
            std::future::pending::<()>().await;
        });
        assert_eq!(race(main, seldom).await, First::Seldom(Ok(7)));
        assert_eq!(polls.load(Ordering::Relaxed), 2);
    }

    #[tokio::test]
    async fn the_main_one_wins_when_nothing_ends_it() {
        let first = race(std::future::ready(1), std::future::pending::<()>()).await;
        assert_eq!(first, First::Main(1));
        let both = race(std::future::ready(1), std::future::ready(2)).await;
        assert_eq!(both, First::Seldom(2));
    }
}
