//! `sgctl destination source`: from where the users of a destination may connect.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use serde::Serialize;
use sg_model::Timestamp;
use sg_proto::api;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_proto::convert::timestamp_to_wire;
use sg_runtime::duration::HumanDuration;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::{MemberRef, request_id};
use crate::output::{self, Resource};
use crate::session::Session;
use crate::show;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Admit a source; a rule of the same owner is replaced; rules count once the destination has --restrict
    Add {
        /// Destination
        #[arg(value_name = "GATEWAY/NAME")]
        destination: MemberRef,
        /// IP, IP-IP or CIDR, each with an optional " PORT" or " PORT:PORT"; or :PORT
        spec: String,
        /// Whose rule it is
        #[arg(long, value_name = "OWNER")]
        owner: Option<String>,
        /// How long it holds [default: for ever]
        #[arg(long, value_name = "DURATION")]
        ttl: Option<HumanDuration>,
    },
    /// Take a source out
    Remove {
        /// Destination
        #[arg(value_name = "GATEWAY/NAME")]
        destination: MemberRef,
        /// As it was added
        #[arg(required_unless_present = "owner")]
        spec: Option<String>,
        /// Whose rule it is
        #[arg(long, value_name = "OWNER")]
        owner: Option<String>,
    },
    /// Show all sources
    List {
        /// Destination
        #[arg(value_name = "GATEWAY/NAME")]
        destination: MemberRef,
    },
}

/// A rule as it is shown.
#[derive(Debug, Clone, Serialize)]
#[serde(transparent)]
struct Row(api::SourceRule);

impl Resource for Row {
    const PLURAL: &'static str = "sources";
    const COLUMNS: &'static [&'static str] = &["SOURCE", "OWNER", "EXPIRES"];

    fn reference(&self) -> String {
        self.0.spec.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.0.spec.clone(),
            self.0.owner.clone(),
            show::date(self.0.expire_time.as_ref(), "never"),
        ]
    }
}

pub(super) async fn run(api: &Api, session: &Session, command: Command) -> Result<(), Failure> {
    let adds = matches!(command, Command::Add { .. });
    let (destination, changed) = match command {
        Command::Add {
            destination,
            spec,
            owner,
            ttl,
        } => {
            let source = api::SourceRule {
                spec,
                owner: owner.unwrap_or_default(),
                expire_time: ttl.map(|ttl| timestamp_to_wire(after(ttl.get()))),
            };
            let message = api::AddSourceRequest {
                name: destination.path("destinations"),
                source: Some(source),
                etag: String::new(),
                request_id: request_id(),
            };
            let changed = api
                .call(message, |channel, request| async move {
                    DestinationsClient::new(channel).add_source(request).await
                })
                .await;
            (destination, changed)
        }
        Command::Remove {
            destination,
            spec,
            owner,
        } => {
            let message = api::RemoveSourceRequest {
                name: destination.path("destinations"),
                spec: spec.unwrap_or_default(),
                owner: owner.unwrap_or_default(),
                etag: String::new(),
                request_id: request_id(),
            };
            let changed = api
                .call(message, |channel, request| async move {
                    DestinationsClient::new(channel)
                        .remove_source(request)
                        .await
                })
                .await;
            (destination, changed)
        }
        Command::List { destination } => {
            let found = super::get(api, &destination).await;
            (destination, found)
        }
    };
    let changed = changed.map_err(|failure| super::hint_list(failure, &destination))?;
    if adds {
        warn_unrestricted(&destination, &changed);
    }
    let rules = changed.user_end.unwrap_or_default().sources;
    session.list(&rules.into_iter().map(Row).collect::<Vec<_>>())
}

/// Rules were given to a destination that does not ask for them.
pub(super) fn warn_unrestricted(named: &MemberRef, destination: &api::Destination) {
    if destination
        .user_end
        .as_ref()
        .is_some_and(|end| end.restrict)
    {
        return;
    }
    output::note(&format!(
        "warning: {named} admits everybody; sgctl destination update {named} --restrict makes the rules count"
    ));
}

fn after(ttl: Duration) -> Timestamp {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    Timestamp(u64::try_from((now + ttl).as_millis()).unwrap_or(u64::MAX))
}
