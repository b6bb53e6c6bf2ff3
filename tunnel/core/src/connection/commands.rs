//! What the owner of the tunnel and of its streams wants. Nothing here waits or reads a clock.

use bytes::Bytes;

use super::Connection;
use crate::closed::{CloseReason, Closed};
use crate::code::close;
use crate::error::{ControlRefusal, OpenRefusal, StreamEnd};
use crate::event::{OpenState, Peek, Read};
use crate::frame::{MAX_ANSWER, MAX_CONTROL, Settings};
use crate::limits::Limit;
use crate::scheduler::MAX_WEIGHT;
use crate::stream::{Fin, Key, Phase};

impl Connection {
    /// Starts to open a stream. The key stays valid until [`Self::release`].
    ///
    /// # Errors
    ///
    /// Nothing was done, and another tunnel may take the stream; except for metadata that is too long.
    pub fn open(&mut self, metadata: Bytes) -> Result<Key, OpenRefusal> {
        if self.closed.is_some() {
            return Err(OpenRefusal::Closed);
        }
        if self.is_draining() {
            return Err(OpenRefusal::Draining);
        }
        if self.is_detached() {
            return Err(OpenRefusal::Detached);
        }
        let peer = self.peer.unwrap_or(Settings {
            max_metadata: u32::try_from(self.config.max_metadata).unwrap_or(u32::MAX),
            ..Settings::DEFAULT
        });
        if metadata.len() > peer.max_metadata as usize {
            return Err(OpenRefusal::MetadataTooLong);
        }
        let room = match self.peer {
            Some(_) => self.peer_allows.saturating_sub(self.opened),
            // Until the peer has said how many it takes; what is too much fails then.
            None => self.config.max_streams,
        };
        if self.scheduler.opens.len() >= room as usize {
            // Opens that were given up stay listed until they would have been sent.
            let streams = &self.streams;
            self.scheduler
                .opens
                .retain(|key| streams.get(*key).is_some());
            if self.scheduler.opens.len() >= room as usize {
                self.limits.count(Limit::Streams, 1);
                return Err(OpenRefusal::Limit);
            }
        }
        if self.failed_too_often() {
            return Err(OpenRefusal::Limit);
        }
        let stream = self.streams.insert(0, Phase::Opening);
        stream.words = metadata;
        self.scheduler.opens.push_back(stream.key);
        Ok(stream.key)
    }

    /// Where an open is.
    ///
    /// # Errors
    ///
    /// The peer refused it, or the tunnel has ended.
    pub fn open_state(&self, key: Key) -> Result<OpenState, StreamEnd> {
        let stream = self.streams.get(key).ok_or(StreamEnd::Lost)?;
        if let Some(code) = stream.reset {
            return Err(StreamEnd::Reset(code));
        }
        if self.closed.is_some() {
            return Err(StreamEnd::Lost);
        }
        Ok(match stream.phase {
            Phase::Opening => OpenState::Waiting,
            Phase::Offered | Phase::Open => OpenState::Open,
        })
    }

    /// Accepts an offered stream and tells the opener `answer`. One of more than
    /// [`crate::frame::MAX_ANSWER`] bytes is a fault of the caller, and resets the stream with INTERNAL.
    pub fn accept(&mut self, key: Key, answer: Bytes) {
        if answer.len() > MAX_ANSWER {
            return self.reset_here(key, crate::code::INTERNAL);
        }
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.phase == Phase::Offered && stream.reset.is_none() && self.closed.is_none() {
            stream.phase = Phase::Open;
            self.offered -= 1;
            stream.words = answer;
            stream.pending.open_ok = true;
            self.scheduler.mark_control(stream);
        }
    }

    /// What the acceptor told us when it accepted our stream; empty until then.
    #[must_use]
    pub fn answer(&self, key: Key) -> Bytes {
        self.streams
            .get(key)
            .filter(|stream| !stream.theirs && stream.phase == Phase::Open)
            .map_or_else(Bytes::new, |stream| stream.words.clone())
    }

    /// Takes bytes from the front of `chunk` as far as there is room; 0 means wait for
    /// [`crate::Event::Writable`].
    ///
    /// # Errors
    ///
    /// The stream can take no more, ever.
    pub fn write(&mut self, key: Key, chunk: &mut Bytes) -> Result<usize, StreamEnd> {
        let count = self.write_budget(key)?.min(chunk.len());
        if let Some(stream) = self.streams.get_mut(key).filter(|_| count > 0) {
            let piece = if count == chunk.len() {
                std::mem::take(chunk)
            } else {
                chunk.split_to(count)
            };
            stream.outbox.push(piece);
            self.send_queues.add(count);
            self.scheduler.mark_data(stream, self.epoch);
        }
        Ok(count)
    }

