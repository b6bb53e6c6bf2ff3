//! `sgctl destination`: how users reach one resource through a gateway.
//!
//! The calls are here; what is shown of a destination is in [`view`].

mod certs;
mod ends;
mod source;
mod view;
mod wait;

use std::time::Duration;

use clap::Subcommand;
use pbjson_types::FieldMask;
use sg_model::HostPort;
use sg_proto::api;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_proto::convert::duration_to_wire;
use sg_runtime::duration::HumanDuration;
use tonic::Code;

pub(crate) use self::wait::wait_applied;
use self::wait::waited;
use crate::connection::Api;
use crate::failure::Failure;
use crate::gateway::with_newest;
use crate::names::{GatewayRef, MemberRef, request_id};
use crate::session::Session;

const PAGE: i32 = 1000;

#[derive(Debug, Subcommand)]
#[allow(clippy::large_enum_variant, reason = "there is one, while it runs")]
pub(crate) enum Command {
    /// Create a destination and open its port
    Create(Create),
    /// Show all destinations of a gateway
    List {
        /// Gateway, by name or id
        gateway: GatewayRef,
    },
    /// Show one destination and what the nodes say of it
    Get {
        /// Destination
        #[arg(value_name = "GATEWAY/NAME")]
        destination: MemberRef,
    },
    /// Change a destination
    Update(Update),
    /// Delete a destination and close its port
    Delete(Change),
    /// Open its port again
    Enable(WaitedChange),
    /// Close its port; its configuration stays
    Disable(WaitedChange),
    /// Write the certificates that its users and its resource need
    Certs(certs::Certs),
    /// From where its users may connect
    #[command(subcommand)]
    Source(source::Command),
}

