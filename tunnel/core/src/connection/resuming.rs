//! What outlives the transport: detaching, attaching a new connection, and giving up.
//!
//! The driver tells how a transport ended, and when there is a new one. Whether a tunnel is detached
//! or ends is decided here; proofs and tunnel ids are not known here.

use std::io;
use std::time::Instant;

use super::Connection;
use crate::closed::{CloseReason, Closed};
use crate::code;
use crate::event::Event;

impl Connection {
    /// Whether the tunnel would outlive its transport: it has a resume time, has not ended, and neither
    /// side has sent GOAWAY (protocol 801).
    #[must_use]
    pub fn is_resumable(&self) -> bool {
        !self.config.resume_time.is_zero()
            && self.closed.is_none()
            && !self.goaway_sent
            && !self.draining_there
    }

    /// Whether the tunnel has no transport and waits for [`Self::attach`]. Until then nothing is sent and
    /// what comes in is dropped.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.detached_until.is_some()
    }

    /// The transport has failed, or ended without saying goodbye. A resumable tunnel is detached from now
    /// on, any other one has ended.
    pub fn transport_lost(&mut self, now: Instant, kind: io::ErrorKind, text: &str) {
        if self.is_detached() {
            return;
        }
        if self.is_resumable() {
            self.detach(now);
        } else {
            self.lose(kind, text);
        }
    }

    /// The peer ended the transport in order (close_notify), but without GOAWAY: never resumable
    /// (protocol 906).
    pub fn transport_closed(&mut self, _now: Instant) {
        if !self.is_detached() {
            self.lose(
                io::ErrorKind::UnexpectedEof,
                "the peer closed the connection",
            );
        }
    }

    /// Nothing came, or nothing could be written, for too long. Like [`Self::transport_lost`]; the
    /// driver drops the transport.
    pub fn time_out(&mut self, now: Instant) {
        if self.is_detached() {
            return;
        }
        if self.is_resumable() {
            self.detach(now);
        } else {
            self.end_timeout();
        }
    }

    /// The transport is gone and nobody will bring another one: ends the tunnel, resumable or not.
    pub fn lose(&mut self, kind: io::ErrorKind, text: &str) {
        let Closed { reason } = Closed::lost(kind, text);
        self.end(reason, None);
    }

    /// The peer no longer knows the tunnel: ends it, and sends nothing (protocol 809).
    pub fn abandon(&mut self) {
        self.end(CloseReason::Abandoned, None);
    }

    /// A new connection is there, and its Hello says that it resumes this tunnel. From the next call on
    /// input and output belong to it; nothing of the old connection may follow, in either direction.
    /// A tunnel that still has its old transport is detached first (protocol 804).
    ///
    /// # Errors
    ///
    /// How the tunnel ended. A tunnel that is not resumable ends by this.
    pub fn attach(&mut self, now: Instant) -> Result<(), Closed> {
        if !self.is_resumable() {
            self.lose(
                io::ErrorKind::ConnectionAborted,
                "the peer has left this connection for another one",
            );
        }
        if let Some(closed) = &self.closed {
            return Err(closed.clone());
        }
        if !self.is_detached() {
            self.detach(now);
        }
        self.detached_until = None;
        self.resume_due = true;
        self.intake.attach();
        self.log.attach(now);
        self.counts.resumes += 1;
        self.settings_due = now + self.config.settings_time;
        self.renew_opens();
        self.keepalive.restart(now);
        self.events.push_back(Event::Attached);
        Ok(())
    }

    /// Forgets everything that belongs to the present connection and not to the tunnel.
    fn detach(&mut self, now: Instant) {
        self.detached_until = Some(now + self.config.resume_time);
        self.pong = None;
        self.drop_unsent_datagrams();
        self.resume_due = false;
        self.intake.detach();
        self.log.detach();
        // Nothing was done for these yet: another tunnel can take them at once.
        self.fail_unsent_opens(0, code::REFUSED_RETRY);
        self.events.push_back(Event::Detached);
    }
}
