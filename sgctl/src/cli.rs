//! The grammar of the command line, and which noun does what.
//!
//! Every flag also has a variable: `--token-file` is `SG_TOKEN_FILE`. Flags of the whole program
//! are accepted before and after the command.

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use sg_runtime::duration::HumanDuration;

use crate::failure::Failure;
use crate::output::{self, Format};
use crate::session::Session;
use crate::{
    acl, audit, ca, client, completion, context, destination, dev, gateway, node, status, token,
    version,
};

const EXIT_CODES: &str =
    "Exit codes: 0 done, 1 failure, 2 usage, 3 not found, 4 not authenticated \
or denied, 5 conflict or failed precondition, 6 unavailable or deadline, 7 a check found problems.

Every flag can be given as a variable too: --token-file is SG_TOKEN_FILE.";

/// Operate Secure Gateway
#[derive(Debug, Parser)]
#[command(name = "sgctl", version, after_help = EXIT_CODES, max_term_width = 100)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
pub(crate) struct Global {
    /// Control planes, tried in this order
    #[arg(long, global = true, value_name = "HOST:PORT[,...]")]
    pub(crate) server: Option<String>,
    /// CA certificate of the control planes, or the hash of its key
    #[arg(long, global = true, value_name = "FILE|sha256:HEX")]
    pub(crate) ca: Option<String>,
    /// File with an admin token; - reads it from stdin
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) token_file: Option<PathBuf>,
    /// Context to use instead of the current one; given as a flag it beats the variables of --server, --ca and
    /// --token-file
    #[arg(long, global = true, value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// TOML file with values for server, ca, token-file, context, output and timeout
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Form of the output [default: table]
    #[arg(
        short,
        long,
        global = true,
        value_name = "table|wide|json|yaml|name",
        value_enum,
        hide_possible_values = true
    )]
    pub(crate) output: Option<Format>,
    /// Time for the whole command [default: 10s]
    #[arg(long, global = true, value_name = "DURATION")]
    pub(crate) timeout: Option<HumanDuration>,
    /// Which of them came from variables.
    #[arg(skip)]
    pub(crate) variables: Variables,
    /// The words of the command, as `gateway create`.
    #[arg(skip)]
    pub(crate) command: String,
}

/// The flags that say where to talk to and were not given as flags, but as variables.
#[derive(Debug, Clone, Default)]
pub(crate) struct Variables(Vec<&'static str>);

impl Variables {
    fn of(matches: &clap::ArgMatches) -> Self {
        let from_variable =
            |id: &&str| matches.value_source(id) == Some(clap::parser::ValueSource::EnvVariable);
        let ids = ["server", "ca", "token_file", "context"];
        Self(ids.into_iter().filter(from_variable).collect())
    }

    /// Whether the value of this flag came from its variable; flags by the names of their fields.
    pub(crate) fn gave(&self, id: &str) -> bool {
        self.0.contains(&id)
    }

    /// How a text about the value of this flag names it: `--ca`, or `--ca (from SG_CA)`.
    pub(crate) fn flag(&self, id: &str) -> String {
        let flag = format!("--{}", id.replace('_', "-"));
        if self.gave(id) {
            format!("{flag} (from SG_{})", id.to_uppercase())
        } else {
            flag
        }
    }
}

#[derive(Debug, Subcommand)]
#[allow(
    clippy::large_enum_variant,
    reason = "there is one of it, for the time that it takes to run it"
)]
enum Command {
    /// Run a control plane, a node and a client on this machine
    Dev(dev::Args),
    /// Say where sgctl talks to
    #[command(subcommand)]
    Context(context::Command),
    /// Gateways: one for each on-premises network
    #[command(subcommand, visible_alias = "gw", alias = "gateways")]
    Gateway(gateway::Command),
    /// Destinations: how users reach one resource through a gateway
    #[command(subcommand, visible_alias = "dest", alias = "destinations")]
    Destination(destination::Command),
    /// Access control: what the clients of a gateway may reach
    #[command(subcommand)]
    Acl(acl::Command),
    /// Clients that are connected now
    #[command(subcommand, alias = "clients")]
    Client(client::Command),
    /// Data-plane nodes
    #[command(subcommand, alias = "nodes")]
    Node(node::Command),
    /// Tokens with which operators show who they are
    #[command(subcommand, alias = "tokens")]
    Token(token::Command),
    /// The internal certificate authority
    #[command(subcommand)]
    Ca(ca::Command),
    /// Who changed what
    #[command(subcommand)]
    Audit(audit::Command),
    /// Show the state of the installation
    Status,
    /// Show the version of sgctl
    Version,
    /// Print a completion script
    Completion(completion::Args),
}

