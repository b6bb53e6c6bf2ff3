//! Why a store call or a watch failed, typed by what the caller can do about it.
//!
//! A conflict is not an error (see [`super::TxnOutcome`]). The texts are for operators and hold no
//! key material, no values and no passwords.

use super::types::Revision;

/// Why a call to a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The store cannot be reached, or it can but refuses service; nothing was written.
    #[error("store unavailable: {message}")]
    Unavailable {
        /// What was tried and what came of it.
        message: String,
        /// Whether waiting may help; false if somebody has to repair something.
        retryable: bool,
    },
    /// The revision asked for has been compacted away.
    #[error("the revision asked for is already compacted")]
    Compacted,
    /// The revision asked for is still to come.
    #[error("the revision asked for is in the future")]
    Future,
    /// The request is malformed; this is the caller's fault.
    #[error("invalid store request: {0}")]
    Invalid(String),
    /// A value, key or transaction is over the limit; this is the caller's fault.
    #[error("store request too large: {0}")]
    TooLarge(String),
    /// The store refuses the credentials, or they do not allow the call.
    #[error("store refuses access: {0}")]
    Auth(String),
    /// The write may or may not have happened, and reading back could not tell. Read the
    /// idempotency key, or the object, before trying again.
    #[error("outcome of the write is unknown: {0}")]
    UnknownOutcome(String),
    /// A fault of the store or of this code.
    #[error("store failure: {0}")]
    Internal(String),
}

impl StoreError {
    /// Something temporary: nothing was written and trying again may help.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
            retryable: true,
        }
    }

    /// Something that lasts until somebody repairs it; nothing was written.
    pub fn broken(message: impl Into<String>) -> Self {
        Self::Unavailable {
            message: message.into(),
            retryable: false,
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    ///
    /// [`StoreError::UnknownOutcome`] is not: the same call could write twice.
    pub fn retryable(&self) -> bool {
        match self {
            Self::Unavailable { retryable, .. } => *retryable,
            Self::Compacted
            | Self::Future
            | Self::Invalid(_)
            | Self::TooLarge(_)
            | Self::Auth(_)
            | Self::UnknownOutcome(_)
            | Self::Internal(_) => false,
        }
    }
}

/// Why a watch ended. Every watch ends with exactly one of these.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    /// The events from the revision asked for are gone; list again. Holds the oldest revision
    /// that can still be watched.
    #[error("watch starts before the compacted revision {0}")]
    Compacted(Revision),
    /// The watch was lost; watch again from the last revision seen plus one.
    #[error("watch ended: {0}")]
    Ended(String),
}
