//! When a node asks for everything again. At once, as a rule; more and more slowly while what comes does not fit
//! either, as when the other program reckons otherwise: it may have much to send.

use std::time::Duration;

use sg_runtime::backoff::Backoff;
use tokio::time::Instant;

use super::link::LinkId;

const BASE: Duration = Duration::from_millis(250);
/// A control plane waits 30 s for an answer before it gives the node up.
const LONGEST: Duration = Duration::from_secs(10);

/// What is still to be asked.
#[derive(Debug)]
pub(super) struct Resync {
    backoff: Backoff,
    /// Not before this, after one that did not help.
    earliest: Option<Instant>,
    owed: Option<Owed>,
}

/// A message that did not fit and is not answered yet.
#[derive(Debug, Clone, Copy)]
struct Owed {
    link: LinkId,
    nonce: u64,
    at: Instant,
}

impl Resync {
    pub(super) fn new() -> Self {
        Self {
            backoff: Backoff::new(BASE, LONGEST),
            earliest: None,
            owed: None,
        }
    }

    /// A message does not fit: everything is to be asked for.
    pub(super) fn owe(&mut self, link: LinkId, nonce: u64, now: Instant) {
        let at = self.earliest.map_or(now, |earliest| earliest.max(now));
        self.earliest = Some(at + self.backoff.next_delay());
        self.owed = Some(Owed { link, nonce, at });
    }

    /// When something is to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        self.owed.map(|owed| owed.at)
    }

    /// What is to be answered now: link and nonce.
    pub(super) fn take(&mut self, now: Instant) -> Option<(LinkId, u64)> {
        let owed = self.owed.take_if(|owed| owed.at <= now)?;
        Some((owed.link, owed.nonce))
    }

    /// A message did fit.
    pub(super) fn fits(&mut self) {
        self.backoff.reset();
        self.earliest = None;
    }

    /// The link is gone, and with it who would be asked.
    pub(super) fn lost(&mut self, link: LinkId) {
        self.owed.take_if(|owed| owed.link == link);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_never_fits_is_asked_for_more_and_more_slowly() {
        let mut resync = Resync::new();
        let start = Instant::now();
        let mut now = start;
        resync.owe(1, 1, now);
        assert_eq!(resync.take(now), Some((1, 1)), "the first time at once");
        for nonce in 2..60 {
            resync.owe(1, nonce, now);
            now = resync.due().unwrap();
            assert_eq!(resync.take(now), Some((1, nonce)));
        }
        assert!(now - start > Duration::from_secs(60), "{:?}", now - start);
        resync.fits();
        resync.owe(1, 60, now);
        assert_eq!(resync.take(now), Some((1, 60)), "at once again");
        assert_eq!(resync.take(now), None);
    }

    #[test]
    fn a_link_that_is_lost_is_not_asked() {
        let mut resync = Resync::new();
        let now = Instant::now();
        resync.owe(1, 1, now);
        resync.lost(2);
        assert!(resync.due().is_some());
        resync.lost(1);
        assert_eq!(resync.take(now), None);
    }
}
