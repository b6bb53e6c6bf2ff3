//! A network link of our own, in user space: it stands between two parts and carries TCP
//! connections at a rate, with a delay and a bounded queue, and it stalls, cuts or falls silent at
//! the byte or the moment that a test names. The kernels that tests run on often have no netem, and
//! none of them cuts a connection at byte N.
//!
//! It is no simulation of packets. TCP loses nothing here, it only waits: a stalled direction goes
//! on later with the very byte that is next, as TCP does after retransmission. What a link loses
//! for good is a connection, with [`Link::cut`] or a [`Cut`]. Datagrams have a link of their own,
//! [`UdpLink`], which does lose them.
//!
//! Start reading at [`Link`]. `shape` says what one direction does to bytes, `lane` does it to one
//! direction of one connection, `connection` joins two of them and ends them.

mod connection;
mod lane;
mod shape;
mod udp;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::SockRef;
use tokio::net::{TcpListener, TcpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;

use lane::Lane;
pub use shape::{Shape, parse_rate};
pub use udp::{UdpLink, UdpSetup};

/// Connections that a link holds at a time; more are reset.
const MOST_CONNECTIONS: usize = 8192;

/// A direction of the link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the side that connects to the link to its target.
    Up,
    /// From the target back.
    Down,
}

impl Direction {
    /// Both of them.
    pub const BOTH: [Self; 2] = [Self::Up, Self::Down];
}

/// How a connection is ended, towards both sides.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// RST. What the receiver's window had no room for is lost with it.
    Reset,
    /// FIN, after what has arrived. What still comes is thrown away.
    Fin,
    /// Nothing: both sides keep a connection on which nothing comes or goes any more.
    Silence,
}

/// When a connection is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// When exactly this many bytes have been delivered in this direction.
    Bytes(Direction, u64),
    /// This long after it was accepted.
    After(Duration),
}

/// The end that awaits one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// When it comes.
    pub when: When,
    /// How it looks.
    pub how: End,
}

/// What becomes of new connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Door {
    /// They are carried.
    #[default]
    Open,
    /// They are accepted and ended at once, like this.
    Shut(End),
}

/// How a link starts.
#[derive(Debug, Clone)]
pub struct LinkSetup {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// Where it leads.
    pub target: SocketAddr,
    /// What it does to bytes towards the target.
    pub up: Shape,
    /// What it does to bytes from the target.
    pub down: Shape,
    /// Decides jitter and the size of slices; the same seed, the same decisions.
    pub seed: u64,
    /// Awaits every connection that [`Link::cut_next`] has nothing for.
    pub cut_each: Option<Cut>,
}

impl LinkSetup {
    /// A link to `target` that does nothing to the bytes, on a loopback port of its own.
    #[must_use]
    pub fn to(target: SocketAddr) -> Self {
        Self {
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            target,
            up: Shape::default(),
            down: Shape::default(),
            seed: 1,
            cut_each: None,
        }
    }

    /// The same shape in both directions.
    #[must_use]
    pub fn shaped(mut self, shape: Shape) -> Self {
        self.up = shape;
        self.down = shape;
        self
    }
}

/// A running link. Its connections end with it, by reset or FIN as the system likes.
#[derive(Debug)]
pub struct Link {
    address: SocketAddr,
    state: Arc<State>,
    /// Ends with this value.
    _server: JoinSet<()>,
}

/// What the link's own tasks share with whoever controls it.
#[derive(Debug)]
struct State {
    target: SocketAddr,
    seed: u64,
    lanes: [Lane; 2],
    door: watch::Sender<Door>,
    /// Counts the commands to cut, with the last one.
    cut: watch::Sender<(u64, End)>,
    awaiting: Mutex<Awaiting>,
    open: AtomicUsize,
    accepted: AtomicU64,
}

/// Ends that await connections to come.
#[derive(Debug)]
struct Awaiting {
    next: VecDeque<Cut>,
    each: Option<Cut>,
}

impl State {
    fn lane(&self, direction: Direction) -> &Lane {
        let [up, down] = &self.lanes;
        match direction {
            Direction::Up => up,
            Direction::Down => down,
        }
    }

