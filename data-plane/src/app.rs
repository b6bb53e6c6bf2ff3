//! The composition root: what runs in a node, in which order it starts, and how it ends.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sg_model::{HostPort, NodeConfig};
use sg_proto::node::Hello;
use sg_relay::{StreamMetrics, TunnelBoard};
use sg_runtime::config::EXIT_USAGE;
use sg_runtime::identity::read_certificates;
use sg_runtime::metrics::Metrics;
use sg_runtime::readiness::{Latch, Readiness};
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tasks::{TaskGroup, TaskPool};
use sg_runtime::tls::{ClientAuth, Issuers, SetupError, server_config};
use sg_runtime::{admin_http, crypto, files, net, ready_file, sealed};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::balancers::Balancers;
use crate::certificates::Desk;
use crate::cloud::Cloud;
use crate::config::Settings;
use crate::control::{self, Control, Own};
use crate::edits::EditDesk;
use crate::enroll::{self, EnrollError, Identity};
use crate::for_clients::ForClients;
use crate::log_limit::LogLimit;
use crate::metrics::NodeMetrics;
use crate::node::{Node, Opening};
use crate::receptions::Receptions;
use crate::reconcile::{Applied, Reconciler, State};
use crate::state::{self, StateFile};
use crate::streams::OpenStreams;
use crate::tunnels::{Hold, Registry, acceptor};
use sg_runtime::places::Places;
use sg_tunnel_io::Config;

pub(crate) mod drain;

/// Why a node cannot run, or had to end.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The data directory cannot be used.
    #[error("cannot use the data directory {path}")]
    DataDir {
        /// The directory.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process has it.
    #[error(
        "the data directory {0} is in use by another process; give this one its own with --data-dir"
    )]
    Locked(String),
    /// An address cannot be bound.
    #[error("cannot listen on {address} ({flag})")]
    Bind {
        /// The address.
        address: SocketAddr,
        /// The flag that names it.
        flag: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The node has no identity.
    #[error("cannot join")]
    Enroll(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// What was given to join with cannot be used.
    #[error("cannot join")]
    JoinToken(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// No control plane is named and none is known from before.
    #[error("no control plane is known: give --control-plane")]
    NoControlPlane,
    /// The key of the stored configuration cannot be used.
    #[error(transparent)]
    StateKey(#[from] sealed::KeyError),
    /// TLS cannot be set up.
    #[error(transparent)]
    Tls(#[from] SetupError),
    /// The system refuses something that every node needs.
    #[error(transparent)]
    System(#[from] io::Error),
    /// A part that should run as long as the process has ended.
    #[error("{0}")]
    TaskEnded(String),
}

impl From<EnrollError> for AppError {
    fn from(error: EnrollError) -> Self {
        match error.is_usage() {
            true => Self::JoinToken(Box::new(error)),
            false => Self::Enroll(Box::new(error)),
        }
    }
}

impl AppError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::DataDir { .. } | Self::Locked(_) | Self::JoinToken(_) | Self::NoControlPlane => {
                u8::try_from(EXIT_USAGE).unwrap_or(2)
            }
            _ => 1,
        }
    }
}

/// Runs a node until it is told to end.
///
/// # Errors
/// [`AppError`]: it cannot start, or a part of it failed.
pub async fn run(settings: Settings) -> Result<(), AppError> {
    let descriptors = net::raise_nofile_limit().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit of open files cannot be raised");
        1024
    });
    let _lock = lock(&settings.data_dir)?;
    let shutdown = Shutdown::listen(settings.common.drain_timeout.get())?;
    let (readiness, metrics) = (
        Readiness::new(),
        Metrics::new("data-plane", env!("CARGO_PKG_VERSION")),
    );
    let latches = Latches::new(&readiness);
    let end = CancellationToken::new();
    let mut tasks = TaskGroup::new();
    let tunnel_config = settings.limits.config();
    let board = TunnelBoard::new(Arc::clone(&tunnel_config.budget));
    board.register(&metrics);
    let admin = settings.admin.bind()?;
    let admin_address = admin
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    if let Some(listener) = admin {
        let serve = admin_http::serve(
            listener,
            readiness.clone(),
            metrics.clone(),
            board.routes(),
            end.clone(),
        );
        tasks.spawn("admin", serve);
    }
    // A join token serves once: it is not to be spent by a node that cannot listen.
    let tunnel_listener = bind_tunnels(settings.tunnel_listen)?;
    let identity = match enroll::load(&settings.data_dir)? {
        Some(identity) => {
            for sentence in enroll::without_effect(&settings) {
                tracing::warn!("{sentence}");
            }
            identity
        }
        None => tokio::select! {
            joined = Box::pin(enroll::join(&settings)) => joined?,
            () = shutdown.wait_draining() => return Ok(()),
        },
    };
    let parts = Parts::start(
        &settings,
        identity,
        tunnel_listener,
        &metrics,
        (tunnel_config, board),
        &shutdown,
        descriptors,
        &mut tasks,
        &end,
    )
    .await?;
    Box::pin(parts.serve(settings, latches, readiness, admin_address, tasks, end)).await
}

