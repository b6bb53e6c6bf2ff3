//! What lies between a socket and the bytes of a connection: nothing, or TLS. [`super::relay`] is compiled for
//! each, so bytes without TLS pay nothing for it.

use std::cell::RefCell;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{BufMut as _, Bytes, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::net::tcp::ReadHalf;
use tokio_util::io::poll_read_buf;

use super::EndReason;
use crate::socket::{poll_send_with, shutdown_write};
use crate::tls::{self, Engine, Fault};

/// Size of the buffer that all streams of a thread read into.
const BUFFER: usize = 64 * 1024;
/// With less room than this left, the next buffer is begun.
const LEAST_ROOM: usize = 32 * 1024;
/// Smaller reads are copied out: a slice keeps the whole buffer alive, and must not do so for a few bytes.
const LEAST_SLICE: usize = BUFFER / 4;
/// Chunks that one write takes.
const CHUNKS: usize = 16;

thread_local! {
    /// Always empty between two reads, so it is free for whichever stream of this thread reads next.
    static READ_BUFFER: RefCell<BytesMut> = RefCell::default();
}

type Outcome<T> = Result<T, EndReason>;

/// One layer over the socket. Reading and writing are independent of each other, but for what TLS itself says.
pub(super) trait Layer: Send {
    /// Ready when a read may have something. It costs no system call and no lock of the tunnel.
    fn poll_read_ready(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>>;

    /// Reads about `budget` bytes; none at the end.
    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut ReadHalf<'_>,
        budget: usize,
    ) -> Poll<Outcome<Bytes>>;

    /// While nobody takes bytes: looks for an end of the connection that only reading shows.
    fn watch(&mut self, cx: &mut Context<'_>, tcp: &mut ReadHalf<'_>) -> Outcome<()>;

    /// Ready when everything that was written before is with the socket, and a write may be worth its while.
    fn poll_flush(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>>;

    /// One write of `chunks`, which are not empty, as far as it is taken.
    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        chunks: &[Bytes],
    ) -> Poll<Outcome<usize>>;

    /// Ends the sending direction; everything is flushed.
    fn poll_finish(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>>;
}

/// Bytes as they are.
#[derive(Default)]
pub(super) struct Raw {
    /// Read before the join, and to be relayed first.
    front: Bytes,
    /// The socket took less than it was offered.
    full: bool,
}

impl Raw {
    pub(super) fn new(front: Bytes) -> Self {
        Self { front, full: false }
    }
}

fn failed(what: &'static str, error: &io::Error) -> EndReason {
    tracing::trace!(%error, "{what} failed");
    EndReason::TcpReset
}

impl Layer for Raw {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        if !self.front.is_empty() {
            return Poll::Ready(Ok(()));
        }
        tcp.poll_read_ready(cx)
            .map_err(|error| failed("read", &error))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut ReadHalf<'_>,
        budget: usize,
    ) -> Poll<Outcome<Bytes>> {
        if !self.front.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.front)));
        }
        read(cx, tcp, budget).map_err(|error| failed("read", &error))
    }

    /// A reset is noticed without reading, and there is nothing else.
    fn watch(&mut self, _: &mut Context<'_>, _: &mut ReadHalf<'_>) -> Outcome<()> {
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        if self.full {
            ready!(tcp.poll_write_ready(cx)).map_err(|error| failed("write", &error))?;
            self.full = false;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        chunks: &[Bytes],
    ) -> Poll<Outcome<usize>> {
        let mut all = 0;
        let sent = poll_send_with(cx, tcp, || {
            let (offered, taken) = send(tcp, chunks)?;
            all = offered;
            Ok((offered, taken))
        });
        self.full = !matches!(sent, Poll::Ready(Ok(taken)) if taken == all);
        sent.map_err(|error| failed("write", &error))
    }

    fn poll_finish(&mut self, _: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        Poll::Ready(shutdown_write(tcp).map_err(|error| failed("shutdown", &error)))
    }
}

