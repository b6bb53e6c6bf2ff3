//! What is measured: one control plane, by default with the embedded store, one node, one client, as release
//! programs of their own, and a destination in front of the resource of this process.

use std::net::SocketAddr;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use sg_tests::{Client, Gateway, Site, SiteSetup};

use crate::Plan;
use crate::account::Process;
use crate::resource::Resource;

/// Where a load is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Path {
    /// Straight to the resource: the baseline.
    Direct,
    /// To the destination port, through node and client.
    Product,
}

impl Path {
    pub(crate) const BOTH: [Self; 2] = [Self::Direct, Self::Product];

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Direct => "direct",
            Self::Product => "product",
        }
    }
}

/// A running product between this process and its own resource.
pub(crate) struct Installation {
    pub(crate) site: Site,
    pub(crate) gateway: Gateway,
    client: Client,
    resource: Resource,
    destination: SocketAddr,
}

impl Installation {
    pub(crate) async fn start(plan: Plan) -> Result<Self> {
        let resource = Resource::start()?;
        let mut site = Site::with(SiteSetup {
            etcd: plan.etcd,
            ..SiteSetup::default()
        })
        .await?;
        let gateway = site.gateway("bench").await?;
        let client = site.client(&gateway).await?;
        let address = resource.address().to_string();
        let destination = site
            .destination(&gateway, "load", &address, &[])
            .await?
            .address;
        Ok(Self {
            site,
            gateway,
            client,
            resource,
            destination,
        })
    }

    pub(crate) fn address(&self, path: Path) -> SocketAddr {
        match path {
            Path::Direct => self.resource.address(),
            Path::Product => self.destination,
        }
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
