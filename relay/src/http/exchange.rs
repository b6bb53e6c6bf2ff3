//! One request and its answer, from hyper's server to hyper's client.

use std::convert::Infallible;
use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use hyper::body::{Body as _, Incoming};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use sg_runtime::gate::{First, race};
use tokio::io::copy_bidirectional;
use tokio::sync::{Notify, oneshot};
use tokio::time::timeout;

use super::body::Body;
use super::forwarded;
use super::guard::{Following, GuardHandle, HeadFacts};
use super::refusal::Refusal;
use super::rewrite::{self, Facts};
use super::stop::Stop;
use super::tasks::Spawner;
use super::upstream::{Lease, Pool, Unanswered, Upstream};
use super::{HttpOptions, Role};
use crate::EndReason;

/// How long a body that waits for `100 Continue` is held back. A resource that does not know it waits for the
/// body instead.
const CONTINUE_TIME: Duration = Duration::from_secs(1);

/// Serves the requests of one connection.
pub(super) struct Exchanges<U: Upstream> {
    pub(super) pool: Pool<U>,
    pub(super) options: HttpOptions,
    pub(super) role: Role,
    pub(super) guard: GuardHandle,
    pub(super) stop: Arc<Stop>,
    pub(super) spawner: Spawner,
}

/// A request before its answer, as far as the answer depends on it.
struct Asked {
    head: HeadFacts,
    upgrade: Option<OnUpgrade>,
}

impl<U: Upstream> Exchanges<U> {
    /// Called by hyper between the head of a request and anything that follows it.
    pub(super) fn call(
        self: &Arc<Self>,
        request: Request<Incoming>,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + Send + use<U> {
        let this = Arc::clone(self);
        let (mut parts, body) = request.into_parts();
        let wants_upgrade = rewrite::is_upgrade(&parts) && body.is_end_stream();
        let on_upgrade = parts.extensions.remove::<OnUpgrade>();
        let following = if wants_upgrade {
            Following::Upgrade
        } else {
            match body.size_hint().exact() {
                Some(length) => Following::Length(length),
                None => Following::Chunked,
            }
        };
        let asked = Asked {
            head: self.guard.called(following),
            upgrade: on_upgrade.filter(|_| wants_upgrade),
        };
        async move {
            let answer = this.serve(parts, body, asked).await;
            if let Role::Accepting(user) = &this.role
                && let Some(meter) = &user.meter
            {
                meter.http_answered(answer.status().as_u16());
            }
            Ok(answer)
        }
    }

    async fn serve(
        self: &Arc<Self>,
        parts: request::Parts,
        body: Incoming,
        asked: Asked,
    ) -> Response<Body> {
        let refusal = match asked.head.refusal {
            Some(refusal) => refusal,
            None => {
                let forward = pin!(self.forward(parts, body, asked));
                match race(forward, pin!(self.stop.idled())).await {
                    First::Main(Ok(answer)) => return answer,
                    First::Main(Err(refusal)) => refusal,
                    First::Seldom(()) => Refusal::of("idle-timeout"),
                }
            }
        };
        tracing::debug!(
            word = refusal.word(),
            detail = refusal.detail(),
            "request refused"
        );
        self.guard.release(false);
        refusal.answer()
    }

    async fn forward(
        self: &Arc<Self>,
        mut parts: request::Parts,
        body: Incoming,
        asked: Asked,
    ) -> Result<Response<Body>, Refusal> {
        let facts = rewrite::request(&mut parts, asked.head.te_added)?;
        let upstream = self.pool.upstream();
        if let Some(path) = upstream.permit(&parts.method, &facts.target)? {
            parts.uri = origin_form(path.target())?;
        } else {
            parts.uri = origin_form(&facts.target)?;
        }
        if let Role::Accepting(user) = &self.role {
            let host = facts.host.as_deref();
            forwarded::apply(&mut parts.headers, user.forwarded, user.user, host);
        }
        let upgrade = asked.upgrade.zip(facts.upgrade.clone());
        if let Some((_, protocol)) = &upgrade {
            rewrite::set_upgrade(&mut parts.headers, protocol.clone());
        }
        let (mut answer, lease, link) = self.ask(parts, body, &facts, upgrade.is_some()).await?;
        let ours = matches!(self.role, Role::Accepting(_));
        let protocol = rewrite::answer(answer.headers_mut(), ours)?;
        if answer.status() == StatusCode::SWITCHING_PROTOCOLS {
            let (Some((user, _)), Some(protocol), Some(link)) = (upgrade, protocol, link) else {
                return Err(Refusal::of("bad-answer"));
            };
            let resource = hyper::upgrade::on(&mut answer);
            let (mut parts, _) = answer.into_parts();
            rewrite::set_upgrade(&mut parts.headers, protocol);
            let stop = Arc::clone(&self.stop);
            self.spawner.spawn(async move {
                relay_upgraded(user, resource, link, &stop).await;
            });
            lease.upgraded();
            self.guard.release(true);
            return Ok(Response::from_parts(parts, Body::empty()));
        }
        self.guard.release(false);
        if let Some(link) = link {
            // The connection stays one of HTTP, whether anybody listens or not.
            let _heard = link.send(()).is_ok();
        }
        *answer.version_mut() = Version::HTTP_11;
        Ok(answer.map(|body| Body::answer(body, lease)))
    }

    /// Sends a request and gets the head of its answer. A connection that turns out to be closed is no reason to
    /// fail, as long as the resource cannot have seen the request, or may see it twice.
    async fn ask(
        &self,
        parts: request::Parts,
        body: Incoming,
        facts: &Facts,
        wants_upgrade: bool,
    ) -> Result<(Response<Incoming>, Lease, Option<oneshot::Sender<()>>), Refusal> {
        let failed = Arc::new(AtomicBool::new(false));
        let gate = facts.expects.then(Arc::<Notify>::default);
        let opened = gate.clone();
        let waiting = opened.map(
            |gate| -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
                Box::pin(async move {
                    // After the time the body goes, too.
                    let _elapsed = timeout(CONTINUE_TIME, gate.notified()).await.is_err();
                })
            },
        );
        let repeatable = body.is_end_stream()
            && !wants_upgrade
            && [Method::GET, Method::HEAD, Method::OPTIONS].contains(&parts.method);
        let copy = repeatable.then(|| parts.clone());
        let mut request =
            Request::from_parts(parts, Body::request(body, Arc::clone(&failed), waiting));
        let mut again = true;
        loop {
            let mut lease = self.pool.lease().await?;
            request = self.addressed(request, &lease, gate.as_ref())?;
            let (link, upgraded) = wants_upgrade.then(oneshot::channel).unzip();
            let used = lease.is_used();
            let Unanswered { refusal, unsent } = match lease.send(request, upgraded).await {
                Ok(answer) => return Ok((answer, lease, link)),
                Err(error) => error,
            };
            if failed.load(Ordering::Relaxed) {
                // It was the user's body that broke off.
                let reason = self.guard.broken();
                return Err(reason.unwrap_or(Refusal::bad("the body ends before its end")));
            }
            request = match (unsent, &copy) {
                _ if !again => return Err(refusal),
                (Some(request), _) => request,
                (None, Some(parts)) if used => Request::from_parts(parts.clone(), Body::empty()),
                (None, _) => return Err(refusal),
            };
            again = false;
        }
    }

