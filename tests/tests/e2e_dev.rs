//! `sgctl dev`: all of it on one machine with one command, and nothing left of it afterwards.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, test_kill_process};
use serde_json::Value;
use sg_tests::backend::Echo;
use sg_tests::canaries;
use sg_tests::counterpart::postgres::Postgres;
use sg_tests::{Launch, Ports, Process, Sgctl, bytes, eventually, get, prepare, product};
use tempfile::TempDir;
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The longest from the start to the line that says ready.
const READY: Duration = Duration::from_secs(5);

/// The longest from the signal to the end.
const END: Duration = Duration::from_secs(3);

/// A running `sgctl dev` with a folder for temporary files of its own.
struct Dev {
    process: Process,
    /// What it has printed.
    line: Value,
    folder: TempDir,
}

impl Dev {
    async fn start(arguments: &[&str]) -> Result<Self> {
        let folder = TempDir::with_prefix("sg-dev-test-")?;
        let temporary = folder.path().join("tmp");
        std::fs::create_dir(&temporary)?;
        let mut launch = Launch::new("dev", product("sgctl")?, folder.path())
            .arg("dev")
            .env("TMPDIR", &temporary)
            .env("HOME", folder.path())
            .option("-o", "json");
        for argument in arguments {
            launch = launch.arg(*argument);
        }
        let start = Instant::now();
        let mut process = launch.start()?;
        let line = eventually(READY, "sgctl dev is ready", async || {
            process.check_running()?;
            let output = process.output()?;
            let line = output
                .lines()
                .find(|line| line.starts_with(r#"{"control_plane""#));
            serde_json::from_str(line.context("no line yet")?).context("the line")
        })
        .await
        .with_context(|| process.output().unwrap_or_default())?;
        ensure!(start.elapsed() < READY);
        Ok(Self {
            process,
            line,
            folder,
        })
    }

    fn pids(&self) -> Result<Vec<Pid>> {
        ["control_plane", "data_plane", "client"]
            .iter()
            .map(|name| {
                let pid = self.line["pids"][name].as_i64().context("pid")?;
                Pid::from_raw(i32::try_from(pid)?).context("pid")
            })
            .collect()
    }

    fn path(&self, field: &str) -> Result<PathBuf> {
        Ok(PathBuf::from(
            self.line[field]
                .as_str()
                .with_context(|| field.to_owned())?,
        ))
    }

    fn listen(&self, destination: usize) -> Result<SocketAddr> {
        let listen = self.line["destinations"][destination]["listen"]
            .as_str()
            .context("listen")?;
        listen.parse().context("listen")
    }

    fn sgctl(&self) -> Result<Sgctl> {
        let server = self.line["control_plane"]
            .as_str()
            .context("control_plane")?;
        Ok(Sgctl::new(
            server,
            &self.path("ca_file")?,
            &self.path("token_file")?,
        ))
    }

    /// What must be seen neither in its output, nor in a log, nor in a command line: tokens, and the keys in files.
    fn secrets(&self) -> Result<Vec<String>> {
        let mut secrets = Vec::new();
        let control_plane = self.path("ca_file")?;
        let control_plane = control_plane.parent().context("folder")?;
        canaries::of_key_files(control_plane, &mut secrets)?;
        ensure!(!secrets.is_empty(), "no key file is found");
        for field in ["token_file", "security_token_file"] {
            let token = std::fs::read_to_string(self.path(field)?)?;
            secrets.push(token.trim().to_owned());
        }
        Ok(secrets)
    }

    /// Ends it with this signal; then nothing is left. It has not shown a secret.
    async fn end(mut self, signal: Signal) -> Result<()> {
        let pids = self.pids()?;
        let secrets = self.secrets()?;
        for pid in &pids {
            let line = format!("/proc/{}/cmdline", pid.as_raw_nonzero());
            // One that was killed has none any more.
            let Ok(line) = std::fs::read(line) else {
                continue;
            };
            let line = String::from_utf8_lossy(&line).into_owned();
            let shown = secrets.iter().any(|secret| line.contains(secret));
            ensure!(!shown, "a secret in the command line of {pid:?}");
        }
        // They go with it, unless it was told where to work.
        let logs = self.path("ca_file")?;
        let logs = logs.ancestors().nth(2).context("folder")?.join("logs");
        let logs = entries(&logs)?;
        ensure!(logs.len() >= pids.len(), "its processes log: {logs:?}");
        for log in logs {
            let text = std::fs::read_to_string(&log)?;
            ensure!(!text.is_empty(), "{} is empty", log.display());
            let shown = secrets.iter().any(|secret| text.contains(secret));
            ensure!(!shown, "a secret in {}", log.display());
        }
        let temporary = self.folder.path().join("tmp");
        self.process.signal(signal)?;
        let status = self
            .process
            .ended(END)
            .await
            .with_context(|| "after the signal".to_owned())?;
        let output = self.process.output()?;
        ensure!(status.success(), "{status}: {output}");
        let shown = secrets.iter().any(|secret| output.contains(secret));
        ensure!(!shown, "a secret in the output of sgctl dev");
        for pid in pids {
            ensure!(test_kill_process(pid).is_err(), "process {pid:?} is left");
        }
        ensure!(
            entries(&temporary)?.is_empty(),
            "left: {:?}",
            entries(&temporary)?
        );
        Ok(())
    }
}

fn entries(folder: &Path) -> Result<BTreeSet<PathBuf>> {
    let entries: std::io::Result<Vec<_>> = std::fs::read_dir(folder)?.collect();
    Ok(entries?.into_iter().map(|entry| entry.path()).collect())
}

#[tokio::test]
async fn psql_works_through_sgctl_dev() -> Result<()> {
    prepare();
    let mut ports = Ports::take()?;
    let postgres = Postgres::start(ports.server()).await?;
    let dev = Dev::start(&[&postgres.address()]).await?;
    let answer = postgres
        .psql(dev.listen(0)?.port(), "select 'through the tunnel'")
        .await?;
    ensure!(answer == "through the tunnel", "{answer}");
    dev.end(Signal::INT).await
}

#[tokio::test]
async fn its_line_names_everything_and_sgctl_can_use_it() -> Result<()> {
    prepare();
    let (first, second) = (Echo::start().await?, Echo::start().await?);
    let mut ports = Ports::take()?;
    let asked = ports.server();
    let second_with_port = format!("tcp://{}={asked}", second.address());
    let dev = Dev::start(&[&first.address(), &second_with_port]).await?;
    for field in ["control_plane", "http", "gateway_id", "tunnel"] {
        ensure!(dev.line[field].is_string(), "{field} in {}", dev.line);
    }
    ensure!(dev.line["gateway"] == "dev");
    ensure!(dev.listen(1)?.port() == asked, "{}", dev.line);
    for (index, resource) in [&first, &second].into_iter().enumerate() {
        ensure!(dev.line["destinations"][index]["resource"] == resource.address());
        let mut user = TcpStream::connect(dev.listen(index)?).await?;
        bytes::echo(&mut user, 9, 100_000).await?;
    }
    for file in ["ca_file", "token_file", "security_token_file"] {
        ensure!(dev.path(file)?.is_file(), "{file}");
    }
    let list = dev.sgctl()?.json(&["destination", "list", "dev"]).await?;
    ensure!(
        list["destinations"]
            .as_array()
            .is_some_and(|rows| rows.len() == 2),
        "{list}"
    );
    let clients = dev.sgctl()?.json(&["client", "list", "dev"]).await?;
    ensure!(
        clients["clients"]
            .as_array()
            .is_some_and(|rows| rows.len() == 1),
        "{clients}"
    );
    dev.end(Signal::TERM).await
}

#[tokio::test]
async fn it_ends_within_its_time_although_streams_are_open() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let dev = Dev::start(&[&resource.address()]).await?;
    let mut users = Vec::new();
    for seed in 0..5 {
        let mut user = TcpStream::connect(dev.listen(0)?).await?;
        bytes::echo(&mut user, seed, 1000).await?;
        users.push(user);
    }
    dev.end(Signal::INT).await
}

#[tokio::test]
async fn without_a_resource_it_serves_a_demo_page() -> Result<()> {
    prepare();
    let dev = Dev::start(&[]).await?;
    let (status, body) = get(dev.listen(0)?, "/").await?;
    ensure!(status == 200 && !body.is_empty(), "{status}: {body}");
    dev.end(Signal::INT).await
}

#[tokio::test]
async fn a_folder_that_was_given_stays_and_is_used_again() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let folder = TempDir::with_prefix("sg-dev-kept-")?;
    let kept = folder.path().join("site").display().to_string();
    let mut ids = Vec::new();
    for _ in 0..2 {
        let dev = Dev::start(&[&resource.address(), "--dir", &kept]).await?;
        ids.push(
            dev.line["gateway_id"]
                .as_str()
                .context("gateway_id")?
                .to_owned(),
        );
        let mut user = TcpStream::connect(dev.listen(0)?).await?;
        bytes::echo(&mut user, 3, 1000).await?;
        dev.end(Signal::INT).await?;
        ensure!(
            !entries(Path::new(&kept))?.is_empty(),
            "the folder is empty"
        );
    }
    ensure!(ids[0] == ids[1], "the gateway is another one: {ids:?}");
    Ok(())
}

