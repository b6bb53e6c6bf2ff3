//! The end of a process: the first SIGTERM or SIGINT means drain, the deadline or a second signal
//! means now.
//!
//! Stages: running → draining ([`Shutdown::draining`]) → forced ([`Shutdown::forced`]). Parts hold
//! a clone of [`Shutdown`] (or of its tokens), stop taking new work when draining begins, finish
//! what they have, and drop what is left when forced.

use std::future::Future;
use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;
pub use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// Handle to the stages of this process' end. Clones share them.
#[derive(Debug, Clone)]
pub struct Shutdown {
    stages: Arc<Stages>,
    /// The task that listens to signals and to the deadline; ends with the last clone.
    _listener: Option<Arc<AbortOnDropHandle<()>>>,
}

#[derive(Debug)]
struct Stages {
    draining: CancellationToken,
    forced: CancellationToken,
    timeout: Duration,
    deadline: OnceLock<Instant>,
}

impl Shutdown {
    /// Listens to SIGTERM and SIGINT from now on. `drain_timeout` is the time between the first
    /// signal and [`Shutdown::forced`], unless a second signal comes before.
    ///
    /// # Errors
    /// The system does not let the process listen to signals.
    pub fn listen(drain_timeout: Duration) -> io::Result<Self> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signals = async move {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            tracing::info!(timeout = ?drain_timeout, "signal received: draining; another one ends it now");
            (terminate, interrupt)
        };
        Ok(Self::with_signals(
            drain_timeout,
            signals,
            |(mut terminate, mut interrupt)| async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
                tracing::warn!("second signal received: ending now");
            },
        ))
    }

    /// Without signals: for tests and for a component that is drained on its own. It goes on by
    /// [`Shutdown::begin`]; the deadline is then kept by whoever awaits [`Shutdown::wait_forced`].
    #[must_use]
    pub fn manual(drain_timeout: Duration) -> Self {
        let stages = Stages {
            draining: CancellationToken::new(),
            forced: CancellationToken::new(),
            timeout: drain_timeout,
            deadline: OnceLock::new(),
        };
        Self {
            stages: Arc::new(stages),
            _listener: None,
        }
    }

    /// Begins draining. Later calls do nothing.
    pub fn begin(&self) {
        self.stages
            .deadline
            .get_or_init(|| Instant::now() + self.stages.timeout);
        self.stages.draining.cancel();
    }

    /// Ends the drain now.
    pub fn force(&self) {
        self.begin();
        self.stages.forced.cancel();
    }

    /// Cancelled when draining begins: take no new work.
    #[must_use]
    pub fn draining(&self) -> CancellationToken {
        self.stages.draining.clone()
    }

    /// Cancelled when the time is over: drop what is left. For a [`Shutdown::manual`] nobody but
    /// [`Shutdown::wait_forced`] watches the deadline.
    #[must_use]
    pub fn forced(&self) -> CancellationToken {
        self.stages.forced.clone()
    }

    /// True once draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.stages.draining.is_cancelled()
    }

    /// When the drain ends by itself; `None` before it begins.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        self.stages.deadline.get().copied()
    }

    /// How long is left for draining: everything before it begins, nothing once forced.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        match self.deadline() {
            _ if self.stages.forced.is_cancelled() => Duration::ZERO,
            None => self.stages.timeout,
            Some(deadline) => deadline.saturating_duration_since(Instant::now()),
        }
    }

    /// Waits until draining begins.
    pub async fn wait_draining(&self) {
        self.stages.draining.cancelled().await;
    }

    /// Waits until the drain's time is over, or it was forced.
    pub async fn wait_forced(&self) {
        self.wait_draining().await;
        let deadline = self.deadline().unwrap_or_else(Instant::now);
        tokio::select! {
            biased;
            () = self.stages.forced.cancelled() => {}
            () = tokio::time::sleep_until(deadline) => self.stages.forced.cancel(),
        }
    }

    /// Runs `future` until it is done (`Some`) or the process is forced to end (`None`).
    pub async fn run<F: Future>(&self, future: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            output = future => Some(output),
            () = self.wait_forced() => None,
        }
    }

    fn with_signals<T, First, Second>(
        drain_timeout: Duration,
        first: First,
        second: impl FnOnce(T) -> Second + Send + 'static,
    ) -> Self
    where
        T: Send + 'static,
        First: Future<Output = T> + Send + 'static,
        Second: Future<Output = ()> + Send + 'static,
    {
        let mut shutdown = Self::manual(drain_timeout);
        let stages = shutdown.clone();
        #[allow(clippy::disallowed_methods, reason = "owned by the returned handle")]
        let task = tokio::spawn(async move {
            let kept = first.await;
            stages.begin();
            tokio::select! {
                biased;
                () = second(kept) => stages.force(),
                () = stages.wait_forced() => {}
            }
        });
        shutdown._listener = Some(Arc::new(AbortOnDropHandle::new(task)));
        shutdown
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use rustix::process::{Signal, getpid, kill_process};

    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_at_its_deadline() {
        let shutdown = Shutdown::manual(TIMEOUT);
        assert_eq!((shutdown.remaining(), shutdown.deadline()), (TIMEOUT, None));
        shutdown.begin();
        let begin = Instant::now();
        shutdown.begin();
        assert!(shutdown.is_draining() && !shutdown.forced().is_cancelled());
        assert_eq!(shutdown.run(std::future::pending::<()>()).await, None);
        assert!(begin.elapsed() >= TIMEOUT);
        assert!(shutdown.forced().is_cancelled());
        assert_eq!(shutdown.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_ends_early_when_the_work_is_done_or_by_force() {
        let shutdown = Shutdown::manual(TIMEOUT);
        assert_eq!(shutdown.run(async { 7 }).await, Some(7));
        let begin = Instant::now();
        shutdown.force();
        assert!(shutdown.is_draining());
        assert_eq!(shutdown.run(std::future::pending::<()>()).await, None);
        assert!(begin.elapsed() < TIMEOUT);
    }

    #[tokio::test]
    async fn the_first_signal_drains_and_the_second_forces() {
        let shutdown = Shutdown::listen(TIMEOUT).unwrap();
        let other = shutdown.clone();
        assert!(!shutdown.is_draining());
        kill_process(getpid(), Signal::TERM).unwrap();
        tokio::time::timeout(TIMEOUT / 3, other.wait_draining())
            .await
            .unwrap();
        assert!(!shutdown.forced().is_cancelled());
        kill_process(getpid(), Signal::INT).unwrap();
        tokio::time::timeout(TIMEOUT / 3, other.forced().cancelled())
            .await
            .unwrap();
    }
}
