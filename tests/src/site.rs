//! One whole installation on loopback: a store, control planes, nodes, and the gateways,
//! destinations and clients that a test makes in it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::canaries::{self, Evidence};
use crate::counterpart::etcd::Etcd;
use crate::process::print_tails;
use crate::programs::product_in;
use crate::{Daemon, Launch, PATIENCE, Ports, Sgctl, eventually, get, logs, product};

/// What kind of installation a test wants.
#[derive(Debug, Clone)]
pub struct SiteSetup {
    /// etcd as the store; the embedded store otherwise.
    pub etcd: bool,
    /// Control planes, all on the one store.
    pub control_planes: u8,
    /// Nodes; the first is at 127.0.0.1, the second at 127.0.0.2 and so on.
    pub nodes: u8,
    /// Variables of the nodes' environment.
    pub node_environment: Vec<(&'static str, String)>,
    /// Further options of the control planes.
    pub control_plane_options: Vec<String>,
    /// Node and client of another build, in this folder.
    pub programs: Option<PathBuf>,
}

impl Default for SiteSetup {
    fn default() -> Self {
        Self {
            etcd: false,
            control_planes: 1,
            nodes: 1,
            node_environment: Vec::new(),
            control_plane_options: Vec::new(),
            programs: None,
        }
    }
}

/// A gateway as `sgctl gateway create` answered it.
#[derive(Debug, Clone)]
pub struct Gateway {
    pub id: String,
    pub name: String,
    pub token: String,
    pub token_file: PathBuf,
}

/// A destination whose port is open.
#[derive(Debug, Clone)]
pub struct Destination {
    /// GATEWAY/NAME.
    pub path: String,
    pub port: u16,
    /// Where users connect, on the first node.
    pub address: SocketAddr,
}

/// How a client is started.
#[derive(Debug, Clone, Default)]
pub struct ClientSetup {
    /// Instead of the first node's tunnel port; tried in this order.
    pub nodes: Vec<SocketAddr>,
    /// Instead of the gateway's token.
    pub token_file: Option<PathBuf>,
    /// Instead of the installation's CA file.
    pub ca: Option<String>,
    /// Instead of the gateway's id.
    pub gateway: Option<String>,
    /// Ends at the first failed connection.
    pub once: bool,
    /// The gateway's token stands on the command line, as migrators have it.
    pub token_argument: bool,
    /// Further options.
    pub options: Vec<String>,
}

/// A client of the installation; started or not.
#[derive(Debug)]
pub struct Client {
    pub daemon: Daemon,
    /// Its data directory.
    pub data: PathBuf,
}

/// An installation. A test ends with [`Site::finish`]; without it the logs are printed.
#[derive(Debug)]
pub struct Site {
    // Processes end before their folder goes: fields are dropped in this order.
    pub nodes: Vec<Daemon>,
    pub control_planes: Vec<Daemon>,
    pub etcd: Option<Etcd>,
    pub sgctl: Sgctl,
    ports: Ports,
    tunnel_port: u16,
    control_addresses: Vec<String>,
    secrets: Vec<String>,
    clients: u32,
    finished: bool,
    evidence: Evidence,
    programs: Option<PathBuf>,
    folder: TempDir,
}

impl Site {
    /// One control plane with the embedded store, and one node.
    ///
    /// # Errors
    /// As [`Site::with`].
    pub async fn start() -> Result<Self> {
        Self::with(SiteSetup::default()).await
    }

    /// Starts what `setup` names and waits until all of it is ready.
    ///
    /// # Errors
    /// A program is missing or does not become ready.
    pub async fn with(setup: SiteSetup) -> Result<Self> {
        let folder = tempfile::Builder::new()
            .prefix("sg-test-")
            .tempdir()
            .context("folder")?;
        let mut ports = Ports::take()?;
        let etcd = match setup.etcd {
            true => Some(Etcd::start(folder.path(), ports.server(), ports.server()).await?),
            false => None,
        };
        let first = folder.path().join("control-plane-1");
        let control_addresses: Vec<String> = (0..setup.control_planes)
            .map(|_| format!("127.0.0.1:{}", ports.server()))
            .collect();
        let evidence = Evidence::new(folder.path())?;
        let sgctl = Sgctl::new(
            &control_addresses.join(","),
            &first.join("ca.pem"),
            &first.join("admin.token"),
        )
        .seen_by(&evidence);
        let tunnel_port = ports.server();
        let mut site = Self {
            nodes: Vec::new(),
            control_planes: Vec::new(),
            etcd,
            sgctl,
            ports,
            tunnel_port,
            control_addresses,
            secrets: Vec::new(),
            clients: 0,
            finished: false,
            evidence,
            programs: setup.programs,
            folder,
        };
        for index in 0..setup.control_planes {
            site.add_control_plane(index, &setup.control_plane_options)
                .await?;
        }
        let admin_token = std::fs::read_to_string(first.join("admin.token"));
        site.secrets
            .push(admin_token.context("admin token")?.trim().to_owned());
        for index in 0..setup.nodes {
            site.add_node(index, &setup.node_environment).await?;
        }
        Ok(site)
    }

