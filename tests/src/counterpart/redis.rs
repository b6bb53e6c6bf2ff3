//! Redis: a server without persistence, and its programs as users.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Launch, PATIENCE, Process, debian, eventually, within};

/// A running server.
#[derive(Debug)]
pub struct Redis {
    _server: Process,
    port: u16,
}

impl Redis {
    /// Starts a server on this loopback port.
    ///
    /// # Errors
    /// Redis is not installed or does not start.
    pub async fn start(folder: &Path, port: u16) -> Result<Self> {
        let server = Launch::new("redis", debian("redis-server")?, folder)
            .directory(folder)
            .option("--bind", "127.0.0.1")
            .option("--port", port.to_string())
            .option("--save", "")
            .option("--appendonly", "no")
            .start()?;
        let redis = Self {
            _server: server,
            port,
        };
        eventually(PATIENCE, "redis answers", async || {
            let answer = redis.cli(folder, port, &["PING"]).await?;
            (answer == "PONG").then_some(()).context(answer)
        })
        .await?;
        Ok(redis)
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What `redis-cli` prints for one command.
    ///
    /// # Errors
    /// It fails.
    pub async fn cli(&self, folder: &Path, port: u16, command: &[&str]) -> Result<String> {
        let mut cli = Launch::new("redis-cli", debian("redis-cli")?, folder)
            .option("-h", "127.0.0.1")
            .option("-p", port.to_string());
        for word in command {
            cli = cli.arg(*word);
        }
        Ok(within(PATIENCE, "redis-cli", cli.run())
            .await??
            .trim()
            .to_owned())
    }

    /// What `redis-benchmark` prints.
    ///
    /// # Errors
    /// It fails or takes too long.
    pub async fn benchmark(&self, folder: &Path, port: u16, options: &[&str]) -> Result<String> {
        let mut benchmark = Launch::new("redis-benchmark", debian("redis-benchmark")?, folder)
            .option("-h", "127.0.0.1")
            .option("-p", port.to_string());
        for option in options {
            benchmark = benchmark.arg(*option);
        }
        within(Duration::from_secs(60), "redis-benchmark", benchmark.run()).await?
    }
}
