//! The handle of a tunnel: open streams, send messages, drain, close.

use std::fmt;
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use bytes::Bytes;
use sg_tunnel::{Closed, ControlRefusal, OpenRefusal, OpenState, StreamEnd, code};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::Instant;

use crate::error::{ControlError, OpenError};
use crate::flow::Flow;
use crate::handover::Interest;
use crate::state::{Shared, State};
use crate::stream::{Held, TunnelStream};
use crate::transport::{self, Transport};
use crate::{Report, TunnelStats};

/// A handle to a tunnel; cheap to clone. Dropping all of them does not end the tunnel.
#[derive(Clone)]
pub struct Tunnel {
    shared: Arc<Shared>,
}

impl Tunnel {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Opens a stream and waits for the peer's answer; the caller bounds the time. Dropping the
    /// future resets the stream with CANCEL.
    ///
    /// # Errors
    ///
    /// [`OpenError::retry_elsewhere`] tells whether another tunnel may take the stream.
    pub async fn open(&self, metadata: Bytes) -> Result<TunnelStream, OpenError> {
        let key = self
            .shared
            .command(|state| state.core.open(metadata).map_err(|r| open_error(state, r)))?;
        let mut held = Some(Held::new(Arc::clone(&self.shared), key, code::CANCEL));
        poll_fn(|cx| {
            let answer = self.shared.look(|state| match state.core.open_state(key) {
                Ok(OpenState::Open) => Some(Ok((state.core.wire_id(key), state.core.answer(key)))),
                Ok(OpenState::Waiting) => {
                    state.wait_for(key, Interest::Read, cx);
                    None
                }
                Err(StreamEnd::Reset(code)) => Some(Err(OpenError::Reset { code })),
                Err(_) => Some(Err(open_error(state, OpenRefusal::Closed))),
            });
            match (answer, held.take()) {
                (Some(Ok((id, answer))), Some(held)) => {
                    Poll::Ready(Ok(TunnelStream::new(held, id, answer)))
                }
                (Some(Err(error)), _) => Poll::Ready(Err(error)),
                (_, still) => {
                    held = still;
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Opens a flow. It can be used at once; a refusal shows as its reset.
    ///
    /// # Errors
    ///
    /// Nothing was sent. [`OpenError::retry_elsewhere`] tells whether another tunnel may take the flow.
    pub fn open_flow(&self, metadata: Bytes) -> Result<Flow, OpenError> {
        let key = self.shared.command(|state| {
            let opened = state.core.open_flow(metadata);
            opened.map_err(|refusal| open_error(state, refusal))
        })?;
        let held = Held::new(Arc::clone(&self.shared), key, code::CANCEL);
        Ok(Flow::new(held))
    }

    /// Queues a CONTROL message of at most 16 KiB.
    ///
    /// # Errors
    ///
    /// The queue is full, the message too long, or the tunnel has ended.
    pub fn send_control(&self, message: Bytes) -> Result<(), ControlError> {
        self.shared.command(|state| {
            state.core.send_control(message).map_err(|refusal| {
                match (refusal, state.core.closed()) {
                    (ControlRefusal::Closed, Some(closed)) => ControlError::Closed(closed.clone()),
                    (ControlRefusal::TooLong, _) => ControlError::TooLong,
                    (ControlRefusal::Full | ControlRefusal::Closed, _) => ControlError::Full,
                }
            })
        })
    }

    /// Drains: no new streams either way, existing ones go on. The peer sees
    /// [`crate::Event::PeerDraining`].
    pub fn goaway(&self) {
        self.shared.command(|state| state.core.goaway());
    }

    /// Ends the tunnel and all its streams, and tells the peer a code of [`code::close`] and a text
    /// of at most 256 bytes.
    pub fn close(&self, code: u32, message: &str) {
        self.shared.command(|state| state.core.close(code, message));
    }

    /// Goes on over a new connection, on which both sides have agreed to resume this tunnel. The old
    /// one is closed at once, even if it is believed alive: what it had received and was not handed on
    /// is dropped, as the peer sends it again. As with [`crate::start`] the end of file of `io` is taken
    /// for an orderly end.
    ///
    /// # Errors
    ///
    /// The tunnel has ended; one that is not resumable ends by this. `io` is closed.
    pub fn attach<T>(&self, io: T) -> Result<(), Closed>
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        self.attach_with(Box::new(transport::Stream::new(io)))
    }

    /// Like [`Self::attach`], over any [`Transport`].
    ///
    /// # Errors
    ///
    /// As [`Self::attach`].
    pub fn attach_with(&self, io: Box<dyn Transport>) -> Result<(), Closed> {
        let (result, useless) = self.shared.command(|state| state.attach(io));
        drop(useless);
        result
    }

    /// Whether the tunnel has lost its connection and waits for another one.
    #[must_use]
    pub fn is_detached(&self) -> bool {
        self.shared.look(|state| state.core.is_detached())
    }

    /// Ends the tunnel because the peer no longer knows it; tells the peer nothing.
    pub fn abandon(&self) {
        self.shared.command(|state| state.core.abandon());
    }

    /// Completes when the tunnel has ended. Its driver may still be delivering the GOAWAY.
    pub async fn closed(&self) -> Closed {
        let mut receiver = self.shared.look(|state| state.subscribe_closed());
        let closed = receiver.wait_for(Option::is_some).await;
        match closed.as_deref() {
            Ok(Some(closed)) => closed.clone(),
            // Not reachable: the sender lives as long as this handle.
            _ => Closed::lost(std::io::ErrorKind::BrokenPipe, "tunnel is gone"),
        }
    }

    /// Whether the tunnel has ended.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.shared.look(|state| state.core.closed().is_some())
    }

    /// Whether either side has announced the drain.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        self.shared.look(|state| state.core.is_draining())
    }

    /// Round-trip time of the last answered ping.
    #[must_use]
    pub fn rtt(&self) -> Option<Duration> {
        self.shared.look(|state| state.core.rtt())
    }

    /// Whether a ping has been unanswered for more than a second: prefer another tunnel.
    #[must_use]
    pub fn is_suspect(&self) -> bool {
        let now = Instant::now().into_std();
        self.shared.look(|state| state.core.is_suspect(now))
    }

    /// Streams that are open, being opened, or not yet forgotten by both sides.
    #[must_use]
    pub fn active_streams(&self) -> usize {
        self.shared.look(|state| state.core.streams())
    }

    /// Counters since the start.
    #[must_use]
    pub fn stats(&self) -> TunnelStats {
        self.shared.look(|state| state.core.stats())
    }

    /// What the tunnel is doing now, with the `max_streams` streams that hold most. It looks at every stream
    /// under the lock, so it is for people who ask, not for every second.
    #[must_use]
    pub fn report(&self, max_streams: usize) -> Report {
        let now = Instant::now().into_std();
        self.shared
            .look(|state| state.core.report(now, max_streams))
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").finish_non_exhaustive()
    }
}

fn open_error(state: &State, refusal: OpenRefusal) -> OpenError {
    match (refusal, state.core.closed()) {
        (OpenRefusal::Closed, Some(closed)) => OpenError::Closed(closed.clone()),
        (OpenRefusal::Limit, _) => OpenError::Limit,
        (OpenRefusal::Detached, _) => OpenError::Detached,
        (OpenRefusal::Draining | OpenRefusal::Closed, _) => OpenError::Draining,
        (OpenRefusal::MetadataTooLong, _) => OpenError::Reset {
            code: code::INTERNAL,
        },
    }
}
