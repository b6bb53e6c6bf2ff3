//! Connects to a resource: resolves its name, tries its addresses in turn with a short head start each,
//! and says in one word why it did not work. A resource behind a SOCKS proxy is reached the same way, with the proxy
//! in its place, and then asked for there.
//!
//! Start with [`Dial::run`].

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs as _};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sg_model::{Host, HostPort};
use sg_runtime::net;
use sg_tunnel_io::code;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{sleep, timeout};

use crate::socket::tune;
use crate::socks::{self, Socks, SocksError, Stage, Target};

/// Head start of an address before the next one is tried beside it.
const HEAD_START: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried.
const MOST_ADDRESSES: usize = 8;
/// Names that are resolved at a time. A place is held until the system has answered, also when nobody waits for
/// the answer any more: a resolver that hangs then occupies so many threads, and not all that the process has for
/// blocking work.
const MOST_LOOKUPS: usize = 64;
static LOOKUPS: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MOST_LOOKUPS)));

/// Why a resource could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// It refused the connection.
    #[error("connection refused")]
    Refused,
    /// No route to its host or network.
    #[error("no route to the host")]
    Unreachable,
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// Its name has no address.
    #[error("the name has no address")]
    NameUnknown,
    /// The addresses of the name are not permitted.
    #[error("none of its addresses is permitted")]
    NotPermitted,
    /// It is a port of this process, which would carry the user's bytes round and round.
    #[error("the resource is a port of this process itself")]
    Loop,
    /// This machine is to blame: out of descriptors, ports or memory.
    #[error("this machine cannot connect: {0}")]
    Local(#[source] io::Error),
    /// The proxy before it did not help.
    #[error(transparent)]
    Socks(#[from] SocksError),
}

impl DialError {
    /// The reset code that tells the far side.
    #[must_use]
    pub fn code(&self) -> u32 {
        match self {
            Self::Refused => code::REFUSED,
            Self::Unreachable => code::UNREACHABLE,
            Self::Timeout => code::CONNECT_TIMEOUT,
            Self::NameUnknown => code::NAME_UNKNOWN,
            Self::NotPermitted => code::ACL_DENIED,
            Self::Loop => code::LOOP,
            // Nothing was done for the stream, and another machine may well be able to.
            Self::Local(_) => code::REFUSED_RETRY,
            Self::Socks(error) => error.code(),
        }
    }

    /// The word for logs and metrics.
    #[must_use]
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Local(_) => "local-error",
            _ => code::word(self.code()),
        }
    }

    /// Sorts what `connect` answers.
    pub(crate) fn from_connect(error: io::Error) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused | K::ConnectionReset => Self::Refused,
            // A firewall on this machine answers with "not permitted".
            K::HostUnreachable
            | K::NetworkUnreachable
            | K::NetworkDown
            | K::PermissionDenied
            | K::InvalidInput => Self::Unreachable,
            K::TimedOut => Self::Timeout,
            _ => Self::Local(error),
        }
    }

    /// Sorts what the resolver answers. Its own errors have no number; one with a number is the system's, and one
    /// of kind `Other` is ours.
    fn from_lookup(error: io::Error) -> Self {
        if error.raw_os_error().is_some() || error.kind() == io::ErrorKind::Other {
            Self::Local(error)
        } else {
            Self::NameUnknown
        }
    }

    /// Whether another address of the resource may do better.
    fn of_resource(&self) -> bool {
        use SocksError as S;
        match self {
            Self::Socks(error) => matches!(
                error,
                S::Refused(_) | S::ResourceRefused | S::ResourceUnreachable
            ),
            _ => false,
        }
    }

    /// How much it says about the resource: of several addresses, the most telling failure is reported.
    pub(crate) fn weight(&self) -> u8 {
        match self {
            Self::Refused | Self::Loop | Self::Socks(_) => 5,
            Self::Timeout => 4,
            Self::Unreachable => 3,
            // As for an address of a family that this machine does not have.
            Self::Local(_) => 2,
            Self::NotPermitted => 1,
            Self::NameUnknown => 0,
        }
    }
}

/// Which addresses may be connected to.
pub type Permit<'a> = dyn Fn(&IpAddr) -> bool + Send + Sync + 'a;

