//! What the peer sends: bytes to frames, frames to state. Never waits for an application.

use std::time::Instant;

use bytes::{Buf, Bytes, BytesMut};

use super::{Connection, Partial, Side};
use crate::code::close;
use crate::error::Violation;
use crate::event::{Event, Incoming};
use crate::frame::{FIN, Frame, Header};
use crate::limits::Limit;
use crate::stream::{Fin, Key, Phase, Stream};

/// Unread pieces of all streams of a tunnel that may be references into the driver's receive buffers. Each may hold on
/// to a whole buffer (up to 256 KiB), to 32 MiB in all. For each further one, an older one is copied, of the streams in turn, and
/// costs from then on about what it is long: so the references of streams whose readers have stopped become fewer, and those
/// that are read pay for it no longer than that takes.
const REFERENCES: usize = 128;
/// A WINDOW that raises the limit by less is honoured, but counted as useless.
const MIN_GRANT: u64 = 1024;
/// Bytes of CONTROL messages that may wait for the application.
const CONTROL_BYTES: usize = 4 * 1024 * 1024;

impl Connection {
    /// Takes all of what came in. Payloads leave `input` as slices of it.
    pub fn handle_input(&mut self, now: Instant, input: &mut BytesMut) {
        if self.closed.is_none() && !self.is_detached() {
            self.see_time(now);
            if let Err(violation) = self.read_records(now, input) {
                self.fail(violation);
            }
        }
        input.clear();
    }

    /// Counts bytes that came in, before [`Self::handle_input`]: any byte is a sign of life.
    pub fn handle_received(&mut self, now: Instant, bytes: usize) {
        self.counts.received_bytes += bytes as u64;
        self.keepalive.on_received(now);
    }

    /// The header of a DATA frame: credit is charged for all of it at once.
    pub(super) fn on_data(&mut self, now: Instant, header: Header) -> Result<(), Violation> {
        let length = usize::from(header.length);
        let fin = header.flags & FIN != 0;
        if header.flags & !FIN != 0 {
            return Err(Violation::protocol("undefined flag"));
        }
        if length > self.config.max_frame as usize {
            return Err(Violation::too_long("DATA too long"));
        }
        if length == 0 && !fin && !self.guard.empty_data.take(now) {
            return Err(Violation::limit(
                Limit::EmptyData,
                "too many empty DATA frames",
            ));
        }
        let Some(stream) = self.streams.by_id(header.id) else {
            return Err(Violation::new(close::STREAM_ID, "DATA on no stream"));
        };
        if stream.is_done_in() {
            return Err(Violation::new(
                close::STREAM_ID,
                "DATA after the end of its direction",
            ));
        }
        if stream.flow.is_some() {
            return Err(Violation::protocol("DATA on a flow"));
        }
        if stream.phase == Phase::Opening {
            return Err(Violation::protocol("DATA before OPEN_OK"));
        }
        if !stream.window.receive(length as u64) {
            return Err(Violation::new(
                close::FLOW_CONTROL,
                "DATA beyond the credit",
            ));
        }
        let key = stream.key;
        if length > 0 {
            self.partial = Some(Partial {
                key: Some(key),
                left: length,
                fin,
            });
        } else if fin {
            self.on_fin(key);
        }
        Ok(())
    }

    /// Takes bytes of a DATA frame, at most `max`; returns how many.
    pub(super) fn read_payload(
        &mut self,
        partial: Partial,
        input: &mut BytesMut,
        max: usize,
    ) -> usize {
        let take = partial.left.min(max);
        let may_refer = self.references < REFERENCES
            || (self.wants_reference(partial, take) && self.copy_one_reference());
        let stream = partial
            .key
            .and_then(|key| self.streams.get_mut(key))
            .filter(|stream| stream.reset.is_none());
        if let Some(stream) = stream {
            debug_assert!(take > 0);
            if may_refer {
                let before = stream.inbox.references();
                stream.inbox.push(input.split_to(take).freeze());
                self.references += stream.inbox.references() - before;
            } else {
                stream.inbox.push_copy(&input[..take]);
                input.advance(take);
            }
            self.unread_bytes += take;
            if std::mem::take(&mut stream.want_read) {
                self.events.push_back(Event::Readable(stream.key));
            }
        } else {
            input.advance(take);
        }
        let left = partial.left - take;
        self.partial = (left > 0).then_some(Partial { left, ..partial });
        if let Some(key) = partial.key.filter(|_| left == 0 && partial.fin) {
            self.on_fin(key);
        }
        take
    }

