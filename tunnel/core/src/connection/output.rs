//! What goes out, in which order: control first, then datagrams, interactive streams, bulk.

use std::time::Instant;

use super::Connection;
use crate::batch::Batch;
use crate::event::Event;
use crate::frame::{FIN, Frame, Header, Settings, kind};
use crate::record::kind as record;
use crate::scheduler::MAX_BURST;
use crate::stream::{Fin, Key};

/// A DATA frame is not started for less than this much room in a batch.
const MIN_ROOM: usize = 512;
/// A batch is never larger, whatever the driver asks for.
const MAX_BATCH: usize = 1024 * 1024;
/// A waiting writer is woken when it can queue at least this much, or everything is sent.
const WAKE_ROOM: usize = 32 * 1024;

impl Connection {
    /// Appends up to about `limit` bytes (exceeded by less than one frame) to `batch`. Returns
    /// whether more waits.
    pub fn poll_transmit(&mut self, now: Instant, batch: &mut Batch, limit: usize) -> bool {
        self.see_time(now);
        let silent = self.closed.is_some() && self.goaway.is_none();
        if silent || self.is_detached() {
            return false;
        }
        self.scheduler.begin_batch(limit);
        let before = batch.len();
        let limit = before + limit.min(MAX_BATCH);
        self.put_offset(batch);
        if self.closed.is_none() {
            self.put_signs_of_life(now, batch);
        }
        let more = if self.intake.expects_resume() {
            false
        } else if self.log.is_replaying() {
            self.put_replay(batch, limit)
        } else if self.closed.is_some() {
            batch.begin_logged();
            self.put_settings(batch);
            self.put_goaway(batch);
            false
        } else {
            self.put_frames(now, batch, limit)
        };
        batch.finish(&mut self.log, now);
        self.counts.sent_bytes += (batch.len() - before) as u64;
        more
    }

    /// RESUME goes ahead of everything, ACK with anything or when it is due (protocol 207, 805).
    fn put_offset(&mut self, batch: &mut Batch) {
        if std::mem::take(&mut self.resume_due) {
            batch.push_offset(record::RESUME, self.intake.tell());
        } else if self.intake.has_news() && (self.intake.ack_is_due() || self.wants_frames()) {
            batch.push_offset(record::ACK, self.intake.tell());
        }
    }

    /// Sends logged bytes again, before there are new ones (protocol 806).
    fn put_replay(&mut self, batch: &mut Batch, limit: usize) -> bool {
        batch.begin_replay();
        while batch.len() < limit {
            let Some(piece) = self.log.next_replay(limit - batch.len()) else {
                break;
            };
            batch.push(piece);
        }
        true
    }

    fn put_frames(&mut self, now: Instant, batch: &mut Batch, limit: usize) -> bool {
        let start = batch.len();
        // With the headers of all but tiny frames.
        let waiting = self.send_queues.queued();
        self.log
            .prepare((waiting + waiting / 8).min(limit.saturating_sub(start)));
        batch.begin_logged();
        // The log has a reserve for everything that is not DATA (protocol 210).
        let most = limit.min(start.saturating_add(self.log.reserve()));
        self.put_tunnel_frames(batch, most);
        self.put_opens(now, batch, most);
        self.put_stream_frames(now, batch, most);
        let logged = batch.len() - start;
        if !self.scheduler.flows.is_empty() {
            // Behind OPEN and OPEN_OK: a flow must be known before its datagrams.
            batch.begin_unlogged();
            self.put_datagrams(now, batch, limit);
            batch.begin_logged();
        } else {
            // What was sent in advance is forgiven.
            self.datagram_share = 0;
        }
        let room = self.log.room().saturating_sub(logged);
        let most = limit.min(batch.len().saturating_add(room));
        self.put_data(batch, most);
        if most < limit && self.scheduler.streams_wait() {
            self.log.block();
        }
        self.put_streams_credit(batch);
        self.has_more()
    }

    /// Whether `poll_transmit` would give bytes. May be true in vain.
    #[must_use]
    pub fn wants_transmit(&self) -> bool {
        if self.closed.is_some() {
            return self.goaway.is_some();
        }
        if self.is_detached() {
            return false;
        }
        self.resume_due || self.intake.ack_is_due() || self.wants_frames()
    }

