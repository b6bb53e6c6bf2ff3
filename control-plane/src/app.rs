//! The composition root: read it to know what runs, and in which order it starts and ends.
//!
//! Start: listeners are bound; the store is awaited; what the installation shares is found or made;
//! the world is read; then the API serves. End: health says so and streams are closed; requests
//! are finished within the drain time; the rest is dropped.

use std::io::{self, Write as _};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use sg_proto::store as wire;
use sg_runtime::backoff::Backoff;
use sg_runtime::identity::{PeerIdentity, PeerKind};
use sg_runtime::metrics::{Counter, Metrics};
use sg_runtime::readiness::{Latch, Readiness};
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tasks::TaskGroup;
use sg_runtime::tls;
use sg_runtime::{admin_http, files, net, ready_file};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic_health::server::HealthReporter;

use crate::api::{Api, serve};
use crate::authority::Authority;
use crate::bootstrap::{self, BootstrapError, Foundation};
use crate::config::{self, Args};
use crate::gauges;
use crate::http;
use crate::ids;
use crate::push::{Observed, session};
use crate::recover;
use crate::service::Core;
use crate::service::audit::chain::Chain;
use crate::service::authority::{self, Current};
use crate::store::{self, Store, StoreError};
use crate::tasks::{certificate, destination_certificates, housekeeping, live, reseal};
use crate::vault::Vault;
use crate::world::StoreHealth;
use crate::world::keeper::{Keeper, Views};

/// Connections after their handshake that tonic has not taken yet.
const ACCEPTED: usize = 64;
/// What tasks get to end by themselves, at least.
const MOMENT: Duration = Duration::from_millis(250);

/// Why a control plane ended otherwise than asked to.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The flags, the files or the store do not fit together; whoever started it is to blame.
    #[error("{0}")]
    Usage(String),
    /// Something failed while running.
    #[error("{0}")]
    Failed(String),
}

impl AppError {
    fn bind(flag: &str, address: SocketAddr, error: &io::Error) -> Self {
        Self::Failed(format!("cannot listen on {address} ({flag}): {error}"))
    }
}

impl From<BootstrapError> for AppError {
    fn from(error: BootstrapError) -> Self {
        match error {
            BootstrapError::Authority(_) | BootstrapError::Unreadable { .. } => {
                Self::Failed(error.to_string())
            }
            error => Self::Usage(error.to_string()),
        }
    }
}

struct Listeners {
    grpc: TcpListener,
    http: TcpListener,
    admin: Option<TcpListener>,
}

#[derive(serde::Serialize)]
struct Ready {
    listen: SocketAddr,
    http_listen: SocketAddr,
    admin_listen: Option<SocketAddr>,
}

impl Listeners {
    fn bind(args: &Args) -> Result<Self, AppError> {
        let bind = |flag, address| {
            net::bind_tcp(address).map_err(|error| AppError::bind(flag, address, &error))
        };
        Ok(Self {
            grpc: bind("--listen", args.listen)?,
            http: bind("--http-listen", args.http_listen)?,
            admin: args
                .common
                .admin(config::ADMIN)
                .bind()
                .map_err(|error| AppError::Failed(error.to_string()))?,
        })
    }

    fn addresses(&self) -> io::Result<Ready> {
        Ok(Ready {
            listen: self.grpc.local_addr()?,
            http_listen: self.http.local_addr()?,
            admin_listen: self
                .admin
                .as_ref()
                .map(TcpListener::local_addr)
                .transpose()?,
        })
    }
}

/// Runs a control plane until it is told to end.
///
/// # Errors
/// [`AppError`].
pub async fn run(args: Args, shutdown: Shutdown) -> Result<(), AppError> {
    files::create_private_dir(&args.data_dir).map_err(|e| {
        AppError::Usage(format!(
            "cannot use --data-dir {}: {e}",
            args.data_dir.display()
        ))
    })?;
    let _lock = files::DirLock::acquire(&args.data_dir).map_err(|error| {
        AppError::Usage(format!(
            "cannot lock --data-dir {}: {error}; is another control plane running there?",
            args.data_dir.display()
        ))
    })?;
    if let Err(error) = net::raise_nofile_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let store = store::open(&args.store, &args.store_options())
        .await
        .map_err(open_error)?;
    if args.recover_admin {
        let path = recover::run(&args, store).await?;
        return writeln!(io::stdout(), "{}", path.display())
            .map_err(|error| AppError::Failed(error.to_string()));
    }
    start(args, store, shutdown).await
}

