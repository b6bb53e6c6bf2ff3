//! `sgctl acl`: what the clients of a gateway may reach. What no entry names is denied.
//!
//! What it is not: the rules, which are in the model. `check` asks them what a list means.

mod check;

use std::path::PathBuf;
use std::str::FromStr;

use clap::Subcommand;
use sg_model::{AclEntry, Action};
use sg_proto::api;
use sg_proto::api::acls_client::AclsClient;
use sg_proto::convert::api::acl_from_api;
use sg_runtime::duration::HumanDuration;
use tokio::time::Instant;
use tonic::Code;

use crate::connection::{Api, WatchEnd};
use crate::failure::Failure;
use crate::gateway::hint_list;
use crate::names::{GatewayRef, request_id};
use crate::output::{self, Resource};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Let clients connect to a resource
    Allow(Entry),
    /// Forbid clients to connect to a resource
    Deny(Entry),
    /// Take the entry for a resource away
    Remove(Entry),
    /// Empty the list: everything is denied
    Reset(Reset),
    /// Show the list
    List {
        /// Gateway, by name or id
        gateway: GatewayRef,
    },
    /// Replace the list by the lines of a file
    Load(Load),
    /// Say which entry decides over a resource, or over a path of it
    Explain {
        /// Gateway, by name or id
        gateway: GatewayRef,
        /// Resource, and a path if it speaks HTTP
        #[arg(value_name = "HOST:PORT[/PATH]")]
        target: check::Asked,
    },
    /// Find entries that never decide, that no destination leads to, or that allow everything
    Lint {
        /// Gateway, by name or id; or a file, by a name with a dot or a slash in it, - for standard input
        #[arg(value_name = "GATEWAY|FILE")]
        subject: check::Subject,
        /// With a file: the gateway whose destinations it is for
        #[arg(long, value_name = "GATEWAY")]
        gateway: Option<GatewayRef>,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Load {
    /// Gateway, by name or id
    gateway: GatewayRef,
    /// Lines as `acl allow HOST:PORT[/PATH]` and `acl deny HOST:PORT`; - for standard input
    file: PathBuf,
    /// How paths are compared: by segments, or as text as Secure Gateway did; stays as it is if left out
    #[arg(long, value_name = "segment|text")]
    path_prefix: Option<sg_model::PrefixMode>,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Wait {
    /// Return when all connected nodes and clients enforce it, or with exit code 6 after this time
    #[arg(long, value_name = "DURATION")]
    wait: Option<HumanDuration>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Entry {
    /// Gateway, by name or id
    gateway: GatewayRef,
    /// Resource; without host every host, without port every port, : alone everything
    #[arg(value_name = "HOST:PORT[/PATH]")]
    target: Target,
    #[command(flatten)]
    wait: Wait,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Reset {
    /// Gateway, by name or id
    gateway: GatewayRef,
    #[command(flatten)]
    wait: Wait,
}

/// What an entry speaks of: `HOST:PORT`, either part possibly absent or a range, with an optional path.
#[derive(Debug, Clone)]
pub(crate) struct Target(AclEntry);

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        AclEntry::parse(Action::Allow, text)
            .map(Self)
            .map_err(|e| e.to_string())
    }
}

impl Target {
    fn entry(self, action: &str) -> api::AclEntry {
        api::AclEntry {
            action: action.to_owned(),
            ..api::AclEntry::from(&self.0)
        }
    }
}

impl Resource for api::Acl {
    const PLURAL: &'static str = "acls";
    const COLUMNS: &'static [&'static str] = &["GATEWAY", "UNLISTED", "ENTRIES", "ENFORCED"];
    const WIDE: &'static [&'static str] = &["GENERATION", "EPOCH"];

    fn reference(&self) -> String {
        self.gateway.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.gateway.clone(),
            self.unlisted.clone(),
            self.entries.len().to_string(),
            crate::show::yes_no(enforced(self)),
            self.generation.to_string(),
            self.epoch.to_string(),
        ]
    }

    fn details(&self) -> Option<String> {
        // A list with something that this version does not know is not shown in part.
        acl_from_api(self).ok().map(|acl| acl.show())
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    if let Command::Lint { subject, gateway } = command {
        return check::lint(session, subject, gateway).await;
    }
    let api = session.api()?;
    let (acl, wait) = match command {
        Command::Lint { .. } => return Ok(()),
        Command::Explain { gateway, target } => {
            return check::explain(&api, session, &gateway, &target).await;
        }
        Command::Load(args) => (load(&api, &args).await?, args.wait),
        Command::Allow(args) => (
            add(&api, &args.gateway, args.target, "allow").await?,
            args.wait,
        ),
        Command::Deny(args) => (
            add(&api, &args.gateway, args.target, "deny").await?,
            args.wait,
        ),
        Command::Remove(args) => (remove(&api, args.gateway, args.target).await?, args.wait),
        Command::Reset(args) => (reset(&api, args.gateway).await?, args.wait),
        Command::List { gateway } => (get(&api, &gateway).await?, Wait { wait: None }),
    };
    let acl = match wait.wait {
        Some(limit) => wait_enforced(&api, &acl, session.after(limit.get())).await?,
        None => acl,
    };
    session.one_with_details(&acl)
}

