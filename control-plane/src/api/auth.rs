//! Who is calling, and what of the installation he gets to see. Everything public but health and
//! reflection asks for an operator's token; nodes are known by their certificates alone.
//!
//! [`Guard`] stands before each public service. It finds the operator by the token, looks the method
//! up in [`super::access`], and makes the service anew over an [`Api`] that holds only the
//! gateways of the operator's scope. So no handler can forget to ask. An answer that is a stream
//! ends when its token does.

use std::convert::Infallible;
use std::future::Future;
use std::marker::PhantomData;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use http_body::Frame;
use sg_model::NodeId;
use sg_proto::convert::tokens::AdminTokenRecord;
use sg_runtime::identity::PeerKind;
use tonic::body::Body;
use tonic::server::NamedService;
use tonic::{Code, Request, Status};
use tower::Service;

use super::Api;
use super::access::{self, Need};
use super::errors::status;
use super::failures::Failures;
use super::refusals::Refusals;
use super::serve::ConnectionInfo;
use crate::ids;
use crate::world::keeper::Views;

/// The date is looked at again at least so often while a stream is open: clocks can be set.
const RECHECK: Duration = Duration::from_secs(60);

/// An operator, found by the token. Only [`Guard`] makes one.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    /// The token's name, for the record.
    pub(super) name: String,
    /// The token's id.
    pub(super) id: String,
    /// Tells callers apart in keys.
    pub(super) key: String,
    /// Where he calls from.
    pub(super) source: Option<IpAddr>,
}

/// Lets requests through to the service that `make` makes.
#[derive(Debug)]
pub(super) struct Guard<F, S> {
    api: Api,
    failures: Failures,
    refusals: Refusals,
    make: F,
    service: PhantomData<fn() -> S>,
}

impl<F: Fn(Api) -> S, S> Guard<F, S> {
    pub(super) const fn new(api: Api, failures: Failures, refusals: Refusals, make: F) -> Self {
        Self {
            api,
            failures,
            refusals,
            make,
            service: PhantomData,
        }
    }
}

impl<F: Clone, S> Clone for Guard<F, S> {
    fn clone(&self) -> Self {
        Self {
            api: self.api.clone(),
            failures: self.failures.clone(),
            refusals: self.refusals.clone(),
            make: self.make.clone(),
            service: PhantomData,
        }
    }
}

impl<F, S: NamedService> NamedService for Guard<F, S> {
    const NAME: &'static str = S::NAME;
}

impl<F, S> Service<http::Request<Body>> for Guard<F, S>
where
    F: Fn(Api) -> S,
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: http::Request<Body>) -> Self::Future {
        let views = self.api.core.views.clone();
        let path = request.uri().path().to_owned();
        let (caller, admitted) = match self.admit(&request) {
            Ok(admitted) => admitted,
            Err(refused) => {
                let source = source_of(&request);
                self.refusals.note(&path, None, source, &refused);
                return Box::pin(async move { Ok(refused.into_http()) });
            }
        };
        let api = self.api.for_scope(&admitted.token.scope);
        request.extensions_mut().insert(caller.clone());
        let answer = (self.make)(api).call(request);
        let refusals = self.refusals.clone();
        Box::pin(async move {
            let answer = answer.await?;
            if let Some(refused) = Status::from_header_map(answer.headers()) {
                refusals.note(&path, Some(&caller.name), caller.source, &refused);
            }
            let end = Box::pin(end_of(views, admitted));
            Ok(answer.map(|body| {
                Body::new(Bounded {
                    body,
                    end: Some(end),
                })
            }))
        })
    }
}

/// A token that was let in.
struct Admitted {
    sha256: [u8; 32],
    token: Arc<AdminTokenRecord>,
}

impl<F, S> Guard<F, S> {
    fn admit(&self, request: &http::Request<Body>) -> Result<(Caller, Admitted), Status> {
        let connection = request.extensions().get::<ConnectionInfo>();
        let source = source_of(request);
        let admitted = self.operator(request).map_err(|refused| match connection {
            Some(connection) if !self.failures.note(connection.remote.ip()) => {
                connection.strikes.fetch_add(1, Ordering::Relaxed);
                too_many_failures()
            }
            _ => refused,
        })?;
        if let Some(connection) = connection {
            connection.proved.store(true, Ordering::Relaxed);
        }
        let path = request.uri().path();
        let Some(rule) = access::rule(path) else {
            let text = "this control plane knows no such method";
            return Err(status(Code::Unimplemented, "METHOD_UNKNOWN", text));
        };
        may(&admitted.token, rule.need)?;
        let key = sg_runtime::crypto::hex(admitted.sha256.first_chunk::<8>().unwrap_or(&[0; 8]));
        let caller = Caller {
            name: admitted.token.name.to_string(),
            id: admitted.token.id.clone(),
            key,
            source,
        };
        Ok((caller, admitted))
    }

