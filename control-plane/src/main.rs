//! `sg-control-plane`: reads the flags, runs [`sg_control_plane::app`], and says how it ended.

use std::process::ExitCode;
use std::time::Duration;

use sg_control_plane::app::{self, AppError};
use sg_control_plane::config::Args;
use sg_runtime::config::EXIT_USAGE;
use sg_runtime::shutdown::Shutdown;
use sg_runtime::{config, crypto};

/// What work on blocking threads gets to end by itself.
const MOMENT: Duration = Duration::from_millis(500);

fn main() -> ExitCode {
    crypto::install();
    let args: Args = config::load();
    let _logging = args.common.init_telemetry("sg-control-plane");
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start the runtime");
            return ExitCode::FAILURE;
        }
    };
    let ended = runtime.block_on(Box::pin(run(args)));
    // A name that is just being looked up must not keep the process.
    runtime.shutdown_timeout(MOMENT);
    ended
}

async fn run(args: Args) -> ExitCode {
    let shutdown = match Shutdown::listen(args.common.drain_timeout.get()) {
        Ok(shutdown) => shutdown,
        Err(error) => {
            tracing::error!(%error, "cannot listen to signals");
            return ExitCode::FAILURE;
        }
    };
    match app::run(args, shutdown).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ AppError::Usage(_)) => {
            tracing::error!("{error}");
            ExitCode::from(u8::try_from(EXIT_USAGE).unwrap_or(2))
        }
        Err(error @ AppError::Failed(_)) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