    fn wants_reference(&self, partial: Partial, length: usize) -> bool {
        let stream = partial.key.and_then(|key| self.streams.get(key));
        stream.is_some_and(|stream| stream.reset.is_none() && stream.inbox.refers_to(length))
    }

    /// Makes room for one reference more; `false` if the search came to no stream that has any.
    fn copy_one_reference(&mut self) -> bool {
        let has_references = |stream: &Stream| stream.inbox.references() > 0;
        let copied = self
            .streams
            .search(&mut self.copying, has_references)
            .is_some_and(|stream| stream.inbox.copy_oldest_reference());
        self.references -= usize::from(copied);
        copied
    }

    fn on_fin(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.fin_in = true;
        stream.pending.window = false;
        if std::mem::take(&mut stream.want_read) {
            self.events.push_back(Event::Readable(key));
        }
        self.remove_if_done(key);
    }

    pub(super) fn on_frame(&mut self, now: Instant, frame: Frame) -> Result<(), Violation> {
        match frame {
            Frame::Open {
                id,
                credit,
                flow,
                metadata,
            } => self.on_open(now, (id, flow), credit, metadata),
            Frame::OpenOk { id, credit, answer } => self.on_open_ok(now, id, credit, answer),
            Frame::Reset { id, code } => match self.find(now, id)? {
                Some(key) => self.on_reset(now, key, code),
                None => Ok(()),
            },
            Frame::Window { id, limit } => match self.find(now, id)? {
                Some(key) => self.on_window(now, key, limit),
                None => Ok(()),
            },
            Frame::Ping(value) => {
                if !self.guard.pings.take(now) {
                    return Err(Violation::limit(Limit::Pings, "too many PING frames"));
                }
                self.pong = Some(value);
                Ok(())
            }
            Frame::Pong(value) => {
                if self.keepalive.on_pong(value, now) {
                    return Ok(());
                }
                self.useless(now, "too many unasked PONG frames")
            }
            Frame::Goaway { code, message } => self.on_goaway(now, code, &message),
            // Handled before its payload is copied.
            Frame::Datagram { .. } => Ok(()),
            Frame::Control(message) => self.on_control(now, message),
            Frame::Settings(settings) => {
                if self.peer.is_some() {
                    return Err(Violation::new(close::SETTINGS, "second SETTINGS"));
                }
                self.peer = Some(settings);
                self.peer_allows = settings.max_streams;
                self.fail_unsent_opens(settings.max_streams as usize, crate::code::LIMIT);
                Ok(())
            }
            Frame::Streams { total } => {
                if total <= self.peer_allows {
                    return self.useless(now, "too many STREAMS frames");
                }
                self.peer_allows = total;
                Ok(())
            }
        }
    }

    fn on_open(
        &mut self,
        now: Instant,
        (id, flow): (u32, bool),
        credit: u32,
        metadata: Bytes,
    ) -> Result<(), Violation> {
        let first = if self.side == Side::Client { 1 } else { 2 };
        let expected = first + self.accepted * 2;
        if id != expected {
            return Err(Violation::new(close::STREAM_ID, "OPEN out of sequence"));
        }
        if self.accepted >= self.announced {
            return Err(Violation::protocol("OPEN beyond the stream credit"));
        }
        self.accepted += 1;
        let refusal = self.refusal(now)?;
        let stream = self.streams.insert(id, Phase::Offered);
        stream.born = self.epoch;
        if flow {
            stream.flow = Some(Box::default());
        } else {
            stream.send_limit = credit.into();
        }
        let key = stream.key;
        // A refused one is a stream as well until its RESET has left, and must not count from whatever comes next.
        self.keepalive.set_active(true, now);
        if let Some(code) = refusal {
            // Nobody was asked: it is not one that the application has failed.
            stream.phase = Phase::Open;
            self.release(key, code);
            return Ok(());
        }
        self.offered += 1;
        self.counts.streams_accepted += 1;
        self.push_incoming(Incoming::Offer { key, metadata });
        Ok(())
    }

