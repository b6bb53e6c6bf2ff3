//! `sgctl client`: who is connected now, and who is let in no more.

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::clients_client::ClientsClient;

use crate::connection::Api;
use crate::failure::Failure;
use crate::gateway::hint_list;
use crate::names::{GatewayRef, MemberRef, request_id};
use crate::output::{self, Resource};
use crate::session::Session;
use crate::show;

const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the connected and the revoked clients of a gateway
    List {
        /// Gateway, by name or id
        gateway: GatewayRef,
    },
    /// Show one connected client and its tunnels
    Get {
        /// Client
        #[arg(value_name = "GATEWAY/CLIENT", value_parser = client_ref)]
        client: MemberRef,
    },
    /// Cut a client's tunnels and let it in no more, whatever it shows
    Revoke(Named),
    /// Let a revoked client in again
    Restore(Named),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Named {
    /// Client id, or GATEWAY/CLIENT
    client: String,
    /// Gateway, by name or id
    #[arg(long, value_name = "GATEWAY")]
    gateway: Option<GatewayRef>,
}

fn client_ref(text: &str) -> Result<MemberRef, String> {
    text.parse().map_err(|_| {
        "write GATEWAY/CLIENT; sgctl client list GATEWAY -o name shows them".to_owned()
    })
}

impl Named {
    /// As the API has it.
    fn path(&self) -> Result<String, Failure> {
        match &self.gateway {
            Some(gateway) => Ok(format!("{}/clients/{}", gateway.path(), self.client)),
            None => {
                let client: MemberRef = self.client.parse().map_err(|_| {
                    Failure::usage("which gateway's client? give GATEWAY/CLIENT, or --gateway")
                })?;
                Ok(client.path("clients"))
            }
        }
    }
}

impl Resource for api::Client {
    const PLURAL: &'static str = "clients";
    const COLUMNS: &'static [&'static str] = &[
        "ID",
        "NAME",
        "ADDRESS",
        "CONNECTED SINCE",
        "TUNNELS",
        "STREAMS",
        "RTT MS",
        "STATE",
        "PORTS",
    ];
    const WIDE: &'static [&'static str] = &[
        "CREDENTIAL",
        "CERTIFICATE ENDS",
        "VERSION",
        "BYTES TO RESOURCE",
        "BYTES TO USER",
        "ACL GENERATION",
    ];

    fn reference(&self) -> String {
        format!("{}/{}", self.gateway_id, self.id)
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.id.clone(),
            self.name.clone(),
            self.address.clone(),
            show::date(self.connect_time.as_ref(), ""),
            self.tunnels.len().to_string(),
            self.active_streams.to_string(),
            format!("{:.1}", self.rtt_ms),
            match (self.revoked, self.tunnels.is_empty()) {
                (true, _) => "revoked".to_owned(),
                (false, true) => "disconnected".to_owned(),
                (false, false) => "connected".to_owned(),
            },
            ports(&self.ports),
            self.credential.clone(),
            show::date(self.certificate_expire_time.as_ref(), ""),
            self.version.clone(),
            self.bytes_to_resource.to_string(),
            self.bytes_to_user.to_string(),
            self.acl_generation.to_string(),
        ]
    }

    fn details(&self) -> Option<String> {
        let columns = [
            "NODE",
            "ADDRESS",
            "CONNECTED SINCE",
            "STREAMS",
            "RTT MS",
            "BYTES TO RESOURCE",
            "BYTES TO USER",
        ];
        let rows = self.tunnels.iter().map(|t| {
            vec![
                t.node.clone(),
                t.address.clone(),
                show::date(t.connect_time.as_ref(), ""),
                t.active_streams.to_string(),
                format!("{:.1}", t.rtt_ms),
                t.bytes_to_resource.to_string(),
                t.bytes_to_user.to_string(),
            ]
        });
        let tunnels = output::table(&columns, rows);
        if self.ports.is_empty() {
            return Some(tunnels);
        }
        let columns = ["DESTINATION", "PORT", "STATE", "REASON", "MESSAGE"];
        let rows = self.ports.iter().map(|p| {
            vec![
                p.destination.clone(),
                p.client_port.to_string(),
                p.state.clone(),
                p.reason.clone(),
                p.message.clone(),
            ]
        });
        Some(format!("{tunnels}\n{}", output::table(&columns, rows)))
    }
}

/// How many of a client's ports for cloud destinations are open, and each that is not with its reason.
fn ports(ports: &[api::ClientPort]) -> String {
    let open = ports.iter().filter(|p| p.state == "listening").count();
    if ports.is_empty() {
        return "-".to_owned();
    }
    let mut shown = format!("{open}/{}", ports.len());
    for port in ports.iter().filter(|p| p.state == "failed") {
        shown.push_str(&format!(
            " {} ({}) {}",
            port.destination, port.client_port, port.reason
        ));
    }
    shown
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    match command {
        Command::List { gateway } => session.list(&list(&api, &gateway).await?),
        Command::Get { client } => {
            let message = api::GetClientRequest {
                name: client.path("clients"),
            };
            let found = api
                .call(message, |channel, request| async move {
                    ClientsClient::new(channel).get_client(request).await
                })
                .await
                .map_err(|failure| match failure.code() {
                    tonic::Code::NotFound => {
                        failure.hint(format!("sgctl client list {}", client.gateway.as_str()))
                    }
                    _ => failure,
                })?;
            session.one_with_details(&found)
        }
        Command::Revoke(named) => {
            let message = api::RevokeClientRequest {
                name: named.path()?,
                request_id: request_id(),
            };
            let client = api
                .call(message, |channel, request| async move {
                    ClientsClient::new(channel).revoke_client(request).await
                })
                .await
                .map_err(hint_list)?;
            session.one(&client)
        }
        Command::Restore(named) => {
            let message = api::RestoreClientRequest {
                name: named.path()?,
                request_id: request_id(),
            };
            let client = api
                .call(message, |channel, request| async move {
                    ClientsClient::new(channel).restore_client(request).await
                })
                .await?;
            session.one(&client)
        }
    }
}

pub(crate) async fn list(api: &Api, gateway: &GatewayRef) -> Result<Vec<api::Client>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = api::ListClientsRequest {
            parent: gateway.path(),
            page_size: PAGE,
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                ClientsClient::new(channel).list_clients(request).await
            })
            .await
            .map_err(hint_list)?;
        all.extend(page.clients);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}
