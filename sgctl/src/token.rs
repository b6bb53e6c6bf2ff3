//! `sgctl token`: the tokens with which operators show who they are.

use clap::Subcommand;
use sg_proto::api;
use sg_proto::api::tokens_client::TokensClient;
use sg_runtime::secret::TokenKind;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::{GatewayRef, request_id};
use crate::output::{self, Resource};
use crate::secret_file::TokenOut;
use crate::session::Session;
use crate::show;

const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a token; the answer shows it this once
    Create(Create),
    /// Show all tokens, without their secrets
    List,
    /// Take a token back; what is open under it ends
    #[command(visible_alias = "revoke")]
    Delete {
        /// Token, by name or id
        token: String,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name: 1-63 of a-z 0-9 - , unique; stands in audit records
    name: String,
    /// viewer reads without secrets, editor changes, admin does everything
    #[arg(long, value_name = "viewer|editor|admin", value_parser = ["viewer", "editor", "admin"], hide_possible_values = true)]
    role: String,
    /// Only this gateway and what belongs to it, by name or id; may be given several times [default: all]
    #[arg(long, value_name = "GATEWAY")]
    gateway: Vec<GatewayRef>,
    /// Life of the token in days, 1-3650 [default: it never ends]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=3650))]
    days: Option<u32>,
    #[command(flatten)]
    out: TokenOut,
}

impl Resource for api::AdminToken {
    const PLURAL: &'static str = "adminTokens";
    const COLUMNS: &'static [&'static str] = &["NAME", "ID", "ROLE", "GATEWAYS", "EXPIRES"];
    const WIDE: &'static [&'static str] = &["CREATED", "CREATED BY"];

    fn reference(&self) -> String {
        self.name.clone()
    }

    fn cells(&self) -> Vec<String> {
        let gateways = match self.gateways.as_slice() {
            [] => "all".to_owned(),
            some => some.join(","),
        };
        vec![
            self.name.clone(),
            self.id.clone(),
            self.role.clone(),
            gateways,
            show::date(self.expire_time.as_ref(), "never"),
            show::date(self.create_time.as_ref(), ""),
            self.created_by.clone(),
        ]
    }

    fn details(&self) -> Option<String> {
        (!self.token.is_empty()).then(|| format!("admin token: {}\n", self.token))
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    match command {
        Command::Create(args) => {
            args.out.check(TokenKind::Admin, session.format())?;
            let mut token = create(&api, &args).await?;
            let saved = args.out.take(&mut token.token)?;
            if !saved {
                output::note(
                    "The token is shown this once. Give it to sgctl in a file: --token-file; \
                     --token-out FILE would have written that.",
                );
            }
            session.one_with_details(&token)
        }
        Command::List => session.list(&list(&api).await?),
        Command::Delete { token } => {
            let found = get(&api, &token).await?;
            let message = api::DeleteAdminTokenRequest {
                name: format!("adminTokens/{}", found.id),
                validate_only: false,
                request_id: request_id(),
            };
            api.call(message, |channel, request| async move {
                TokensClient::new(channel).delete_admin_token(request).await
            })
            .await?;
            session.deleted("token", &found)
        }
    }
}

async fn create(api: &Api, args: &Create) -> Result<api::AdminToken, Failure> {
    let gateways = args
        .gateway
        .iter()
        .map(|gateway| gateway.as_str().to_owned());
    let message = api::CreateAdminTokenRequest {
        admin_token: Some(api::AdminToken {
            name: args.name.clone(),
            role: args.role.clone(),
            gateways: gateways.collect(),
            ..api::AdminToken::default()
        }),
        days: args.days.unwrap_or_default(),
        validate_only: false,
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        TokensClient::new(channel).create_admin_token(request).await
    })
    .await
    .map_err(|failure| match failure.code() {
        tonic::Code::AlreadyExists => failure.hint("sgctl token list"),
        tonic::Code::NotFound => failure.hint("sgctl gateway list"),
        _ => failure,
    })
}

async fn get(api: &Api, token: &str) -> Result<api::AdminToken, Failure> {
    let message = api::GetAdminTokenRequest {
        name: token.to_owned(),
    };
    api.call(message, |channel, request| async move {
        TokensClient::new(channel).get_admin_token(request).await
    })
    .await
    .map_err(|failure| match failure.code() {
        tonic::Code::NotFound => failure.hint("sgctl token list"),
        _ => failure,
    })
}

async fn list(api: &Api) -> Result<Vec<api::AdminToken>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = api::ListAdminTokensRequest {
            page_size: PAGE,
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                TokensClient::new(channel).list_admin_tokens(request).await
            })
            .await?;
        all.extend(page.admin_tokens);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}
