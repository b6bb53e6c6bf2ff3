//! A connection whose records are this module's business: received pieces out, slices in.

use std::cell::Cell;
use std::collections::VecDeque;
use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf as _, BytesMut};
use rustls::{ConnectionTrafficSecrets, ExtractedSecrets, Side};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::poll_read_buf;

use super::MOST_PLAIN;
use super::aead::{Broken, implementation};
use super::keys::{Suite, TrafficSecret};
use super::protect::{Fault, Opened, Opener, Sealer};
use super::reading::RecordWise;
use crate::tls::{ClientStream, ServerStream};

/// Sizes of receive buffers: that of others, and that of a connection that carries bulk. A few large reads cost less than many,
/// also at the sending end, which the system runs for each of them (`docs/decisions/0010`). A tunnel limits how many buffers its
/// streams hold on to.
const BUFFER: usize = 64 * 1024;
pub(super) const LARGE_BUFFER: usize = 256 * 1024;
/// With less room than this, the next buffer is begun.
const LEAST_ROOM: usize = 16 * 1024;
const LEAST_LARGE_ROOM: usize = 64 * 1024;
/// A connection carries bulk after a read of so many bytes, and no longer after a smaller one.
const BULK: usize = 48 * 1024;
/// Most pieces that one call gives: there may be a record to every 23 bytes.
const MOST_PIECES: usize = 1024;
/// Plaintext that is sealed at a time, at most: all that a driver takes for one batch. It leaves with one system call,
/// and wakes the other end once (3 to 14 % less CPU in bulk than with 64 KiB, 3 to 17 % more GiB/s). One record more is
/// for the few bytes by which a batch may exceed 256 KiB: a write of their own costs the way through the whole stack again.
pub(super) const BATCH: usize = 256 * 1024 + MOST_PLAIN;

thread_local! {
    /// A small and a large receive buffer without bytes, for whichever connection of this thread reads next: one that
    /// waits holds none.
    static SPARES: [Cell<BytesMut>; 2] = [Cell::default(), Cell::default()];
}

/// A connection cannot be taken out of rustls' hands. It is of no use any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the TLS connection cannot be taken over: {0}")]
pub struct TakeOverError(&'static str);

/// An established TLS connection without rustls.
///
/// Received bytes come as pieces that share the memory they were read to. Writing takes as much as is sealed at a
/// time, and no more before that has gone.
pub struct RecordStream<T> {
    io: T,
    /// What rustls had opened already.
    front: BytesMut,
    /// Read, and not yet a whole record.
    received: BytesMut,
    /// `received` is a part of a large buffer.
    large: bool,
    /// It carries bulk: the next buffer is a large one.
    bulk: bool,
    opener: Opener,
    closed: bool,
    /// What was wrong with a record behind bytes that were right.
    fault: Option<Fault>,
    /// Sealed, and not yet with the system.
    sealed: BytesMut,
    /// Bytes that the system has taken.
    sent: u64,
    sealer: Sealer,
    /// The other end wants this end's keys to change.
    update_wanted: bool,
    /// `close_notify` is sealed.
    finished: bool,
}

/// Either end of a connection that can be taken over.
pub trait Session<T>: private::Parts<T> {}

impl<T> Session<T> for ClientStream<RecordWise<T>> {}
impl<T> Session<T> for ServerStream<RecordWise<T>> {}

mod private {
    use super::{ExtractedSecrets, RecordWise, Side};

    /// What the library knows of a connection.
    pub struct Known {
        pub(super) side: Side,
        pub(super) suite: Option<rustls::CipherSuite>,
        pub(super) front: Vec<u8>,
        pub(super) closed: bool,
        pub(super) secrets: Result<ExtractedSecrets, rustls::Error>,
    }

    impl std::fmt::Debug for Known {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Known").finish_non_exhaustive()
        }
    }

    pub trait Parts<T> {
        fn parts(self) -> (RecordWise<T>, Known);
    }
}

macro_rules! parts {
    ($stream:ident, $side:expr) => {
        impl<T> private::Parts<T> for $stream<RecordWise<T>> {
            fn parts(self) -> (RecordWise<T>, private::Known) {
                let (io, mut session) = self.into_inner();
                let mut front = Vec::new();
                // An end of the connection shows at the next read.
                let closed = io::Read::read_to_end(&mut session.reader(), &mut front).is_ok();
                let known = private::Known {
                    side: $side,
                    suite: session.negotiated_cipher_suite().map(|suite| suite.suite()),
                    front,
                    closed,
                    secrets: session.dangerous_extract_secrets(),
                };
                (io, known)
            }
        }
    };
}

parts!(ClientStream, Side::Client);
parts!(ServerStream, Side::Server);

