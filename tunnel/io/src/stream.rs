//! One stream as its user sees it: chunks without copying, or [`AsyncRead`] and [`AsyncWrite`].

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use sg_tunnel::{Key, Peek, Read, StreamEnd};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::task::coop::poll_proceed;

use crate::error::StreamError;
use crate::handover::Interest;
use crate::state::{Shared, State};

/// Largest piece that one read gives.
const READ_MAX: usize = 64 * 1024;

/// Most that one call of [`AsyncRead`] copies, which is done under the tunnel's lock.
const COPIED_MAX: usize = 32 * 1024;

/// A stream that somebody holds: dropping it lets go of the stream.
pub(crate) struct Held {
    pub(crate) shared: Arc<Shared>,
    pub(crate) key: Key,
    /// RESET code of a drop before the stream has finished both ways.
    pub(crate) code: u32,
}

impl Held {
    pub(crate) fn new(shared: Arc<Shared>, key: Key, code: u32) -> Self {
        Self { shared, key, code }
    }

    /// Completes when the stream was reset or the tunnel ended.
    pub(crate) fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<StreamError> {
        let key = self.key;
        self.shared.look(|state| match state.core.ended(key) {
            Some(end) => Poll::Ready(state.error(end)),
            None => {
                state.wait_for(key, Interest::Reset, cx);
                Poll::Pending
            }
        })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.shared
            .command(|state| state.release(self.key, self.code));
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Held").field(&self.key).finish()
    }
}

/// One stream in a tunnel. Dropping it before both directions have finished resets it with CANCEL.
#[derive(Debug)]
pub struct TunnelStream {
    held: Held,
    id: u32,
    answer: Bytes,
}

impl TunnelStream {
    pub(crate) fn new(held: Held, id: u32, answer: Bytes) -> Self {
        Self { held, id, answer }
    }

    /// The next received bytes, never empty; `None` after the peer's FIN. No copy is made.
    ///
    /// # Errors
    ///
    /// The stream was reset (bytes that were not read yet are lost), or the tunnel has ended.
    pub fn poll_read_chunk(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Bytes>, StreamError>> {
        let key = self.held.key;
        self.held
            .shared
            .command(|state| match state.core.read(key, READ_MAX) {
                Ok(Read::Chunk(chunk)) => Poll::Ready(Ok(Some(chunk))),
                Ok(Read::Fin) => Poll::Ready(Ok(None)),
                Ok(Read::Pending) => {
                    state.wait_for(key, Interest::Read, cx);
                    Poll::Pending
                }
                Err(end) => Poll::Ready(Err(state.error(end))),
            })
    }

    /// The next received bytes; `None` after the peer's FIN. Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_read_chunk`].
    pub async fn read_chunk(&mut self) -> Result<Option<Bytes>, StreamError> {
        poll_fn(|cx| self.poll_read_chunk(cx)).await
    }

    /// Takes the next `done` bytes, which the call before has shown, and appends those that follow to `out`, up to `max` bytes, up
    /// to 16 pieces, and without taking them; all under one lock. Returns the number of bytes; 0 after the peer's FIN. The
    /// `done` bytes are taken also when it is pending: say them once.
    ///
    /// What is shown and not taken counts as unread, so that the tunnel can bound what it holds on to, and the peer gets
    /// no credit for it: let go of `out` when it cannot be passed on now, and ask again.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_read_chunk`].
    pub fn poll_peek_chunks(
        &mut self,
        cx: &mut Context<'_>,
        done: usize,
        out: &mut Vec<Bytes>,
        max: usize,
    ) -> Poll<Result<usize, StreamError>> {
        let key = self.held.key;
        self.held.shared.command(|state| {
            if done > 0 {
                state.core.consume(key, done);
            }
            match state.core.peek(key, max, out) {
                Ok(Peek::Bytes(count)) => Poll::Ready(Ok(count)),
                Ok(Peek::Fin) => Poll::Ready(Ok(0)),
                Ok(Peek::Pending) => {
                    state.wait_for(key, Interest::Read, cx);
                    Poll::Pending
                }
                Err(end) => Poll::Ready(Err(state.error(end))),
            }
        })
    }

    /// Takes the next `done` bytes, which [`Self::poll_peek_chunks`] has shown.
    pub fn consume(&mut self, done: usize) {
        if done > 0 {
            let key = self.held.key;
            self.held
                .shared
                .command(|state| state.core.consume(key, done));
        }
    }

    /// Takes bytes from the front of `chunk`, without copying, as far as the stream can take them;
    /// returns how many, at least 1 unless `chunk` is empty.
    ///
    /// # Errors
    ///
    /// The stream was reset, the tunnel has ended, or this side has already shut down writing (then
    /// with code CANCEL).
    pub fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, StreamError>> {
        if chunk.is_empty() {
            return Poll::Ready(Ok(0));
        }
        self.poll_write_with(cx, |state, key| state.core.write(key, chunk))
            .map_err(|(error, _)| error)
    }

    /// Writes all of `chunk`. Not cancel safe: a part may have been taken.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_write_chunk`].
    pub async fn write_chunk(&mut self, mut chunk: Bytes) -> Result<(), StreamError> {
        while !chunk.is_empty() {
            poll_fn(|cx| self.poll_write_chunk(cx, &mut chunk)).await?;
        }
        Ok(())
    }

    /// Ready with the number of bytes that a write would take now, at least 1: read from a socket
    /// only when the stream can take the bytes.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_write_chunk`].
    pub fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, StreamError>> {
        self.poll_write_with(cx, |state, key| state.core.write_budget(key))
            .map_err(|(error, _)| error)
    }

    /// Ends the sending direction after what is queued; reading goes on.
    ///
    /// # Errors
    ///
    /// The stream was reset or the tunnel has ended. Finishing twice is not an error.
    pub fn finish(&mut self) -> Result<(), StreamError> {
        let key = self.held.key;
        self.held
            .shared
            .command(|state| state.core.finish(key).map_err(|end| state.error(end)))
    }

    /// Resets both directions with a code of [`crate::code`], ahead of what is queued.
    pub fn reset(mut self, code: u32) {
        let key = self.held.key;
        self.held.code = code;
        // Also when both directions have finished but our bytes are still queued.
        self.held
            .shared
            .command(|state| state.core.reset(key, code));
    }

    /// Completes when the peer reset the stream or the tunnel ended, even while nobody reads.
    pub fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.held.poll_ended(cx)
    }

