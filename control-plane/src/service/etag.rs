//! The version of an object that a caller's change is for: the store's revision of it.

use super::ServiceError;
use crate::store::Revision;

/// Reads an etag; `None` if the caller sent none.
///
/// # Errors
/// It is none of ours.
pub(super) fn parse_etag(etag: &str) -> Result<Option<Revision>, ServiceError> {
    if etag.is_empty() {
        return Ok(None);
    }
    let bad = |_| ServiceError::invalid("etag", "send back the etag exactly as it was read");
    etag.parse().map(Some).map_err(bad)
}

/// As [`parse_etag`], for changes that need an etag unless forced.
///
/// # Errors
/// There is none, or it is none of ours.
pub(super) fn required_etag(etag: &str, force: bool) -> Result<Option<Revision>, ServiceError> {
    match parse_etag(etag)? {
        None if !force => Err(ServiceError::etag_required()),
        etag => Ok(etag),
    }
}