impl<T> RecordStream<T> {
    /// Takes over a connection of [`crate::tls::connect_records`] or [`crate::tls::accept_records`] that has nothing
    /// left to send.
    ///
    /// # Errors
    /// Something is left, or the other end has changed its keys already.
    pub fn take_over(stream: impl Session<T>) -> Result<Self, TakeOverError> {
        let (io, known) = stream.parts();
        let secrets = known
            .secrets
            .map_err(|_| TakeOverError("something is still to be sent, or it has failed"))?;
        if io.left > 0 {
            return Err(TakeOverError("a record is not all there"));
        }
        let suite = known
            .suite
            .and_then(Suite::of)
            .ok_or(TakeOverError("another cipher"))?;
        let (client, server) = io
            .capture
            .secrets()
            .ok_or(TakeOverError("the handshake is not over"))?;
        let (tx, rx) = match known.side {
            Side::Client => (client, server),
            Side::Server => (server, client),
        };
        let (tx, rx) = (TrafficSecret::new(suite, tx), TrafficSecret::new(suite, rx));
        if !in_force(&tx, &secrets.tx.1) || !in_force(&rx, &secrets.rx.1) {
            return Err(TakeOverError("the keys have changed already"));
        }
        let which = implementation();
        let unusable = |Broken| TakeOverError("a key cannot be used");
        let tickets = known.side == Side::Client;
        let opener = Opener::new(which, rx, secrets.rx.0, tickets).map_err(unusable)?;
        let sealer = Sealer::new(which, tx, secrets.tx.0).map_err(unusable)?;
        Ok(Self {
            front: BytesMut::from(known.front.as_slice()),
            received: io.buffer,
            closed: known.closed,
            ..Self::new(io.io, opener, sealer)
        })
    }

    /// A connection on which nothing came and went yet.
    pub(super) fn new(io: T, opener: Opener, sealer: Sealer) -> Self {
        Self {
            io,
            front: BytesMut::new(),
            received: BytesMut::new(),
            large: false,
            bulk: false,
            opener,
            closed: false,
            fault: None,
            sealed: BytesMut::new(),
            sent: 0,
            sealer,
            update_wanted: false,
            finished: false,
        }
    }

    /// What is beneath.
    pub fn get_ref(&self) -> &T {
        &self.io
    }

    /// Bytes that the system has taken, records and all. They are less than what was written while some wait.
    #[must_use]
    pub fn sent(&self) -> u64 {
        self.sent
    }

    /// Gives back the memory of empty buffers.
    pub fn release(&mut self) {
        for buffer in [&mut self.front, &mut self.received, &mut self.sealed] {
            if buffer.is_empty() {
                *buffer = BytesMut::new();
            }
        }
    }

    /// Bytes of memory that it keeps for itself.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> usize {
        let buffers = [&self.front, &self.received, &self.sealed];
        let buffers: usize = buffers.iter().map(|buffer| buffer.capacity()).sum();
        buffers + self.opener.held()
    }

    /// Whether it reads into a large buffer.
    #[cfg(test)]
    pub(super) fn reads_large(&self) -> bool {
        self.large
    }

    #[cfg(test)]
    pub(in crate::tls) fn update_keys_after(&mut self, records: u64) {
        self.sealer.update_after(records);
    }
}

