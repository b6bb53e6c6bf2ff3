//! `sgctl client`: who is connected now.

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::clients_client::ClientsClient;

use crate::connection::Api;
use crate::failure::Failure;
use crate::gateway::hint_list;
use crate::names::{GatewayRef, MemberRef};
use crate::output::{self, Resource};
use crate::session::Session;
use crate::show;

const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the connected clients of a gateway
    List {
        /// Gateway, by name or id
        gateway: GatewayRef,
    },
    /// Show one connected client and its tunnels
    Get {
        /// Client
        #[arg(value_name = "GATEWAY/CLIENT")]
        client: MemberRef,
    },
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
    ];
    const WIDE: &'static [&'static str] = &[
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
        Some(output::table(&columns, rows))
    }
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
