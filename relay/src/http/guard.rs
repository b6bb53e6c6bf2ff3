//! Stands between the user's bytes and hyper. It gives hyper one head at a time, and only one that
//! [`head`](super::head) has found nothing to refuse in; it keeps what comes after a request that wants an upgrade
//! until the resource has agreed; and it bounds how long and how large a head may be.
//!
//! How long a body is it is told by the service, which knows it from hyper ([`GuardHandle::called`]). So there is one
//! reader that interprets, and one that can only refuse.
//!
//! A refused head is replaced by a harmless one, which the service answers with the refusal: so the answer keeps its
//! place behind those of the requests before.

use std::future::Future as _;
use std::io;
use std::mem::MaybeUninit;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::{Buf as _, BytesMut};
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::chunks::ChunkScan;
use super::head::{HeadLimits, HeadScan, Scan, too_large};
use super::limits;
use super::refusal::Refusal;
use super::wire::{Cell, Wire};

/// How much is read before hyper asks for it: to notice that the user is gone, and no more.
const AHEAD: usize = 16 * 1024;
const READ: usize = 8 * 1024;

/// What hyper is given instead of a head that is refused.
const REFUSED: &[u8] = b"GET / HTTP/1.1\r\nhost: refused\r\nconnection: close\r\n\r\n";
/// Added where it is missing: hyper passes trailers of an answer on only to those who say this, while everybody
/// who understands chunks understands trailers.
const TRAILERS: &[u8] = b"te: trailers\r\n";

/// What follows a head.
#[derive(Debug)]
pub(super) enum Following {
    /// A body of this length, which may be 0.
    Length(u64),
    /// A chunked body.
    Chunked,
    /// Nothing that may be read before the resource has answered.
    Upgrade,
}

/// What the service must know of a head beyond what hyper tells.
#[derive(Debug, Default)]
pub(super) struct HeadFacts {
    pub(super) refusal: Option<Refusal>,
    /// The TE header is not the user's.
    pub(super) te_added: bool,
}

enum Mode {
    Head,
    /// This is given to hyper, which then calls the service.
    Handing(BytesMut),
    Called,
    Length(u64),
    Chunked(ChunkScan),
    Held,
    Raw,
    /// There is nothing to guard.
    Off,
    Closed,
}

struct Guard {
    mode: Mode,
    buffer: BytesMut,
    scan: HeadScan,
    limits: HeadLimits,
    /// How long a head may take, from its first byte; on a new connection from the beginning.
    time: Duration,
    facts: HeadFacts,
    /// Why the body under way was refused.
    broken: Option<Refusal>,
    timer: Option<Pin<Box<Sleep>>>,
    first: bool,
    eof: bool,
    held: Option<Waker>,
}

/// The guard of one connection, shared by its reader and the service.
#[derive(Clone)]
pub(super) struct GuardHandle(Arc<Mutex<Guard>>);

impl GuardHandle {
    /// In front of HTTP/1.1, with heads within these limits.
    pub(super) fn new(limits: HeadLimits, time: Duration) -> Self {
        Self::with(Mode::Head, limits, time)
    }

    /// Lets everything pass: HTTP/2 has no such forms.
    pub(super) fn off() -> Self {
        Self::with(Mode::Off, limits::HEAD, Duration::MAX)
    }

    fn with(mode: Mode, limits: HeadLimits, time: Duration) -> Self {
        Self(Arc::new(Mutex::new(Guard {
            mode,
            buffer: BytesMut::new(),
            scan: HeadScan::default(),
            limits,
            time,
            facts: HeadFacts::default(),
            broken: None,
            timer: None,
            first: true,
            eof: false,
            held: None,
        })))
    }

    /// Says what follows the head that the service was just called with; answers what is known of it.
    pub(super) fn called(&self, following: Following) -> HeadFacts {
        let mut guard = self.lock();
        let facts = std::mem::take(&mut guard.facts);
        guard.broken = None;
        guard.mode = match (&guard.mode, following) {
            (Mode::Off, _) => Mode::Off,
            _ if facts.refusal.is_some() => Mode::Closed,
            (_, Following::Length(0)) => Mode::Head,
            (_, Following::Length(length)) => Mode::Length(length),
            (_, Following::Chunked) => Mode::Chunked(ChunkScan::new()),
            (_, Following::Upgrade) => Mode::Held,
        };
        facts
    }

