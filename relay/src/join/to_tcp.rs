//! Stream → TCP connection.

use std::io::{self, IoSlice};
use std::net::Shutdown;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

use super::EndReason;
use crate::ByteCounters;
use crate::carrier::Carrier;

/// Bytes that are taken from the stream for one write.
const BATCH: usize = 128 * 1024;
/// Chunks that one write takes.
const CHUNKS: usize = 16;
/// Places for chunks kept between two bursts.
const KEPT: usize = 4;

#[derive(Default)]
pub(super) struct ToTcp {
    state: State,
    /// Chunks taken from the stream; those before `first` are written.
    batch: Vec<Bytes>,
    first: usize,
    /// Bytes in `batch` that are still to be written.
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
        stream: &mut impl Carrier,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        loop {
            if self.length == 0 {
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
        stream: &mut impl Carrier,
    ) -> Poll<Result<(), EndReason>> {
        match stream.poll_read_chunks(cx, &mut self.batch, BATCH) {
            Poll::Ready(Ok(0)) => self.state = State::Flushing,
            Poll::Ready(Ok(length)) => self.length = length,
            Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
            Poll::Pending => {
                self.batch.shrink_to(KEPT);
                return Poll::Pending;
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
                let (offered, taken) = self.send(tcp)?;
                written = taken;
                // A socket that took less is full. Saying so here, with the readiness it had before, saves the
                // write that would only answer the same, and cannot lose a wake-up.
                if taken < offered {
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

    /// Offers up to [`CHUNKS`] chunks; answers how many bytes were offered, and taken.
    fn send(&self, tcp: &TcpStream) -> io::Result<(usize, usize)> {
        let socket = SockRef::from(tcp);
        let chunks = self.batch.get(self.first..).unwrap_or_default();
        if let [only] = chunks {
            return Ok((only.len(), socket.send(only)?));
        }
        let slices: [IoSlice<'_>; CHUNKS] =
            std::array::from_fn(|i| IoSlice::new(chunks.get(i).map_or(&[], |chunk| chunk)));
        let count = chunks.len().min(CHUNKS);
        let slices = &slices[..count];
        let offered = slices.iter().map(|slice| slice.len()).sum();
        Ok((offered, socket.send_vectored(slices)?))
    }

    fn advance(&mut self, mut written: usize) {
        self.length -= written;
        while let Some(chunk) = self.batch.get_mut(self.first) {
            if written < chunk.len() {
                chunk.advance(written);
                return;
            }
            written -= chunk.len();
            // Let go of its memory now, not when the whole batch is written.
            *chunk = Bytes::new();
            self.first += 1;
        }
        self.batch.clear();
        self.first = 0;
    }
}
