//! From a change to its effect: a destination is made through the API, and its port is tried until
//! it accepts. The time is taken twice: from the call, which is what an operator waits, and from
//! its answer, when the change is surely committed; the commit lies between the two.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use hyper_util::rt::TokioIo;
use sg_proto::api::destinations_client::DestinationsClient;
use sg_proto::api::{CreateDestinationRequest, DeleteDestinationRequest, Destination};
use sg_runtime::identity::PeerKind;
use sg_runtime::tls::{self, Trust};
use sg_tests::within;
use tokio::net::TcpStream;
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

/// Between two tries of the port: much less than what is measured.
const TRY_AGAIN: Duration = Duration::from_micros(300);

pub(crate) async fn measure(plan: &Plan) -> Result<Report> {
    let mut installation = Installation::start(plan).await?;
    let (_, port) = installation.site.ports().destinations();
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut api = Api::connect(&installation).await?;
    let (mut from_call, mut from_answer) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS * plan.repeat {
        let name = format!("push-{round}");
        let start = Instant::now();
        let (answered, opened) = within(GRACE, "the port opens", async {
            tokio::join!(api.create(&name, port), opens(address))
        })
        .await?;
        let answered = answered?.duration_since(start);
        let opened = opened.duration_since(start);
        from_call.push(opened.as_secs_f64() * 1e3);
        // The port may open before the answer has come back.
        from_answer.push(opened.saturating_sub(answered).as_secs_f64() * 1e3);
        api.delete(&name).await?;
        within(GRACE, "the port closes", closes(address)).await?;
    }
    let mut row = Row::new(format!("{} destinations, one node", from_call.len()));
    for (what, times) in [("call", &from_call), ("answer", &from_answer)] {
        row.figure(format!("{what}_to_open_port_median_ms"), median(times));
        row.figure(format!("{what}_to_open_port_p99_ms"), quantile(times, 0.99));
    }
    let mut report = Report::new("push");
    report.push(row);
    installation.finish()?;
    Ok(report)
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
struct Api {
    client: DestinationsClient<Channel>,
    authorization: MetadataValue<Ascii>,
    gateway: String,
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
            gateway: installation.gateway.name.clone(),
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
    async fn create(&mut self, name: &str, port: u16) -> Result<Instant> {
        let destination = Destination {
            name: name.to_owned(),
            kind: "on-premises".to_owned(),
            protocol: "tcp".to_owned(),
            resource_host: "127.0.0.1".to_owned(),
            resource_port: 1,
            cloud_port: u32::from(port),
            ..Destination::default()
        };
        let request = self.request(CreateDestinationRequest {
            parent: self.gateway.clone(),
            destination: Some(destination),
            ..CreateDestinationRequest::default()
        });
        self.client
            .create_destination(request)
            .await
            .context("creating")?;
        Ok(Instant::now())
    }

    async fn delete(&mut self, name: &str) -> Result<()> {
        let request = self.request(DeleteDestinationRequest {
            name: format!("{}/{name}", self.gateway),
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
