//! What is measured: one control plane, by default with the embedded store, one node, one client, as release
//! programs of their own, and a destination in front of the resource of this process.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use sg_tests::link::{Link, LinkSetup, Shape};
use sg_tests::{Client, ClientSetup, Gateway, Site, SiteSetup};

use crate::Plan;
use crate::account::Process;
use crate::resource::{Resource, UdpResource};

/// A running product between this process and its own resource.
pub(crate) struct Installation {
    pub(crate) site: Site,
    pub(crate) gateway: Gateway,
    client: Client,
    link: Option<Link>,
    resource: Resource,
    udp_resource: UdpResource,
    destination: SocketAddr,
    udp_destination: Option<SocketAddr>,
}

impl Installation {
    pub(crate) async fn start(plan: &Plan) -> Result<Self> {
        Self::with(plan, None, None).await
    }

    /// With node and client of another build.
    pub(crate) async fn start_of(plan: &Plan, programs: &Path) -> Result<Self> {
        Self::with(plan, None, Some(programs)).await
    }

    /// With a destination for datagrams too.
    pub(crate) async fn start_udp(plan: &Plan) -> Result<Self> {
        Self::with(plan, None, None).await?.with_udp().await
    }

    /// Adds a destination for datagrams.
    pub(crate) async fn with_udp(mut self) -> Result<Self> {
        let made = self.make_udp().await;
        self.udp_destination = Some(made.context("a destination for datagrams")?);
        Ok(self)
    }

    /// With an emulated link between client and node.
    pub(crate) async fn start_linked(plan: &Plan, shape: Shape) -> Result<Self> {
        Self::with(plan, Some(shape), None).await
    }

    async fn with(plan: &Plan, shape: Option<Shape>, programs: Option<&Path>) -> Result<Self> {
        let resource = Resource::start()?;
        let udp_resource = UdpResource::start()?;
        let mut site = Site::with(SiteSetup {
            etcd: plan.etcd,
            programs: programs.map(Path::to_owned),
            ..SiteSetup::default()
        })
        .await?;
        let gateway = site.gateway("bench").await?;
        let link = match shape {
            None => None,
            Some(shape) => {
                let setup = LinkSetup::to(site.tunnel_address(0)).shaped(shape);
                Some(Link::with(setup).await?)
            }
        };
        let setup = ClientSetup {
            nodes: link.iter().map(Link::address).collect(),
            ..ClientSetup::default()
        };
        let mut client = site.prepare_client(&gateway, setup)?;
        client.connect().await?;
        let address = resource.address().to_string();
        let destination = site
            .destination(&gateway, "load", &address, &[])
            .await?
            .address;
        Ok(Self {
            site,
            gateway,
            client,
            link,
            resource,
            udp_resource,
            destination,
            udp_destination: None,
        })
    }

    async fn make_udp(&self) -> Result<SocketAddr> {
        let resource = self.udp_resource.address().to_string();
        let gateway = self.gateway.name.as_str();
        let sgctl = &self.site.sgctl;
        sgctl
            .run(&["acl", "allow", gateway, &resource, "--wait", "10s"])
            .await?;
        let path = format!("{gateway}/datagrams");
        let made = sgctl
            .json(&[
                "destination",
                "create",
                &path,
                "--protocol",
                "udp",
                "--resource",
                &resource,
                "--wait",
            ])
            .await?;
        let port = made.get("cloudPort").and_then(Value::as_u64);
        let port = u16::try_from(port.context("cloudPort")?).context("cloudPort")?;
        Ok(SocketAddr::new(Site::node_host(0), port))
    }

    /// Where users reach the resource itself.
    pub(crate) fn resource(&self) -> SocketAddr {
        self.resource.address()
    }

    /// Where users reach it through the product.
    pub(crate) fn destination(&self) -> SocketAddr {
        self.destination
    }

    /// Where users send datagrams to the resource itself.
    pub(crate) fn udp_resource(&self) -> SocketAddr {
        self.udp_resource.address()
    }

    /// Where users send datagrams through the product, if it was asked for.
    pub(crate) fn udp_destination(&self) -> Option<SocketAddr> {
        self.udp_destination
    }

    /// The link between client and node.
    ///
    /// # Errors
    /// It was made without one.
    pub(crate) fn link(&self) -> Result<&Link> {
        self.link.as_ref().context("there is no link")
    }

    /// The processes that user bytes go through.
    pub(crate) fn processes(&mut self) -> [Process; 2] {
        [
            Process {
                name: "node",
                id: self.site.node().id(),
            },
            Process {
                name: "client",
                id: self.client.daemon.id(),
            },
        ]
    }

    /// Ends all of it, and fails if anything went wrong meanwhile.
    pub(crate) fn finish(self) -> Result<()> {
        self.site.finish()
    }
}

/// Builds the programs that are measured, in the profile of this one, unless `SG_BIN_DIR` says
/// where they are: cargo builds only what it is told to run.
pub(crate) fn build() -> Result<()> {
    if std::env::var_os("SG_BIN_DIR").is_some() {
        return Ok(());
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["build", "--quiet"]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    for package in ["sg-control-plane", "sg-data-plane", "sg-client", "sgctl"] {
        cargo.args(["--package", package]);
    }
    let status = cargo.status().context("running cargo")?;
    ensure!(status.success(), "the programs cannot be built");
    Ok(())
}
