//! `sgctl node`: data-plane nodes, how they go, and the tokens with which new ones enroll.

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::nodes_client::NodesClient;
use sg_proto::api::tokens_client::TokensClient;
use sg_proto::convert::duration_to_wire;
use sg_runtime::duration::HumanDuration;
use sg_runtime::secret::TokenKind;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::request_id;
use crate::output::{self, Resource};
use crate::secret_file::TokenOut;
use crate::session::Session;
use crate::show;

const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show all nodes
    List,
    /// Show one node
    Get {
        /// Node, by name or id
        node: String,
    },
    /// Forget a node that will not come back: its certificate is refused from then on
    Delete(Delete),
    /// Join tokens, with which a new node enrolls
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    /// Node, by name or id
    node: String,
    /// Only if it is still this version
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
    /// Delete it although it is connected; it serves what it has until it is stopped
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Create a join token; the answer shows it this once
    Create(CreateToken),
}

#[derive(Debug, clap::Args)]
pub(crate) struct CreateToken {
    /// Life of the token, up to 720h [default: 1h]
    #[arg(long, value_name = "DURATION")]
    ttl: Option<HumanDuration>,
    #[command(flatten)]
    out: TokenOut,
}

impl Resource for api::Node {
    const PLURAL: &'static str = "nodes";
    const COLUMNS: &'static [&'static str] =
        &["NAME", "ID", "STATE", "ADDRESS", "TUNNELS", "STREAMS"];
    const WIDE: &'static [&'static str] = &[
        "GROUP",
        "VERSION",
        "REVISION",
        "DESTINATIONS AT",
        "CONNECTED SINCE",
    ];

    fn reference(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.id.clone(),
            self.state.clone(),
            self.address.clone(),
            self.tunnels.to_string(),
            self.streams.to_string(),
            self.group.clone(),
            self.version.clone(),
            self.revision.to_string(),
            format!(
                "{}:{}-{}",
                self.destination_host, self.port_first, self.port_last
            ),
            show::date(self.connect_time.as_ref(), ""),
        ]
    }
}

impl Resource for api::JoinToken {
    const PLURAL: &'static str = "joinTokens";
    const COLUMNS: &'static [&'static str] = &["JOIN TOKEN EXPIRES"];

    /// The token itself: it has no other name, and this is what scripts want of it.
    fn reference(&self) -> String {
        self.token.clone()
    }

    fn cells(&self) -> Vec<String> {
        vec![show::date(self.expire_time.as_ref(), "never")]
    }

    fn details(&self) -> Option<String> {
        (!self.token.is_empty()).then(|| format!("join token: {}\n", self.token))
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    match command {
        Command::List => session.list(&list(&api).await?),
        Command::Get { node } => session.one(&get(&api, &node).await?),
        Command::Delete(args) => {
            let node = delete(&api, &args).await?;
            session.deleted("node", &node)?;
            if node.state != "disconnected" {
                output::note(
                    "It was connected, and serves what it has until sg-data-plane is stopped there.",
                );
            }
            Ok(())
        }
        Command::Token(TokenCommand::Create(args)) => {
            args.out.check(TokenKind::Join, session.format())?;
            let mut token = create_token(&api, args.ttl).await?;
            let saved = args.out.take(&mut token.token)?;
            if !saved {
                output::note(
                    "The join token is shown this once. Give it to sg-data-plane in a file: --join-token-file; \
                     --token-out FILE would have written that.",
                );
            }
            session.one_with_details(&token)
        }
    }
}

fn path(node: &str) -> String {
    format!("nodes/{}", node.strip_prefix("nodes/").unwrap_or(node))
}

async fn get(api: &Api, node: &str) -> Result<api::Node, Failure> {
    let message = api::GetNodeRequest { name: path(node) };
    api.call(message, |channel, request| async move {
        NodesClient::new(channel).get_node(request).await
    })
    .await
    .map_err(hint_list)
}

fn hint_list(failure: Failure) -> Failure {
    match failure.code() {
        tonic::Code::NotFound => failure.hint("sgctl node list"),
        _ => failure,
    }
}

/// Answers the node as it was.
async fn delete(api: &Api, args: &Delete) -> Result<api::Node, Failure> {
    let node = get(api, &args.node).await?;
    let delete = async |etag| {
        let message = api::DeleteNodeRequest {
            name: path(&node.id),
            etag,
            force: args.force,
            validate_only: false,
            request_id: request_id(),
        };
        api.call(message, |channel, request| async move {
            NodesClient::new(channel).delete_node(request).await
        })
        .await
    };
    let deleted = match &args.etag {
        Some(etag) => delete(etag.clone()).await,
        None => {
            let newest = async || get(api, &node.id).await.map(|node| node.etag);
            crate::gateway::with_newest(newest, delete).await
        }
    };
    deleted.map_err(|failure| match failure.reason() {
        "NODE_CONNECTED" => failure.hint(
            "stop sg-data-plane there, then the same again; --force deletes it now, and it serves what it has until it is stopped",
        ),
        _ => hint_list(failure),
    })?;
    Ok(node)
}

pub(crate) async fn create_token(
    api: &Api,
    ttl: Option<HumanDuration>,
) -> Result<api::JoinToken, Failure> {
    let message = api::CreateJoinTokenRequest {
        ttl: ttl.map(|ttl| duration_to_wire(ttl.get())),
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        TokensClient::new(channel).create_join_token(request).await
    })
    .await
}

async fn list(api: &Api) -> Result<Vec<api::Node>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = api::ListNodesRequest {
            page_size: PAGE,
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                NodesClient::new(channel).list_nodes(request).await
            })
            .await?;
        all.extend(page.nodes);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}
