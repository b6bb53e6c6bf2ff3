//! Proxies and balancers as people run them: dante and microsocks for SOCKS, squid and tinyproxy for HTTP CONNECT,
//! haproxy for the PROXY protocol and for TLS before another proxy.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::{Launch, PATIENCE, Process, debian, eventually};

/// The user that a proxy lets through, where it asks at all.
pub const USER: &str = "me";
/// The user's password. tinyproxy takes no other characters.
pub const PASSWORD: &str = "canary-p4ss";

/// A running proxy.
#[derive(Debug)]
pub struct ProxyServer {
    process: Process,
    port: u16,
    /// Where a program that is no longer root must read.
    _readable: Option<TempDir>,
}

impl ProxyServer {
    async fn listening(process: Process, port: u16, readable: Option<TempDir>) -> Result<Self> {
        eventually(PATIENCE, "the proxy listens", async || {
            Ok(TcpStream::connect(("127.0.0.1", port)).await?)
        })
        .await?;
        Ok(Self {
            process,
            port,
            _readable: readable,
        })
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Its log.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn output(&self) -> Result<String> {
        self.process.output()
    }

    /// dante: SOCKS 4 and 5 without asking who it is; `rules` come before the one that lets everything through.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn dante(folder: &Path, port: u16, rules: &str) -> Result<Self> {
        let file = folder.join("danted.conf");
        let configuration = format!(
            "logoutput: stderr\n\
             internal: 127.0.0.1 port = {port}\n\
             external: lo\n\
             socksmethod: none\n\
             clientmethod: none\n\
             client pass {{ from: 0/0 to: 0/0 }}\n\
             {rules}\n\
             socks pass {{ from: 0/0 to: 0/0 log: connect error }}\n"
        );
        std::fs::write(&file, configuration).context("configuration of dante")?;
        let process = Launch::new("danted", debian("danted")?, folder)
            .option("-f", &file)
            .option("-p", folder.join("danted.pid"))
            .start()?;
        Self::listening(process, port, None).await
    }

    /// microsocks: SOCKS 5, with [`USER`] and [`PASSWORD`] if asked to.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn microsocks(folder: &Path, port: u16, asks: bool) -> Result<Self> {
        let mut launch = Launch::new("microsocks", debian("microsocks")?, folder)
            .option("-i", "127.0.0.1")
            .option("-p", port.to_string());
        if asks {
            launch = launch.option("-u", USER).option("-P", PASSWORD);
        }
        Self::listening(launch.start()?, port, None).await
    }

    /// tinyproxy, which lets [`USER`] through.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn tinyproxy(folder: &Path, port: u16) -> Result<Self> {
        let file = folder.join("tinyproxy.conf");
        let configuration = format!(
            "Listen 127.0.0.1\nPort {port}\nTimeout 600\nMaxClients 50\nAllow 127.0.0.1\n\
             PidFile \"{}\"\nBasicAuth {USER} {PASSWORD}\n",
            folder.join("tinyproxy.pid").display()
        );
        std::fs::write(&file, configuration).context("configuration of tinyproxy")?;
        let process = Launch::new("tinyproxy", debian("tinyproxy")?, folder)
            .arg("-d")
            .option("-c", &file)
            .start()?;
        Self::listening(process, port, None).await
    }

    /// squid, which lets [`USER`] through, and nobody to `denied`, a port.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn squid(folder: &Path, port: u16, denied: u16) -> Result<Self> {
        // It gives up root's rights, and reads its files after that.
        let readable = tempfile::Builder::new()
            .prefix("sg-test-squid-")
            .permissions(std::fs::Permissions::from_mode(0o755))
            .tempdir()
            .context("folder of squid")?;
        let own = readable.path();
        let hash = Launch::new("openssl", debian("openssl")?, folder)
            .arg("passwd")
            .arg("-apr1")
            .arg(PASSWORD)
            .run()
            .await?;
        std::fs::write(own.join("passwords"), format!("{USER}:{hash}")).context("passwords")?;
        let configuration = format!(
            "http_port 127.0.0.1:{port}\n\
             auth_param basic program /usr/lib/squid/basic_ncsa_auth {own}/passwords\n\
             auth_param basic children 1\n\
             acl known proxy_auth REQUIRED\n\
             acl denied port {denied}\n\
             http_access deny !known\n\
             http_access deny denied\n\
             http_access allow known\n\
             cache deny all\ncache_mem 1 MB\naccess_log none\ncache_log stdio:/dev/stderr\n\
             cache_store_log none\nnetdb_filename none\npid_filename none\npinger_enable off\n\
             shutdown_lifetime 0 seconds\ncoredump_dir none\n",
            own = own.display()
        );
        let file = own.join("squid.conf");
        std::fs::write(&file, configuration).context("configuration of squid")?;
        let process = Launch::new("squid", debian("squid")?, folder)
            .user("proxy")
            .directory(own)
            .arg("-N")
            .option("-f", &file)
            .start()?;
        Self::listening(process, port, Some(readable)).await
    }

    /// haproxy, with these sections after the usual ones. One of them must listen on this port.
    ///
    /// # Errors
    /// It is not installed or does not start.
    pub async fn haproxy(folder: &Path, port: u16, sections: &str) -> Result<Self> {
        let file = folder.join("haproxy.cfg");
        let configuration = format!(
            "global\n maxconn 500\n\
             defaults\n mode tcp\n timeout connect 10s\n timeout client 60s\n timeout server 60s\n\
             {sections}\n"
        );
        std::fs::write(&file, configuration).context("configuration of haproxy")?;
        let process = Launch::new("haproxy", debian("haproxy")?, folder)
            .arg("-db")
            .option("-f", &file)
            .start()?;
        Self::listening(process, port, None).await
    }
}
