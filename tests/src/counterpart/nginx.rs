//! nginx, serving a folder of files.

use std::path::Path;

use anyhow::{Context as _, Result};
use tokio::net::TcpStream;

use crate::{Launch, PATIENCE, Process, debian, eventually};

/// A running server.
#[derive(Debug)]
pub struct Nginx {
    _server: Process,
    port: u16,
}

impl Nginx {
    /// Serves the files of `root` on this loopback port; its own files go to `folder`.
    ///
    /// # Errors
    /// nginx is not installed or does not start.
    pub async fn start(folder: &Path, root: &Path, port: u16) -> Result<Self> {
        let root = root.display();
        let server = format!("server {{ listen 127.0.0.1:{port}; root {root}; }}");
        Self::with(folder, &server, port).await
    }

    /// With these sections, of which one listens on this loopback port.
    ///
    /// # Errors
    /// nginx is not installed or does not start.
    pub async fn with(folder: &Path, servers: &str, port: u16) -> Result<Self> {
        let own = folder.join("nginx");
        std::fs::create_dir(&own).context("folder of nginx")?;
        let own = own.display();
        let configuration = format!(
            "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
             events {{ worker_connections 512; }}\n\
             http {{ access_log off;\n\
               client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
               fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi;\n\
               scgi_temp_path {own}/scgi;\n\
               {servers} }}\n"
        );
        let file = folder.join("nginx.conf");
        std::fs::write(&file, configuration).context("configuration of nginx")?;
        let server = Launch::new("nginx", debian("nginx")?, folder)
            .option("-e", "stderr")
            .option("-c", &file)
            .start()?;
        eventually(PATIENCE, "nginx listens", async || {
            Ok(TcpStream::connect(("127.0.0.1", port)).await?)
        })
        .await?;
        Ok(Self {
            _server: server,
            port,
        })
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}
