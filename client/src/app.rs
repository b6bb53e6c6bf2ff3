//! The process: what runs, in which order it starts, and how it ends.
//!
//! Exit codes: 0 after a drain, 1 when something failed at run time or every gateway was given up,
//! 2 when what was asked for cannot be used.

use std::io::IsTerminal as _;
use std::sync::Arc;
use std::time::Duration;

use sg_relay::TunnelBoard;
use sg_runtime::config::EXIT_USAGE;
use sg_runtime::metrics::Metrics;
use sg_runtime::readiness::Readiness;
use sg_runtime::shutdown::Shutdown;
use sg_runtime::tasks::TaskPool;
use sg_runtime::telemetry::chain;
use sg_runtime::{admin_http, crypto, net, ready_file, tls};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::acl::AclState;
use crate::certificate::Certificate;
use crate::cloud::ClientPorts;
use crate::console;
use crate::dial_gate::DialGate;
use crate::gateway::{Gateway, GatewayContext, GatewayEnd, Shared};
use crate::identity::{Identity, IdentityError};
use crate::metrics::ClientMetrics;
use crate::options::{ConsoleChoice, Reconnect, Settings};
use crate::token::Token;
use crate::trust::NodeTrust;

/// Streams of the whole process.
const MOST_STREAMS: usize = 10_000;
/// Time for the last streams to notice that they are over.
const STREAMS_END: Duration = Duration::from_secs(1);

/// Which gateway's task ended, and how.
type Ended = (Arc<str>, GatewayEnd);

/// Why the client could not run, or ended.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The runtime or the signals cannot be had. The system is to blame.
    #[error("cannot start: {0}")]
    System(#[source] std::io::Error),
    /// The data directory cannot be used.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The CA cannot be used.
    #[error("--ca cannot be used: {0}")]
    Trust(#[source] tls::SetupError),
    /// The admin address cannot be listened on.
    #[error(transparent)]
    Admin(std::io::Error),
    /// The ready file cannot be written.
    #[error("cannot write the ready file: {0}")]
    ReadyFile(#[source] std::io::Error),
    /// No gateway is left.
    #[error("{0}")]
    GivenUp(String),
    /// A fault of this program.
    #[error("internal error: {0}")]
    Internal(String),
}

impl AppError {
    /// The exit code of the process.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Trust(_)
            | Self::Identity(IdentityError::Locked(_) | IdentityError::Directory { .. }) => {
                u8::try_from(EXIT_USAGE).unwrap_or(2)
            }
            _ => 1,
        }
    }
}

/// Runs the client until a signal ends it; answers the exit code.
#[must_use]
pub fn main(settings: Settings) -> u8 {
    let runtime = settings.threads.runtime();
    let result = runtime.map_err(AppError::System).and_then(|runtime| {
        let result = runtime.block_on(async {
            let shutdown = Shutdown::listen(settings.drain_timeout).map_err(AppError::System)?;
            run(settings, shutdown).await
        });
        // A name that is being resolved must not hold the process.
        runtime.shutdown_background();
        result
    });
    match result {
        Ok(()) => 0,
        Err(error) => {
            tracing::error!(reason = "ended", "{}", chain(&error));
            error.exit_code()
        }
    }
}

