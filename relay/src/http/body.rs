//! Bodies on their way through, in both directions.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};

use super::upstream::Lease;

pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// A body: one of ours, a request's or an answer's.
pub(super) struct Body {
    kind: Kind,
    /// What is not read before this is ready: the resource's `100 Continue`.
    gate: Option<Gate>,
    /// Set when reading it failed.
    failed: Option<Arc<AtomicBool>>,
    /// The connection that an answer comes from. It is used again when the answer was read to its end.
    lease: Option<Lease>,
    ended: bool,
}

type Gate = Pin<Box<dyn Future<Output = ()> + Send>>;

enum Kind {
    Text(Option<Bytes>),
    Stream(Incoming),
}

impl Body {
    pub(super) fn empty() -> Self {
        Self::of(Kind::Text(None))
    }

    pub(super) fn text(text: String) -> Self {
        Self::of(Kind::Text(Some(text.into())))
    }

    /// The body of a request. `failed` is set if it breaks off, and nothing of it is read before `gate` is ready.
    pub(super) fn request(body: Incoming, failed: Arc<AtomicBool>, gate: Option<Gate>) -> Self {
        let mut this = Self::of(Kind::Stream(body));
        this.gate = gate;
        this.failed = Some(failed);
        this
    }

    /// The body of an answer, over this connection.
    pub(super) fn answer(body: Incoming, lease: Lease) -> Self {
        let mut this = Self::of(Kind::Stream(body));
        this.lease = Some(lease);
        this
    }

    /// Waits for nothing any more.
    pub(super) fn open(&mut self) {
        self.gate = None;
    }

    const fn of(kind: Kind) -> Self {
        Self {
            kind,
            gate: None,
            failed: None,
            lease: None,
            ended: false,
        }
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let this = self.get_mut();
        if let Some(gate) = &mut this.gate {
            ready!(gate.as_mut().poll(cx));
            this.gate = None;
        }
        let frame = match &mut this.kind {
            Kind::Text(text) => return Poll::Ready(text.take().map(|text| Ok(Frame::data(text)))),
            Kind::Stream(body) => ready!(Pin::new(body).poll_frame(cx)),
        };
        match &frame {
            None => this.ended = true,
            Some(Ok(frame)) => this.ended |= frame.is_trailers(),
            Some(Err(error)) => {
                tracing::debug!(%error, "a body broke off");
                if let Some(failed) = &this.failed {
                    failed.store(true, Ordering::Relaxed);
                }
                if let Some(lease) = &this.lease {
                    lease.note_failure();
                }
            }
        }
        Poll::Ready(frame.map(|frame| frame.map_err(BoxError::from)))
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Text(text) => text.is_none(),
            Kind::Stream(body) => self.ended || body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Text(None) => SizeHint::with_exact(0),
            Kind::Text(Some(text)) => SizeHint::with_exact(text.len() as u64),
            Kind::Stream(body) => body.size_hint(),
        }
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        if let Some(lease) = self.lease.take()
            && self.is_end_stream()
        {
            lease.give_back();
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").field("ended", &self.ended).finish()
    }
}
