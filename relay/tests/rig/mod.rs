//! A user, a resource, and between them both ends of a tunnel, each joined to real TCP connections.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use sg_model::Compression;
use sg_relay::compress::Grant;
use sg_relay::{ByteCounters, Ended, JoinOptions, StreamEnd, dial, join};
use sg_tunnel_io::{Config, Event, Side, Tunnel, TunnelStream, start};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

pub const LIMIT: Duration = Duration::from_secs(20);

pub struct Rig {
    users: TcpListener,
    resources: TcpListener,
    pub node: Tunnel,
    pub client: Tunnel,
    /// How the node's side of each stream ended.
    node_ended: mpsc::Sender<Ended>,
    pub node_ends: mpsc::Receiver<Ended>,
    /// How the client's side of each stream ended.
    pub client_ends: mpsc::Receiver<Ended>,
    pub idle_timeout: Option<Duration>,
    compression: Compression,
    tasks: JoinSet<()>,
}

/// Both ends of one relayed connection.
pub struct Pair {
    pub user: TcpStream,
    pub resource: TcpStream,
    pub end: StreamEnd,
}

impl Rig {
    pub async fn new() -> Self {
        Self::compressing(Compression::None).await
    }

    /// Both ends have agreed on this compression.
    pub async fn compressing(compression: Compression) -> Self {
        let listen = async || TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (users, resources, tunnels) = (listen().await, listen().await, listen().await);
        let (near, far) = connection(&tunnels).await;
        let (node, mut node_events, node_driver) = start(near, Side::Node, Config::default());
        let (client, mut events, client_driver) = start(far, Side::Client, Config::default());
        let (node_ended, node_ends) = mpsc::channel(2000);
        let (client_ended, client_ends) = mpsc::channel(2000);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(node_driver.await) });
        tasks.spawn(async move { drop(client_driver.await) });
        tasks.spawn(async move { while node_events.next().await.is_some() {} });
        let resource = resources.local_addr().unwrap();
        tasks.spawn(async move {
            let mut streams = JoinSet::new();
            while let Some(event) = events.next().await {
                let Event::Open(incoming) = event else {
                    continue;
                };
                let ended = client_ended.clone();
                streams.spawn(async move {
                    let resource = resource.to_string().parse().unwrap();
                    match dial(&resource, LIMIT, |_| true).await {
                        Ok(tcp) => {
                            let compression = Grant::take(compression);
                            let options = JoinOptions {
                                compression,
                                ..JoinOptions::default()
                            };
                            let how = join(tcp, incoming.accept(), options).await;
                            ended.send(how).await.unwrap();
                        }
                        Err(error) => incoming.refuse(error.code()),
                    }
                });
            }
        });
        Self {
            users,
            resources,
            node,
            client,
            node_ended,
            node_ends,
            client_ends,
            idle_timeout: None,
            compression,
            tasks,
        }
    }

    /// A user's connection through the tunnel to the resource.
    pub async fn connect(&mut self) -> Pair {
        let (user, accepted) = connection(&self.users).await;
        let opened = async {
            let resource = self.resources.accept();
            let (stream, resource) = tokio::join!(self.node.open(Bytes::new()), resource);
            (stream.unwrap(), resource.unwrap().0)
        };
        let (stream, resource) = timeout(LIMIT, opened).await.unwrap();
        let end = StreamEnd::new();
        let options = JoinOptions {
            idle_timeout: self.idle_timeout,
            counters: Arc::new(ByteCounters::new()),
            end: end.clone(),
            compression: Grant::take(self.compression),
        };
        let ended = self.node_ended.clone();
        self.tasks.spawn(async move {
            let how = join(accepted, stream, options).await;
            ended.send(how).await.unwrap();
        });
        Pair {
            user,
            resource,
            end,
        }
    }

    /// A stream whose end at the node is the caller's, and the resource at its other end.
    pub async fn open_raw(&mut self) -> (TunnelStream, TcpStream) {
        let resource = self.resources.accept();
        let (stream, resource) = tokio::join!(self.node.open(Bytes::new()), resource);
        (stream.unwrap(), resource.unwrap().0)
    }

    pub async fn node_end(&mut self) -> Ended {
        timeout(LIMIT, self.node_ends.recv())
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn client_end(&mut self) -> Ended {
        timeout(LIMIT, self.client_ends.recv())
            .await
            .unwrap()
            .unwrap()
    }
}

/// Two ends of a TCP connection.
pub async fn connection(listener: &TcpListener) -> (TcpStream, TcpStream) {
    let address: SocketAddr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}

/// Bytes that tell where they belong.
pub fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Writes until the connection takes no more for a moment; answers how much it took.
pub async fn fill(tcp: &mut TcpStream) -> usize {
    let chunk = vec![7; 64 * 1024];
    let mut written = 0;
    while let Ok(result) = timeout(Duration::from_millis(300), tcp.write(&chunk)).await {
        written += result.unwrap();
    }
    written
}

/// Reads until the end or an error.
pub async fn read_all(tcp: &mut TcpStream) -> (Vec<u8>, std::io::Result<usize>) {
    let mut bytes = Vec::new();
    let result = timeout(LIMIT, tcp.read_to_end(&mut bytes)).await.unwrap();
    (bytes, result)
}
