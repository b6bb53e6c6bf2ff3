//! One real process: started with its output in a file, ended by its id, and killed at the latest
//! when dropped. When a test fails, the end of its log is printed.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process, kill_process_group};

use crate::{debian, eventually, logs};

/// Lines of a log that are printed when a test fails.
const TAIL: usize = 40;

/// How to start a program; can be started again.
#[derive(Debug, Clone)]
pub struct Launch {
    name: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    environment: Vec<(OsString, OsString)>,
    user: Option<&'static str>,
    directory: Option<PathBuf>,
    console: bool,
    log: PathBuf,
}

impl Launch {
    /// `name` says which process it is in messages and names the log file in `folder`.
    #[must_use]
    pub fn new(name: &str, program: impl Into<PathBuf>, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            program: program.into(),
            arguments: Vec::new(),
            environment: Vec::new(),
            user: None,
            directory: None,
            console: false,
            log: folder.join(format!("{name}.log")),
        }
    }

    /// Adds one argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds an option and its value.
    #[must_use]
    pub fn option(self, name: &str, value: impl Into<OsString>) -> Self {
        self.arg(name).arg(value)
    }

    /// Takes an option and its value away again.
    #[must_use]
    pub fn without(mut self, name: &str) -> Self {
        if let Some(at) = self.arguments.iter().position(|argument| argument == name) {
            self.arguments.drain(at..(at + 2).min(self.arguments.len()));
        }
        self
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Runs as this user, should the tests run as root; some servers refuse root.
    #[must_use]
    pub fn user(mut self, user: &'static str) -> Self {
        self.user = Some(user);
        self
    }

    /// Runs in this folder.
    #[must_use]
    pub fn directory(mut self, directory: &Path) -> Self {
        self.directory = Some(directory.to_owned());
        self
    }

    /// Which process it is.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// All that it is given: arguments, and values of variables.
    pub(crate) fn given(&self) -> Vec<OsString> {
        let values = self.environment.iter().map(|(_, value)| value);
        self.arguments.iter().chain(values).cloned().collect()
    }

    /// Lets a test type on its standard input; what it prints there goes to a file of its own.
    #[must_use]
    pub fn console(mut self) -> Self {
        self.console = true;
        self
    }

    /// Where stdout of a program with a console goes.
    #[must_use]
    pub fn printed(&self) -> PathBuf {
        self.log.with_extension("console.log")
    }

    /// Where stdout and stderr go.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Starts it. The log goes on where an earlier run left it.
    ///
    /// # Errors
    /// The program or its log cannot be opened.
    pub fn start(&self) -> Result<Process> {
        let log = append(&self.log)?;
        let (input, printed) = match self.console {
            false => (Stdio::null(), log.try_clone().context("log")?),
            true => (Stdio::piped(), append(&self.printed())?),
        };
        let child = self
            .command()?
            .stdin(input)
            .stdout(printed)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        Ok(Process {
            name: self.name.clone(),
            log: self.log.clone(),
            child,
        })
    }

    /// Runs it to its end.
    ///
    /// # Errors
    /// It cannot be started, or ends with a failure; the error carries its output.
    pub async fn run(&self) -> Result<String> {
        let output = tokio::process::Command::from(self.command()?)
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .with_context(|| format!("running {}", self.program.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            let stderr = String::from_utf8_lossy(&output.stderr);
            bail!("{}: {}\n{stdout}{stderr}", self.name, output.status);
        }
        Ok(stdout)
    }

    /// Runs it to its end, in the time that the program itself keeps.
    ///
    /// # Errors
    /// It cannot be started, or ends with a failure.
    pub(crate) fn run_blocking(&self) -> Result<()> {
        let mut command = self.command()?;
        let status = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
        let status = status.with_context(|| format!("running {}", self.program.display()))?;
        ensure!(status.success(), "{}: {status}", self.name);
        Ok(())
    }

    /// setpriv becomes the program, so the process id is the program's own. It asks the system to
    /// kill it with the test, however the test ends.
    fn command(&self) -> Result<Command> {
        let mut command = Command::new(debian("setpriv")?);
        command.args(["--pdeathsig", "KILL"]);
        if let Some(user) = self.user.filter(|_| is_root()) {
            command.args(["--reuid", user, "--regid", user, "--init-groups"]);
        }
        command.arg("--");
        // The program's environment, and not setpriv's.
        if !self.environment.is_empty() {
            command.arg(debian("env")?);
        }
        for (name, value) in &self.environment {
            let mut variable = name.clone();
            variable.push("=");
            variable.push(value);
            command.arg(variable);
        }
        command.arg(&self.program).args(&self.arguments);
        // What it starts in turn can be ended with it.
        command.process_group(0);
        // What the person at the keyboard has set for own use must not reach the test.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("SG_") {
                command.env_remove(name);
            }
        }
        if let Some(directory) = &self.directory {
            command.current_dir(directory);
        }
        Ok(command)
    }
}

