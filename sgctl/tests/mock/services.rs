//! The answers of the mock.

use std::pin::Pin;
use std::sync::{Arc, Mutex};

use pbjson_types::{Empty, Timestamp};
use sg_proto::api::{
    Acl, AclEnforcement, AclEntry, AclStatus, AddAclEntryRequest, AddSourceRequest, AdminToken,
    Client, ClientPort, CreateAdminTokenRequest, CreateDestinationRequest, CreateGatewayRequest,
    CreateJoinTokenRequest, DeleteAdminTokenRequest, DeleteDestinationRequest,
    DeleteGatewayRequest, DeleteNodeRequest, Destination, DestinationCertificates,
    DestinationNodeStatus, DestinationStatus, DisableDestinationRequest, DisableGatewayRequest,
    EnableDestinationRequest, EnableGatewayRequest, Gateway, GetAclRequest, GetAdminTokenRequest,
    GetClientRequest, GetDestinationCertificatesRequest, GetDestinationRequest, GetGatewayRequest,
    GetNodeRequest, GetStatusRequest, JoinToken, ListAdminTokensRequest, ListAdminTokensResponse,
    ListClientsRequest, ListClientsResponse, ListDestinationsRequest, ListDestinationsResponse,
    ListGatewaysRequest, ListGatewaysResponse, ListNodesRequest, ListNodesResponse, Node,
    RemoveAclEntryRequest, RemoveSourceRequest, ReplaceAclRequest, ResetAclRequest,
    RestoreClientRequest, RevokeClientRequest, RotateTokenRequest, Status as Status_, Tunnel,
    UpdateDestinationRequest, UpdateGatewayRequest, WatchAclRequest, WatchDestinationRequest,
    acls_server, clients_server, destinations_server, gateways_server, nodes_server, system_server,
    tokens_server,
};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Code, Request, Response, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

use super::{Script, TOKEN};

#[derive(Clone)]
pub struct Services(pub Arc<Mutex<Script>>);

type Answer<T> = Result<Response<T>, Status>;
type Watched<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Services {
    /// Checks the token, writes the request down, and fails if the name is that of a code.
    fn asked<T>(&self, request: &Request<T>, what: &str, name: &str) -> Result<(), Status> {
        let expected = format!("Bearer {TOKEN}");
        if request
            .metadata()
            .get("authorization")
            .map(|v| v.as_bytes())
            != Some(expected.as_bytes())
        {
            return Err(refusal(Code::Unauthenticated, "BAD_TOKEN"));
        }
        let mut script = self.0.lock().unwrap();
        script.asked.push(format!("{what} {name}"));
        if script.unavailable {
            return Err(refusal(Code::Unavailable, "STORE_UNAVAILABLE"));
        }
        match name.rsplit('/').next().unwrap_or_default() {
            "nowhere" => Err(missing("gateway")),
            "missing" => Err(refusal(Code::NotFound, "NOT_FOUND")),
            "denied" => Err(refusal(Code::PermissionDenied, "PERMISSION_DENIED")),
            "taken" => Err(refusal(Code::AlreadyExists, "NAME_TAKEN")),
            "busy" => Err(refusal(Code::FailedPrecondition, "NOT_EMPTY")),
            "odd" => Err(refusal(Code::Internal, "INTERNAL")),
            "bad" => {
                let mut details =
                    ErrorDetails::with_error_info("INVALID_ARGUMENT", "secure-gateway", []);
                details.add_bad_request_violation("protocol", "'gopher' is not one of tcp, udp");
                Err(Status::with_error_details(
                    Code::InvalidArgument,
                    "a field cannot be accepted",
                    details,
                ))
            }
            _ => Ok(()),
        }
    }

    fn changed<T>(&self, request: &Request<T>, what: &str, name: &str) -> Result<(), Status> {
        self.asked(request, what, name)?;
        let mut script = self.0.lock().unwrap();
        if script.conflicts > 0 {
            script.conflicts -= 1;
            return Err(refusal(Code::Aborted, "ETAG_MISMATCH"));
        }
        Ok(())
    }
}

/// That a thing of this kind does not exist.
fn missing(kind: &str) -> Status {
    let metadata = std::collections::HashMap::from([("kind".to_owned(), kind.to_owned())]);
    let details = ErrorDetails::with_error_info("NOT_FOUND", "secure-gateway", metadata);
    Status::with_error_details(Code::NotFound, "the mock has none", details)
}

