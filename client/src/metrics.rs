//! What the client counts beside its streams.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use sg_model::Protocol;
use sg_relay::{DestinationMeter, StreamMetrics, TcpEnd};
use sg_runtime::metrics::{Counter, EncodeLabelSet, Family, Gauge, Metrics};

/// Destinations that get series of their own. Their names come from the nodes, which must not be
/// able to fill this process' memory with them.
const MOST_DESTINATIONS: usize = 2000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    gateway: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    gateway: String,
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResumeLabels {
    gateway: String,
    result: &'static str,
}

/// What became of a tunnel whose connection was lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// It goes on, over a new connection.
    Resumed,
    /// Its node does not know it any more, or does not let the client in.
    Refused,
    /// The node did not answer within the resume time.
    Expired,
}

impl Resume {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Refused => "refused",
            Self::Expired => "expired",
        }
    }
}

/// The series of this client. Clones share them.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    streams: StreamMetrics,
    destinations: Arc<Mutex<HashSet<(String, String)>>>,
    tunnels: Family<GatewayLabels, Gauge>,
    reconnects: Family<GatewayLabels, Counter>,
    resumes: Family<ResumeLabels, Counter>,
    decisions: Family<DecisionLabels, Counter>,
}

impl ClientMetrics {
    /// Registers the series.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        Self {
            streams: StreamMetrics::register(metrics),
            destinations: Arc::default(),
            tunnels: metrics.register("tunnels", "Tunnels that take streams", Family::default()),
            reconnects: metrics.register(
                "reconnects",
                "Attempts to connect after a tunnel was lost or an attempt failed",
                Family::default(),
            ),
            resumes: metrics.register(
                "tunnel_resumes",
                "What became of tunnels that lost their connection",
                Family::default(),
            ),
            decisions: metrics.register(
                "acl_decisions",
                "Decisions of the access control lists about streams",
                Family::default(),
            ),
        }
    }

    /// The series of one destination whose resource is here.
    #[must_use]
    pub fn destination(
        &self,
        gateway: &str,
        destination: &str,
        protocol: Protocol,
    ) -> Arc<DestinationMeter> {
        self.meter(gateway, destination, protocol, TcpEnd::Resource)
    }

    /// The series of one destination whose users are here.
    #[must_use]
    pub fn user_destination(
        &self,
        gateway: &str,
        destination: &str,
        protocol: Protocol,
    ) -> Arc<DestinationMeter> {
        self.meter(gateway, destination, protocol, TcpEnd::User)
    }

    fn meter(
        &self,
        gateway: &str,
        destination: &str,
        protocol: Protocol,
        end: TcpEnd,
    ) -> Arc<DestinationMeter> {
        let found = self.streams.find(gateway, destination, protocol.as_str());
        if let Some(meter) = found {
            return meter;
        }
        let mut known = self
            .destinations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let key = (gateway.to_owned(), destination.to_owned());
        let name = if known.contains(&key) || known.len() < MOST_DESTINATIONS {
            known.insert(key);
            destination
        } else {
            "other"
        };
        self.streams
            .destination(gateway, name, protocol.as_str(), end)
    }

    /// How many tunnels of a gateway take streams now.
    pub fn set_tunnels(&self, gateway: &str, count: usize) {
        let labels = GatewayLabels {
            gateway: gateway.to_owned(),
        };
        self.tunnels
            .get_or_create(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts an attempt to connect again.
    pub fn count_reconnect(&self, gateway: &str) {
        self.reconnects
            .get_or_create(&GatewayLabels {
                gateway: gateway.to_owned(),
            })
            .inc();
    }

    /// Counts what became of a tunnel that was detached.
    pub fn count_resume(&self, gateway: &str, result: Resume) {
        self.resumes
            .get_or_create(&ResumeLabels {
                gateway: gateway.to_owned(),
                result: result.as_str(),
            })
            .inc();
    }

    /// Counts a decision about a stream.
    pub fn count_decision(&self, gateway: &str, allowed: bool) {
        let decision = if allowed { "allow" } else { "deny" };
        self.decisions
            .get_or_create(&DecisionLabels {
                gateway: gateway.to_owned(),
                decision,
            })
            .inc();
    }
}
