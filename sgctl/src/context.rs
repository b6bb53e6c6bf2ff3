//! `sgctl context`: names for installations, so that their address, CA and token file need not be
//! given each time.

pub(crate) mod store;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use serde::Serialize;
use sg_runtime::tls::Trust;
use tonic::Code;

use self::store::Context;
use crate::cli::Global;
use crate::failure::Failure;
use crate::output::{self, Resource};
use crate::session::Session;
use crate::settings;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Remember --server, --ca and --token-file under a name
    Add {
        /// Name of the context
        name: String,
        /// Make it the current one (the first always is)
        #[arg(long = "use")]
        make_current: bool,
    },
    /// Make a context the current one
    Use {
        /// Name of the context
        name: String,
    },
    /// Show all contexts
    List,
    /// Show the current context
    Current,
    /// Forget a context
    Remove {
        /// Name of the context
        name: String,
    },
}

/// One row of the list.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    name: String,
    current: bool,
    server: String,
    ca: String,
    token_file: PathBuf,
}

impl Resource for Row {
    const PLURAL: &'static str = "contexts";
    const COLUMNS: &'static [&'static str] = &["NAME", "CURRENT", "SERVER"];
    const WIDE: &'static [&'static str] = &["CA", "TOKEN FILE"];

    fn reference(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        let current = if self.current { "*" } else { "" };
        vec![
            self.name.clone(),
            current.to_owned(),
            self.server.clone(),
            self.ca.clone(),
            self.token_file.display().to_string(),
        ]
    }
}

pub(crate) fn run(command: Command, global: &Global, session: &Session) -> Result<(), Failure> {
    let mut contexts = store::load()?;
    let row = |contexts: &store::Contexts, name: &str, context: &Context| Row {
        name: name.to_owned(),
        current: contexts
            .current()
            .is_some_and(|(current, _)| current == name),
        server: context.server.clone().unwrap_or_default(),
        ca: context.ca.clone().unwrap_or_default(),
        token_file: context.token_file.clone().unwrap_or_default(),
    };
    let show = |contexts: &store::Contexts, name: &str| {
        session.one(&row(contexts, name, contexts.get(name)?))
    };
    match command {
        Command::Add { name, make_current } => {
            contexts.put(&name, given(global)?);
            if make_current {
                contexts.set_current(&name)?;
            }
            store::save(&contexts)?;
            show(&contexts, &name)
        }
        Command::Use { name } => {
            contexts.set_current(&name)?;
            store::save(&contexts)?;
            show(&contexts, &name)
        }
        Command::List => {
            let rows: Vec<Row> = contexts
                .iter()
                .map(|(name, context)| row(&contexts, name, context))
                .collect();
            session.list(&rows)
        }
        Command::Current => match contexts.current() {
            Some((name, _)) => show(&contexts, name),
            None => Err(
                Failure::new(Code::NotFound, "NO_CONTEXT", "no context is current")
                    .hint("sgctl context use NAME"),
            ),
        },
        Command::Remove { name } => {
            let removed = contexts.remove(&name)?;
            store::save(&contexts)?;
            session.gone("context", &row(&contexts, &name, &removed), "removed")
        }
    }
}

/// The three flags, with paths that hold from any folder.
fn given(global: &Global) -> Result<Context, Failure> {
    let missing = |flag: &str| Failure::usage(format!("context add needs {flag}"));
    let server = global
        .server
        .clone()
        .ok_or_else(|| missing("--server HOST:PORT"))?;
    settings::servers(&global.variables.flag("server"), &server)?;
    let ca = global
        .ca
        .clone()
        .ok_or_else(|| missing("--ca FILE or --ca sha256:HEX"))?;
    let token_file = global
        .token_file
        .as_deref()
        .ok_or_else(|| missing("--token-file FILE"))?;
    if token_file == Path::new("-") {
        return Err(Failure::usage("a context needs a token file, not stdin"));
    }
    let ca = match ca.parse::<Trust>() {
        Ok(Trust::Ca(path)) => absolute(&path)?.display().to_string(),
        Ok(_) => ca,
        Err(error) => {
            return Err(Failure::usage(format!(
                "{}: {error}",
                global.variables.flag("ca")
            )));
        }
    };
    let token_file = absolute(token_file)?;
    for path in [Path::new(&ca), &token_file] {
        if path.is_absolute() && !path.exists() {
            output::note(&format!("warning: {} does not exist yet", path.display()));
        }
    }
    Ok(Context {
        server: Some(server),
        ca: Some(ca),
        token_file: Some(token_file),
    })
}

fn absolute(path: &Path) -> Result<PathBuf, Failure> {
    std::path::absolute(path)
        .map_err(|error| Failure::local(format!("cannot use the path {}", path.display()), &error))
}