fn open_error(error: StoreError) -> AppError {
    AppError::Usage(format!("cannot use --store: {error}"))
}

/// Runs a control plane on a store that is open.
///
/// # Errors
/// [`AppError`].
pub async fn start(args: Args, store: Arc<dyn Store>, shutdown: Shutdown) -> Result<(), AppError> {
    forget_ready_file(&args)?;
    let listeners = Listeners::bind(&args)?;
    let addresses = listeners
        .addresses()
        .map_err(|e| AppError::Failed(e.to_string()))?;
    let Listeners { grpc, http, admin } = listeners;
    let readiness = Readiness::new();
    let metrics = Metrics::new("control-plane", env!("CARGO_PKG_VERSION"));
    let latches = Latches {
        store: readiness.latch("store"),
        serving: readiness.latch("api"),
    };
    let errors = metrics.register(
        "store_errors",
        "Failed calls to the store",
        Counter::default(),
    );
    let health = StoreHealth::new(errors);

    // Ends after everything else, so that it can tell of the drain.
    let end = CancellationToken::new();
    let mut plain = TaskGroup::new();
    if let Some(admin) = admin {
        let more = admin_http::Router::new();
        let serve = admin_http::serve(admin, readiness.clone(), metrics.clone(), more, end.clone());
        plain.spawn("admin HTTP", serve);
    }
    plain.spawn("HTTP", http::serve(http, readiness.clone(), end.clone()));

    let running = run_api(
        &args,
        store,
        shutdown.clone(),
        health,
        latches,
        &metrics,
        grpc,
        addresses,
    );
    // Boxed: it holds the whole of the control plane.
    let mut running = Box::pin(running);
    let result = tokio::select! {
        result = &mut running => result,
        ended = plain.join_next() => Err(task_ended(ended)),
    };
    drop(running);
    end.cancel();
    for name in plain.finish(Duration::from_secs(1)).await {
        tracing::debug!(task = name, "ended by force");
    }
    result
}

/// Whoever waits for the ready file must not see that of the last run.
fn forget_ready_file(args: &Args) -> Result<(), AppError> {
    let Some(path) = &args.common.ready_file else {
        return Ok(());
    };
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(AppError::Usage(format!(
            "cannot use --ready-file {}: {error}",
            path.display()
        ))),
        _ => Ok(()),
    }
}

struct Latches {
    store: Latch,
    serving: Latch,
}

/// Waits for the store, then serves until told to end.
async fn run_api(
    args: &Args,
    store: Arc<dyn Store>,
    shutdown: Shutdown,
    health: StoreHealth,
    mut latches: Latches,
    metrics: &Metrics,
    grpc: TcpListener,
    addresses: Ready,
) -> Result<(), AppError> {
    let draining = shutdown.draining();
    let foundation = tokio::select! {
        () = draining.cancelled() => return Ok(()),
        foundation = found(&*store, args, &health) => foundation?,
    };
    let (keeper, mut views) = Keeper::new(Vault::new(foundation.key.clone()));
    let mut running = Running::default();
    let keeping = keeper.run(Arc::clone(&store), health.clone());
    running.forever.spawn("keeper of the world", keeping);
    tokio::select! {
        () = draining.cancelled() => return Ok(()),
        ended = running.forever.join_next() => return Err(task_ended(ended)),
        () = views.loaded() => latches.store.set_ready(),
    }
    let (chain, following) = Chain::new(Arc::clone(&store), foundation.key.clone());
    running
        .forever
        .spawn("end of the audit trail", following.run());
    let key = foundation.key.clone();
    let (core, authority) = core(foundation, store, health, views.clone(), chain, args)?;
    let ca_file = args.data_dir.join("ca.pem");
    let following = authority::follow(views, key, authority, ca_file);
    running.forever.spawn("certificate authority", following);
    let core = Arc::new(core);
    gauges::register(metrics, &core);
    running
        .start(args, &core, metrics, grpc, &addresses, &draining)
        .await?;

    latches.serving.set_ready();
    tracing::info!(listen = %addresses.listen, http = %addresses.http_listen, id = core.control_plane, "control plane serves");
    if let Some(path) = &args.common.ready_file {
        ready_file::write(path, &addresses).map_err(|e| {
            AppError::Failed(format!("cannot write --ready-file {}: {e}", path.display()))
        })?;
    }
    running.wait(&shutdown).await?;
    latches.serving.set_pending();
    running.finish(&shutdown).await;
    tracing::info!("control plane ended");
    Ok(())
}