    fn awaiting(&self) -> std::sync::MutexGuard<'_, Awaiting> {
        self.awaiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Link {
    /// A link on a loopback port that does nothing to the bytes yet.
    ///
    /// # Errors
    /// There is no port.
    pub async fn start(target: SocketAddr) -> Result<Self> {
        Self::with(LinkSetup::to(target)).await
    }

    /// A link as `setup` says.
    ///
    /// # Errors
    /// Its address cannot be bound.
    pub async fn with(setup: LinkSetup) -> Result<Self> {
        let listener =
            listen(&setup).with_context(|| format!("port of the link, {}", setup.listen))?;
        let address = listener.local_addr().context("address of the link")?;
        let state = Arc::new(State {
            target: setup.target,
            seed: setup.seed,
            lanes: [Lane::new(setup.up), Lane::new(setup.down)],
            door: watch::Sender::default(),
            cut: watch::Sender::new((0, End::Reset)),
            awaiting: Mutex::new(Awaiting {
                next: VecDeque::new(),
                each: setup.cut_each,
            }),
            open: AtomicUsize::new(0),
            accepted: AtomicU64::new(0),
        });
        let mut server = JoinSet::new();
        server.spawn(accept(listener, Arc::clone(&state)));
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

    /// Does this to bytes from now on; those under way keep their time.
    pub fn shape(&self, direction: Direction, shape: Shape) {
        self.state.lane(direction).set_shape(shape);
    }

    /// Delivers each byte this much later from now on, in both directions.
    pub fn delay(&self, delay: Duration) {
        for direction in Direction::BOTH {
            self.state.lane(direction).set_delay(delay);
        }
    }

    /// Delivers nothing more in this direction, until [`Self::pass`]. What was under way waits. New
    /// connections wait too, since their handshake needs both directions.
    pub fn stall(&self, direction: Direction) {
        self.state.lane(direction).set_stalled(true);
    }

    /// Nothing goes in either direction, until [`Self::pass`] for both.
    pub fn black_hole(&self) {
        for direction in Direction::BOTH {
            self.stall(direction);
        }
    }

    /// Goes on in this direction where it stalled.
    pub fn pass(&self, direction: Direction) {
        self.state.lane(direction).set_stalled(false);
    }

    /// Goes on in both directions.
    pub fn pass_all(&self) {
        for direction in Direction::BOTH {
            self.pass(direction);
        }
    }

    /// Ends all connections that are open now.
    pub fn cut(&self, how: End) {
        self.state.cut.send_modify(|cut| *cut = (cut.0 + 1, how));
    }

    /// Says how the next connection ends; several calls stand for several connections, in order.
    pub fn cut_next(&self, cut: Cut) {
        self.state.awaiting().next.push_back(cut);
    }

    /// Says how every connection ends that comes from now on and that [`Self::cut_next`] has
    /// nothing for.
    pub fn cut_each(&self, cut: Option<Cut>) {
        self.state.awaiting().each = cut;
    }

    /// What becomes of connections that come from now on.
    pub fn door(&self, door: Door) {
        self.state.door.send_replace(door);
    }

    /// Connections that are open, those fallen silent included.
    #[must_use]
    pub fn open_connections(&self) -> usize {
        self.state.open.load(Ordering::Relaxed)
    }

    /// Connections that have come since the start.
    #[must_use]
    pub fn accepted_connections(&self) -> u64 {
        self.state.accepted.load(Ordering::Relaxed)
    }

    /// Bytes delivered in this direction since the start, over all connections.
    #[must_use]
    pub fn delivered(&self, direction: Direction) -> u64 {
        self.state.lane(direction).delivered()
    }
}

fn listen(setup: &LinkSetup) -> std::io::Result<TcpListener> {
    let socket = match setup.listen.is_ipv4() {
        true => TcpSocket::new_v4()?,
        false => TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    if setup.up.rate.is_some() {
        // Connections inherit it.
        SockRef::from(&socket).set_tcp_mss(connection::SEGMENT)?;
    }
    socket.bind(setup.listen)?;
    socket.listen(4096)
}

async fn accept(listener: TcpListener, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((near, _)) = listener.accept().await else {
            // Out of descriptors, or the connection is gone already: the next may be better.
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MOST_CONNECTIONS {
            drop(near.set_zero_linger());
            continue;
        }
        let number = state.accepted.fetch_add(1, Ordering::Relaxed);
        connections.spawn(connection::carry(near, Arc::clone(&state), number));
    }
}
