//! Serves plain HTTP/1.1 to whoever can connect, within limits: how many connections, how long a head may take and how
//! large it may be, how long a connection may live. The admin port and the control plane's HTTP port stand on it.
//!
//! What it is not: TLS, or HTTP of users; that is `sg-relay`. Start with [`serve`].

use std::io;
use std::pin::pin;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::net;
use crate::places::Places;
use crate::tasks::TaskPool;

/// What those who connect may take.
#[derive(Debug, Clone, Copy)]
pub struct HttpLimits {
    /// Connections at a time.
    pub connections: u32,
    /// The same of one address (a /64 of IPv6).
    pub per_address: u32,
    /// Time for the head of a request, and also until the next one begins.
    pub head_time: Duration,
    /// Longest head of a request, in bytes.
    pub head_size: usize,
    /// Life of a connection: no reader is so slow that it needs longer.
    pub life: Duration,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            connections: 256,
            per_address: 128,
            head_time: Duration::from_secs(10),
            head_size: 16 * 1024,
            life: Duration::from_secs(600),
        }
    }
}

/// Time for answers under way when the server or a connection ends.
const LAST_ANSWER: Duration = Duration::from_secs(2);
/// Pause after an accept that failed.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Serves until `end` is cancelled, then lets running answers finish for two seconds.
///
/// # Errors
/// The listener fails for good.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    limits: HttpLimits,
    end: CancellationToken,
) -> io::Result<()> {
    let places = Places::new(limits.connections, limits.per_address);
    let connections = TaskPool::new("HTTP connections", limits.connections as usize);
    loop {
        // Cancel safe: a connection that was not taken stays in the system's queue.
        let accepted = tokio::select! {
            biased;
            () = end.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let (tcp, remote) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if net::accept_error_is_transient(&error) => {
                tracing::warn!(%error, "an HTTP connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
            Err(error) => return Err(error),
        };
        let (Some(place), Ok(slot)) = (places.enter(remote.ip()), connections.reserve()) else {
            tracing::debug!(%remote, "too many HTTP connections; one is turned away");
            continue;
        };
        let (app, end) = (app.clone(), end.clone());
        slot.spawn(async move {
            connection(tcp, app, limits, end).await;
            drop(place);
        });
    }
    drop(listener);
    if !connections.wait_idle(LAST_ANSWER).await {
        connections.abort_all();
    }
    Ok(())
}

async fn connection(tcp: TcpStream, app: Router, limits: HttpLimits, end: CancellationToken) {
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_time)
        .max_buf_size(limits.head_size)
        .serve_connection(TokioIo::new(tcp), TowerToHyperService::new(app));
    let mut served = pin!(served);
    // Whatever goes wrong ends this connection and nothing else.
    tokio::select! {
        ended = served.as_mut() => return drop(ended),
        () = end.cancelled() => {}
        () = sleep(limits.life) => {}
    }
    served.as_mut().graceful_shutdown();
    drop(timeout(LAST_ANSWER, served).await);
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::time::Instant;

    use super::*;
    use crate::tasks::TaskGroup;

    const PATIENCE: Duration = Duration::from_secs(20);
    const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";

    async fn start(limits: HttpLimits) -> (SocketAddr, CancellationToken, TaskGroup) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let end = CancellationToken::new();
        let app = Router::new().route("/", get(async || "hello")).route(
            "/slow",
            get(async || {
                sleep(Duration::from_millis(300)).await;
                "late"
            }),
        );
        let mut tasks = TaskGroup::new();
        tasks.spawn("HTTP", serve(listener, app, limits, end.clone()));
        (address, end, tasks)
    }

    async fn rest(tcp: &mut TcpStream) -> Vec<u8> {
        let mut bytes = Vec::new();
        // An end or a reset: either way the server is done with it.
        drop(
            timeout(PATIENCE, tcp.read_to_end(&mut bytes))
                .await
                .unwrap(),
        );
        bytes
    }

    async fn answered(tcp: &mut TcpStream) -> bool {
        if tcp.write_all(REQUEST).await.is_err() {
            return false;
        }
        let mut start = [0; 15];
        let read = timeout(PATIENCE, tcp.read_exact(&mut start)).await.unwrap();
        read.is_ok() && &start == b"HTTP/1.1 200 OK"
    }

    #[tokio::test]
    async fn threat_12_one_address_has_so_many_connections_and_no_more() {
        let limits = HttpLimits {
            connections: 8,
            per_address: 4,
            ..HttpLimits::default()
        };
        let (address, _end, _tasks) = start(limits).await;
        let mut open = Vec::new();
        for _ in 0..4 {
            let mut tcp = TcpStream::connect(address).await.unwrap();
            assert!(answered(&mut tcp).await);
            open.push(tcp);
        }
        let mut more = TcpStream::connect(address).await.unwrap();
        assert!(!answered(&mut more).await);
        // Another address has places of its own.
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut other = socket.connect(address).await.unwrap();
        assert!(answered(&mut other).await);
        // Who leaves makes room.
        drop(open.pop());
        let again = async {
            loop {
                let mut tcp = TcpStream::connect(address).await.unwrap();
                if answered(&mut tcp).await {
                    return;
                }
            }
        };
        timeout(PATIENCE, again).await.unwrap();
    }

    #[tokio::test]
    async fn threat_12_a_head_has_a_time_and_a_size_and_a_connection_a_life() {
        let limits = HttpLimits {
            head_time: Duration::from_millis(200),
            head_size: 8 * 1024,
            ..HttpLimits::default()
        };
        let (address, _end, _tasks) = start(limits).await;
        let started = Instant::now();
        let mut slow = TcpStream::connect(address).await.unwrap();
        slow.write_all(b"GET / HTTP/1.1\r\nHost:").await.unwrap();
        let mut silent = TcpStream::connect(address).await.unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert!(answered(&mut idle).await);
        for tcp in [&mut slow, &mut silent, &mut idle] {
            rest(tcp).await;
        }
        assert!(started.elapsed() >= Duration::from_millis(200));

        let mut long = TcpStream::connect(address).await.unwrap();
        let head = format!("GET / HTTP/1.1\r\nX: {}\r\n\r\n", "x".repeat(64 * 1024));
        // It may be cut while it still speaks.
        drop(long.write_all(head.as_bytes()).await);
        let answer = String::from_utf8_lossy(&rest(&mut long).await).into_owned();
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 431"),
            "{answer}"
        );

        let short = HttpLimits {
            life: Duration::from_millis(100),
            ..HttpLimits::default()
        };
        let (address, _end, _tasks) = start(short).await;
        let mut tcp = TcpStream::connect(address).await.unwrap();
        assert!(answered(&mut tcp).await);
        rest(&mut tcp).await;
    }

    #[tokio::test]
    async fn an_answer_under_way_is_finished_at_the_end() {
        let (address, end, mut tasks) = start(HttpLimits::default()).await;
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"GET /slow HTTP/1.1\r\nHost: localhost\r\n\r\n")
            .await
            .unwrap();
        let mut idle = TcpStream::connect(address).await.unwrap();
        assert!(answered(&mut idle).await);
        end.cancel();
        assert!(rest(&mut tcp).await.ends_with(b"late"));
        rest(&mut idle).await;
        timeout(PATIENCE, tasks.join_next()).await.unwrap().unwrap();
    }
}
