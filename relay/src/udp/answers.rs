//! How much a user may be answered before it is known that the user's address is the user's own.
//!
//! Whoever forges a source address must not get the accepting end to send much to somebody who asked for nothing.
//! Until a user has sent again after the first answer, answers are limited to [`FACTOR`] times what came
//! from the address, headers included on both sides.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Bytes out for a byte in.
const FACTOR: u64 = 3;
/// Bytes that a datagram costs on the wire beside its content: the headers of IPv4 and UDP.
const HEADERS: u64 = 28;

/// The account of one address. Written by whoever receives and by whoever answers.
#[derive(Debug, Default)]
pub struct AnswerLimit {
    received: AtomicU64,
    sent: AtomicU64,
    answered: AtomicBool,
    confirmed: AtomicBool,
}

impl AnswerLimit {
    /// A datagram of `length` bytes came from the address.
    pub fn received(&self, length: usize) {
        if self.confirmed.load(Ordering::Relaxed) {
            return;
        }
        self.received
            .fetch_add(length as u64 + HEADERS, Ordering::Relaxed);
        if self.answered.load(Ordering::Relaxed) {
            self.confirmed.store(true, Ordering::Relaxed);
        }
    }

    /// Whether an answer of `length` bytes may be sent, which is then counted as sent. An answer that may
    /// not confirms nothing, yet a user who asks again after it is believed.
    pub fn permits(&self, length: usize) -> bool {
        if self.confirmed.load(Ordering::Relaxed) {
            return true;
        }
        self.answered.store(true, Ordering::Relaxed);
        let cost = length as u64 + HEADERS;
        let limit = self.received.load(Ordering::Relaxed) * FACTOR;
        let permitted = self.sent.load(Ordering::Relaxed) + cost <= limit;
        if permitted {
            self.sent.fetch_add(cost, Ordering::Relaxed);
        }
        permitted
    }

    /// Whether anything came back from the resource.
    pub fn is_answered(&self) -> bool {
        self.answered.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unconfirmed_address_gets_three_times_what_it_sent() {
        let limit = AnswerLimit::default();
        assert!(!limit.permits(0), "nothing was asked");
        let limit = AnswerLimit::default();
        limit.received(72);
        assert!(limit.permits(172));
        assert!(!limit.permits(100));
        assert!(limit.permits(72));
        assert!(!limit.permits(0));
    }

    #[test]
    fn who_sends_again_after_an_answer_is_believed() {
        let limit = AnswerLimit::default();
        limit.received(10);
        limit.received(10);
        assert!(!limit.is_answered());
        assert!(
            !limit.permits(60_000),
            "two before any answer prove nothing"
        );
        limit.received(0);
        assert!(limit.permits(60_000));
    }
}
