//! Where values come from when no flag and no variable gives them: the file of `--config`, then the
//! context, then the default. A context that is given as a flag comes before variables and file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use sg_model::{Host, HostPort};

use crate::cli::{Global, Variables};
use crate::context::store::{self, Context};
use crate::failure::Failure;
use crate::output::Format;

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where to connect and how.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// HOST:PORT of each control plane, tried in this order; never empty.
    pub(crate) servers: Vec<String>,
    /// A file or `sha256:HEX`.
    pub(crate) ca: String,
    /// Where the admin token is; `-` is stdin.
    pub(crate) token_file: PathBuf,
    /// For errors about these values.
    pub(crate) variables: Variables,
}

/// What flags, variables and the file say, before a context is asked.
#[derive(Debug)]
pub(crate) struct Settings {
    server: Option<String>,
    ca: Option<String>,
    token_file: Option<PathBuf>,
    context: Option<String>,
    variables: Variables,
    pub(crate) format: Format,
    pub(crate) timeout: Duration,
}

/// The file of `--config`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct File {
    server: Option<String>,
    ca: Option<String>,
    token_file: Option<PathBuf>,
    context: Option<String>,
    output: Option<Format>,
    timeout: Option<String>,
}

impl Settings {
    pub(crate) fn read(global: &Global) -> Result<Self, Failure> {
        let file = match &global.config {
            Some(path) => read_file(path)?,
            None => File::default(),
        };
        let timeout = match (global.timeout, &file.timeout) {
            (Some(given), _) => given.get(),
            (None, Some(text)) => sg_runtime::duration::parse(text)
                .map_err(|error| Failure::usage(format!("timeout = \"{text}\": {error}")))?,
            (None, None) => DEFAULT_TIMEOUT,
        };
        let variables = global.variables.clone();
        // A context that was typed is meant: what lies in the environment, or beneath it in the file, must not send the
        // command to another installation.
        let context_typed = global.context.is_some() && !variables.gave("context");
        let takes = |id: &str| !(context_typed && variables.gave(id));
        let beneath = |value: Option<String>| value.filter(|_| !context_typed);
        let server = global.server.clone().filter(|_| takes("server"));
        let ca = global.ca.clone().filter(|_| takes("ca"));
        let token_file = global.token_file.clone().filter(|_| takes("token_file"));
        Ok(Self {
            server: server.or(beneath(file.server)),
            ca: ca.or(beneath(file.ca)),
            token_file: token_file.or(file.token_file.filter(|_| !context_typed)),
            context: global.context.clone().or(file.context),
            variables: if context_typed {
                Variables::default()
            } else {
                variables
            },
            format: global.output.or(file.output).unwrap_or(Format::Table),
            timeout,
        })
    }

    /// Completes what is missing from the context.
    pub(crate) fn target(&self) -> Result<Target, Failure> {
        let context = self.context()?;
        let server = self
            .server
            .clone()
            .or(context.server)
            .ok_or_else(|| missing("--server"))?;
        let servers = servers(&self.variables.flag("server"), &server)?;
        Ok(Target {
            servers,
            ca: self
                .ca
                .clone()
                .or(context.ca)
                .ok_or_else(|| missing("--ca"))?,
            token_file: self
                .token_file
                .clone()
                .or(context.token_file)
                .ok_or_else(|| missing("--token-file"))?,
            variables: self.variables.clone(),
        })
    }

    fn context(&self) -> Result<Context, Failure> {
        // With all three at hand the store is not read: it may belong to somebody else or be broken.
        if self.context.is_none()
            && self.server.is_some()
            && self.ca.is_some()
            && self.token_file.is_some()
        {
            return Ok(Context::default());
        }
        let contexts = store::load()?;
        match &self.context {
            Some(name) => contexts.get(name).cloned(),
            None => Ok(contexts
                .current()
                .map(|(_, context)| context.clone())
                .unwrap_or_default()),
        }
    }
}

/// The addresses in a value of `--server`, which errors call `flag`.
pub(crate) fn servers(flag: &str, value: &str) -> Result<Vec<String>, Failure> {
    let given = value.split(',').map(str::trim).filter(|s| !s.is_empty());
    let servers: Vec<String> = given.map(str::to_owned).collect();
    if servers.is_empty() {
        return Err(missing("--server"));
    }
    for server in &servers {
        server.parse::<HostPort>().map_err(|invalid| {
            let failure = Failure::usage(format!("{flag} {server}: {}", invalid.message));
            match server.parse::<Host>() {
                Ok(host) => failure.hint(format!(
                    "{}:7400; 7400 is the port of a control plane by default",
                    host.bracketed()
                )),
                Err(_) => failure,
            }
        })?;
    }
    Ok(servers)
}

fn read_file(path: &Path) -> Result<File, Failure> {
    let name = path.display();
    let text = std::fs::read_to_string(path)
        .map_err(|error| Failure::usage(format!("--config {name}: {error}")))?;
    toml::from_str(&text).map_err(|error| {
        Failure::usage(format!("--config {name}: {}", error.message()))
            .hint("keys of this file: server, ca, token-file, context, output, timeout")
    })
}

fn missing(flag: &str) -> Failure {
    Failure::usage(format!("it is not known which control plane to use: {flag} is missing")).hint(
        "--server HOST:PORT --ca FILE --token-file FILE, or once: sgctl context add NAME with these flags",
    )
}
