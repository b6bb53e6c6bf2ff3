//! The connection of a tunnel as the tunnel's driver wants it: the records of TLS over a socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;
use sg_runtime::tls::RecordStream;
use sg_tunnel_io::Transport;
use tokio::io::{AsyncRead, AsyncWrite};

/// A TLS connection that carries a tunnel.
#[derive(Debug)]
pub struct TunnelTransport<T>(RecordStream<T>);

impl<T> TunnelTransport<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Both ends have agreed on a tunnel.
    #[must_use]
    pub fn boxed(records: RecordStream<T>) -> Box<dyn Transport> {
        Box::new(Self(records))
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for TunnelTransport<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        self.0.poll_read(cx, pieces)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.0.poll_write(cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.poll_shutdown(cx)
    }

    fn release(&mut self) {
        self.0.release();
    }
}