fn refusal(code: Code, reason: &str) -> Status {
    let details = ErrorDetails::with_error_info(reason, "secure-gateway", []);
    Status::with_error_details(code, "the mock says no", details)
}

fn at(seconds: i64) -> Option<Timestamp> {
    Some(Timestamp { seconds, nanos: 0 })
}

pub fn gateway() -> Gateway {
    Gateway {
        id: "g0123".into(),
        name: "dev".into(),
        enabled: true,
        group: "default".into(),
        policy: "round-robin".into(),
        acl_edits: "clients".into(),
        token_required: true,
        token_expire_time: at(1_900_000_000),
        create_time: at(1_764_000_000),
        generation: 1,
        etag: "e1".into(),
        ..Gateway::default()
    }
}

pub fn destination() -> Destination {
    Destination {
        id: "d0123".into(),
        name: "pg".into(),
        gateway_id: "g0123".into(),
        gateway: "dev".into(),
        kind: "on-premises".into(),
        protocol: "tcp".into(),
        resource_host: "10.0.0.5".into(),
        resource_port: 5432,
        cloud_host: "node.example".into(),
        cloud_port: 15000,
        enabled: true,
        generation: 3,
        etag: "e3".into(),
        status: Some(DestinationStatus {
            ready: false,
            applied: false,
            nodes: vec![DestinationNodeStatus {
                node_id: "n1".into(),
                node: "node-1".into(),
                connected: true,
                generation_applied: 2,
                state: "pending".into(),
                ..DestinationNodeStatus::default()
            }],
            clients: vec![],
        }),
        ..Destination::default()
    }
}

pub fn acl() -> Acl {
    Acl {
        gateway_id: "g0123".into(),
        gateway: "dev".into(),
        entries: vec![AclEntry {
            action: "allow".into(),
            host: "10.0.0.5".into(),
            port: 5432,
            ..AclEntry::default()
        }],
        unlisted: "deny".into(),
        path_prefix: "segment".into(),
        epoch: 1,
        generation: 7,
        etag: "a7".into(),
        status: Some(AclStatus {
            enforced: false,
            enforcements: vec![AclEnforcement {
                kind: "client".into(),
                id: "c1".into(),
                generation: 6,
            }],
        }),
    }
}

#[tonic::async_trait]
impl gateways_server::Gateways for Services {
    async fn create_gateway(&self, r: Request<CreateGatewayRequest>) -> Answer<Gateway> {
        let name = r.get_ref().gateway.as_ref().unwrap().name.clone();
        let id = r.get_ref().request_id.clone();
        self.asked(&r, &format!("create gateway {id}"), &name)?;
        if self.0.lock().unwrap().existing.is_some() {
            return Err(refusal(Code::AlreadyExists, "NAME_TAKEN"));
        }
        let security_token = "sgt_secret".into();
        Ok(Response::new(Gateway {
            name,
            security_token,
            ..gateway()
        }))
    }

    async fn get_gateway(&self, r: Request<GetGatewayRequest>) -> Answer<Gateway> {
        self.asked(&r, "get gateway", &r.get_ref().name)?;
        let existing = self.0.lock().unwrap().existing.clone();
        Ok(Response::new(existing.unwrap_or_else(gateway)))
    }

    async fn list_gateways(&self, r: Request<ListGatewaysRequest>) -> Answer<ListGatewaysResponse> {
        self.asked(&r, "list gateways", &r.get_ref().page_token)?;
        let first = r.get_ref().page_token.is_empty();
        let mut other = gateway();
        other.name = "second".into();
        other.enabled = false;
        let (one, next) = if first {
            (gateway(), "page-2")
        } else {
            (other, "")
        };
        Ok(Response::new(ListGatewaysResponse {
            gateways: vec![one],
            next_page_token: next.into(),
        }))
    }

    async fn update_gateway(&self, r: Request<UpdateGatewayRequest>) -> Answer<Gateway> {
        let m = r.get_ref();
        let mask = m.update_mask.as_ref().unwrap().paths.join(",");
        let etag = &m.gateway.as_ref().unwrap().etag;
        self.changed(&r, &format!("update gateway {mask} {etag}"), &m.name)?;
        Ok(Response::new(gateway()))
    }

    async fn delete_gateway(&self, r: Request<DeleteGatewayRequest>) -> Answer<Empty> {
        self.changed(
            &r,
            &format!("delete gateway {}", r.get_ref().etag),
            &r.get_ref().name,
        )?;
        Ok(Response::new(Empty {}))
    }

