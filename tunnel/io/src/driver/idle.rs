//! For unit tests: a transport that never takes anything.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::task::{Context, Poll};

use bytes::BytesMut;

use crate::transport::Transport;

#[derive(Default)]
pub(super) struct Idle {
    /// Length of the pieces of which there is always one to read; `None`: nothing comes.
    pub(super) says: Option<usize>,
    /// What [`Transport::progress`] tells.
    pub(super) progress: u64,
}

impl Transport for Idle {
    fn poll_read(
        &mut self,
        _: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        let Some(length) = self.says else {
            return Poll::Pending;
        };
        pieces.push_back(BytesMut::zeroed(length));
        Poll::Ready(Ok(length))
    }

    fn poll_write(&mut self, _: &mut Context<'_>, _: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        Poll::Pending
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Pending
    }

    fn progress(&self) -> u64 {
        self.progress
    }

    fn release(&mut self) {}
}
