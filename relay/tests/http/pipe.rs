//! A connection in memory that can be reset, as TCP and the streams of a tunnel can: `tokio::io::duplex` ends
//! cleanly whatever happens.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};

use sg_relay::EndReason;
use sg_relay::http::Wire;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

#[derive(Default)]
struct Half {
    bytes: VecDeque<u8>,
    fin: bool,
    reset: Option<u32>,
    wakers: Vec<Waker>,
}

impl Half {
    fn wake(&mut self) {
        for waker in self.wakers.drain(..) {
            waker.wake();
        }
    }
}

/// One end. Dropped without [`Wire::close`], it resets the other.
pub struct Pipe {
    reads: Arc<Mutex<Half>>,
    writes: Arc<Mutex<Half>>,
    capacity: usize,
    closed: bool,
}

/// Two ends that hold so many bytes per direction.
pub fn pipe(capacity: usize) -> (Pipe, Pipe) {
    let (one, other) = (Arc::<Mutex<Half>>::default(), Arc::<Mutex<Half>>::default());
    let end = |reads: &Arc<Mutex<Half>>, writes: &Arc<Mutex<Half>>| Pipe {
        reads: Arc::clone(reads),
        writes: Arc::clone(writes),
        capacity,
        closed: false,
    };
    (end(&one, &other), end(&other, &one))
}

impl Pipe {
    pub fn reset(self, code: u32) {
        self.end(code);
    }

    fn end(&self, code: u32) {
        for half in [&self.reads, &self.writes] {
            let mut half = half.lock().unwrap();
            half.reset.get_or_insert(code);
            half.bytes.clear();
            half.wake();
        }
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        let over = self.writes.lock().unwrap().fin && self.reads.lock().unwrap().fin;
        if !self.closed && !over {
            self.end(0x100);
        }
    }
}

impl Wire for Pipe {
    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<EndReason> {
        let mut half = self.reads.lock().unwrap();
        match half.reset {
            Some(code) => Poll::Ready(EndReason::StreamReset(code)),
            None => {
                half.wakers.push(cx.waker().clone());
                Poll::Pending
            }
        }
    }

    fn reason(_: &io::Error) -> EndReason {
        EndReason::TcpReset
    }

    fn abort(self, code: u32) {
        self.end(code);
    }

    fn close(mut self) {
        self.closed = true;
        let mut half = self.writes.lock().unwrap();
        half.fin = true;
        half.wake();
    }
}

impl AsyncRead for Pipe {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut half = self.reads.lock().unwrap();
        if half.reset.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if half.bytes.is_empty() && !half.fin {
            half.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        let count = buf.remaining().min(half.bytes.len());
        let (front, back) = half.bytes.as_slices();
        let first = front.len().min(count);
        buf.put_slice(&front[..first]);
        buf.put_slice(&back[..count - first]);
        half.bytes.drain(..count);
        half.wake();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Pipe {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut half = self.writes.lock().unwrap();
        if half.reset.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if half.fin {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let room = self.capacity.saturating_sub(half.bytes.len());
        if room == 0 {
            half.wakers.push(cx.waker().clone());
            return Poll::Pending;
        }
        let count = room.min(bytes.len());
        half.bytes.extend(&bytes[..count]);
        half.wake();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut half = self.writes.lock().unwrap();
        if half.reset.is_some() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        half.fin = true;
        half.wake();
        Poll::Ready(Ok(()))
    }
}
