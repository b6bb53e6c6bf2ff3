//! On how many threads a process carries connections, and the runtime that follows from it.
//!
//! One thread runs everything by turns on the thread it has; several share the tasks among them. With one thread
//! a small request costs a quarter to a third less, because nothing is handed from thread to thread and no thread
//! has to be woken by another one; it carries about 1 GiB/s. The figures are in
//! `docs/decisions/0004-runtime-layout.md`.

use std::io;
use std::num::NonZeroUsize;

use tokio::runtime::{Builder, Runtime};

/// Up to so many processors, one thread is the default: the other one is for the system and other processes.
const FEW_PROCESSORS: usize = 2;

/// The flag; flatten it into those of a daemon.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::Args)]
pub struct Threads {
    /// Threads that carry connections, 1 to 1024 [default: 1 with up to 2 processors, else one per processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub worker_threads: Option<u16>,
}

impl Threads {
    /// How many threads that is, on a machine with so many processors.
    #[must_use]
    fn count(self, processors: usize) -> usize {
        match self.worker_threads {
            Some(count) => usize::from(count).max(1),
            None if processors <= FEW_PROCESSORS => 1,
            None => processors,
        }
    }

    /// The runtime with these threads. Nothing in it may block: with one thread, that stops everything.
    ///
    /// # Errors
    /// The system gives no threads or descriptors.
    pub fn runtime(self) -> io::Result<Runtime> {
        let processors = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let mut builder = match self.count(processors) {
            1 => Builder::new_current_thread(),
            count => {
                let mut builder = Builder::new_multi_thread();
                builder.worker_threads(count);
                builder
            }
        };
        builder.enable_all().build()
    }
}

#[cfg(test)]
mod tests {
    use tokio::runtime::RuntimeFlavor;

    use super::*;

    #[test]
    fn few_processors_get_one_thread_and_a_number_given_counts() {
        let default = Threads::default();
        assert_eq!([1, 2, 3, 64].map(|n| default.count(n)), [1, 1, 3, 64]);
        let flavor = |count| {
            let threads = Threads {
                worker_threads: Some(count),
            };
            let runtime = threads.runtime().expect("a runtime");
            runtime.block_on(async { tokio::runtime::Handle::current().runtime_flavor() })
        };
        assert_eq!(flavor(1), RuntimeFlavor::CurrentThread);
        assert_eq!(flavor(2), RuntimeFlavor::MultiThread);
    }
}
