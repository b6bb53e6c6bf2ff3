//! Local end → stream.

use std::task::{Context, Poll, ready};

use bytes::Bytes;
use tokio::net::tcp::ReadHalf;

use super::EndReason;
use super::layer::Layer;
use crate::ByteCounters;
use crate::carrier::Carrier;

#[derive(Default)]
pub(super) struct FromTcp {
    state: State,
    /// Read, and not yet taken by the stream. Empty except when the stream took less than it said it would.
    pending: Bytes,
}

#[derive(Default)]
enum State {
    #[default]
    Reading,
    Finishing,
    Finished,
}

impl FromTcp {
    /// Moves what can be moved. Ready when the direction has ended with FIN, or failed.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        layer: &mut impl Layer,
        tcp: &mut ReadHalf<'_>,
        stream: &mut impl Carrier,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        loop {
            if !self.pending.is_empty() {
                if stream.poll_write_chunk(cx, &mut self.pending)?.is_pending() {
                    return self.wait(cx, layer, tcp);
                }
                continue;
            }
            match self.state {
                State::Reading => {
                    // An idle socket is known without asking the tunnel, which is behind a lock.
                    ready!(layer.poll_read_ready(cx, tcp.as_ref()))?;
                    let Poll::Ready(budget) = stream.poll_write_ready(cx)? else {
                        return self.wait(cx, layer, tcp);
                    };
                    let bytes = ready!(layer.poll_read(cx, tcp, budget))?;
                    if bytes.is_empty() {
                        self.state = State::Finishing;
                    } else {
                        counters.add_from_tcp(bytes.len() as u64);
                        self.pending = bytes;
                    }
                }
                State::Finishing => {
                    ready!(stream.poll_finish(cx))?;
                    self.state = State::Finished;
                }
                State::Finished => return Poll::Ready(Ok(())),
            }
        }
    }

    /// The stream takes nothing now.
    fn wait(
        &self,
        cx: &mut Context<'_>,
        layer: &mut impl Layer,
        tcp: &mut ReadHalf<'_>,
    ) -> Poll<Result<(), EndReason>> {
        layer.watch(cx, tcp)?;
        Poll::Pending
    }
}