    /// The same without RESUME and ACK.
    fn wants_frames(&self) -> bool {
        if self.closed.is_some() {
            return self.goaway.is_some();
        }
        if self.pong.is_some() || self.keepalive.is_due() {
            return true;
        }
        !self.intake.expects_resume()
            && (self.log.is_replaying()
                || !self.settings_sent
                || self.goaway.is_some()
                || self.streams_credit().is_some()
                || self.has_more())
    }

    /// How many streams wait to send something. May count some that were reset meanwhile.
    #[must_use]
    pub fn waiting_frames(&self) -> usize {
        let list = &self.scheduler;
        if self.intake.expects_resume() || self.log.is_replaying() {
            return 0;
        }
        let opens = if self.peer.is_some() {
            list.opens.len()
        } else {
            0
        };
        let streams = if self.log.room() < MIN_ROOM {
            0
        } else {
            list.interactive.len() + list.bulk.len()
        };
        opens + list.control.len() + list.flows.len() + streams
    }

    fn has_more(&self) -> bool {
        let list = &self.scheduler;
        let frames = !list.control.is_empty()
            || !self.controls.is_empty()
            || (!list.opens.is_empty() && self.peer.is_some());
        !list.flows.is_empty()
            || (list.streams_wait() && self.log.room() >= MIN_ROOM)
            || (frames && self.log.reserve() > 0)
    }

    fn put_settings(&mut self, batch: &mut Batch) {
        if !std::mem::replace(&mut self.settings_sent, true) {
            batch.push_frame(&Frame::Settings(Settings {
                max_streams: self.config.max_streams,
                max_frame: self.config.max_frame,
                max_metadata: u32::try_from(self.config.max_metadata).unwrap_or(u32::MAX),
            }));
        }
    }

    fn put_goaway(&mut self, batch: &mut Batch) {
        if let Some((code, message)) = self.goaway.take() {
            self.goaway_sent = true;
            self.log.stop();
            batch.push_frame(&Frame::Goaway { code, message });
        }
    }

    fn put_signs_of_life(&mut self, now: Instant, batch: &mut Batch) {
        batch.begin_unlogged();
        if let Some(value) = self.pong.take() {
            batch.push_frame(&Frame::Pong(value));
        }
        // While a ping is unanswered it tells as much, in however many batches the opens leave.
        let opening = self.peer.is_some() && !self.scheduler.opens.is_empty();
        if opening && !self.keepalive.is_unanswered() {
            self.keepalive.want_ping();
        }
        if let Some(value) = self.keepalive.take_ping(&self.config, now) {
            batch.push_frame(&Frame::Ping(value));
        }
    }

    fn put_tunnel_frames(&mut self, batch: &mut Batch, limit: usize) {
        self.put_settings(batch);
        if self.ids_run_out() {
            self.goaway();
        }
        self.put_goaway(batch);
        while batch.len() < limit {
            let Some(message) = self.controls.pop_front() else {
                break;
            };
            batch.push_frame(&Frame::Control(message));
        }
    }

    fn put_opens(&mut self, now: Instant, batch: &mut Batch, limit: usize) {
        if self.peer.is_none() {
            return;
        }
        while batch.len() < limit {
            let Some(key) = self.scheduler.opens.pop_front() else {
                return;
            };
            let id = self.next_id;
            let Some(stream) = self.streams.get_mut(key).filter(|s| s.reset.is_none()) else {
                continue;
            };
            let flow = stream.flow.is_some();
            let credit = if flow {
                0
            } else {
                stream.window.start(&self.config, &mut self.pool, now)
            };
            let metadata = std::mem::take(&mut stream.words);
            self.streams.set_id(key, id);
            self.next_id += 2;
            self.opened += 1;
            self.counts.streams_opened += 1;
            batch.push_frame(&Frame::Open {
                id,
                credit,
                flow,
                metadata,
            });
            if let Some(stream) = self.streams.get_mut(key) {
                stream.born = self.epoch;
                self.scheduler.mark_flow(stream);
            }
        }
    }

