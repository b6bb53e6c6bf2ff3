//! What requests have in common: names of resources, pages, field masks, request ids.

use std::future::Future;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prost::Message;
use sg_runtime::crypto;
use sg_runtime::metrics::{Counter, Family, Metrics};
use tonic::{Code, Request, Response, Status};

use super::auth;
use super::errors::{status, to_status};
use crate::service::ServiceError;
use crate::service::change::{Call, MAX_REQUEST_ID};

/// How long a request with one answer may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The same where very much is read.
const LONG: Duration = Duration::from_secs(120);
const DEFAULT_PAGE: usize = 50;
const MAX_PAGE: usize = 1000;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RpcLabels {
    method: &'static str,
    code: &'static str,
}

/// Counts the requests and bounds their time.
#[derive(Debug, Clone)]
pub(super) struct Rpcs {
    handled: Family<RpcLabels, Counter>,
}

impl Rpcs {
    pub(super) fn new(metrics: &Metrics) -> Self {
        let handled = Family::default();
        Self {
            handled: metrics.register("rpcs", "Requests answered, by method and code", handled),
        }
    }

    /// Runs one request with one answer.
    pub(super) async fn unary<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<Response<T>, Status> {
        self.bounded(method, TIMEOUT, work).await
    }

    /// As [`Rpcs::unary`], for what reads very much.
    pub(super) async fn long<T>(
        &self,
        method: &'static str,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<Response<T>, Status> {
        self.bounded(method, LONG, work).await
    }

    async fn bounded<T>(
        &self,
        method: &'static str,
        limit: Duration,
        work: impl Future<Output = Result<T, ServiceError>>,
    ) -> Result<Response<T>, Status> {
        let result = match tokio::time::timeout(limit, work).await {
            Ok(result) => result.map(Response::new).map_err(to_status),
            Err(_) => {
                let limit = limit.as_secs();
                let text = format!(
                    "the request took longer than {limit} s; a change may or may not have happened"
                );
                Err(status(Code::DeadlineExceeded, "TIMEOUT", &text))
            }
        };
        self.count(method, result.as_ref().err());
        result
    }

    /// Counts a request whose answer is a stream, when it begins or is refused.
    pub(super) fn count(&self, method: &'static str, error: Option<&Status>) {
        let code = code_word(error.map_or(Code::Ok, Status::code));
        self.handled
            .get_or_create(&RpcLabels { method, code })
            .inc();
    }
}

const fn code_word(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// Who asks for what, out of a request that changes something.
pub(super) fn call<T: Message>(
    request: &Request<T>,
    method: &'static str,
    request_id: &str,
    validate_only: bool,
) -> Result<Call, Status> {
    let caller = auth::caller(request)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if request_id.len() > MAX_REQUEST_ID || !request_id.bytes().all(allowed) {
        let text = "must be at most 64 letters, digits, '-', '_' or '.'";
        return Err(to_status(ServiceError::invalid("request_id", text)));
    }
    Ok(Call {
        principal: caller.name,
        principal_id: caller.id,
        principal_key: caller.key,
        source: caller.source.map(|ip| ip.to_string()).unwrap_or_default(),
        method,
        request_id: request_id.to_owned(),
        request_sha256: crypto::sha256(&request.get_ref().encode_to_vec()),
        validate_only,
    })
}

/// `gateways/X` or `X`.
pub(super) fn gateway_name(name: &str) -> Result<&str, ServiceError> {
    let bare = name.strip_prefix("gateways/").unwrap_or(name);
    one_part("name", bare)
}

/// `nodes/X` or `X`.
pub(super) fn node_name(name: &str) -> Result<&str, ServiceError> {
    let bare = name.strip_prefix("nodes/").unwrap_or(name);
    one_part("name", bare)
}

/// `adminTokens/X` or `X`.
pub(super) fn token_name(name: &str) -> Result<&str, ServiceError> {
    let bare = name.strip_prefix("adminTokens/").unwrap_or(name);
    one_part("name", bare)
}

/// `gateways/G/COLLECTION/X` or `G/X`.
pub(super) fn child_name<'a>(
    name: &'a str,
    collection: &str,
) -> Result<(&'a str, &'a str), ServiceError> {
    let bad = || {
        let text = format!("must be gateways/GATEWAY/{collection}/ID, or GATEWAY/ID");
        ServiceError::invalid("name", text)
    };
    let parts: Vec<&str> = name.split('/').collect();
    let (gateway, child) = match parts.as_slice() {
        ["gateways", gateway, word, child] if *word == collection => (*gateway, *child),
        [gateway, child] => (*gateway, *child),
        _ => return Err(bad()),
    };
    if gateway.is_empty() || child.is_empty() {
        Err(bad())
    } else {
        Ok((gateway, child))
    }
}

