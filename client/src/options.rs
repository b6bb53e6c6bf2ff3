//! The command line, checked: what of it each gateway gets, and what has to be said about options
//! that are accepted for the sake of old start scripts but do nothing yet.
//!
//! Start with [`load`]. [`Args`] is the form in which clap reads it; [`Settings`] is what the rest
//! of the client sees. Not here: the meaning of an access control list ([`crate::acl`]).

mod args;
mod lists;
mod proxy;
mod tokens;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::str::FromStr as _;
use std::time::Duration;

use sg_model::{Acl, AclFile, HostPort};
use sg_relay::TunnelLimits;
use sg_runtime::admin_http::AdminListen;
use sg_runtime::config::Invalid;
use sg_runtime::secret::Secret;
use sg_runtime::telemetry::{LogFilter, LogFormat};
use sg_runtime::threads::Threads;
use sg_runtime::tls::Trust;

pub use self::args::Args;
use self::tokens::check_tokens;
pub use self::tokens::read_tokens;
use crate::proxy::Proxy;
use crate::token::TokenFile;

/// Where admin HTTP listens unless `--admin-listen` says otherwise.
pub const ADMIN_DEFAULT: SocketAddr =
    SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 9002);

/// Characters in a client's name for itself.
const LONGEST_NAME: usize = 64;

/// Everything the client was told, checked.
#[derive(Debug)]
pub struct Settings {
    /// The gateways to connect to, at least one, in the order given.
    pub gateways: Vec<GatewaySettings>,
    /// Whom the nodes' certificates must come from.
    pub trust: Trust,
    /// What stands between this client and the nodes.
    pub proxy: Option<Proxy>,
    /// Tunnels to each node, 1 to 16.
    pub connections: u32,
    /// What happens after a failed attempt or a lost tunnel.
    pub reconnect: Reconnect,
    /// The list of `--local-acl`, which narrows every gateway.
    pub local_acl: Option<Acl>,
    /// Where the key is kept; `None`: the default place, and without it if need be.
    pub data_dir: Option<PathBuf>,
    /// How the client calls itself to the nodes.
    pub name: String,
    /// Where client ports listen.
    pub client_address: IpAddr,
    /// What tunnels may take.
    pub limits: TunnelLimits,
    /// Dials at a time.
    pub dials: u32,
    /// Where admin HTTP listens.
    pub admin: AdminListen,
    /// To be written when ready.
    pub ready_file: Option<PathBuf>,
    /// Time for streams to end after the first signal.
    pub drain_timeout: Duration,
    /// How many threads do the work.
    pub threads: Threads,
    /// Whether there is a console.
    pub console: ConsoleChoice,
    /// Form of the log.
    pub log_format: Option<LogFormat>,
    /// What to log.
    pub log_filter: LogFilter,
    /// What the operator should know about the options given; to be logged as warnings.
    pub notices: Vec<String>,
}

/// What one gateway was given.
#[derive(Debug)]
pub struct GatewaySettings {
    /// Id or name, as given.
    pub gateway: String,
    /// The security token, if there is one.
    pub token: Option<Secret<String>>,
    /// Where it was read, if it was a file.
    pub token_file: Option<TokenFile>,
    /// Nodes to dial, at least one.
    pub addresses: Vec<HostPort>,
    /// The list of `-F`, which narrows this gateway.
    pub acl: Option<Acl>,
}

/// When standard input is read for commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConsoleChoice {
    /// When it is a terminal.
    Terminal,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What happens after a failed attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reconnect {
    /// Try again, for ever.
    Forever,
    /// Give a gateway up after so many attempts in a row that failed, the first one not counted.
    Attempts(u32),
    /// End the process at the first failure.
    Never,
}

/// Reads the configuration of this process, or ends it with the exit code of bad usage.
#[must_use]
pub fn load() -> Settings {
    match sg_runtime::config::load::<Args>().check() {
        Ok(settings) => settings,
        Err(error) => sg_runtime::config::exit_usage(&error),
    }
}

