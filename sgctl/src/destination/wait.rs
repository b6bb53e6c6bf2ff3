//! Waits until a destination is served, or its ports are closed.

use sg_proto::api;
use sg_proto::api::destinations_client::DestinationsClient;
use tokio::time::Instant;

use super::view;
use crate::connection::{Api, WatchEnd};
use crate::failure::Failure;
use crate::names::GatewayRef;

/// Waits until every live node of the group has applied this generation or a newer one.
pub(crate) async fn wait_applied(
    api: &Api,
    destination: &api::Destination,
    until: Instant,
) -> Result<api::Destination, Failure> {
    let name = format!("{}/{}", destination.gateway, destination.name);
    let message = api::WatchDestinationRequest {
        name: format!(
            "gateways/{}/destinations/{}",
            destination.gateway_id, destination.id
        ),
    };
    let generation = destination.generation;
    let group = group_without_nodes(api, destination).await;
    let what = if destination.enabled {
        "is not served by every node"
    } else {
        "not every node has closed its port"
    };
    let applied = |seen: &api::Destination| seen.generation >= generation && view::is_applied(seen);
    let watched = api
        .watch(
            until,
            message,
            |channel, request| async move {
                DestinationsClient::new(channel)
                    .watch_destination(request)
                    .await
            },
            applied,
        )
        .await;
    watched.map_err(|WatchEnd { failure, last }| {
        if failure.may_pass() {
            let failure = failure.within(
                "NOT_READY",
                format!("destination {name} is stored, but {what}"),
            );
            let nodes = last
                .map(|last| view::node_states(&last, group.as_deref()))
                .unwrap_or_default();
            nodes
                .into_iter()
                .fold(failure, Failure::cause)
                .hint(format!("sgctl destination get {name}"))
        } else {
            failure
        }
    })
}

/// The group that should serve it, if no node of that is known: its name may be a slip.
async fn group_without_nodes(api: &Api, destination: &api::Destination) -> Option<String> {
    if destination
        .status
        .as_ref()
        .is_some_and(|s| !s.nodes.is_empty())
    {
        return None;
    }
    // It only makes a text clearer; whatever ails the control plane, the wait itself says so.
    let gateway = GatewayRef::from_id(&destination.gateway_id);
    let found = crate::gateway::get(api, &gateway).await.ok()?;
    Some(found.group)
}

pub(super) async fn waited(
    api: &Api,
    destination: api::Destination,
    wait: bool,
    until: Instant,
) -> Result<api::Destination, Failure> {
    if wait {
        wait_applied(api, &destination, until).await
    } else {
        Ok(destination)
    }
}
