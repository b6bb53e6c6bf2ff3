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
/// Size of the one for streams that carry bulk. Each read makes the system acknowledge what it took, and take in what
/// the user sends then: fewer and larger ones cost less (`docs/decisions/0010`).
const LARGE_BUFFER: usize = 256 * 1024;
/// Chunks that one write takes.
const CHUNKS: usize = 16;

thread_local! {
    static READ_BUFFER: RefCell<ReadBuffer> = RefCell::new(ReadBuffer::new(BUFFER));
    static LARGE_READ_BUFFER: RefCell<ReadBuffer> = RefCell::new(ReadBuffer::new(LARGE_BUFFER));
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
    /// It carries bulk: the last read was as large as the small buffer, the next is into the large one.
    bulk: bool,
    /// The socket took less than it was offered.
    full: bool,
}

impl Raw {
    pub(super) fn new(front: Bytes) -> Self {
        Self {
            front,
            ..Self::default()
        }
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
        let buffer = match self.bulk && budget > BUFFER {
            true => &LARGE_READ_BUFFER,
            false => &READ_BUFFER,
        };
        let read = buffer.with_borrow_mut(|buffer| buffer.read(cx, tcp, budget));
        let bytes = ready!(read).map_err(|error| failed("read", &error))?;
        self.bulk = bytes.len() >= BUFFER;
        Poll::Ready(Ok(bytes))
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

/// Always without bytes between two reads, so it is free for whichever stream of the thread reads next.
struct ReadBuffer {
    bytes: BytesMut,
    /// What is allocated at a time.
    size: usize,
}

impl ReadBuffer {
    fn new(size: usize) -> Self {
        Self {
            bytes: BytesMut::new(),
            size,
        }
    }

    /// Reads at most `budget` bytes; none at the end.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        tcp: &mut ReadHalf<'_>,
        budget: usize,
    ) -> Poll<io::Result<Bytes>> {
        // With less than half of it left, the next one is begun.
        if self.bytes.capacity() < self.size / 2 {
            self.bytes.reserve(self.size);
        }
        let most = budget.clamp(1, self.bytes.capacity());
        let mut room = (&mut self.bytes).limit(most);
        let read = ready!(poll_read_buf(Pin::new(tcp), cx, &mut room))?;
        // A slice keeps the whole buffer alive, and must not do so for a few bytes.
        let bytes = if read < self.size / 4 {
            let copy = Bytes::copy_from_slice(&self.bytes);
            self.bytes.clear();
            copy
        } else {
            self.bytes.split().freeze()
        };
        Poll::Ready(Ok(bytes))
    }
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::future::poll_fn;
    use std::time::Duration;

    use tokio::io::AsyncWriteExt as _;
    use tokio::net::TcpSocket;

    use super::*;

    #[tokio::test]
    async fn bulk_is_read_in_large_pieces_and_a_few_bytes_hold_on_to_no_buffer() {
        let listening = TcpSocket::new_v4().unwrap();
        // Room for all of it, so that nothing depends on when the system takes in what.
        listening.set_recv_buffer_size(1024 * 1024).unwrap();
        listening.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        let listener = listening.listen(1).unwrap();
        let user = TcpStream::connect(listener.local_addr().unwrap());
        let (user, accepted) = tokio::join!(user, listener.accept());
        let (mut user, (mut tcp, _)) = (user.unwrap(), accepted.unwrap());
        let arrived = async |tcp: &TcpStream, count: usize| {
            let mut all = vec![0; count];
            let all_of_it = async {
                while tcp.peek(&mut all).await.unwrap() < count {
                    tokio::task::yield_now().await;
                }
            };
            let in_time = tokio::time::timeout(Duration::from_secs(10), all_of_it).await;
            in_time.unwrap();
        };
        let mut raw = Raw::default();
        let mut read = async |tcp: &mut TcpStream, budget| {
            let (mut half, _) = tcp.split();
            let bytes = poll_fn(|cx| raw.poll_read(cx, &mut half, budget)).await;
            bytes.unwrap()
        };

        user.write_all(&vec![7; 150 * 1024]).await.unwrap();
        arrived(&tcp, 150 * 1024).await;
        assert_eq!(read(&mut tcp, usize::MAX).await.len(), BUFFER);
        let large = read(&mut tcp, usize::MAX).await;
        assert_eq!((large.len(), large.is_unique()), (86 * 1024, false));
        // Less than a quarter of the large buffer is copied out of it.
        user.write_all(&[8; 60_000]).await.unwrap();
        arrived(&tcp, 60_000).await;
        let few = read(&mut tcp, usize::MAX).await;
        assert_eq!((few.len(), few.is_unique()), (60_000, true));
        // Not bulk any more: of a small one a slice of that length is taken.
        user.write_all(&[9; 60_000]).await.unwrap();
        arrived(&tcp, 60_000).await;
        let slice = read(&mut tcp, usize::MAX).await;
        assert_eq!((slice.len(), slice.is_unique()), (60_000, false));
        user.write_all(&[10; 100]).await.unwrap();
        arrived(&tcp, 100).await;
        let few = read(&mut tcp, 10).await;
        assert_eq!((few.len(), few.is_unique()), (10, true));
    }
}