    fn addressed(
        &self,
        request: Request<Body>,
        lease: &Lease,
        gate: Option<&Arc<Notify>>,
    ) -> Result<Request<Body>, Refusal> {
        let (mut parts, mut body) = request.into_parts();
        let options = &self.options;
        rewrite::address(
            &mut parts,
            lease.version(),
            &options.scheme,
            &options.authority,
        )?;
        let mut gated = None;
        if let Some(gate) = gate {
            if lease.version() == Version::HTTP_11 {
                rewrite::set_expect(&mut parts.headers);
                gated = Some(Arc::clone(gate));
            } else {
                body.open();
            }
        }
        let mut request = Request::from_parts(parts, body);
        if let Some(gate) = gated {
            hyper::ext::on_informational(&mut request, move |answer| {
                if answer.status() == StatusCode::CONTINUE {
                    gate.notify_one();
                }
            });
        }
        Ok(request)
    }
}

/// The bytes after an upgrade, in both directions; the end of one is passed on while the other goes on.
async fn relay_upgraded(
    user: OnUpgrade,
    resource: OnUpgrade,
    link: oneshot::Sender<()>,
    stop: &Stop,
) {
    let (Ok(user), Ok(resource)) = (user.await, resource.await) else {
        stop.fail(EndReason::TcpReset);
        return;
    };
    let (mut user, mut resource) = (TokioIo::new(user), TokioIo::new(resource));
    match copy_bidirectional(&mut user, &mut resource).await {
        // Nobody listens any more if the connection was reset in this moment.
        Ok(_) => {
            let _heard = link.send(()).is_ok();
        }
        Err(error) => {
            tracing::debug!(%error, "an upgraded connection failed");
            stop.fail(EndReason::TcpReset);
        }
    }
}

fn origin_form(target: &str) -> Result<Uri, Refusal> {
    let path = PathAndQuery::try_from(target).map_err(|_| Refusal::bad("the target is no path"))?;
    Ok(Uri::from(path))
}