/// Everything that the use cases need.
pub(crate) fn core(
    foundation: Foundation,
    store: Arc<dyn Store>,
    health: StoreHealth,
    views: Views,
    chain: Chain,
    args: &Args,
) -> Result<(Core, watch::Sender<Arc<Authority>>), AppError> {
    let (sender, authority) = Current::new(foundation.authority.with_lives(args.lives()));
    let core = Core {
        store,
        health,
        views,
        observed: Observed::default(),
        authority,
        key: foundation.key,
        control_plane: control_plane_id(&args.data_dir)?,
        format: foundation.format,
        chain,
    };
    Ok((core, sender))
}

/// The tasks of a control plane that serves, by how they end.
#[derive(Default)]
struct Running {
    /// Never end; dropped at the end.
    forever: TaskGroup,
    /// End by themselves soon after draining begins.
    until_drain: TaskGroup,
    /// Ends when all requests are answered.
    server: TaskGroup,
    reporter: HealthReporter,
}

impl Running {
    async fn start(
        &mut self,
        args: &Args,
        core: &Arc<Core>,
        metrics: &Metrics,
        grpc: TcpListener,
        addresses: &Ready,
        draining: &CancellationToken,
    ) -> Result<(), AppError> {
        let host_name = host_name();
        let own = wire::ControlPlane {
            id: core.control_plane.clone(),
            address: args.advertised(addresses.listen, host_name.as_deref()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        };
        let (store, health) = (Arc::clone(&core.store), core.health.clone());
        let alive = live::run(store, health, own, draining.clone());
        self.until_drain.spawn("sign of life", alive);
        let (store, health) = (Arc::clone(&core.store), core.health.clone());
        let keeping = housekeeping::run(
            store,
            health,
            core.views.clone(),
            core.observed.clone(),
            core.key.clone(),
            args.audit_kept(),
            !args.no_compaction,
        );
        self.forever.spawn("housekeeping", keeping);
        let issuing = destination_certificates::run(Arc::clone(core));
        self.forever.spawn("destinations' certificates", issuing);
        let resealing = reseal::run(Arc::clone(&core.store), core.key.clone());
        self.forever.spawn("resealing", resealing);
        let observed = core.observed.clone();
        self.forever.spawn("settling", async move {
            // Nodes look for a control plane that came (back) far more often than this.
            tokio::time::sleep(session::SILENCE).await;
            observed.settle();
            std::future::pending::<()>().await;
        });

        let names = args.certificate_names(host_name.as_deref());
        let tls = own_tls(core, names, &mut self.forever)?;
        serve::set_health(&self.reporter, true).await;
        let (sender, connections) = mpsc::channel(ACCEPTED);
        let accepting = serve::accept(grpc, tls, sender, draining.clone());
        self.until_drain.spawn("accept", accepting);
        let api = Api::new(Arc::clone(core), metrics, draining.clone());
        let server = serve::serve(api, self.reporter.clone(), connections, draining.clone());
        let server = async move { server.await.map_err(|error| error.to_string()) };
        self.server.spawn("gRPC", server);
        Ok(())
    }

    /// Waits until draining begins; earlier only if a task ends that should not.
    async fn wait(&mut self, shutdown: &Shutdown) -> Result<(), AppError> {
        let ended = tokio::select! {
            biased;
            () = shutdown.wait_draining() => return Ok(()),
            ended = self.forever.join_next() => ended,
            ended = self.until_drain.join_next() => ended,
            ended = self.server.join_next() => ended,
        };
        // A task that saw the drain before we did has done nothing wrong.
        if shutdown.is_draining() {
            Ok(())
        } else {
            Err(task_ended(ended))
        }
    }

    async fn finish(mut self, shutdown: &Shutdown) {
        serve::set_health(&self.reporter, false).await;
        // Whoever watches our health has been told; their streams would otherwise never end.
        tokio::task::yield_now().await;
        serve::end_health(&mut self.reporter).await;
        // A second signal ends this at once: what is left is dropped with the group.
        let finished = shutdown.run(self.server.finish(shutdown.remaining())).await;
        if finished.is_none_or(|late| !late.is_empty()) {
            tracing::warn!("requests still ran at the end of the drain time and were dropped");
        }
        let limit = shutdown.remaining().clamp(MOMENT, MOMENT * 4);
        let late = self.until_drain.finish(limit).await;
        if !late.is_empty() {
            tracing::debug!(?late, "tasks had to be dropped");
        }
        self.forever.abort().await;
    }
}

fn task_ended(ended: Option<(String, sg_runtime::tasks::Ended)>) -> AppError {
    match ended {
        Some((name, how)) => AppError::Failed(format!("task '{name}' {how}")),
        None => AppError::Failed("all tasks ended".to_owned()),
    }
}

/// Finds or makes what the installation shares, as soon as the store answers.
async fn found(
    store: &dyn Store,
    args: &Args,
    health: &StoreHealth,
) -> Result<Foundation, AppError> {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(2));
    let key_file = args.store_key_file();
    tracing::info!(store = store.describe(), "reading the store");
    loop {
        match bootstrap::establish(store, &args.data_dir, &key_file).await {
            Ok(foundation) => {
                health.good();
                return Ok(foundation);
            }
            Err(error) if error.retryable() => {
                if let BootstrapError::Store(error) = &error {
                    health.bad(error);
                }
                if backoff.failures().is_multiple_of(10) {
                    tracing::warn!(%error, store = store.describe(), "waiting for the store");
                }
                tokio::time::sleep(backoff.next_delay()).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn own_tls(
    core: &Core,
    names: Vec<String>,
    tasks: &mut TaskGroup,
) -> Result<watch::Receiver<tls::ServerTls>, AppError> {
    let failed =
        |error: &dyn std::fmt::Display| AppError::Failed(format!("own certificate: {error}"));
    let identity =
        PeerIdentity::new(PeerKind::ControlPlane, &core.control_plane).map_err(|e| failed(&e))?;
    let own = certificate::Own { identity, names };
    let mut authority = core.authority.clone();
    authority.mark_seen();
    let first = own.tls(&authority.get()).map_err(|e| failed(&e))?;
    let (sender, tls) = watch::channel(first);
    tasks.spawn("own certificate", certificate::run(own, authority, sender));
    Ok(tls)
}

/// The id of this control plane: made once per data directory.
fn control_plane_id(data_dir: &Path) -> Result<String, AppError> {
    let path = data_dir.join("control-plane.id");
    let failed = |error: &dyn std::fmt::Display| {
        AppError::Usage(format!("cannot use {}: {error}", path.display()))
    };
    let new = ids::new_id('C', ids::now());
    files::create_private(&path, format!("{new}\n").as_bytes()).map_err(|e| failed(&e))?;
    let text = std::fs::read_to_string(&path).map_err(|e| failed(&e))?;
    let id = text.trim().to_owned();
    PeerIdentity::new(PeerKind::ControlPlane, id.clone()).map_err(|e| failed(&e))?;
    Ok(id)
}

fn host_name() -> Option<String> {
    let name = rustix::system::uname().nodename().to_str().ok()?.to_owned();
    (!name.is_empty()).then_some(name)
}
