//! `sgctl`: the operator's command line for Secure Gateway.
//!
//! It speaks the public API (`securegateway.v1`) and nothing else; the one exception is `sgctl dev`,
//! which starts the sibling programs on this machine and then uses the same API.
//!
//! Where to start: [`cli`] is the grammar; each noun (`gateway`, `destination`, …) is one file with
//! its arguments, its calls and its table; [`connection`] finds a control plane that answers;
//! [`failure`] turns whatever went wrong into texts and exit codes; [`output`] prints.

mod acl;
mod audit;
mod ca;
mod canonical;
mod cli;
mod client;
mod completion;
mod connection;
mod context;
mod destination;
mod dev;
mod failure;
mod flags;
mod gateway;
mod names;
mod node;
mod output;
mod secret_file;
mod session;
mod settings;
mod show;
mod status;
mod token;
mod version;

use std::process::ExitCode;

use failure::Failure;
use output::Format;
use session::Session;

fn main() -> ExitCode {
    sg_runtime::crypto::install();
    let cli = match cli::parse(std::env::args_os().collect()) {
        Ok(parsed) => parsed,
        Err(end) => return end,
    };
    let session = match Session::new(&cli.global) {
        Ok(session) => session,
        Err(failure) => return report(&failure, cli.global.output),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let command = cli.global.command.clone();
    let result = match runtime {
        Ok(runtime) => runtime.block_on(cli::run(cli, &session)),
        Err(error) => Err(Failure::local("cannot start", &error)),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => report(&failure.named(&command), Some(session.format())),
    }
}

/// Tells the person, the script and the shell.
fn report(failure: &Failure, format: Option<Format>) -> ExitCode {
    output::note(&failure.text());
    if format == Some(Format::Json)
        && !failure.is_finding()
        && let Err(second) = output::print(&format!("{}\n", failure.json()))
    {
        output::note(&second.text());
    }
    ExitCode::from(failure.exit_code())
}
