//! Why a use case was refused or failed, in domain words. The API turns it into a gRPC status in
//! one place; nothing here knows of that.

use sg_model::Invalid;

use crate::store::StoreError;

/// A refusal or failure, typed by who is to blame.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// The caller sent fields that cannot be accepted.
    #[error("{}", invalid_text(.0))]
    Invalid(Vec<Invalid>),
    /// There is no such thing.
    #[error("{kind} {name:?} does not exist")]
    NotFound {
        /// What kind of thing.
        kind: &'static str,
        /// How the caller called it.
        name: String,
    },
    /// A name or port that must be unique belongs to something else.
    #[error("{message}")]
    Taken {
        /// Stable word.
        reason: &'static str,
        /// Names the holder.
        message: String,
    },
    /// The state does not allow it.
    #[error("{message}")]
    Precondition {
        /// Stable word.
        reason: &'static str,
        /// What would help.
        message: String,
    },
    /// Somebody else was faster; the caller should read and decide again.
    #[error("{message}")]
    Aborted {
        /// Stable word.
        reason: &'static str,
        /// What happened.
        message: String,
    },
    /// A limited thing is used up.
    #[error("{message}")]
    Exhausted {
        /// Stable word.
        reason: &'static str,
        /// What, and where.
        message: String,
    },
    /// The credential holds and is not enough.
    #[error("{message}")]
    Denied {
        /// Stable word.
        reason: &'static str,
        /// What would be enough.
        message: String,
    },
    /// The credential does not hold.
    #[error("{message}")]
    Unauthenticated {
        /// Stable word.
        reason: &'static str,
        /// Why.
        message: String,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A fault of ours.
    #[error("internal error: {0}")]
    Internal(String),
}

impl ServiceError {
    /// One field that cannot be accepted.
    pub fn invalid(field: &'static str, message: impl Into<String>) -> Self {
        Self::Invalid(vec![Invalid::new(field, message)])
    }

    /// There is no such thing.
    pub fn not_found(kind: &'static str, name: impl Into<String>) -> Self {
        Self::NotFound {
            kind,
            name: name.into(),
        }
    }

    /// The change needs an etag.
    pub fn etag_required() -> Self {
        Self::Precondition {
            reason: "ETAG_REQUIRED",
            message: "give the etag that was read, or force".to_owned(),
        }
    }

    /// The object has changed since the caller read it.
    pub fn etag_mismatch(kind: &str, name: &str) -> Self {
        Self::Aborted {
            reason: "ETAG_MISMATCH",
            message: format!("{kind} {name:?} has changed since it was read; read it again"),
        }
    }

    /// Others kept changing the same things.
    pub fn contended() -> Self {
        Self::Aborted {
            reason: "CONTENDED",
            message: "other changes kept coming in between; try again".to_owned(),
        }
    }
}

impl From<Vec<Invalid>> for ServiceError {
    fn from(faults: Vec<Invalid>) -> Self {
        Self::Invalid(faults)
    }
}

impl From<Invalid> for ServiceError {
    fn from(fault: Invalid) -> Self {
        Self::Invalid(vec![fault])
    }
}

impl From<prost::DecodeError> for ServiceError {
    fn from(error: prost::DecodeError) -> Self {
        Self::Internal(format!("a stored value cannot be read: {error}"))
    }
}

fn invalid_text(faults: &[Invalid]) -> String {
    let texts: Vec<_> = faults.iter().map(ToString::to_string).collect();
    texts.join("; ")
}
