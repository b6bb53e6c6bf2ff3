//! The node's own series; those about streams are in the relay. Names as labels, never addresses.

use std::sync::atomic::AtomicU64;

use sg_runtime::metrics::{Counter, EncodeLabelSet, Family, Gauge, Metrics};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct GatewayLabels {
    gateway: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    gateway: String,
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DecisionLabels {
    gateway: String,
    decision: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClientLabels {
    gateway: String,
    client: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ResumeLabels {
    gateway: String,
    result: &'static str,
}

/// What became of a tunnel whose connection was lost, or of a client's offer to go on with one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resume {
    /// It goes on, over a new connection.
    Resumed,
    /// The offer was not taken: the tunnel is not known any more, or the proof was wrong.
    Refused,
    /// Nobody came back for it in time.
    Expired,
    /// Its client made a new tunnel instead.
    Replaced,
    /// Too many others were waiting already.
    Limit,
}

impl Resume {
    const ALL: [Self; 5] = [
        Self::Resumed,
        Self::Refused,
        Self::Expired,
        Self::Replaced,
        Self::Limit,
    ];

    const fn as_str(self) -> &'static str {
        match self {
            Self::Resumed => "resumed",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Replaced => "replaced",
            Self::Limit => "limit",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

type FloatGauge = Gauge<f64, AtomicU64>;

/// The node's own series.
#[derive(Debug, Clone)]
pub(crate) struct NodeMetrics {
    tunnels: Family<GatewayLabels, Gauge>,
    rtt: Family<ClientLabels, FloatGauge>,
    decisions: Family<DecisionLabels, Counter>,
    refused: Family<ReasonLabels, Counter>,
    closed: Family<ReasonLabels, Counter>,
    resumes: Family<ResumeLabels, Counter>,
    detached: Gauge,
    source_denied: Family<DestinationLabels, Counter>,
    accept_errors: Counter,
    pub(crate) config_revision: Gauge,
    pub(crate) rejected_objects: Gauge,
    pub(crate) control_plane_connected: Gauge,
    pub(crate) resyncs: Counter,
    pub(crate) state_failures: Counter,
}

impl NodeMetrics {
    pub(crate) fn register(metrics: &Metrics) -> Self {
        Self {
            tunnels: metrics.register("tunnels", "Tunnels of clients", Family::default()),
            rtt: metrics.register(
                "tunnel_rtt_seconds",
                "Round-trip time of the client's tunnel",
                Family::default(),
            ),
            decisions: metrics.register(
                "acl_decisions",
                "Decisions by access control lists",
                Family::default(),
            ),
            refused: metrics.register(
                "tunnels_refused",
                "Tunnels that were refused, by reason",
                Family::default(),
            ),
            closed: metrics.register(
                "tunnels_closed",
                "Tunnels that ended, by who ended them",
                Family::default(),
            ),
            resumes: metrics.register(
                "tunnel_resumes",
                "What became of tunnels that lost their connection, and of offers to resume one",
                Family::default(),
            ),
            detached: metrics.register(
                "tunnels_detached",
                "Tunnels whose connection is lost and that may still be resumed",
                Gauge::default(),
            ),
            source_denied: metrics.register(
                "source_denied",
                "Users who may not connect from where they are",
                Family::default(),
            ),
            accept_errors: metrics.register(
                "accept_errors",
                "Connections that could not be accepted",
                Counter::default(),
            ),
            config_revision: metrics.register(
                "config_revision",
                "Revision of the configuration that is served",
                Gauge::default(),
            ),
            rejected_objects: metrics.register(
                "config_rejected_objects",
                "Objects of the configuration that this node cannot serve",
                Gauge::default(),
            ),
            control_plane_connected: metrics.register(
                "control_plane_connected",
                "1 while a control plane is connected",
                Gauge::default(),
            ),
            resyncs: metrics.register(
                "config_resyncs",
                "Complete configurations that had to be asked for",
                Counter::default(),
            ),
            state_failures: metrics.register(
                "state_write_failures",
                "Configurations that could not be kept on disk",
                Counter::default(),
            ),
        }
    }

    pub(crate) fn tunnel_refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn tunnel_closed(&self, reason: &'static str) {
        self.closed.get_or_create(&ReasonLabels { reason }).inc();
    }

    pub(crate) fn tunnel_resume(&self, gateway: &str, result: Resume) {
        let labels = ResumeLabels {
            gateway: gateway.to_owned(),
            result: result.as_str(),
        };
        self.resumes.get_or_create(&labels).inc();
    }

    /// Sets how many tunnels are detached.
    pub(crate) fn set_detached(&self, count: usize) {
        self.detached.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    /// Counts a user who was not admitted by address; the series goes with [`NodeMetrics::forget_destination`].
    pub(crate) fn source_denied(&self, gateway: &str, destination: &str) {
        let labels = DestinationLabels {
            gateway: gateway.to_owned(),
            destination: destination.to_owned(),
        };
        self.source_denied.get_or_create(&labels).inc();
    }

    /// Forgets the series of a destination that is gone.
    pub(crate) fn forget_destination(&self, gateway: &str, destination: &str) {
        self.source_denied.remove(&DestinationLabels {
            gateway: gateway.to_owned(),
            destination: destination.to_owned(),
        });
    }

    pub(crate) fn accept_error(&self) {
        self.accept_errors.inc();
    }

    pub(crate) fn decided(&self, gateway: &str, allowed: bool) {
        let labels = DecisionLabels {
            gateway: gateway.to_owned(),
            decision: if allowed { "allow" } else { "deny" },
        };
        self.decisions.get_or_create(&labels).inc();
    }

    /// Sets the number of tunnels of a gateway; its series goes with [`NodeMetrics::forget_gateway`].
    pub(crate) fn set_tunnels(&self, gateway: &str, count: usize) {
        let labels = GatewayLabels {
            gateway: gateway.to_owned(),
        };
        self.tunnels
            .get_or_create(&labels)
            .set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub(crate) fn set_rtt(&self, gateway: &str, client: &str, seconds: f64) {
        self.rtt
            .get_or_create(&ClientLabels {
                gateway: gateway.to_owned(),
                client: client.to_owned(),
            })
            .set(seconds);
    }

    pub(crate) fn forget_client(&self, gateway: &str, client: &str) {
        self.rtt.remove(&ClientLabels {
            gateway: gateway.to_owned(),
            client: client.to_owned(),
        });
    }

    pub(crate) fn forget_gateway(&self, gateway: &str) {
        self.tunnels.remove(&GatewayLabels {
            gateway: gateway.to_owned(),
        });
        for result in Resume::ALL {
            self.resumes.remove(&ResumeLabels {
                gateway: gateway.to_owned(),
                result: result.as_str(),
            });
        }
        for decision in ["allow", "deny"] {
            self.decisions.remove(&DecisionLabels {
                gateway: gateway.to_owned(),
                decision,
            });
        }
    }
}
