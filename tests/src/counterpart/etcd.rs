//! One etcd.

use std::net::SocketAddr;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use crate::{Launch, PATIENCE, Process, debian, eventually, get};

/// An etcd of one member; it keeps its port and its data when started again.
#[derive(Debug)]
pub struct Etcd {
    launch: Launch,
    address: SocketAddr,
    process: Option<Process>,
}

impl Etcd {
    pub(crate) async fn start(folder: &Path, port: u16, peer_port: u16) -> Result<Self> {
        let client = format!("http://127.0.0.1:{port}");
        let peer = format!("http://127.0.0.1:{peer_port}");
        let launch = Launch::new("etcd", debian("etcd")?, folder)
            .option("--data-dir", folder.join("etcd"))
            .option("--listen-client-urls", &client)
            .option("--advertise-client-urls", &client)
            .option("--listen-peer-urls", &peer)
            .option("--initial-advertise-peer-urls", &peer)
            .option("--initial-cluster", format!("default={peer}"))
            .option("--logger", "zap")
            .option("--log-outputs", "stderr");
        let address = format!("127.0.0.1:{port}")
            .parse()
            .context("address of etcd")?;
        let mut etcd = Self {
            launch,
            address,
            process: None,
        };
        etcd.launch()?;
        etcd.ready().await?;
        Ok(etcd)
    }

    /// HOST:PORT of its clients' side.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }

    /// Starts it and does not wait until it serves.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn launch(&mut self) -> Result<()> {
        self.process = Some(self.launch.start()?);
        Ok(())
    }

    async fn ready(&self) -> Result<()> {
        eventually(PATIENCE, "etcd is healthy", async || {
            match get(self.address, "/health").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/health answers {status}: {body}"),
            }
        })
        .await
    }

    /// kill -9.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.process.take().context("etcd is not running")?.kill()
    }
}