/// Whether the keys that rustls uses are those that follow from the secret.
fn in_force(secret: &TrafficSecret, used: &ConnectionTrafficSecrets) -> bool {
    let keys = secret.protection();
    match used {
        ConnectionTrafficSecrets::Aes128Gcm { key, iv }
        | ConnectionTrafficSecrets::Aes256Gcm { key, iv }
        | ConnectionTrafficSecrets::Chacha20Poly1305 { key, iv } => {
            crate::crypto::equal(keys.key.expose(), key.as_ref()) && keys.iv == iv.as_ref()
        }
        _ => false,
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> RecordStream<T> {
    /// Appends what was received to `pieces`, and answers how many bytes; 0 after `close_notify`.
    ///
    /// # Errors
    /// The connection failed, ended without a goodbye ([`io::ErrorKind::UnexpectedEof`]), or the other end broke the
    /// rules of TLS ([`io::ErrorKind::InvalidData`]), which it is told.
    pub fn poll_read(
        &mut self,
        cx: &mut Context<'_>,
        pieces: &mut VecDeque<BytesMut>,
    ) -> Poll<io::Result<usize>> {
        if !self.front.is_empty() {
            let front = std::mem::take(&mut self.front);
            let count = front.len();
            pieces.push_back(front);
            return Poll::Ready(Ok(count));
        }
        loop {
            let count = self.open(pieces);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
            if let Some(fault) = self.fault {
                return Poll::Ready(Err(self.fail(cx, fault)));
            }
            if self.closed {
                return Poll::Ready(Ok(0));
            }
            if ready!(self.poll_receive(cx))? == 0 {
                return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
            }
        }
    }

    /// One read.
    fn poll_receive(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (size, least) = match self.bulk {
            true => (LARGE_BUFFER, LEAST_LARGE_ROOM),
            false => (BUFFER, LEAST_ROOM),
        };
        let room = |buffer: &BytesMut| buffer.capacity() - buffer.len();
        // A slow connection in the middle of a record must not hold on to a large buffer.
        let other = self.large != self.bulk;
        if other || (self.received.is_empty() && room(&self.received) < least) {
            let mut next = SPARES.with(|spares| spares[usize::from(self.bulk)].take());
            if room(&next) < self.received.len() + least {
                next.reserve(size);
            }
            next.extend_from_slice(&self.received);
            (self.received, self.large) = (next, self.bulk);
        }
        if room(&self.received) < least {
            // What is left is less than a record, and stays within one buffer.
            let missing = size.saturating_sub(self.received.len());
            self.received.reserve(missing);
        }
        let read = poll_read_buf(Pin::new(&mut self.io), cx, &mut self.received);
        if let Poll::Ready(Ok(count)) = read {
            self.bulk = count >= BULK;
        }
        if self.received.is_empty() {
            let received = std::mem::take(&mut self.received);
            SPARES.with(|spares| spares[usize::from(self.large)].set(received));
        }
        read
    }

    /// Opens the records that are there, [`MOST_PIECES`] of them, up to the end or to a fault, behind which nothing is opened any
    /// more.
    fn open(&mut self, pieces: &mut VecDeque<BytesMut>) -> usize {
        let mut count = 0;
        let most = pieces.len() + MOST_PIECES;
        while !self.closed && self.fault.is_none() && pieces.len() < most {
            match self.opener.open(&mut self.received) {
                Ok(None) => break,
                Ok(Some(Opened::Data(piece))) => {
                    count += piece.len();
                    pieces.push_back(piece);
                }
                Ok(Some(Opened::Nothing)) => {}
                Ok(Some(Opened::UpdateWanted)) => self.update_wanted = true,
                Ok(Some(Opened::Closed)) => self.closed = true,
                Err(fault) => self.fault = Some(fault),
            }
        }
        count
    }

    /// Tells the other end what it did wrong, if that can be told at once.
    fn fail(&mut self, cx: &mut Context<'_>, fault: Fault) -> io::Error {
        if let Some(alert) = fault.alert().filter(|_| !self.finished) {
            self.finished = true;
            if self.sealer.seal_alert(alert, &mut self.sealed).is_ok() {
                // The connection is lost either way.
                let _told = self.poll_send(cx);
            }
        }
        io::Error::new(io::ErrorKind::InvalidData, fault)
    }

    /// Seals bytes from the front of `slices` and begins to send them; answers how many. Pending while what was
    /// sealed before has not gone.
    ///
    /// # Errors
    /// The connection failed, or its end was announced.
    pub fn poll_write(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        ready!(self.poll_send(cx))?;
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let broken = |Broken| io::Error::other("a TLS record cannot be sealed");
        if std::mem::take(&mut self.update_wanted) {
            self.sealer.update(&mut self.sealed).map_err(broken)?;
        }
        let pieces = slices.iter().map(|slice| &**slice);
        let offered: usize = pieces.clone().map(<[u8]>::len).sum();
        let most = offered.min(BATCH);
        self.sealed.reserve(most + (most / (16 * 1024) + 2) * 64);
        let taken = self
            .sealer
            .seal_data(pieces, most, &mut self.sealed)
            .map_err(broken)?;
        match self.poll_send(cx) {
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            // What is left goes with the next write or flush.
            Poll::Ready(Ok(())) | Poll::Pending => Poll::Ready(Ok(taken)),
        }
    }

    /// Ready when everything that was taken is with the system.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Says `close_notify`, then FIN.
    ///
    /// # Errors
    /// The connection failed.
    pub fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.finished {
            self.finished = true;
            self.sealer
                .seal_close_notify(&mut self.sealed)
                .map_err(|Broken| io::Error::other("a TLS record cannot be sealed"))?;
        }
        ready!(self.poll_send(cx))?;
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.sealed.is_empty() {
            let io = Pin::new(&mut self.io);
            let count = ready!(io.poll_write(cx, &self.sealed))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sealed.advance(count);
            self.sent += count as u64;
        }
        Poll::Ready(Ok(()))
    }
}

impl<T> fmt::Debug for RecordStream<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RecordStream").finish_non_exhaustive()
    }
}