/// A connection to be made.
#[derive(Clone, Copy)]
pub struct Dial<'a> {
    /// Where to.
    pub resource: &'a HostPort,
    /// How long it may take, name resolution included.
    pub limit: Duration,
    /// Which addresses of the resource may be tried. It is not asked about a name that a SOCKS proxy resolves: nobody
    /// here learns the address then, and the name is all that can be decided by.
    pub permit: &'a Permit<'a>,
    /// The proxy on the way.
    pub via: Option<Via<'a>>,
    /// For [`tune`].
    pub keepalive: Option<Duration>,
}

/// A SOCKS proxy on the way to a resource.
#[derive(Clone, Copy)]
pub struct Via<'a> {
    /// The proxy.
    pub socks: &'a Socks,
    /// Which addresses of the proxy may be tried.
    pub permit: &'a Permit<'a>,
}

/// A connection that was made. Its options are set.
#[derive(Debug)]
pub struct Dialled {
    /// The connection.
    pub tcp: TcpStream,
    /// The resource's address; `None`: only a proxy knows it.
    pub address: Option<IpAddr>,
}

/// Connects to `resource` itself, as [`Dial::run`] does.
///
/// # Errors
/// [`DialError`].
pub async fn dial(
    resource: &HostPort,
    limit: Duration,
    permit: impl Fn(&IpAddr) -> bool + Send + Sync,
) -> Result<TcpStream, DialError> {
    let dial = Dial {
        resource,
        limit,
        permit: &permit,
        via: None,
        keepalive: None,
    };
    dial.run().await.map(|dialled| dialled.tcp)
}

impl Dial<'_> {
    /// Connects.
    ///
    /// # Errors
    /// [`DialError`].
    pub async fn run(self) -> Result<Dialled, DialError> {
        let Some(via) = self.via else {
            return timeout(self.limit, self.directly())
                .await
                .unwrap_or(Err(DialError::Timeout));
        };
        let mut stage = Stage::default();
        // Boxed, so that those without a proxy do not need the room for it.
        let attempt = timeout(self.limit, Box::pin(self.through(via, &mut stage))).await;
        attempt.unwrap_or_else(|_| match stage {
            Stage::Greeting => Err(SocksError::Timeout.into()),
            Stage::Asked => Err(DialError::Timeout),
        })
    }

    async fn directly(&self) -> Result<Dialled, DialError> {
        let permitted = permitted(self.resource, self.permit).await?;
        let (tcp, address) = race(interleave(permitted), self.keepalive).await?;
        let address = Some(address.ip());
        Ok(Dialled { tcp, address })
    }

    async fn through(&self, via: Via<'_>, stage: &mut Stage) -> Result<Dialled, DialError> {
        match self.resource.host() {
            Host::Name(name) if via.socks.version.resolves() => {
                let target = Target::Name(name, self.resource.port());
                let tcp = self.ask(via, target, stage).await?;
                return Ok(Dialled { tcp, address: None });
            }
            Host::Name(_) | Host::Ip(_) => {}
        }
        let mut addresses = interleave(permitted(self.resource, self.permit).await?);
        if !via.socks.version.carries_v6() && addresses.iter().any(SocketAddr::is_ipv4) {
            addresses.retain(SocketAddr::is_ipv4);
        }
        // One after the other: each is a connection to the proxy, and it is the proxy that has to wait.
        let mut telling = DialError::NotPermitted;
        for address in addresses {
            *stage = Stage::default();
            match self.ask(via, Target::Address(address), stage).await {
                Ok(tcp) => {
                    let address = Some(address.ip());
                    return Ok(Dialled { tcp, address });
                }
                Err(error) if error.of_resource() => telling = error,
                Err(error) => return Err(error),
            }
        }
        Err(telling)
    }

    /// Connects to the proxy and has it connect to `target`.
    async fn ask(
        &self,
        via: Via<'_>,
        target: Target<'_>,
        stage: &mut Stage,
    ) -> Result<TcpStream, DialError> {
        let found = permitted(&via.socks.address, via.permit).await;
        let connected = match found {
            Ok(found) => race(interleave(found), self.keepalive).await,
            Err(error) => Err(error),
        };
        let (mut tcp, _) = connected.map_err(|error| match error {
            DialError::Refused => SocksError::Unreachable("it refused the connection").into(),
            DialError::Unreachable => SocksError::Unreachable("no route to its host").into(),
            DialError::NameUnknown => SocksError::Unreachable("its name has no address").into(),
            DialError::Timeout => SocksError::Timeout.into(),
            DialError::NotPermitted
            | DialError::Loop
            | DialError::Local(_)
            | DialError::Socks(_) => error,
        })?;
        socks::handshake(&mut tcp, via.socks, target, stage).await?;
        Ok(tcp)
    }
}

