//! From the transport to the core, piece by piece.

use std::collections::VecDeque;
use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use sg_tunnel::Connection;

use crate::transport::Transport;

/// With so many bytes the core gets them before more is read. With several streams the bytes of each come by
/// turns of up to 64 KiB; whoever gets whole turns needs fewer system calls to pass them on.
const ENOUGH: usize = 192 * 1024;
/// The same for so many pieces, however short they are.
const MANY: usize = 1024;

#[derive(Default)]
pub(super) struct Reader {
    pieces: VecDeque<BytesMut>,
    /// Bytes since the last delivery.
    fresh: usize,
    end: Option<End>,
}

/// How the transport ended.
enum End {
    /// The peer said goodbye (protocol 4).
    Orderly,
    Failed(io::Error),
}

/// Why filling stopped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Filled {
    /// The transport has no more at present; we will be woken.
    Waiting,
    /// There is enough for now, or the transport has ended.
    Stopped,
}

impl Reader {
    pub(super) fn fill(&mut self, io: &mut dyn Transport, cx: &mut Context<'_>) -> Filled {
        while self.end.is_none() {
            if self.fresh >= ENOUGH || self.pieces.len() >= MANY {
                return Filled::Stopped;
            }
            match io.poll_read(cx, &mut self.pieces) {
                Poll::Pending => return Filled::Waiting,
                Poll::Ready(Ok(0)) => self.end = Some(End::Orderly),
                Poll::Ready(Ok(count)) => self.fresh += count,
                Poll::Ready(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Poll::Ready(Err(error)) => self.end = Some(End::Failed(error)),
            }
        }
        Filled::Stopped
    }

    /// Hands everything to the core: first the bytes, then the end of the transport.
    pub(super) fn deliver(&mut self, core: &mut Connection, now: std::time::Instant) {
        if self.fresh > 0 {
            core.handle_received(now, self.fresh);
            for mut piece in self.pieces.drain(..) {
                core.handle_input(now, &mut piece);
            }
            self.fresh = 0;
        }
        match &self.end {
            None => {}
            Some(End::Orderly) => core.transport_closed(now),
            Some(End::Failed(error)) => core.transport_lost(now, error.kind(), &error.to_string()),
        }
    }

    /// Reads and forgets until the transport ends.
    pub(super) fn discard(
        &mut self,
        io: &mut dyn Transport,
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<()>> {
        // The caller's deadline bounds the time, this the work of one turn.
        for _ in 0..16 {
            self.pieces.clear();
            if self.end.is_some() || ready!(io.poll_read(cx, &mut self.pieces))? == 0 {
                return Poll::Ready(Ok(()));
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Gives back the memory of an empty buffer.
    pub(super) fn release(&mut self) {
        if self.pieces.is_empty() {
            self.pieces = VecDeque::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::idle::Idle;
    use super::*;

    #[test]
    fn one_turn_is_bounded_in_bytes_and_in_pieces() {
        for (length, pieces) in [(1, MANY), (16 * 1024, ENOUGH / (16 * 1024))] {
            let mut reader = Reader::default();
            let cx = &mut Context::from_waker(std::task::Waker::noop());
            // A peer that has always something to say.
            let mut io = Idle {
                says: Some(length),
                ..Idle::default()
            };
            assert!(reader.fill(&mut io, cx) == Filled::Stopped);
            assert_eq!(reader.pieces.len(), pieces);
            assert_eq!(reader.fresh, pieces * length);
        }
    }
}
