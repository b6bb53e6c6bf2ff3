//! A request that is answered here instead of at the resource: one stable word, a status, and a sentence for
//! people. The words are those of docs/errors.md.

use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::body::Body;

/// Header that carries the word, so that an answer of ours is never taken for one of the resource.
pub const ERROR_HEADER: HeaderName = HeaderName::from_static("x-secure-gateway-error");

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    word: &'static str,
    status: StatusCode,
    detail: &'static str,
    closes: bool,
}

impl Refusal {
    /// The answer for a word of failure: of opening a stream, of connecting, of a policy.
    #[must_use]
    pub fn of(word: &'static str) -> Self {
        let (status, detail) = match word {
            "acl-denied" | "policy-changed" => (
                StatusCode::FORBIDDEN,
                "the gateway's access control list does not allow this",
            ),
            "no-client" | "hold-full" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "no client of the gateway is connected",
            ),
            "limit" | "refused-retry" | "local-error" => {
                (StatusCode::SERVICE_UNAVAILABLE, "a limit is reached")
            }
            "disabled" | "no-destination" | "drained" => (
                StatusCode::SERVICE_UNAVAILABLE,
                "the destination is not served now",
            ),
            "connect-timeout" => (
                StatusCode::GATEWAY_TIMEOUT,
                "the resource did not accept a connection in time",
            ),
            "idle-timeout" => (
                StatusCode::GATEWAY_TIMEOUT,
                "no byte passed for the destination's idle timeout",
            ),
            "bad-request" => return Self::bad("the request cannot be understood in one way only"),
            "internal" => (StatusCode::INTERNAL_SERVER_ERROR, "a fault of ours"),
            "refused" => (
                StatusCode::BAD_GATEWAY,
                "the resource's host refused the connection",
            ),
            "name-unknown" => (
                StatusCode::BAD_GATEWAY,
                "the resource's host name cannot be resolved",
            ),
            "peer-reset" | "tcp-reset" | "peer-closed" => (
                StatusCode::BAD_GATEWAY,
                "the resource ended the connection without an answer",
            ),
            "bad-answer" => (
                StatusCode::BAD_GATEWAY,
                "what the resource answered is not HTTP, or too large",
            ),
            "tunnel-lost" => (StatusCode::BAD_GATEWAY, "the tunnel to the client was lost"),
            _ => (StatusCode::BAD_GATEWAY, "the resource cannot be reached"),
        };
        Self {
            // On the side of the resource a reset connection is the far side's from where the user stands.
            word: if word == "tcp-reset" {
                "peer-reset"
            } else {
                word
            },
            status,
            detail,
            closes: false,
        }
    }

    /// A request that two readers could understand differently, or that breaks the rules of HTTP.
    #[must_use]
    pub const fn bad(detail: &'static str) -> Self {
        Self::status(StatusCode::BAD_REQUEST, "bad-request", detail)
    }

    /// An answer after which the connection is closed, because the end of the request is in doubt.
    pub(super) const fn status(
        status: StatusCode,
        word: &'static str,
        detail: &'static str,
    ) -> Self {
        Self {
            word,
            status,
            detail,
            closes: true,
        }
    }

    /// The stable word.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        self.word
    }

    /// The status that a user sees.
    #[must_use]
    pub const fn code(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, for people.
    #[must_use]
    pub const fn detail(&self) -> &'static str {
        self.detail
    }

    pub(super) fn answer(&self) -> Response<Body> {
        let mut answer = Response::new(Body::text(format!("{}: {}\n", self.word, self.detail)));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        headers.insert(
            CONTENT_TYPE,
            HeaderValue::from_static("text/plain; charset=utf-8"),
        );
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        headers.insert(ERROR_HEADER, HeaderValue::from_static(self.word));
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            headers.insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        if self.status == StatusCode::METHOD_NOT_ALLOWED {
            headers.insert(
                http::header::ALLOW,
                HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS"),
            );
        }
        if self.closes {
            headers.insert(CONNECTION, HeaderValue::from_static("close"));
        }
        answer
    }
}