impl Args {
    /// Turns what was read into what is meant.
    ///
    /// # Errors
    /// The first value that cannot be used: which, why, and what to do.
    pub fn check(self) -> Result<Settings, Invalid> {
        let gateways = self.gateway_names()?;
        let (count, mut notices) = (gateways.len(), self.notices());
        let tokens = self.tokens(count)?;
        let addresses = self.addresses(count)?;
        let acl_files = self.acl_files(count, &mut notices)?;
        let proxy = self.read_proxy(&mut notices)?;
        let local_acl = match &self.local_acl {
            Some(path) => Some(self.read_acl("--local-acl", path, &mut notices)?),
            None => None,
        };
        let gateways = gateways
            .into_iter()
            .zip(tokens)
            .zip(addresses)
            .zip(acl_files)
            .enumerate()
            .map(
                |(place, (((gateway, token), addresses), acl))| GatewaySettings {
                    gateway,
                    token,
                    token_file: self.token_file.clone().map(|path| TokenFile {
                        path,
                        place,
                        gateways: count,
                    }),
                    addresses,
                    acl,
                },
            )
            .collect();
        Ok(Settings {
            gateways,
            reconnect: self.reconnect()?,
            log_filter: self.log_filter(count, &mut notices)?,
            trust: self.ca,
            proxy,
            connections: self.connections,
            local_acl,
            data_dir: self.data_dir,
            name: client_name(self.name)?,
            admin: self.common.admin(ADMIN_DEFAULT),
            client_address: self.client_address,
            limits: self.limits,
            dials: self.limit_dials,
            ready_file: self.common.ready_file,
            drain_timeout: self.common.drain_timeout.get(),
            log_format: self.common.log_format,
            threads: self.threads,
            console: match (self.console, self.no_console) {
                (true, _) => ConsoleChoice::Always,
                (_, true) => ConsoleChoice::Never,
                _ => ConsoleChoice::Terminal,
            },
            notices,
        })
    }

    fn gateway_names(&self) -> Result<Vec<String>, Invalid> {
        // Old start scripts keep several ids in one quoted variable.
        let names: Vec<String> = self
            .gateway_id
            .iter()
            .flat_map(|text| text.split_whitespace())
            .map(str::to_owned)
            .collect();
        let mut seen = BTreeSet::new();
        for name in &names {
            let good = name.len() <= 64
                && name
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
            let problem = match (good, seen.insert(name)) {
                (false, _) => "neither the id nor the name of a gateway",
                (true, false) => "the gateway is there twice",
                (true, true) => continue,
            };
            return Err(Invalid::new(
                "GATEWAY_ID",
                name,
                problem,
                "see `sgctl gateway list`",
            ));
        }
        if names.is_empty() {
            return Err(Invalid::new(
                "GATEWAY_ID",
                "",
                "no gateway is given",
                "see `sgctl gateway list`",
            ));
        }
        Ok(names)
    }

    fn tokens(&self, count: usize) -> Result<Vec<Option<Secret<String>>>, Invalid> {
        match (&self.token_file, &self.sectoken) {
            (Some(path), _) => read_tokens(path, count),
            (None, Some(list)) => {
                check_tokens("--sectoken", lists::split(list.expose()).collect(), count)
            }
            (None, None) => check_tokens("--sectoken", Vec::new(), count),
        }
    }

    fn addresses(&self, count: usize) -> Result<Vec<Vec<HostPort>>, Invalid> {
        let invalid = |value: &str, problem: String| {
            Invalid::new(
                "--gateway",
                value,
                problem,
                "write HOST:PORT of a node, several with commas",
            )
        };
        let mut groups = Vec::new();
        for part in lists::split(&self.gateway) {
            let Some(part) = part else {
                groups.push(None);
                continue;
            };
            let mut group: Vec<HostPort> = Vec::new();
            for text in part
                .split(',')
                .map(str::trim)
                .filter(|text| !text.is_empty())
            {
                let address = text
                    .parse()
                    .map_err(|error: sg_model::Invalid| invalid(text, error.message))?;
                if !group.contains(&address) {
                    group.push(address);
                }
            }
            groups.push((!group.is_empty()).then_some(group));
        }
        let groups =
            lists::spread(groups, count).map_err(|given| too_many("--gateway", given, count))?;
        let Some(first) = groups.iter().flatten().next().cloned() else {
            return Err(invalid(&self.gateway, "no address is given".to_owned()));
        };
        // Here the default of a hole is the first group: one list of nodes serves all gateways.
        Ok(groups
            .into_iter()
            .map(|group| group.unwrap_or_else(|| first.clone()))
            .collect())
    }

    fn acl_files(
        &self,
        count: usize,
        notices: &mut Vec<String>,
    ) -> Result<Vec<Option<Acl>>, Invalid> {
        let files: Vec<_> = self
            .aclfile
            .as_deref()
            .map(lists::split)
            .into_iter()
            .flatten()
            .collect();
        if files.iter().any(Option::is_some) {
            notices.push(
                "-F narrows what this client reaches; it does not change the gateway's own list: use `sgctl acl load` for that"
                    .to_owned(),
            );
        }
        lists::spread(files, count)
            .map_err(|given| too_many("--aclfile", given, count))?
            .into_iter()
            .map(|file| match file {
                Some(path) => self
                    .read_acl("--aclfile", Path::new(&path), notices)
                    .map(Some),
                None => Ok(None),
            })
            .collect()
    }