fn lock(dir: &Path) -> Result<files::DirLock, AppError> {
    let path = || dir.display().to_string();
    files::create_private_dir(dir)
        .and_then(|()| files::DirLock::acquire(dir))
        .map_err(|source| match source.kind() {
            io::ErrorKind::WouldBlock => AppError::Locked(path()),
            _ => AppError::DataDir {
                path: path(),
                source,
            },
        })
}

/// What has to come about before the node is ready.
struct Latches {
    configuration: Latch,
    tunnels: Latch,
}

impl Latches {
    fn new(readiness: &Readiness) -> Self {
        Self {
            configuration: readiness.latch("configuration"),
            tunnels: readiness.latch("tunnel-listener"),
        }
    }
}

/// The running parts, and what is needed to end them.
struct Parts {
    node: Arc<Node>,
    tunnel_address: SocketAddr,
    tunnels: TaskPool,
    applied: watch::Receiver<Arc<Applied>>,
    /// Ends what accepts: destinations' ports and the tunnel listener.
    stop_accepting: CancellationToken,
}

impl Parts {
    async fn start(
        settings: &Settings,
        identity: Identity,
        listener: TcpListener,
        metrics: &Metrics,
        tunnels: (Config, TunnelBoard),
        shutdown: &Shutdown,
        descriptors: u64,
        tasks: &mut TaskGroup,
        end: &CancellationToken,
    ) -> Result<Self, AppError> {
        let state = StateFile::open(&settings.data_dir, &identity.id)?;
        let known_file = settings.data_dir.join("control-planes");
        if settings.control_planes.is_empty() && control::known(&known_file).is_empty() {
            return Err(AppError::NoControlPlane);
        }
        // Nothing else runs yet that could be held up by the disk.
        let stored = state.load().unwrap_or_default();
        if stored.revision() > 0 {
            tracing::info!(
                revision = stored.revision(),
                "serving the configuration kept on disk"
            );
        }
        let tunnel_address = listener.local_addr()?;
        let own = Own::new(
            identity.id.clone(),
            settings.data_dir.clone(),
            &identity.credentials,
        )?;
        let tunnel_tls =
            server_config(&own.shown(), &ClientAuth::AnySelfSigned, &[acceptor::ALPN])?;
        let roots = read_certificates(&settings.data_dir.join("ca.pem"));
        let issuers = Issuers::new(&roots.map_err(SetupError::from)?)?;
        let ((desk, questions), (edit_desk, edits)) = (Desk::new(), EditDesk::new());
        let node = node(
            settings,
            &identity,
            metrics,
            tunnels,
            shutdown,
            descriptors,
            (issuers, desk, edit_desk),
        );
        node.registry
            .expect(stored.gateways().map(|g| g.id.clone()));
        let (desired, desired_rx) = watch::channel(Arc::new(stored));
        let (applied_tx, applied) = watch::channel(Arc::default());
        let stop_accepting = CancellationToken::new();
        let tunnels = TaskPool::new("tunnels", share(descriptors, 2));

        let reconciler = Reconciler::new(
            Arc::clone(&node),
            settings.destination_address,
            desired_rx,
            applied_tx,
        );
        let reconcile = reconciler.run(stop_accepting.clone(), end.clone());
        tasks.spawn("reconcile", reconcile);
        let accept = acceptor::run(
            Arc::clone(&node),
            listener,
            tunnel_tls,
            tunnels.clone(),
            stop_accepting.clone(),
        );
        tasks.spawn("tunnels", accept);
        let keep = state::keep(
            state,
            node.served.subscribe(),
            node.metrics.clone(),
            end.clone(),
        );
        tasks.spawn("state", keep);
        let control = Control {
            node: Arc::clone(&node),
            own,
            hello: hello(settings, tunnel_address),
            configured: settings.control_planes.clone(),
            known_file,
            desired,
            applied: applied.clone(),
            questions,
            edits,
        };
        tasks.spawn("control", control.run(end.clone()));
        Ok(Self {
            node,
            tunnel_address,
            tunnels,
            applied,
            stop_accepting,
        })
    }

