//! What an error of etcd or of the connection means: the only place that reads its texts.
//!
//! Codes are stable between versions of etcd and texts nearly so; all were seen with 3.4.23.

use etcd_client::Error;
use tonic::Code;

use super::super::error::StoreError;

/// What one attempt at one member failed with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    /// Another member, or this one later, may do it.
    Elsewhere {
        /// What happened, for people.
        message: String,
        /// Whether a write may have happened all the same.
        maybe_applied: bool,
    },
    /// The cluster's answer: nothing was written and no other member will say otherwise.
    Answer(StoreError),
    /// The answer was longer than this client reads; ask for less.
    AnswerTooLong,
    /// The lease of the write is gone; nothing was written.
    LeaseGone,
}

impl Failure {
    /// The attempt took too long.
    pub(super) fn timed_out(limit: std::time::Duration) -> Self {
        Self::Elsewhere {
            message: format!("no answer within {limit:?}"),
            maybe_applied: true,
        }
    }
}

/// Judges an error of the client library.
pub(super) fn judge(error: &Error) -> Failure {
    match error {
        Error::GRpcStatus(status) => judge_status(status.code(), status.message()),
        Error::InvalidArgs(text) | Error::EndpointError(text) => {
            Failure::Answer(StoreError::Invalid(text.clone()))
        }
        Error::InvalidUri(error) => Failure::Answer(StoreError::Invalid(error.to_string())),
        Error::TransportError(error) => elsewhere(&chain(error), true),
        other => elsewhere(&chain(other), true),
    }
}

fn judge_status(code: Code, text: &str) -> Failure {
    let has = |part: &str| text.contains(part);
    match code {
        Code::InvalidArgument if has("too large") || has("too many operations") => {
            Failure::Answer(StoreError::TooLarge(text.to_owned()))
        }
        Code::InvalidArgument if has("user name is empty") => Failure::Answer(StoreError::Auth(
            format!("{text}: etcd asks for a user; give --etcd-user and --etcd-password-file"),
        )),
        Code::InvalidArgument if has("authentication failed") => Failure::Answer(StoreError::Auth(
            format!("{text}; check --etcd-user and --etcd-password-file"),
        )),
        Code::InvalidArgument => Failure::Answer(StoreError::Invalid(text.to_owned())),
        Code::OutOfRange if has("future revision") => Failure::Answer(StoreError::Future),
        Code::OutOfRange if has("compacted") => Failure::Answer(StoreError::Compacted),
        Code::OutOfRange if has("decoded message length") => Failure::AnswerTooLong,
        Code::NotFound if has("lease not found") => Failure::LeaseGone,
        Code::PermissionDenied | Code::Unauthenticated => {
            Failure::Answer(StoreError::Auth(text.to_owned()))
        }
        Code::ResourceExhausted if has("database space exceeded") => {
            Failure::Answer(StoreError::broken(format!(
                "{text}: etcd is full; compact and defragment it, then disarm its alarm"
            )))
        }
        Code::ResourceExhausted => elsewhere(text, false),
        Code::FailedPrecondition if has("authentication is not enabled") => {
            Failure::Answer(StoreError::Auth(format!(
                "{text}: leave out --etcd-user, or enable authentication in etcd"
            )))
        }
        Code::FailedPrecondition => Failure::Answer(StoreError::Invalid(text.to_owned())),
        // The connection was never made, or the member refused before it proposed anything.
        Code::Unavailable if has("no leader") || has("tcp connect error") => elsewhere(text, false),
        Code::Unknown if has("corrupt") => Failure::Answer(StoreError::broken(text)),
        _ => elsewhere(text, true),
    }
}

fn elsewhere(text: &str, maybe_applied: bool) -> Failure {
    Failure::Elsewhere {
        message: text.to_owned(),
        maybe_applied,
    }
}

/// An error with its causes, which the library's own text leaves out.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_etcd_are_understood() {
        let answer = |code, text| match judge_status(code, text) {
            Failure::Answer(error) => error,
            other => panic!("{text}: {other:?}"),
        };
        let invalid = Code::InvalidArgument;
        assert!(matches!(
            answer(invalid, "etcdserver: request is too large"),
            StoreError::TooLarge(_)
        ));
        assert!(matches!(
            answer(invalid, "etcdserver: too many operations in txn request"),
            StoreError::TooLarge(_)
        ));
        assert!(matches!(
            answer(invalid, "etcdserver: duplicate key given in txn request"),
            StoreError::Invalid(_)
        ));
        assert!(matches!(
            answer(invalid, "etcdserver: user name is empty"),
            StoreError::Auth(_)
        ));
        assert_eq!(
            answer(
                Code::OutOfRange,
                "etcdserver: mvcc: required revision is a future revision"
            ),
            StoreError::Future
        );
        assert_eq!(
            answer(
                Code::OutOfRange,
                "etcdserver: mvcc: required revision has been compacted"
            ),
            StoreError::Compacted
        );
        assert!(
            !answer(
                Code::ResourceExhausted,
                "etcdserver: mvcc: database space exceeded"
            )
            .retryable()
        );
        assert_eq!(
            judge_status(Code::NotFound, "etcdserver: requested lease not found"),
            Failure::LeaseGone
        );
    }

    #[test]
    fn only_what_surely_was_not_applied_is_said_to_be_so() {
        for (code, text, expected) in [
            (Code::Unavailable, "etcdserver: no leader", false),
            (Code::Unavailable, "tcp connect error", false),
            (
                Code::ResourceExhausted,
                "etcdserver: too many requests",
                false,
            ),
            (Code::Unavailable, "etcdserver: leader changed", true),
            (Code::Unavailable, "etcdserver: request timed out", true),
            (Code::Unknown, "context deadline exceeded", true),
            (
                Code::Unknown,
                "h2 protocol error: error reading a body",
                true,
            ),
            (Code::Cancelled, "operation was canceled", true),
            (Code::Internal, "whatever comes next", true),
        ] {
            match judge_status(code, text) {
                Failure::Elsewhere { maybe_applied, .. } => {
                    assert_eq!(maybe_applied, expected, "{text}");
                }
                other => panic!("{text}: {other:?}"),
            }
        }
    }
}
