//! Child processes: started with their log in a file, watched by one task each, ended together.
//!
//! No child is ever left: a task owns it until it has been reaped, and a dropped task kills it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::failure::Failure;
use crate::output;

/// How long children may take to end; their own limit for draining is a third of it.
const GRACE: Duration = Duration::from_millis(1500);
/// How often a ready-file is looked for.
const LOOK: Duration = Duration::from_millis(5);
/// Lines of a log that a report shows.
const TAIL: usize = 8;

/// A program to start.
pub(super) struct Program {
    pub(super) name: &'static str,
    pub(super) arguments: Vec<String>,
    pub(super) log: PathBuf,
    pub(super) ready_file: PathBuf,
}

/// A child that ended without being asked to.
#[derive(Debug)]
pub(super) struct Ended {
    pub(super) name: &'static str,
    pub(super) how: String,
    log: PathBuf,
}

/// All children of this run.
pub(super) struct Family {
    verbose: bool,
    stop: watch::Sender<Stop>,
    ends: mpsc::Sender<Ended>,
    tasks: JoinSet<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd)]
enum Stop {
    Run,
    Drain,
    Kill,
}

impl Family {
    /// A family without members, and where the unexpected ends of its members are told.
    pub(super) fn new(verbose: bool) -> (Self, mpsc::Receiver<Ended>) {
        let (ends, told) = mpsc::channel(8);
        (
            Self {
                verbose,
                stop: watch::Sender::new(Stop::Run),
                ends,
                tasks: JoinSet::new(),
            },
            told,
        )
    }

    /// Starts a program and waits for its ready-file; answers its process id and what it wrote there.
    pub(super) async fn start(
        &mut self,
        program: Program,
    ) -> Result<(u32, serde_json::Value), Failure> {
        let Program {
            name,
            arguments,
            log,
            ready_file,
        } = program;
        remove_stale(&ready_file)?;
        let path = sibling(name)?;
        let mut child = self.spawn(name, &path, &arguments, &log)?;
        let pid = child.id().unwrap_or_default();
        if let Some(stderr) = child.stderr.take() {
            self.tasks.spawn(copy_log(name, stderr, log.clone()));
        }
        self.tasks.spawn(watch_child(
            child,
            name,
            log,
            self.stop.subscribe(),
            self.ends.clone(),
        ));
        // Waits for as long as the child lives: its end is told through the channel, and whoever
        // awaits this also listens there, with a limit for the whole start.
        loop {
            match std::fs::read(&ready_file) {
                Ok(bytes) if bytes.ends_with(b"\n") => {
                    let ready = serde_json::from_slice(&bytes).map_err(|error| {
                        Failure::local(format!("the ready-file of {name} is not JSON"), &error)
                    })?;
                    return Ok((pid, ready));
                }
                _ => sleep(LOOK).await,
            }
        }
    }

    fn spawn(
        &self,
        name: &str,
        path: &Path,
        arguments: &[String],
        log: &Path,
    ) -> Result<Child, Failure> {
        let cannot = |error: std::io::Error| Failure::local(format!("cannot start {name}"), &error);
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .map_err(cannot)?;
        let mut command = Command::new(path);
        // What configures sgctl must not configure its children: the flags say everything.
        for (variable, _) in std::env::vars_os() {
            if variable.to_string_lossy().starts_with("SG_") && variable != "SG_LOG" {
                command.env_remove(&variable);
            }
        }
        let stderr = if self.verbose {
            Stdio::piped()
        } else {
            file.try_clone().map_err(cannot)?.into()
        };
        command
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(file)
            .stderr(stderr)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)
    }

    /// Ends all: first by asking, then by force; returns when all are reaped.
    pub(super) async fn end(&mut self) {
        self.stop.send_replace(Stop::Drain);
        self.joined().await;
    }

    /// Ends all at once; returns when all are reaped.
    pub(super) async fn kill(&mut self) {
        self.stop.send_replace(Stop::Kill);
        self.joined().await;
    }

    async fn joined(&mut self) {
        while let Some(joined) = self.tasks.join_next().await {
            if let Err(error) = joined {
                output::note(&format!("a task of sgctl dev failed: {error}"));
            }
        }
    }
}