/// Reads at most `budget` bytes; none at the end.
fn read(cx: &mut Context<'_>, tcp: &mut ReadHalf<'_>, budget: usize) -> Poll<io::Result<Bytes>> {
    READ_BUFFER.with_borrow_mut(|buffer| {
        if buffer.capacity() < LEAST_ROOM {
            buffer.reserve(BUFFER);
        }
        let mut room = (&mut *buffer).limit(budget.max(1));
        let read = ready!(poll_read_buf(Pin::new(tcp), cx, &mut room))?;
        let bytes = if read < LEAST_SLICE {
            let copy = Bytes::copy_from_slice(buffer);
            buffer.clear();
            copy
        } else {
            buffer.split().freeze()
        };
        Poll::Ready(Ok(bytes))
    })
}

/// Offers up to [`CHUNKS`] chunks; answers how many bytes were offered, and taken.
fn send(tcp: &TcpStream, chunks: &[Bytes]) -> io::Result<(usize, usize)> {
    let socket = SockRef::from(tcp);
    if let [only] = chunks {
        return Ok((only.len(), socket.send(only)?));
    }
    let slices: [IoSlice<'_>; CHUNKS] =
        std::array::from_fn(|i| IoSlice::new(chunks.get(i).map_or(&[], |chunk| chunk)));
    let count = chunks.len().min(CHUNKS);
    let slices = &slices[..count];
    let offered = slices.iter().map(|slice| slice.len()).sum();
    Ok((offered, socket.send_vectored(slices)?))
}

/// The records of TLS around the bytes.
pub(super) struct Tls {
    engine: Box<Engine>,
    /// `close_notify` is sealed; the FIN follows it.
    finishing: bool,
}

impl Tls {
    pub(super) fn new(engine: Box<Engine>) -> Self {
        Self {
            engine,
            finishing: false,
        }
    }

    fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut ReadHalf<'_>,
        budget: usize,
    ) -> Poll<Outcome<()>> {
        let filled = ready!(self.engine.poll_fill(cx, tcp, budget)).map_err(broken);
        tls::answer(&mut self.engine, tcp.as_ref());
        Poll::Ready(filled)
    }
}

fn broken(fault: Fault) -> EndReason {
    match fault {
        Fault::Io(error) => failed("TLS", &error),
        Fault::Tls(error) => {
            tracing::debug!(%error, "TLS ended");
            EndReason::Ended(error.code())
        }
    }
}

impl Layer for Tls {
    fn poll_read_ready(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        if self.engine.has_something() {
            return Poll::Ready(Ok(()));
        }
        tcp.poll_read_ready(cx)
            .map_err(|error| failed("read", &error))
    }

    fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut ReadHalf<'_>,
        budget: usize,
    ) -> Poll<Outcome<Bytes>> {
        while !self.engine.has_something() {
            ready!(self.poll_fill(cx, tcp, budget))?;
        }
        Poll::Ready(Ok(self.engine.take(budget.max(1))))
    }

    /// Reads a little ahead: an alert, or a record that is broken, is noticed also when nobody reads.
    fn watch(&mut self, cx: &mut Context<'_>, tcp: &mut ReadHalf<'_>) -> Outcome<()> {
        while self.engine.may_read_ahead() {
            match self.poll_fill(cx, tcp, 0) {
                Poll::Ready(filled) => filled?,
                Poll::Pending => break,
            }
        }
        Ok(())
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        tls::poll_flush(cx, tcp, &mut self.engine).map_err(|error| failed("write", &error))
    }

    fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &TcpStream,
        chunks: &[Bytes],
    ) -> Poll<Outcome<usize>> {
        ready!(self.poll_flush(cx, tcp))?;
        let pieces = chunks.iter().map(|chunk| &**chunk);
        Poll::Ready(tls::poll_write(cx, tcp, &mut self.engine, pieces).map_err(broken))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>, tcp: &TcpStream) -> Poll<Outcome<()>> {
        if !std::mem::replace(&mut self.finishing, true) {
            self.engine.finish().map_err(broken)?;
        }
        ready!(self.poll_flush(cx, tcp))?;
        Poll::Ready(shutdown_write(tcp).map_err(|error| failed("shutdown", &error)))
    }
}