pub(crate) async fn get(api: &Api, gateway: &GatewayRef) -> Result<api::Acl, Failure> {
    let message = api::GetAclRequest {
        name: gateway.path(),
    };
    api.call(message, |channel, request| async move {
        AclsClient::new(channel).get_acl(request).await
    })
    .await
    .map_err(hint_list)
}

/// Adds an entry, or replaces the one with the same target.
pub(crate) async fn add(
    api: &Api,
    gateway: &GatewayRef,
    target: Target,
    action: &str,
) -> Result<api::Acl, Failure> {
    let message = api::AddAclEntryRequest {
        name: gateway.path(),
        entry: Some(target.entry(action)),
        etag: String::new(),
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        AclsClient::new(channel).add_acl_entry(request).await
    })
    .await
    .map_err(hint_list)
}

async fn remove(api: &Api, gateway: GatewayRef, target: Target) -> Result<api::Acl, Failure> {
    let message = api::RemoveAclEntryRequest {
        name: gateway.path(),
        entry: Some(target.entry("")),
        etag: String::new(),
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        AclsClient::new(channel).remove_acl_entry(request).await
    })
    .await
    .map_err(|failure| match failure.code() {
        Code::NotFound => failure.hint(format!("sgctl acl list {}", gateway.as_str())),
        _ => failure,
    })
}

async fn reset(api: &Api, gateway: GatewayRef) -> Result<api::Acl, Failure> {
    let message = api::ResetAclRequest {
        name: gateway.path(),
        etag: String::new(),
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        AclsClient::new(channel).reset_acl(request).await
    })
    .await
    .map_err(hint_list)
}

async fn load(api: &Api, args: &Load) -> Result<api::Acl, Failure> {
    let file = check::read_file(&args.file)?;
    for (line, note) in &file.notes {
        output::note(&format!("{}, line {line}: {note}\n", args.file.display()));
    }
    let message = api::ReplaceAclRequest {
        name: args.gateway.path(),
        entries: file.acl.entries.iter().map(api::AclEntry::from).collect(),
        unlisted: file.acl.unlisted.to_string(),
        path_prefix: args
            .path_prefix
            .map(|mode| mode.to_string())
            .unwrap_or_default(),
        etag: String::new(),
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        AclsClient::new(channel).replace_acl(request).await
    })
    .await
    .map_err(hint_list)
}

/// Waits until all connected nodes and clients enforce this version or a newer one.
pub(crate) async fn wait_enforced(
    api: &Api,
    acl: &api::Acl,
    until: Instant,
) -> Result<api::Acl, Failure> {
    let version = (acl.epoch, acl.generation);
    let message = api::WatchAclRequest {
        name: format!("gateways/{}", acl.gateway_id),
    };
    let watched = api
        .watch(
            until,
            message,
            |channel, request| async move { AclsClient::new(channel).watch_acl(request).await },
            |seen: &api::Acl| (seen.epoch, seen.generation) >= version && enforced(seen),
        )
        .await;
    watched.map_err(|WatchEnd { failure, last }| {
        if failure.may_pass() {
            let failure = failure.within(
                "NOT_ENFORCED",
                format!(
                    "the list of {} is stored, but not enforced everywhere yet",
                    acl.gateway
                ),
            );
            let behind = last
                .map(|seen| behind(&seen, acl.generation))
                .unwrap_or_default();
            behind
                .into_iter()
                .fold(failure, Failure::cause)
                .hint(format!("sgctl acl list {}", acl.gateway))
        } else {
            failure
        }
    })
}

fn enforced(acl: &api::Acl) -> bool {
    acl.status.as_ref().is_some_and(|s| s.enforced)
}

/// Who enforces an older list.
fn behind(acl: &api::Acl, generation: u64) -> Vec<String> {
    let all = acl
        .status
        .as_ref()
        .map(|s| s.enforcements.as_slice())
        .unwrap_or_default();
    all.iter()
        .filter(|e| e.generation < generation)
        .map(|e| {
            format!(
                "{} {} enforces generation {}, not {generation}",
                e.kind, e.id, e.generation
            )
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_people_write_them() {
        let read = |text: &str| text.parse::<Target>().map(|t| t.0.target_and_path());
        for (text, shown) in [
            ("db:5432", "db:5432"),
            ("DB.example.", "db.example:"),
            (":22", ":22"),
            (":", ":"),
            ("[::1]:80/a/b", "[::1]:80/a/b"),
            ("web:80/", "web:80/"),
        ] {
            assert_eq!(read(text).as_deref(), Ok(shown), "{text}");
        }
        for bad in ["", "db:0", "db:x", "/path", "a b:1"] {
            assert!(read(bad).is_err(), "{bad:?}");
        }
    }
}