    fn on_open_ok(
        &mut self,
        now: Instant,
        id: u32,
        credit: u32,
        answer: Bytes,
    ) -> Result<(), Violation> {
        let Some(key) = self.find(now, id)? else {
            return Ok(());
        };
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(());
        };
        if stream.phase != Phase::Opening || stream.is_done_in() {
            return Err(Violation::protocol(
                "OPEN_OK for a stream that is not being opened",
            ));
        }
        stream.phase = Phase::Open;
        if stream.flow.is_none() {
            stream.send_limit = credit.into();
        }
        if stream.reset.is_none() {
            if !answer.is_empty() {
                stream.words = answer;
            }
            self.events.push_back(Event::Opened(key));
            self.scheduler.mark_data(stream, self.epoch);
        } else {
            // Its RESET may have waited for this answer.
            self.scheduler.mark_control(stream);
        }
        Ok(())
    }

    fn on_reset(&mut self, now: Instant, key: Key, code: u32) -> Result<(), Violation> {
        self.count_reset(now, key)?;
        if self.streams.get(key).is_some_and(|s| !s.reset_in) {
            self.reset_there(key, code);
        }
        Ok(())
    }

    fn on_window(&mut self, now: Instant, key: Key, limit: u64) -> Result<(), Violation> {
        let queue_limit = self.send_queues.limit(&self.config);
        let Some(stream) = self.streams.get_mut(key) else {
            return Ok(());
        };
        if stream.flow.is_some() {
            return Err(Violation::protocol("WINDOW on a flow"));
        }
        if stream.phase == Phase::Opening {
            return Err(Violation::protocol("WINDOW before OPEN_OK"));
        }
        if stream.fin_out == Fin::Sent {
            // It crossed our FIN.
            return self.useless(now, "too many WINDOW frames without effect");
        }
        if limit <= stream.send_limit {
            return if self.guard.empty_windows.take(now) {
                Ok(())
            } else {
                Err(Violation::limit(
                    Limit::EmptyWindows,
                    "too many WINDOW frames that raise nothing",
                ))
            };
        }
        let tiny = limit - stream.send_limit < MIN_GRANT;
        stream.send_limit = limit;
        if stream.want_write && stream.write_budget(queue_limit) > 0 {
            stream.want_write = false;
            self.events.push_back(Event::Writable(key));
        }
        if tiny {
            return self.useless(now, "too many WINDOW frames for a few bytes");
        }
        Ok(())
    }

    fn on_goaway(&mut self, now: Instant, code: u32, message: &[u8]) -> Result<(), Violation> {
        if code != close::DRAIN {
            self.closed_by_peer(code, message);
        } else if self.draining_there {
            return self.useless(now, "too many GOAWAY frames");
        } else {
            self.draining_there = true;
            self.log.stop();
            self.fail_unsent_opens(0, crate::code::REFUSED_RETRY);
            self.push_incoming(Incoming::Draining);
        }
        Ok(())
    }

    fn on_control(&mut self, now: Instant, message: Bytes) -> Result<(), Violation> {
        if !self.guard.controls.take(now) {
            return Err(Violation::limit(Limit::Controls, "too many CONTROL frames"));
        }
        if self.deaf {
            return Ok(());
        }
        self.waiting_controls.0 += 1;
        self.waiting_controls.1 += message.len();
        let (count, bytes) = self.waiting_controls;
        if count > self.config.control_backlog || bytes > CONTROL_BYTES {
            return Err(Violation::limit(
                Limit::ControlBacklog,
                "too many unread CONTROL messages",
            ));
        }
        self.push_incoming(Incoming::Control(message));
        Ok(())
    }

    fn push_incoming(&mut self, incoming: Incoming) {
        if self.deaf {
            return;
        }
        self.incoming.push_back(incoming);
        self.events.push_back(Event::Incoming);
    }

    /// The stream of a control frame. `None`: it is gone, the frame crossed its end.
    fn find(&mut self, now: Instant, id: u32) -> Result<Option<Key>, Violation> {
        if let Some(stream) = self.streams.by_id(id) {
            return Ok(Some(stream.key));
        }
        if !self.was_opened(id) {
            return Err(Violation::new(
                close::STREAM_ID,
                "frame for a stream that never was",
            ));
        }
        self.useless(now, "too many frames for streams that are gone")?;
        Ok(None)
    }
}
