//! The one place where a domain error becomes a gRPC status: code, text, reason and, for bad
//! fields, one violation each. Faults of ours and of the store are logged here and told in general
//! words only.

use std::collections::HashMap;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, FieldViolation, StatusExt as _};

use crate::service::ServiceError;
use crate::store::StoreError;

/// Domain of every `ErrorInfo`.
const DOMAIN: &str = "secure-gateway";

/// What the caller is told.
pub(super) fn to_status(error: ServiceError) -> Status {
    let text = error.to_string();
    match error {
        ServiceError::Invalid(faults) => {
            let violations = faults
                .into_iter()
                .map(|fault| FieldViolation::new(fault.field, fault.message))
                .collect::<Vec<_>>();
            let mut details = info("INVALID_ARGUMENT");
            details.set_bad_request(violations);
            Status::with_error_details(Code::InvalidArgument, text, details)
        }
        ServiceError::NotFound { kind, .. } => {
            // What is missing, in a word: a member of a gateway is named together with the gateway.
            let metadata = HashMap::from([("kind".to_owned(), kind.to_owned())]);
            let details = ErrorDetails::with_error_info("NOT_FOUND", DOMAIN, metadata);
            Status::with_error_details(Code::NotFound, text, details)
        }
        ServiceError::Taken { reason, .. } => status(Code::AlreadyExists, reason, &text),
        ServiceError::Precondition { reason, .. } => {
            status(Code::FailedPrecondition, reason, &text)
        }
        ServiceError::Aborted { reason, .. } => status(Code::Aborted, reason, &text),
        ServiceError::Exhausted { reason, .. } => status(Code::ResourceExhausted, reason, &text),
        ServiceError::Denied { reason, .. } => status(Code::PermissionDenied, reason, &text),
        ServiceError::Unauthenticated { reason, .. } => {
            status(Code::Unauthenticated, reason, &text)
        }
        ServiceError::Store(error) => store_status(&error),
        ServiceError::Internal(detail) => {
            tracing::error!(detail, "a request failed by a fault of ours");
            status(
                Code::Internal,
                "INTERNAL",
                "internal error; the log of the control plane says more",
            )
        }
    }
}

fn store_status(error: &StoreError) -> Status {
    match error {
        StoreError::Unavailable { .. } | StoreError::Auth(_) => {
            tracing::warn!(%error, "a request failed for want of the store");
            let text = "the store does not answer; nothing was changed";
            status(Code::Unavailable, "STORE_UNAVAILABLE", text)
        }
        StoreError::UnknownOutcome(_) => {
            tracing::warn!(%error, "the outcome of a write is unknown");
            let text = "the store did not answer in time, the change may or may not have happened; repeat the request with the same request_id, or read before trying again";
            status(Code::Unavailable, "OUTCOME_UNKNOWN", text)
        }
        StoreError::TooLarge(_) => status(
            Code::InvalidArgument,
            "TOO_LARGE",
            "the object is too large to be stored",
        ),
        StoreError::Compacted
        | StoreError::Future
        | StoreError::Invalid(_)
        | StoreError::Internal(_) => {
            tracing::error!(%error, "a request failed by a fault of the store");
            status(
                Code::Internal,
                "INTERNAL",
                "internal error; the log of the control plane says more",
            )
        }
    }
}

/// A status with a reason.
pub(super) fn status(code: Code, reason: &str, text: &str) -> Status {
    Status::with_error_details(code, text, info(reason))
}

fn info(reason: &str) -> ErrorDetails {
    ErrorDetails::with_error_info(reason, DOMAIN, HashMap::new())
}
