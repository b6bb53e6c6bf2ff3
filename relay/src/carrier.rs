//! What carries the bytes of a connection: the stream of a tunnel as it is, or with a compression around it.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use sg_tunnel_io::{StreamError, TunnelStream};
use tokio::io::AsyncWrite as _;

use crate::EndReason;

/// One stream as [`crate::join`] uses it. The two directions are independent of each other.
pub(crate) trait Carrier: Send {
    /// Ready with the number of bytes that should be read for one write, at least 1.
    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndReason>>;

    /// Takes bytes from the front of `chunk`, at least 1 unless it is empty. While it is pending, it is to be
    /// called again with the same chunk.
    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, EndReason>>;

    /// Ends the sending direction after what was written.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndReason>>;

    /// Takes the next `done` bytes, which the call before has shown, and appends those that follow to `out`, of about `max` bytes in
    /// all and without taking them; answers how many, 0 after the end. The `done` bytes are taken also when it is pending:
    /// say them once.
    fn poll_peek_chunks(
        &mut self,
        cx: &mut Context<'_>,
        done: usize,
        out: &mut Vec<Bytes>,
        max: usize,
    ) -> Poll<Result<usize, EndReason>>;

    /// Takes the next `done` bytes, which [`Self::poll_peek_chunks`] has shown.
    fn consume(&mut self, done: usize);

    /// Completes when the far side has reset the stream or the tunnel has ended.
    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError>;

    /// Resets both directions.
    fn reset(self, code: u32);
}

/// How a stream has ended that is used as [`tokio::io::AsyncRead`] and [`tokio::io::AsyncWrite`].
pub(crate) fn end_reason(error: &io::Error) -> EndReason {
    StreamError::from_io(error)
        .cloned()
        .map_or(EndReason::TunnelLost, EndReason::from)
}

impl Carrier for TunnelStream {
    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndReason>> {
        self.poll_write_ready(cx).map_err(EndReason::from)
    }

    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, EndReason>> {
        self.poll_write_chunk(cx, chunk).map_err(EndReason::from)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndReason>> {
        Pin::new(self)
            .poll_shutdown(cx)
            .map_err(|error| end_reason(&error))
    }

    fn poll_peek_chunks(
        &mut self,
        cx: &mut Context<'_>,
        done: usize,
        out: &mut Vec<Bytes>,
        max: usize,
    ) -> Poll<Result<usize, EndReason>> {
        self.poll_peek_chunks(cx, done, out, max)
            .map_err(EndReason::from)
    }

    fn consume(&mut self, done: usize) {
        self.consume(done);
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.poll_reset(cx)
    }

    fn reset(self, code: u32) {
        self.reset(code);
    }
}
