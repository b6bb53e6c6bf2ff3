//! Destinations: create, change, delete, with their names and ports kept unique.

mod ends;
mod writes;

pub use ends::CertificateFiles;

use sg_model::{DestinationId, DestinationKind, Listen};
use sg_proto::convert::api::DestinationDraft;
use sg_proto::convert::store::{DestinationRecord, GatewayRecord};

use self::writes::{
    create_change, delete_writes, new_record, port_key, port_taken, taken, update_change,
};
use super::change::{Call, Change, RETRIES};
use super::etag::{parse_etag, required_etag};
use super::gateways::uncommitted;
use super::outcome::Outcome;
use super::ports::Proposal;
use super::{Core, ServiceError};
use crate::ids;
use crate::keys;
use crate::store::KeyValue;
use crate::world::Stored;

/// Most destinations of one gateway.
const MAX_DESTINATIONS: usize = 2_000;
/// Destinations deleted in one transaction; each takes four writes of the hundred it may have.
const DELETE_BATCH: usize = 20;

/// A destination together with the gateway it belongs to.
#[derive(Debug, Clone)]
pub struct DestinationAnswer {
    /// The gateway.
    pub gateway: Stored<GatewayRecord>,
    /// The destination.
    pub destination: Stored<DestinationRecord>,
}