    /// After a request that wanted an upgrade: either everything passes from now on, or the next head follows.
    pub(super) fn release(&self, upgraded: bool) {
        let mut guard = self.lock();
        if matches!(guard.mode, Mode::Held) {
            guard.mode = if upgraded { Mode::Raw } else { Mode::Head };
            if let Some(waker) = guard.held.take() {
                waker.wake();
            }
        }
    }

    /// Why the body under way was refused, if it was.
    pub(super) fn broken(&self) -> Option<Refusal> {
        self.lock().broken
    }

    /// Whether the user has ended its direction while something else than raw bytes passes.
    pub(super) fn is_half_closed(&self) -> bool {
        let guard = self.lock();
        guard.eof && !matches!(guard.mode, Mode::Raw)
    }

    /// Whether an upgrade has happened.
    pub(super) fn is_raw(&self) -> bool {
        matches!(self.lock().mode, Mode::Raw)
    }

    /// Reads a little while hyper does not, so that the user's end is noticed while its request is served.
    pub(super) fn poll_ahead<W: Wire>(&self, cx: &mut Context<'_>, cell: &mut Cell<W>) {
        let guard = &mut *self.lock();
        if guard.eof
            || guard.buffer.len() >= AHEAD
            || !matches!(guard.mode, Mode::Head | Mode::Called | Mode::Held)
        {
            return;
        }
        match read_into(&mut guard.buffer, cx, cell) {
            Poll::Ready(Ok(0) | Err(_)) => guard.eof = true,
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return,
        }
        // hyper may wait for just these bytes.
        cx.waker().wake_by_ref();
    }

    fn lock(&self) -> MutexGuard<'_, Guard> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Guard {
    fn poll_read<W: Wire>(
        &mut self,
        cx: &mut Context<'_>,
        cell: &mut Cell<W>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            match &mut self.mode {
                Mode::Head => {
                    if ready!(self.poll_head(cx, cell))? {
                        return Poll::Ready(Ok(()));
                    }
                }
                Mode::Handing(head) => {
                    give(head, out);
                    if head.is_empty() {
                        self.mode = Mode::Called;
                    }
                    return Poll::Ready(Ok(()));
                }
                // hyper wants more for a head that is complete: then the two do not read the same.
                Mode::Called => return Poll::Ready(Err(io::ErrorKind::InvalidData.into())),
                Mode::Length(left) => {
                    let max = usize::try_from(*left).unwrap_or(usize::MAX);
                    let read = ready!(fill(&mut self.buffer, cx, cell, out, max))?;
                    *left -= read as u64;
                    if *left == 0 {
                        self.mode = Mode::Head;
                    }
                    return Poll::Ready(Ok(()));
                }
                Mode::Chunked(scan) => {
                    let before = out.filled().len();
                    let read = ready!(fill(&mut self.buffer, cx, cell, out, usize::MAX))?;
                    let new = out.filled().get(before..).unwrap_or_default();
                    match scan.advance(new) {
                        Ok(taken) => {
                            if taken < read {
                                let rest = new.get(taken..).unwrap_or_default();
                                let mut buffer = BytesMut::from(rest);
                                buffer.extend_from_slice(&self.buffer);
                                self.buffer = buffer;
                                out.set_filled(before + taken);
                            }
                            if scan.is_done() {
                                self.mode = Mode::Head;
                            }
                            return Poll::Ready(Ok(()));
                        }
                        Err(refusal) => {
                            out.set_filled(before);
                            self.broken = Some(refusal);
                            self.mode = Mode::Closed;
                            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
                        }
                    }
                }
                Mode::Held => {
                    self.held = Some(cx.waker().clone());
                    return Poll::Pending;
                }
                Mode::Raw | Mode::Off => {
                    return fill(&mut self.buffer, cx, cell, out, usize::MAX).map_ok(|_| ());
                }
                Mode::Closed => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whether this is the end; otherwise the mode has changed.
    fn poll_head<W: Wire>(
        &mut self,
        cx: &mut Context<'_>,
        cell: &mut Cell<W>,
    ) -> Poll<io::Result<bool>> {
        loop {
            match self.scan.advance(&self.buffer, self.limits) {
                Ok(Scan::Complete { start, end }) => {
                    let mut head = self.buffer.split_to(end);
                    head.advance(start);
                    if !self.scan.te && !self.scan.is_http_10() {
                        let end = head.len().saturating_sub(2);
                        let rest = head.split_off(end);
                        head.extend_from_slice(TRAILERS);
                        head.extend_from_slice(&rest);
                        self.facts.te_added = true;
                    }
                    self.next(head);
                    return Poll::Ready(Ok(false));
                }
                Ok(Scan::Incomplete) if self.buffer.len() > self.limits.bytes => {
                    self.refuse(too_large());
                    return Poll::Ready(Ok(false));
                }
                Ok(Scan::Incomplete) => {}
                Err(refusal) => {
                    self.refuse(refusal);
                    return Poll::Ready(Ok(false));
                }
            }
            if self.eof {
                if self.buffer.is_empty() {
                    return Poll::Ready(Ok(true));
                }
                self.refuse(Refusal::bad("the request ends in the middle of its head"));
                return Poll::Ready(Ok(false));
            }
            match read_into(&mut self.buffer, cx, cell)? {
                Poll::Ready(0) => self.eof = true,
                Poll::Ready(_) => {}
                Poll::Pending => {
                    ready!(self.poll_late(cx));
                    if self.buffer.is_empty() {
                        self.mode = Mode::Closed;
                    } else {
                        self.refuse(Refusal::status(
                            StatusCode::REQUEST_TIMEOUT,
                            "head-timeout",
                            "the request line and headers did not come in time",
                        ));
                    }
                    return Poll::Ready(Ok(false));
                }
            }
        }
    }

    /// Ready when the head under way, or the first one, has taken too long.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if self.buffer.is_empty() && !self.first {
            return Poll::Pending;
        }
        let time = self.time;
        self.timer
            .get_or_insert_with(|| Box::pin(sleep(time)))
            .as_mut()
            .poll(cx)
    }

