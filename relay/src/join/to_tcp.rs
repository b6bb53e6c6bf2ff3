//! Stream → local end.

use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use tokio::net::TcpStream;

use super::EndReason;
use super::layer::Layer;
use crate::ByteCounters;
use crate::carrier::Carrier;

/// Bytes that are taken from the stream for one write.
const BATCH: usize = 128 * 1024;
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
        layer: &mut impl Layer,
        tcp: &TcpStream,
        stream: &mut impl Carrier,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        loop {
            ready!(layer.poll_flush(cx, tcp))?;
            if self.length == 0 {
                match self.state {
                    State::Reading => ready!(self.fill(cx, stream))?,
                    State::Flushing => {
                        ready!(layer.poll_finish(cx, tcp))?;
                        self.state = State::Finished;
                    }
                    State::Finished => return Poll::Ready(Ok(())),
                }
                continue;
            }
            let chunks = self.batch.get(self.first..).unwrap_or_default();
            let written = ready!(layer.poll_write(cx, tcp, chunks))?;
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
