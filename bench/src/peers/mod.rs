//! Other programs that carry TCP through two processes, for comparison in the same run. Each runs
//! with its own defaults, except that TCP_NODELAY is on, limits on connections are lifted, timeouts
//! lie beyond the run and logs are off. Installed are those that Debian and the crate registry have;
//! what is not installed is left out of `all`, and an error when asked for by name.
//!
//! `pki` makes the certificates; each other file starts one program. A new one is a line in
//! [`Peer::ALL`] and a function that starts it.

mod haproxy;
mod penguin;
mod pki;
mod rathole;
mod ssh;
mod stunnel;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use sg_tests::{Launch, Ports, debian, eventually};
use tempfile::TempDir;

use crate::account::Process;
use crate::lineup::{Contender, Kind};
use crate::load;
use crate::report::tell;
use pki::Pki;

/// How long a peer may take until it carries a connection.
const START: std::time::Duration = std::time::Duration::from_secs(20);

/// A program, in one way of running it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Peer {
    Stunnel,
    Haproxy,
    HaproxyTcp,
    Ssh,
    SshGcm,
    Rathole,
    RatholeTls,
    RatholeNoise,
    Penguin,
}

impl Peer {
    const ALL: [Self; 9] = [
        Self::Stunnel,
        Self::Haproxy,
        Self::HaproxyTcp,
        Self::Ssh,
        Self::SshGcm,
        Self::Rathole,
        Self::RatholeTls,
        Self::RatholeNoise,
        Self::Penguin,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Stunnel => "stunnel",
            Self::Haproxy => "haproxy",
            Self::HaproxyTcp => "haproxy-tcp",
            Self::Ssh => "ssh",
            Self::SshGcm => "ssh-gcm",
            Self::Rathole => "rathole",
            Self::RatholeTls => "rathole-tls",
            Self::RatholeNoise => "rathole-noise",
            Self::Penguin => "penguin",
        }
    }

    fn kind(self) -> Kind {
        match self {
            Self::HaproxyTcp | Self::Rathole => Kind::Plain,
            _ => Kind::Encrypted,
        }
    }

    /// The program that shows whether it is installed.
    fn program(self) -> &'static str {
        match self {
            Self::Stunnel => "stunnel",
            Self::Haproxy | Self::HaproxyTcp => "haproxy",
            Self::Ssh | Self::SshGcm => "sshd",
            Self::Rathole | Self::RatholeTls | Self::RatholeNoise => "rathole",
            Self::Penguin => "penguin",
        }
    }

    fn carries_datagrams(self) -> bool {
        matches!(
            self,
            Self::Rathole | Self::RatholeTls | Self::RatholeNoise | Self::Penguin
        )
    }

    /// Those that a list names: names with commas between them, or `all` that are installed.
    ///
    /// # Errors
    /// A name is unknown, or the program is not installed.
    pub(crate) fn parse(list: &[String]) -> Result<Vec<Self>> {
        let mut peers = Vec::new();
        for name in list {
            if name == "all" {
                let (there, missing): (Vec<Self>, Vec<Self>) = Self::ALL
                    .iter()
                    .partition(|peer| find(peer.program()).is_ok());
                for peer in missing {
                    tell(&format!("{} is not installed and left out", peer.name()));
                }
                peers.extend(there);
                continue;
            }
            let Some(peer) = Self::ALL.into_iter().find(|peer| peer.name() == name) else {
                let names = Self::ALL.map(Self::name).join(", ");
                bail!("no peer is called {name:?}; there are {names}, and all");
            };
            find(peer.program())?;
            peers.push(peer);
        }
        Ok(peers)
    }

    async fn start(self, place: &mut Place<'_>) -> Result<Running> {
        match self {
            Self::Stunnel => stunnel::start(place),
            Self::Haproxy => haproxy::start_pair(place),
            Self::HaproxyTcp => haproxy::start_hop(place),
            Self::Ssh => ssh::start(place, None).await,
            Self::SshGcm => ssh::start(place, Some("aes128-gcm@openssh.com")).await,
            Self::Rathole => rathole::start(place, rathole::Transport::Plain).await,
            Self::RatholeTls => rathole::start(place, rathole::Transport::Tls).await,
            Self::RatholeNoise => rathole::start(place, rathole::Transport::Noise).await,
            Self::Penguin => penguin::start(place).await,
        }
    }
}