/// Runs the client until `shutdown`.
///
/// # Errors
/// [`AppError`]: it could not start, or nothing is left to do.
pub async fn run(settings: Settings, shutdown: Shutdown) -> Result<(), AppError> {
    for notice in &settings.notices {
        tracing::warn!("{notice}");
    }
    if let Err(error) = net::raise_nofile_limit() {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    let identity = Identity::load(settings.data_dir.as_deref())?;
    let trust = NodeTrust::new(
        &settings.trust,
        identity.directory(),
        identity.credentials(),
    )
    .map_err(AppError::Trust)?;
    let (readiness, metrics) = (
        Readiness::new(),
        Metrics::new("client", env!("CARGO_PKG_VERSION")),
    );
    let admin = settings.admin.bind().map_err(AppError::Admin)?;
    let admin_address = admin
        .as_ref()
        .and_then(|listener| listener.local_addr().ok());
    let tunnel_config = settings.limits.config();
    let board = TunnelBoard::new(Arc::clone(&tunnel_config.budget));
    board.register(&metrics);
    let debug = board.routes();
    let shared = Arc::new(Shared {
        client_id: identity.client_id().into(),
        boot_id: crypto::random_bytes(),
        name: settings.name.clone(),
        trust,
        proxy: settings.proxy.clone(),
        streams: TaskPool::new("streams", MOST_STREAMS),
        tunnel_config,
        board,
        dials: DialGate::new(settings.dials),
        metrics: ClientMetrics::register(&metrics),
        own_ports: admin_address.into_iter().collect(),
        client_ports: ClientPorts::default(),
        client_address: settings.client_address,
        draining: shutdown.draining(),
    });
    tracing::info!(
        client = &*shared.client_id,
        name = settings.name,
        records_by = tls::implementation().as_str(),
        "client started"
    );

    let served = CancellationToken::new();
    let mut services = JoinSet::new();
    if let Some(listener) = admin {
        services.spawn(serve_admin(
            listener,
            readiness.clone(),
            metrics,
            debug,
            served.clone(),
        ));
    }
    let once = settings.reconnect == Reconnect::Never;
    let ready = Ready {
        client_id: shared.client_id.to_string(),
        admin_listen: admin_address.map(|address| address.to_string()),
        gateways: settings
            .gateways
            .iter()
            .map(|gateway| gateway.gateway.clone())
            .collect(),
    };
    let ready_file = settings.ready_file.clone();
    let console = settings.console;
    let (mut gateways, contexts) = start(settings, &identity, &shared, &readiness, &shutdown);
    start_console(console, contexts, &shutdown, &mut services);
    let result = tokio::select! {
        biased;
        result = supervise(&mut gateways, once, &shutdown) => result,
        result = announce(&readiness, ready, ready_file) => match result {
            Ok(()) => supervise(&mut gateways, once, &shutdown).await,
            Err(error) => Err(error),
        },
    };
    if shutdown.is_draining() {
        // A node may close its tunnel while a slow resource still takes what has come completely.
        let last = shared.streams.wait_idle(shutdown.remaining());
        shutdown.run(last).await;
    }
    // Whatever is left ends now: after a drain there is nothing.
    shutdown.force();
    while gateways.join_next().await.is_some() {}
    if !shared.streams.wait_idle(STREAMS_END).await {
        shared.streams.abort_all();
        shared.streams.wait_idle(STREAMS_END).await;
    }
    served.cancel();
    services.shutdown().await;
    drop(identity);
    tracing::info!("client ended");
    result
}

fn start(
    settings: Settings,
    identity: &Identity,
    shared: &Arc<Shared>,
    readiness: &Readiness,
    shutdown: &Shutdown,
) -> (JoinSet<Ended>, Vec<Arc<GatewayContext>>) {
    let (mut gateways, mut contexts) = (JoinSet::new(), Vec::new());
    for gateway in settings.gateways {
        let local = gateway
            .acl
            .into_iter()
            .chain(settings.local_acl.clone())
            .collect();
        let latch = readiness.latch(format!("gateway {}", gateway.gateway));
        let certificate = Certificate::load(
            identity.directory(),
            &gateway.gateway,
            identity.key_sha256(),
        );
        let context = Arc::new(GatewayContext::new(
            gateway.gateway.into(),
            Token::new(gateway.token, gateway.token_file),
            certificate,
            AclState::new(local),
            Arc::clone(shared),
        ));
        contexts.push(Arc::clone(&context));
        let name = Arc::clone(&context.gateway);
        let gateway = Gateway::new(
            context,
            &gateway.addresses,
            settings.connections,
            settings.reconnect,
            latch,
        );
        let shutdown = shutdown.clone();
        gateways.spawn(async move { (name, gateway.run(shutdown).await) });
    }
    if contexts.iter().any(|context| context.shows_nothing()) {
        tracing::warn!("no security token was given; use --token-file");
    }
    (gateways, contexts)
}

/// Starts the console, if there is to be one. The client never waits for it.
fn start_console(
    choice: ConsoleChoice,
    gateways: Vec<Arc<GatewayContext>>,
    shutdown: &Shutdown,
    services: &mut JoinSet<()>,
) {
    let terminal = std::io::stdin().is_terminal();
    let wanted = match choice {
        ConsoleChoice::Always => true,
        ConsoleChoice::Never => false,
        ConsoleChoice::Terminal => terminal,
    };
    if !wanted {
        return;
    }
    let prompt = terminal && std::io::stdout().is_terminal();
    match console::lines() {
        Ok(lines) => {
            services.spawn(console::run(gateways, lines, shutdown.clone(), prompt));
        }
        Err(error) => tracing::warn!(%error, "there is no console"),
    }
}

/// Waits until all gateways have ended, or the first one has if each must hold.
async fn supervise(
    gateways: &mut JoinSet<Ended>,
    once: bool,
    shutdown: &Shutdown,
) -> Result<(), AppError> {
    let mut given_up = None;
    while let Some(end) = gateways.join_next().await {
        match end {
            Ok((_, GatewayEnd::Drained)) => {}
            Ok((gateway, GatewayEnd::GivenUp(last))) if once => {
                return Err(AppError::GivenUp(format!(
                    "gateway {gateway}: {last}; ending because of --once"
                )));
            }
            Ok((gateway, GatewayEnd::GivenUp(last))) => {
                given_up = Some(format!(
                    "gateway {gateway}: {last}; no further attempt is to be made (--reconnect)"
                ));
            }
            Err(error) => return Err(AppError::Internal(error.to_string())),
        }
    }
    // A signal ends the client well, whatever was given up before.
    match given_up.filter(|_| !shutdown.is_draining()) {
        Some(why) => Err(AppError::GivenUp(why)),
        None => Ok(()),
    }
}

/// What the ready file says.
#[derive(Debug, serde::Serialize)]
struct Ready {
    client_id: String,
    admin_listen: Option<String>,
    gateways: Vec<String>,
}

/// Waits until every gateway has a tunnel for the first time, and says so.
async fn announce(
    readiness: &Readiness,
    ready: Ready,
    file: Option<std::path::PathBuf>,
) -> Result<(), AppError> {
    readiness.wait_ready().await;
    tracing::info!(gateways = ready.gateways.len(), "client ready");
    match file {
        Some(path) => ready_file::write(&path, &ready).map_err(AppError::ReadyFile),
        None => Ok(()),
    }
}

async fn serve_admin(
    listener: TcpListener,
    readiness: Readiness,
    metrics: Metrics,
    more: admin_http::Router,
    end: CancellationToken,
) {
    if let Err(error) = admin_http::serve(listener, readiness, metrics, more, end).await {
        tracing::error!(%error, "admin HTTP ended; the client goes on without");
    }
}