#[tokio::test]
async fn a_killed_child_is_reported_and_the_rest_goes_on() -> Result<()> {
    prepare();
    let resource = Echo::start().await?;
    let mut dev = Dev::start(&[&resource.address()]).await?;
    let control_plane = dev.pids()?[0];
    rustix::process::kill_process(control_plane, Signal::KILL)?;
    eventually(
        Duration::from_secs(5),
        "the death is reported",
        async || {
            let output = dev.process.output()?;
            ensure!(
                output.contains("sg-control-plane") || output.contains("control plane"),
                "{output}"
            );
            Ok(())
        },
    )
    .await?;
    dev.process.check_running()?;
    let mut user = TcpStream::connect(dev.listen(0)?).await?;
    bytes::echo(&mut user, 4, 10_000).await?;
    dev.end(Signal::INT).await
}

#[tokio::test]
async fn an_unknown_scheme_is_bad_usage() -> Result<()> {
    prepare();
    let folder = TempDir::new()?;
    let launch = Launch::new("dev", product("sgctl")?, folder.path());
    let mut process = launch.arg("dev").arg("gopher://127.0.0.1:70").start()?;
    let status = process.ended(Duration::from_secs(5)).await?;
    ensure!(status.code() == Some(2), "{status}: {}", process.output()?);
    Ok(())
}
