//! `sg-client`: parse, run, exit code.

use std::process::ExitCode;

fn main() -> ExitCode {
    sg_runtime::crypto::install();
    sg_runtime::memory::keep_freed();
    let settings = sg_client::options::load();
    let _logging =
        sg_runtime::telemetry::init(settings.log_format, &settings.log_filter, "sg-client");
    ExitCode::from(sg_client::app::main(settings))
}