fn one_part<'a>(field: &'static str, name: &'a str) -> Result<&'a str, ServiceError> {
    if name.is_empty() {
        return Err(ServiceError::invalid(field, "must name one, by id or name"));
    }
    if name.contains('/') {
        return Err(ServiceError::invalid(field, "has too many parts"));
    }
    Ok(name)
}

/// How many items a page may have.
pub(super) fn page_size(asked: i32) -> Result<usize, ServiceError> {
    match usize::try_from(asked) {
        Ok(0) => Ok(DEFAULT_PAGE),
        Ok(size) => Ok(size.min(MAX_PAGE)),
        Err(_) => Err(ServiceError::invalid("page_size", "must be 0 or more")),
    }
}

/// One page of `items`, which must come in the order of their keys, and the token of the next.
pub(super) fn page<T>(
    items: impl Iterator<Item = (String, T)>,
    size: i32,
    token: &str,
) -> Result<(Vec<T>, String), ServiceError> {
    let size = page_size(size)?;
    let bad =
        || ServiceError::invalid("page_token", "send back next_page_token exactly as it came");
    let after = crypto::unhex(token).and_then(|bytes| String::from_utf8(bytes).ok());
    let after = after.ok_or_else(bad)?;
    let mut rest = items
        .skip_while(|(key, _)| !after.is_empty() && *key <= after)
        .peekable();
    let mut found = Vec::new();
    let mut last = String::new();
    while found.len() < size {
        let Some((key, item)) = rest.next() else {
            break;
        };
        found.push(item);
        last = key;
    }
    let more = rest.peek().is_some();
    let next = if more {
        crypto::hex(last.as_bytes())
    } else {
        String::new()
    };
    Ok((found, next))
}

/// The fields to take over: those of the mask, or without one those that are set.
pub(super) fn fields(
    mask: Option<&pbjson_types::FieldMask>,
    known: &[&str],
    set: &[(&'static str, bool)],
) -> Result<Vec<String>, ServiceError> {
    let paths: Vec<String> = match mask {
        Some(mask) if !mask.paths.is_empty() => mask.paths.clone(),
        _ => set
            .iter()
            .filter(|(_, set)| *set)
            .map(|(name, _)| (*name).to_owned())
            .collect(),
    };
    let unknown = paths.iter().find(|path| !known.contains(&path.as_str()));
    match unknown {
        Some(path) => Err(ServiceError::invalid(
            "update_mask",
            format!(
                "'{}' is not one of {}",
                path.escape_debug(),
                known.join(", ")
            ),
        )),
        None => Ok(paths),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn names_have_a_long_and_a_short_form() {
        assert_eq!(gateway_name("gateways/dev").unwrap(), "dev");
        assert_eq!(gateway_name("dev").unwrap(), "dev");
        assert_eq!(
            child_name("gateways/g/destinations/d", "destinations").unwrap(),
            ("g", "d")
        );
        assert_eq!(child_name("g/d", "destinations").unwrap(), ("g", "d"));
        for bad in ["", "g", "g/", "/d", "a/b/c", "gateways/g/clients/d"] {
            assert!(child_name(bad, "destinations").is_err(), "{bad}");
        }
        assert!(gateway_name("").is_err());
        assert!(gateway_name("a/b").is_err());
    }

    #[test]
    fn pages_follow_each_other_without_gap_or_repetition() {
        let items = || (0..7).map(|n| (format!("k{n}"), n));
        let (first, token) = page(items(), 3, "").unwrap();
        let (second, token) = page(items(), 3, &token).unwrap();
        let (third, token) = page(items(), 3, &token).unwrap();
        assert_eq!([first, second, third].concat(), (0..7).collect::<Vec<_>>());
        assert_eq!(token, "");
        assert!(page(items(), -1, "").is_err());
        assert!(page(items(), 1, "x").is_err());
        assert_eq!(
            page(items(), 7, "").unwrap().1,
            "",
            "a full last page has no next"
        );
    }

    #[test]
    fn a_mask_may_only_name_known_fields() {
        let mask = |path: &str| pbjson_types::FieldMask {
            paths: vec![path.to_owned()],
        };
        assert_eq!(fields(Some(&mask("a")), &["a", "b"], &[]).unwrap(), ["a"]);
        assert!(fields(Some(&mask("c")), &["a", "b"], &[]).is_err());
        assert_eq!(
            fields(None, &["a", "b"], &[("a", false), ("b", true)]).unwrap(),
            ["b"]
        );
    }
}
