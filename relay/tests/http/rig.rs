//! User, accepting end, tunnel, dialling end and resource in one process, joined by pipes.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::Method;
use sg_model::CanonicalPath;
use sg_relay::EndReason;
use sg_relay::http::{
    Forwarded, HttpOptions, HttpVersion, Refusal, Upstream, User, UserOptions, serve_stream,
    serve_user,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::pipe::{Pipe, pipe};

pub const SOON: Duration = Duration::from_secs(5);
const CAPACITY: usize = 64 * 1024;

/// What both ends of a chain share.
pub struct World {
    pub user: HttpVersion,
    pub resource: HttpVersion,
    pub forwarded: Forwarded,
    pub idle: Option<Duration>,
    pub head: Duration,
    /// Paths below this are forbidden; empty: nothing depends on paths.
    pub forbidden: &'static str,
    /// What connecting fails with, if it does.
    pub refused: Mutex<Option<&'static str>>,
    pub streams: AtomicUsize,
    pub connections: AtomicUsize,
    /// The dialling ends.
    pub dialling: Mutex<Vec<JoinHandle<EndReason>>>,
    resources: mpsc::UnboundedSender<Pipe>,
    pub drain: sg_runtime::shutdown::CancellationToken,
}

impl World {
    fn options(&self) -> HttpOptions {
        let mut options = HttpOptions::new(&"resource.test:8080".parse().unwrap(), false).unwrap();
        options.idle_timeout = self.idle;
        options.head_timeout = self.head;
        options.drain = self.drain.clone();
        options
    }

    fn permit(&self, method: &Method, target: &str) -> Result<Option<CanonicalPath>, Refusal> {
        if self.forbidden.is_empty() {
            return Ok(None);
        }
        let path = sg_relay::http::canonical(method, target)?;
        if path.as_str().starts_with(self.forbidden) {
            return Err(Refusal::of("acl-denied"));
        }
        Ok(Some(path))
    }
}

struct Opener(Arc<World>);
struct Connector(Arc<World>);

impl Upstream for Opener {
    type Io = Pipe;

    async fn connect(&self) -> Result<(Pipe, HttpVersion), Refusal> {
        let world = &self.0;
        world.streams.fetch_add(1, Ordering::Relaxed);
        let (near, far) = pipe(CAPACITY);
        let connector = Connector(Arc::clone(world));
        let (options, version) = (world.options(), world.user);
        let end = serve_stream(far, version, options, connector, None);
        world.dialling.lock().unwrap().push(tokio::spawn(end));
        Ok((near, version))
    }

    fn permit(&self, method: &Method, target: &str) -> Result<Option<CanonicalPath>, Refusal> {
        self.0.permit(method, target)
    }
}

impl Upstream for Connector {
    type Io = Pipe;

    async fn connect(&self) -> Result<(Pipe, HttpVersion), Refusal> {
        if let Some(word) = *self.0.refused.lock().unwrap() {
            return Err(Refusal::of(word));
        }
        self.0.connections.fetch_add(1, Ordering::Relaxed);
        let (near, far) = pipe(CAPACITY);
        self.0.resources.send(far).unwrap();
        Ok((near, self.0.resource))
    }

    fn permit(&self, method: &Method, target: &str) -> Result<Option<CanonicalPath>, Refusal> {
        self.0.permit(method, target)
    }
}

/// One user's connection and what is behind it.
pub struct Chain {
    pub user: Pipe,
    pub resources: mpsc::UnboundedReceiver<Pipe>,
    pub world: Arc<World>,
    pub served: JoinHandle<EndReason>,
}

pub struct Setup {
    pub user: HttpVersion,
    pub resource: HttpVersion,
    pub forwarded: Forwarded,
    pub idle: Option<Duration>,
    pub head: Duration,
    pub forbidden: &'static str,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            user: HttpVersion::Http1,
            resource: HttpVersion::Http1,
            forwarded: Forwarded::Set,
            idle: None,
            head: Duration::from_secs(30),
            forbidden: "",
        }
    }
}

impl Setup {
    pub fn start(self) -> Chain {
        let (resources, accepted) = mpsc::unbounded_channel();
        let world = Arc::new(World {
            user: self.user,
            resource: self.resource,
            forwarded: self.forwarded,
            idle: self.idle,
            head: self.head,
            forbidden: self.forbidden,
            refused: Mutex::new(None),
            streams: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            dialling: Mutex::default(),
            resources,
            drain: sg_runtime::shutdown::CancellationToken::new(),
        });
        let (user, near) = pipe(CAPACITY);
        let options = world.options();
        let user_options = UserOptions {
            forwarded: world.forwarded,
            user: User {
                address: "192.0.2.7".parse().unwrap(),
                tls: false,
            },
            meter: None,
        };
        let opener = Opener(Arc::clone(&world));
        let version = self.user;
        let served =
            tokio::spawn(
                async move { serve_user(near, version, options, user_options, opener).await },
            );
        Chain {
            user,
            resources: accepted,
            world,
            served,
        }
    }
}

impl Chain {
    pub fn http1() -> Self {
        Setup::default().start()
    }

    pub async fn resource(&mut self) -> Pipe {
        timeout(SOON, self.resources.recv())
            .await
            .expect("a connection in time")
            .expect("the chain stands")
    }

    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.user.write_all(bytes.as_ref()).await.unwrap();
    }

    pub async fn ended(self) -> EndReason {
        timeout(SOON, self.served)
            .await
            .expect("an end in time")
            .unwrap()
    }
}

/// Reads until `end` has come.
pub async fn read_until(pipe: &mut Pipe, end: &str) -> String {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&read).contains(end) {
        let count = timeout(SOON, pipe.read(&mut piece))
            .await
            .unwrap_or_else(|_| panic!("{end:?} in time, got {:?}", String::from_utf8_lossy(&read)))
            .unwrap();
        assert!(
            count > 0,
            "ended after {:?}",
            String::from_utf8_lossy(&read)
        );
        read.extend_from_slice(&piece[..count]);
    }
    String::from_utf8_lossy(&read).into_owned()
}

/// Reads to the end; `Err` tells of a reset, with what came before it.
pub async fn read_to_end(pipe: &mut Pipe) -> Result<String, String> {
    let mut read = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match timeout(SOON, pipe.read(&mut piece))
            .await
            .expect("an end in time")
        {
            Ok(0) => return Ok(String::from_utf8_lossy(&read).into_owned()),
            Ok(count) => read.extend_from_slice(&piece[..count]),
            Err(_) => return Err(String::from_utf8_lossy(&read).into_owned()),
        }
    }
}

/// A resource that answers every request with the head it got, until its connection ends.
pub async fn echo_heads(mut pipe: Pipe) {
    let mut read = Vec::new();
    let mut piece = [0; 4096];
    loop {
        let Ok(count @ 1..) = pipe.read(&mut piece).await else {
            return;
        };
        read.extend_from_slice(&piece[..count]);
        while let Some(end) = read.windows(4).position(|four| four == b"\r\n\r\n") {
            let head: Vec<u8> = read.drain(..end + 4).collect();
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", head.len());
            pipe.write_all(answer.as_bytes()).await.unwrap();
            pipe.write_all(&head).await.unwrap();
        }
    }
}
