//! `sgctl gateway`: one gateway for each on-premises network.

mod row;

use clap::Subcommand;
use pbjson_types::FieldMask;
use sg_proto::api;
use sg_proto::api::gateways_client::GatewaysClient;
use sg_proto::convert::duration_to_wire;
use sg_runtime::duration::HumanDuration;
use sg_runtime::secret::TokenKind;

use crate::connection::Api;
use crate::failure::Failure;
use crate::names::{GatewayRef, request_id};
use crate::output;
use crate::secret_file::TokenOut;
use crate::session::Session;

/// Largest page the server gives.
const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a gateway; the answer shows its security token this once
    Create(Create),
    /// Show all gateways
    List,
    /// Show one gateway
    Get(One),
    /// Change a gateway
    Update(Update),
    /// Delete a gateway
    Delete(Delete),
    /// Let clients and users in again
    Enable(Change),
    /// Close its tunnels and ports; its configuration stays
    Disable(Change),
    /// The security token, with which clients authenticate
    #[command(subcommand)]
    Token(TokenCommand),
}

#[derive(Debug, Subcommand)]
pub(crate) enum TokenCommand {
    /// Replace the security token, which ends the certificates issued under it; the answer shows the new one this once
    Rotate(Rotate),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name: 1-63 of a-z 0-9 - , unique
    name: String,
    /// Group of nodes that serves it [default: default]
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Life of the security token in days, 1-365 [default: 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=365))]
    token_days: Option<u32>,
    /// The security token never ends
    #[arg(long, conflicts_with = "token_days")]
    no_token_expiry: bool,
    /// No security token: clients need none
    #[arg(long, conflicts_with_all = ["token_days", "no_token_expiry", "token_out"])]
    no_token: bool,
    /// How streams are spread over tunnels: round-robin or least-loaded [default: round-robin]
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// How long a tunnel that lost its connection, and its streams, wait for the client to come back, at
    /// most 10m; 0: not at all [default: 30s]
    #[arg(long, value_name = "DURATION")]
    resume_time: Option<HumanDuration>,
    /// Whether tunnels outlive their security token: keep (for a day at most) or cut [default: keep]
    #[arg(long, value_name = "keep|cut")]
    token_expiry: Option<String>,
    /// Whether clients may exchange the token for a certificate and come back with that: on or off [default: on]
    #[arg(long, value_name = "on|off")]
    client_certificates: Option<String>,
    /// Who may change the access control list beside operators: clients (whoever sits at one) or operators (nobody
    /// else) [default: clients]
    #[arg(long, value_name = "clients|operators")]
    acl_edits: Option<String>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Created disabled
    #[arg(long)]
    disabled: bool,
    #[command(flatten)]
    out: TokenOut,
}