/// Where a program is: on the PATH, in one of the system's folders, where cargo installs, or in
/// `SG_PEERS_DIR`.
///
/// # Errors
/// It is nowhere.
fn find(name: &str) -> Result<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from);
    let cargo = std::env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| Some(home?.join(".cargo")));
    let own = std::env::var_os("SG_PEERS_DIR").map(PathBuf::from);
    [own, cargo.map(|folder| folder.join("bin"))]
        .into_iter()
        .flatten()
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
        .map_or_else(|| debian(name), Ok)
        .with_context(|| format!("{name} is not installed"))
}

/// What a peer is given.
struct Place<'a> {
    folder: &'a Path,
    pki: &'a Pki,
    ports: &'a mut Ports,
    resource: SocketAddr,
    udp_resource: SocketAddr,
}

impl Place<'_> {
    /// An address of loopback that nobody else uses.
    fn address(&mut self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.ports.server()))
    }

    /// Writes a file of the peer's folder.
    fn write(&self, name: &str, text: &str) -> Result<PathBuf> {
        let path = self.folder.join(name);
        std::fs::write(&path, text).with_context(|| format!("writing {name}"))?;
        Ok(path)
    }

    fn launch(&self, name: &str, program: &str) -> Result<Launch> {
        Ok(Launch::new(name, find(program)?, self.folder))
    }
}

/// A peer that has been started; its processes end with this value.
struct Running {
    address: SocketAddr,
    /// What it was started as, and the process.
    processes: Vec<(&'static str, sg_tests::Process)>,
}

/// All peers of a run.
pub(crate) struct Peers {
    // Processes end before their folders go: fields are dropped in this order.
    running: Vec<(Peer, Running)>,
    _ports: Ports,
    _folder: TempDir,
}

impl Peers {
    /// Starts them and waits until each carries a connection to the resource.
    ///
    /// # Errors
    /// One does not start; the error carries what it said.
    pub(crate) async fn start(
        peers: &[Peer],
        resource: SocketAddr,
        udp_resource: SocketAddr,
    ) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sg-bench-peers-")
            .tempdir()
            .context("folder")?;
        let mut ports = Ports::take()?;
        let pki = Pki::make(folder.path())?;
        let mut running = Vec::new();
        for peer in peers {
            let own = folder.path().join(peer.name());
            std::fs::create_dir(&own).context("folder of a peer")?;
            let mut place = Place {
                folder: &own,
                pki: &pki,
                ports: &mut ports,
                resource,
                udp_resource,
            };
            let mut started = peer
                .start(&mut place)
                .await
                .with_context(|| format!("starting {}", peer.name()))?;
            started
                .carries()
                .await
                .with_context(|| format!("starting {}", peer.name()))?;
            running.push((*peer, started));
        }
        Ok(Self {
            running,
            _ports: ports,
            _folder: folder,
        })
    }

    pub(crate) fn contenders(&self) -> Vec<Contender> {
        self.running
            .iter()
            .map(|(peer, running)| Contender {
                name: peer.name(),
                kind: peer.kind(),
                address: running.address,
                udp: peer.carries_datagrams().then_some(running.address),
                processes: running
                    .processes
                    .iter()
                    .map(|(name, process)| Process {
                        name,
                        id: process.id(),
                    })
                    .collect(),
            })
            .collect()
    }
}

impl Running {
    async fn carries(&mut self) -> Result<()> {
        let (address, processes) = (self.address, &mut self.processes);
        let carries = eventually(START, "it carries a connection", async || {
            for (_, process) in processes.iter_mut() {
                process.check_running()?;
            }
            load::open_and_close(address).await
        });
        let carried = carries.await;
        carried.with_context(|| {
            let said = self.processes.iter().map(|(name, process)| {
                format!("{name} said: {}", process.output().unwrap_or_default())
            });
            said.collect::<Vec<_>>().join("\n")
        })
    }
}

/// Waits until somebody listens.
async fn listens(address: SocketAddr) -> Result<()> {
    eventually(START, "it listens", async || {
        tokio::net::TcpStream::connect(address)
            .await
            .map(drop)
            .context("connecting")
    })
    .await
}
