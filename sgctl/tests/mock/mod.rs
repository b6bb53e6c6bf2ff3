//! A control plane of cardboard: it answers the public API over real TLS from fixed values, writes
//! down what it was asked, and fails when a name says so. It decides nothing.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result
)]

pub mod services;
mod tls;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};

use sg_proto::api;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Server;

pub use tls::Ca;

pub const TOKEN: &str = "sga_0123456789";

/// What the mock was asked, and how it should behave.
#[derive(Debug, Default)]
pub struct Script {
    /// One line for each request: method and what matters of it.
    pub asked: Vec<String>,
    /// Answer this many changes with ABORTED first.
    pub conflicts: usize,
    /// Why a node is not deleted without force; `NODE_CONNECTED` where nothing is said.
    pub node_lives: Option<&'static str>,
    /// What watching a destination shows, one after the other; then the watch stays silent.
    pub destination_states: Vec<api::Destination>,
    /// The same for access control lists.
    pub acl_states: Vec<api::Acl>,
    /// What getting and enabling a destination shows, if not the usual one.
    pub destination: Option<api::Destination>,
    /// The gateway `dev` that is there already; creating it is refused, and asking shows this one.
    pub existing: Option<api::Gateway>,
    /// Answer everything with UNAVAILABLE.
    pub unavailable: bool,
}

/// A running control plane of cardboard, and a folder with the files to reach it.
pub struct Mock {
    pub address: SocketAddr,
    pub script: Arc<Mutex<Script>>,
    pub folder: TempDir,
    _tasks: JoinSet<()>,
}

impl Mock {
    pub async fn start() -> Self {
        Self::start_as(&Ca::new(), "control-plane").await
    }

    /// One that shows a certificate of this kind by this authority.
    pub async fn start_as(ca: &Ca, kind: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        ca.write(&folder.path().join("ca.pem"));
        std::fs::write(folder.path().join("token"), TOKEN).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let script = Arc::new(Mutex::new(Script::default()));
        let (accepted, incoming) = mpsc::channel(8);
        let mut tasks = JoinSet::new();
        tasks.spawn(tls::accept(listener, ca.server(kind), accepted));
        let service = services::Services(Arc::clone(&script));
        tasks.spawn(async move {
            let incoming = ReceiverStream::new(incoming);
            let server = Server::builder()
                .add_service(api::gateways_server::GatewaysServer::new(service.clone()))
                .add_service(api::destinations_server::DestinationsServer::new(
                    service.clone(),
                ))
                .add_service(api::acls_server::AclsServer::new(service.clone()))
                .add_service(api::clients_server::ClientsServer::new(service.clone()))
                .add_service(api::nodes_server::NodesServer::new(service.clone()))
                .add_service(api::tokens_server::TokensServer::new(service.clone()))
                .add_service(api::system_server::SystemServer::new(service));
            let incoming = tokio_stream::StreamExt::map(incoming, Ok::<_, std::io::Error>);
            server.serve_with_incoming(incoming).await.unwrap();
        });
        Self {
            address,
            script,
            folder,
            _tasks: tasks,
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn asked(&self) -> Vec<String> {
        self.script.lock().unwrap().asked.clone()
    }

    /// Runs `sgctl` against this mock.
    pub async fn run(&self, arguments: &str) -> Run {
        self.run_at(&self.address.to_string(), arguments).await
    }

    /// Runs `sgctl` with these files and other addresses.
    pub async fn run_at(&self, server: &str, arguments: &str) -> Run {
        let mut command = sgctl(self.folder.path());
        command
            .env("SG_SERVER", server)
            .env("SG_CA", self.path("ca.pem"))
            .env("SG_TOKEN_FILE", self.path("token"))
            .args(arguments.split_whitespace());
        Run::of(command.output().await.unwrap())
    }
}

/// `sgctl` in an environment of its own: no variables, no contexts but those under `home`.
pub fn sgctl(home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sgctl"));
    command
        .env_clear()
        .env("HOME", home)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command
}

/// How a run ended.
#[derive(Debug)]
pub struct Run {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl Run {
    pub fn of(output: Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}
