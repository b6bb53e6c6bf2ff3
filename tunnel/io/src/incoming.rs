//! What the peer asks for: streams, messages, the drain.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use sg_tunnel::{Incoming as Request, code};

use crate::error::StreamError;
use crate::flow::Flow;
use crate::state::{Change, Shared};
use crate::stream::{Held, TunnelStream};

/// What the peer asks for, in order. Dropping it refuses what the peer opens from then on.
pub struct Incoming {
    shared: Arc<Shared>,
}

/// One thing that the peer asks for.
#[derive(Debug)]
pub enum Event {
    /// A stream to accept or refuse.
    Open(IncomingStream),
    /// A CONTROL message.
    Control(Bytes),
    /// The peer drains: it takes no new streams, and opens none.
    PeerDraining,
    /// The tunnel has lost its connection and waits for [`crate::Tunnel::attach`]: streams wait,
    /// opens fail.
    Detached,
    /// The tunnel has a new connection. Comes without [`Self::Detached`] if that was so before the
    /// owner looked.
    Resumed,
}

/// What [`Incoming`] found under the lock.
enum Next {
    Change(Change),
    Request(Request),
}

impl Incoming {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The next event; `None` when the tunnel has ended. What concerns the tunnel's connection comes
    /// before what the peer asks for, and only its present state is told. Cancel safe: nothing is taken
    /// before it is returned. Whoever owns this must keep calling: messages that nobody takes end the
    /// tunnel.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Like [`Self::next`].
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        loop {
            let next = self.shared.look(|state| {
                if let Some(change) = state.poll_change() {
                    return Poll::Ready(Some(Next::Change(change)));
                }
                let next = state.core.poll_incoming();
                if next.is_none() && state.core.closed().is_none() {
                    state.wait_incoming(cx);
                    return Poll::Pending;
                }
                Poll::Ready(next.map(Next::Request))
            });
            let next = match next {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(next)) => next,
            };
            let event = match next {
                Next::Change(Change::Detached) => Event::Detached,
                Next::Change(Change::Resumed) => Event::Resumed,
                Next::Request(Request::Control(message)) => Event::Control(message),
                Next::Request(Request::Draining) => Event::PeerDraining,
                Next::Request(Request::Offer { key, metadata }) => {
                    let held = Held::new(Arc::clone(&self.shared), key, code::INTERNAL);
                    if self.shared.look(|state| state.core.ended(key).is_some()) {
                        continue; // the opener gave up before anybody looked
                    }
                    Event::Open(IncomingStream { held, metadata })
                }
            };
            return Poll::Ready(Some(event));
        }
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.shared.command(|state| state.core.stop_incoming());
    }
}

impl fmt::Debug for Incoming {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Incoming").finish_non_exhaustive()
    }
}

/// A stream that the peer wants to open. Dropping it refuses with INTERNAL.
#[derive(Debug)]
pub struct IncomingStream {
    held: Held,
    metadata: Bytes,
}

impl IncomingStream {
    /// The metadata of the OPEN.
    #[must_use]
    pub fn metadata(&self) -> &Bytes {
        &self.metadata
    }

    /// Whether the peer wants a flow rather than a stream.
    #[must_use]
    pub fn is_flow(&self) -> bool {
        let key = self.held.key;
        self.held.shared.look(|state| state.core.is_flow(key))
    }

    /// Accepts a stream: the opener gets it. If the opener has given up meanwhile, or wants a flow, the
    /// stream that this returns is already reset.
    #[must_use]
    pub fn accept(self) -> TunnelStream {
        self.accept_with(Bytes::new())
    }

    /// Like [`Self::accept`], and tells the opener up to 256 bytes ([`TunnelStream::answer`]). More
    /// is a fault of the caller: the stream is reset with INTERNAL.
    #[must_use]
    pub fn accept_with(self, answer: Bytes) -> TunnelStream {
        let held = self.accepted(false, answer);
        let key = held.key;
        let id = held.shared.look(|state| state.core.wire_id(key));
        TunnelStream::new(held, id, Bytes::new())
    }

    /// Accepts a flow. If the opener has given up meanwhile, or wants a stream, the flow that this
    /// returns is already reset.
    #[must_use]
    pub fn accept_flow(self) -> Flow {
        Flow::new(self.accepted(true, Bytes::new()))
    }

    fn accepted(self, flow: bool, answer: Bytes) -> Held {
        let Self { mut held, .. } = self;
        held.code = code::CANCEL;
        let key = held.key;
        held.shared.command(|state| {
            if state.core.is_flow(key) == flow {
                state.core.accept(key, answer);
            } else {
                state.core.reset(key, code::INTERNAL);
            }
        });
        held
    }

    /// Refuses with a code of [`code`].
    pub fn refuse(self, code: u32) {
        let Self { mut held, .. } = self;
        held.code = code;
    }

    /// Completes when the opener gave up or the tunnel ended, and says which. Cancel safe.
    pub async fn cancelled(&mut self) -> StreamError {
        poll_fn(|cx| self.held.poll_ended(cx)).await
    }
}
