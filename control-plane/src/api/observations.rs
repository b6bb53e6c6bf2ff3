//! `securegateway.v1.Clients`, `Nodes` and `System`: what is connected, how the whole does, and who is to go.

use sg_model::{ClientId, Gateway, TokenScope};
use sg_proto::api as wire;
use sg_proto::api::clients_server::Clients;
use sg_proto::api::nodes_server::Nodes;
use sg_proto::api::system_server::System;
use tonic::{Request, Response, Status};

use super::Api;
use super::request::{call, child_name, gateway_name, node_name, page};
use crate::service::{ServiceError, status};

#[tonic::async_trait]
impl Clients for Api {
    async fn list_clients(
        &self,
        request: Request<wire::ListClientsRequest>,
    ) -> Result<Response<wire::ListClientsResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let gateway = self.core.gateway(gateway_name(&asked.parent)?).await?;
            let view = self.core.views.now();
            let reports = self.core.observed.reports();
            let all = status::clients_and_revoked(&view.world, &reports, &gateway.value.gateway);
            // Processes of one client have no name of their own to go on from: they are numbered.
            let mut last = String::new();
            let mut number = 0;
            let keyed = all.into_iter().map(|client| {
                number = if client.id == last { number + 1 } else { 0 };
                last.clone_from(&client.id);
                (format!("{}/{number:05}", client.id), client)
            });
            let (clients, next_page_token) = page(keyed, asked.page_size, &asked.page_token)?;
            Ok(wire::ListClientsResponse {
                clients,
                next_page_token,
            })
        };
        self.rpcs.unary("Clients.ListClients", work).await
    }

    async fn get_client(
        &self,
        request: Request<wire::GetClientRequest>,
    ) -> Result<Response<wire::Client>, Status> {
        let asked = request.into_inner();
        let work = async {
            let (gateway, id) = child_name(&asked.name, "clients")?;
            let gateway = self.core.gateway(gateway).await?;
            let view = self.core.views.now();
            let reports = self.core.observed.reports();
            let all = status::clients_and_revoked(&view.world, &reports, &gateway.value.gateway);
            let found = all.into_iter().find(|client| client.id == id);
            found.ok_or_else(|| ServiceError::not_found("connected client", asked.name.clone()))
        };
        self.rpcs.unary("Clients.GetClient", work).await
    }

    async fn revoke_client(
        &self,
        request: Request<wire::RevokeClientRequest>,
    ) -> Result<Response<wire::Client>, Status> {
        const METHOD: &str = "Clients.RevokeClient";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let (gateway, id) = revocable(&asked.name)?;
            let done = self.core.revoke_client(&call, gateway, &id).await?;
            Ok(self.client(&done.gateway.value.gateway, &id))
        };
        self.rpcs.unary(METHOD, work).await
    }

    async fn restore_client(
        &self,
        request: Request<wire::RestoreClientRequest>,
    ) -> Result<Response<wire::Client>, Status> {
        const METHOD: &str = "Clients.RestoreClient";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, false)?;
        let work = async {
            let (gateway, id) = revocable(&asked.name)?;
            let done = self.core.restore_client(&call, gateway, &id).await?;
            Ok(self.client(&done.gateway.value.gateway, &id))
        };
        self.rpcs.unary(METHOD, work).await
    }
}

#[tonic::async_trait]
impl Nodes for Api {
    async fn list_nodes(
        &self,
        request: Request<wire::ListNodesRequest>,
    ) -> Result<Response<wire::ListNodesResponse>, Status> {
        let asked = request.into_inner();
        let work = async {
            let view = self.core.views.now();
            let reports = self.core.observed.reports();
            let all = view
                .world
                .nodes()
                .map(|node| (node.value.id.to_string(), node));
            let (found, next_page_token) = page(all, asked.page_size, &asked.page_token)?;
            let encode = |node: &std::sync::Arc<_>| {
                let node: &crate::world::Stored<sg_proto::convert::store::NodeRecord> = node;
                status::node(node, reports.get(&node.value.id))
            };
            let nodes = found.into_iter().map(encode).collect();
            Ok(wire::ListNodesResponse {
                nodes,
                next_page_token,
            })
        };
        self.rpcs.unary("Nodes.ListNodes", work).await
    }

