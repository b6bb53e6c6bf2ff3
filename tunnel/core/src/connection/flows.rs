//! Streams that carry datagrams: one UDP peer each. Opened, accepted and reset like any stream; what
//! they carry is never waited for, never retried, and dropped where it would pile up.
//!
//! The queues are in `datagram`. How long a flow may be idle is the application's matter.

use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::{Connection, Side};
use crate::batch::Batch;
use crate::code::close;
use crate::datagram::Direction;
use crate::error::{OpenRefusal, StreamEnd, Violation};
use crate::event::Event;
use crate::frame::{HEADER_LEN, Header, MAX_DATAGRAM, MAX_ID, kind};
use crate::limits::Limit;
use crate::stream::{Key, Phase};

/// Bytes that a flow sends in one turn; a larger datagram is paid for by the turns that follow.
const TURN: i64 = 4 * 1024;

impl Connection {
    /// Starts to open a flow: a stream that carries datagrams. They may be sent at once.
    ///
    /// # Errors
    ///
    /// As for [`Self::open`].
    pub fn open_flow(&mut self, metadata: Bytes) -> Result<Key, OpenRefusal> {
        let key = self.open(metadata)?;
        if let Some(stream) = self.streams.get_mut(key) {
            stream.flow = Some(Box::default());
        }
        Ok(key)
    }

    /// Whether the stream carries datagrams.
    #[must_use]
    pub fn is_flow(&self, key: Key) -> bool {
        self.streams.get(key).is_some_and(|s| s.flow.is_some())
    }

    /// Sends one datagram of at most [`MAX_DATAGRAM`] bytes, or drops it: the caller never waits. What
    /// does not leave within 200 ms, does not fit the queues or is too long is dropped and counted.
    ///
    /// # Errors
    ///
    /// The flow or its tunnel has ended; [`StreamEnd::Finished`] for a stream that is no flow.
    pub fn send_datagram(
        &mut self,
        now: Instant,
        key: Key,
        payload: Bytes,
    ) -> Result<(), StreamEnd> {
        self.datagram_end(key)?;
        if payload.len() > MAX_DATAGRAM {
            self.limits.count(Limit::DatagramLength, 1);
            return Ok(());
        }
        if self.is_detached() {
            self.limits.count(Limit::DatagramsDetached, 1);
            return Ok(());
        }
        let limits = &self.config.datagrams;
        let dropped = self
            .unsent
            .push(&mut self.streams, key, now, payload, limits);
        self.limits.count(Limit::DatagramsUnsent, dropped);
        if let Some(stream) = self.streams.get_mut(key) {
            self.scheduler.mark_flow(stream);
        }
        Ok(())
    }

    /// The next received datagram; `None` means wait for [`Event::Readable`].
    ///
    /// # Errors
    ///
    /// As for [`Self::send_datagram`]. What came before a RESET is not delivered any more.
    pub fn receive_datagram(&mut self, key: Key) -> Result<Option<Bytes>, StreamEnd> {
        self.datagram_end(key)?;
        let stream = self.streams.get_mut(key).ok_or(StreamEnd::Lost)?;
        let taken = stream
            .flow
            .as_mut()
            .and_then(|f| self.unread_datagrams.take(f));
        stream.want_read = taken.is_none();
        Ok(taken.map(|(payload, _)| payload))
    }

    fn datagram_end(&self, key: Key) -> Result<(), StreamEnd> {
        let stream = self.streams.get(key).ok_or(StreamEnd::Lost)?;
        match (stream.reset, &self.closed, &stream.flow) {
            (Some(code), _, _) => Err(StreamEnd::Reset(code)),
            (None, Some(_), _) => Err(StreamEnd::Lost),
            (None, None, None) => Err(StreamEnd::Finished),
            (None, None, Some(_)) => Ok(()),
        }
    }

    /// Takes the payload of a DGRAM frame, all of which lies at the front of `input`.
    pub(super) fn on_datagram(
        &mut self,
        now: Instant,
        header: Header,
        input: &mut BytesMut,
    ) -> Result<(), Violation> {
        let length = usize::from(header.length);
        let key = self.flow_of(header.id)?;
        if !self.guard.datagrams.take(now) {
            self.limits.count(Limit::DatagramRate, 1);
            input.advance(length);
            return Ok(());
        }
        let Some(key) = key else {
            self.limits.count(Limit::DatagramsLate, 1);
            input.advance(length);
            return Ok(());
        };
        let payload = input.split_to(length).freeze();
        self.counts.datagrams_received += 1;
        let limits = &self.config.datagrams;
        let dropped = self
            .unread_datagrams
            .push(&mut self.streams, key, now, payload, limits);
        self.limits.count(Limit::DatagramsUnread, dropped);
        if let Some(stream) = self.streams.get_mut(key)
            && std::mem::take(&mut stream.want_read)
        {
            self.events.push_back(Event::Readable(key));
        }
        Ok(())
    }