impl Ended {
    /// The end of its log.
    pub(super) fn tail(&self) -> Option<String> {
        let bytes = std::fs::read(&self.log).ok()?;
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().collect();
        let tail = lines.get(lines.len().saturating_sub(TAIL)..)?;
        (!tail.is_empty()).then(|| format!("its log ends with:\n{}", tail.join("\n")))
    }
}

/// Why the start as a whole failed, when one of the programs ended in the middle of it.
pub(super) fn ended_in_start(ended: Option<Ended>) -> Failure {
    let Some(ended) = ended else {
        return Failure::new(
            tonic::Code::Internal,
            "INTERNAL",
            "the watch over the processes ended",
        );
    };
    let message = format!("{} ended while starting ({})", ended.name, ended.how);
    let failure = Failure::new(tonic::Code::Unknown, "START_FAILED", message);
    match ended.tail() {
        Some(tail) => failure.cause(tail),
        None => failure,
    }
}

async fn watch_child(
    mut child: Child,
    name: &'static str,
    log: PathBuf,
    mut stop: watch::Receiver<Stop>,
    ends: mpsc::Sender<Ended>,
) {
    let ended = tokio::select! {
        biased;
        asked = asked(&mut stop, Stop::Drain) => Err(asked),
        status = child.wait() => Ok(describe(status)),
    };
    let asked = match ended {
        Ok(how) => {
            // The receiver lives as long as the command; a full channel waits for its report.
            let told = ends.send(Ended { name, how, log }).await;
            return drop(told);
        }
        Err(asked) => asked,
    };
    // Not yet reaped, so the id is still that of the child.
    let pid = child
        .id()
        .and_then(|id| i32::try_from(id).ok())
        .and_then(Pid::from_raw);
    if asked == Stop::Drain && pid.is_some_and(|pid| kill_process(pid, Signal::TERM).is_ok()) {
        let gone = tokio::select! {
            waited = timeout(GRACE, child.wait()) => waited.is_ok(),
            _ = self::asked(&mut stop, Stop::Kill) => false,
        };
        if gone {
            return;
        }
    }
    if let Err(error) = child.kill().await {
        output::note(&format!("{name} could not be killed: {error}"));
    }
}

/// Completes when the family is asked for at least this. If it is gone without a word, that is a
/// reason to stop too.
async fn asked(stop: &mut watch::Receiver<Stop>, least: Stop) -> Stop {
    stop.wait_for(|asked| *asked >= least)
        .await
        .map_or(Stop::Kill, |asked| *asked)
}

/// With `--verbose` the log goes to the file and, with the program's name before each line, to stderr.
async fn copy_log(name: &'static str, stderr: ChildStderr, log: PathBuf) {
    let mut file = tokio::fs::File::options()
        .append(true)
        .open(&log)
        .await
        .ok();
    let mut lines = BufReader::new(stderr).split(b'\n');
    while let Ok(Some(mut line)) = lines.next_segment().await {
        output::note(&format!("[{name}] {}", String::from_utf8_lossy(&line)));
        line.push(b'\n');
        if let Some(open) = &mut file
            && open.write_all(&line).await.is_err()
        {
            file = None;
        }
    }
}

fn describe(status: std::io::Result<ExitStatus>) -> String {
    match status {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    }
}

/// The program that was built and installed together with this one.
fn sibling(name: &str) -> Result<PathBuf, Failure> {
    let own = std::env::current_exe()
        .map_err(|error| Failure::local("cannot find out where sgctl is", &error))?;
    let path = own.with_file_name(name);
    if path.is_file() {
        return Ok(path);
    }
    let folder = own.parent().unwrap_or(Path::new(".")).display().to_string();
    Err(Failure::new(tonic::Code::Unknown, "PROGRAM_MISSING", format!("{name} is not beside sgctl in {folder}"))
        .hint("./quickstart, or: cargo build --release -p sg-control-plane -p sg-data-plane -p sg-client -p sgctl"))
}

fn remove_stale(ready_file: &Path) -> Result<(), Failure> {
    match std::fs::remove_file(ready_file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Failure::local(
            format!("cannot remove {}", ready_file.display()),
            &error,
        )),
        _ => Ok(()),
    }
}