    /// The share of this stream among those that send in bulk: 1 (as at first) to 16. A stream of
    /// weight 4 sends four times as much as one of weight 1 while both have enough to send.
    pub fn set_weight(&self, weight: u8) {
        let key = self.held.key;
        self.held
            .shared
            .command(|state| state.core.set_weight(key, weight));
    }

    /// What the acceptor said with its acceptance, at most 256 bytes; empty at the acceptor.
    #[must_use]
    pub fn answer(&self) -> &Bytes {
        &self.answer
    }

    /// The stream's number in its tunnel.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Waits while `f` gives 0.
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        f: impl FnOnce(&mut State, Key) -> Result<usize, StreamEnd>,
    ) -> Poll<Result<usize, (StreamError, StreamEnd)>> {
        let key = self.held.key;
        self.held.shared.command(|state| match f(state, key) {
            Ok(0) => {
                state.wait_for(key, Interest::Write, cx);
                Poll::Pending
            }
            Ok(count) => Poll::Ready(Ok(count)),
            Err(end) => Poll::Ready(Err((state.error(end), end))),
        })
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let yields = ready!(poll_proceed(cx));
        let key = self.held.key;
        let mut left = buf.remaining().min(COPIED_MAX);
        let most = left;
        let read = self.held.shared.command(|state| {
            while left > 0 {
                match state.core.read(key, left) {
                    Ok(Read::Chunk(chunk)) => {
                        buf.put_slice(&chunk);
                        left -= chunk.len();
                    }
                    // The next call tells it again.
                    Ok(_) | Err(_) if left < most => break,
                    Ok(Read::Fin) => break,
                    Ok(Read::Pending) => {
                        state.wait_for(key, Interest::Read, cx);
                        return Poll::Pending;
                    }
                    Err(end) => return Poll::Ready(Err(state.error(end).into())),
                }
            }
            Poll::Ready(Ok(()))
        });
        if read.is_ready() {
            yields.made_progress();
        }
        read
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let write = |state: &mut State, key| {
            let room = state.core.write_budget(key)?.min(buf.len());
            state
                .core
                .write(key, &mut Bytes::copy_from_slice(&buf[..room]))
        };
        self.poll_write_with(cx, write)
            .map_err(|(error, end)| match end {
                StreamEnd::Finished => io::ErrorKind::BrokenPipe.into(),
                StreamEnd::Reset(_) | StreamEnd::Lost => error.into(),
            })
    }

    /// Queued bytes are sent without being asked to; this waits for nothing.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.finish().map_err(Into::into))
    }
}
