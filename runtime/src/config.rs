//! Static configuration: flags, then `SG_*` variables, then the TOML file, then defaults; read
//! once, checked once. Works for any clap parser without subcommands.
//!
//! * A flag `--drain-timeout` is the variable `SG_DRAIN_TIMEOUT` and the key `drain-timeout` (or
//!   `drain_timeout`) of the file. A switch is `true` or `false` there. A flag that may be given
//!   several times is a comma-separated list in the variable and an array in the file.
//! * A positional argument has a key in the file, by its name, and the variable too.
//! * A key that no flag has is an error, and so is a variable or value that does not parse; each
//!   error says where the value stands, what it is, and what to do, and ends the process with 2.
//! * A flag that conflicts with one given in a stronger layer is ignored in the weaker ones.

mod error;
mod file;
mod layers;

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use clap::Parser;

pub use self::error::{ConfigError, Invalid, exit_usage};
use crate::admin_http::AdminListen;
use crate::duration::HumanDuration;
use crate::telemetry::{self, LogFilter, LogFormat};

/// Exit code for bad usage or configuration.
pub const EXIT_USAGE: i32 = 2;

/// The flags that every daemon has; flatten them into its own.
#[derive(Debug, Clone, clap::Args)]
pub struct CommonArgs {
    /// TOML file with values for these flags
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Form of the log lines on stderr [default: text on a terminal, json otherwise]
    #[arg(long, value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,
    /// What to log: error, warn, info, debug, trace, off, or target=level,... (then error for the rest)
    #[arg(
        long,
        value_name = "FILTER",
        env = "SG_LOG",
        hide_env = true,
        default_value = "info"
    )]
    pub log_level: LogFilter,
    /// Write one JSON line with the bound addresses here when ready
    #[arg(long, value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Time for open connections to end after the first signal
    #[arg(long, value_name = "DURATION", default_value = "30s")]
    pub drain_timeout: HumanDuration,
    /// Address of /livez, /readyz and /metrics [default: 127.0.0.1:7481 (control plane), :9001 (node), :9002 (client)]
    #[arg(long, value_name = "ADDR", value_parser = listen_address)]
    pub admin_listen: Option<SocketAddr>,
}

impl CommonArgs {
    /// Starts logging as asked for. Keep what it answers until the process ends.
    pub fn init_telemetry(&self, binary: &'static str) -> telemetry::Logging {
        telemetry::init(self.log_format, &self.log_level, binary)
    }

    /// Where admin HTTP listens, given the default of this daemon.
    #[must_use]
    pub const fn admin(&self, default: SocketAddr) -> AdminListen {
        AdminListen::new(self.admin_listen, default)
    }
}

/// Reads an address to listen on; the parser of flags of that kind.
///
/// # Errors
/// What to write instead.
pub fn listen_address(text: &str) -> Result<SocketAddr, String> {
    text.parse()
        .map_err(|_| "write ADDRESS:PORT, as 127.0.0.1:7400; [ADDRESS]:PORT for IPv6".to_owned())
}

/// Reads the configuration of this process, or ends it: 0 after `--help` and `--version`, 2 after
/// an error, which is printed.
#[must_use]
pub fn load<T: Parser>() -> T {
    let environment = |name: &str| std::env::var_os(name);
    match load_from(std::env::args_os(), &environment) {
        Ok(args) => args,
        Err(error) => error.exit(),
    }
}

/// Reads a configuration from these arguments (the program's name first) and this environment.
///
/// # Errors
/// [`ConfigError`]; also for `--help` and `--version`, as clap does.
pub fn load_from<T: Parser>(
    arguments: impl IntoIterator<Item = impl Into<OsString>>,
    environment: &dyn Fn(&str) -> Option<OsString>,
) -> Result<T, ConfigError> {
    let arguments: Vec<OsString> = arguments.into_iter().map(Into::into).collect();
    let command = layers::document_environment(T::command());
    let matches = layers::merge(command, &arguments, environment)?;
    T::from_arg_matches(&matches).map_err(ConfigError::Usage)
}

#[cfg(test)]
mod tests;