/// Reads the command line. `Err` is the end of the program: help and version were printed, or what
/// is wrong with the usage.
pub(crate) fn parse(arguments: Vec<OsString>) -> Result<Cli, ExitCode> {
    let matches = grammar().try_get_matches_from(&arguments);
    let parsed = matches.and_then(|mut matches| {
        let (variables, command) = (Variables::of(&matches), words(&matches));
        let mut cli = Cli::from_arg_matches_mut(&mut matches)?;
        (cli.global.variables, cli.global.command) = (variables, command);
        Ok(cli)
    });
    parsed.map_err(|error| end_of_usage(&error, &arguments))
}

/// The words of the command by their first names, whatever alias was typed.
fn words(mut matches: &clap::ArgMatches) -> String {
    let mut words = Vec::new();
    while let Some((word, deeper)) = matches.subcommand() {
        words.push(word);
        matches = deeper;
    }
    words.join(" ")
}

/// Does what the command says.
pub(crate) async fn run(cli: Cli, session: &Session) -> Result<(), Failure> {
    match cli.command {
        Command::Dev(args) => Box::pin(dev::run(args, session)).await,
        Command::Context(command) => context::run(command, &cli.global, session),
        Command::Gateway(command) => gateway::run(command, session).await,
        Command::Destination(command) => Box::pin(destination::run(command, session)).await,
        Command::Acl(command) => acl::run(command, session).await,
        Command::Client(command) => client::run(command, session).await,
        Command::Node(command) => node::run(command, session).await,
        Command::Ca(command) => ca::run(command, session).await,
        Command::Audit(command) => audit::run(command, session).await,
        Command::Token(command) => token::run(command, session).await,
        Command::Status => status::run(session).await,
        Command::Version => version::run(session),
        Command::Completion(args) => completion::run(args, grammar()),
    }
}

/// The whole grammar, with a variable for every flag.
pub(crate) fn grammar() -> clap::Command {
    with_variables(Cli::command())
}

fn with_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(|arg| match arg.get_long() {
            None | Some("help" | "version") => arg,
            Some(long) => {
                let variable = format!("SG_{}", long.replace('-', "_").to_uppercase());
                // The help of a command with twenty flags stays readable; the rule is at its end.
                arg.env(variable).hide_env(true)
            }
        })
        .mut_subcommands(with_variables)
}

fn end_of_usage(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    if !error.use_stderr() {
        return match output::print(&error.render().to_string()) {
            Ok(()) => ExitCode::SUCCESS,
            Err(failure) => ExitCode::from(failure.exit_code()),
        };
    }
    output::note(&error.render().to_string());
    if wants_json(arguments) {
        let text = error.render().to_string();
        // What is missing, or possible, stands in lines of its own, up to an empty one.
        let lines = text.lines().take_while(|line| !line.trim().is_empty());
        let message = lines.map(str::trim).collect::<Vec<_>>().join(" ");
        let failure = Failure::usage(message.strip_prefix("error: ").unwrap_or(&message));
        if output::print(&format!("{}\n", failure.json())).is_err() {
            return ExitCode::from(1);
        }
    }
    ExitCode::from(2)
}

/// Whether JSON was asked for, by variable or on a command line that could not be parsed.
fn wants_json(arguments: &[OsString]) -> bool {
    let words: Vec<_> = arguments.iter().map(|a| a.to_string_lossy()).collect();
    let says_how = |word: &str| word.starts_with("-o") || word.starts_with("--output");
    if !words.iter().any(|word| says_how(word)) {
        return std::env::var_os("SG_OUTPUT").is_some_and(|format| format == "json");
    }
    let joined = ["-ojson", "-o=json", "--output=json"];
    words.iter().any(|word| joined.contains(&word.as_ref()))
        || words
            .windows(2)
            .any(|pair| ["-o", "--output"].contains(&pair[0].as_ref()) && pair[1] == "json")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        grammar().debug_assert();
    }

    #[test]
    fn every_flag_has_a_variable() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments().filter(|a| a.get_long().is_some()) {
                let long = arg.get_long().unwrap_or_default();
                assert!(
                    arg.get_env().is_some() || ["help", "version"].contains(&long),
                    "{long}"
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&grammar());
    }

    #[test]
    fn global_flags_stand_before_and_after() {
        for line in [
            "sgctl -o json gateway list",
            "sgctl gateway -o json list",
            "sgctl gateway list -o json",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let cli = parse(words).expect("parses");
            assert_eq!(cli.global.output, Some(Format::Json), "{line}");
        }
    }
}
