//! TCP connection → stream.

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use tokio::net::tcp::ReadHalf;
use tokio_util::io::poll_read_buf;

use super::EndReason;
use crate::ByteCounters;
use crate::carrier::Carrier;

/// Size of the buffer that all streams of a thread read into.
const BUFFER: usize = 64 * 1024;
/// With less room than this left, the next buffer is begun.
const LEAST_ROOM: usize = 32 * 1024;
/// Smaller reads are copied out: a slice keeps the whole buffer alive, and must not do so for a few bytes.
const LEAST_SLICE: usize = BUFFER / 4;

thread_local! {
    /// Always empty between two reads, so it is free for whichever stream of this thread reads next.
    static READ_BUFFER: RefCell<BytesMut> = RefCell::default();
}

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
        tcp: &mut ReadHalf<'_>,
        stream: &mut impl Carrier,
        counters: &ByteCounters,
    ) -> Poll<Result<(), EndReason>> {
        loop {
            if !self.pending.is_empty() {
                ready!(stream.poll_write_chunk(cx, &mut self.pending))?;
                continue;
            }
            match self.state {
                State::Reading => {
                    // An idle socket is known without asking the tunnel, which is behind a lock.
                    if let Err(error) = ready!(tcp.as_ref().poll_read_ready(cx)) {
                        tracing::trace!(%error, "read failed");
                        return Poll::Ready(Err(EndReason::TcpReset));
                    }
                    let budget = ready!(stream.poll_write_ready(cx))?;
                    match ready!(read(cx, tcp, budget)) {
                        Err(error) => {
                            tracing::trace!(%error, "read failed");
                            return Poll::Ready(Err(EndReason::TcpReset));
                        }
                        Ok(bytes) if bytes.is_empty() => self.state = State::Finishing,
                        Ok(bytes) => {
                            counters.add_from_tcp(bytes.len() as u64);
                            self.pending = bytes;
                        }
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
}

/// Reads at most `budget` bytes; none at the end.
fn read(cx: &mut Context<'_>, tcp: &mut ReadHalf<'_>, budget: usize) -> Poll<io::Result<Bytes>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() < LEAST_ROOM {
            buffer.reserve(BUFFER);
        }
        let mut room = (&mut *buffer).limit(budget.max(1));
        let read = ready!(poll_read_buf(Pin::new(tcp), cx, &mut room))?;
        let bytes = if read < LEAST_SLICE {
            let copy = Bytes::copy_from_slice(buffer);
            buffer.clear();
            copy
        } else {
            buffer.split().freeze()
        };
        Poll::Ready(Ok(bytes))
    })
}