    fn put_stream_frames(&mut self, now: Instant, batch: &mut Batch, limit: usize) {
        let min_rtt = self.keepalive.min_rtt();
        while batch.len() < limit {
            let Some(key) = self.scheduler.control.pop_front() else {
                return;
            };
            let Some(stream) = self.streams.get_mut(key) else {
                continue;
            };
            stream.in_control = false;
            let id = stream.id;
            let pending = std::mem::take(&mut stream.pending);
            if let Some(code) = pending.reset {
                if self.holds_reset_back(now, key) {
                    if let Some(stream) = self.streams.get_mut(key) {
                        stream.pending.reset = Some(code);
                    }
                    continue;
                }
                let Some(stream) = self.streams.get_mut(key) else {
                    continue;
                };
                stream.reset_out = true;
                batch.push_frame(&Frame::Reset { id, code });
                self.remove_if_done(key);
                continue;
            }
            if pending.open_ok {
                let credit = if stream.flow.is_some() {
                    0
                } else {
                    stream.window.start(&self.config, &mut self.pool, now)
                };
                let answer = std::mem::take(&mut stream.words);
                batch.push_frame(&Frame::OpenOk { id, credit, answer });
                self.scheduler.mark_data(stream, self.epoch);
                self.scheduler.mark_flow(stream);
            }
            if pending.window && !stream.fin_in {
                let grant = stream
                    .window
                    .grant(&self.config, &mut self.pool, min_rtt, now);
                if let Some(limit) = grant {
                    batch.push_frame(&Frame::Window { id, limit });
                }
            }
        }
    }

    /// Returns the slots of finished streams, not one by one.
    fn put_streams_credit(&mut self, batch: &mut Batch) {
        if let Some(total) = self.streams_credit() {
            self.announced = total;
            batch.push_frame(&Frame::Streams { total });
        }
    }

    fn streams_credit(&self) -> Option<u32> {
        let total = self.config.max_streams.saturating_add(self.returned);
        let gained = total.saturating_sub(self.announced);
        let step = self.config.max_streams / 8;
        let left = self.announced - self.accepted;
        (gained > 0 && (gained > step || left <= step)).then_some(total)
    }

    fn put_data(&mut self, batch: &mut Batch, limit: usize) {
        // Interactive streams leave half of the batch to bulk that waits.
        let half = batch.len() + limit.saturating_sub(batch.len()) / 2;
        // Ends: every turn sends something or takes an entry out.
        loop {
            let cap = if self.scheduler.bulk.is_empty() {
                limit
            } else {
                half
            };
            if batch.len() + MIN_ROOM > cap {
                break;
            }
            let Some(key) = self.scheduler.interactive.pop_front() else {
                break;
            };
            self.put_turn(batch, key, cap - batch.len());
        }
        while batch.len() + MIN_ROOM <= limit {
            let Some(key) = self.scheduler.bulk.pop_front() else {
                break;
            };
            self.put_turn(batch, key, limit - batch.len());
        }
    }

    /// One DATA frame of at most `max` payload bytes.
    fn put_turn(&mut self, batch: &mut Batch, key: Key, max: usize) {
        let max_frame = self.peer.unwrap_or(Settings::DEFAULT).max_frame as usize;
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if !stream.has_data() {
            stream.class = crate::stream::Class::None;
            return;
        }
        let queued = stream.outbox.len();
        let length = queued
            .min(max)
            .min(max_frame)
            .min(self.scheduler.allowance(stream));
        let fin = stream.fin_out == Fin::Queued && length == queued;
        let header = Header {
            kind: kind::DATA,
            flags: if fin { FIN } else { 0 },
            length: u16::try_from(length).expect("invariant: a frame is at most 65,528 bytes"),
            id: stream.id,
        };
        batch.push_small(&header.to_bytes());
        let mut left = length;
        while left > 0 {
            let piece = stream
                .outbox
                .pop(left)
                .expect("invariant: the queue holds what its length says");
            left -= piece.len();
            batch.push(piece);
        }
        stream.sent += length as u64;
        stream.burst = MAX_BURST.min(stream.burst + u32::from(header.length));
        if fin {
            stream.fin_out = Fin::Sent;
        }
        self.scheduler.requeue(stream, length);
        self.send_queues.remove(length);
        let room = stream.write_budget(self.send_queues.limit(&self.config));
        if stream.want_write && (room >= WAKE_ROOM || (room > 0 && stream.outbox.is_empty())) {
            stream.want_write = false;
            self.events.push_back(Event::Writable(key));
        }
        if fin {
            self.remove_if_done(key);
        }
    }
}
