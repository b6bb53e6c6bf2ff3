//! What the API says of the state of things: pure functions of the world and of what the nodes
//! report. Nothing here is stored.

use std::collections::{BTreeMap, BTreeSet};

use sg_model::{AclVersion, DestinationId, DestinationKind, Gateway, GatewayId, Name};
use sg_proto::api as wire;
use sg_proto::convert::store::{DestinationRecord, GatewayRecord, NodeRecord};
use sg_proto::convert::timestamp_to_wire;
use sg_proto::node as node_wire;

use crate::push::observed::{Fares, NodeReport, Reports};
use crate::world::{GatewayEntry, Stored, World};

/// How far the nodes of the group are with a destination.
pub fn destination(
    world: &World,
    reports: &Reports,
    gateway: &GatewayRecord,
    record: &DestinationRecord,
) -> wire::DestinationStatus {
    let d = &record.destination;
    let serves = gateway.gateway.enabled && d.enabled;
    let nodes: Vec<_> = world
        .nodes_of(&gateway.group)
        .map(|node| {
            let report = reports.get(&node.value.id);
            node_status(&node.value, report, record)
        })
        .collect();
    let done = |row: &wire::DestinationNodeStatus| {
        let right_state = row.state == if serves { "listening" } else { "disabled" };
        right_state && row.generation_applied == d.generation
    };
    let mut live = nodes.iter().filter(|row| row.connected).peekable();
    let unknown = world
        .nodes_of(&gateway.group)
        .any(|node| reports.may_be_serving(&node.value.id));
    let clients: Vec<_> = clients_of(world, reports, gateway, record)
        .into_values()
        .collect();
    let listens = |row: &wire::DestinationClientStatus| {
        row.state == "listening" && row.generation_applied == d.generation
    };
    let applied = !unknown
        && live.peek().is_some()
        && live.all(done)
        && (!serves || clients.iter().all(listens));
    wire::DestinationStatus {
        ready: serves && applied,
        nodes,
        clients,
        applied,
    }
}

/// One run of a client: its id, and the id of the run.
type Run<'a> = (&'a str, &'a str);

/// How the connected clients are with a cloud destination: one row each, from whichever node has the newest word.
fn clients_of<'a>(
    world: &'a World,
    reports: &'a Reports,
    gateway: &GatewayRecord,
    record: &DestinationRecord,
) -> BTreeMap<Run<'a>, wire::DestinationClientStatus> {
    let d = &record.destination;
    let mut rows = BTreeMap::new();
    if d.kind() != DestinationKind::Cloud {
        return rows;
    }
    let live = world
        .nodes_of(&gateway.group)
        .filter_map(|node| reports.get(&node.value.id))
        .filter(|report| report.connected);
    let tunnels = live
        .flat_map(|report| report.tunnels.iter())
        .filter(|tunnel| tunnel.gateway_id == d.gateway.as_str());
    for tunnel in tunnels {
        let said = tunnel
            .listeners
            .iter()
            .find(|one| one.destination_id == d.id.as_str());
        let row = match said {
            Some(said) => wire::DestinationClientStatus {
                client_id: tunnel.client_id.clone(),
                client: tunnel.client_name.clone(),
                generation_applied: said.generation,
                state: said.state.clone(),
                reason: said.reason.clone(),
                message: said.message.clone(),
                address: said.address.clone(),
            },
            None => wire::DestinationClientStatus {
                client_id: tunnel.client_id.clone(),
                client: tunnel.client_name.clone(),
                state: "pending".to_owned(),
                ..wire::DestinationClientStatus::default()
            },
        };
        let run = (tunnel.client_id.as_str(), tunnel.boot_id.as_str());
        let newer =
            |old: &wire::DestinationClientStatus| old.generation_applied < row.generation_applied;
        if rows.get(&run).is_none_or(newer) {
            rows.insert(run, row);
        }
    }
    rows
}

fn node_status(
    node: &NodeRecord,
    report: Option<&NodeReport>,
    record: &DestinationRecord,
) -> wire::DestinationNodeStatus {
    let d = &record.destination;
    let connected = report.is_some_and(|report| report.connected);
    let mut row = wire::DestinationNodeStatus {
        node_id: node.id.to_string(),
        node: node.name.to_string(),
        connected,
        generation_applied: 0,
        state: "pending".to_owned(),
        reason: String::new(),
        message: String::new(),
        address: String::new(),
    };
    let Some(report) = report else {
        "disconnected".clone_into(&mut row.reason);
        "the node is not connected to this control plane".clone_into(&mut row.message);
        return row;
    };
    if let Some(Fares(state)) = report.destinations.get(d.id.as_str()).map(AsRef::as_ref) {
        row.generation_applied = state.generation;
        row.state.clone_from(&state.state);
        row.reason.clone_from(&state.reason);
        row.message.clone_from(&state.message);
        row.address.clone_from(&state.address);
    }
    if let Some(rejection) = report.rejected.get(d.id.as_str())
        && rejection.generation >= d.generation
    {
        "failed".clone_into(&mut row.state);
        row.reason.clone_from(&rejection.reason);
        row.message.clone_from(&rejection.message);
    }
    if !connected {
        // What it served last is still of interest, but it is not known to be true.
        "pending".clone_into(&mut row.state);
        "disconnected".clone_into(&mut row.reason);
        "the node is not connected to this control plane".clone_into(&mut row.message);
    }
    row
}