impl Core {
    /// Creates a destination.
    ///
    /// # Errors
    /// The gateway does not exist; name or port is taken; a field cannot be had; or the store
    /// failed.
    pub async fn create_destination(
        &self,
        call: &Call,
        parent: &str,
        draft: &DestinationDraft,
        enabled: bool,
    ) -> Result<DestinationAnswer, ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.destination_again(parent, &replay.id).await;
        }
        let mut gateway = self.gateway(parent).await?;
        let now = ids::now();
        let id = DestinationId::new(ids::new_id('D', now))?;
        for attempt in 0..RETRIES * 2 {
            if attempt > 0 {
                let fresh = self.read_gateway(&gateway.value.gateway.id).await?;
                gateway = fresh.ok_or_else(|| ServiceError::not_found("gateway", parent))?;
            }
            self.has_room(&gateway)?;
            let proposal = self.propose(&gateway, draft, attempt).await?;
            let mut record = new_record(&gateway, draft, &id, proposal.as_ref(), enabled, now)?;
            self.complete_ends(&gateway.value, &mut record)?;
            if call.validate_only {
                self.indices_are_free(&gateway, &record, true, true).await?;
                return Ok(DestinationAnswer {
                    gateway,
                    destination: uncommitted(record),
                });
            }
            let change = create_change(
                call,
                &gateway,
                &record,
                &self.sealed_destination(&record),
                proposal.as_ref(),
            );
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    let destination = Stored {
                        value: record,
                        revision,
                    };
                    return Ok(DestinationAnswer {
                        gateway,
                        destination,
                    });
                }
                Outcome::Replayed(replay) => {
                    return self.destination_again(parent, &replay.id).await;
                }
                Outcome::Conflict(conflict) => {
                    let asked = draft.cloud_port.is_some();
                    taken(&conflict, &gateway, &record, None, asked)?;
                }
            }
        }
        Err(ServiceError::contended())
    }

    /// Changes a destination by `edit`, which is called anew whenever somebody else was faster.
    /// `force` is `None` for changes that need no etag.
    ///
    /// # Errors
    /// It does not exist, the etag is missing or old, `edit` refuses, name or port is taken, or
    /// the store failed.
    pub async fn update_destination(
        &self,
        call: &Call,
        (parent, name): (&str, &str),
        etag: &str,
        force: Option<bool>,
        edit: impl Fn(&DestinationRecord) -> Result<DestinationRecord, ServiceError>,
    ) -> Result<DestinationAnswer, ServiceError> {
        if let Some(replay) = self.replayed(call).await? {
            return self.destination_again(parent, &replay.id).await;
        }
        let expected = match force {
            Some(force) => required_etag(etag, force)?,
            None => parse_etag(etag)?,
        };
        let mut gateway = self.gateway(parent).await?;
        let mut current = self.destination(&gateway, name).await?;
        let id = current.value.destination.id.clone();
        let path = format!("{parent}/{name}");
        let mut read_first = false;
        for attempt in 0..RETRIES {
            let fresh = read_first || expected.is_some_and(|expected| expected != current.revision);
            if fresh {
                let gateway_id = gateway.value.gateway.id.clone();
                let found = self.read_gateway(&gateway_id).await?;
                gateway = found.ok_or_else(|| ServiceError::not_found("gateway", parent))?;
                let found = self.read_destination(&gateway_id, &id).await?;
                current = found.ok_or_else(|| ServiceError::not_found("destination", &path))?;
            }
            read_first = true;
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("destination", &path));
            }
            let edited = edit(&current.value).and_then(|mut record| {
                self.complete_ends(&gateway.value, &mut record)?;
                Ok(record)
            });
            // "Refused" and "as it is already" are said only of what the store has now.
            let changes = edited.as_ref().is_ok_and(|record| *record != current.value);
            if !fresh && !changes {
                continue;
            }
            let mut record = edited?;
            if record == current.value {
                return Ok(DestinationAnswer {
                    gateway,
                    destination: current,
                });
            }
            record.destination.generation = current.value.destination.generation + 1;
            record.updated = ids::now();
            let moved = record.destination.listen != current.value.destination.listen;
            let proposal = match record.destination.listen {
                Listen::CloudPort(port) if moved => {
                    let id = &gateway.value.gateway.id;
                    Some(
                        self.propose_port(&gateway.value.group, id, Some(port), attempt)
                            .await?,
                    )
                }
                Listen::CloudPort(_) | Listen::ClientPort(_) => None,
            };
            if call.validate_only {
                let renamed = record.destination.name != current.value.destination.name;
                self.indices_are_free(&gateway, &record, renamed, moved)
                    .await?;
                let destination = Stored {
                    value: record,
                    revision: current.revision,
                };
                return Ok(DestinationAnswer {
                    gateway,
                    destination,
                });
            }
            let change = update_change(
                call,
                &gateway,
                &current,
                (&record, &self.sealed_destination(&record)),
                proposal.as_ref(),
            );
            match self.commit(change).await? {
                Outcome::Done(revision) => {
                    let destination = Stored {
                        value: record,
                        revision,
                    };
                    return Ok(DestinationAnswer {
                        gateway,
                        destination,
                    });
                }
                Outcome::Replayed(replay) => {
                    return self.destination_again(parent, &replay.id).await;
                }
                Outcome::Conflict(conflict) => {
                    taken(&conflict, &gateway, &record, Some(&current.value), true)?;
                }
            }
        }
        Err(ServiceError::contended())
    }

    /// Deletes a destination; its cloud port is kept from other gateways for a day.
    ///
    /// # Errors
    /// It does not exist, the etag is missing or old, or the store failed.
    pub async fn delete_destination(
        &self,
        call: &Call,
        (parent, name): (&str, &str),
        etag: &str,
        force: bool,
    ) -> Result<(), ServiceError> {
        if self.replayed(call).await?.is_some() {
            return Ok(());
        }
        let expected = required_etag(etag, force)?;
        let path = format!("{parent}/{name}");
        let missing = || ServiceError::not_found("destination", &path);
        let gateway = self.gateway(parent).await?;
        let gateway_id = gateway.value.gateway.id.clone();
        let id = self.destination(&gateway, name).await?.value.destination.id;
        for _ in 0..RETRIES {
            let gateway = self.read_gateway(&gateway_id).await?.ok_or_else(missing)?;
            let current = self
                .read_destination(&gateway_id, &id)
                .await?
                .ok_or_else(missing)?;
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("destination", &path));
            }
            if call.validate_only {
                return Ok(());
            }
            let change = Change::new(call, format!("destination/{gateway_id}/{id}"), id.as_str())
                .detail(format!("name={}", current.value.destination.name));
            let change = delete_writes(change, &gateway, &current);
            match self.commit(change).await? {
                Outcome::Done(_) | Outcome::Replayed(_) => return Ok(()),
                Outcome::Conflict(_) => {}
            }
        }
        Err(ServiceError::contended())
    }

    /// Deletes all destinations of a gateway that is about to be deleted, some at a time. Those
    /// that change meanwhile are left to the caller's next round. Tells, also of a failure, whether
    /// any was deleted.
    pub(super) async fn delete_destinations(
        &self,
        call: &Call,
        gateway: &Stored<GatewayRecord>,
        children: Vec<KeyValue>,
    ) -> Result<bool, (bool, ServiceError)> {
        let gateway_id = &gateway.value.gateway.id;
        // Only the deletion of the gateway itself answers the request.
        let step = Call {
            request_id: String::new(),
            ..call.clone()
        };
        let mut any = false;
        for batch in children.chunks(DELETE_BATCH) {
            let mut change = Change::new(&step, format!("gateway/{gateway_id}"), "")
                .detail(format!("deletes {} of its destinations", batch.len()));
            for entry in batch {
                let destination = self
                    .parse_destination(entry)
                    .map_err(|error| (any, error))?;
                change = delete_writes(change, gateway, &destination);
            }
            let outcome = self.commit(change).await.map_err(|error| (any, error))?;
            any |= matches!(outcome, Outcome::Done(_));
        }
        Ok(any)
    }

    async fn propose(
        &self,
        gateway: &Stored<GatewayRecord>,
        draft: &DestinationDraft,
        attempt: usize,
    ) -> Result<Option<Proposal>, ServiceError> {
        if draft.kind == DestinationKind::Cloud {
            return Ok(None);
        }
        let (group, id) = (&gateway.value.group, &gateway.value.gateway.id);
        self.propose_port(group, id, draft.cloud_port, attempt)
            .await
            .map(Some)
    }

    fn has_room(&self, gateway: &Stored<GatewayRecord>) -> Result<(), ServiceError> {
        let view = self.views.now();
        let entry = view.world.gateway(&gateway.value.gateway.id);
        let count = entry.map_or(0, |(_, entry)| entry.destinations().count());
        if count < MAX_DESTINATIONS {
            return Ok(());
        }
        Err(ServiceError::Exhausted {
            reason: "TOO_MANY_DESTINATIONS",
            message: format!(
                "a gateway has at most {MAX_DESTINATIONS} destinations; use another one"
            ),
        })
    }

    /// For requests that only ask whether they would succeed.
    async fn indices_are_free(
        &self,
        gateway: &Stored<GatewayRecord>,
        record: &DestinationRecord,
        name: bool,
        port: bool,
    ) -> Result<(), ServiceError> {
        if name {
            let name = &record.destination.name;
            let name_key = keys::destination_name(&record.destination.gateway, name);
            self.name_is_free(&name_key, "destination", name).await?;
        }
        if !port {
            return Ok(());
        }
        match self.read(&port_key(gateway, record)).await? {
            None => Ok(()),
            Some(entry) => {
                let holder = prost::Message::decode(entry.value.as_ref())?;
                Err(port_taken(gateway, record, &holder))
            }
        }
    }

    async fn destination_again(
        &self,
        parent: &str,
        id: &str,
    ) -> Result<DestinationAnswer, ServiceError> {
        let gateway = self.gateway(parent).await?;
        let gone = || ServiceError::not_found("destination", format!("{parent}/{id}"));
        let id = DestinationId::new(id).map_err(|_| gone())?;
        let destination = self
            .read_destination(&gateway.value.gateway.id, &id)
            .await?;
        Ok(DestinationAnswer {
            gateway,
            destination: destination.ok_or_else(gone)?,
        })
    }
}