    async fn enable_gateway(&self, r: Request<EnableGatewayRequest>) -> Answer<Gateway> {
        self.changed(
            &r,
            &format!("enable gateway {}", r.get_ref().etag),
            &r.get_ref().name,
        )?;
        Ok(Response::new(gateway()))
    }

    async fn disable_gateway(&self, r: Request<DisableGatewayRequest>) -> Answer<Gateway> {
        self.changed(
            &r,
            &format!("disable gateway {}", r.get_ref().etag),
            &r.get_ref().name,
        )?;
        Ok(Response::new(gateway()))
    }

    async fn rotate_token(&self, r: Request<RotateTokenRequest>) -> Answer<Gateway> {
        self.asked(
            &r,
            &format!("rotate {}", r.get_ref().token_days),
            &r.get_ref().name,
        )?;
        Ok(Response::new(Gateway {
            security_token: "sgt_new".into(),
            ..gateway()
        }))
    }
}

#[tonic::async_trait]
impl destinations_server::Destinations for Services {
    async fn create_destination(
        &self,
        r: Request<CreateDestinationRequest>,
    ) -> Answer<Destination> {
        let d = r.get_ref().destination.clone().unwrap();
        let what = format!(
            "create {} {} {}:{} in",
            d.kind, d.protocol, d.resource_host, d.resource_port
        );
        self.asked(&r, &what, &format!("{}/{}", r.get_ref().parent, d.name))?;
        Ok(Response::new(Destination {
            user_end: d.user_end,
            ..destination()
        }))
    }

    async fn get_destination(&self, r: Request<GetDestinationRequest>) -> Answer<Destination> {
        self.asked(&r, "get destination", &r.get_ref().name)?;
        let shown = self.0.lock().unwrap().destination.clone();
        Ok(Response::new(shown.unwrap_or_else(destination)))
    }

    async fn list_destinations(
        &self,
        r: Request<ListDestinationsRequest>,
    ) -> Answer<ListDestinationsResponse> {
        self.asked(&r, "list destinations", &r.get_ref().parent)?;
        Ok(Response::new(ListDestinationsResponse {
            destinations: vec![destination()],
            next_page_token: String::new(),
        }))
    }

    async fn update_destination(
        &self,
        r: Request<UpdateDestinationRequest>,
    ) -> Answer<Destination> {
        let mask = r.get_ref().update_mask.as_ref().unwrap().paths.join(",");
        self.changed(&r, &format!("update destination {mask}"), &r.get_ref().name)?;
        Ok(Response::new(destination()))
    }

    async fn delete_destination(&self, r: Request<DeleteDestinationRequest>) -> Answer<Empty> {
        self.changed(
            &r,
            &format!("delete destination {}", r.get_ref().etag),
            &r.get_ref().name,
        )?;
        Ok(Response::new(Empty {}))
    }

    async fn enable_destination(
        &self,
        r: Request<EnableDestinationRequest>,
    ) -> Answer<Destination> {
        self.changed(&r, "enable destination", &r.get_ref().name)?;
        let shown = self.0.lock().unwrap().destination.clone();
        Ok(Response::new(shown.unwrap_or_else(destination)))
    }

    async fn disable_destination(
        &self,
        r: Request<DisableDestinationRequest>,
    ) -> Answer<Destination> {
        self.changed(&r, "disable destination", &r.get_ref().name)?;
        Ok(Response::new(destination()))
    }

    async fn get_destination_certificates(
        &self,
        _: Request<GetDestinationCertificatesRequest>,
    ) -> Answer<DestinationCertificates> {
        Ok(Response::new(DestinationCertificates::default()))
    }

    async fn add_source(&self, r: Request<AddSourceRequest>) -> Answer<Destination> {
        self.changed(&r, "add source", &r.get_ref().name)?;
        Ok(Response::new(destination()))
    }

    async fn remove_source(&self, r: Request<RemoveSourceRequest>) -> Answer<Destination> {
        self.changed(&r, "remove source", &r.get_ref().name)?;
        if r.get_ref().spec == "10.0.0.6" {
            return Err(missing("source"));
        }
        Ok(Response::new(destination()))
    }

    type WatchDestinationStream = Watched<Destination>;