/// Who enforces which version of a gateway's list.
pub fn acl(
    world: &World,
    reports: &Reports,
    gateway: &GatewayRecord,
    version: AclVersion,
) -> wire::AclStatus {
    let id = gateway.gateway.id.as_str();
    let wanted = (version.epoch, version.generation);
    let mut enforced = true;
    let mut enforcements = Vec::new();
    let mut clients: BTreeMap<&str, (u64, u64)> = BTreeMap::new();
    for node in world.nodes_of(&gateway.group) {
        let report = reports.get(&node.value.id);
        let Some(report) = report.filter(|report| report.connected) else {
            enforced &= !reports.may_be_serving(&node.value.id);
            continue;
        };
        let has = report.acls.get(id).copied().unwrap_or_default();
        enforced &= has >= wanted;
        enforcements.push(wire::AclEnforcement {
            kind: "node".to_owned(),
            id: node.value.id.to_string(),
            generation: has.1,
        });
        for tunnel in report
            .tunnels
            .iter()
            .filter(|tunnel| tunnel.gateway_id == id)
        {
            let has = (tunnel.acl_epoch, tunnel.acl_generation);
            enforced &= has >= wanted;
            let lowest = clients.entry(&tunnel.client_id).or_insert(has);
            *lowest = has.min(*lowest);
        }
    }
    enforcements.extend(
        clients
            .into_iter()
            .map(|(id, (_, generation))| wire::AclEnforcement {
                kind: "client".to_owned(),
                id: id.to_owned(),
                generation,
            }),
    );
    wire::AclStatus {
        enforced,
        enforcements,
    }
}

/// The client processes connected to a gateway now, by client id, then by run.
pub fn clients(world: &World, reports: &Reports, gateway: &GatewayId) -> Vec<wire::Client> {
    let mut found: BTreeMap<Run<'_>, wire::Client> = BTreeMap::new();
    for (node, report) in reports.connected() {
        let name = world
            .node(node)
            .map(|node| node.value.name.to_string())
            .unwrap_or_default();
        for tunnel in report
            .tunnels
            .iter()
            .filter(|t| t.gateway_id == gateway.as_str())
        {
            let run = (tunnel.client_id.as_str(), tunnel.boot_id.as_str());
            let client = found.entry(run).or_insert_with(|| wire::Client {
                id: tunnel.client_id.clone(),
                name: tunnel.client_name.clone(),
                version: tunnel.version.clone(),
                gateway_id: tunnel.gateway_id.clone(),
                acl_generation: u64::MAX,
                ..wire::Client::default()
            });
            add_tunnel(client, node.as_str(), &name, tunnel);
        }
    }
    if let Some((record, entry)) = world.gateway(gateway) {
        add_ports(&mut found, world, reports, &record.value, entry);
    }
    found.into_values().collect()
}

/// What the clients say of the ports that they are to listen on.
fn add_ports<'a>(
    found: &mut BTreeMap<Run<'a>, wire::Client>,
    world: &'a World,
    reports: &'a Reports,
    gateway: &GatewayRecord,
    entry: &GatewayEntry,
) {
    let enabled = entry
        .destinations()
        .map(|stored| &stored.value)
        .filter(|record| gateway.gateway.enabled && record.destination.enabled);
    for record in enabled {
        let d = &record.destination;
        for (run, row) in clients_of(world, reports, gateway, record) {
            let Some(client) = found.get_mut(&run) else {
                continue;
            };
            client.ports.push(wire::ClientPort {
                destination_id: d.id.to_string(),
                destination: d.name.to_string(),
                client_port: d.listen.client_port().unwrap_or_default().into(),
                state: row.state,
                reason: row.reason,
                message: row.message,
                address: row.address,
            });
        }
    }
}

/// The same, with those that are let in no more: which of them are, and behind them those that are not connected.
pub fn clients_and_revoked(
    world: &World,
    reports: &Reports,
    gateway: &Gateway,
) -> Vec<wire::Client> {
    let mut all = clients(world, reports, &gateway.id);
    for (id, since) in &gateway.revoked {
        let since = Some(timestamp_to_wire(*since));
        let mut connected = false;
        for client in all.iter_mut().filter(|client| client.id == id.as_str()) {
            (client.revoked, client.revoke_time, connected) = (true, since, true);
        }
        if !connected {
            all.push(wire::Client {
                id: id.to_string(),
                gateway_id: gateway.id.to_string(),
                revoked: true,
                revoke_time: since,
                ..wire::Client::default()
            });
        }
    }
    all.sort_by(|a, b| a.id.cmp(&b.id));
    all
}

