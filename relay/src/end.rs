//! Lets somebody else end a stream: a changed policy, a disabled destination, the deadline of a drain.

use std::sync::{Arc, OnceLock};

use tokio::sync::Notify;

/// Ends one stream from outside, once. Clones end the same stream.
#[derive(Debug, Clone, Default)]
pub struct StreamEnd(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    code: OnceLock<u32>,
    notify: Notify,
}

impl StreamEnd {
    /// The end of one stream, not yet asked for.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the stream with a reset code of the tunnel. The first call decides over the code.
    pub fn end(&self, code: u32) {
        if self.0.code.set(code).is_ok() {
            self.0.notify.notify_waiters();
        }
    }

    /// The code it was ended with, if it was.
    #[must_use]
    pub fn code(&self) -> Option<u32> {
        self.0.code.get().copied()
    }

    /// Waits until somebody ends the stream. Cancel safe.
    pub async fn ended(&self) -> u32 {
        loop {
            // Made before the look at the code: it then gets every later notification.
            let notified = self.0.notify.notified();
            if let Some(code) = self.code() {
                return code;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_code_counts_and_wakes_whoever_waits() {
        let end = StreamEnd::new();
        assert_eq!(end.code(), None);
        let ends = async {
            tokio::task::yield_now().await;
            end.end(1);
            end.end(2);
        };
        let (code, ()) = tokio::join!(end.ended(), ends);
        assert_eq!(code, 1);
        assert_eq!(end.ended().await, 1);
    }
}
