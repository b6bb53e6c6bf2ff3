//! A long-running program of the product: one that writes a ready file and has an admin port.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde_json::Value;

use crate::canaries::{Evidence, Shown};
use crate::{AccessLine, Launch, LogLine, Metrics, PATIENCE, Process, eventually, logs};

/// One daemon, running or not. It keeps its ports and its data when it is started again.
#[derive(Debug)]
pub struct Daemon {
    launch: Launch,
    ready_file: PathBuf,
    admin: SocketAddr,
    process: Option<Process>,
    ports: Vec<SocketAddr>,
    evidence: Evidence,
}

impl Daemon {
    pub(crate) fn new(
        launch: Launch,
        ready_file: PathBuf,
        admin: SocketAddr,
        evidence: &Evidence,
    ) -> Self {
        let launch = launch
            .option("--ready-file", &ready_file)
            .option("--admin-listen", admin.to_string());
        Self {
            launch,
            ready_file,
            admin,
            process: None,
            ports: vec![admin],
            evidence: evidence.clone(),
        }
    }

    /// It has another HTTP port.
    pub(crate) fn with_port(mut self, port: SocketAddr) -> Self {
        self.ports.push(port);
        self
    }

    /// How it is started; a changed copy makes a different start.
    pub fn launch_mut(&mut self) -> &mut Launch {
        &mut self.launch
    }

    /// How it is started.
    #[must_use]
    pub fn how(&self) -> &Launch {
        &self.launch
    }

    /// Starts it and does not wait.
    ///
    /// # Errors
    /// The program is missing.
    pub fn launch(&mut self) -> Result<()> {
        // A file of the run before must not pass for this run's.
        match fs::remove_file(&self.ready_file) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).context("ready file of the run before"),
        }
        let process = self.launch.start()?;
        self.evidence.began(Shown {
            name: self.launch.name().to_owned(),
            pid: process.id(),
            ports: self.ports.clone(),
            given: self.launch.given(),
        });
        self.process = Some(process);
        Ok(())
    }

    /// Starts it and waits until it says that it is ready.
    ///
    /// # Errors
    /// It ends or is not ready in time.
    pub async fn start(&mut self) -> Result<()> {
        self.launch()?;
        self.ready().await.map(drop)
    }

    /// Waits for the ready file; answers what is in it.
    ///
    /// # Errors
    /// The process ends or is not ready in time.
    pub async fn ready(&mut self) -> Result<Value> {
        let process = self.process.as_mut().context("it has not been started")?;
        let mut ended = None;
        let content = eventually(PATIENCE, "the ready file is there", async || {
            if let Err(error) = process.check_running() {
                // No use in waiting on.
                ended = Some(error);
                return Ok(String::new());
            }
            Ok(fs::read_to_string(&self.ready_file)?)
        })
        .await?;
        match ended {
            Some(error) => Err(error).context(logs::read(self.launch.log())?),
            None => serde_json::from_str(content.trim_end()).context("ready file"),
        }
    }

    /// Its process id.
    ///
    /// # Panics
    /// It is not running.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process
            .as_ref()
            .expect("a test asks for the id of what it has started")
            .id()
    }

    /// The process itself.
    ///
    /// # Errors
    /// It is not running.
    pub fn process(&mut self) -> Result<&mut Process> {
        self.process.as_mut().context("it is not running")
    }

    /// kill -9.
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&mut self) -> Result<()> {
        let pid = self.process()?.id();
        self.evidence.ended(pid);
        self.process()?.kill()?;
        self.process = None;
        Ok(())
    }

    /// SIGTERM, and its end.
    ///
    /// # Errors
    /// It goes on beyond `limit`.
    pub async fn stop(&mut self, limit: Duration) -> Result<ExitStatus> {
        self.process()?.terminate()?;
        let status = self.process()?.ended(limit).await?;
        let pid = self.process()?.id();
        self.evidence.ended(pid);
        self.process = None;
        Ok(status)
    }

    /// Where its admin port is.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// Its metrics now.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn metrics(&self) -> Result<Metrics> {
        Metrics::read(self.admin).await
    }

    /// All it has logged, over all its runs.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<String> {
        logs::read(self.launch.log())
    }

    /// Its log, line by line.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn lines(&self) -> Result<Vec<LogLine>> {
        Ok(LogLine::all(&self.log()?))
    }

    /// The lines about ended streams.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn access(&self) -> Result<Vec<AccessLine>> {
        Ok(AccessLine::all(&self.log()?))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Before it goes.
        if let Some(process) = &mut self.process
            && process.check_running().is_ok()
        {
            self.evidence.last_look(process.id());
        }
    }
}