    fn operator(&self, request: &http::Request<Body>) -> Result<Admitted, Status> {
        let refuse = |reason, text| Err(status(Code::Unauthenticated, reason, text));
        let Some(value) = request.headers().get(http::header::AUTHORIZATION) else {
            return refuse(
                "TOKEN_MISSING",
                "send the admin token as 'authorization: Bearer sga_…'",
            );
        };
        let text = value.to_str().unwrap_or_default();
        let token = match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") => token.trim(),
            _ => "",
        };
        if !token.starts_with("sga_") {
            return refuse(
                "TOKEN_MALFORMED",
                "the authorization is not 'Bearer' and an admin token, which begins with sga_",
            );
        }
        let sha256 = ids::token_hash(token);
        let token = holds(&self.api.core.views, &sha256)?;
        Ok(Admitted { sha256, token })
    }
}

fn source_of<T>(request: &http::Request<T>) -> Option<IpAddr> {
    let connection = request.extensions().get::<ConnectionInfo>();
    connection.map(|connection| connection.remote.ip())
}

/// The operator with this token, if it holds now.
fn holds(views: &Views, sha256: &[u8; 32]) -> Result<Arc<AdminTokenRecord>, Status> {
    let refuse = |reason, text| Err(status(Code::Unauthenticated, reason, text));
    let view = views.whole();
    match view.world.admin(sha256) {
        None => refuse("TOKEN_UNKNOWN", "the admin token is not known here"),
        Some(token) if !token.holds_at(ids::now()) => refuse(
            "TOKEN_EXPIRED",
            "the admin token has expired; ask an admin for a new one",
        ),
        Some(token) => Ok(Arc::clone(token)),
    }
}

fn may(token: &AdminTokenRecord, need: Need) -> Result<(), Status> {
    let refuse = |reason, text: &str| Err(status(Code::PermissionDenied, reason, text));
    let Need::Operator { role, whole, .. } = need else {
        return refuse("METHOD_NOT_FOR_OPERATORS", "only nodes call this");
    };
    if token.role < role {
        let text = format!(
            "this needs the role {role}; the token has the role {}",
            token.role
        );
        return refuse("ROLE_NOT_SUFFICIENT", &text);
    }
    if whole && !token.scope.is_all() {
        let text = "this concerns the whole installation, and the token is for some gateways only";
        return refuse("SCOPE_NOT_SUFFICIENT", text);
    }
    Ok(())
}

fn too_many_failures() -> Status {
    let text = "too many failed authentications from this address; wait a minute";
    status(Code::ResourceExhausted, "TOO_MANY_FAILURES", text)
}

/// Comes when the token is taken back or has expired, with what the caller is told.
async fn end_of(mut views: Views, admitted: Admitted) -> Status {
    loop {
        // Marked before reading: what changes while we read wakes us again.
        views.mark_seen();
        if let Err(ended) = holds(&views, &admitted.sha256) {
            return ended;
        }
        let left = admitted.token.expires.map_or(RECHECK, |end| {
            Duration::from_millis(end.0.saturating_sub(ids::now().0).max(1))
        });
        tokio::select! {
            () = views.changed() => {}
            () = tokio::time::sleep(left.min(RECHECK)) => {}
        }
    }
}

/// An answer that ends with the token it was asked for with.
struct Bounded {
    body: Body,
    end: Option<Pin<Box<dyn Future<Output = Status> + Send>>>,
}

impl http_body::Body for Bounded {
    type Data = bytes::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<bytes::Bytes>, Status>>> {
        let Some(end) = self.end.as_mut() else {
            return Poll::Ready(None);
        };
        if let Poll::Ready(status) = end.as_mut().poll(cx) {
            self.end = None;
            let trailers = status.into_http::<()>().into_parts().0.headers;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.end.is_none() || self.body.is_end_stream()
    }

    fn size_hint(&self) -> http_body::SizeHint {
        http_body::SizeHint::default()
    }
}

/// The caller of a request that came through [`Guard`].
pub(super) fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    let found = request.extensions().get::<Caller>().cloned();
    found.ok_or_else(|| {
        status(
            Code::Unauthenticated,
            "TOKEN_MISSING",
            "no admin token was sent",
        )
    })
}

/// The node whose certificate the connection proved.
pub(super) fn node<T>(request: &Request<T>) -> Result<NodeId, Status> {
    let refuse = |text| status(Code::Unauthenticated, "NODE_CERTIFICATE_REQUIRED", text);
    let identity = request
        .extensions()
        .get::<ConnectionInfo>()
        .and_then(|connection| connection.identity.as_ref())
        .ok_or_else(|| refuse("connect with the node's certificate"))?;
    if identity.kind != PeerKind::Node {
        return Err(refuse("the certificate belongs to no node"));
    }
    NodeId::new(&identity.id).map_err(|_| refuse("the certificate names no node"))
}
