//! What processes spend, as the system counts it.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};

/// One process that is watched, with those that it has started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) name: &'static str,
    pub(crate) id: u32,
}

impl Process {
    /// Its id, and those of its descendants now.
    pub(crate) fn tree(self) -> Result<Vec<u32>> {
        let mut tree = BTreeSet::from([self.id]);
        let parents = parents()?;
        // Ids wrap around, so a child may have a smaller one than its parent.
        loop {
            let children = parents.iter().filter(|(_, parent)| tree.contains(parent));
            let children: Vec<u32> = children.map(|(child, _)| *child).collect();
            let before = tree.len();
            tree.extend(children);
            if tree.len() == before {
                return Ok(tree.into_iter().collect());
            }
        }
    }
}

/// Every process and its parent.
fn parents() -> Result<Vec<(u32, u32)>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list of processes")? {
        let path = entry.context("list of processes")?.path();
        let Some(id) = path
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok())
        else {
            continue;
        };
        // It may have ended since.
        let stat = std::fs::read_to_string(path.join("stat")).unwrap_or_default();
        // The name before may contain anything; after it come state and parent.
        let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
        if let Some(parent) = after
            .split_whitespace()
            .nth(1)
            .and_then(|parent| parent.parse().ok())
        {
            all.push((id, parent));
        }
    }
    Ok(all)
}

/// What one process has spent.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) name: &'static str,
    /// User and system time in seconds.
    pub(crate) cpu: f64,
    /// How often a thread of it went to sleep, and so had to be woken.
    pub(crate) wakeups: f64,
}

/// What some processes spend from a moment on.
#[derive(Debug)]
pub(crate) struct Meter {
    processes: Vec<(Process, Vec<u32>)>,
    before: Vec<Reading>,
}

impl Meter {
    pub(crate) fn start(processes: &[Process]) -> Result<Self> {
        let processes = processes
            .iter()
            .map(|process| Ok((*process, process.tree()?)))
            .collect::<Result<Vec<_>>>()?;
        let before = processes
            .iter()
            .map(|(_, tree)| Reading::of(tree))
            .collect::<Result<_>>()?;
        Ok(Self { processes, before })
    }

    /// What each process has spent since the start.
    pub(crate) fn spent(&self) -> Result<Vec<Spent>> {
        self.processes
            .iter()
            .zip(&self.before)
            .map(|((process, tree), before)| {
                let now = Reading::of(tree)?;
                let fine = now.of_threads - before.of_threads;
                let coarse = now.of_processes - before.of_processes;
                Ok(Spent {
                    name: process.name,
                    // Threads that have ended are in the coarse figure only.
                    cpu: if coarse > fine + TICKS { coarse } else { fine },
                    wakeups: now.sleeps - before.sleeps,
                })
            })
            .collect()
    }
}

/// How far the coarse figure of a process may be off, in seconds.
const TICKS: f64 = 0.03;

/// Clock ticks a second in /proc; the same on every Linux.
const TICKS_PER_SECOND: f64 = 100.0;

/// What some processes have spent since they began.
#[derive(Debug, Clone, Copy, Default)]
struct Reading {
    /// CPU seconds of the threads that live, to the nanosecond.
    of_threads: f64,
    /// CPU seconds with threads that have ended, in clock ticks.
    of_processes: f64,
    /// How often threads that live have gone to sleep.
    sleeps: f64,
}

impl Reading {
    fn of(tree: &[u32]) -> Result<Self> {
        let mut sum = Self::default();
        for id in tree {
            let stat = std::fs::read_to_string(format!("/proc/{id}/stat"))
                .with_context(|| format!("process {id}"))?;
            // The name may contain anything; the times are the 12th and 13th field behind it.
            let after = stat.rsplit_once(')').map_or("", |(_, after)| after);
            let ticks = after.split_whitespace().skip(11).take(2);
            let ticks: f64 = ticks.filter_map(|field| field.parse::<f64>().ok()).sum();
            sum.of_processes += ticks / TICKS_PER_SECOND;
            let threads = std::fs::read_dir(format!("/proc/{id}/task"))
                .with_context(|| format!("threads of process {id}"))?;
            for thread in threads {
                let path = thread.context("threads of a process")?.path();
                // A thread may end between the listing and the reading.
                let Ok(text) = std::fs::read_to_string(path.join("schedstat")) else {
                    continue;
                };
                let running = text.split_whitespace().next().context("schedstat")?;
                sum.of_threads += running.parse::<f64>().context("schedstat")? / 1e9;
                let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
                sum.sleeps += field(&status, "voluntary_ctxt_switches:").unwrap_or(0.0);
            }
        }
        Ok(sum)
    }
}

/// CPU seconds of the calling thread.
pub(crate) fn own_cpu_seconds() -> Result<f64> {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").context("schedstat")?;
    let running = text.split_whitespace().next().context("schedstat")?;
    Ok(running.parse::<f64>().context("schedstat")? / 1e9)
}

/// The number behind a word at the start of a line.
fn field(text: &str, word: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(word))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Memory in KiB that is the process' and its children's own (proportional set size).
pub(crate) fn memory_kib(process: Process) -> Result<f64> {
    let mut sum = 0.0;
    for id in process.tree()? {
        let rollup = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))
            .with_context(|| format!("memory of {}", process.name))?;
        sum += field(&rollup, "Pss:").context("Pss")?;
    }
    Ok(sum)
}

/// Memory in KiB that the process has resident now.
pub(crate) fn resident_kib(process: Process) -> Result<f64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.id))
        .with_context(|| format!("memory of {}", process.name))?;
    field(&status, "VmRSS:").context("VmRSS")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_in_its_own_tree_and_spends() {
        let own = Process {
            name: "own",
            id: std::process::id(),
        };
        assert!(own.tree().is_ok_and(|tree| tree.contains(&own.id)));
        assert!(memory_kib(own).is_ok_and(|kib| kib > 100.0));
        assert!(resident_kib(own).is_ok_and(|kib| kib > 100.0));
        let spent = Meter::start(&[own]).and_then(|meter| meter.spent());
        assert!(spent.is_ok_and(|spent| spent.len() == 1));
    }
}