    async fn add_control_plane(&mut self, index: u8, options: &[String]) -> Result<()> {
        let name = format!("control-plane-{}", index + 1);
        let data = self.data_folder(&name)?;
        let store = match &self.etcd {
            Some(etcd) => format!("etcd://{}", etcd.address()),
            None => format!("embedded:{}", data.join("store.redb").display()),
        };
        let listen = self
            .control_addresses
            .get(usize::from(index))
            .context("address")?;
        let http = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.server()));
        let mut launch = Launch::new(&name, product("sg-control-plane")?, self.folder.path())
            .option("--store", store)
            .option("--data-dir", &data)
            .option("--listen", listen)
            .option("--http-listen", http.to_string());
        for option in options {
            launch = launch.arg(option);
        }
        if index > 0 {
            let key = self.folder.path().join("control-plane-1").join("store.key");
            launch = launch.option("--store-key-file", key);
        }
        let mut daemon = self.daemon(launch, &name).with_port(http);
        daemon
            .start()
            .await
            .with_context(|| format!("{name} starts"))?;
        self.control_planes.push(daemon);
        Ok(())
    }

    async fn add_node(&mut self, index: u8, environment: &[(&str, String)]) -> Result<()> {
        let name = format!("node-{}", index + 1);
        let data = self.data_folder(&name)?;
        let token = self.sgctl.json(&["node", "token", "create"]).await?;
        let token = text(&token, "token")?;
        let token_file = self.folder.path().join(format!("{name}.join-token"));
        self.secrets.push(token.clone());
        write_secret(&token_file, &token)?;
        let address = Self::node_host(index);
        let (first, last) = self.ports.destinations();
        let mut launch = Launch::new(&name, self.program("sg-data-plane")?, self.folder.path())
            .option("--control-plane", self.control_addresses.join(","))
            .option("--join-token-file", token_file)
            .option("--data-dir", &data)
            .option("--tunnel-listen", self.tunnel_address(index).to_string())
            .option("--destination-address", address.to_string())
            .option("--destination-ports", format!("{first}-{last}"))
            .option("--advertise", address.to_string())
            .option("--name", &name);
        for (variable, value) in environment {
            launch = launch.env(variable, value);
        }
        let mut daemon = self.daemon(launch, &name);
        daemon
            .start()
            .await
            .with_context(|| format!("{name} starts"))?;
        self.nodes.push(daemon);
        Ok(())
    }

    /// A program that users' bytes go through.
    fn program(&self, name: &str) -> Result<PathBuf> {
        product_in(self.programs.as_deref(), name)
    }

    fn daemon(&mut self, launch: Launch, name: &str) -> Daemon {
        let ready = self.folder.path().join(format!("{name}.ready"));
        let admin = SocketAddr::from((Ipv4Addr::LOCALHOST, self.ports.server()));
        Daemon::new(launch, ready, admin, &self.evidence)
    }

    fn data_folder(&self, name: &str) -> Result<PathBuf> {
        let data = self.folder.path().join(name);
        std::fs::create_dir(&data).context("data folder")?;
        Ok(data)
    }

    /// The address of a node's listeners; 0 is the first.
    #[must_use]
    pub fn node_host(index: u8) -> IpAddr {
        Ipv4Addr::new(127, 0, 0, index + 1).into()
    }

    /// Where clients reach a node; 0 is the first.
    #[must_use]
    pub fn tunnel_address(&self, index: u8) -> SocketAddr {
        SocketAddr::new(Self::node_host(index), self.tunnel_port)
    }

    /// Folder of everything; goes with the installation.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// HOST:PORT of each control plane.
    #[must_use]
    pub fn control_addresses(&self) -> &[String] {
        &self.control_addresses
    }

    /// The CA that verifies control planes and nodes.
    #[must_use]
    pub fn ca_file(&self) -> PathBuf {
        self.folder.path().join("control-plane-1").join("ca.pem")
    }

    /// Ports for a test's own servers, and those of destinations.
    pub fn ports(&mut self) -> &mut Ports {
        &mut self.ports
    }

    /// The first node.
    ///
    /// # Panics
    /// The installation was made without nodes.
    pub fn node(&mut self) -> &mut Daemon {
        self.nodes
            .first_mut()
            .expect("a test that asks for the node has one")
    }

    /// The first control plane.
    ///
    /// # Panics
    /// The installation was made without control planes.
    pub fn control_plane(&mut self) -> &mut Daemon {
        self.control_planes
            .first_mut()
            .expect("a test that asks for the control plane has one")
    }

    /// Makes a gateway with a token.
    ///
    /// # Errors
    /// `sgctl` fails.
    pub async fn gateway(&mut self, name: &str) -> Result<Gateway> {
        self.gateway_with(name, &[]).await
    }

    /// Makes a gateway with a token and these options of `sgctl gateway create`.
    ///
    /// # Errors
    /// `sgctl` fails.
    pub async fn gateway_with(&mut self, name: &str, options: &[&str]) -> Result<Gateway> {
        let mut arguments = vec!["gateway", "create", name];
        arguments.extend(options);
        let made = self.sgctl.json(&arguments).await?;
        let token = text(&made, "securityToken")?;
        let gateway = Gateway {
            id: text(&made, "id")?,
            name: name.to_owned(),
            token_file: self.secret_file(&format!("{name}.token"), &token)?,
            token,
        };
        Ok(gateway)
    }

    /// Writes a secret to a file of its own; it must not appear in any log from then on.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn secret_file(&mut self, name: &str, secret: &str) -> Result<PathBuf> {
        let path = self.folder.path().join(name);
        write_secret(&path, secret)?;
        self.secrets.push(secret.to_owned());
        Ok(path)
    }

    /// Everything that must not be seen anywhere: tokens, and the keys in files.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn canaries(&self) -> Result<Vec<String>> {
        let mut all = self.secrets.clone();
        canaries::of_key_files(self.folder.path(), &mut all)?;
        Ok(all)
    }

    /// `sgctl` with another admin token.
    #[must_use]
    pub fn sgctl_with(&self, token_file: &Path) -> Sgctl {
        let servers = self.control_addresses.join(",");
        Sgctl::new(&servers, &self.ca_file(), token_file).seen_by(&self.evidence)
    }

    /// Makes an on-premises TCP destination, allows its resource, and waits until both are in
    /// force.
    ///
    /// # Errors
    /// `sgctl` fails, which it does too when the nodes take too long.
    pub async fn destination(
        &self,
        gateway: &Gateway,
        name: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<Destination> {
        self.sgctl
            .run(&["acl", "allow", &gateway.name, resource, "--wait", "10s"])
            .await?;
        self.destination_only(gateway, name, resource, options)
            .await
    }

    /// As [`Site::destination`], and leaves the access control list alone.
    ///
    /// # Errors
    /// As [`Site::destination`].
    pub async fn destination_only(
        &self,
        gateway: &Gateway,
        name: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<Destination> {
        let path = format!("{}/{name}", gateway.name);
        let mut arguments = vec!["destination", "create", &path, "--protocol", "tcp"];
        arguments.extend(["--resource", resource, "--wait"]);
        arguments.extend(options);
        let made = self.sgctl.json(&arguments).await?;
        let port = made
            .get("cloudPort")
            .and_then(Value::as_u64)
            .context("cloudPort")?;
        let port = u16::try_from(port).context("cloudPort")?;
        Ok(Destination {
            path,
            port,
            address: SocketAddr::new(Self::node_host(0), port),
        })
    }

    /// Prepares a client with data of its own; it is not started.
    ///
    /// # Errors
    /// Its folder cannot be made.
    pub fn prepare_client(&mut self, gateway: &Gateway, setup: ClientSetup) -> Result<Client> {
        self.clients += 1;
        let name = format!("client-{}", self.clients);
        let data = self.data_folder(&name)?;
        let mut nodes = setup.nodes;
        if nodes.is_empty() {
            nodes.push(self.tunnel_address(0));
        }
        let nodes: Vec<String> = nodes.iter().map(SocketAddr::to_string).collect();
        let ca = setup
            .ca
            .unwrap_or_else(|| self.ca_file().display().to_string());
        let mut launch = Launch::new(&name, self.program("sg-client")?, self.folder.path())
            .arg(setup.gateway.as_ref().unwrap_or(&gateway.id))
            .option("-g", nodes.join(","))
            .option("--ca", ca)
            .option("--data-dir", &data)
            .arg("--noUI");
        launch = match setup.token_argument {
            true => launch.option("-t", &gateway.token),
            false => {
                let file = setup.token_file.as_ref().unwrap_or(&gateway.token_file);
                launch.option("--token-file", file)
            }
        };
        if setup.once {
            launch = launch.arg("--once");
        }
        for option in setup.options {
            launch = launch.arg(option);
        }
        Ok(Client {
            daemon: self.daemon(launch, &name),
            data,
        })
    }

    /// Starts a client and waits until its tunnel is up.
    ///
    /// # Errors
    /// It ends or does not connect in time.
    pub async fn client(&mut self, gateway: &Gateway) -> Result<Client> {
        let mut client = self.prepare_client(gateway, ClientSetup::default())?;
        client.connect().await?;
        Ok(client)
    }

    /// The rows of `sgctl client list`.
    ///
    /// # Errors
    /// `sgctl` fails.
    pub async fn client_rows(&self, gateway: &Gateway) -> Result<Vec<Value>> {
        let list = self.sgctl.json(&["client", "list", &gateway.name]).await?;
        list.get("clients")
            .and_then(Value::as_array)
            .cloned()
            .context("clients")
    }

    /// Waits until the control plane lists this many clients of a gateway.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn clients_listed(&self, gateway: &Gateway, count: usize) -> Result<Vec<Value>> {
        eventually(
            PATIENCE,
            &format!("{count} clients are listed"),
            async || {
                let rows = self.client_rows(gateway).await?;
                match rows.len() == count {
                    true => Ok(rows),
                    false => bail!("{} are listed", rows.len()),
                }
            },
        )
        .await
    }

    /// What the installation has shown so far.
    #[must_use]
    pub const fn evidence(&self) -> &Evidence {
        &self.evidence
    }

    /// Something that must not be seen anywhere, and stands in no file.
    pub fn keep_secret(&mut self, secret: impl Into<String>) {
        self.secrets.push(secret.into());
    }

    /// Ends the test: no process has panicked, and no secret is anywhere where it does not belong.
    ///
    /// # Errors
    /// One of both has happened, or a log cannot be read.
    pub fn finish(mut self) -> Result<()> {
        self.sgctl.read_everything();
        for entry in std::fs::read_dir(self.folder.path()).context("folder")? {
            let path = entry.context("folder")?.path();
            if path.extension().is_none_or(|kind| kind != "log") {
                continue;
            }
            let text = logs::read(&path)?;
            if let Some(line) = text.lines().find(|line| line.contains("panicked at")) {
                bail!("a panic in {}: {line}", path.display());
            }
        }
        let secrets = self.canaries()?;
        canaries::search(self.folder.path(), &secrets, &self.evidence)?;
        self.finished = true;
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if !self.finished {
            print_tails(self.folder.path());
        }
    }
}

