//! What the changes of destinations write, and what a conflict says. No waiting here.

use std::time::Duration;

use sg_model::{Destination, DestinationId, Listen, Timestamp};
use sg_proto::convert::api::DestinationDraft;
use sg_proto::convert::store::{DestinationRecord, GatewayRecord};
use sg_proto::store as wire;

use crate::keys;
use crate::service::ServiceError;
use crate::service::change::{Call, Change};
use crate::service::gateways::name_taken;
use crate::service::outcome::Conflict;
use crate::service::ports::{self, Proposal};
use crate::world::Stored;

/// How long a freed cloud port is kept from other gateways.
const QUARANTINE: Duration = Duration::from_secs(24 * 3600);

pub(super) fn new_record(
    gateway: &Stored<GatewayRecord>,
    draft: &DestinationDraft,
    id: &DestinationId,
    proposal: Option<&Proposal>,
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
        compression: draft.compression,
        keepalive: draft.keepalive,
        user_end: draft.user_end.clone(),
        resource_end: draft.resource_end.clone(),
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

pub(super) fn create_change<'a>(
    call: &'a Call,
    gateway: &Stored<GatewayRecord>,
    record: &DestinationRecord,
    sealed: &wire::Destination,
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
    .create(keys::destination(&d.gateway, &d.id), sealed)
    .create(
        keys::destination_name(&d.gateway, &d.name),
        &reference(gateway, record),
    );
    take_port(change, gateway, record, proposal)
}

pub(super) fn update_change<'a>(
    call: &'a Call,
    gateway: &Stored<GatewayRecord>,
    current: &Stored<DestinationRecord>,
    (record, sealed): (&DestinationRecord, &wire::Destination),
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
    .replace(key, current.revision, sealed);
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

pub(super) fn delete_writes<'a>(
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

pub(super) fn port_key(gateway: &Stored<GatewayRecord>, record: &DestinationRecord) -> String {
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
pub(super) fn taken(
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

pub(super) fn port_taken(
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
