//! `securegateway.v1.Audit`: the audit trail, shown, followed and verified.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::{Stream, stream};
use sg_proto::api as wire;
use sg_proto::api::audit_server::Audit;
use sg_proto::convert::timestamp_from_wire;
use sg_runtime::crypto::hex;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request, Response, Status};

use super::Api;
use super::errors::{status, to_status};
use super::request::{gateway_name, page_size};
use crate::service::audit::names;
use crate::service::audit::read::{Filter, Record};
use crate::service::{Core, ServiceError};
use crate::store::follow::Snapshot;

/// Streams of records at a time: each reads the store on every change.
pub(super) const MAX_WATCHES: usize = 64;

fn encode(core: &Core, record: Record) -> wire::AuditRecord {
    let view = core.views.now();
    let object_name = names::object(&view.world, &record.record);
    let principal_name = names::principal(&view.world, &record.record);
    let Record {
        record,
        sha256,
        revision,
    } = record;
    wire::AuditRecord {
        number: record.number,
        time: record.time,
        principal: record.principal,
        principal_id: record.principal_id,
        source: record.source,
        method: record.method,
        object: record.object,
        gateway_id: record.gateway_id,
        request_id: record.request_id,
        detail: record.detail,
        revision: revision.get(),
        changes: record
            .changes
            .into_iter()
            .map(|change| wire::AuditChange {
                object: change.object,
                truncated: change.truncated,
                fields: change
                    .fields
                    .into_iter()
                    .map(|field| wire::AuditField {
                        name: field.name,
                        before: field.before,
                        after: field.after,
                    })
                    .collect(),
            })
            .collect(),
        control_plane_id: record.control_plane_id,
        sha256: hex(&sha256),
        previous_sha256: hex(&record.previous_sha256),
        object_name,
        principal_name,
    }
}

impl Api {
    async fn audit_filter(
        &self,
        gateway: &str,
        since: Option<&pbjson_types::Timestamp>,
    ) -> Result<Filter, ServiceError> {
        let gateway = match gateway {
            "" => None,
            name => {
                let found = self.core.gateway(gateway_name(name)?).await?;
                Some(found.value.gateway.id)
            }
        };
        let since = since.map(|since| timestamp_from_wire("since", since));
        Ok(Filter {
            gateway,
            since: since.transpose()?,
        })
    }
}

#[tonic::async_trait]
impl Audit for Api {
    async fn list_audit_records(
        &self,
        request: Request<wire::ListAuditRecordsRequest>,
    ) -> Result<Response<wire::ListAuditRecordsResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let filter = self
                .audit_filter(&asked.gateway, asked.since.as_ref())
                .await?;
            let bad = |_| {
                let text = "send back next_page_token exactly as it came";
                ServiceError::invalid("page_token", text)
            };
            let before = match asked.page_token.as_str() {
                "" => 0,
                token => token.parse().map_err(bad)?,
            };
            let size = page_size(asked.page_size)?;
            let (found, next) = self.core.audit_records(&filter, before, size).await?;
            let next_page_token = match next {
                0 => String::new(),
                number => number.to_string(),
            };
            Ok(wire::ListAuditRecordsResponse {
                records: found
                    .into_iter()
                    .map(|record| encode(&self.core, record))
                    .collect(),
                next_page_token,
            })
        };
        self.rpcs.unary("Audit.ListAuditRecords", work).await
    }

    type WatchAuditRecordsStream =
        Pin<Box<dyn Stream<Item = Result<wire::AuditRecord, Status>> + Send>>;

    async fn watch_audit_records(
        &self,
        request: Request<wire::WatchAuditRecordsRequest>,
    ) -> Result<Response<Self::WatchAuditRecordsStream>, Status> {
        const METHOD: &str = "Audit.WatchAuditRecords";
        let asked = request.into_inner();
        let begin = async {
            let place = Arc::clone(&self.audit_watches).try_acquire_owned();
            let place = place.map_err(|_| ServiceError::Exhausted {
                reason: "TOO_MANY_WATCHES",
                message: format!("{MAX_WATCHES} callers follow the audit trail here already"),
            })?;
            let filter = self.audit_filter(&asked.gateway, None).await?;
            let mut followed = self.core.chain.subscribe();
            followed.mark_unchanged();
            let last = self.core.chain.last().map_or(0, |mark| mark.number);
            Ok(Watching {
                core: Arc::clone(&self.core),
                filter,
                followed,
                draining: self.draining.clone(),
                after: match asked.after {
                    0 => last,
                    after => after.min(last),
                },
                ready: VecDeque::new(),
                over: false,
                _place: place,
            })
        };
        let watching = self.rpcs.unary(METHOD, begin).await?.into_inner();
        let records = stream::unfold(watching, |mut watching| async move {
            let item = watching.next().await?;
            Some((item, watching))
        });
        Ok(Response::new(Box::pin(records)))
    }

    async fn verify_audit(
        &self,
        _request: Request<wire::VerifyAuditRequest>,
    ) -> Result<Response<wire::AuditVerification>, Status> {
        let work = async {
            let found = self.core.verify_audit().await?;
            let (broken, problem) = found.broken.unwrap_or_default();
            if broken > 0 {
                tracing::error!(number = broken, problem, "the audit trail does not hold");
            }
            Ok(wire::AuditVerification {
                intact: broken == 0,
                records: found.records,
                first: found.first,
                last: found.last.number,
                sha256: hex(&found.last.sha256),
                broken,
                problem,
            })
        };
        // It reads everything: one caller at a time.
        let _turn = self.verifying.acquire().await;
        self.rpcs.long("Audit.VerifyAudit", work).await
    }
}

/// A caller who follows the trail.
struct Watching {
    core: Arc<Core>,
    filter: Filter,
    followed: watch::Receiver<Arc<Snapshot>>,
    draining: CancellationToken,
    after: u64,
    ready: VecDeque<Record>,
    over: bool,
    _place: OwnedSemaphorePermit,
}

impl Watching {
    async fn next(&mut self) -> Option<Result<wire::AuditRecord, Status>> {
        while !self.over {
            if let Some(record) = self.ready.pop_front() {
                return Some(Ok(encode(&self.core, record)));
            }
            // Marked before reading: what is written while we read wakes us again.
            self.followed.mark_unchanged();
            let last = self.core.chain.last().map_or(0, |mark| mark.number);
            if self.after < last {
                let read = self
                    .core
                    .audit_records_after(&self.filter, self.after, last);
                match read.await {
                    Ok((found, after)) => {
                        self.ready.extend(found);
                        self.after = after;
                    }
                    Err(error) => {
                        self.over = true;
                        return Some(Err(to_status(error)));
                    }
                }
                continue;
            }
            tokio::select! {
                () = self.draining.cancelled() => {
                    self.over = true;
                    let text = "the control plane is shutting down; watch through another one";
                    return Some(Err(status(Code::Unavailable, "DRAINING", text)));
                }
                changed = self.followed.changed() => self.over = changed.is_err(),
            }
        }
        None
    }
}