    async fn serve(
        self,
        settings: Settings,
        mut latches: Latches,
        readiness: Readiness,
        admin: Option<SocketAddr>,
        mut tasks: TaskGroup,
        end: CancellationToken,
    ) -> Result<(), AppError> {
        latches.tunnels.set_ready();
        let shutdown = self.node.shutdown.clone();
        let mut configured = false;
        let mut applied = self.applied.clone();
        let failure = loop {
            // Every arm can be cancelled without loss.
            tokio::select! {
                biased;
                () = shutdown.wait_draining() => break None,
                Some((name, ended)) = tasks.join_next() => {
                    break Some(AppError::TaskEnded(format!("the part {name} of the node {ended}")));
                }
                configuration = applied.wait_for(|a| a.revision > 0), if !configured => {
                    let Ok(applied) = configuration.map(|a| Arc::clone(&a)) else { continue };
                    configured = true;
                    latches.configuration.set_ready();
                    self.announce(&settings, &applied, admin)?;
                }
            }
        };
        let _draining = readiness.latch("draining");
        if failure.is_none() {
            drain::run(&self.node, &self.tunnels, &self.stop_accepting).await;
        }
        self.stop_accepting.cancel();
        end.cancel();
        let stuck = tasks.finish(Duration::from_secs(1)).await;
        if !stuck.is_empty() {
            tracing::warn!(?stuck, "parts of the node did not end in time");
        }
        failure.map_or(Ok(()), Err)
    }

    fn announce(
        &self,
        settings: &Settings,
        applied: &Applied,
        admin: Option<SocketAddr>,
    ) -> io::Result<()> {
        tracing::info!(node = %self.node.id, tunnel = %self.tunnel_address, revision = applied.revision,
            records_by = sg_runtime::tls::implementation().as_str(), "ready");
        let Some(path) = &settings.common.ready_file else {
            return Ok(());
        };
        let config = self.node.config();
        let destinations: serde_json::Map<_, _> = applied
            .destinations
            .iter()
            .filter(|status| status.state == State::Listening)
            .filter_map(|status| {
                let name = qualified_name(&config, &status.id)?;
                Some((name, status.address?.to_string().into()))
            })
            .collect();
        let content = serde_json::json!({
            "node_id": self.node.id.as_str(),
            "tunnel_listen": self.tunnel_address,
            "admin_listen": admin,
            "destinations": destinations,
        });
        ready_file::write(path, &content)
    }
}

fn qualified_name(config: &NodeConfig, id: &sg_model::DestinationId) -> Option<String> {
    let destination = config.destination(id)?;
    let gateway = config.gateway(&destination.gateway)?;
    Some(format!("{}/{}", gateway.name, destination.name))
}

fn bind_tunnels(address: SocketAddr) -> Result<TcpListener, AppError> {
    net::bind_tcp(address).map_err(|source| AppError::Bind {
        address,
        flag: "--tunnel-listen",
        source,
    })
}

fn node(
    settings: &Settings,
    identity: &Identity,
    metrics: &Metrics,
    (tunnel_config, board): (Config, TunnelBoard),
    shutdown: &Shutdown,
    descriptors: u64,
    (issuers, desk, edits): (Issuers, Desk, EditDesk),
) -> Arc<Node> {
    let (handshakes, per_source) = settings.handshakes;
    let node_metrics = NodeMetrics::register(metrics);
    Arc::new(Node {
        id: identity.id.clone(),
        id_text: identity.id.as_str().into(),
        name: settings.name.clone(),
        served: watch::Sender::default(),
        registry: Arc::new(Registry::new(node_metrics.clone(), tunnel_config)),
        streams: OpenStreams::default(),
        receptions: Receptions::default(),
        for_clients: ForClients::default(),
        cloud_allow: settings.cloud_allow.clone(),
        cloud: Cloud::new(share(descriptors, 4)),
        hold: Hold::new(),
        half_open: Places::new(handshakes, per_source),
        issuers,
        trust: watch::Sender::default(),
        desk,
        edits,
        balancers: Balancers::new(settings.trusted_proxies.clone()),
        sources: Places::new(0, settings.streams_per_source),
        board,
        metrics: node_metrics,
        stream_metrics: StreamMetrics::register(metrics),
        // Users must not be able to take the descriptors that clients need to come back.
        connections: TaskPool::new("connections", share(descriptors, 4) * 3),
        opening: Opening::default(),
        full_lines: LogLimit::default(),
        shutdown: shutdown.clone(),
    })
}

/// One of `parts` equal parts of the descriptors.
fn share(descriptors: u64, parts: usize) -> usize {
    usize::try_from(descriptors)
        .unwrap_or(usize::MAX)
        .min(1 << 24)
        / parts
}