impl fmt::Debug for Dial<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dial")
            .field("resource", self.resource)
            .field("limit", &self.limit)
            .field("via", &self.via)
            .field("keepalive", &self.keepalive)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Via<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.socks.fmt(f)
    }
}

async fn permitted(host: &HostPort, permit: &Permit<'_>) -> Result<Vec<SocketAddr>, DialError> {
    let mut found = resolve(host).await?;
    found.retain(|address| permit(&address.ip()));
    Ok(found)
}

/// The addresses of a resource, as the resolver orders them.
pub(crate) async fn resolve(resource: &HostPort) -> Result<Vec<SocketAddr>, DialError> {
    let port = resource.port();
    let name = match resource.host() {
        Host::Ip(ip) => return Ok(vec![SocketAddr::new(*ip, port)]),
        Host::Name(name) => name.as_str(),
    };
    let asked = name.to_owned();
    let lookup = move || look_up(&asked, port);
    #[cfg(test)]
    let lookup = {
        let double = tests::DOUBLE.try_with(Arc::clone).ok();
        move || double.map_or_else(lookup, |double| double.answer(port))
    };
    let found: Vec<_> = in_place(&LOOKUPS, lookup).await.map_err(|error| {
        tracing::debug!(name, %error, "name not resolved");
        DialError::from_lookup(error)
    })?;
    if found.is_empty() {
        return Err(DialError::NameUnknown);
    }
    Ok(found)
}

fn look_up(name: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    (name, port).to_socket_addrs().map(Iterator::collect)
}

/// Runs a lookup, which cannot be interrupted, in one of these places; it keeps the place until it returns, whether
/// or not somebody still waits for it.
async fn in_place<T: Send + 'static>(
    places: &Arc<Semaphore>,
    lookup: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let place = Arc::clone(places)
        .acquire_owned()
        .await
        .expect("invariant: the semaphore is never closed");
    let task = spawn_blocking(move || {
        let found = lookup();
        drop(place);
        found
    });
    task.await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Alternates the families, beginning with the resolver's favourite, without repetitions.
pub(crate) fn interleave(mut found: Vec<SocketAddr>) -> VecDeque<SocketAddr> {
    if found.len() <= 1 {
        return found.into();
    }
    let mut seen = std::collections::HashSet::new();
    found.retain(|address| seen.insert(*address));
    let first_is_v6 = found.first().is_some_and(SocketAddr::is_ipv6);
    let (favourite, other): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|a| a.is_ipv6() == first_is_v6);
    let (mut favourite, mut other) = (favourite.into_iter(), other.into_iter());
    let mut order = VecDeque::new();
    while order.len() < MOST_ADDRESSES {
        let before = order.len();
        order.extend(favourite.next());
        order.extend(other.next());
        if order.len() == before {
            break;
        }
    }
    order
}

async fn race(
    mut addresses: VecDeque<SocketAddr>,
    keepalive: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), DialError> {
    // Most resources have one address, and then there is no race.
    if addresses.len() == 1
        && let Some(only) = addresses.pop_front()
    {
        return connect(only, keepalive).await;
    }
    let mut attempts = FuturesUnordered::new();
    let mut telling = DialError::NotPermitted;
    loop {
        if let Some(address) = addresses.pop_front() {
            attempts.push(connect(address, keepalive));
        } else if attempts.is_empty() {
            return Err(telling);
        }
        let head_start = async {
            if addresses.is_empty() {
                std::future::pending::<()>().await;
            }
            sleep(HEAD_START).await;
        };
        tokio::select! {
            Some(result) = attempts.next() => match result {
                Ok(connected) => return Ok(connected),
                Err(error) if error.weight() >= telling.weight() => telling = error,
                Err(_) => {}
            },
            () = head_start => {}
        }
    }
}

