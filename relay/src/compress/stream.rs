//! A compressed stream around the stream of a tunnel.
//!
//! Sending: what was read from the socket becomes a block, and the block has to be taken by the stream before
//! more is read, so at most one waits. Receiving: blocks are opened when the socket has taken what came
//! before.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, Bytes};
use sg_tunnel_io::{StreamError, TunnelStream, code};
use tokio::io::ReadBuf;
use tokio::task::coop::poll_proceed;

use super::decoder::Decoder;
use super::encoder::Encoder;
use super::{Corrupt, Grant, LONGEST};
use crate::EndReason;
use crate::carrier::Carrier;

/// Pieces that are shown at a time: one write takes no more.
const SHOWN: usize = 16;

/// A stream whose bytes are compressed both ways.
pub(crate) struct Compressed {
    stream: TunnelStream,
    encoder: Encoder,
    decoder: Decoder,
    /// What the stream has not taken yet.
    output: Bytes,
    /// Bytes of the writer's chunk that are in `output` already.
    taken: usize,
    /// The stream has ended.
    ended: bool,
    /// Opened, and not yet taken.
    opened: VecDeque<Bytes>,
    _grant: Grant,
}

impl Compressed {
    pub(crate) fn new(stream: TunnelStream, grant: Grant) -> Self {
        Self {
            stream,
            encoder: Encoder::new(grant.codec),
            decoder: Decoder::new(grant.codec),
            output: Bytes::new(),
            taken: 0,
            ended: false,
            opened: VecDeque::new(),
            _grant: grant,
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndReason>> {
        while !self.output.is_empty() {
            ready!(self.stream.poll_write_chunk(cx, &mut self.output))?;
        }
        // Let go of its memory now.
        self.output = Bytes::new();
        Poll::Ready(Ok(()))
    }

    /// Fills `buffer`, which has room, with what is there, at least one byte; with none at the end.
    pub(crate) fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<(), EndReason>> {
        let yields = ready!(poll_proceed(cx));
        ready!(self.poll_open(cx, buffer.remaining()))?;
        yields.made_progress();
        let before = buffer.remaining();
        for piece in &self.opened {
            buffer.put_slice(&piece[..piece.len().min(buffer.remaining())]);
        }
        self.consume(before - buffer.remaining());
        Poll::Ready(Ok(()))
    }

    /// Opens blocks that are there, up to `max` bytes but at least one.
    fn open_blocks(&mut self, max: usize) -> Result<(), Corrupt> {
        let mut count = 0;
        while count < max {
            let Some(piece) = self.decoder.next()? else {
                break;
            };
            count += piece.len();
            self.opened.push_back(piece);
        }
        Ok(())
    }

    /// Waits until something is opened, about `max` bytes; nothing is after the end.
    fn poll_open(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<(), EndReason>> {
        // One block is the most that is opened beyond what was asked for.
        let max = max.clamp(1, LONGEST);
        loop {
            if self.opened.is_empty() {
                self.open_blocks(max)?;
            }
            if !self.opened.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if self.ended {
                return Poll::Ready(match self.decoder.is_between_blocks() {
                    true => Ok(()),
                    false => Err(Corrupt("the stream ends within a block").into()),
                });
            }
            match ready!(self.stream.poll_read_chunk(cx))? {
                Some(bytes) => self.decoder.push(bytes),
                None => self.ended = true,
            }
        }
    }
}

impl From<Corrupt> for EndReason {
    fn from(corrupt: Corrupt) -> Self {
        tracing::debug!(%corrupt, "stream ended");
        Self::Ended(code::DECOMPRESS)
    }
}

impl Carrier for Compressed {
    fn poll_write_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize, EndReason>> {
        ready!(self.poll_flush(cx))?;
        // However little the stream takes now: a block is worth the more the longer it is, and one may wait.
        ready!(self.stream.poll_write_ready(cx))?;
        Poll::Ready(Ok(LONGEST))
    }

    fn poll_write_chunk(
        &mut self,
        cx: &mut Context<'_>,
        chunk: &mut Bytes,
    ) -> Poll<Result<usize, EndReason>> {
        ready!(self.poll_flush(cx))?;
        if self.taken == 0 && !chunk.is_empty() {
            let length = chunk.len().min(LONGEST);
            self.output = self.encoder.encode(&chunk[..length]).map_err(|error| {
                tracing::warn!(%error, "cannot compress");
                EndReason::Ended(code::INTERNAL)
            })?;
            self.taken = length;
            ready!(self.poll_flush(cx))?;
        }
        // Only now: whoever writes comes back until all of it is with the stream.
        let taken = std::mem::take(&mut self.taken);
        chunk.advance(taken);
        Poll::Ready(Ok(taken))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), EndReason>> {
        ready!(self.poll_flush(cx))?;
        self.stream.poll_finish(cx)
    }

    fn poll_peek_chunks(
        &mut self,
        cx: &mut Context<'_>,
        done: usize,
        out: &mut Vec<Bytes>,
        max: usize,
    ) -> Poll<Result<usize, EndReason>> {
        self.consume(done);
        ready!(self.poll_open(cx, max))?;
        let before = out.len();
        out.extend(self.opened.iter().take(SHOWN).cloned());
        Poll::Ready(Ok(out[before..].iter().map(Bytes::len).sum()))
    }

    fn consume(&mut self, mut done: usize) {
        while let Some(piece) = self.opened.front_mut() {
            if done < piece.len() {
                piece.advance(done);
                return;
            }
            done -= piece.len();
            self.opened.pop_front();
        }
        // An idle stream keeps no room for it.
        self.opened = VecDeque::new();
    }

    fn poll_reset(&mut self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.stream.poll_reset(cx)
    }

    fn reset(self, code: u32) {
        self.stream.reset(code);
    }
}
