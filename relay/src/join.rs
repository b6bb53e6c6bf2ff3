//! The bytes of one connection: its local end, which is a TCP connection with or without TLS, and a stream of a
//! tunnel, joined until both directions have ended, or one side fails.
//!
//! How ends travel, either way:
//!
//! | on one side | on the other |
//! |---|---|
//! | FIN of one direction | FIN of that direction, after its bytes; the other direction goes on |
//! | TLS: `close_notify`, or an end of the connection without it | FIN of that direction |
//! | RST of the TCP connection | RESET `PEER_RESET` of the stream, at once |
//! | TLS: an alert, a broken record | RESET with a code of TLS, at once |
//! | RESET of the stream, loss of the tunnel | RST of the TCP connection, at once |
//! | idle time over, [`StreamEnd`] | both |
//!
//! With TLS a FIN of the stream becomes `close_notify` and a FIN of the connection.
//!
//! Both kinds of reset are noticed while a direction is blocked or nobody reads; an alert, too, unless there are
//! more than 16 KiB in front of it. The socket is read only
//! when the stream can take bytes, so a slow far side stops the near one by TCP's own window, and an
//! idle stream holds no buffer.

mod from_tcp;
pub(crate) mod idle;
mod layer;
mod to_tcp;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use sg_runtime::gate::Gate;
use sg_tunnel_io::{StreamError, TunnelStream, code};
use tokio::net::TcpStream;
use tokio_util::either::Either;

use crate::carrier::Carrier;
use crate::compress::{Compressed, Grant};
use crate::local::Local;
use crate::socket::{ResetOnDrop, socket_error};
use crate::{ByteCounters, StreamEnd};
use from_tcp::FromTcp;
use idle::Idle;
use layer::{Layer, Raw, Tls};
use to_tcp::ToTcp;

/// What a joined stream is subject to.
#[derive(Debug, Default)]
pub struct JoinOptions {
    /// Ends the stream when no byte has passed for so long; `None`: never.
    pub idle_timeout: Option<Duration>,
    /// Where bytes are counted.
    pub counters: Arc<ByteCounters>,
    /// Lets somebody else end the stream.
    pub end: StreamEnd,
    /// Compresses the stream's bytes, as both ends have agreed.
    pub compression: Option<Grant>,
}

/// What passed and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Bytes of the local end into the tunnel; with TLS those inside of it.
    pub from_tcp: u64,
    /// Bytes from the tunnel to the local end.
    pub to_tcp: u64,
    /// How it ended.
    pub reason: EndReason,
}

/// How a joined stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EndReason {
    /// Both directions ended with FIN.
    Finished,
    /// The TCP connection was reset, or failed.
    TcpReset,
    /// The far side reset the stream.
    StreamReset(u32),
    /// The tunnel ended.
    TunnelLost,
    /// No byte passed for the idle time.
    IdleTimeout,
    /// Ended on this side with this code: from outside, or because it cannot go on.
    Ended(u32),
}

impl EndReason {
    /// The word for the access line.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Finished => "finished",
            Self::TcpReset => "tcp-reset",
            Self::TunnelLost => "tunnel-lost",
            Self::IdleTimeout => "idle-timeout",
            Self::StreamReset(code) | Self::Ended(code) => code::word(code),
        }
    }
}

impl From<StreamError> for EndReason {
    fn from(error: StreamError) -> Self {
        match error {
            StreamError::Reset { code } => Self::StreamReset(code),
            StreamError::Lost(_) => Self::TunnelLost,
        }
    }
}

/// Relays until both directions have ended or one side has failed; then both sides are closed, the way the
/// table above says. Dropping the future resets both, even before it has run.
pub fn join(
    local: impl Into<Local>,
    stream: TunnelStream,
    options: JoinOptions,
) -> impl Future<Output = Ended> + Send {
    let mut options = options;
    // Boxed where it is more than bytes as they are, so that a stream of such keeps no room for it.
    match (local.into(), options.compression.take()) {
        (Local::Tcp(raw), None) => Either::Left(run(raw.tcp, Raw::new(raw.front), stream, options)),
        (Local::Tcp(raw), Some(grant)) => {
            let stream = Compressed::new(stream, grant);
            boxed(run(raw.tcp, Raw::new(raw.front), stream, options))
        }
        (Local::Tls(tls), None) => {
            let (tcp, engine) = tls.into_parts();
            boxed(run(tcp, Tls::new(engine), stream, options))
        }
        (Local::Tls(tls), Some(grant)) => {
            let (tcp, engine) = tls.into_parts();
            let stream = Compressed::new(stream, grant);
            boxed(run(tcp, Tls::new(engine), stream, options))
        }
    }
}

