//! The connection of a tunnel as the tunnel's driver wants it: the records of TLS over a socket.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;
use sg_runtime::tls::RecordStream;
use sg_tunnel_io::{Transport, socket};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// A TLS connection that carries a tunnel.
#[derive(Debug)]
pub struct TunnelTransport<T> {
    records: RecordStream<T>,
    /// Finds the socket under it.
    socket: fn(&T) -> &TcpStream,
}

impl<T> TunnelTransport<T>
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    /// Both ends have agreed on a tunnel. `socket` finds the TCP connection that is beneath everything.
    #[must_use]
    pub fn boxed(records: RecordStream<T>, socket: fn(&T) -> &TcpStream) -> Box<dyn Transport> {
        Box::new(Self { records, socket })
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Transport for TunnelTransport<T> {
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        self.records.poll_read(cx, pieces)
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.records.poll_write(cx, slices)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.records.poll_shutdown(cx)
    }

    fn progress(&self) -> u64 {
        self.records.sent()
    }

    fn release(&mut self) {
        self.records.release();
    }

    fn set_fast(&mut self, fast: bool) {
        let socket = (self.socket)(self.records.get_ref());
        if let Err(error) = socket::set_fast(socket, fast) {
            tracing::debug!(%error, "the socket's limit of unsent bytes stays as it is");
        }
    }
}