/// What both creating and updating can set.
#[derive(Debug, clap::Args)]
pub(crate) struct Fields {
    /// Port on the nodes where users connect [default: a free one]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    cloud_port: Option<u16>,
    /// Port on the client where users of a cloud destination connect
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    client_port: Option<u16>,
    /// How long to try to connect to the resource, at most 5m [default: 10s]
    #[arg(long, value_name = "DURATION")]
    connect_timeout: Option<HumanDuration>,
    /// Close streams that carry nothing for this long; 0: the default (tcp: never, udp: 60s)
    #[arg(long, value_name = "DURATION")]
    idle_timeout: Option<HumanDuration>,
    /// Streams open at a time on each node; 0 for no limit [default: 0]
    #[arg(long, value_name = "N")]
    max_connections: Option<u32>,
    /// Compress inside tunnels: none, zstd or lz4; not where users encrypt, nor for udp [default: none]
    #[arg(long, value_name = "CODEC")]
    compression: Option<String>,
    /// Ask after the other side by TCP keepalive when so long nothing came, 1s to 2h [default: 60s]
    #[arg(long, value_name = "DURATION")]
    keepalive: Option<HumanDuration>,
    /// What it is for
    #[arg(long, value_name = "TEXT")]
    description: Option<String>,
    #[command(flatten)]
    ends: ends::EndFields,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Name of the new destination
    #[arg(value_name = "GATEWAY/NAME")]
    destination: MemberRef,
    /// What users speak: tcp, tls, tls-mutual, http, https, https-mutual or udp
    #[arg(long, value_name = "PROTOCOL", default_value = "tcp")]
    protocol: String,
    /// Where the resource is
    #[arg(long, value_name = "HOST:PORT")]
    resource: HostPort,
    /// on-premises: users are at the nodes; cloud: users are at the client
    #[arg(long, value_name = "KIND", default_value = "on-premises")]
    kind: String,
    #[command(flatten)]
    fields: Fields,
    /// Created disabled: no port opens
    #[arg(long)]
    disabled: bool,
    /// Return when every live node serves it, or with exit code 6 after --timeout
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Change {
    /// Destination
    #[arg(value_name = "GATEWAY/NAME")]
    destination: MemberRef,
    /// Only if it is still this version
    #[arg(long, value_name = "ETAG")]
    etag: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(crate) struct WaitedChange {
    #[command(flatten)]
    change: Change,
    /// Return when every live node has applied it, or with exit code 6 after --timeout
    #[arg(long)]
    wait: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct Update {
    #[command(flatten)]
    change: WaitedChange,
    /// New name
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// What users speak
    #[arg(long, value_name = "PROTOCOL")]
    protocol: Option<String>,
    /// Where the resource is
    #[arg(long, value_name = "HOST:PORT")]
    resource: Option<HostPort>,
    #[command(flatten)]
    fields: Fields,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let api = session.api()?;
    let until = session.deadline();
    match command {
        Command::Create(args) => {
            let wait = args.wait;
            let (named, rules) = (args.destination.clone(), args.fields.ends.admits_sources());
            let created = create(&api, args.try_into()?).await?;
            if rules {
                source::warn_unrestricted(&named, &created);
            }
            session.one(&waited(&api, created, wait, until).await?)
        }
        Command::List { gateway } => session.list(&list(&api, &gateway).await?),
        Command::Get { destination } => session.one_with_details(&get(&api, &destination).await?),
        Command::Update(args) => {
            let updated = update(&api, &args).await?;
            if args.fields.ends.admits_sources() {
                source::warn_unrestricted(&args.change.change.destination, &updated);
            }
            session.one(&waited(&api, updated, args.change.wait, until).await?)
        }
        Command::Delete(change) => {
            let destination = get(&api, &change.destination).await?;
            delete(&api, &change.destination, change.etag).await?;
            session.deleted("destination", &destination)
        }
        Command::Certs(args) => certs::run(&api, session, &args).await,
        Command::Source(command) => source::run(&api, session, command).await,
        Command::Enable(args) => {
            let changed = set_enabled(&api, args.change, true).await?;
            session.one(&waited(&api, changed, args.wait, until).await?)
        }
        Command::Disable(args) => {
            let changed = set_enabled(&api, args.change, false).await?;
            session.one(&waited(&api, changed, args.wait, until).await?)
        }
    }
}

pub(crate) async fn create(
    api: &Api,
    request: api::CreateDestinationRequest,
) -> Result<api::Destination, Failure> {
    let gateway = request.parent.trim_start_matches("gateways/").to_owned();
    api.call(request, |channel, request| async move {
        DestinationsClient::new(channel)
            .create_destination(request)
            .await
    })
    .await
    .map_err(|failure| match failure.code() {
        Code::NotFound => failure.hint("sgctl gateway list"),
        Code::AlreadyExists => failure.hint(format!("sgctl destination list {gateway}")),
        _ => failure,
    })
}

pub(crate) async fn list(
    api: &Api,
    gateway: &GatewayRef,
) -> Result<Vec<api::Destination>, Failure> {
    let mut all = Vec::new();
    let mut page_token = String::new();
    loop {
        let message = api::ListDestinationsRequest {
            parent: gateway.path(),
            page_size: PAGE,
            page_token,
        };
        let page = api
            .call(message, |channel, request| async move {
                DestinationsClient::new(channel)
                    .list_destinations(request)
                    .await
            })
            .await
            .map_err(crate::gateway::hint_list)?;
        all.extend(page.destinations);
        if page.next_page_token.is_empty() {
            return Ok(all);
        }
        page_token = page.next_page_token;
    }
}

/// Deletes under this etag, or under the newest one.
pub(crate) async fn delete(
    api: &Api,
    destination: &MemberRef,
    etag: Option<String>,
) -> Result<(), Failure> {
    let remove = async |etag: String| {
        let message = api::DeleteDestinationRequest {
            name: destination.path("destinations"),
            etag,
            force: false,
            validate_only: false,
            request_id: request_id(),
        };
        api.call(message, |channel, request| async move {
            DestinationsClient::new(channel)
                .delete_destination(request)
                .await
        })
        .await
        .map(|_| ())
    };
    versioned(api, destination, etag, remove).await
}

async fn get(api: &Api, destination: &MemberRef) -> Result<api::Destination, Failure> {
    let message = api::GetDestinationRequest {
        name: destination.path("destinations"),
    };
    api.call(message, |channel, request| async move {
        DestinationsClient::new(channel)
            .get_destination(request)
            .await
    })
    .await
    .map_err(|failure| hint_list(failure, destination))
}

async fn update(api: &Api, args: &Update) -> Result<api::Destination, Failure> {
    let mut changed = api::Destination::default();
    let mut paths = args.fields.apply(&mut changed)?;
    if let Some(name) = &args.name {
        name.clone_into(&mut changed.name);
        paths.push("name");
    }
    if let Some(protocol) = &args.protocol {
        protocol.clone_into(&mut changed.protocol);
        paths.push("protocol");
    }
    if let Some(resource) = &args.resource {
        changed.resource_host = resource.host().to_string();
        changed.resource_port = resource.port().into();
        paths.extend(["resource_host", "resource_port"]);
    }
    paths.extend(args.fields.ends.taken_out(args.protocol.as_deref(), &paths));
    if paths.is_empty() {
        return Err(
            Failure::usage("nothing to change was given").hint("sgctl destination update --help")
        );
    }
    let paths: Vec<String> = paths.into_iter().map(str::to_owned).collect();
    let Change { destination, etag } = &args.change.change;
    versioned(api, destination, etag.clone(), async |etag| {
        let message = api::UpdateDestinationRequest {
            name: destination.path("destinations"),
            destination: Some(api::Destination {
                etag,
                ..changed.clone()
            }),
            update_mask: Some(FieldMask {
                paths: paths.clone(),
            }),
            validate_only: false,
            request_id: request_id(),
            force: false,
        };
        api.call(message, |channel, request| async move {
            DestinationsClient::new(channel)
                .update_destination(request)
                .await
        })
        .await
    })
    .await
}

async fn set_enabled(
    api: &Api,
    change: Change,
    enabled: bool,
) -> Result<api::Destination, Failure> {
    let Change { destination, etag } = change;
    versioned(api, &destination, etag, async |etag| {
        let (name, request_id) = (destination.path("destinations"), request_id());
        if enabled {
            let message = api::EnableDestinationRequest {
                name,
                etag,
                request_id,
            };
            api.call(message, |channel, request| async move {
                DestinationsClient::new(channel)
                    .enable_destination(request)
                    .await
            })
            .await
        } else {
            let message = api::DisableDestinationRequest {
                name,
                etag,
                request_id,
            };
            api.call(message, |channel, request| async move {
                DestinationsClient::new(channel)
                    .disable_destination(request)
                    .await
            })
            .await
        }
    })
    .await
}

/// Makes a change under the given etag, or under the newest one.
async fn versioned<T>(
    api: &Api,
    destination: &MemberRef,
    etag: Option<String>,
    change: impl AsyncFn(String) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let result = match etag {
        Some(etag) => change(etag).await,
        None => with_newest(async || get(api, destination).await.map(|d| d.etag), change).await,
    };
    result.map_err(|failure| hint_list(failure, destination))
}

fn hint_list(failure: Failure, destination: &MemberRef) -> Failure {
    match failure.code() {
        Code::NotFound if failure.is_missing("source") => {
            failure.hint(format!("sgctl destination source list {destination}"))
        }
        Code::NotFound => failure.hint(format!(
            "sgctl destination list {}",
            destination.gateway.as_str()
        )),
        _ => failure,
    }
}

impl Fields {
    /// Sets what was given; answers the names of these fields.
    fn apply(&self, destination: &mut api::Destination) -> Result<Vec<&'static str>, Failure> {
        let mut paths = self.ends.apply(destination)?;
        if let Some(time) = self.keepalive {
            destination.keepalive = Some(duration_to_wire(time.get()));
            paths.push("keepalive");
        }
        if let Some(port) = self.cloud_port {
            destination.cloud_port = port.into();
            paths.push("cloud_port");
        }
        if let Some(port) = self.client_port {
            destination.client_port = port.into();
            paths.push("client_port");
        }
        if let Some(timeout) = self.connect_timeout {
            destination.connect_timeout = Some(duration_to_wire(timeout.get()));
            paths.push("connect_timeout");
        }
        if let Some(timeout) = self.idle_timeout {
            let timeout = Some(timeout.get()).filter(|t| *t > Duration::ZERO);
            destination.idle_timeout = timeout.map(duration_to_wire);
            paths.push("idle_timeout");
        }
        if let Some(limit) = self.max_connections {
            destination.max_connections = limit;
            paths.push("max_connections");
        }
        if let Some(codec) = &self.compression {
            codec.clone_into(&mut destination.compression);
            paths.push("compression");
        }
        if let Some(text) = &self.description {
            text.clone_into(&mut destination.description);
            paths.push("description");
        }
        Ok(paths)
    }
}

impl TryFrom<Create> for api::CreateDestinationRequest {
    type Error = Failure;

    fn try_from(args: Create) -> Result<Self, Failure> {
        let mut destination = api::Destination {
            name: args.destination.name,
            kind: args.kind,
            protocol: args.protocol,
            resource_host: args.resource.host().to_string(),
            resource_port: args.resource.port().into(),
            enabled: !args.disabled,
            ..api::Destination::default()
        };
        args.fields.apply(&mut destination)?;
        Ok(Self {
            parent: args.destination.gateway.path(),
            destination: Some(destination),
            disabled: args.disabled,
            validate_only: false,
            request_id: request_id(),
        })
    }
}
