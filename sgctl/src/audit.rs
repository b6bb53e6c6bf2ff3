//! `sgctl audit`: who changed what, and whether the trail of it is whole.

use std::cell::Cell;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::audit_client::AuditClient;
use sg_runtime::duration::HumanDuration;

use crate::connection::{Api, WatchEnd};
use crate::failure::Failure;
use crate::names::GatewayRef;
use crate::output::{self, Resource};
use crate::session::Session;
use crate::show;

const PAGE: i32 = 1000;
/// As good as for ever.
const FOREVER: Duration = Duration::from_secs(10 * 366 * 24 * 3600);

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show who changed what, oldest first
    List(List),
    /// Check that no record was changed, taken out or put in; exit code 7 if one was
    Verify,
}

#[derive(Debug, clap::Args)]
pub(crate) struct List {
    /// Only what concerns this gateway, by name or id
    #[arg(long, value_name = "GATEWAY")]
    gateway: Option<GatewayRef>,
    /// Only records of this last while, as 24h
    #[arg(long, value_name = "DURATION")]
    since: Option<HumanDuration>,
    /// At most so many, the newest [default: 100, or all with --since]
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Go on with what is written from now on
    #[arg(long)]
    watch: bool,
}

impl Resource for api::AuditRecord {
    const PLURAL: &'static str = "auditRecords";
    const COLUMNS: &'static [&'static str] =
        &["NUMBER", "TIME", "WHO", "METHOD", "OBJECT", "CHANGED"];
    const WIDE: &'static [&'static str] = &["FROM", "REQUEST", "REVISION"];

    fn reference(&self) -> String {
        self.number.to_string()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.number.to_string(),
            show::date(self.time.as_ref(), ""),
            named(&self.principal_name, &self.principal),
            self.method.clone(),
            named(&self.object_name, &self.object),
            changed(self),
            self.source.clone(),
            self.request_id.clone(),
            self.revision.to_string(),
        ]
    }
}

/// By name; a control plane of an older version tells ids only.
fn named(name: &str, id: &str) -> String {
    if name.is_empty() { id } else { name }.to_owned()
}

/// The names of the fields that changed, or else what the record says in short.
fn changed(record: &api::AuditRecord) -> String {
    let both = |field: &&api::AuditField| !field.before.is_empty() || !field.after.is_empty();
    let updated = record.changes.iter().flat_map(|change| &change.fields);
    let names: Vec<_> = updated
        .filter(both)
        .filter(|field| field.name != "generation")
        .map(|field| field.name.as_str())
        .collect();
    match names.len() {
        1..=4 => names.join(","),
        _ => record.detail.clone(),
    }
}

impl Resource for api::AuditVerification {
    const PLURAL: &'static str = "auditVerifications";
    const COLUMNS: &'static [&'static str] = &["INTACT", "FIRST", "LAST", "RECORDS", "SHA256"];

    fn reference(&self) -> String {
        format!("{}:{}", self.last, self.sha256)
    }

    fn cells(&self) -> Vec<String> {
        vec![
            show::yes_no(self.intact),
            self.first.to_string(),
            self.last.to_string(),
            self.records.to_string(),
            self.sha256.clone(),
        ]
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    match command {
        Command::List(args) => {
            let mut records = list(&api, &args).await?;
            records.reverse();
            if !args.watch {
                return session.list(&records);
            }
            let after = records.last().map_or(0, |record| record.number);
            for record in &records {
                output::line(session.format(), record)?;
            }
            watch(&api, session, &args, after).await
        }
        Command::Verify => {
            let found = api
                .call(api::VerifyAuditRequest {}, |channel, request| async move {
                    AuditClient::new(channel).verify_audit(request).await
                })
                .await?;
            session.one(&found)?;
            if found.intact {
                return Ok(());
            }
            let text = format!(
                "the audit trail is broken at record {}: {}",
                found.broken, found.problem
            );
            Err(Failure::found("AUDIT_BROKEN", text))
        }
    }
}

/// Newest first.
async fn list(api: &Api, args: &List) -> Result<Vec<api::AuditRecord>, Failure> {
    let limit = match (args.limit, args.since) {
        (Some(limit), _) => limit,
        (None, Some(_)) => usize::MAX,
        (None, None) => 100,
    };
    let since = args.since.map(|since| {
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        let then = now.unwrap_or_default().saturating_sub(since.get());
        pbjson_types::Timestamp {
            seconds: i64::try_from(then.as_secs()).unwrap_or(i64::MAX),
            nanos: 0,
        }
    });
    let mut all = Vec::new();
    let mut page_token = String::new();
    while all.len() < limit {
        let left = i32::try_from(limit - all.len()).unwrap_or(PAGE);
        let message = api::ListAuditRecordsRequest {
            gateway: gateway(args),
            since,
            page_size: left.min(PAGE),
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                AuditClient::new(channel).list_audit_records(request).await
            })
            .await
            .map_err(crate::gateway::hint_list)?;
        all.extend(page.records);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            break;
        }
    }
    Ok(all)
}

fn gateway(args: &List) -> String {
    args.gateway
        .as_ref()
        .map(GatewayRef::path)
        .unwrap_or_default()
}

/// Prints records as they come, until somebody ends the program.
async fn watch(api: &Api, session: &Session, args: &List, after: u64) -> Result<(), Failure> {
    let message = api::WatchAuditRecordsRequest {
        gateway: gateway(args),
        after,
    };
    // A stream that was opened again begins where the first one began.
    let last = Cell::new(after);
    let failed = Cell::new(None);
    let watched = api
        .watch(
            session.after(FOREVER),
            message,
            |channel, request| async move {
                AuditClient::new(channel).watch_audit_records(request).await
            },
            |record: &api::AuditRecord| {
                if record.number <= last.get() {
                    return false;
                }
                last.set(record.number);
                match output::line(session.format(), record) {
                    Ok(()) => false,
                    Err(failure) => {
                        failed.set(Some(failure));
                        true
                    }
                }
            },
        )
        .await;
    match (watched, failed.take()) {
        (_, Some(failure)) | (Err(WatchEnd { failure, .. }), None) => Err(failure),
        (Ok(_), None) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_shown_by_name_and_kept_by_id() {
        let record = api::AuditRecord {
            principal: "node/N1".to_owned(),
            principal_name: "node/node-1".to_owned(),
            object: "destination/G1/D1".to_owned(),
            object_name: "destination/dev/db".to_owned(),
            ..api::AuditRecord::default()
        };
        let cells = record.cells();
        assert_eq!(
            (cells[2].as_str(), cells[4].as_str()),
            ("node/node-1", "destination/dev/db")
        );
        let json = serde_json::to_value(&record).expect("JSON");
        assert_eq!(
            (&json["principal"], &json["object"]),
            (&"node/N1".into(), &"destination/G1/D1".into())
        );
        let older = api::AuditRecord {
            principal_name: String::new(),
            object_name: String::new(),
            ..record
        };
        let cells = older.cells();
        assert_eq!(
            (cells[2].as_str(), cells[4].as_str()),
            ("node/N1", "destination/G1/D1")
        );
    }
}
