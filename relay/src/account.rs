//! The books of one connection: counted when it begins and when it ends, whatever happens in between, with
//! one line in the access log.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use sg_runtime::telemetry::ACCESS;

use crate::{ByteCounters, DestinationMeter};

/// Who is at the TCP end of a stream in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpEnd {
    /// The user: bytes from TCP go to the resource.
    User,
    /// The resource: bytes from TCP go to the user.
    Resource,
}

/// Who took part in a stream, for the access line.
#[derive(Debug, Clone)]
pub struct Parties {
    /// Id of the client; empty while none carries the stream.
    pub client: Arc<str>,
    /// Id of the node.
    pub node: Arc<str>,
    /// Where the user connects from.
    pub user: Option<SocketAddr>,
    /// HOST:PORT of the resource.
    pub resource: Arc<str>,
}

/// The books of one connection. Dropped without [`StreamAccount::set_reason`], it ends as `cancelled`.
#[derive(Debug)]
pub struct StreamAccount {
    meter: Arc<DestinationMeter>,
    tcp: TcpEnd,
    parties: Parties,
    counters: Arc<ByteCounters>,
    started: Instant,
    opened: bool,
    reason: &'static str,
}

impl StreamAccount {
    /// Opens the books. Bytes are counted for the connection and for its destination; see
    /// [`StreamAccount::carried`] for the tunnel.
    #[must_use]
    pub fn begin(meter: Arc<DestinationMeter>, tcp: TcpEnd, parties: Parties) -> Self {
        meter.begin();
        let counters = Arc::new(ByteCounters::under([Arc::clone(meter.bytes())]));
        Self {
            meter,
            tcp,
            parties,
            counters,
            started: Instant::now(),
            opened: false,
            reason: "cancelled",
        }
    }

    /// Notes the stream as opened, in a tunnel of this client, whose bytes are counted in `tunnel` too.
    pub fn opened(&mut self, client: Arc<str>, tunnel: &Arc<ByteCounters>) {
        self.carried(client, tunnel);
        self.accepted();
    }

    /// Notes the tunnel of this client that carries the stream, accepted yet or not, and whose bytes are counted
    /// in `tunnel` too.
    pub fn carried(&mut self, client: Arc<str>, tunnel: &Arc<ByteCounters>) {
        self.counters.attach(tunnel);
        self.parties.client = client;
    }

    /// Notes the stream as opened, in the tunnel that carries it.
    pub fn accepted(&mut self) {
        if self.opened {
            // A further stream of the same connection.
            return;
        }
        self.opened = true;
        self.meter.count_opened("ok");
        self.meter
            .observe_connect(self.started.elapsed().as_secs_f64());
    }

    /// The series of the destination.
    #[must_use]
    pub fn meter(&self) -> &Arc<DestinationMeter> {
        &self.meter
    }

    /// Notes the client that the stream was tried on.
    pub fn set_client(&mut self, client: Arc<str>) {
        self.parties.client = client;
    }

    /// Notes why it ended. The last call counts.
    pub fn set_reason(&mut self, reason: &'static str) {
        self.reason = reason;
    }

    /// The connection's own counters, for [`crate::JoinOptions`].
    #[must_use]
    pub fn counters(&self) -> Arc<ByteCounters> {
        Arc::clone(&self.counters)
    }
}

impl Drop for StreamAccount {
    fn drop(&mut self) {
        self.meter.end();
        let duration = self.started.elapsed();
        if self.opened {
            self.meter.observe_duration(duration.as_secs_f64());
        } else {
            self.meter.count_opened(self.reason);
        }
        let (from_tcp, to_tcp) = (self.counters.from_tcp(), self.counters.to_tcp());
        let (to_resource, to_user) = match self.tcp {
            TcpEnd::User => (from_tcp, to_tcp),
            TcpEnd::Resource => (to_tcp, from_tcp),
        };
        tracing::info!(
            target: ACCESS,
            gateway = self.meter.gateway(),
            destination = self.meter.destination(),
            client = &*self.parties.client,
            node = &*self.parties.node,
            user = self.parties.user.map(tracing::field::display),
            resource = &*self.parties.resource,
            bytes_to_resource = to_resource,
            bytes_to_user = to_user,
            duration_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX),
            reason = self.reason,
            "stream",
        );
    }
}

#[cfg(test)]
mod tests {
    use sg_runtime::metrics::Metrics;

    use super::*;
    use crate::StreamMetrics;

    fn parties() -> Parties {
        Parties {
            client: "".into(),
            node: "n1".into(),
            user: None,
            resource: "db:5432".into(),
        }
    }

    fn has(metrics: &Metrics, line: &str) -> bool {
        metrics.encode().lines().any(|l| l == line)
    }

    #[test]
    fn the_books_are_right_however_it_ends_and_go_with_the_destination() {
        let metrics = Metrics::new("test", "0");
        let streams = StreamMetrics::register(&metrics);
        let meter = || streams.destination("dev", "db", "tcp", TcpEnd::User);

        let mut one = StreamAccount::begin(meter(), TcpEnd::User, parties());
        let tunnel = Arc::new(ByteCounters::new());
        one.opened("c1".into(), &tunnel);
        one.counters().add_from_tcp(7);
        let active = "sg_streams_active{gateway=\"dev\",destination=\"db\"}";
        assert!(has(&metrics, &format!("{active} 1")));
        one.set_reason("finished");
        drop(one);
        let mut other = StreamAccount::begin(meter(), TcpEnd::User, parties());
        other.set_reason("no-client");
        drop(other);
        drop(StreamAccount::begin(meter(), TcpEnd::User, parties()));

        let opened = "sg_streams_opened_total{gateway=\"dev\",destination=\"db\",protocol=\"tcp\"";
        for line in [
            format!("{active} 0"),
            format!("{opened},result=\"ok\"}} 1"),
            format!("{opened},result=\"no-client\"}} 1"),
            format!("{opened},result=\"cancelled\"}} 1"),
            "sg_bytes_total{gateway=\"dev\",destination=\"db\",direction=\"to_resource\"} 7"
                .to_owned(),
            "sg_stream_connect_seconds_count 1".to_owned(),
            "sg_stream_duration_seconds_count 1".to_owned(),
        ] {
            assert!(has(&metrics, &line), "{line} in\n{}", metrics.encode());
        }
        assert_eq!(tunnel.from_tcp(), 7);

        let late = StreamAccount::begin(meter(), TcpEnd::User, parties());
        streams.forget("dev", "db");
        drop(late);
        assert!(!metrics.encode().contains("destination=\"db\""));
    }
}
