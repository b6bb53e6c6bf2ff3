//! Who is measured in one run: the direct connection, the product, another build of it and the peers asked
//! for. Each build stands before a resource of its own in this process, everything else before the product's.

use std::net::SocketAddr;

use anyhow::{Context as _, Result};

use crate::Plan;
use crate::account::Process;
use crate::installation::Installation;
use crate::peers::Peers;

/// What kind of way a load takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Straight to the resource: the baseline.
    Direct,
    /// To the destination port, through node and client.
    Product,
    /// The same with node and client of another build.
    Baseline,
    /// Through another program that encrypts.
    Encrypted,
    /// Through another program that does not encrypt.
    Plain,
}

impl Kind {
    pub(crate) fn is_peer(self) -> bool {
        matches!(self, Self::Encrypted | Self::Plain)
    }
}

/// One way to the resource.
#[derive(Debug, Clone)]
pub(crate) struct Contender {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
    /// Where users connect.
    pub(crate) address: SocketAddr,
    /// Where users send datagrams.
    pub(crate) udp: Option<SocketAddr>,
    /// The processes that user bytes go through.
    pub(crate) processes: Vec<Process>,
}

impl Contender {
    fn through(name: &'static str, kind: Kind, installation: &mut Installation) -> Self {
        Self {
            name,
            kind,
            address: installation.destination(),
            udp: installation.udp_destination(),
            processes: installation.processes().to_vec(),
        }
    }
}

/// All of them, running.
pub(crate) struct Lineup {
    pub(crate) installation: Installation,
    baseline: Option<Installation>,
    /// Held until the end.
    _peers: Option<Peers>,
    pub(crate) contenders: Vec<Contender>,
}

impl Lineup {
    pub(crate) async fn start(plan: &Plan) -> Result<Self> {
        let baseline = match &plan.baseline {
            Some(programs) => Some(Installation::start_of(plan, programs).await?),
            None => None,
        };
        Self::around(Installation::start(plan).await?, baseline, plan).await
    }

    /// With datagrams too.
    pub(crate) async fn start_udp(plan: &Plan) -> Result<Self> {
        let baseline = match &plan.baseline {
            Some(programs) => {
                let installation = Installation::start_of(plan, programs).await?;
                Some(installation.with_udp().await?)
            }
            None => None,
        };
        Self::around(Installation::start_udp(plan).await?, baseline, plan).await
    }

    async fn around(
        mut installation: Installation,
        mut baseline: Option<Installation>,
        plan: &Plan,
    ) -> Result<Self> {
        let direct = Contender {
            name: "direct",
            kind: Kind::Direct,
            address: installation.resource(),
            udp: Some(installation.udp_resource()),
            processes: Vec::new(),
        };
        let mut contenders = vec![
            direct,
            Contender::through("product", Kind::Product, &mut installation),
        ];
        contenders.extend(
            baseline
                .as_mut()
                .map(|other| Contender::through("baseline", Kind::Baseline, other)),
        );
        let peers = match plan.peers.is_empty() {
            true => None,
            false => Some(
                Peers::start(
                    &plan.peers,
                    installation.resource(),
                    installation.udp_resource(),
                )
                .await
                .context("starting the peers")?,
            ),
        };
        contenders.extend(peers.iter().flat_map(Peers::contenders));
        Ok(Self {
            installation,
            baseline,
            _peers: peers,
            contenders,
        })
    }

    /// Ends all of it, and fails if anything went wrong with the product meanwhile.
    pub(crate) fn finish(self) -> Result<()> {
        if let Some(baseline) = self.baseline {
            baseline.finish().context("the baseline")?;
        }
        self.installation.finish()
    }
}
