//! `sgctl dev`: the whole of Secure Gateway on this machine, for a first try and for tests.
//!
//! It starts the sibling programs as real processes on loopback, configures them through the public
//! API as an operator would, and says what to paste next. It is no supervisor: a process that dies is
//! reported and stays dead.
//!
//! [`resource`] reads what is to be reached, [`ports`] finds free ports, [`process`] starts and ends
//! programs, [`start`] brings them up in order, [`configure`] makes the gateway and destinations,
//! [`report`] prints.

mod configure;
mod demo;
mod folder;
mod ports;
mod process;
mod report;
mod resource;
mod start;

use std::path::PathBuf;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;

use self::folder::Folder;
use self::process::{Ended, Family};
use self::resource::ResourceArg;
use crate::failure::Failure;
use crate::output::{self, Format};
use crate::session::Session;

#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// What to reach: [SCHEME://]HOST:PORT[=LISTEN_PORT], scheme tcp, tls, http, https or udp; without
    /// any, a built-in HTTP server
    #[arg(value_name = "RESOURCE")]
    resources: Vec<ResourceArg>,
    /// Keep all state in this folder [default: a temporary one, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// Use fixed ports: gRPC N, HTTP N+1, tunnels N+2, admin N+3 to N+5, destinations from N+10
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=65_000))]
    port_base: Option<u16>,
    /// Show the logs of all processes on stderr
    #[arg(short, long)]
    verbose: bool,
}

pub(crate) async fn run(args: Args, session: &Session) -> Result<(), Failure> {
    let json = match session.format() {
        Format::Json => true,
        Format::Table | Format::Wide => false,
        Format::Yaml | Format::Name => {
            return Err(Failure::usage(
                "dev prints text or, with -o json, one line of JSON",
            ));
        }
    };
    let started = Instant::now();
    // From here on a signal means a clean end, also in the middle of the start.
    let mut signals = Signals::listen()?;
    let folder = Folder::open(args.dir.as_deref())?;
    let (mut family, mut ends) = Family::new(args.verbose);

    let up = tokio::select! {
        biased;
        () = signals.next() => None,
        ended = ends.recv() => Some(Err(process::ended_in_start(ended))),
        up = start::start(&args, &folder, &mut family) => Some(up),
    };
    let result = match up {
        None => Ok(()),
        Some(Err(failure)) => Err(failure),
        Some(Ok(up)) => {
            let printed = output::print(&if json {
                up.line()?
            } else {
                up.text(started.elapsed())
            });
            match printed {
                Ok(()) => {
                    stay(&mut signals, &mut ends).await;
                    Ok(())
                }
                Err(failure) => Err(failure),
            }
        }
    };
    tokio::select! {
        () = family.end() => {}
        // A second signal: no more patience.
        () = signals.next() => family.kill().await,
    }
    folder.close()?;
    result
}

/// Until a signal comes; meanwhile says who died.
async fn stay(signals: &mut Signals, ends: &mut tokio::sync::mpsc::Receiver<Ended>) {
    loop {
        tokio::select! {
            biased;
            () = signals.next() => return,
            Some(ended) = ends.recv() => {
                output::note(&format!("{} ended ({}) and is not started again; the rest goes on", ended.name, ended.how));
                if let Some(tail) = ended.tail() {
                    output::note(&tail);
                }
            }
        }
    }
}

/// The signals that end it: Ctrl-C, `kill`, and the terminal being closed.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Signals {
    fn listen() -> Result<Self, Failure> {
        let listen =
            |kind| signal(kind).map_err(|error| Failure::local("cannot listen to signals", &error));
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}
