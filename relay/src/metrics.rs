//! The series about streams. A destination's series come into being with its first stream, and go when the
//! destination does ([`StreamMetrics::forget`]).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use sg_runtime::metrics::{
    Counter, EncodeLabelSet, Family, Gauge, Histogram, Metrics, latency_buckets, lifetime_buckets,
};

use crate::udp::{Direction, Fate};
use crate::{ByteCounters, TcpEnd};

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OpenedLabels {
    gateway: String,
    destination: String,
    protocol: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DestinationLabels {
    gateway: String,
    destination: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BytesLabels {
    gateway: String,
    destination: String,
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatagramLabels {
    gateway: String,
    destination: String,
    direction: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct HttpLabels {
    gateway: String,
    destination: String,
    code: &'static str,
}

/// Classes of the status of an answer.
const HTTP_CODES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// The series of all destinations. Clones share them.
#[derive(Debug, Clone)]
pub struct StreamMetrics(Arc<Series>);

#[derive(Debug)]
struct Series {
    opened: Family<OpenedLabels, Counter>,
    active: Family<DestinationLabels, Gauge>,
    bytes: Family<BytesLabels, Counter>,
    datagrams: Family<DatagramLabels, Counter>,
    http: Family<HttpLabels, Counter>,
    connect_seconds: Histogram,
    duration_seconds: Histogram,
    meters: Mutex<Meters>,
}

/// By gateway and destination; every stream looks here, so it must not take new strings to do so.
type Meters = HashMap<String, HashMap<String, Arc<DestinationMeter>>>;

impl StreamMetrics {
    /// Registers the series.
    #[must_use]
    pub fn register(metrics: &Metrics) -> Self {
        Self(Arc::new(Series {
            opened: metrics.register(
                "streams_opened",
                "Connections of users, by how opening their stream went",
                Family::default(),
            ),
            active: metrics.register(
                "streams_active",
                "Connections of users that are open now",
                Family::default(),
            ),
            bytes: metrics.register("bytes", "Bytes relayed", Family::default()),
            datagrams: metrics.register(
                "udp_datagrams",
                "Datagrams of UDP destinations, by what became of them here",
                Family::default(),
            ),
            http: metrics.register(
                "http_requests",
                "Requests of users of HTTP destinations, by the class of the answer's status",
                Family::default(),
            ),
            connect_seconds: metrics.register(
                "stream_connect_seconds",
                "Time from the user's connection to the resource's",
                Histogram::new(latency_buckets()),
            ),
            duration_seconds: metrics.register(
                "stream_duration_seconds",
                "Time that streams were open",
                Histogram::new(lifetime_buckets()),
            ),
            meters: Mutex::default(),
        }))
    }

    /// The series of one destination, made on the first call. `tcp` says who is at the TCP end here.
    #[must_use]
    pub fn destination(
        &self,
        gateway: &str,
        destination: &str,
        protocol: &'static str,
        tcp: TcpEnd,
    ) -> Arc<DestinationMeter> {
        // Looked for and made under one lock, so that there is never a second one.
        let mut meters = self.meters();
        if let Some(meter) = found(&meters, gateway, destination, protocol) {
            return meter;
        }
        let bytes = |direction| {
            self.0.bytes.get_or_create_owned(&BytesLabels {
                gateway: gateway.to_owned(),
                destination: destination.to_owned(),
                direction,
            })
        };
        let (to_resource, to_user) = (bytes("to_resource"), bytes("to_user"));
        let labels = DestinationLabels {
            gateway: gateway.to_owned(),
            destination: destination.to_owned(),
        };
        let meter = Arc::new(DestinationMeter {
            gateway: gateway.to_owned(),
            destination: destination.to_owned(),
            protocol,
            active: self.0.active.get_or_create_owned(&labels),
            bytes: Arc::new(match tcp {
                TcpEnd::User => ByteCounters::shown_as(to_resource, to_user),
                TcpEnd::Resource => ByteCounters::shown_as(to_user, to_resource),
            }),
            opened: Mutex::new(Some(HashMap::new())),
            datagrams: OnceLock::new(),
            http: OnceLock::new(),
            series: Arc::downgrade(&self.0),
        });
        meters
            .entry(gateway.to_owned())
            .or_default()
            .insert(destination.to_owned(), Arc::clone(&meter));
        meter
    }

    /// The series of one destination, if it has had a stream of this protocol already.
    #[must_use]
    pub fn find(
        &self,
        gateway: &str,
        destination: &str,
        protocol: &str,
    ) -> Option<Arc<DestinationMeter>> {
        found(&self.meters(), gateway, destination, protocol)
    }

    /// Removes the series of a destination that is gone. Streams it still has are counted no more.
    pub fn forget(&self, gateway: &str, destination: &str) {
        let Some(meter) = self.take(gateway, destination) else {
            return;
        };
        let (gateway, destination) = (gateway.to_owned(), destination.to_owned());
        for result in meter.retire() {
            self.0.opened.remove(&OpenedLabels {
                gateway: gateway.clone(),
                destination: destination.clone(),
                protocol: meter.protocol,
                result,
            });
        }
        for direction in ["to_resource", "to_user"] {
            self.0.bytes.remove(&BytesLabels {
                gateway: gateway.clone(),
                destination: destination.clone(),
                direction,
            });
        }
        if meter.datagrams.get().is_some() {
            for (direction, fate) in datagram_results() {
                self.0
                    .datagrams
                    .remove(&meter.datagram_labels(direction, fate));
            }
        }
        if meter.http.get().is_some() {
            for code in HTTP_CODES {
                self.0.http.remove(&meter.http_labels(code));
            }
        }
        self.0.active.remove(&DestinationLabels {
            gateway,
            destination,
        });
    }

    fn take(&self, gateway: &str, destination: &str) -> Option<Arc<DestinationMeter>> {
        let mut meters = self.meters();
        let of_gateway = meters.get_mut(gateway)?;
        let meter = of_gateway.remove(destination);
        if of_gateway.is_empty() {
            meters.remove(gateway);
        }
        meter
    }

    fn meters(&self) -> MutexGuard<'_, Meters> {
        self.0.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn found(
    meters: &Meters,
    gateway: &str,
    destination: &str,
    protocol: &str,
) -> Option<Arc<DestinationMeter>> {
    let meter = meters.get(gateway)?.get(destination)?;
    (meter.protocol == protocol).then(|| Arc::clone(meter))
}

const DATAGRAM_RESULTS: usize = Direction::ALL.len() * Fate::ALL.len();

/// Every combination, in the order in which [`DestinationMeter`] keeps their counters.
fn datagram_results() -> impl Iterator<Item = (Direction, Fate)> {
    Direction::ALL
        .into_iter()
        .flat_map(|direction| Fate::ALL.map(|fate| (direction, fate)))
}

/// The series of one destination.
#[derive(Debug)]
pub struct DestinationMeter {
    gateway: String,
    destination: String,
    protocol: &'static str,
    active: Gauge,
    bytes: Arc<ByteCounters>,
    /// `None` once the destination is gone, so that a late stream does not bring its series back.
    opened: Mutex<Option<HashMap<&'static str, Counter>>>,
    /// Made with the first datagram.
    datagrams: OnceLock<[Counter; DATAGRAM_RESULTS]>,
    /// Made with the first answer.
    http: OnceLock<[Counter; HTTP_CODES.len()]>,
    series: std::sync::Weak<Series>,
}

impl DestinationMeter {
    /// Name of the gateway.
    #[must_use]
    pub fn gateway(&self) -> &str {
        &self.gateway
    }

    /// Name of the destination.
    #[must_use]
    pub fn destination(&self) -> &str {
        &self.destination
    }

    /// Bytes of all its streams.
    #[must_use]
    pub fn bytes(&self) -> &Arc<ByteCounters> {
        &self.bytes
    }

    /// Counts a datagram.
    pub fn datagram(&self, direction: Direction, fate: Fate) {
        let counters = self.datagrams.get_or_init(|| {
            // Not after the destination is gone: its series would never go.
            let series = self.results().is_some().then(|| self.series.upgrade());
            let series = series.flatten();
            let mut results = datagram_results();
            std::array::from_fn(|_| match (&series, results.next()) {
                (Some(series), Some((direction, fate))) => series
                    .datagrams
                    .get_or_create_owned(&self.datagram_labels(direction, fate)),
                _ => Counter::default(),
            })
        });
        let index = direction as usize * Fate::ALL.len() + fate as usize;
        if let Some(counter) = counters.get(index) {
            counter.inc();
        }
    }

    /// Counts an answer with this status.
    pub fn http_answered(&self, status: u16) {
        let counters = self.http.get_or_init(|| {
            // As for datagrams.
            let series = self.results().is_some().then(|| self.series.upgrade());
            let series = series.flatten();
            HTTP_CODES.map(|code| match &series {
                Some(series) => series.http.get_or_create_owned(&self.http_labels(code)),
                None => Counter::default(),
            })
        });
        let class = usize::from(status / 100).saturating_sub(1);
        if let Some(counter) = counters.get(class) {
            counter.inc();
        }
    }

    fn http_labels(&self, code: &'static str) -> HttpLabels {
        HttpLabels {
            gateway: self.gateway.clone(),
            destination: self.destination.clone(),
            code,
        }
    }

    fn datagram_labels(&self, direction: Direction, fate: Fate) -> DatagramLabels {
        DatagramLabels {
            gateway: self.gateway.clone(),
            destination: self.destination.clone(),
            direction: direction.as_str(),
            result: fate.as_str(),
        }
    }

    pub(crate) fn begin(&self) {
        self.active.inc();
    }

    pub(crate) fn end(&self) {
        self.active.dec();
    }

    pub(crate) fn count_opened(&self, result: &'static str) {
        let Some(series) = self.series.upgrade() else {
            return;
        };
        if let Some(opened) = &mut *self.results() {
            let counter = opened.entry(result).or_insert_with(|| {
                series.opened.get_or_create_owned(&OpenedLabels {
                    gateway: self.gateway.clone(),
                    destination: self.destination.clone(),
                    protocol: self.protocol,
                    result,
                })
            });
            counter.inc();
        }
    }

    pub(crate) fn observe_connect(&self, seconds: f64) {
        if let Some(series) = self.series.upgrade() {
            series.connect_seconds.observe(seconds);
        }
    }

    pub(crate) fn observe_duration(&self, seconds: f64) {
        if let Some(series) = self.series.upgrade() {
            series.duration_seconds.observe(seconds);
        }
    }

    fn retire(&self) -> Vec<&'static str> {
        self.results()
            .take()
            .unwrap_or_default()
            .into_keys()
            .collect()
    }

    fn results(&self) -> MutexGuard<'_, Option<HashMap<&'static str, Counter>>> {
        self.opened.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_class_until_the_destination_goes() {
        let metrics = Metrics::new("test", "0");
        let streams = StreamMetrics::register(&metrics);
        let meter = streams.destination("dev", "web", "http", TcpEnd::User);
        for status in [200, 204, 101, 404, 503, 999] {
            meter.http_answered(status);
        }
        let counted = |code, count| {
            let line = format!(
                "sg_http_requests_total{{gateway=\"dev\",destination=\"web\",code=\"{code}\"}} {count}"
            );
            assert!(
                metrics.encode().contains(&line),
                "{line} in\n{}",
                metrics.encode()
            );
        };
        counted("1xx", 1);
        counted("2xx", 2);
        counted("4xx", 1);
        counted("5xx", 1);
        streams.forget("dev", "web");
        meter.http_answered(200);
        let late = streams.destination("dev", "web", "http", TcpEnd::User);
        streams.forget("dev", "web");
        late.http_answered(200);
        assert!(!metrics.encode().contains("destination=\"web\""));
    }
}