    async fn watch_destination(
        &self,
        r: Request<WatchDestinationRequest>,
    ) -> Answer<Self::WatchDestinationStream> {
        self.asked(&r, "watch destination", &r.get_ref().name)?;
        Ok(Response::new(watched(
            self.0.lock().unwrap().destination_states.clone(),
        )))
    }
}

/// These values, then silence.
fn watched<T: Send + 'static>(values: Vec<T>) -> Watched<T> {
    let values = tokio_stream::iter(values.into_iter().map(Ok));
    Box::pin(values.chain(tokio_stream::pending()))
}

#[tonic::async_trait]
impl acls_server::Acls for Services {
    async fn get_acl(&self, r: Request<GetAclRequest>) -> Answer<Acl> {
        self.asked(&r, "get acl", &r.get_ref().name)?;
        Ok(Response::new(acl()))
    }

    async fn add_acl_entry(&self, r: Request<AddAclEntryRequest>) -> Answer<Acl> {
        let e = r.get_ref().entry.clone().unwrap();
        let what = format!("{} {}:{}{} in", e.action, e.host, e.port, e.path);
        self.asked(&r, &what, &r.get_ref().name)?;
        Ok(Response::new(acl()))
    }

    async fn remove_acl_entry(&self, r: Request<RemoveAclEntryRequest>) -> Answer<Acl> {
        self.asked(&r, "remove entry", &r.get_ref().name)?;
        Ok(Response::new(acl()))
    }

    async fn reset_acl(&self, r: Request<ResetAclRequest>) -> Answer<Acl> {
        self.asked(&r, "reset acl", &r.get_ref().name)?;
        Ok(Response::new(Acl {
            entries: Vec::new(),
            ..acl()
        }))
    }

    async fn replace_acl(&self, r: Request<ReplaceAclRequest>) -> Answer<Acl> {
        let asked = r.get_ref();
        let what = format!("replace {} {} in", asked.entries.len(), asked.unlisted);
        self.asked(&r, &what, &asked.name)?;
        Ok(Response::new(Acl {
            entries: asked.entries.clone(),
            unlisted: asked.unlisted.clone(),
            ..acl()
        }))
    }

    type WatchAclStream = Watched<Acl>;

    async fn watch_acl(&self, r: Request<WatchAclRequest>) -> Answer<Self::WatchAclStream> {
        self.asked(&r, "watch acl", &r.get_ref().name)?;
        Ok(Response::new(watched(
            self.0.lock().unwrap().acl_states.clone(),
        )))
    }
}

fn client() -> Client {
    Client {
        id: "c0123456789abcdef01234567".into(),
        name: "plant-7".into(),
        version: "0.1.0".into(),
        address: "192.0.2.7:40000".into(),
        connect_time: at(1_764_000_000),
        rtt_ms: 1.25,
        active_streams: 2,
        bytes_to_resource: 10,
        bytes_to_user: 9_007_199_254_740_993,
        acl_generation: 7,
        tunnels: vec![Tunnel {
            node_id: "n1".into(),
            node: "node-1".into(),
            rtt_ms: 1.25,
            ..Tunnel::default()
        }],
        gateway_id: "g0123".into(),
        ports: vec![ClientPort {
            destination: "db".into(),
            client_port: 15_432,
            state: "failed".into(),
            reason: "client-port-clash".into(),
            ..ClientPort::default()
        }],
        ..Client::default()
    }
}

#[tonic::async_trait]
impl clients_server::Clients for Services {
    async fn list_clients(&self, r: Request<ListClientsRequest>) -> Answer<ListClientsResponse> {
        self.asked(&r, "list clients", &r.get_ref().parent)?;
        Ok(Response::new(ListClientsResponse {
            clients: vec![client()],
            next_page_token: String::new(),
        }))
    }

    async fn get_client(&self, r: Request<GetClientRequest>) -> Answer<Client> {
        self.asked(&r, "get client", &r.get_ref().name)?;
        Ok(Response::new(client()))
    }

    async fn revoke_client(&self, r: Request<RevokeClientRequest>) -> Answer<Client> {
        self.asked(&r, "revoke client", &r.get_ref().name)?;
        Ok(Response::new(Client {
            revoked: true,
            ..client()
        }))
    }

    async fn restore_client(&self, r: Request<RestoreClientRequest>) -> Answer<Client> {
        self.asked(&r, "restore client", &r.get_ref().name)?;
        Ok(Response::new(client()))
    }
}