    /// Bytes that a write would take now; 0 means wait for [`crate::Event::Writable`].
    ///
    /// # Errors
    ///
    /// The stream can take no more, ever. A flow takes no bytes at all.
    pub fn write_budget(&mut self, key: Key) -> Result<usize, StreamEnd> {
        let limit = self.send_queues.limit(&self.config);
        let stream = self.streams.get_mut(key).ok_or(StreamEnd::Lost)?;
        if let Some(code) = stream.reset {
            return Err(StreamEnd::Reset(code));
        }
        if self.closed.is_some() {
            return Err(StreamEnd::Lost);
        }
        if stream.fin_out != Fin::No || stream.flow.is_some() {
            return Err(StreamEnd::Finished);
        }
        let budget = stream.write_budget(limit);
        let waited = std::mem::replace(&mut stream.want_write, budget == 0);
        let limited = limit < self.config.send_queue && stream.write_credit() > 0;
        if budget == 0 && limited && !waited {
            self.send_queues.count_refusal();
        }
        Ok(budget)
    }

    /// Ends our direction after what is queued.
    ///
    /// # Errors
    ///
    /// The stream was reset or the tunnel has ended. Finishing twice is not an error, but finishing a
    /// flow is.
    pub fn finish(&mut self, key: Key) -> Result<(), StreamEnd> {
        let stream = self.streams.get_mut(key).ok_or(StreamEnd::Lost)?;
        if stream.fin_out != Fin::No {
            return Ok(());
        }
        if let Some(code) = stream.reset {
            return Err(StreamEnd::Reset(code));
        }
        if self.closed.is_some() {
            return Err(StreamEnd::Lost);
        }
        if stream.flow.is_some() {
            return Err(StreamEnd::Finished);
        }
        stream.fin_out = Fin::Queued;
        if stream.phase == Phase::Open {
            self.scheduler.mark_data(stream, self.epoch);
        }
        Ok(())
    }

    /// The next received bytes.
    ///
    /// # Errors
    ///
    /// The stream ended without FIN. Bytes that came before a RESET are not delivered any more.
    pub fn read(&mut self, key: Key, max: usize) -> Result<Read, StreamEnd> {
        let stream = self.streams.get_mut(key).ok_or(StreamEnd::Lost)?;
        if let Some(code) = stream.reset {
            return Err(StreamEnd::Reset(code));
        }
        let before = stream.inbox.references();
        let Some(chunk) = stream.inbox.pop(max.max(1)) else {
            return if stream.fin_in {
                Ok(Read::Fin)
            } else if self.closed.is_some() {
                Err(StreamEnd::Lost)
            } else {
                stream.want_read = true;
                Ok(Read::Pending)
            };
        };
        self.references -= before - stream.inbox.references();
        self.has_read(key, chunk.len());
        Ok(Read::Chunk(chunk))
    }

    /// Appends the next received bytes to `out`, up to `max` and as many pieces as fit one write, without taking them: they count as unread, and as part of
    /// the credit, until [`Self::consume`]. For whoever passes them on, and may not get rid of them.
    ///
    /// # Errors
    ///
    /// As [`Self::read`].
    pub fn peek(&mut self, key: Key, max: usize, out: &mut Vec<Bytes>) -> Result<Peek, StreamEnd> {
        let stream = self.streams.get_mut(key).ok_or(StreamEnd::Lost)?;
        if let Some(code) = stream.reset {
            return Err(StreamEnd::Reset(code));
        }
        match stream.inbox.peek(max.max(1), out) {
            0 if stream.fin_in => Ok(Peek::Fin),
            0 if self.closed.is_some() => Err(StreamEnd::Lost),
            0 => {
                stream.want_read = true;
                Ok(Peek::Pending)
            }
            count => Ok(Peek::Bytes(count)),
        }
    }

