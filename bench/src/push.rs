//! From a change to its effect: a destination is made through the API, and its port is tried until
//! it accepts. The time is taken twice: from the call, which is what an operator waits, and from
//! its answer, when the change is surely committed; the commit lies between the two. With `--stored`, others are made
//! before: cloud destinations of gateways without a client, which the node has to know as well. At the end node and
//! control plane are killed and started.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_proto::api::{CreateDestinationRequest, DeleteDestinationRequest, Destination};
use sg_runtime::identity::PeerKind;
use sg_runtime::tls::{self, Trust};
use sg_tests::{Site, within};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};

use crate::Plan;
use crate::installation::Installation;
use crate::load::GRACE;
use crate::report::{Report, Row, median, quantile};

/// Destinations made for each --repeat.
const ROUNDS: usize = 50;

/// Other destinations of one gateway: as many as it may have.
const OF_A_GATEWAY: usize = 2_000;
/// Of these, made at a time.
const WRITERS: usize = 32;

/// Between two tries of the port: much less than what is measured.
const TRY_AGAIN: Duration = Duration::from_micros(300);

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let mut installation = Installation::start(plan).await?;
    let (_, port) = installation.site.ports().destinations();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut api = Api::connect(&installation).await?;
    store_others(&api, &mut installation.site, plan.stored).await?;
    let gateway = installation.gateway.name.clone();
    let (mut from_call, mut from_answer) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * plan.repeat {
        let name = format!("push-{round}");
        let start = Instant::now();
        let create = Box::pin(api.create(&gateway, on_premises(&name, port)));
        let (answered, opened) = within(GRACE, "the port opens", async {
            tokio::join!(create, opens(address))
        })
        .await?;
        let answered = answered?.duration_since(start);
        let opened = opened.duration_since(start);
        from_call.push(opened.as_secs_f64() * 1e3);
        // The port may open before the answer has come back.
        from_answer.push(opened.saturating_sub(answered).as_secs_f64() * 1e3);
        api.delete(&gateway, &name).await?;
        within(GRACE, "the port closes", closes(address)).await?;
    }
    let starts = starts(&mut installation, address, port).await?;
    let (made, stored) = (from_call.len(), plan.stored);
    let mut row = Row::new(format!("{made} destinations, {stored} others, one node"));
    for (what, times) in [("call", &from_call), ("answer", &from_answer)] {
        row.figure(format!("{what}_to_open_port_median_ms"), median(times));
        row.figure(format!("{what}_to_open_port_p99_ms"), quantile(times, 0.99));
    }
    for (what, time) in starts {
        row.figure(what, time.as_secs_f64() * 1e3);
    }
    let mut report = Report::new("push");
    report.push(row);
    installation.finish()?;
    Ok(report)
}

