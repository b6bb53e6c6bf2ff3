//! Destinations: create, change, delete, with their names and ports kept unique.

use std::time::Duration;

use sg_model::{Destination, DestinationId, DestinationKind, Listen, Protocol, Timestamp};
use sg_proto::convert::api::DestinationDraft;
use sg_proto::convert::store::{DestinationRecord, GatewayRecord};
use sg_proto::store as wire;

use super::change::{Call, Change, Conflict, Outcome, RETRIES, parse_etag, required_etag};
use super::gateways::{name_taken, uncommitted};
use super::ports::{self, Proposal};
use super::{Core, ServiceError};
use crate::ids;
use crate::keys;
use crate::store::KeyValue;
use crate::world::Stored;

/// How long a freed cloud port is kept from other gateways.
const QUARANTINE: Duration = Duration::from_secs(24 * 3600);
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
    /// The gateway does not exist; name or port is taken; nodes cannot serve it yet; or the store
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
        servable(draft)?;
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
            let record = new_record(&gateway, draft, &id, &proposal, enabled, now)?;
            if call.validate_only {
                self.indices_are_free(&gateway, &record).await?;
                return Ok(DestinationAnswer {
                    gateway,
                    destination: uncommitted(record),
                });
            }
            let change = create_change(call, &gateway, &record, proposal.as_ref());
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
        for attempt in 0..RETRIES {
            let differs = expected.is_some_and(|expected| expected != current.revision);
            if attempt > 0 || differs {
                let gateway_id = gateway.value.gateway.id.clone();
                let fresh = self.read_gateway(&gateway_id).await?;
                gateway = fresh.ok_or_else(|| ServiceError::not_found("gateway", parent))?;
                let fresh = self.read_destination(&gateway_id, &id).await?;
                current = fresh.ok_or_else(|| ServiceError::not_found("destination", &path))?;
            }
            if expected.is_some_and(|expected| expected != current.revision) {
                return Err(ServiceError::etag_mismatch("destination", &path));
            }
            let mut record = edit(&current.value)?;
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
                let destination = Stored {
                    value: record,
                    revision: current.revision,
                };
                return Ok(DestinationAnswer {
                    gateway,
                    destination,
                });
            }
            let change = update_change(call, &gateway, &current, &record, proposal.as_ref());
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
    /// that change meanwhile are left to the caller's next round.
    pub(super) async fn delete_destinations(
        &self,
        call: &Call,
        gateway: &Stored<GatewayRecord>,
        children: Vec<KeyValue>,
    ) -> Result<(), ServiceError> {
        let gateway_id = &gateway.value.gateway.id;
        // Only the deletion of the gateway itself answers the request.
        let step = Call {
            request_id: String::new(),
            ..call.clone()
        };
        for batch in children.chunks(DELETE_BATCH) {
            let mut change = Change::new(&step, format!("gateway/{gateway_id}"), "")
                .detail(format!("deletes {} of its destinations", batch.len()));
            for entry in batch {
                let destination = super::parse_destination(entry)?;
                change = delete_writes(change, gateway, &destination);
            }
            self.commit(change).await?;
        }
        Ok(())
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

    async fn indices_are_free(
        &self,
        gateway: &Stored<GatewayRecord>,
        record: &DestinationRecord,
    ) -> Result<(), ServiceError> {
        let name = &record.destination.name;
        let name_key = keys::destination_name(&record.destination.gateway, name);
        self.name_is_free(&name_key, "destination", name).await?;
        let port_key = port_key(gateway, record);
        match self.read(&port_key).await? {
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

/// Refuses what no node can serve yet, so that nobody waits for a port that never opens. A cloud
/// destination is kept all the same, and its status says that it is not served.
///
/// # Errors
/// [`ServiceError::Unsupported`], saying what works.
pub fn servable(draft: &DestinationDraft) -> Result<(), ServiceError> {
    match draft.protocol {
        Protocol::Tcp => Ok(()),
        protocol => Err(ServiceError::Unsupported {
            reason: "PROTOCOL_NOT_SUPPORTED",
            message: format!("nodes cannot serve protocol {protocol} yet; tcp works"),
        }),
    }
}

fn new_record(
    gateway: &Stored<GatewayRecord>,
    draft: &DestinationDraft,
    id: &DestinationId,
    proposal: &Option<Proposal>,
    enabled: bool,
    now: Timestamp,
) -> Result<DestinationRecord, ServiceError> {
    let cloud_port = proposal.map(|proposal| proposal.port).unwrap_or_default();
    let destination = Destination {
        id: id.clone(),
        gateway: gateway.value.gateway.id.clone(),
        name: draft.name.clone(),
        listen: Listen::new(
            draft.kind,
            cloud_port,
            draft.client_port.unwrap_or_default(),
        )?,
        protocol: draft.protocol,
        resource: draft.resource.clone(),
        enabled,
        connect_timeout: draft.connect_timeout,
        idle_timeout: draft.idle_timeout,
        max_connections: draft.max_connections,
        generation: 1,
    };
    let description = draft.description.clone();
    Ok(DestinationRecord {
        destination,
        description,
        created: now,
        updated: now,
    })
}

fn create_change<'a>(
    call: &'a Call,
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
    proposal: Option<&Proposal>,
) -> Change<'a> {
    let d = &record.destination;
    let change = Change::new(
        call,
        format!("destination/{}/{}", d.gateway, d.id),
        d.id.as_str(),
    )
    .detail(format!(
        "name={} resource={} listen={:?}",
        d.name, d.resource, d.listen
    ))
    .require(keys::gateway(&d.gateway), gateway.revision)
    .create(
        keys::destination(&d.gateway, &d.id),
        &wire::Destination::from(record),
    )
    .create(
        keys::destination_name(&d.gateway, &d.name),
        &reference(gateway, record),
    );
    take_port(change, gateway, record, proposal)
}

fn update_change<'a>(
    call: &'a Call,
    gateway: &Stored<GatewayRecord>,
    current: &Stored<DestinationRecord>,
    record: &DestinationRecord,
    proposal: Option<&Proposal>,
) -> Change<'a> {
    let (d, old) = (&record.destination, &current.value.destination);
    let key = keys::destination(&d.gateway, &d.id);
    let mut change = Change::new(
        call,
        format!("destination/{}/{}", d.gateway, d.id),
        d.id.as_str(),
    )
    .detail(format!("name={} generation={}", d.name, d.generation))
    .replace(key, current.revision, &wire::Destination::from(record));
    if d.name != old.name {
        change = change
            .delete(keys::destination_name(&d.gateway, &old.name))
            .create(
                keys::destination_name(&d.gateway, &d.name),
                &reference(gateway, record),
            );
    }
    if d.listen != old.listen {
        change = change.require(keys::gateway(&d.gateway), gateway.revision);
        change = free_port(change, gateway, &current.value);
        change = take_port(change, gateway, record, proposal);
    }
    change
}