    fn read_acl(&self, key: &str, path: &Path, notices: &mut Vec<String>) -> Result<Acl, Invalid> {
        let remedy = "write lines as `acl allow HOST:PORT[/PATH]` or `acl deny HOST:PORT`, and # before comments";
        let invalid = |problem: String| Invalid::new(key, path.display(), problem, remedy);
        let text = std::fs::read_to_string(path).map_err(|error| invalid(error.to_string()))?;
        let file = AclFile::parse(&text).map_err(|error| invalid(error.to_string()))?;
        let place = path.display();
        notices.extend(
            file.notes
                .into_iter()
                .map(|(line, why)| format!("{place}, line {line}: {why}")),
        );
        Ok(Acl {
            path_prefix: self.acl_path_prefix,
            ..file.acl
        })
    }

    fn reconnect(&self) -> Result<Reconnect, Invalid> {
        match self.reconnect {
            _ if self.once => Ok(Reconnect::Never),
            // A service comes back after its last attempt anyway.
            _ if self.service => Ok(Reconnect::Forever),
            -1 => Ok(Reconnect::Forever),
            attempts => u32::try_from(attempts)
                .map(Reconnect::Attempts)
                .map_err(|_| {
                    let remedy = "write a number of attempts, or -1 for no limit";
                    Invalid::new(
                        "--reconnect",
                        attempts,
                        "a negative number of attempts",
                        remedy,
                    )
                }),
        }
    }

    fn log_filter(&self, count: usize, notices: &mut Vec<String>) -> Result<LogFilter, Invalid> {
        let Some(list) = &self.loglevel else {
            return Ok(self.common.log_level.clone());
        };
        let levels = lists::spread(lists::split(list).collect(), count)
            .map_err(|given| too_many("--loglevel", given, count))?;
        let levels = levels
            .into_iter()
            .map(|level| rank(level.as_deref().unwrap_or("INFO")))
            .collect::<Option<BTreeSet<_>>>()
            .ok_or_else(|| {
                Invalid::new(
                    "--loglevel",
                    list,
                    "not a level",
                    "possible are: ERROR, WARN, INFO, DEBUG, TRACE",
                )
            })?;
        if levels.len() > 1 {
            notices.push(
                "the log level is one for all gateways: the most verbose of --loglevel is taken"
                    .to_owned(),
            );
        }
        let most = levels.last().copied().map_or("info", |(_, word)| word);
        LogFilter::from_str(most)
            .map_err(|problem| Invalid::new("--loglevel", list, problem, "write INFO"))
    }

    /// About options that are accepted and do nothing, or not what they once did.
    fn notices(&self) -> Vec<String> {
        let texts = [
            (
                self.sectoken.is_some(),
                "a token on the command line can be seen by every user of this machine: use --token-file",
            ),
            (
                self.password.is_some(),
                "-w is not in effect: there is no local page yet; a password on the command line can be seen by every user of this machine",
            ),
            (
                self.port.is_some(),
                "-P is not in effect: there is no local page yet",
            ),
            (
                self.logpath.is_some(),
                "-p is not in effect: the log goes to stderr",
            ),
            (
                self.allow,
                "--allow is not in effect: the gateway's list decides what may be reached; use `sgctl acl allow`",
            ),
            (
                self.service,
                "--service: the client never gives up, so it needs no restart; -r is ignored",
            ),
        ];
        texts
            .into_iter()
            .filter(|(given, _)| *given)
            .map(|(_, text)| text.to_owned())
            .collect()
    }
}

fn rank(level: &str) -> Option<(u8, &'static str)> {
    const WORDS: [&str; 5] = ["error", "warn", "info", "debug", "trace"];
    (0..)
        .zip(WORDS)
        .find(|(_, word)| level.eq_ignore_ascii_case(word))
}

fn too_many(key: &str, given: usize, count: usize) -> Invalid {
    let problem = format!("{given} values for {count} gateways");
    Invalid::new(
        key,
        "[list]",
        problem,
        "give at most one value per gateway, joined by --, none for a hole",
    )
}

fn client_name(asked: Option<String>) -> Result<String, Invalid> {
    match asked {
        Some(name) if name.chars().count() > LONGEST_NAME || name.chars().any(char::is_control) => {
            let problem = "too long, or with characters that cannot be printed";
            Err(Invalid::new(
                "--name",
                name.escape_debug(),
                problem,
                "write up to 64 characters",
            ))
        }
        Some(name) => Ok(name),
        None => Ok(host_name()),
    }
}

/// The machine's name, for people; empty if there is none to be had.
fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .ok()
        .or_else(|| std::env::var("HOSTNAME").ok())
        .map(|name| name.trim().chars().take(LONGEST_NAME).collect())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests;