fn append(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).append(true).open(path);
    file.with_context(|| format!("log {}", path.display()))
}

/// Whether this test runs as root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A started process.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    child: Child,
}

impl Process {
    /// Its id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Types a line at its console.
    ///
    /// # Errors
    /// It has no console, or is gone.
    pub fn type_line(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().context("it has no console")?;
        writeln!(input, "{line}").context("typing")
    }

    /// Ends its standard input, as Ctrl-D does.
    pub fn end_input(&mut self) {
        self.child.stdin = None;
    }

    /// What it has printed, this run and those before.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn output(&self) -> Result<String> {
        logs::read(&self.log)
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has ended; the error says how.
    pub fn check_running(&mut self) -> Result<()> {
        match self.child.try_wait().context("state of a process")? {
            None => Ok(()),
            Some(status) => bail!("{} has ended: {status}", self.name),
        }
    }

    /// Ends it as a crash would, and waits until it is gone.
    ///
    /// # Errors
    /// It was gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.check_running()?;
        self.child
            .kill()
            .with_context(|| format!("killing {}", self.name))?;
        self.child.wait().context("reaping")?;
        Ok(())
    }

    /// Asks it to end in order.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&self) -> Result<()> {
        self.signal(Signal::TERM)
    }

    /// What Ctrl-C does.
    ///
    /// # Errors
    /// It is gone already.
    pub fn interrupt(&self) -> Result<()> {
        self.signal(Signal::INT)
    }

    /// Sends a signal to this process alone.
    ///
    /// # Errors
    /// It is gone already.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        kill_process(pid.context("process id")?, signal)
            .with_context(|| format!("signal to {}", self.name))
    }

    /// Waits for its end.
    ///
    /// # Errors
    /// It is still running when `limit` has passed.
    pub async fn ended(&mut self, limit: Duration) -> Result<ExitStatus> {
        let name = self.name.clone();
        let child = &mut self.child;
        eventually(limit, &format!("{name} ends"), async || {
            child
                .try_wait()
                .context("state of a process")?
                .context("it is still running")
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // All fail only for a process that has ended, which is what is wanted. Its group goes with
        // it, unless its id has been given back to the system already.
        if let Ok(None) = self.child.try_wait()
            && let Some(group) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
        {
            let _gone = kill_process_group(group, Signal::KILL);
        }
        drop(self.child.wait());
    }
}

/// Prints the end of each log in `folder`, for a test that failed.
pub(crate) fn print_tails(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return;
    };
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    let mut stderr = std::io::stderr().lock();
    for path in paths
        .iter()
        .filter(|path| path.extension().is_some_and(|kind| kind == "log"))
    {
        let text = logs::read(path).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        let from = lines.len().saturating_sub(TAIL);
        // Nobody can be told when stderr is gone.
        drop(writeln!(stderr, "---- end of {}", path.display()));
        for line in lines.get(from..).unwrap_or_default() {
            drop(writeln!(stderr, "{line}"));
        }
    }
}
