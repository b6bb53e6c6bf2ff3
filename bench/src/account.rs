//! What the processes of the product spend, as the system counts it.

use anyhow::{Context as _, Result};

/// One process that is watched.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) id: u32,
}

/// CPU time of some processes since a moment.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Vec<Process>,
    before: Vec<f64>,
}

impl Meter {
    pub(crate) fn start(processes: &[Process]) -> Result<Self> {
        let before = processes
            .iter()
            .map(|process| cpu_seconds(process.id))
            .collect::<Result<_>>()?;
        Ok(Self {
            processes: processes.to_vec(),
            before,
        })
    }

    /// CPU seconds of each process since the start.
    pub(crate) fn spent(&self) -> Result<Vec<(&'static str, f64)>> {
        self.processes
            .iter()
            .zip(&self.before)
            .map(|(process, before)| Ok((process.name, cpu_seconds(process.id)? - before)))
            .collect()
    }
}

/// User and system time of all threads, to the nanosecond; a thread that has ended is not counted,
/// which the programs' worker threads do not do under load.
fn cpu_seconds(id: u32) -> Result<f64> {
    let threads = std::fs::read_dir(format!("/proc/{id}/task")).context("threads of a process")?;
    let mut nanoseconds = 0.0;
    for thread in threads {
        let path = thread
            .context("threads of a process")?
            .path()
            .join("schedstat");
        // A thread may end between the listing and the reading.
        let Ok(text) = std::fs::read_to_string(path) else {
            continue;
        };
        let running = text.split_whitespace().next().context("schedstat")?;
        nanoseconds += running.parse::<f64>().context("schedstat")?;
    }
    Ok(nanoseconds / 1e9)
}

/// Memory in KiB that is the process' own (proportional set size).
pub(crate) fn memory_kib(id: u32) -> Result<f64> {
    let rollup = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup")).context("memory")?;
    let line = rollup
        .lines()
        .find(|line| line.starts_with("Pss:"))
        .context("Pss")?;
    let number = line.split_whitespace().nth(1).context("Pss")?;
    number.parse().context("Pss")
}
