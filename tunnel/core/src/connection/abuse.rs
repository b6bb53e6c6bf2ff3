//! What a peer may make us do for nothing, and how this side keeps its own users from doing that to the
//! peer. The buckets are in `limits`.
//!
//! An OPEN that is answered is cheap: its stream is bounded by credit and by the number of streams. One
//! that is not, because it was refused or given up, leaves nothing behind but the work. So those are
//! counted apart, and when too many of them came, new OPENs are refused without asking anybody.
//!
//! The opener holds back as well: behind it are users that it does not know, and what they do must not
//! make the peer end the tunnel with all the streams of others.

use std::time::{Duration, Instant};

use super::Connection;
use crate::code::{self, close};
use crate::error::Violation;
use crate::limits::Limit;
use crate::scheduler::EPOCH_MS;
use crate::stream::{Key, Phase, Stream};

/// Epochs (of 64 ms) within which a stream that is given up before its answer counts as an early reset:
/// about a second. One whose user waited longer was meant.
const EARLY: u32 = 16;
/// The same for RESETs of this side: about ten seconds, so that what the connection delays is still young
/// here when it is young over there.
const OWN_EARLY: u32 = 160;

impl Connection {
    /// The code with which an OPEN is refused without asking the application, if it must be.
    pub(super) fn refusal(&mut self, now: Instant) -> Result<Option<u32>, Violation> {
        let limit = if !self.guard.opens.take(now) {
            Some(Limit::Opens)
        } else if self.guard.failed_opens.is_empty(now) {
            Some(Limit::FailedOpens)
        } else if self.offered >= self.config.pending_opens {
            Some(Limit::PendingOpens)
        } else {
            None
        };
        if let Some(limit) = limit {
            self.limits.count(limit, 1);
            if !self.guard.excess_opens.take(now) {
                return Err(Violation::limit(Limit::ExcessOpens, "too many OPEN frames"));
            }
        }
        let draining = self.draining_here || self.draining_there || self.deaf;
        Ok(match limit {
            _ if draining => Some(code::REFUSED_RETRY),
            Some(_) => Some(code::LIMIT),
            None => None,
        })
    }

    /// A stream of the peer has ended, by whomever, before it was accepted.
    pub(super) fn count_failed_open(&mut self) {
        self.offered -= 1;
        let now = self.coarse_now();
        // An empty bucket refuses the next OPEN.
        self.guard.failed_opens.take(now);
    }

    /// The peer resets a stream.
    pub(super) fn count_reset(&mut self, now: Instant, key: Key) -> Result<(), Violation> {
        let Some(stream) = self.streams.get(key) else {
            return Ok(());
        };
        if stream.reset_in {
            return self.useless(now, "too many RESET frames");
        }
        let young = self.epoch.wrapping_sub(stream.born) < EARLY;
        match stream.phase {
            Phase::Offered if young && stream.reset.is_none() => {
                let few = self.guard.early_resets.take(now);
                few.then_some(()).ok_or_else(|| {
                    let detail = "too many streams that are opened and reset";
                    Violation::limit(Limit::EarlyResets, detail)
                })?;
            }
            Phase::Opening if stream.reset.is_none() => self.count_own_failure(now),
            _ => {}
        }
        Ok(())
    }

    /// An open of ours has failed, or was given up.
    pub(super) fn count_own_failure(&mut self, now: Instant) {
        // An empty bucket refuses the next open.
        self.guard.own_failed_opens.take(now);
    }

    /// Whether so many of our opens have failed that the peer would soon have enough of them.
    pub(super) fn failed_too_often(&mut self) -> bool {
        let now = self.coarse_now();
        let failed = self.guard.own_failed_opens.is_empty(now);
        if failed {
            self.limits.count(Limit::OwnFailedOpens, 1);
        }
        failed
    }

    /// Whether the RESET of a stream that is being opened must wait, because the peer counts RESETs that
    /// come before its answer: until there is a token, or the answer. The caller keeps it pending.
    pub(super) fn holds_reset_back(&mut self, now: Instant, key: Key) -> bool {
        let young = |stream: &&Stream| self.epoch.wrapping_sub(stream.born) < OWN_EARLY;
        let waiting = |stream: &&Stream| stream.phase == Phase::Opening && !stream.reset_in;
        let early = self.streams.get(key).filter(waiting).filter(young);
        if early.is_none() {
            return false;
        }
        let hold = !self.guard.own_early_resets.take(now);
        if hold {
            self.limits.count(Limit::HeldResets, 1);
            self.scheduler.held_resets.push_back(key);
        }
        hold
    }

    /// When a RESET that waits may be sent.
    pub(super) fn next_held_reset(&self) -> Option<Instant> {
        self.scheduler.held_resets.front()?;
        self.guard.own_early_resets.next_at()
    }

    /// Lets RESETs go that have waited long enough.
    pub(super) fn release_held_resets(&mut self, now: Instant) {
        while let Some(key) = self.scheduler.held_resets.front() {
            let waits = |s: &&mut Stream| s.pending.reset.is_some() && !s.in_control;
            if let Some(stream) = self.streams.get_mut(*key).filter(waits) {
                if !self.guard.own_early_resets.take(now) {
                    return;
                }
                // It has its token.
                stream.born = self.epoch.wrapping_sub(OWN_EARLY);
                self.scheduler.mark_control(stream);
            }
            self.scheduler.held_resets.pop_front();
        }
    }

    /// On a new connection OPENs arrive that were lost with the old one: they are young again.
    pub(super) fn renew_opens(&mut self) {
        for key in self.streams.keys() {
            if let Some(stream) = self.streams.get_mut(key) {
                stream.born = self.epoch;
            }
        }
    }

    /// When the peer's SETTINGS must have come.
    pub(super) fn settings_deadline(&self) -> Option<Instant> {
        self.peer.is_none().then_some(self.settings_due)
    }

    /// Ends the tunnel if the peer's SETTINGS are late.
    pub(super) fn check_settings(&mut self, now: Instant) {
        if self.settings_deadline().is_some_and(|due| due <= now) {
            self.fail(Violation {
                code: close::SETTINGS,
                detail: "no SETTINGS in time",
                limit: Some(Limit::SettingsTime),
            });
        }
    }

    pub(super) fn useless(&mut self, now: Instant, detail: &'static str) -> Result<(), Violation> {
        if self.guard.useless.take(now) {
            Ok(())
        } else {
            Err(Violation::limit(Limit::UselessFrames, detail))
        }
    }

    /// The time to about 64 ms, for commands: they bring no time of their own.
    pub(super) fn coarse_now(&self) -> Instant {
        #[allow(clippy::cast_possible_truncation)]
        let epoch = EPOCH_MS as u64;
        self.start + Duration::from_millis(u64::from(self.epoch) * epoch)
    }
}
