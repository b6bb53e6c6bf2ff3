//! Bytes that passed, per direction. One set belongs to a stream and passes every number on to the sets
//! above it (the tunnel's, the destination's), so that all are true at any moment.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use sg_runtime::metrics::Counter;

/// Bytes between a TCP connection and a tunnel.
#[derive(Debug, Default)]
pub struct ByteCounters {
    from_tcp: AtomicU64,
    to_tcp: AtomicU64,
    above: Box<[Arc<Self>]>,
    /// Known only when a tunnel was chosen.
    tunnel: OnceLock<Arc<Self>>,
    metric: Option<Metric>,
}

#[derive(Debug)]
struct Metric {
    from_tcp: Counter,
    to_tcp: Counter,
}

impl ByteCounters {
    /// Counters at zero, on their own.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Counters at zero that count into `above` as well.
    #[must_use]
    pub fn under(above: impl IntoIterator<Item = Arc<Self>>) -> Self {
        Self {
            above: above.into_iter().collect(),
            ..Self::default()
        }
    }

    /// Counters at zero that are shown as metrics, too.
    #[must_use]
    pub fn shown_as(from_tcp: Counter, to_tcp: Counter) -> Self {
        Self {
            metric: Some(Metric { from_tcp, to_tcp }),
            ..Self::default()
        }
    }

    /// From now on, counts into `tunnel` as well. Only the first call has an effect.
    pub fn attach(&self, tunnel: &Arc<Self>) {
        self.tunnel.get_or_init(|| Arc::clone(tunnel));
    }

    fn all_above(&self) -> impl Iterator<Item = &Arc<Self>> {
        self.above.iter().chain(self.tunnel.get())
    }

    /// Counts bytes read from the TCP connection.
    pub fn add_from_tcp(&self, bytes: u64) {
        self.from_tcp.fetch_add(bytes, Ordering::Relaxed);
        if let Some(metric) = &self.metric {
            metric.from_tcp.inc_by(bytes);
        }
        for counters in self.all_above() {
            counters.add_from_tcp(bytes);
        }
    }

    /// Counts bytes written to the TCP connection.
    pub fn add_to_tcp(&self, bytes: u64) {
        self.to_tcp.fetch_add(bytes, Ordering::Relaxed);
        if let Some(metric) = &self.metric {
            metric.to_tcp.inc_by(bytes);
        }
        for counters in self.all_above() {
            counters.add_to_tcp(bytes);
        }
    }

    /// Bytes read from the TCP connection so far.
    #[must_use]
    pub fn from_tcp(&self) -> u64 {
        self.from_tcp.load(Ordering::Relaxed)
    }

    /// Bytes written to the TCP connection so far.
    #[must_use]
    pub fn to_tcp(&self) -> u64 {
        self.to_tcp.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_counts() {
        let (metric_from, metric_to) = (Counter::default(), Counter::default());
        let destination = Arc::new(ByteCounters::shown_as(
            metric_from.clone(),
            metric_to.clone(),
        ));
        let tunnel = Arc::new(ByteCounters::new());
        let stream = ByteCounters::under([Arc::clone(&destination)]);
        stream.attach(&tunnel);
        stream.attach(&Arc::new(ByteCounters::new()));
        stream.add_from_tcp(3);
        stream.add_to_tcp(5);
        for counters in [&stream, &*destination, &*tunnel] {
            assert_eq!((counters.from_tcp(), counters.to_tcp()), (3, 5));
        }
        assert_eq!((metric_from.get(), metric_to.get()), (3, 5));
    }
}