    async fn get_node(
        &self,
        request: Request<wire::GetNodeRequest>,
    ) -> Result<Response<wire::Node>, Status> {
        let asked = request.into_inner();
        let work = async {
            let name = node_name(&asked.name)?;
            let view = self.core.views.now();
            let reports = self.core.observed.reports();
            let node = view.world.find_node(name);
            let node = node.ok_or_else(|| ServiceError::not_found("node", name))?;
            Ok(status::node(node, reports.get(&node.value.id)))
        };
        self.rpcs.unary("Nodes.GetNode", work).await
    }

    async fn delete_node(
        &self,
        request: Request<wire::DeleteNodeRequest>,
    ) -> Result<Response<pbjson_types::Empty>, Status> {
        const METHOD: &str = "Nodes.DeleteNode";
        let asked = request.get_ref();
        let call = call(&request, METHOD, &asked.request_id, asked.validate_only)?;
        let work = async {
            let name = node_name(&asked.name)?;
            self.core
                .delete_node(&call, name, &asked.etag, asked.force)
                .await?;
            Ok(pbjson_types::Empty {})
        };
        self.rpcs.unary(METHOD, work).await
    }
}

#[tonic::async_trait]
impl System for Api {
    async fn get_status(
        &self,
        _request: Request<wire::GetStatusRequest>,
    ) -> Result<Response<wire::Status>, Status> {
        let work = async { Ok(self.system_status()) };
        self.rpcs.unary("System.GetStatus", work).await
    }
}

/// A gateway, and the id of a client that need not be connected.
fn revocable(name: &str) -> Result<(&str, ClientId), ServiceError> {
    let (gateway, id) = child_name(name, "clients")?;
    let digits = id.strip_prefix('c').unwrap_or_default();
    if digits.len() != 24
        || !digits
            .bytes()
            .all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    {
        let text = "a client id is c and 24 hexadecimal digits; 'sgctl client list' shows those that are connected";
        return Err(ServiceError::invalid("name", text));
    }
    Ok((gateway, ClientId::new(id)?))
}

impl Api {
    /// A client as it is now, connected or not.
    fn client(&self, gateway: &Gateway, id: &ClientId) -> wire::Client {
        let view = self.core.views.now();
        let reports = self.core.observed.reports();
        let all = status::clients_and_revoked(&view.world, &reports, gateway);
        let found = all.into_iter().find(|client| client.id == id.as_str());
        found.unwrap_or_else(|| wire::Client {
            id: id.to_string(),
            gateway_id: gateway.id.to_string(),
            ..wire::Client::default()
        })
    }

    fn system_status(&self) -> wire::Status {
        let view = self.core.views.now();
        let reports = self.core.observed.reports();
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        let world = &view.world;
        let live = || reports.connected().map(|(_, report)| report);
        let problem = self.core.health.problem();
        let clients: Vec<_> = world
            .gateways()
            .flat_map(|(gateway, _)| status::clients(world, &reports, &gateway.value.gateway.id))
            .collect();
        // Nodes report of all gateways; who sees some of them gets what is told of these.
        let (streams, problems) = match self.core.views.scope() {
            TokenScope::All => (
                live().fold(0, |sum: u32, report| sum.saturating_add(report.streams)),
                status::problems(world, &reports, problem.clone()),
            ),
            TokenScope::Gateways(_) => (
                clients.iter().fold(0, |sum: u32, client| {
                    sum.saturating_add(client.active_streams)
                }),
                Vec::new(),
            ),
        };
        wire::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            control_plane_id: self.core.control_plane.clone(),
            store: self.core.store.describe(),
            store_healthy: problem.is_none(),
            revision: world.revision.get(),
            gateways: count(world.gateways().count()),
            destinations: count(
                world
                    .gateways()
                    .map(|(_, e)| e.destinations().count())
                    .sum(),
            ),
            nodes: count(world.nodes().count()),
            nodes_connected: count(live().count()),
            clients: count(clients.len()),
            streams,
            problems,
        }
    }
}
