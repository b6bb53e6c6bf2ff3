//! Process plumbing of Secure Gateway: everything that the control plane, the node, the client
//! and `sgctl` need as *processes*, and nothing that knows what a gateway or a destination is.
//!
//! | to … | use |
//! |---|---|
//! | install the crypto provider (first line of every `main`), hash, draw random bytes | [`crypto`] |
//! | hold a secret so that it cannot be printed, and is wiped | [`secret`] |
//! | encrypt values at rest under a key file | [`sealed`] |
//! | write a file atomically, with mode 0600, or lock a data directory | [`files`] |
//! | make or load a key, read an identity out of a certificate | [`identity`] |
//! | open or accept a TLS connection | [`tls`] |
//! | wait between attempts | [`backoff`] |
//! | start tasks that somebody owns | [`tasks`] |
//! | start the runtime with as many threads as asked for | [`threads`] |
//! | poll what is seldom ready only when it asks | [`gate`] |
//! | end: signal, drain, deadline, force | [`shutdown`] |
//! | say what is still missing before the process is ready | [`readiness`] |
//! | log | [`telemetry`] |
//! | count | [`metrics`] |
//! | serve `/livez`, `/readyz`, `/metrics`; serve plain HTTP within limits | [`admin_http`], [`http_listener`] |
//! | read flags, `SG_*` variables and the TOML file | [`config`] |
//! | tell whoever started the process that it is ready | [`ready_file`] |
//! | read and print `500ms`, `30s`, `5m`, `24h` | [`duration`] |
//! | read and print `64KiB`, `16MiB`; know how much memory there is | [`size`], [`memory`] |
//! | bind and tune sockets; bound who may have how many | [`net`], [`places`] |
//!
//! # The shape of a main
//!
//! ```no_run
//! use sg_runtime::{config, crypto, metrics::Metrics, readiness::Readiness, shutdown::Shutdown};
//!
//! #[derive(clap::Parser)]
//! struct Args {
//!     #[command(flatten)]
//!     common: config::CommonArgs,
//! }
//!
//! # async fn run() -> std::io::Result<()> {
//! crypto::install();
//! let args: Args = config::load();
//! let _logging = args.common.init_telemetry("sg-example");
//! let shutdown = Shutdown::listen(args.common.drain_timeout.get())?;
//! let (readiness, metrics) = (Readiness::new(), Metrics::new("example", "0.1.0"));
//! # drop((shutdown, readiness, metrics)); Ok(())
//! # }
//! ```
//!
//! The walls: this crate depends on no other crate of the workspace. It is one of the few that
//! may name `rustls`; the others use the wrappers of [`tls`].

pub mod admin_http;
pub mod backoff;
pub mod config;
pub mod crypto;
pub mod duration;
pub mod files;
pub mod gate;
pub mod http_listener;
pub mod identity;
pub mod memory;
pub mod metrics;
pub mod net;
pub mod places;
pub mod readiness;
pub mod ready_file;
pub mod sealed;
pub mod secret;
pub mod shutdown;
pub mod size;
pub mod tasks;
pub mod telemetry;
pub mod threads;
pub mod tls;