fn node() -> Node {
    Node {
        id: "n1".into(),
        name: "node-1".into(),
        group: "default".into(),
        state: "ready".into(),
        address: "node.example:9000".into(),
        tunnels: 1,
        streams: 2,
        version: "0.1.0".into(),
        revision: 42,
        destination_host: "node.example".into(),
        port_first: 15000,
        port_last: 19999,
        etag: "e3".into(),
        ..Node::default()
    }
}

#[tonic::async_trait]
impl nodes_server::Nodes for Services {
    async fn list_nodes(&self, r: Request<ListNodesRequest>) -> Answer<ListNodesResponse> {
        self.asked(&r, "list nodes", "")?;
        Ok(Response::new(ListNodesResponse {
            nodes: vec![node()],
            next_page_token: String::new(),
        }))
    }

    async fn get_node(&self, r: Request<GetNodeRequest>) -> Answer<Node> {
        self.asked(&r, "get node", &r.get_ref().name)?;
        Ok(Response::new(node()))
    }

    async fn delete_node(&self, r: Request<DeleteNodeRequest>) -> Answer<Empty> {
        let asked = r.get_ref();
        let what = format!("delete node {} force {}", asked.etag, asked.force);
        self.changed(&r, &what, &asked.name)?;
        if !asked.force {
            let reason = self.0.lock().unwrap().node_lives;
            let reason = reason.unwrap_or("NODE_CONNECTED");
            return Err(refusal(Code::FailedPrecondition, reason));
        }
        Ok(Response::new(Empty {}))
    }
}

fn admin_token(name: &str) -> AdminToken {
    AdminToken {
        id: "t0123".into(),
        name: name.into(),
        role: "editor".into(),
        gateways: vec!["g0123".into()],
        expire_time: at(1_900_000_000),
        created_by: "admin".into(),
        ..AdminToken::default()
    }
}

#[tonic::async_trait]
impl tokens_server::Tokens for Services {
    async fn create_join_token(&self, r: Request<CreateJoinTokenRequest>) -> Answer<JoinToken> {
        let seconds = r
            .get_ref()
            .ttl
            .as_ref()
            .map(|d| d.seconds)
            .unwrap_or_default();
        self.asked(&r, &format!("join token {seconds}"), "")?;
        Ok(Response::new(JoinToken {
            token: "sgj_secret".into(),
            expire_time: at(1_900_000_000),
        }))
    }

    async fn create_admin_token(&self, r: Request<CreateAdminTokenRequest>) -> Answer<AdminToken> {
        let days = r.get_ref().days;
        let asked = r.get_ref().admin_token.clone().unwrap_or_default();
        let what = format!(
            "admin token {} for {} for {days} days",
            asked.role,
            asked.gateways.join(",")
        );
        self.asked(&r, &what, &asked.name)?;
        Ok(Response::new(AdminToken {
            token: "sga_secret".into(),
            ..admin_token(&asked.name)
        }))
    }

    async fn get_admin_token(&self, r: Request<GetAdminTokenRequest>) -> Answer<AdminToken> {
        self.asked(&r, "get admin token", &r.get_ref().name)?;
        Ok(Response::new(admin_token(&r.get_ref().name)))
    }

    async fn list_admin_tokens(
        &self,
        r: Request<ListAdminTokensRequest>,
    ) -> Answer<ListAdminTokensResponse> {
        self.asked(&r, "list admin tokens", &r.get_ref().page_token)?;
        Ok(Response::new(ListAdminTokensResponse {
            admin_tokens: vec![admin_token("ci")],
            next_page_token: String::new(),
        }))
    }

    async fn delete_admin_token(&self, r: Request<DeleteAdminTokenRequest>) -> Answer<Empty> {
        self.asked(&r, "delete admin token", &r.get_ref().name)?;
        Ok(Response::new(Empty {}))
    }
}

#[tonic::async_trait]
impl system_server::System for Services {
    async fn get_status(&self, r: Request<GetStatusRequest>) -> Answer<Status_> {
        self.asked(&r, "status", "")?;
        Ok(Response::new(Status_ {
            version: "0.1.0".into(),
            control_plane_id: "cp1".into(),
            store: "embedded".into(),
            store_healthy: true,
            revision: 42,
            gateways: 1,
            destinations: 1,
            nodes: 2,
            nodes_connected: 1,
            clients: 1,
            streams: 2,
            problems: vec!["node node-2 is not connected".into()],
        }))
    }
}
