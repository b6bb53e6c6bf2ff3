//! A link for datagrams: they are lost, delayed, and overtake each other where there is jitter.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::lane::{below, jitter};
use super::shape::{Sender, Shape};
use crate::bytes::Sequence;

/// Peers that a link serves at a time; datagrams of more are lost.
const MOST_PEERS: usize = 1024;

/// Datagrams under way of one peer and direction; more are lost.
const MOST_UNDER_WAY: usize = 4096;

/// Longest datagram.
const LONGEST: usize = 65_535;

/// How a link for datagrams starts.
#[derive(Debug, Clone)]
pub struct UdpSetup {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where it leads.
    pub target: SocketAddr,
    /// What each direction does. Beyond `queue` bytes that wait to be sent, datagrams are lost.
    pub shape: Shape,
    /// Datagrams that are lost, of a million, by the seed.
    pub loss: u32,
    /// Decides losses and jitter.
    pub seed: u64,
}

impl UdpSetup {
    /// A link to `target` that loses nothing, on a loopback port of its own.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            target,
            shape: Shape::default(),
            loss: 0,
            seed: 1,
        }
    }
}

/// A running link for datagrams.
#[derive(Debug)]
pub struct UdpLink {
    address: SocketAddr,
    state: Arc<State>,
    /// Ends with this value.
    _server: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    setup: UdpSetup,
    silent: watch::Sender<bool>,
    senders: [Mutex<Sender>; 2],
    delivered: AtomicU64,
    lost: AtomicU64,
}

impl UdpLink {
    /// A link as `setup` says.
    ///
    /// # Errors
    /// Its address cannot be bound.
    pub async fn start(setup: UdpSetup) -> Result<Self> {
        let socket = UdpSocket::bind(setup.listen)
            .await
            .with_context(|| format!("port of the link, {}", setup.listen))?;
        let address = socket.local_addr().context("address of the link")?;
        let state = Arc::new(State {
            setup,
            silent: watch::Sender::new(false),
            senders: [Mutex::new(Sender::new()), Mutex::new(Sender::new())],
            delivered: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        });
        let mut server = JoinSet::new();
        server.spawn(serve(Arc::new(socket), Arc::clone(&state)));
        Ok(Self {
            address,
            state,
            _server: server,
        })
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Loses everything from now on, or nothing more than its setup says.
    pub fn black_hole(&self, silent: bool) {
        self.state.silent.send_replace(silent);
    }

    /// Datagrams delivered since the start, both directions together.
    #[must_use]
    pub fn delivered(&self) -> u64 {
        self.state.delivered.load(Ordering::Relaxed)
    }

    /// Datagrams lost since the start.
    #[must_use]
    pub fn lost(&self) -> u64 {
        self.state.lost.load(Ordering::Relaxed)
    }
}

/// Takes what peers send, and starts the two directions of each new one.
async fn serve(socket: Arc<UdpSocket>, state: Arc<State>) {
    let mut peers: HashMap<SocketAddr, mpsc::Sender<Vec<u8>>> = HashMap::new();
    let mut tasks = JoinSet::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        // An error is about a datagram sent before, whose peer is gone.
        let Ok((count, peer)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        while tasks.try_join_next().is_some() {}
        let datagram = buffer.get(..count).unwrap_or_default().to_vec();
        if !peers.contains_key(&peer) && peers.len() < MOST_PEERS {
            let (sender, receiver) = mpsc::channel(MOST_UNDER_WAY);
            let number = peers.len() as u64;
            peers.insert(peer, sender);
            let (socket, state) = (Arc::clone(&socket), Arc::clone(&state));
            tasks.spawn(async move { drop(flow(socket, peer, receiver, state, number).await) });
        }
        let taken = peers
            .get(&peer)
            .is_some_and(|flow| flow.try_send(datagram).is_ok());
        if !taken {
            state.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Both directions of one peer.
async fn flow(
    near: Arc<UdpSocket>,
    peer: SocketAddr,
    from_peer: mpsc::Receiver<Vec<u8>>,
    state: Arc<State>,
    number: u64,
) -> std::io::Result<()> {
    let any: SocketAddr = match state.setup.target.is_ipv4() {
        true => (Ipv4Addr::UNSPECIFIED, 0).into(),
        false => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let far = UdpSocket::bind(any).await?;
    far.connect(state.setup.target).await?;
    let [up, down] = &state.senders;
    let (received, from_target) = mpsc::channel(MOST_UNDER_WAY);
    let receive = async {
        let mut buffer = vec![0; LONGEST];
        loop {
            // Refused once does not mean refused for ever: the target may be started again.
            let Ok(count) = far.recv(&mut buffer).await else {
                continue;
            };
            let datagram = buffer.get(..count).unwrap_or_default().to_vec();
            if received.try_send(datagram).is_err() {
                state.lost.fetch_add(1, Ordering::Relaxed);
            }
        }
    };
    let seed = |salt| Sequence::new(state.setup.seed.wrapping_add(2 * number + salt));
    tokio::join!(
        receive,
        travel(&state, up, from_peer, Exit::Target(&far), seed(0)),
        travel(&state, down, from_target, Exit::Peer(&near, peer), seed(1)),
    );
    Ok(())
}

/// Where a direction ends.
#[derive(Clone, Copy)]
enum Exit<'a> {
    Target(&'a UdpSocket),
    Peer(&'a UdpSocket, SocketAddr),
}

impl Exit<'_> {
    async fn deliver(self, datagram: &[u8]) -> std::io::Result<usize> {
        match self {
            Self::Target(socket) => socket.send(datagram).await,
            Self::Peer(socket, peer) => socket.send_to(datagram, peer).await,
        }
    }
}

/// Delivers each datagram at its time, or not at all.
async fn travel(
    state: &State,
    sender: &Mutex<Sender>,
    mut coming: mpsc::Receiver<Vec<u8>>,
    exit: Exit<'_>,
    mut random: Sequence,
) {
    let shape = state.setup.shape;
    let mut under_way: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>> = BinaryHeap::new();
    let mut number = 0;
    loop {
        let next = under_way.peek().map(|Reverse((at, _, _))| *at);
        tokio::select! {
            datagram = coming.recv() => {
                let Some(datagram) = datagram else { return };
                number += 1;
                let lost = below(&mut random, 1_000_000) < state.setup.loss as usize;
                let extra = jitter(&mut random, shape.jitter);
                let full = under_way.len() >= MOST_UNDER_WAY;
                match leaves(sender, &shape, datagram.len()) {
                    Some(left) if !lost && !full => {
                        under_way.push(Reverse((left + shape.delay + extra, number, datagram)));
                    }
                    _ => {
                        state.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                let Some(Reverse((_, _, datagram))) = under_way.pop() else { continue };
                let sent = !*state.silent.borrow() && exit.deliver(&datagram).await.is_ok();
                let count = if sent { &state.delivered } else { &state.lost };
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// When a datagram has left the sender; `None` when its queue is full.
fn leaves(sender: &Mutex<Sender>, shape: &Shape, bytes: usize) -> Option<Instant> {
    let mut sender = sender.lock().unwrap_or_else(PoisonError::into_inner);
    let now = std::time::Instant::now();
    if sender.waits(now) > shape.sending(shape.queue) {
        return None;
    }
    Some(sender.send(now, shape, bytes).into())
}