    fn refuse(&mut self, refusal: Refusal) {
        self.buffer.clear();
        self.facts.refusal = Some(refusal);
        self.next(BytesMut::from(REFUSED));
    }

    fn next(&mut self, head: BytesMut) {
        self.scan = HeadScan::default();
        self.timer = None;
        self.first = false;
        self.mode = Mode::Handing(head);
    }
}

/// Appends what has come. An empty buffer takes no memory while nothing comes.
fn read_into<W: Wire>(
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
    cell: &mut Cell<W>,
) -> Poll<io::Result<usize>> {
    let mut space = [MaybeUninit::uninit(); READ];
    let mut read = ReadBuf::uninit(&mut space);
    ready!(Pin::new(cell).poll_read(cx, &mut read))?;
    buffer.extend_from_slice(read.filled());
    Poll::Ready(Ok(read.filled().len()))
}

fn give(from: &mut BytesMut, out: &mut ReadBuf<'_>) -> usize {
    let count = from.len().min(out.remaining());
    out.put_slice(from.get(..count).unwrap_or_default());
    from.advance(count);
    count
}

/// Gives what was read ahead, or else reads into `out` itself.
fn fill<W: Wire>(
    buffer: &mut BytesMut,
    cx: &mut Context<'_>,
    cell: &mut Cell<W>,
    out: &mut ReadBuf<'_>,
    max: usize,
) -> Poll<io::Result<usize>> {
    if !buffer.is_empty() {
        let mut piece = buffer.split_to(max.min(buffer.len()));
        let read = give(&mut piece, out);
        piece.unsplit(std::mem::take(buffer));
        *buffer = piece;
        return Poll::Ready(Ok(read));
    }
    // Memory of an idle connection: the buffer is not kept once it was used up.
    if buffer.capacity() > 0 {
        *buffer = BytesMut::new();
    }
    let before = out.filled().len();
    if max >= out.remaining() {
        ready!(Pin::new(cell).poll_read(cx, out))?;
    } else {
        let mut limited = ReadBuf::new(out.initialize_unfilled_to(max));
        ready!(Pin::new(cell).poll_read(cx, &mut limited))?;
        let read = limited.filled().len();
        out.advance(read);
    }
    Poll::Ready(Ok(out.filled().len() - before))
}

/// hyper's side of a served connection.
pub(super) struct Guarded<W: Wire> {
    pub(super) cell: Cell<W>,
    pub(super) guard: GuardHandle,
}

impl<W: Wire> AsyncRead for Guarded<W> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.guard.lock().poll_read(cx, &mut this.cell, buf)
    }
}

impl<W: Wire> AsyncWrite for Guarded<W> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.cell).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.cell).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.cell.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.cell).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.cell).poll_shutdown(cx)
    }
}
