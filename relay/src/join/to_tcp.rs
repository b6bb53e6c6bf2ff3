//! Stream → local end.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::TcpStream;

use super::EndReason;
use super::layer::Layer;
use crate::ByteCounters;
use crate::carrier::Carrier;

/// Bytes of the stream that are looked at for one write.
const BATCH: usize = 128 * 1024;
/// Places for chunks kept between two bursts.
const KEPT: usize = 4;

#[derive(Default)]
pub(super) struct ToTcp {
    state: State,
    /// What waits in the stream, for one write; empty between two of them.
    batch: Vec<Bytes>,
    /// Bytes that were written, and are still in the stream.
    written: usize,
}

#[derive(Default)]
enum State {
    #[default]
    Reading,
    /// The stream has ended.
    Finishing,
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
            match layer.poll_flush(cx, tcp) {
                Poll::Ready(flushed) => flushed?,
                Poll::Pending => {
                    // What is sealed for the socket already must not be kept twice.
                    stream.consume(std::mem::take(&mut self.written));
                    return Poll::Pending;
                }
            }
            match self.state {
                State::Reading => ready!(self.pass_on(cx, layer, tcp, stream, counters))?,
                State::Finishing => {
                    ready!(layer.poll_finish(cx, tcp))?;
                    self.state = State::Finished;
                }
                State::Finished => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Writes what waits in the stream, as far as it is taken. The rest stays there, where what it holds on to is
    /// bounded.
    fn pass_on(
        &mut self,
        cx: &mut Context<'_>,
        layer: &mut impl Layer,
        tcp: &TcpStream,
        stream: &mut impl Carrier,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        let done = std::mem::take(&mut self.written);
        let length = match stream.poll_peek_chunks(cx, done, &mut self.batch, BATCH) {
            Poll::Ready(Ok(0)) => {
                self.state = State::Finishing;
                return Poll::Ready(Ok(()));
            }
            Poll::Ready(Ok(length)) => length,
            Poll::Ready(Err(reason)) => return Poll::Ready(Err(reason)),
            Poll::Pending => {
                self.batch.shrink_to(KEPT);
                return Poll::Pending;
            }
        };
        let result = layer.poll_write(cx, tcp, &self.batch);
        self.batch.clear();
        let written = ready!(result)?;
        counters.add_to_tcp(written as u64);
        if written == length {
            // Said with the next look.
            self.written = written;
        } else {
            stream.consume(written);
        }
        Poll::Ready(Ok(()))
    }
}