fn hello(settings: &Settings, tunnel: SocketAddr) -> Hello {
    let reachable = HostPort::new(settings.advertise.clone(), tunnel.port());
    Hello {
        boot_id: crypto::hex(&crypto::random_bytes::<16>()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        name: settings.name.to_string(),
        group: settings.group.to_string(),
        tunnel_address: reachable.map(|a| a.to_string()).unwrap_or_default(),
        destination_host: settings.advertise.to_string(),
        port_first: settings.destination_ports.first().into(),
        port_last: settings.destination_ports.last().into(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use sg_runtime::config::load_from;

    use super::*;
    use crate::config::Args;

    async fn fails(dir: &Path, flags: &[&str]) -> AppError {
        crypto::install();
        let dir = dir.display().to_string();
        let fixed = [
            "sg-data-plane",
            "--admin-listen",
            "127.0.0.1:0",
            "--data-dir",
            &dir,
        ];
        let Ok(args) = load_from::<Args>(fixed.iter().chain(flags), &|_| None) else {
            panic!("each flag parses by itself");
        };
        run(args.check().unwrap()).await.unwrap_err()
    }

    #[tokio::test]
    async fn a_node_that_cannot_listen_does_not_join() {
        let control_plane = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let (control_plane_address, taken) = (
            control_plane.local_addr().unwrap().to_string(),
            taken.local_addr().unwrap().to_string(),
        );
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("join.token");
        std::fs::write(&token, format!("sgj_{}", "ab".repeat(64))).unwrap();
        let flags = [
            "--control-plane",
            &control_plane_address,
            "--tunnel-listen",
            &taken,
            "--join-token-file",
            token.to_str().unwrap(),
        ];
        let data = dir.path().join("data");
        let failed = Box::pin(fails(&data, &flags));
        let failed = tokio::time::timeout(Duration::from_secs(5), failed);
        let error = failed.await.expect("it ends without an answer");
        assert!(matches!(error, AppError::Bind { .. }), "{error}");
        assert_eq!(error.exit_code(), 1);
        let knocked = tokio::time::timeout(Duration::from_millis(50), control_plane.accept());
        assert!(knocked.await.is_err(), "nobody was asked to join");
    }

    #[test]
    fn a_name_or_group_that_comes_too_late_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let told = |flags: &[&str]| {
            let fixed = ["sg-data-plane", "--data-dir", dir.path().to_str().unwrap()];
            let Ok(args) = load_from::<Args>(fixed.iter().chain(flags), &|_| None) else {
                panic!("each flag parses by itself");
            };
            enroll::without_effect(&args.check().unwrap())
        };
        let other = ["--group", "other", "--name", "n2"];
        assert_eq!(told(&other), Vec::<String>::new(), "nothing is known");
        std::fs::write(dir.path().join("joined"), "n1\nedge\n").unwrap();
        assert_eq!(told(&[]), Vec::<String>::new());
        assert_eq!(
            told(&["--group", "edge", "--name", "n1"]),
            Vec::<String>::new()
        );
        assert_eq!(
            told(&other),
            [
                "--name n2 is not in effect: this node joined with name n1; to rename it, let it join anew",
                "--group other is not in effect: this node joined with group edge; to move it, let it join anew",
            ]
        );
    }

    #[tokio::test]
    async fn what_the_operator_got_wrong_ends_with_2() {
        let dir = tempfile::tempdir().unwrap();
        let (data, file) = (dir.path().join("data"), dir.path().join("token"));
        let admin = format!("sga_{}", "ab".repeat(64));
        std::fs::write(&file, admin).unwrap();
        let listen = ["--tunnel-listen", "127.0.0.1:0"];
        let with = ["--control-plane", "127.0.0.1:1", "--join-token-file"];
        let missing = dir.path().join("nope");
        let (file, missing) = (file.to_str().unwrap(), missing.to_str().unwrap());
        for (flags, part) in [
            (vec![], "give --join-token-file"),
            (
                [&with[..], &[missing]].concat(),
                "cannot read the join token file",
            ),
            (
                [&with[..], &[file]].concat(),
                "/token holds an admin token (sga_); a node needs a join token (sgj_)",
            ),
        ] {
            let flags = [&listen[..], &flags[..]].concat();
            let error = Box::pin(fails(&data, &flags)).await;
            let text = sg_runtime::telemetry::chain(&error);
            assert!(text.contains(part), "{text}");
            assert_eq!(error.exit_code(), 2, "{text}");
        }
        files::create_private_dir(&data).unwrap();
        let _lock = files::DirLock::acquire(&data).unwrap();
        let error = Box::pin(fails(&data, &listen)).await;
        assert!(matches!(error, AppError::Locked(_)), "{error}");
        assert_eq!(error.exit_code(), 2);
    }
}