    /// The flow that a DGRAM is for; `None` when it has ended, and the datagram crossed its end.
    fn flow_of(&mut self, id: u32) -> Result<Option<Key>, Violation> {
        let Some(stream) = self.streams.by_id(id) else {
            return if self.was_opened(id) {
                Ok(None)
            } else {
                Err(Violation::new(
                    close::STREAM_ID,
                    "DGRAM for a flow that never was",
                ))
            };
        };
        if stream.flow.is_none() {
            return Err(Violation::protocol("DGRAM on a stream that is no flow"));
        }
        if stream.phase == Phase::Opening {
            return Err(Violation::protocol("DGRAM before OPEN_OK"));
        }
        Ok(stream.reset.is_none().then_some(stream.key))
    }

    /// Whether the stream with this id exists or existed.
    pub(super) fn was_opened(&self, id: u32) -> bool {
        let ours = (id % 2 == 1) == (self.side == Side::Node);
        let highest = if ours {
            self.next_id.saturating_sub(2)
        } else if self.accepted == 0 {
            0
        } else {
            self.accepted * 2 - u32::from(self.side == Side::Client)
        };
        id <= highest && id <= MAX_ID
    }

    /// Sends datagrams. While streams have bytes to send they get at most half of what is left of the
    /// batch; one that is larger than its share is paid for by the batches that follow.
    pub(super) fn put_datagrams(&mut self, now: Instant, batch: &mut Batch, limit: usize) {
        let room = limit.saturating_sub(batch.len());
        let share = if self.scheduler.streams_wait() {
            self.datagram_share = self.datagram_share.min(0);
            room / 2
        } else {
            self.datagram_share = 0;
            room
        };
        self.datagram_share += i64::try_from(share).unwrap_or(i64::MAX);
        // Ends: every turn takes something from the share, or adds to what a flow may send.
        while self.datagram_share > 0 {
            let Some(key) = self.scheduler.flows.pop_front() else {
                break;
            };
            self.put_flow_turn(now, batch, key);
        }
    }

    /// One turn of a flow. It goes to the back of the list if it has more, or to the front if the share of
    /// this batch ended before its turn.
    fn put_flow_turn(&mut self, now: Instant, batch: &mut Batch, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let id = stream.id;
        let Some(flow) = stream.flow.as_deref_mut() else {
            return;
        };
        flow.listed = false;
        if flow.deficit <= 0 {
            flow.deficit += TURN;
        }
        while flow.deficit > 0 && self.datagram_share > 0 {
            let Some((payload, since)) = self.unsent.take(flow) else {
                break;
            };
            if now.saturating_duration_since(since) > self.config.datagrams.max_age {
                self.limits.count(Limit::DatagramAge, 1);
                continue;
            }
            let header = Header {
                kind: kind::DATAGRAM,
                flags: 0,
                length: u16::try_from(payload.len())
                    .expect("invariant: a datagram has at most 65,507 bytes"),
                id,
            };
            let cost = i64::from(header.length) + HEADER_LEN as i64;
            flow.deficit -= cost;
            self.datagram_share -= cost;
            batch.push_small(&header.to_bytes());
            batch.push(payload);
            self.counts.datagrams_sent += 1;
        }
        if flow.queue(Direction::Out).is_empty() {
            flow.deficit = flow.deficit.min(0);
        } else {
            flow.listed = true;
            if flow.deficit > 0 {
                self.scheduler.flows.push_front(key);
            } else {
                self.scheduler.flows.push_back(key);
            }
        }
    }

    /// Forgets the datagrams of a stream that has ended.
    pub(super) fn drop_datagrams(&mut self, key: Key) {
        if let Some(flow) = self
            .streams
            .get_mut(key)
            .and_then(|s| s.flow.as_deref_mut())
        {
            self.unsent.clear(flow);
            self.unread_datagrams.clear(flow);
        }
    }

    /// Forgets all datagrams that wait to be sent, and counts them.
    pub(super) fn drop_unsent_datagrams(&mut self) {
        let dropped = self.unsent.clear_all(&mut self.streams);
        self.limits.count(Limit::DatagramsDetached, dropped);
        let streams = &mut self.streams;
        for key in self.scheduler.flows.drain(..) {
            if let Some(flow) = streams.get_mut(key).and_then(|s| s.flow.as_deref_mut()) {
                flow.listed = false;
            }
        }
    }
}
