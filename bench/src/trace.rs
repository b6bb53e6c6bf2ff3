//! Counts the system calls of processes with strace. It slows them down several times, so no other
//! figure is taken meanwhile.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_tests::{Launch, PATIENCE, debian, eventually};
use tempfile::TempDir;

use crate::account::Process;

/// strace, attached.
pub(crate) struct Trace {
    tracer: sg_tests::Process,
    folder: TempDir,
}

const TABLE: &str = "table";

impl Trace {
    /// Attaches to the processes and all their threads.
    ///
    /// # Errors
    /// strace is not installed, or may not attach.
    pub(crate) async fn start(processes: &[Process]) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sg-bench-trace-")
            .tempdir()
            .context("folder")?;
        let mut launch = Launch::new("strace", debian("strace")?, folder.path())
            .arg("-f")
            .arg("-c")
            .option("-U", "calls,name")
            .option("-o", folder.path().join(TABLE));
        let mut count = 0;
        for process in processes {
            for id in process.tree()? {
                launch = launch.option("-p", id.to_string());
                count += 1;
            }
        }
        let mut tracer = launch.start()?;
        eventually(PATIENCE, "strace is attached", async || {
            tracer.check_running()?;
            let output = tracer.output()?;
            // Once for each process, with all its threads.
            ensure!(output.matches("attached").count() >= count, "{output}");
            Ok(())
        })
        .await?;
        Ok(Self { tracer, folder })
    }

    /// Detaches; answers each system call with its number, most first.
    pub(crate) async fn finish(mut self) -> Result<Vec<(String, f64)>> {
        self.tracer.interrupt()?;
        self.tracer.ended(Duration::from_secs(10)).await?;
        let table = std::fs::read_to_string(self.folder.path().join(TABLE))
            .context("the table of strace")?;
        Ok(parse(&table))
    }
}

/// Reads lines of a number and a name.
fn parse(table: &str) -> Vec<(String, f64)> {
    let mut calls: Vec<(String, f64)> = table
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let count = words.next()?.parse().ok()?;
            let name = words.next().filter(|name| *name != "total")?;
            Some((name.to_owned(), count))
        })
        .collect();
    calls.sort_by(|a, b| b.1.total_cmp(&a.1));
    calls
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_strace_is_read() {
        let table = "    calls syscall\n--------- -------\n       12 read\n      300 epoll_wait\n--------- -------\n      312 total\n";
        let calls = parse(table);
        assert_eq!(calls.len(), 2);
        assert_eq!(calls[0].0, "epoll_wait");
    }
}
