//! What an operator would type, made through the same API: the gateway `dev`, its destinations, and
//! the entries of its access control list. A folder that was used before is brought to the state
//! that is wanted now; what else is in it stays.

use std::path::Path;
use std::time::Duration;

use sg_model::{HostPort, PortRange, Protocol};
use sg_proto::api;
use tokio::time::{Instant, sleep};
use tonic::Code;

use crate::connection::Api;
use crate::failure::Failure;
use crate::gateway::Change;
use crate::names::{GatewayRef, MemberRef, request_id};
use crate::{acl, client, destination, gateway, node, secret_file};

/// How often the list of clients is asked for the client.
const LOOK: Duration = Duration::from_millis(20);
const NAME: &str = "dev";

/// A destination to make.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) name: String,
    pub(super) protocol: Protocol,
    pub(super) resource: HostPort,
    pub(super) port: u16,
}

/// The gateway `dev`, enabled, with its security token in this file.
pub(super) async fn gateway(api: &Api, token_file: &Path) -> Result<api::Gateway, Failure> {
    let created = gateway::create(
        api,
        api::CreateGatewayRequest {
            gateway: Some(api::Gateway {
                name: NAME.to_owned(),
                enabled: true,
                ..api::Gateway::default()
            }),
            no_token_expiry: true,
            request_id: request_id(),
            ..api::CreateGatewayRequest::default()
        },
    )
    .await;
    let dev = dev_gateway()?;
    let mut gateway = match created {
        Ok(gateway) => gateway,
        Err(failure) if failure.code() == Code::AlreadyExists && token_file.exists() => {
            gateway::get(api, &dev).await?
        }
        // The token is lost with its file; a new one takes its place.
        Err(failure) if failure.code() == Code::AlreadyExists => {
            gateway::rotate(api, &dev, 0, true).await?
        }
        Err(failure) => return Err(failure),
    };
    if !gateway.security_token.is_empty() {
        secret_file::write(token_file, &gateway.security_token)?;
        gateway.security_token.clear();
    }
    if gateway.enabled {
        return Ok(gateway);
    }
    // It was disabled in an earlier run; a client of it would wait for ever.
    gateway::set_enabled(api, &Change::of_newest(dev), true).await
}

/// A token for the node.
pub(super) async fn join_token(api: &Api) -> Result<String, Failure> {
    node::create_token(api, None).await.map(|token| token.token)
}

/// All destinations, each with its entry in the access control list.
pub(super) async fn destinations(
    api: &Api,
    gateway: &api::Gateway,
    wanted: &[Wanted],
    range: PortRange,
) -> Result<Vec<api::Destination>, Failure> {
    let dev = dev_gateway()?;
    let existing = destination::list(api, &dev).await?;
    let mut made = Vec::with_capacity(wanted.len());
    for want in wanted {
        let target = want
            .resource
            .to_string()
            .parse::<acl::Target>()
            .map_err(Failure::usage)?;
        acl::add(api, &dev, target, "allow").await?;
        if let Some(old) = existing.iter().find(|d| d.name == want.name) {
            if serves(old, want, range) {
                made.push(old.clone());
                continue;
            }
            let name = MemberRef {
                gateway: dev.clone(),
                name: want.name.clone(),
            };
            destination::delete(api, &name, Some(old.etag.clone())).await?;
        }
        made.push(destination::create(api, request(gateway, want)).await?);
    }
    Ok(made)
}

/// Waits until every destination is ready on the node and the client is connected and enforces the
/// list as it is now.
pub(super) async fn wait_until_usable(
    api: &Api,
    gateway: &api::Gateway,
    destinations: &[api::Destination],
    until: Instant,
) -> Result<(), Failure> {
    for one in destinations {
        destination::wait_applied(api, one, until).await?;
    }
    let dev = dev_gateway()?;
    while client::list(api, &dev).await?.is_empty() {
        sleep(LOOK).await;
    }
    let acl = acl::get(api, &GatewayRef::from_id(&gateway.id)).await?;
    acl::wait_enforced(api, &acl, until).await?;
    Ok(())
}

/// Whether a destination of an earlier run can stay as it is.
fn serves(old: &api::Destination, want: &Wanted, range: PortRange) -> bool {
    let port = u16::try_from(old.cloud_port).unwrap_or_default();
    old.enabled
        && old.protocol == want.protocol.as_str()
        && old.resource_host == want.resource.host().to_string()
        && old.resource_port == u32::from(want.resource.port())
        && (port == want.port || range.contains(port))
}

fn request(gateway: &api::Gateway, want: &Wanted) -> api::CreateDestinationRequest {
    api::CreateDestinationRequest {
        parent: format!("gateways/{}", gateway.id),
        destination: Some(api::Destination {
            name: want.name.clone(),
            kind: "on-premises".to_owned(),
            protocol: want.protocol.to_string(),
            resource_host: want.resource.host().to_string(),
            resource_port: want.resource.port().into(),
            cloud_port: want.port.into(),
            enabled: true,
            ..api::Destination::default()
        }),
        request_id: request_id(),
        ..api::CreateDestinationRequest::default()
    }
}

fn dev_gateway() -> Result<GatewayRef, Failure> {
    NAME.parse().map_err(Failure::usage)
}