impl Client {
    /// From its next start on it is given no token.
    pub fn forget_token(&mut self) {
        let launch = self.daemon.launch_mut();
        *launch = launch.clone().without("--token-file");
    }

    /// Starts it and waits until its tunnel is up.
    ///
    /// # Errors
    /// It ends or does not connect in time.
    pub async fn connect(&mut self) -> Result<()> {
        self.daemon.start().await?;
        self.connected(PATIENCE).await
    }

    /// Waits until it says that it has a tunnel.
    ///
    /// # Errors
    /// It does not in time.
    pub async fn connected(&self, limit: Duration) -> Result<()> {
        let admin = self.daemon.admin();
        eventually(limit, "the client has a tunnel", async || {
            match get(admin, "/readyz").await? {
                (200, _) => Ok(()),
                (status, body) => bail!("/readyz answers {status}: {body}"),
            }
        })
        .await
    }
}

impl Destination {
    /// Connects as a user does.
    ///
    /// # Errors
    /// Nothing listens.
    pub async fn connect(&self) -> Result<TcpStream> {
        TcpStream::connect(self.address)
            .await
            .with_context(|| format!("user of {}", self.path))
    }
}

/// A text field of an answer of `sgctl`.
fn text(value: &Value, name: &str) -> Result<String> {
    let field = value.get(name).and_then(Value::as_str);
    // The whole answer may hold a token, so it is not shown.
    Ok(field
        .with_context(|| format!("the answer has no {name}"))?
        .to_owned())
}

fn write_secret(path: &Path, secret: &str) -> Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;

    let mut file = std::fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .context("secret file")?;
    file.write_all(secret.as_bytes()).context("secret file")
}