#[derive(Debug, clap::Args)]
pub(crate) struct One {
    /// Gateway, by name or id
    gateway: GatewayRef,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Change {
    /// Gateway, by name or id
    gateway: GatewayRef,
    /// Only if it is still this version
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Delete {
    #[command(flatten)]
    change: Change,
    /// Delete its destinations too
    #[arg(long)]
    cascade: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    #[command(flatten)]
    change: Change,
    /// New name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// How streams are spread over tunnels: round-robin or least-loaded
    #[arg(long, value_name = "POLICY")]
    policy: Option<String>,
    /// How long a tunnel that lost its connection, and its streams, wait for the client to come back, at
    /// most 10m; 0: not at all; holds for tunnels that connect from then on
    #[arg(long, value_name = "DURATION")]
    resume_time: Option<HumanDuration>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    /// Group of nodes that serves it
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Whether tunnels outlive their security token: keep (for a day at most) or cut
    #[arg(long, value_name = "keep|cut")]
    token_expiry: Option<String>,
    /// Whether clients may exchange the token for a certificate and come back with that: on or off
    #[arg(long, value_name = "on|off")]
    client_certificates: Option<String>,
    /// Who may change the access control list beside operators: clients (whoever sits at one) or operators (nobody else)
    #[arg(long, value_name = "clients|operators")]
    acl_edits: Option<String>,
    /// Whether clients need the security token
    #[arg(long, value_name = "true|false")]
    token_required: Option<bool>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Rotate {
    /// Gateway, by name or id
    gateway: GatewayRef,
    /// Life of the new token in days, 1-365 [default: 90]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=365))]
    days: Option<u32>,
    /// The new token never ends
    #[arg(long, conflicts_with = "days")]
    no_expiry: bool,
    #[command(flatten)]
    out: TokenOut,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    match command {
        Command::Create(args) => {
            // Without a token there is nothing to lose.
            if !args.no_token {
                args.out.check(TokenKind::Security, session.format())?;
            }
            let out = args.out.clone();
            let gateway = create(&api, args.into()).await?;
            show_token(session, gateway, &out)
        }
        Command::List => session.list(&list(&api).await?),
        Command::Get(One { gateway }) => session.one(&get(&api, &gateway).await?),
        Command::Update(args) => session.one(&update(&api, &args).await?),
        Command::Delete(args) => session.deleted("gateway", &delete(&api, &args).await?),
        Command::Enable(change) => session.one(&set_enabled(&api, &change, true).await?),
        Command::Disable(change) => session.one(&set_enabled(&api, &change, false).await?),
        Command::Token(TokenCommand::Rotate(args)) => {
            args.out.check(TokenKind::Security, session.format())?;
            let days = args.days.unwrap_or_default();
            let gateway = rotate(&api, &args.gateway, days, args.no_expiry).await?;
            show_token(session, gateway, &args.out)
        }
    }
}

pub(crate) async fn create(
    api: &Api,
    request: api::CreateGatewayRequest,
) -> Result<api::Gateway, Failure> {
    let name = request
        .gateway
        .as_ref()
        .map(|g| g.name.clone())
        .unwrap_or_default();
    api.call(request, |channel, request| async move {
        GatewaysClient::new(channel).create_gateway(request).await
    })
    .await
    .map_err(|failure| match failure.code() {
        tonic::Code::AlreadyExists => failure.hint(format!("sgctl gateway get {name}")),
        _ => failure,
    })
}

pub(crate) async fn get(api: &Api, gateway: &GatewayRef) -> Result<api::Gateway, Failure> {
    let message = api::GetGatewayRequest {
        name: gateway.path(),
    };
    api.call(message, |channel, request| async move {
        GatewaysClient::new(channel).get_gateway(request).await
    })
    .await
    .map_err(hint_list)
}

/// Replaces the security token; 0 days are the server's default.
pub(crate) async fn rotate(
    api: &Api,
    gateway: &GatewayRef,
    token_days: u32,
    no_token_expiry: bool,
) -> Result<api::Gateway, Failure> {
    let message = api::RotateTokenRequest {
        name: gateway.path(),
        token_days,
        no_token_expiry,
        request_id: request_id(),
    };
    api.call(message, |channel, request| async move {
        GatewaysClient::new(channel).rotate_token(request).await
    })
    .await
    .map_err(hint_list)
}

/// A failure about an unknown gateway says how to see the known ones.
pub(crate) fn hint_list(failure: Failure) -> Failure {
    match failure.code() {
        tonic::Code::NotFound => failure.hint("sgctl gateway list"),
        _ => failure,
    }
}

async fn list(api: &Api) -> Result<Vec<api::Gateway>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = api::ListGatewaysRequest {
            page_size: PAGE,
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                GatewaysClient::new(channel).list_gateways(request).await
            })
            .await?;
        all.extend(page.gateways);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

async fn update(api: &Api, args: &Update) -> Result<api::Gateway, Failure> {
    let mut gateway = api::Gateway::default();
    let mut paths = Vec::new();
    let mut text = |path: &str, field: &mut String, value: &Option<String>| {
        if let Some(value) = value {
            value.clone_into(field);
            paths.push(path.to_owned());
        }
    };
    text("name", &mut gateway.name, &args.name);
    text("policy", &mut gateway.policy, &args.policy);
    text("description", &mut gateway.description, &args.description);
    text("group", &mut gateway.group, &args.group);
    text(
        "token_expiry",
        &mut gateway.token_expiry,
        &args.token_expiry,
    );
    text(
        "client_certificates",
        &mut gateway.client_certificates,
        &args.client_certificates,
    );
    text("acl_edits", &mut gateway.acl_edits, &args.acl_edits);
    if let Some(time) = args.resume_time {
        gateway.resume_time = Some(duration_to_wire(time.get()));
        paths.push("resume_time".to_owned());
    }
    if let Some(required) = args.token_required {
        gateway.token_required = required;
        paths.push("token_required".to_owned());
    }
    if paths.is_empty() {
        return Err(
            Failure::usage("nothing to change was given").hint("sgctl gateway update --help")
        );
    }
    args.change
        .make(api, async |name, etag| {
            let message = api::UpdateGatewayRequest {
                gateway: Some(api::Gateway {
                    etag,
                    ..gateway.clone()
                }),
                name,
                update_mask: Some(FieldMask {
                    paths: paths.clone(),
                }),
                validate_only: false,
                request_id: request_id(),
                force: false,
            };
            api.call(message, |channel, request| async move {
                GatewaysClient::new(channel).update_gateway(request).await
            })
            .await
        })
        .await
}

async fn delete(api: &Api, args: &Delete) -> Result<api::Gateway, Failure> {
    let gateway = get(api, &args.change.gateway).await?;
    args.change
        .make(api, async |name, etag| {
            let message = api::DeleteGatewayRequest {
                name,
                etag,
                force: false,
                cascade: args.cascade,
                validate_only: false,
                request_id: request_id(),
            };
            api.call(message, |channel, request| async move {
                GatewaysClient::new(channel).delete_gateway(request).await
            })
            .await
        })
        .await
        .map_err(|failure| match failure.code() {
            tonic::Code::FailedPrecondition if !args.cascade => {
                failure.hint("--cascade deletes its destinations too")
            }
            _ => failure,
        })?;
    Ok(gateway)
}

/// Enables or disables a gateway.
pub(crate) async fn set_enabled(
    api: &Api,
    change: &Change,
    enabled: bool,
) -> Result<api::Gateway, Failure> {
    change
        .make(api, async |name, etag| {
            let request_id = request_id();
            if enabled {
                let message = api::EnableGatewayRequest {
                    name,
                    etag,
                    request_id,
                };
                api.call(message, |channel, request| async move {
                    GatewaysClient::new(channel).enable_gateway(request).await
                })
                .await
            } else {
                let message = api::DisableGatewayRequest {
                    name,
                    etag,
                    request_id,
                };
                api.call(message, |channel, request| async move {
                    GatewaysClient::new(channel).disable_gateway(request).await
                })
                .await
            }
        })
        .await
}

impl Change {
    /// A change of this gateway, whatever its version is by then.
    pub(crate) fn of_newest(gateway: GatewayRef) -> Self {
        let etag = None;
        Self { gateway, etag }
    }

    /// Makes a change under the given etag, or under the newest one: then a change that somebody
    /// else made in between is no conflict, for only the named fields are taken over.
    async fn make<T>(
        &self,
        api: &Api,
        change: impl AsyncFn(String, String) -> Result<T, Failure>,
    ) -> Result<T, Failure> {
        let name = self.gateway.path();
        match &self.etag {
            Some(etag) => change(name, etag.clone()).await.map_err(hint_list),
            None => {
                with_newest(
                    async || get(api, &self.gateway).await.map(|gateway| gateway.etag),
                    async |etag| change(name.clone(), etag).await,
                )
                .await
            }
        }
    }
}

/// Get, then change; again if somebody else was faster.
pub(crate) async fn with_newest<T>(
    etag: impl AsyncFn() -> Result<String, Failure>,
    change: impl AsyncFn(String) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut attempts_left = 5;
    loop {
        match change(etag().await?).await {
            Err(failure) if failure.code() == tonic::Code::Aborted && attempts_left > 0 => {
                attempts_left -= 1;
            }
            result => return result,
        }
    }
}

/// Shows the gateway with the token that is seen this once.
fn show_token(session: &Session, mut gateway: api::Gateway, out: &TokenOut) -> Result<(), Failure> {
    let saved = out.take(&mut gateway.security_token)?;
    if !saved && !gateway.security_token.is_empty() {
        output::note(
            "The security token is shown this once. Save it in a file that only the client can read and give \
             that to sg-client as --token-file; --token-out FILE would have done so.",
        );
    }
    session.one_with_details(&gateway)
}

impl From<Create> for api::CreateGatewayRequest {
    fn from(args: Create) -> Self {
        Self {
            gateway: Some(api::Gateway {
                name: args.name,
                group: args.group.unwrap_or_default(),
                policy: args.policy.unwrap_or_default(),
                description: args.description.unwrap_or_default(),
                enabled: !args.disabled,
                resume_time: args.resume_time.map(|time| duration_to_wire(time.get())),
                token_expiry: args.token_expiry.unwrap_or_default(),
                client_certificates: args.client_certificates.unwrap_or_default(),
                acl_edits: args.acl_edits.unwrap_or_default(),
                ..api::Gateway::default()
            }),
            token_days: args.token_days.unwrap_or_default(),
            no_token_expiry: args.no_token_expiry,
            no_token: args.no_token,
            validate_only: false,
            request_id: request_id(),
            disabled: args.disabled,
        }
    }
}