async fn connect(
    address: SocketAddr,
    keepalive: Option<Duration>,
) -> Result<(TcpStream, SocketAddr), DialError> {
    let tcp = net::connect_tcp(address)
        .await
        .map_err(DialError::from_connect)?;
    // A connection to a free port of this machine can be answered by itself, when the system happens to give it
    // that very port.
    if tcp.local_addr().is_ok_and(|local| local == address) {
        return Err(DialError::Refused);
    }
    tune(&tcp, keepalive).map_err(|_| DialError::Refused)?;
    Ok((tcp, address))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::atomic::{AtomicUsize, Ordering};

    use sg_model::{AclFile, Scope};
    use tokio::net::TcpListener;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(5);

    tokio::task_local! {
        /// Answers instead of the system's resolver.
        pub(super) static DOUBLE: Arc<Double>;
    }

    /// A resolver that gives one answer after the other, as with a time to live of 0.
    pub(super) struct Double {
        answers: Vec<Vec<IpAddr>>,
        asked: AtomicUsize,
    }

    impl Double {
        pub(super) fn answer(&self, port: u16) -> io::Result<Vec<SocketAddr>> {
            let number = self.asked.fetch_add(1, Ordering::Relaxed);
            let answer = &self.answers[number % self.answers.len()];
            Ok(answer.iter().map(|ip| SocketAddr::new(*ip, port)).collect())
        }
    }

    /// Row 10: a name that is allowed leads nowhere that is not. It is asked for once for each dial, and what was
    /// decided on is what is dialled.
    #[tokio::test]
    async fn threat_10_a_name_that_changes_its_address_leads_nowhere_else() {
        let good = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = good.local_addr().unwrap().port();
        let bad = TcpListener::bind(("127.0.0.66", port)).await.unwrap();
        let bad_v6 = TcpListener::bind(("::1", port)).await.ok();
        let (good_ip, bad_ip) = ("127.0.0.1".parse().unwrap(), "127.0.0.66".parse().unwrap());
        let mapped: IpAddr = "::ffff:127.0.0.66".parse().unwrap();
        let (bad_six, metadata): (IpAddr, IpAddr) =
            ("::1".parse().unwrap(), "169.254.169.254".parse().unwrap());
        let list = "acl allow db.example:\nacl deny 127.0.0.66:\nacl deny [::1]:";
        let acl = AclFile::parse(list).unwrap().acl;
        let answers = vec![
            vec![good_ip],
            vec![bad_ip],
            vec![bad_ip, good_ip],
            vec![mapped],
            vec![bad_six, mapped, good_ip],
            vec![metadata],
            vec![bad_six],
            vec![metadata, bad_six, bad_ip, mapped],
        ];
        let reachable: Vec<bool> = answers.iter().map(|all| all.contains(&good_ip)).collect();
        let double = Arc::new(Double {
            answers,
            asked: AtomicUsize::new(0),
        });
        let resource: HostPort = format!("db.example:{port}").parse().unwrap();
        let dials = async {
            for round in 0..80 {
                let permit = |ip: &IpAddr| acl.allows_address(&resource, *ip, Scope::Stream);
                let dialled = dial(&resource, LIMIT, permit).await;
                match (dialled, reachable[round % reachable.len()]) {
                    (Ok(tcp), true) => assert_eq!(tcp.peer_addr().unwrap().ip(), good_ip),
                    (Err(error), false) => assert_eq!(error.code(), code::ACL_DENIED),
                    (other, expected) => panic!("round {round}: {other:?}, not {expected}"),
                }
            }
        };
        DOUBLE.scope(Arc::clone(&double), dials).await;
        assert_eq!(
            double.asked.load(Ordering::Relaxed),
            80,
            "once for each dial"
        );
        let nobody = async |listener: TcpListener| {
            timeout(Duration::from_millis(20), listener.accept())
                .await
                .is_err()
        };
        assert!(nobody(bad).await);
        if let Some(bad_v6) = bad_v6 {
            assert!(nobody(bad_v6).await);
        }
    }

    async fn to(text: &str) -> Result<TcpStream, DialError> {
        dial(&text.parse().unwrap(), LIMIT, |_| true).await
    }

    #[tokio::test]
    async fn a_listener_is_reached_by_address_and_by_name() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        for host in ["127.0.0.1", "localhost"] {
            let tcp = to(&format!("{host}:{port}")).await.unwrap();
            assert!(tcp.nodelay().unwrap());
            assert_eq!(tcp.peer_addr().unwrap().port(), port);
        }
    }

    #[tokio::test]
    async fn a_closed_port_refuses() {
        let port = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        let error = to(&format!("127.0.0.1:{port}")).await.unwrap_err();
        assert_eq!((error.as_str(), error.code()), ("refused", code::REFUSED));
    }

    #[tokio::test]
    async fn an_unknown_name_says_so() {
        let error = to("does-not-exist.invalid:80").await.unwrap_err();
        assert_eq!(
            (error.as_str(), error.code()),
            ("name-unknown", code::NAME_UNKNOWN)
        );
    }

    #[test]
    fn what_the_system_answers_is_sorted() {
        let word = |kind: io::ErrorKind| DialError::from_connect(kind.into()).as_str();
        assert_eq!(word(io::ErrorKind::HostUnreachable), "unreachable");
        assert_eq!(word(io::ErrorKind::NetworkUnreachable), "unreachable");
        assert_eq!(word(io::ErrorKind::TimedOut), "connect-timeout");
        let local = DialError::from_connect(io::ErrorKind::AddrNotAvailable.into());
        assert_eq!(
            (local.as_str(), local.code()),
            ("local-error", code::REFUSED_RETRY)
        );
        // An address of a family that is missing says less than one that refused.
        assert!(local.weight() < DialError::Refused.weight());
        let exhausted = DialError::from_lookup(io::Error::from_raw_os_error(24));
        assert_eq!(exhausted.as_str(), "local-error");
    }

    #[tokio::test]
    async fn a_silent_resource_is_a_timeout() {
        // A listener whose queue is full does not answer.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&any.into()).unwrap();
        socket.listen(0).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        let _first = TcpStream::connect(address).await.unwrap();
        let resource: HostPort = address.to_string().parse().unwrap();
        let started = std::time::Instant::now();
        let error = dial(&resource, Duration::from_millis(200), |_| true)
            .await
            .unwrap_err();
        assert_eq!(error.as_str(), "connect-timeout");
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn addresses_that_are_not_permitted_are_not_tried() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let resource: HostPort = listener.local_addr().unwrap().to_string().parse().unwrap();
        let error = dial(&resource, LIMIT, |ip| !ip.is_loopback())
            .await
            .unwrap_err();
        assert_eq!(error.code(), code::ACL_DENIED);
    }

    #[tokio::test]
    async fn a_lookup_that_nobody_waits_for_keeps_its_place() {
        let places = Arc::new(Semaphore::new(1));
        let (answer, hangs) = std::sync::mpsc::sync_channel::<()>(1);
        let lookup = move || hangs.recv().map_err(io::Error::other);
        let given_up = timeout(Duration::from_millis(50), in_place(&places, lookup)).await;
        assert!(given_up.is_err());
        assert_eq!(places.available_permits(), 0);
        answer.send(()).unwrap();
        let next = timeout(LIMIT, in_place(&places, || Ok(7))).await;
        assert_eq!(next.unwrap().unwrap(), 7);
    }

    #[test]
    fn families_take_turns() {
        let parse = |text: &str| text.parse::<SocketAddr>().unwrap();
        let order = interleave(
            ["[::1]:1", "[::2]:1", "[::1]:1", "1.1.1.1:1", "2.2.2.2:1"]
                .map(parse)
                .to_vec(),
        );
        assert_eq!(
            Vec::from(order),
            ["[::1]:1", "1.1.1.1:1", "[::2]:1", "2.2.2.2:1"].map(parse)
        );
    }
}
