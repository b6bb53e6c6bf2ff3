//! One flow as its user sees it: whole datagrams that may get lost, and never a wait to send.

use std::future::poll_fn;
use std::task::{Context, Poll};

use bytes::Bytes;
use sg_tunnel::OpenState;
use tokio::time::Instant;

use crate::error::StreamError;
use crate::handover::Interest;
use crate::stream::Held;

/// A stream of datagrams in a tunnel, one UDP peer. Each arrives whole, at most once and in order, or
/// not at all. Dropping it resets the flow with CANCEL; there is no other end.
#[derive(Debug)]
pub struct Flow {
    held: Held,
}

impl Flow {
    pub(crate) fn new(held: Held) -> Self {
        Self { held }
    }

    /// Sends one datagram of at most 65,507 bytes, or drops it: it is never waited for. What is dropped
    /// is counted in [`crate::TunnelStats`]. A flow that was just opened may be sent on at once.
    ///
    /// # Errors
    ///
    /// The flow was reset or refused, or the tunnel has ended.
    pub fn send(&self, datagram: Bytes) -> Result<(), StreamError> {
        let (key, now) = (self.held.key, Instant::now().into_std());
        self.held.shared.command(|state| {
            let sent = state.core.send_datagram(now, key, datagram);
            sent.map_err(|end| state.error(end))
        })
    }

    /// The next received datagram. Only the task that polled last is woken.
    ///
    /// # Errors
    ///
    /// The flow was reset or refused, or the tunnel has ended; datagrams that were not read yet are lost.
    pub fn poll_recv(&self, cx: &mut Context<'_>) -> Poll<Result<Bytes, StreamError>> {
        let key = self.held.key;
        self.held
            .shared
            .command(|state| match state.core.receive_datagram(key) {
                Ok(Some(datagram)) => Poll::Ready(Ok(datagram)),
                Ok(None) => {
                    state.wait_for(key, Interest::Read, cx);
                    Poll::Pending
                }
                Err(end) => Poll::Ready(Err(state.error(end))),
            })
    }

    /// Appends received datagrams to `out`, at most `max` (at least 1) and under one lock; returns how
    /// many, never 0.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_recv`].
    pub fn poll_recv_many(
        &self,
        cx: &mut Context<'_>,
        out: &mut Vec<Bytes>,
        max: usize,
    ) -> Poll<Result<usize, StreamError>> {
        let key = self.held.key;
        self.held.shared.command(|state| {
            let mut count = 0;
            while count < max.max(1) {
                match state.core.receive_datagram(key) {
                    Ok(Some(datagram)) => {
                        count += 1;
                        out.push(datagram);
                    }
                    // The next call tells it again.
                    Ok(None) | Err(_) if count > 0 => break,
                    Ok(None) => {
                        state.wait_for(key, Interest::Read, cx);
                        return Poll::Pending;
                    }
                    Err(end) => return Poll::Ready(Err(state.error(end))),
                }
            }
            Poll::Ready(Ok(count))
        })
    }

    /// The next received datagram. Cancel safe.
    ///
    /// # Errors
    ///
    /// As [`Self::poll_recv`].
    pub async fn recv(&self) -> Result<Bytes, StreamError> {
        poll_fn(|cx| self.poll_recv(cx)).await
    }

    /// Whether the peer has accepted the flow. Whoever waits in [`Self::poll_recv`] is woken for it.
    #[must_use]
    pub fn is_open(&self) -> bool {
        let key = self.held.key;
        self.held
            .shared
            .look(|state| state.core.open_state(key) == Ok(OpenState::Open))
    }

    /// Completes when the flow was reset or refused, or the tunnel ended, even while nobody receives.
    pub fn poll_reset(&self, cx: &mut Context<'_>) -> Poll<StreamError> {
        self.held.poll_ended(cx)
    }

    /// Ends the flow with a code of [`crate::code`], ahead of what is queued.
    pub fn reset(&self, code: u32) {
        let key = self.held.key;
        self.held
            .shared
            .command(|state| state.core.reset(key, code));
    }

    /// What the acceptor said with its acceptance; empty until then.
    #[must_use]
    pub fn answer(&self) -> Bytes {
        let key = self.held.key;
        self.held.shared.look(|state| state.core.answer(key))
    }

    /// The flow's number in its tunnel; 0 until its OPEN was sent.
    #[must_use]
    pub fn id(&self) -> u32 {
        let key = self.held.key;
        self.held.shared.look(|state| state.core.wire_id(key))
    }
}
