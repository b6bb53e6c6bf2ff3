//! How streams and the tunnel end.

use bytes::Bytes;

use super::Connection;
use crate::closed::{CloseReason, Closed};
use crate::code::close;
use crate::error::Violation;
use crate::event::Event;
use crate::frame::MAX_MESSAGE;
use crate::scheduler::Scheduler;
use crate::stream::{Fin, Key, Phase};

/// Finished streams earn back tokens for the late frames that they may cause.
const EARNED_BY_END: u32 = 4;

impl Connection {
    /// Ends the tunnel and all its streams; GOAWAY is sent by the next `poll_transmit`.
    /// DRAIN is not an end: it is sent as NONE.
    pub fn close(&mut self, code: u32, message: &str) {
        let code = if code == close::DRAIN {
            close::NONE
        } else {
            code
        };
        let mut end = message.len().min(MAX_MESSAGE);
        while !message.is_char_boundary(end) {
            end -= 1;
        }
        let text = Bytes::copy_from_slice(message.as_bytes().get(..end).unwrap_or_default());
        self.end(CloseReason::Local { code }, Some((code, text)));
    }

    pub(super) fn end_timeout(&mut self) {
        self.end(CloseReason::Timeout, Some((close::IDLE, Bytes::new())));
    }

    pub(super) fn fail(&mut self, violation: Violation) {
        let Violation {
            code,
            detail,
            limit,
        } = violation;
        if let Some(limit) = limit {
            self.limits.count(limit, 1);
        }
        let text = Bytes::from_static(detail.as_bytes());
        self.end(CloseReason::Protocol { code, detail }, Some((code, text)));
    }

    pub(super) fn closed_by_peer(&mut self, code: u32, message: &[u8]) {
        let message: String = String::from_utf8_lossy(message)
            .chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect();
        let message = message.into();
        self.end(CloseReason::Peer { code, message }, None);
    }

    pub(super) fn end(&mut self, reason: CloseReason, goaway: Option<(u32, Bytes)>) {
        if self.closed.is_some() {
            return;
        }
        self.closed = Some(Closed { reason });
        // On a resumed connection it cannot be said before the peer has told what it has.
        let silent = self.is_detached() || self.intake.expects_resume();
        self.goaway = goaway.filter(|_| !silent);
        if self.goaway.is_none() {
            self.log.detach();
        }
        self.log.stop();
        self.detached_until = None;
        self.scheduler = Scheduler::default();
        self.controls.clear();
        self.pong = None;
        self.partial = None;
        for key in self.streams.keys() {
            if let Some(stream) = self.streams.get_mut(key) {
                self.send_queues.forget(&mut stream.outbox);
                stream.pending = crate::stream::Pending::default();
                let complete = stream.fin_in && stream.reset.is_none();
                self.events.push_back(Event::Ended(key));
                // What came completely may still be read.
                if !complete {
                    self.drop_inbox(key);
                }
            }
            self.remove_if_done(key);
        }
        self.events.push_back(Event::Incoming);
        self.events.push_back(Event::Closed);
    }

    /// Resets a stream from this side.
    pub(super) fn reset_here(&mut self, key: Key, code: u32) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        if stream.reset.is_some() {
            return;
        }
        stream.reset = Some(code);
        self.send_queues.forget(&mut stream.outbox);
        stream.words = Bytes::new();
        stream.pending.open_ok = false;
        stream.pending.window = false;
        let finished = stream.fin_out == Fin::Sent && stream.fin_in;
        if !finished && stream.id != 0 && self.closed.is_none() {
            stream.pending.reset = Some(code);
            self.scheduler.mark_control(stream);
        }
        if stream.held {
            self.events.push_back(Event::Ended(key));
        }
        let (phase, sent) = (stream.phase, stream.id != 0);
        if phase == Phase::Offered {
            self.count_failed_open();
        } else if phase == Phase::Opening && sent {
            self.count_own_failure(self.coarse_now());
        }
        self.drop_inbox(key);
    }

    /// The peer reset a stream.
    pub(super) fn reset_there(&mut self, key: Key, code: u32) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        stream.reset_in = true;
        if stream.reset.is_none() {
            stream.reset = Some(code);
            self.send_queues.forget(&mut stream.outbox);
            stream.pending.open_ok = false;
            stream.pending.window = false;
            if stream.fin_out != Fin::Sent {
                stream.pending.reset = Some(code);
                self.scheduler.mark_control(stream);
            }
            let offered = stream.phase == Phase::Offered;
            self.drop_inbox(key);
            self.events.push_back(Event::Ended(key));
            if offered {
                self.count_failed_open();
            }
        } else {
            // A RESET of ours that waited for the answer is one itself now.
            self.scheduler.mark_control(stream);
        }
        self.remove_if_done(key);
    }

    pub(super) fn drop_inbox(&mut self, key: Key) {
        if let Some(stream) = self.streams.get_mut(key) {
            self.references -= stream.inbox.references();
            self.unread_bytes -= stream.inbox.len();
            stream.inbox.clear();
            stream.window.close(&mut self.pool);
        }
        self.drop_datagrams(key);
    }

    /// Forgets a stream that neither the wire nor the application needs any more.
    pub(super) fn remove_if_done(&mut self, key: Key) {
        let Some(stream) = self.streams.get_mut(key) else {
            return;
        };
        let unsent = stream.id == 0 && stream.reset.is_some();
        let quiet = stream.pending.reset.is_none() && stream.is_done_out() && stream.is_done_in();
        let done = self.closed.is_some() || unsent || quiet;
        if stream.held || !done {
            return;
        }
        let theirs = stream.theirs;
        self.drop_inbox(key);
        self.streams.remove(key);
        self.guard.useless.earn(EARNED_BY_END);
        if theirs {
            self.returned += 1;
        }
    }

    /// Opens that were queued but can no longer be sent fail, the youngest first.
    pub(super) fn fail_unsent_opens(&mut self, keep: usize, code: u32) {
        let streams = &self.streams;
        self.scheduler
            .opens
            .retain(|key| streams.get(*key).is_some_and(|s| s.reset.is_none()));
        while self.scheduler.opens.len() > keep {
            if let Some(key) = self.scheduler.opens.pop_back() {
                self.reset_here(key, code);
                self.remove_if_done(key);
            }
        }
    }
}
