//! Entry point of `sg-data-plane`: reads the configuration, starts the runtime, ends with a code.

use std::process::ExitCode;

use sg_data_plane::{app, config::Args};
use sg_runtime::{config, crypto, memory, telemetry};

fn main() -> ExitCode {
    crypto::install();
    memory::keep_freed();
    let args: Args = config::load();
    let _logging = args.common.init_telemetry("sg-data-plane");
    let threads = args.threads;
    let settings = match args.check() {
        Ok(settings) => settings,
        Err(error) => config::exit_usage(&error),
    };
    let runtime = match threads.runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            tracing::error!(%error, "cannot start");
            return ExitCode::FAILURE;
        }
    };
    let result = runtime.block_on(app::run(settings));
    // A name that is still being resolved must not keep the process.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", telemetry::chain(&error));
            ExitCode::from(error.exit_code())
        }
    }
}
