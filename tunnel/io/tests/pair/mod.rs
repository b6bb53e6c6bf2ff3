//! Two ends of a tunnel in one process, and what tests need around them.
#![allow(
    dead_code,
    unreachable_pub,
    missing_debug_implementations,
    clippy::unwrap_used
)]

pub mod cut;

use std::future::Future;
use std::time::{Duration, Instant};

use bytes::Bytes;
use sg_tunnel_io::{
    Closed, Config, Event, Incoming, Rate, Rates, Side, Transport, Tunnel, TunnelStream, start,
    start_with,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub struct Ends {
    pub node: Tunnel,
    pub node_incoming: Incoming,
    pub node_driver: JoinHandle<Closed>,
    pub client: Tunnel,
    pub client_incoming: Incoming,
    pub client_driver: JoinHandle<Closed>,
}

impl Ends {
    pub fn new<T>(node_io: T, client_io: T, node: Config, client: Config) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (node, node_incoming, node_driver) = start(node_io, Side::Node, node);
        let (client, client_incoming, client_driver) = start(client_io, Side::Client, client);
        Self {
            node,
            node_incoming,
            node_driver: tokio::spawn(node_driver),
            client,
            client_incoming,
            client_driver: tokio::spawn(client_driver),
        }
    }

    /// Like [`Self::new`], over any transports.
    pub fn over(
        node_io: impl Transport + 'static,
        client_io: impl Transport + 'static,
        config: Config,
    ) -> Self {
        let (node, node_incoming, node_driver) =
            start_with(Box::new(node_io), Side::Node, config.clone());
        let (client, client_incoming, client_driver) =
            start_with(Box::new(client_io), Side::Client, config);
        Self {
            node,
            node_incoming,
            node_driver: tokio::spawn(node_driver),
            client,
            client_incoming,
            client_driver: tokio::spawn(client_driver),
        }
    }

    /// Opens a stream from the node and accepts it at the client.
    pub async fn stream(&mut self) -> (TunnelStream, TunnelStream) {
        let accept = async {
            match self.client_incoming.next().await {
                Some(Event::Open(stream)) => stream.accept(),
                other => panic!("expected a stream, got {other:?}"),
            }
        };
        let (opened, accepted) = tokio::join!(self.node.open(Bytes::new()), accept);
        (opened.unwrap(), accepted)
    }
}

/// For tests that give up more opens at once than an opener lets pass before their answers
/// (protocol 1005).
pub fn may_give_up() -> Config {
    let many = Rate::new(1_000_000, 1_000_000);
    Config {
        rates: Rates {
            early_resets: many,
            own_early_resets: many,
            failed_opens: many,
            own_failed_opens: many,
            ..Config::default().rates
        },
        ..Config::default()
    }
}

/// Over a pipe in memory of 64 KiB each way.
pub fn duplex(config: Config) -> Ends {
    let (a, b) = tokio::io::duplex(64 * 1024);
    Ends::new(a, b, config.clone(), config)
}

/// Over loopback TCP.
pub async fn tcp(config: Config) -> Ends {
    let (a, b) = tcp_pair().await;
    Ends::new(a, b, config.clone(), config)
}

pub async fn tcp_pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (a, b) = tokio::join!(listener.accept(), TcpStream::connect(address));
    let (a, b) = (a.unwrap().0, b.unwrap());
    sg_tunnel_io::socket::tune(&a).unwrap();
    sg_tunnel_io::socket::tune(&b).unwrap();
    (a, b)
}

/// Accepts every stream and sends back what comes, until the tunnel ends.
pub fn echo(mut incoming: Incoming) -> JoinHandle<()> {
    tokio::spawn(async move {
        let mut tasks = JoinSet::new();
        while let Some(event) = incoming.next().await {
            if let Event::Open(stream) = event {
                tasks.spawn(echo_one(stream.accept()));
            }
        }
        while tasks.join_next().await.is_some() {}
    })
}

async fn echo_one(mut stream: TunnelStream) {
    while let Ok(Some(chunk)) = stream.read_chunk().await {
        if stream.write_chunk(chunk).await.is_err() {
            return;
        }
    }
    drop(stream.finish());
}

/// The record that carries these frames of the logged stream.
pub fn logged(frames: &[u8]) -> Vec<u8> {
    record(0, frames)
}

/// The record that carries these PINGs, PONGs and datagrams.
pub fn unlogged(frames: &[u8]) -> Vec<u8> {
    record(1, frames)
}

fn record(kind: u32, content: &[u8]) -> Vec<u8> {
    let header = kind << 24 | u32::try_from(content.len()).unwrap();
    [&header.to_be_bytes(), content].concat()
}

/// Bytes that differ from stream to stream and from place to place.
pub fn pattern(seed: usize, size: usize) -> Vec<u8> {
    let mut state = seed as u64 ^ 0x9e37_79b9_7f4a_7c15;
    (0..size)
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 56) as u8
        })
        .collect()
}

/// The future's result, or a failed test.
pub async fn within<F: Future>(seconds: u64, future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(seconds), future)
        .await
        .expect("test step took too long")
}

/// Waits for a condition that no event tells.
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "not within 10 s: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
