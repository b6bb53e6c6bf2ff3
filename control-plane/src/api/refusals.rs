//! Which refused calls are told in the log: those that would have changed something, and that the caller is to blame for.

use std::net::IpAddr;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use super::access::{self, Need};
use crate::service::refusals::RefusedLines;

/// What was refused lately. Clones share it.
#[derive(Debug, Clone, Default)]
pub(super) struct Refusals(RefusedLines);

impl Refusals {
    /// Writes down that a call was refused, if it would have changed something.
    pub(super) fn note(
        &self,
        path: &str,
        principal: Option<&str>,
        source: Option<IpAddr>,
        refused: &Status,
    ) {
        let changes = match access::rule(path).map(|rule| rule.need) {
            Some(Need::Operator { changes, .. }) => changes,
            _ => false,
        };
        let by_caller = matches!(
            refused.code(),
            Code::InvalidArgument
                | Code::NotFound
                | Code::AlreadyExists
                | Code::PermissionDenied
                | Code::Unauthenticated
                | Code::FailedPrecondition
                | Code::Aborted
                | Code::ResourceExhausted
        );
        if !changes || !by_caller {
            return;
        }
        let details = refused.get_error_details();
        let reason = details.error_info().map(|info| info.reason.as_str());
        self.0.tell(
            path.trim_start_matches('/'),
            principal.unwrap_or_default(),
            &source.map(|ip| ip.to_string()).unwrap_or_default(),
            reason.unwrap_or_default(),
            refused.message(),
        );
    }
}
