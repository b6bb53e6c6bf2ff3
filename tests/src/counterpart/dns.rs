//! DNS servers that know a few names, and the program that asks them.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};

use crate::{Launch, PATIENCE, Process, debian, eventually, within};

/// The name that the server knows.
pub const NAME: &str = "machine.plant.test";
/// Its address.
pub const ADDRESS: &str = "192.0.2.7";

/// dnsmasq, answering on a loopback port.
#[derive(Debug)]
pub struct Dns {
    _server: Process,
    port: u16,
}

impl Dns {
    /// Answers on this port, by UDP and by TCP.
    ///
    /// # Errors
    /// dnsmasq is not installed or does not start.
    pub async fn start(folder: &Path, port: u16) -> Result<Self> {
        let server = Launch::new("dnsmasq", debian("dnsmasq")?, folder)
            .arg("--keep-in-foreground")
            .arg("--conf-file=/dev/null")
            .arg("--no-resolv")
            .arg("--no-hosts")
            .arg("--bind-interfaces")
            .arg("--listen-address=127.0.0.1")
            .arg("--pid-file=")
            .arg("--log-facility=-")
            .arg("--user=")
            .arg(format!("--port={port}"))
            .arg(format!("--host-record={NAME},{ADDRESS}"))
            .start()?;
        let dns = Self {
            _server: server,
            port,
        };
        eventually(PATIENCE, "dnsmasq answers", async || {
            let answer = dig(port, NAME).await?;
            ensure!(answer == ADDRESS, "it answers {answer:?}");
            Ok(())
        })
        .await?;
        Ok(dns)
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }
}

/// How many names [`Unbound`] knows.
const NAMES: u8 = 50;

/// unbound, answering on a loopback port.
#[derive(Debug)]
pub struct Unbound {
    _server: Process,
    port: u16,
}

impl Unbound {
    /// Answers on this port, by UDP and by TCP.
    ///
    /// # Errors
    /// unbound is not installed or does not start.
    pub async fn start(folder: &Path, port: u16) -> Result<Self> {
        let own = folder.display();
        let mut configuration = format!(
            "server:\n interface: 127.0.0.1@{port}\n port: {port}\n access-control: 127.0.0.0/8 allow\n \
             chroot: \"\"\n username: \"\"\n directory: \"{own}\"\n pidfile: \"\"\n use-syslog: no\n \
             do-daemonize: no\n num-threads: 1\n incoming-num-tcp: 50\n module-config: \"iterator\"\n \
             local-zone: \"plant.test.\" static\n"
        );
        for number in 0..NAMES {
            configuration +=
                &format!(" local-data: \"machine{number}.plant.test. A 192.0.2.{number}\"\n");
        }
        configuration += "remote-control:\n control-enable: no\n";
        let file = folder.join("unbound.conf");
        std::fs::write(&file, configuration).context("configuration of unbound")?;
        let server = Launch::new("unbound", debian("unbound")?, folder)
            .arg("-d")
            .arg("-p")
            .option("-c", &file)
            .start()?;
        eventually(PATIENCE, "unbound answers", async || {
            let answer = dig(port, "machine7.plant.test").await?;
            ensure!(answer == "192.0.2.7", "it answers {answer:?}");
            Ok(())
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

    /// A question for each of its names, as dnsperf reads them.
    #[must_use]
    pub fn questions(&self) -> String {
        (0..NAMES)
            .map(|number| format!("machine{number}.plant.test A\n"))
            .collect()
    }
}

/// What `dig` gets for a name from the server at this loopback port; it asks once.
///
/// # Errors
/// dig is not installed, or gets no answer.
pub async fn dig(port: u16, name: &str) -> Result<String> {
    dig_with(port, name, "+notcp").await
}

/// As [`dig`], by TCP.
///
/// # Errors
/// As [`dig`].
pub async fn dig_by_tcp(port: u16, name: &str) -> Result<String> {
    dig_with(port, name, "+tcp").await
}

async fn dig_with(port: u16, name: &str, transport: &str) -> Result<String> {
    let mut command = tokio::process::Command::new(debian("dig")?);
    command
        .args([
            "+short",
            "+tries=1",
            "+time=3",
            transport,
            "@127.0.0.1",
            "-p",
        ])
        .arg(port.to_string())
        .arg(name)
        .kill_on_drop(true);
    let output = within(PATIENCE, "dig", command.output())
        .await?
        .context("dig")?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    ensure!(output.status.success(), "dig fails: {text}");
    Ok(text)
}
