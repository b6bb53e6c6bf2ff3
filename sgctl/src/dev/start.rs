//! Brings everything up, in the order in which each part needs the one before: control plane, its
//! first objects, node, client; then waits until a user could connect.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use sg_model::{HostPort, Protocol};
use tokio::time::{Instant, timeout_at};

use super::Args;
use super::configure::{self, Wanted};
use super::demo::Demo;
use super::folder::Folder;
use super::ports::Ports;
use super::process::{Family, Program};
use super::report::{DestinationLine, Pids, Up};
use super::resource::{self, ResourceArg};
use crate::cli::Variables;
use crate::connection::Api;
use crate::failure::Failure;
use crate::secret_file;
use crate::settings::Target;

/// Limit of the whole start. It usually takes less than a second; a debug build on a busy machine
/// may need a few.
const LIMIT: Duration = Duration::from_secs(30);
const LOOPBACK: &str = "127.0.0.1";

/// Starts and configures everything; nothing of it ends by itself afterwards.
pub(super) async fn start(
    args: &Args,
    folder: &Folder,
    family: &mut Family,
) -> Result<Up, Failure> {
    let limit = Instant::now() + LIMIT;
    match timeout_at(limit, Box::pin(bring_up(args, folder, family, limit))).await {
        Ok(result) => result,
        Err(_) => Err(
            Failure::deadline(format!("not ready after {} s", LIMIT.as_secs()))
                .cause(format!("the logs are in {}", folder.join("logs").display()))
                .hint("sgctl dev --verbose --dir DIR, which keeps them"),
        ),
    }
}

async fn bring_up(
    args: &Args,
    folder: &Folder,
    family: &mut Family,
    limit: Instant,
) -> Result<Up, Failure> {
    let demo = if args.resources.is_empty() {
        Some(Demo::start().await?)
    } else {
        None
    };
    let (resources, names) = match &demo {
        Some(demo) => (vec![demo_resource(demo.address)?], vec!["demo".to_owned()]),
        None => (args.resources.clone(), resource::names(&args.resources)),
    };
    let ports = Ports::choose(args.port_base, &resources)?;

    let (control_plane_pid, ready) = family.start(control_plane(folder, &ports)).await?;
    let (grpc, http) = (address(&ready, "listen")?, address(&ready, "http_listen")?);
    let ca_file = folder.join("control-plane/ca.pem");
    let token_file = folder.join("control-plane/admin.token");
    let target = Target {
        servers: vec![grpc.clone()],
        ca: ca_file.display().to_string(),
        token_file: token_file.clone(),
        variables: Variables::default(),
    };
    let api = Api::new(&target, limit)?;

    let gateway = configure::gateway(&api, &folder.join("dev.token")).await?;
    let join_token = configure::join_token(&api).await?;
    let join_token_file = folder.join("run/join.token");
    secret_file::write(&join_token_file, &join_token)?;
    let (node_pid, ready) = family
        .start(data_plane(folder, &ports, &grpc, &join_token_file))
        .await?;
    let tunnel = address(&ready, "tunnel_listen")?;

    let wanted: Vec<Wanted> = names
        .into_iter()
        .zip(&resources)
        .zip(&ports.listen)
        .map(|((name, r), port)| Wanted {
            name,
            protocol: r.protocol,
            resource: r.resource.clone(),
            port: *port,
        })
        .collect();
    let client = client(folder, &ports, &gateway.id, &tunnel, &ca_file);
    let ((client_pid, _), destinations) = tokio::try_join!(
        family.start(client),
        configure::destinations(&api, &gateway, &wanted, ports.destinations),
    )?;
    configure::wait_until_usable(&api, &gateway, &destinations, limit).await?;

    Ok(Up {
        control_plane: grpc,
        http: format!("http://{http}"),
        ca_file,
        token_file,
        gateway: gateway.name,
        gateway_id: gateway.id,
        security_token_file: folder.join("dev.token"),
        tunnel,
        destinations: destinations.iter().map(DestinationLine::of).collect(),
        pids: Pids {
            control_plane: control_plane_pid,
            data_plane: node_pid,
            client: client_pid,
        },
        logs: folder.join("logs"),
        demo,
    })
}

fn demo_resource(address: SocketAddr) -> Result<ResourceArg, Failure> {
    let resource: HostPort = address.to_string().parse()?;
    Ok(ResourceArg {
        protocol: Protocol::Tcp,
        resource,
        listen_port: None,
    })
}

fn control_plane(folder: &Folder, ports: &Ports) -> Program {
    let data = folder.join("control-plane");
    let flags = [
        (
            "--store",
            format!("embedded:{}", data.join("store.redb").display()),
        ),
        ("--data-dir", data.display().to_string()),
        ("--listen", at(ports.grpc)),
        ("--http-listen", at(ports.http)),
        ("--admin-listen", at(ports.control_plane_admin)),
    ];
    program(folder, "sg-control-plane", Vec::new(), &flags)
}

fn data_plane(folder: &Folder, ports: &Ports, control_plane: &str, token: &Path) -> Program {
    let flags = [
        ("--control-plane", control_plane.to_owned()),
        ("--join-token-file", token.display().to_string()),
        ("--data-dir", folder.join("node").display().to_string()),
        ("--name", "node-1".to_owned()),
        ("--tunnel-listen", at(ports.tunnel)),
        ("--destination-address", LOOPBACK.to_owned()),
        ("--destination-ports", ports.destinations.to_string()),
        ("--advertise", LOOPBACK.to_owned()),
        ("--cloud-allow", "127.0.0.0/8".to_owned()),
        ("--cloud-allow", "::1/128".to_owned()),
        ("--admin-listen", at(ports.node_admin)),
    ];
    program(folder, "sg-data-plane", Vec::new(), &flags)
}

fn client(folder: &Folder, ports: &Ports, gateway: &str, tunnel: &str, ca: &Path) -> Program {
    let flags = [
        (
            "--token-file",
            folder.join("dev.token").display().to_string(),
        ),
        ("--gateway", tunnel.to_owned()),
        ("--ca", ca.display().to_string()),
        ("--data-dir", folder.join("client").display().to_string()),
        ("--admin-listen", at(ports.client_admin)),
    ];
    let first = vec![gateway.to_owned(), "--noUI".to_owned()];
    program(folder, "sg-client", first, &flags)
}

fn program(
    folder: &Folder,
    name: &'static str,
    first: Vec<String>,
    flags: &[(&str, String)],
) -> Program {
    let ready_file = folder.join("run").join(format!("{name}.json"));
    let common = [
        ("--ready-file", ready_file.display().to_string()),
        ("--drain-timeout", "500ms".to_owned()),
        ("--log-format", "text".to_owned()),
    ];
    let pairs = flags.iter().chain(&common);
    let arguments = first
        .into_iter()
        .chain(pairs.flat_map(|(flag, value)| [(*flag).to_owned(), value.clone()]));
    Program {
        name,
        arguments: arguments.collect(),
        log: folder.join("logs").join(format!("{name}.log")),
        ready_file,
    }
}

fn at(port: u16) -> String {
    format!("{LOOPBACK}:{port}")
}

/// An address out of a ready-file.
fn address(ready: &serde_json::Value, key: &str) -> Result<String, Failure> {
    ready
        .get(key)
        .and_then(|value| value.as_str())
        .map(str::to_owned)
        .ok_or_else(|| {
            Failure::new(
                tonic::Code::Internal,
                "INTERNAL",
                format!("a ready-file has no '{key}'"),
            )
        })
}