fn add_tunnel(client: &mut wire::Client, node: &str, name: &str, tunnel: &node_wire::ClientTunnel) {
    let date =
        |t: Option<&pbjson_types::Timestamp>| t.map_or((i64::MAX, 0), |t| (t.seconds, t.nanos));
    if client.tunnels.is_empty()
        || date(tunnel.connect_time.as_ref()) < date(client.connect_time.as_ref())
    {
        client.connect_time = tunnel.connect_time;
        client.address.clone_from(&tunnel.address);
    }
    if client.tunnels.is_empty() || tunnel.rtt_ms < client.rtt_ms {
        client.rtt_ms = tunnel.rtt_ms;
    }
    client.active_streams = client.active_streams.saturating_add(tunnel.active_streams);
    client.bytes_to_resource = client
        .bytes_to_resource
        .saturating_add(tunnel.bytes_to_resource);
    client.bytes_to_user = client.bytes_to_user.saturating_add(tunnel.bytes_to_user);
    client.acl_generation = client.acl_generation.min(tunnel.acl_generation);
    // All tunnels of a process show the same, but for a moment.
    client.credential.clone_from(&tunnel.credential);
    client.certificate_expire_time = tunnel.certificate_expire_time;
    client.tunnels.push(wire::Tunnel {
        node_id: node.to_owned(),
        node: name.to_owned(),
        address: tunnel.address.clone(),
        connect_time: tunnel.connect_time,
        rtt_ms: tunnel.rtt_ms,
        active_streams: tunnel.active_streams,
        bytes_to_resource: tunnel.bytes_to_resource,
        bytes_to_user: tunnel.bytes_to_user,
        acl_generation: tunnel.acl_generation,
    });
}

/// A node as the API shows it.
pub fn node(node: &Stored<NodeRecord>, report: Option<&NodeReport>) -> wire::Node {
    let record = &node.value;
    let state = match report {
        Some(report) if report.connected && report.draining => "draining",
        Some(report) if report.connected => "ready",
        _ => "disconnected",
    };
    let live = report.filter(|report| report.connected);
    wire::Node {
        id: record.id.to_string(),
        name: record.name.to_string(),
        group: record.group.to_string(),
        state: state.to_owned(),
        address: record.tunnel_address.clone(),
        tunnels: live.map_or(0, |r| u32::try_from(r.tunnels.len()).unwrap_or(u32::MAX)),
        streams: live.map_or(0, |report| report.streams),
        version: record.version.clone(),
        revision: report.map_or(0, |report| report.revision),
        destination_host: record.destination_host.clone(),
        port_first: record.ports.map_or(0, |ports| ports.first().into()),
        port_last: record.ports.map_or(0, |ports| ports.last().into()),
        create_time: Some(timestamp_to_wire(record.created)),
        connect_time: live.map(|report| timestamp_to_wire(report.since)),
        etag: node.etag(),
    }
}

/// An operator reads the first ones.
const MOST_PROBLEMS: usize = 100;

/// What an operator should look at.
pub fn problems(world: &World, reports: &Reports, store: Option<String>) -> Vec<String> {
    let mut problems: Vec<String> = store.into_iter().collect();
    problems.extend(
        world
            .problems()
            .map(|(key, problem)| format!("stored value {key}: {problem}")),
    );
    for node in world.nodes() {
        if problems.len() >= MOST_PROBLEMS {
            break;
        }
        let name = &node.value.name;
        match reports
            .get(&node.value.id)
            .filter(|report| report.connected)
        {
            None => problems.push(format!(
                "node {name} is not connected to this control plane"
            )),
            Some(report) => {
                for (id, rejection) in report.rejected.iter().take(MOST_PROBLEMS) {
                    let what = object_name(world, id);
                    problems.push(format!("node {name} rejects {what}: {}", rejection.message));
                }
                let failed = report
                    .destinations
                    .iter()
                    .map(|fares| &fares.0)
                    .filter(|state| state.state == "failed");
                problems.extend(failed.take(MOST_PROBLEMS).map(|state| {
                    let what = object_name(world, &state.destination_id);
                    format!("node {name} cannot serve {what}: {}", state.message)
                }));
            }
        }
    }
    let groups: BTreeSet<&Name> = world
        .gateways()
        .map(|(gateway, _)| &gateway.value.group)
        .collect();
    let unserved = groups
        .into_iter()
        .filter(|group| world.nodes_of(group).next().is_none());
    problems.extend(unserved.map(|group| format!("no node serves group {group}")));
    problems.truncate(MOST_PROBLEMS);
    problems
}

/// What people call an object that nodes know by its id; what is gone by now has only that.
fn object_name(world: &World, id: &str) -> String {
    let gateway = GatewayId::new(id).ok();
    if let Some((gateway, _)) = gateway.and_then(|id| world.gateway(&id)) {
        return format!("gateway {}", gateway.value.gateway.name);
    }
    let destination = DestinationId::new(id).ok().and_then(|id| {
        world.gateways().find_map(|(gateway, entry)| {
            let found = entry.destination(&id)?;
            Some((&gateway.value.gateway.name, &found.value.destination.name))
        })
    });
    match destination {
        Some((gateway, name)) => format!("destination {gateway}/{name}"),
        None => id.to_owned(),
    }
}
