//! Stream → TCP connection.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use sg_tunnel_io::TunnelStream;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::EndReason;
use crate::ByteCounters;

/// Bytes that are taken from the stream for one write.
const BATCH: usize = 128 * 1024;
/// Chunks that one write takes.
const CHUNKS: usize = 16;
/// Places kept between two bursts.
const KEPT: usize = 4;

#[derive(Default)]
pub(super) struct ToTcp {
    state: State,
    batch: VecDeque<Bytes>,
    /// Bytes in `batch`.
    length: usize,
}

#[derive(Default)]
enum State {
    #[default]
    Reading,
    /// The stream has ended; what is in the batch is still to be written.
    Flushing,
    Finished,
}

impl ToTcp {
    /// Moves what can be moved. Ready when the direction has ended with FIN, or failed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        stream: &mut TunnelStream,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        loop {
            if self.batch.is_empty() {
                match self.state {
                    State::Reading => ready!(self.fill(cx, stream))?,
                    State::Flushing => {
                        if let Err(error) = SockRef::from(tcp).shutdown(Shutdown::Write) {
                            tracing::trace!(%error, "shutdown failed");
                            return Poll::Ready(Err(EndReason::TcpReset));
                        }
                        self.state = State::Finished;
                    }
                    State::Finished => return Poll::Ready(Ok(())),
                }
                continue;
            }
            let written = ready!(self.write(cx, tcp)).map_err(|error| {
                tracing::trace!(%error, "write failed");
                EndReason::TcpReset
            })?;
            counters.add_to_tcp(written as u64);
            self.advance(written);
        }
    }

    /// Takes a batch from the stream; afterwards there is one, or the stream has ended.
    fn fill(
        &mut self,
        cx: &mut Context<'_>,
        stream: &mut TunnelStream,
    ) -> Poll<Result<(), EndReason>> {
        while self.length < BATCH && self.batch.len() < CHUNKS {
            match stream.poll_read_chunk(cx) {
                Poll::Ready(Ok(Some(chunk))) => {
                    if !chunk.is_empty() {
                        self.length += chunk.len();
                        self.batch.push_back(chunk);
                    }
                }
                Poll::Ready(Ok(None)) => {
                    self.state = State::Flushing;
                    break;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending if self.batch.is_empty() => {
                    self.batch.shrink_to(KEPT);
                    return Poll::Pending;
                }
                Poll::Pending => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    /// One write of the batch, as far as the socket takes it.
    fn write(&self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(tcp.poll_write_ready(cx))?;
            let mut written = 0;
            let result = tcp.try_io(Interest::WRITABLE, || {
                written = self.send(tcp)?;
                // A socket that took less is full. Saying so here, with the readiness it had before, saves the
                // write that would only answer the same, and cannot lose a wake-up.
                if written < self.length {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                Ok(())
            });
            match result {
                Ok(()) => return Poll::Ready(Ok(written)),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                    return Poll::Ready(Err(error));
                }
                Err(_) if written > 0 => return Poll::Ready(Ok(written)),
                Err(_) => {}
            }
        }
    }

    fn send(&self, tcp: &TcpStream) -> io::Result<usize> {
        let socket = SockRef::from(tcp);
        if let [only] = self.batch.as_slices().0
            && self.batch.len() == 1
        {
            return socket.send(only);
        }
        let slices: [IoSlice<'_>; CHUNKS] =
            std::array::from_fn(|i| IoSlice::new(self.batch.get(i).map_or(&[], |chunk| chunk)));
        let count = self.batch.len().min(CHUNKS);
        socket.send_vectored(&slices[..count])
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(first) = self.batch.front_mut() {
            if written < first.len() {
                first.advance(written);
                return;
            }
            written -= first.len();
            self.batch.pop_front();
        }
    }
}