fn boxed<F>(run: impl Future<Output = Ended> + Send + 'static) -> Either<F, BoxedRun> {
    Either::Right(Box::pin(run))
}

type BoxedRun = Pin<Box<dyn Future<Output = Ended> + Send>>;

#[allow(
    clippy::manual_async_fn,
    reason = "an asynchronous function keeps room for its arguments twice"
)]
fn run(
    mut tcp: ResetOnDrop,
    mut layer: impl Layer + 'static,
    mut stream: impl Carrier + 'static,
    options: JoinOptions,
) -> impl Future<Output = Ended> + Send {
    async move {
        let reason = relay(tcp.tcp_mut(), &mut layer, &mut stream, &options).await;
        match reason {
            EndReason::Finished => {
                tcp.close();
            }
            EndReason::TcpReset => {
                stream.reset(code::PEER_RESET);
                tcp.reset();
            }
            EndReason::IdleTimeout => {
                stream.reset(code::IDLE_TIMEOUT);
                tcp.reset();
            }
            EndReason::Ended(code) => {
                stream.reset(code);
                tcp.reset();
            }
            EndReason::StreamReset(_) | EndReason::TunnelLost => {
                tcp.reset();
            }
        }
        Ended {
            from_tcp: options.counters.from_tcp(),
            to_tcp: options.counters.to_tcp(),
            reason,
        }
    }
}

async fn relay(
    tcp: &mut TcpStream,
    layer: &mut impl Layer,
    stream: &mut impl Carrier,
    options: &JoinOptions,
) -> EndReason {
    let (mut reader, writer) = tcp.split();
    let tcp: &TcpStream = writer.as_ref();
    let counters = &*options.counters;
    let mut ended = pin!(options.end.ended());
    let mut failed = pin!(socket_error(tcp));
    let mut idle = Idle::new(options.idle_timeout);
    let (mut up, mut up_ended) = (FromTcp::default(), false);
    let (mut down, mut down_ended) = (ToTcp::default(), false);
    // Each part has a waker of its own: most wake-ups concern one direction, and asking the other one and
    // what ends the stream would cost more than the bytes.
    let (mut end_gate, mut up_gate, mut down_gate) = (Gate::new(), Gate::new(), Gate::new());

    poll_fn(|cx| {
        // What ends the stream comes first, so that it is never starved by a busy direction.
        if let Some(waker) = end_gate.open(cx) {
            let cx = &mut Context::from_waker(&waker);
            if let Poll::Ready(code) = ended.as_mut().poll(cx) {
                return Poll::Ready(EndReason::Ended(code));
            }
            if let Poll::Ready(error) = failed.as_mut().poll(cx) {
                tracing::trace!(%error, "connection failed");
                return Poll::Ready(EndReason::TcpReset);
            }
            if let Poll::Ready(error) = stream.poll_reset(cx) {
                return Poll::Ready(error.into());
            }
        }
        if let Some(waker) = up_gate.open(cx).filter(|_| !up_ended) {
            let cx = &mut Context::from_waker(&waker);
            match up.poll(cx, layer, &mut reader, stream, counters) {
                Poll::Ready(Ok(())) => up_ended = true,
                Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                Poll::Pending => {}
            }
        }
        if let Some(waker) = down_gate.open(cx).filter(|_| !down_ended) {
            let cx = &mut Context::from_waker(&waker);
            match down.poll(cx, layer, tcp, stream, counters) {
                Poll::Ready(Ok(())) => down_ended = true,
                Poll::Ready(Err(reason)) => return Poll::Ready(reason),
                Poll::Pending => {}
            }
        }
        if up_ended && down_ended {
            return Poll::Ready(EndReason::Finished);
        }
        idle.poll(cx, counters).map(|()| EndReason::IdleTimeout)
    })
    .await
}
