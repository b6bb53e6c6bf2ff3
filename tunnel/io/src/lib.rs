//! Runs a tunnel over any byte stream: one driver future per tunnel, and handles to open, accept and
//! use streams. The protocol itself is in `sg-tunnel`; what streams and messages mean is decided by
//! the caller, and so is TLS: give [`start`] an established stream.
//!
//! ```no_run
//! # async fn f(tls: tokio::net::TcpStream) -> Result<(), Box<dyn std::error::Error>> {
//! let (tunnel, mut incoming, driver) =
//!     sg_tunnel_io::start(tls, sg_tunnel_io::Side::Client, sg_tunnel_io::Config::default());
//! let driver = tokio::spawn(driver); // its owner notices the end
//! let stream = tunnel.open(bytes::Bytes::from_static(b"what for")).await?;
//! # drop((stream, incoming.next().await, driver.await?)); Ok(()) }
//! ```
//!
//! Where to start: [`Tunnel`], [`Incoming`], [`TunnelStream`], [`Flow`]; inside, `driver` is the loop and
//! `state` what stands behind the one lock, `handover` the lock and who sleeps beside it. Handles and driver share the core behind that lock; it is held only to move
//! references and counters, never over IO, and there is no channel and no task per stream. A handle
//! that queues something wakes the driver once; the driver then takes everything that is queued.

mod driver;
mod error;
mod flow;
mod handover;
mod incoming;
pub mod resume;
pub mod socket;
mod state;
mod stream;
pub mod transport;
mod tunnel;

/// Replaced by models of the same in `tests/loom.rs`.
mod sync {
    pub(crate) use std::sync::{Mutex, MutexGuard};
}

use std::sync::Arc;

use tokio::io::{AsyncRead, AsyncWrite};

pub use driver::Driver;
pub use error::{ControlError, OpenError, StreamError};
pub use flow::Flow;
pub use incoming::{Event, Incoming, IncomingStream};
pub use sg_tunnel::{
    Budget, CloseReason, Closed, Config, DatagramLimits, Datagrams, Limit, Rate, Rates, Report,
    Side, Stats as TunnelStats, StreamReport, Waiting, code,
};
pub use stream::TunnelStream;
pub use transport::Transport;
pub use tunnel::Tunnel;

/// Splits a byte stream into a handle, incoming events and the driver future that the caller must run.
/// The end of file of `io` is taken for an orderly end, as with TLS ([`transport::Stream::new`]).
///
/// Dropping every [`Tunnel`] does not end the tunnel; dropping the [`Driver`] does. Dropping
/// [`Incoming`] refuses what the peer opens from then on.
pub fn start<T>(io: T, side: Side, config: impl Into<Arc<Config>>) -> (Tunnel, Incoming, Driver)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    start_with(Box::new(transport::Stream::new(io)), side, config)
}

/// Like [`start`], over any [`Transport`]. Tunnels with the same settings may share them.
pub fn start_with(
    io: Box<dyn Transport>,
    side: Side,
    config: impl Into<Arc<Config>>,
) -> (Tunnel, Incoming, Driver) {
    let config = config.into();
    let shared = Arc::new(state::Shared::start(side, Arc::clone(&config)));
    let driver = Driver::new(io, Arc::clone(&shared), &config);
    let incoming = Incoming::new(Arc::clone(&shared));
    (Tunnel::new(shared), incoming, driver)
}