    /// Takes the next `count` bytes, which [`Self::peek`] has shown. Those of a stream that has ended by a
    /// reset or with the tunnel are gone already.
    pub fn consume(&mut self, key: Key, count: usize) {
        let Some(stream) = self.streams.get_mut(key).filter(|s| s.reset.is_none()) else {
            return;
        };
        let before = stream.inbox.references();
        let taken = stream.inbox.advance(count);
        debug_assert!(
            taken == count || self.closed.is_some(),
            "more than was shown"
        );
        self.references -= before - stream.inbox.references();
        self.has_read(key, taken);
    }

    fn has_read(&mut self, key: Key, bytes: usize) {
        self.unread_bytes -= bytes;
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.window.consume(&mut self.pool, bytes) && !stream.fin_in && !stream.pending.window
        {
            stream.pending.window = true;
            self.scheduler.mark_control(stream);
        }
    }

    /// Sets the share of a stream among those that send in bulk: 1 (as at first) to 16. A stream of
    /// weight 4 sends four times as much as one of weight 1 while both have enough to send.
    pub fn set_weight(&mut self, key: Key, weight: u8) {
        if let Some(stream) = self.streams.get_mut(key) {
            stream.weight = weight.clamp(1, MAX_WEIGHT);
        }
    }

    /// Ends both directions at once; what is queued is dropped.
    pub fn reset(&mut self, key: Key, code: u32) {
        self.reset_here(key, code);
    }

    /// Lets go of a stream. If it has not finished both ways it is reset with `code`.
    pub fn release(&mut self, key: Key, code: u32) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.held = false;
        let finished = stream.fin_out != Fin::No && stream.fin_in;
        if !finished {
            self.reset_here(key, code);
        } else {
            self.drop_inbox(key);
        }
        self.remove_if_done(key);
    }

    /// How a held stream was ended, if it was not by FIN. An orderly close of the tunnel does not end
    /// a stream that had finished both ways on the wire: what came is still to be read.
    #[must_use]
    pub fn ended(&self, key: Key) -> Option<StreamEnd> {
        let Some(stream) = self.streams.get(key) else {
            return Some(StreamEnd::Lost);
        };
        let orderly = |closed: &Closed| {
            // GOAWAY goes behind the DATA that its sender had sent.
            matches!(
                closed.reason,
                CloseReason::Local { .. } | CloseReason::Peer { .. }
            )
        };
        let finished = stream.fin_in && stream.fin_out == Fin::Sent;
        match (stream.reset, &self.closed) {
            (Some(code), _) => Some(StreamEnd::Reset(code)),
            (None, Some(closed)) if finished && orderly(closed) => None,
            (None, Some(_)) => Some(StreamEnd::Lost),
            (None, None) => None,
        }
    }

    /// The id of a stream on the wire; 0 before its OPEN was sent.
    #[must_use]
    pub fn wire_id(&self, key: Key) -> u32 {
        self.streams.get(key).map_or(0, |stream| stream.id)
    }

    /// Queues a CONTROL message.
    ///
    /// # Errors
    ///
    /// The queue is full, the message too long, or the tunnel has ended.
    pub fn send_control(&mut self, message: Bytes) -> Result<(), ControlRefusal> {
        if self.closed.is_some() {
            return Err(ControlRefusal::Closed);
        }
        if message.len() > MAX_CONTROL {
            return Err(ControlRefusal::TooLong);
        }
        if self.controls.len() >= self.config.control_queue {
            self.limits.count(Limit::ControlQueue, 1);
            return Err(ControlRefusal::Full);
        }
        self.controls.push_back(message);
        Ok(())
    }

    /// Announces the drain: no new streams either way, existing ones go on.
    pub fn goaway(&mut self) {
        if !self.draining_here && self.closed.is_none() {
            self.draining_here = true;
            self.goaway = Some((close::DRAIN, Bytes::new()));
            // Behind a GOAWAY there is no OPEN (protocol 901).
            self.fail_unsent_opens(0, crate::code::REFUSED_RETRY);
        }
    }

    /// The owner takes no more incoming streams and messages: they are refused and dropped.
    pub fn stop_incoming(&mut self) {
        self.deaf = true;
        while let Some(next) = self.poll_incoming() {
            if let crate::event::Incoming::Offer { key, .. } = next {
                self.release(key, crate::code::REFUSED_RETRY);
            }
        }
    }

    /// Whether our ids are running out, so that the peer should come again on a new tunnel.
    pub(super) fn ids_run_out(&self) -> bool {
        self.next_id > self.config.max_id / 4 * 3
    }
}
