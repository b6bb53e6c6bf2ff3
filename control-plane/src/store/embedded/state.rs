//! What the writer of the embedded store remembers beside the file: where history stands, what
//! the log weighs, and what expires when. Rebuilt from the file when it is opened.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::super::types::Revision;

/// The log keeps at most this many revisions and bytes; a tenth more before it is trimmed, so
/// that trimming is rare.
const KEEP_REVISIONS: usize = 10_000;
const KEEP_BYTES: u64 = 64 * 1024 * 1024;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct WriterState {
    pub(super) revision: Revision,
    /// The oldest revision that can be watched.
    pub(super) compacted: Revision,
    /// Bytes in the log per revision, oldest first.
    log: VecDeque<(Revision, u64)>,
    log_bytes: u64,
    expiries: BTreeMap<String, Expiry>,
    /// The same in the order in which they come due.
    due: BTreeSet<(u64, String)>,
}

/// When a key expires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Expiry {
    /// Milliseconds since 1970 by the wall clock.
    pub(super) deadline_ms: u64,
    /// The whole time it was given, in milliseconds.
    pub(super) ttl_ms: u64,
}

impl WriterState {
    /// A store with this history, an empty log and nothing that expires.
    pub(super) fn at(revision: Revision, compacted: Revision) -> Self {
        Self {
            revision,
            compacted,
            ..Self::default()
        }
    }

    /// Counts a row that was appended to the log.
    pub(super) fn count_log(&mut self, revision: Revision, bytes: u64) {
        match self.log.back_mut() {
            Some((last, sum)) if *last == revision => *sum += bytes,
            _ => self.log.push_back((revision, bytes)),
        }
        self.log_bytes += bytes;
    }

    /// Notes that the log before `revision` is gone.
    pub(super) fn compact_to(&mut self, revision: Revision) {
        while let Some((oldest, bytes)) = self.log.front()
            && *oldest < revision
        {
            self.log_bytes = self.log_bytes.saturating_sub(*bytes);
            self.log.pop_front();
        }
        self.compacted = revision;
    }

    /// The revision to compact to, if the log has outgrown what it keeps. The newest revision
    /// always stays.
    pub(super) fn overgrown(&self) -> Option<Revision> {
        let grown = |kept: u64| kept + kept / 10;
        if self.log.len() as u64 <= grown(KEEP_REVISIONS as u64)
            && self.log_bytes <= grown(KEEP_BYTES)
        {
            return None;
        }
        let (mut count, mut bytes) = (self.log.len(), self.log_bytes);
        for (revision, size) in &self.log {
            if count <= 1 || (count <= KEEP_REVISIONS && bytes <= KEEP_BYTES) {
                return Some(*revision);
            }
            count -= 1;
            bytes = bytes.saturating_sub(*size);
        }
        None
    }

    /// Sets or lifts the expiry of a key. True if that changed anything.
    pub(super) fn set_expiry(&mut self, key: &str, expiry: Option<Expiry>) -> bool {
        let old = match expiry {
            Some(expiry) => self.expiries.insert(key.to_owned(), expiry),
            None => self.expiries.remove(key),
        };
        if let Some(old) = old {
            self.due.remove(&(old.deadline_ms, key.to_owned()));
        }
        if let Some(expiry) = expiry {
            self.due.insert((expiry.deadline_ms, key.to_owned()));
        }
        old != expiry
    }

    /// Arms an expiry read from the file, not later than its whole time from now: whatever the
    /// clock did while the store was closed, no key outlives what it was given.
    pub(super) fn rearm(&mut self, key: &str, mut expiry: Expiry, now_ms: u64) {
        expiry.deadline_ms = expiry.deadline_ms.min(now_ms.saturating_add(expiry.ttl_ms));
        self.set_expiry(key, Some(expiry));
    }

    /// When the next key expires.
    pub(super) fn next_due_ms(&self) -> Option<u64> {
        self.due.first().map(|(deadline, _)| *deadline)
    }

    /// The keys, at most `limit`, whose time is over.
    pub(super) fn due(&self, now_ms: u64, limit: usize) -> Vec<String> {
        self.due
            .iter()
            .take_while(|(deadline, _)| *deadline <= now_ms)
            .take(limit)
            .map(|(_, key)| key.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn the_log_is_trimmed_by_count_and_by_bytes() {
        let mut state = WriterState::default();
        for revision in 0..11_000 {
            state.count_log(Revision::new(revision), 1);
        }
        assert_eq!(state.overgrown(), None);
        state.count_log(Revision::new(11_000), 1);
        let target = state.overgrown().unwrap();
        state.compact_to(target);
        assert_eq!((state.log.len(), state.log_bytes), (KEEP_REVISIONS, 10_000));
        assert_eq!(target, Revision::new(1_001));

        state.count_log(Revision::new(11_001), 2 * KEEP_BYTES);
        let target = state.overgrown().unwrap();
        assert_eq!(target, Revision::new(11_001), "the newest revision stays");
    }

    #[test]
    fn an_expiry_read_from_the_file_is_never_longer_than_it_was_given() {
        let mut state = WriterState::default();
        let expiry = Expiry {
            deadline_ms: 1_000_000,
            ttl_ms: 500,
        };
        state.rearm("clock-went-back", expiry, 2_000);
        assert_eq!(state.next_due_ms(), Some(2_500));
        state.rearm("clock-went-back", expiry, 5_000_000);
        assert_eq!(state.due(5_000_000, 10), ["clock-went-back"]);
        assert!(state.set_expiry("clock-went-back", None));
        assert_eq!(state.next_due_ms(), None);
    }
}
