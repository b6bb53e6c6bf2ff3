//! What tables show of a destination.

use sg_proto::api::{Destination, DestinationClientStatus, DestinationNodeStatus};

use crate::output::{self, Resource};
use crate::show;

impl Resource for Destination {
    const PLURAL: &'static str = "destinations";
    const COLUMNS: &'static [&'static str] = &["NAME", "PROTOCOL", "LISTEN", "RESOURCE", "STATE"];
    const WIDE: &'static [&'static str] = &[
        "KIND",
        "ID",
        "GENERATION",
        "CONNECT TIMEOUT",
        "IDLE TIMEOUT",
        "MAX CONNECTIONS",
        "COMPRESSION",
        "DESCRIPTION",
    ];

    fn reference(&self) -> String {
        format!("{}/{}", self.gateway, self.name)
    }

    fn cells(&self) -> Vec<String> {
        let limit = match self.max_connections {
            0 => "none".to_owned(),
            limit => limit.to_string(),
        };
        vec![
            self.name.clone(),
            self.protocol.clone(),
            listen(self),
            show::address(&self.resource_host, self.resource_port),
            state(self),
            self.kind.clone(),
            self.id.clone(),
            self.generation.to_string(),
            show::duration(self.connect_timeout.as_ref(), "10s"),
            show::duration(
                self.idle_timeout.as_ref(),
                if self.protocol == "udp" {
                    "60s"
                } else {
                    "never"
                },
            ),
            limit,
            self.compression.clone(),
            self.description.clone(),
        ]
    }

    fn details(&self) -> Option<String> {
        let nodes = self
            .status
            .as_ref()
            .map(|s| s.nodes.as_slice())
            .unwrap_or_default();
        if nodes.is_empty() {
            return Some(format!("{}\n", no_node(None)));
        }
        let columns = [
            "NODE",
            "CONNECTED",
            "APPLIED",
            "STATE",
            "REASON",
            "ADDRESS",
            "MESSAGE",
        ];
        let rows = nodes.iter().map(|n| {
            vec![
                n.node.clone(),
                show::yes_no(n.connected),
                n.generation_applied.to_string(),
                n.state.clone(),
                n.reason.clone(),
                n.address.clone(),
                n.message.clone(),
            ]
        });
        let mut text = output::table(&columns, rows);
        let clients = self
            .status
            .as_ref()
            .map(|s| s.clients.as_slice())
            .unwrap_or_default();
        if !clients.is_empty() {
            text.push('\n');
            text.push_str(&client_table(clients));
        }
        Some(text)
    }
}

fn client_table(clients: &[DestinationClientStatus]) -> String {
    let columns = ["CLIENT", "APPLIED", "STATE", "REASON", "ADDRESS", "MESSAGE"];
    let rows = clients.iter().map(|c| {
        vec![
            c.client.clone(),
            c.generation_applied.to_string(),
            c.state.clone(),
            c.reason.clone(),
            c.address.clone(),
            c.message.clone(),
        ]
    });
    output::table(&columns, rows)
}

/// Nobody could serve it; often the group is mistyped.
fn no_node(group: Option<&str>) -> String {
    let group = group.map_or_else(
        || "its gateway's group".to_owned(),
        |name| format!("group {name}"),
    );
    format!("no node of {group} has joined; sgctl node list -o wide shows groups")
}

/// One line for each node of the group, or that there is none: what it says of the destination.
pub(super) fn node_states(destination: &Destination, group: Option<&str>) -> Vec<String> {
    let nodes = destination
        .status
        .as_ref()
        .map(|s| s.nodes.as_slice())
        .unwrap_or_default();
    if nodes.is_empty() {
        return vec![no_node(group)];
    }
    let clients = destination
        .status
        .as_ref()
        .map(|s| s.clients.as_slice())
        .unwrap_or_default();
    let of_clients = clients.iter().map(client_state);
    nodes.iter().map(node_state).chain(of_clients).collect()
}

fn client_state(client: &DestinationClientStatus) -> String {
    let why = [client.reason.as_str(), client.message.as_str()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| format!(", {part}"))
        .collect::<String>();
    format!(
        "client {}: {}, generation {} applied{why}",
        client.client, client.state, client.generation_applied
    )
}

fn node_state(node: &DestinationNodeStatus) -> String {
    let connected = if node.connected {
        ""
    } else {
        ", not connected"
    };
    let why = [node.reason.as_str(), node.message.as_str()]
        .into_iter()
        .filter(|part| !part.is_empty())
        .map(|part| format!(", {part}"))
        .collect::<String>();
    format!(
        "node {}: {}, generation {} applied{connected}{why}",
        node.node, node.state, node.generation_applied
    )
}

fn listen(destination: &Destination) -> String {
    match destination.client_port {
        0 => show::address(&destination.cloud_host, destination.cloud_port),
        port => format!("client:{port}"),
    }
}

/// Whether all who should have it have done with it what they should. What is served is that; a control plane of an older
/// version says no more.
pub(super) fn is_applied(destination: &Destination) -> bool {
    let status = destination.status.as_ref();
    status.is_some_and(|status| status.applied || status.ready)
}

/// One word for all nodes: what an operator would look at first.
fn state(destination: &Destination) -> String {
    let nodes = destination
        .status
        .as_ref()
        .map(|s| s.nodes.as_slice())
        .unwrap_or_default();
    let ready = destination.status.as_ref().is_some_and(|s| s.ready);
    let clients = destination
        .status
        .as_ref()
        .map(|s| s.clients.as_slice())
        .unwrap_or_default();
    let of_nodes = nodes.iter().map(|n| (&n.state, &n.reason));
    let of_clients = clients.iter().map(|c| (&c.state, &c.reason));
    match of_nodes
        .chain(of_clients)
        .find(|(state, _)| *state == "failed")
    {
        Some((_, reason)) if reason.is_empty() => "failed".to_owned(),
        Some((_, reason)) => format!("failed: {reason}"),
        None if !destination.enabled => "disabled".to_owned(),
        // Its gateway is disabled: the nodes have done what they should, and serve nothing.
        None if is_applied(destination)
            && nodes.iter().any(|n| n.connected && n.state == "disabled") =>
        {
            "disabled".to_owned()
        }
        None if ready => "ready".to_owned(),
        None => "pending".to_owned(),
    }
}