fn take_port<'a>(
    change: Change<'a>,
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
    proposal: Option<&Proposal>,
) -> Change<'a> {
    let change = change.create(port_key(gateway, record), &reference(gateway, record));
    let Some(proposal) = proposal else {
        return change;
    };
    let quarantine = keys::quarantine(&gateway.value.group, proposal.port);
    match proposal.own_quarantine {
        Some(revision) => change.remove(quarantine, revision),
        None => change.require_absent(quarantine),
    }
}

fn free_port<'a>(
    change: Change<'a>,
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
) -> Change<'a> {
    let change = change.delete(port_key(gateway, record));
    match record.destination.listen {
        Listen::CloudPort(port) => {
            let key = keys::quarantine(&gateway.value.group, port);
            change.put_for(key, &reference(gateway, record), QUARANTINE)
        }
        Listen::ClientPort(_) => change,
    }
}

fn delete_writes<'a>(
    change: Change<'a>,
    gateway: &Stored<GatewayRecord>,
    destination: &Stored<DestinationRecord>,
) -> Change<'a> {
    let d = &destination.value.destination;
    let change = change
        .remove(keys::destination(&d.gateway, &d.id), destination.revision)
        .delete(keys::destination_name(&d.gateway, &d.name));
    free_port(change, gateway, &destination.value)
}

fn port_key(gateway: &Stored<GatewayRecord>, record: &DestinationRecord) -> String {
    match record.destination.listen {
        Listen::CloudPort(port) => keys::cloud_port(&gateway.value.group, port),
        Listen::ClientPort(port) => keys::client_port(&gateway.value.gateway.id, port),
    }
}

fn reference(gateway: &Stored<GatewayRecord>, record: &DestinationRecord) -> wire::Reference {
    let d = &record.destination;
    wire::Reference {
        kind: "destination".to_owned(),
        id: d.id.to_string(),
        gateway_id: d.gateway.to_string(),
        name: format!("{}/{}", gateway.value.gateway.name, d.name),
    }
}

/// Says what a conflict was about, if the caller can do something about it; otherwise the change
/// is worked out anew.
fn taken(
    conflict: &Conflict,
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
    old: Option<&DestinationRecord>,
    asked_port: bool,
) -> Result<(), ServiceError> {
    let d = &record.destination;
    let renamed = old.is_none_or(|old| old.destination.name != d.name);
    if renamed && let Some(holder) = conflict.holder(&keys::destination_name(&d.gateway, &d.name)) {
        return Err(name_taken("destination", &d.name, &holder));
    }
    let moved = old.is_none_or(|old| old.destination.listen != d.listen);
    let asked = asked_port || d.listen.client_port().is_some();
    if !moved || !asked {
        return Ok(());
    }
    if let Some(holder) = conflict.holder(&port_key(gateway, record)) {
        return Err(port_taken(gateway, record, &holder));
    }
    let Listen::CloudPort(port) = d.listen else {
        return Ok(());
    };
    match conflict.holder(&keys::quarantine(&gateway.value.group, port)) {
        Some(holder) if holder.gateway_id != d.gateway.as_str() => {
            Err(ports::quarantined(&gateway.value.group, port))
        }
        _ => Ok(()),
    }
}

fn port_taken(
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
    holder: &wire::Reference,
) -> ServiceError {
    let (owner, name) = holder
        .name
        .split_once('/')
        .unwrap_or((&holder.gateway_id, &holder.name));
    match record.destination.listen {
        Listen::CloudPort(port) => ServiceError::Taken {
            reason: "PORT_TAKEN",
            message: format!(
                "port {port} of group {} is used by destination {name} of gateway {owner}",
                gateway.value.group
            ),
        },
        Listen::ClientPort(port) => ServiceError::Taken {
            reason: "CLIENT_PORT_TAKEN",
            message: format!("client port {port} of gateway {owner} is used by destination {name}"),
        },
    }
}
