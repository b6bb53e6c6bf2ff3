//! Takes finished lines to stderr on a thread of its own, so that nobody who logs waits for whoever reads them: a
//! process that carries the connections of others must not stand still because a terminal is stopped or a pipe is full.
//!
//! Lines are gathered for a moment and written together. What waits is bounded; lines beyond that are lost, counted,
//! and the next line that is written says how many. Warnings, errors and the copy of the audit trail do not wait for
//! company, and some room is theirs alone.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use tracing::{Level, Metadata};
use tracing_subscriber::fmt::MakeWriter;

use super::{AUDIT, LogFormat};

/// Bytes that may wait: some ten thousand lines.
const MOST: usize = 4 * 1024 * 1024;
/// Those of them that only urgent lines may fill.
const RESERVE: usize = MOST / 4;
/// How long a line waits for others.
const GATHER: Duration = Duration::from_millis(10);
/// How long the end of the process waits for whoever reads the lines.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Lines of this process that were lost.
static LOST: AtomicU64 = AtomicU64::new(0);

/// How many lines of the log this process has not been able to write.
#[must_use]
pub fn lines_lost() -> u64 {
    LOST.load(Ordering::Relaxed)
}

/// Hands lines to the thread. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct LineWriter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the thread.
    work: Condvar,
    /// The thread has written all that there was.
    done: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Since the last line that said so.
    lost: u64,
    urgent: bool,
    writing: bool,
    ended: bool,
}

/// Logging of a process. Keep it until the end: dropping it writes what still waits, for at most a second.
#[derive(Debug)]
#[must_use = "lines that wait when the process ends are lost otherwise"]
pub struct Logging(pub(super) Option<LineWriter>);

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(writer) = &self.0 {
            writer.finish(LAST_WORDS);
        }
    }
}

impl LineWriter {
    /// Starts the thread; it ends with [`Logging`].
    ///
    /// # Errors
    /// The system gives no thread.
    pub(super) fn start(to: impl Write + Send + 'static, format: LogFormat) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            done: Condvar::new(),
        });
        let of_thread = Arc::clone(&shared);
        thread::Builder::new()
            .name("log".to_owned())
            .spawn(move || of_thread.run(to, format))?;
        Ok(Self(shared))
    }

    fn put(&self, line: &[u8], urgent: bool) {
        let mut state = self.0.lock();
        let most = if urgent { MOST } else { MOST - RESERVE };
        if state.ended || state.lines.len() + line.len() > most {
            state.lost += 1;
            LOST.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let wake = state.lines.is_empty() || (urgent && !state.urgent);
        state.urgent |= urgent;
        state.lines.extend_from_slice(line);
        drop(state);
        if wake {
            self.0.work.notify_one();
        }
    }

    /// Writes what waits and what comes meanwhile, and nothing that comes later.
    fn finish(&self, limit: Duration) {
        let mut state = self.0.lock();
        state.urgent = true;
        self.0.work.notify_one();
        let waits = |state: &mut State| state.writing || !state.lines.is_empty();
        let (mut state, _) = self
            .0
            .done
            .wait_timeout_while(state, limit, waits)
            .unwrap_or_else(PoisonError::into_inner);
        state.ended = true;
        self.0.work.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut to: impl Write, format: LogFormat) {
        // Used by turns with the one that is filled.
        let mut lines = Vec::new();
        while let Some(lost) = self.take(&mut lines) {
            if lost > 0 {
                lines.extend_from_slice(loss(lost, format).as_bytes());
            }
            let failed = to.write_all(&lines).and_then(|()| to.flush()).is_err();
            let count = lines.iter().filter(|byte| **byte == b'\n').count() as u64;
            lines.clear();
            lines.shrink_to(64 * 1024);
            let mut state = self.lock();
            if failed {
                // Some may have been written; nobody can say.
                state.lost += count;
                LOST.fetch_add(count, Ordering::Relaxed);
            }
            state.writing = false;
            drop(state);
            self.done.notify_all();
        }
    }

    /// Waits for lines and takes them; answers how many were lost meanwhile. `None` at the end.
    fn take(&self, lines: &mut Vec<u8>) -> Option<u64> {
        let idle = |state: &mut State| state.lines.is_empty() && !state.ended;
        let state = self
            .work
            .wait_while(self.lock(), idle)
            .unwrap_or_else(PoisonError::into_inner);
        let alone = |state: &mut State| !state.urgent && !state.ended;
        let (mut state, _) = self
            .work
            .wait_timeout_while(state, GATHER, alone)
            .unwrap_or_else(PoisonError::into_inner);
        if state.lines.is_empty() {
            return None;
        }
        std::mem::swap(&mut state.lines, lines);
        state.urgent = false;
        state.writing = true;
        Some(std::mem::take(&mut state.lost))
    }
}

