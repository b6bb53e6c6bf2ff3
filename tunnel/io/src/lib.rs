//! Runs a tunnel over any byte stream: one driver future per tunnel, and handles to open, accept and use streams.
//!
//! Start with [`start`].
#![allow(clippy::unimplemented, clippy::missing_panics_doc, unused_variables)]

mod error;
pub mod socket;

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub use error::{ControlError, OpenError, StreamError};
pub use sg_tunnel::{CloseReason, Closed, Config, Rate, Rates, code};

/// Which end of the connection this is: it decides the parity of stream ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The side that connected.
    Client,
    /// The side that accepted the connection.
    Node,
}

/// Splits a byte stream into a handle, incoming events and the driver future that the caller must run.
pub fn start<T>(io: T, side: Side, config: Config) -> (Tunnel, Incoming, Driver)
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    unimplemented!()
}

/// Drives one tunnel; completes when the tunnel has ended.
#[derive(Debug)]
pub struct Driver(());

impl Future for Driver {
    type Output = Closed;
    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Closed> {
        unimplemented!()
    }
}

/// A handle to a tunnel; cheap to clone.
#[derive(Clone, Debug)]
pub struct Tunnel(());

/// Counters of one tunnel since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TunnelStats {
    /// Bytes received, frames included.
    pub received_bytes: u64,
    /// Bytes sent, frames included.
    pub sent_bytes: u64,
    /// Streams opened by this side.
    pub streams_opened: u64,
    /// Streams opened by the peer.
    pub streams_accepted: u64,
}

impl Tunnel {
    /// Opens a stream; waits for the peer's answer. Dropping the future resets the stream with CANCEL.
    pub async fn open(&self, metadata: Bytes) -> Result<TunnelStream, OpenError> {
        unimplemented!()
    }
    /// Queues a CONTROL message of at most 16 KiB.
    pub fn send_control(&self, message: Bytes) -> Result<(), ControlError> {
        unimplemented!()
    }
    /// Drains: no new streams either way, existing ones go on.
    pub fn goaway(&self) {
        unimplemented!()
    }
    /// Ends the tunnel and all its streams.
    pub fn close(&self, code: u32, message: &str) {
        unimplemented!()
    }
    /// Completes when the tunnel has ended.
    pub async fn closed(&self) -> Closed {
        unimplemented!()
    }
    /// Whether the tunnel has ended.
    pub fn is_closed(&self) -> bool {
        unimplemented!()
    }
    /// Whether either side has announced the drain.
    pub fn is_draining(&self) -> bool {
        unimplemented!()
    }
    /// Round-trip time of the last ping.
    pub fn rtt(&self) -> Option<Duration> {
        unimplemented!()
    }
    /// Whether a ping is unanswered for more than a second.
    pub fn is_suspect(&self) -> bool {
        unimplemented!()
    }
    /// Streams that are open or being opened, by either side.
    pub fn active_streams(&self) -> usize {
        unimplemented!()
    }
    /// Counters since the start.
    pub fn stats(&self) -> TunnelStats {
        unimplemented!()
    }
}

/// What the peer asks for, in order.
#[derive(Debug)]
pub struct Incoming(());

/// One thing that the peer asks for.
#[derive(Debug)]
pub enum Event {
    /// A stream to accept or refuse.
    Open(IncomingStream),
    /// A CONTROL message.
    Control(Bytes),
    /// The peer drains: it takes no new streams.
    PeerDraining,
}

impl Incoming {
    /// The next event; `None` when the tunnel has ended. Cancel safe.
    pub async fn next(&mut self) -> Option<Event> {
        unimplemented!()
    }
}

/// A stream that the peer wants to open. Dropping it refuses with INTERNAL.
#[derive(Debug)]
pub struct IncomingStream(Bytes);

impl IncomingStream {
    /// The metadata of the OPEN.
    pub fn metadata(&self) -> &Bytes {
        &self.0
    }
    /// Accepts: the opener gets its stream.
    pub fn accept(self) -> TunnelStream {
        unimplemented!()
    }
    /// Refuses with a code.
    pub fn refuse(self, code: u32) {
        unimplemented!()
    }
    /// Completes when the opener gave up or the tunnel ended.
    pub async fn cancelled(&mut self) {
        unimplemented!()
    }
}

/// One stream in a tunnel. Dropping it before both directions have finished resets it with CANCEL.
#[derive(Debug)]
pub struct TunnelStream(());

impl TunnelStream {
    /// The next received bytes; `None` after the peer's FIN.
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        unimplemented!()
    }
    /// The next received bytes; `None` after the peer's FIN. Cancel safe.
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        unimplemented!()
    }
    /// Takes bytes from the front of `chunk`, without copying, as far as the stream can take them.
    pub fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, StreamError>> {
        unimplemented!()
    }
    /// Ready with the number of bytes that a write would take now, at least 1.
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        unimplemented!()
    }
    /// Resets both directions with a code.
    pub fn reset(self, code: u32) {
        unimplemented!()
    }
    /// Completes when the peer reset the stream or the tunnel ended, even while nobody reads.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        unimplemented!()
    }
    /// The stream's number in its tunnel.
    pub fn id(&self) -> u32 {
        unimplemented!()
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        unimplemented!()
    }
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        unimplemented!()
    }
}