/// How long node and control plane take to start, each killed before: the node until the port of a destination accepts, the
/// control plane until it says that it is ready; and from there, how long the first change takes to its port.
async fn starts(
    installation: &mut Installation,
    address: SocketAddr,
    port: u16,
) -> Result<[(&'static str, Duration); 3]> {
    let gateway = installation.gateway.name.clone();
    let mut api = Api::connect(installation).await?;
    api.create(&gateway, on_premises("before-start", port))
        .await?;
    within(GRACE, "the port opens", opens(address)).await?;
    let node = installation.site.node();
    node.kill()?;
    let start = Instant::now();
    node.launch()?;
    let opened = within(GRACE, "the port opens", opens(address)).await?;
    let of_node = opened.duration_since(start);
    node.ready().await?;
    api.delete(&gateway, "before-start").await?;
    within(GRACE, "the port closes", closes(address)).await?;
    let control_plane = installation.site.control_plane();
    control_plane.kill()?;
    let start = Instant::now();
    control_plane.start().await?;
    let of_control_plane = start.elapsed();
    let mut api = Api::connect(installation).await?;
    let start = Instant::now();
    api.create(&gateway, on_premises("after-start", port))
        .await?;
    let opened = within(GRACE, "the port opens", opens(address)).await?;
    Ok([
        ("node_start_to_open_port_ms", of_node),
        ("control_plane_start_ms", of_control_plane),
        ("first_change_to_open_port_ms", opened.duration_since(start)),
    ])
}

/// Makes `count` destinations that nobody uses.
async fn store_others(api: &Api, site: &mut Site, count: usize) -> Result<()> {
    let mut gateways = Vec::new();
    for number in 0..count.div_ceil(OF_A_GATEWAY) {
        gateways.push(site.gateway(&format!("others-{number}")).await?.name);
    }
    let mut writers = JoinSet::new();
    for first in 0..WRITERS {
        let (mut api, gateways) = (api.clone(), gateways.clone());
        writers.spawn(async move {
            for index in (first..count).step_by(WRITERS) {
                let gateway = gateways.get(index / OF_A_GATEWAY).context("a gateway")?;
                Box::pin(api.create(gateway, cloud(index % OF_A_GATEWAY)?)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = writers.join_next().await {
        result??;
    }
    Ok(())
}

fn on_premises(name: &str, port: u16) -> Destination {
    Destination {
        name: name.to_owned(),
        kind: "on-premises".to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: "127.0.0.1".to_owned(),
        resource_port: 1,
        cloud_port: u32::from(port),
        ..Destination::default()
    }
}

fn cloud(number: usize) -> Result<Destination> {
    Ok(Destination {
        name: format!("other-{number}"),
        kind: "cloud".to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: "192.0.2.1".to_owned(),
        resource_port: 443,
        client_port: u32::try_from(number + 1024)?,
        ..Destination::default()
    })
}

/// The moment when the port first accepts.
async fn opens(address: SocketAddr) -> Instant {
    while !accepts(address).await {
        sleep(TRY_AGAIN).await;
    }
    Instant::now()
}

async fn closes(address: SocketAddr) {
    while accepts(address).await {
        sleep(TRY_AGAIN).await;
    }
}

/// Whether somebody listens. The destination's resource is one that no list allows, so the node resets its users, often
/// before the result is looked at: that is an accepted connection as well.
async fn accepts(address: SocketAddr) -> bool {
    match TcpStream::connect(address).await {
        Ok(_) => true,
        Err(error) => error.kind() != io::ErrorKind::ConnectionRefused,
    }
}

/// A connection to the control plane, as an administrator.
#[derive(Clone)]
struct Api {
    client: DestinationsClient<Channel>,
    authorization: MetadataValue<Ascii>,
}

impl Api {
    async fn connect(installation: &Installation) -> Result<Self> {
        let ca = installation.site.ca_file();
        let trust: Trust = ca.display().to_string().parse().context("CA")?;
        let tls = tls::client_config(&trust, PeerKind::ControlPlane, None, &[b"h2"])?;
        let address = installation
            .site
            .control_addresses()
            .first()
            .context("control plane")?;
        let tcp = TcpStream::connect(address).await.context("control plane")?;
        tcp.set_nodelay(true)?;
        let (stream, _) = tls::connect(&tls, tcp, "localhost").await?;
        let mut stream = Some(TokioIo::new(stream));
        let connector = tower::service_fn(move |_| {
            let stream = stream.take();
            async move { stream.ok_or_else(|| io::Error::from(io::ErrorKind::NotConnected)) }
        });
        let endpoint = Endpoint::from_static("http://control-plane");
        let channel = endpoint.connect_with_connector(connector).await;
        let token = std::fs::read_to_string(ca.with_file_name("admin.token")).context("token")?;
        Ok(Self {
            client: DestinationsClient::new(channel.context("control plane")?),
            authorization: format!("Bearer {}", token.trim())
                .parse()
                .context("token")?,
        })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("authorization", self.authorization.clone());
        request
    }

    /// Makes a destination; answers when the answer came.
    async fn create(&mut self, gateway: &str, destination: Destination) -> Result<Instant> {
        let request = self.request(CreateDestinationRequest {
            parent: gateway.to_owned(),
            destination: Some(destination),
            ..CreateDestinationRequest::default()
        });
        self.client
            .create_destination(request)
            .await
            .context("creating")?;
        Ok(Instant::now())
    }

    async fn delete(&mut self, gateway: &str, name: &str) -> Result<()> {
        let request = self.request(DeleteDestinationRequest {
            name: format!("{gateway}/{name}"),
            force: true,
            ..DeleteDestinationRequest::default()
        });
        self.client
            .delete_destination(request)
            .await
            .context("deleting")?;
        Ok(())
    }
}