/// The line that tells of lost ones. It has no time: it stands where they would be.
fn loss(lost: u64, format: LogFormat) -> String {
    let text = "lines of the log are lost here: they came faster than they are read";
    match format {
        LogFormat::Text => format!("WARN log: {text} lost={lost}\n"),
        LogFormat::Json => {
            format!(
                "{{\"level\":\"WARN\",\"message\":\"{text}\",\"lost\":{lost},\"target\":\"log\"}}\n"
            )
        }
    }
}

impl<'a> MakeWriter<'a> for LineWriter {
    type Writer = Line<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        Line {
            writer: self,
            urgent: false,
        }
    }

    fn make_writer_for(&'a self, event: &Metadata<'_>) -> Self::Writer {
        Line {
            writer: self,
            urgent: *event.level() <= Level::WARN || event.target() == AUDIT,
        }
    }
}

/// Takes one line, as the formatter gives it.
#[derive(Debug)]
pub(super) struct Line<'a> {
    writer: &'a LineWriter,
    urgent: bool,
}

impl Write for Line<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.writer.put(line, self.urgent);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Instant;

    use super::*;

    /// Writes one block for each permission.
    struct Reader {
        asks: SyncSender<()>,
        may: Receiver<()>,
        blocks: SyncSender<Vec<u8>>,
    }

    impl Write for Reader {
        fn write(&mut self, block: &[u8]) -> io::Result<usize> {
            self.asks.send(()).map_err(io::Error::other)?;
            self.may.recv().map_err(io::Error::other)?;
            self.blocks.send(block.to_vec()).map_err(io::Error::other)?;
            Ok(block.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    struct Rig {
        writer: LineWriter,
        /// A block is about to be written.
        asked: Receiver<()>,
        permit: SyncSender<()>,
        written: Receiver<Vec<u8>>,
    }

    fn start(format: LogFormat) -> Rig {
        let (asks, asked) = sync_channel(10);
        let (permit, may) = sync_channel(10);
        let (blocks, written) = sync_channel(10);
        let reader = Reader { asks, may, blocks };
        Rig {
            writer: LineWriter::start(reader, format).unwrap(),
            asked,
            permit,
            written,
        }
    }

    const PATIENCE: Duration = Duration::from_secs(10);

    fn next(written: &Receiver<Vec<u8>>) -> String {
        String::from_utf8(written.recv_timeout(PATIENCE).unwrap()).unwrap()
    }

    #[test]
    fn lines_come_out_in_order_and_the_end_waits_for_them() {
        let rig = start(LogFormat::Text);
        let writer = rig.writer;
        for _ in 0..3 {
            rig.permit.send(()).unwrap();
        }
        writer.put(b"first\n", true);
        assert_eq!(next(&rig.written), "first\n");
        writer.put(b"second\n", false);
        writer.put(b"third\n", false);
        drop(Logging(Some(writer.clone())));
        let rest: String = rig
            .written
            .try_iter()
            .map(|b| String::from_utf8(b).unwrap())
            .collect();
        assert_eq!(rest, "second\nthird\n");
        // Nobody writes it any more, and nobody waits for it.
        writer.put(b"late\n", true);
        let start = Instant::now();
        drop(Logging(Some(writer)));
        assert!(start.elapsed() < LAST_WORDS);
    }

    #[test]
    fn who_logs_does_not_wait_for_a_reader_that_stopped() {
        let rig = start(LogFormat::Json);
        let line = [vec![b'x'; 999], vec![b'\n']].concat();
        let start = Instant::now();
        rig.writer.put(b"begin\n", true);
        rig.asked.recv_timeout(PATIENCE).unwrap();
        for _ in 0..10_000 {
            rig.writer.put(&line, false);
        }
        rig.writer.put(b"urgent\n", true);
        // The end does not wait for ever either.
        rig.writer.finish(Duration::from_millis(50));
        assert!(start.elapsed() < PATIENCE);
        // When it goes on, it says what is missing.
        rig.permit.send(()).unwrap();
        assert_eq!(next(&rig.written), "begin\n");
        rig.permit.send(()).unwrap();
        let rest = next(&rig.written);
        let (kept, told) = rest.trim_end().rsplit_once('\n').unwrap();
        assert_eq!(kept.lines().last(), Some("urgent"));
        let told: serde_json::Value = serde_json::from_str(told).unwrap();
        let lost = 10_000 - (MOST - RESERVE) as u64 / 1000;
        assert_eq!(
            (&told["level"], told["lost"].as_u64()),
            (&"WARN".into(), Some(lost))
        );
        assert!(lines_lost() >= lost);
    }
}
