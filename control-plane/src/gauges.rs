//! What is measured when somebody asks, rather than counted when it happens.

use std::sync::Arc;

use sg_runtime::metrics::Metrics;
use sg_runtime::metrics::prometheus_client::collector::Collector;
use sg_runtime::metrics::prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _};
use sg_runtime::metrics::prometheus_client::metrics::gauge::ConstGauge;

use crate::service::Core;

#[derive(Debug)]
struct Gauges(Arc<Core>);

/// Adds `sg_config_revision`, `sg_nodes`, `sg_nodes_connected` and `sg_store_healthy`.
pub(crate) fn register(metrics: &Metrics, core: &Arc<Core>) {
    let gauges = Box::new(Gauges(Arc::clone(core)));
    metrics.with_registry(|registry| registry.register_collector(gauges));
}

impl Collector for Gauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let view = self.0.views.now();
        let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let revision = i64::try_from(view.world.revision.get()).unwrap_or(i64::MAX);
        for (name, help, value) in [
            (
                "config_revision",
                "Newest configuration revision read",
                revision,
            ),
            (
                "nodes",
                "Nodes that have joined",
                count(view.world.nodes().count()),
            ),
            (
                "nodes_connected",
                "Nodes connected to this control plane",
                count(self.0.observed.connected()),
            ),
            (
                "store_healthy",
                "Whether the store answers",
                i64::from(self.0.health.problem().is_none()),
            ),
        ] {
            let gauge = ConstGauge::new(value);
            let metric = encoder.encode_descriptor(name, help, None, gauge.metric_type())?;
            gauge.encode(metric)?;
        }
        Ok(())
    }
}
