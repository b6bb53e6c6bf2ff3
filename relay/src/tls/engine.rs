//! TLS records of one connection, without the socket: ciphertext in and out, plaintext in and out.
//!
//! Ciphertext is read into and written from buffers that all connections of a thread share; what stays with a
//! connection is a record that has not arrived as a whole, plaintext that nobody took, and ciphertext that the
//! socket did not take. All three are empty while nothing moves.

mod step;

use std::cell::RefCell;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Bytes, BytesMut};
use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::{CommonState, Error};
use tokio::io::{AsyncRead, ReadBuf};

use self::step::{Batch, Seal, Step, Write};
use super::TlsError;
use super::verify;

/// Most plaintext of one record.
const RECORD: usize = 16 * 1024;
/// Ciphertext that is read at least: room for one whole record.
pub(crate) const LEAST_READ: usize = RECORD + 512;
/// Ciphertext that is read at most.
const MOST_READ: usize = 64 * 1024;
/// Plaintext that is sealed for one write.
const MOST_SEALED: usize = 64 * 1024;
/// More ciphertext that is not a whole message is no TLS.
const MOST_KEPT: usize = 80 * 1024;
/// What a record adds at most, and room for messages of TLS itself before it.
const OVERHEAD: usize = 128;

thread_local! {
    static INPUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static OUTPUT: RefCell<Output> = const { RefCell::new(Output { sealed: Vec::new(), record: Vec::new() }) };
}

/// Buffers for sealing.
struct Output {
    sealed: Vec<u8>,
    /// Small pieces that go into one record.
    record: Vec<u8>,
}

/// The state of TLS on either side.
pub(crate) enum Session {
    Client(UnbufferedClientConnection),
    Server(UnbufferedServerConnection),
}

/// Why a connection cannot go on.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The connection under it failed.
    Io(io::Error),
    /// TLS failed: an alert, a broken record, an end within a record.
    Tls(TlsError),
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Fault> for io::Error {
    fn from(fault: Fault) -> Self {
        match fault {
            Fault::Io(error) => error,
            Fault::Tls(error) => error.into(),
        }
    }
}

/// The same bytes with little room beside them: there was room for all that was read, and it may have been tickets.
fn fitted(bytes: BytesMut) -> Bytes {
    match bytes.capacity() > 2 * bytes.len() {
        true => Bytes::copy_from_slice(&bytes),
        false => bytes.freeze(),
    }
}

/// The records of one connection.
pub(crate) struct Engine {
    session: Session,
    /// Ciphertext that is no whole record yet.
    pub(super) incoming: Vec<u8>,
    /// Plaintext that nobody has taken yet.
    plain: BytesMut,
    /// Ciphertext that the socket has not taken yet.
    outgoing: Vec<u8>,
    /// The peer has ended its direction.
    ended: bool,
    /// Our direction is ended: `close_notify` is in `outgoing`, or gone.
    finished: bool,
    /// Plaintext has arrived at some time.
    heard: bool,
    /// The peer has asked for our certificate.
    asked: bool,
}

impl Engine {
    /// Begins with ciphertext that was read already.
    pub(super) fn new(session: Session, incoming: Vec<u8>) -> Self {
        Self {
            session,
            incoming,
            plain: BytesMut::new(),
            outgoing: Vec::new(),
            ended: false,
            finished: false,
            heard: false,
            asked: false,
        }
    }

    pub(super) fn state(&self) -> &CommonState {
        match &self.session {
            Session::Client(client) => client,
            Session::Server(server) => server,
        }
    }

    /// Plaintext waits, or the peer has ended its direction: a read does not wait.
    pub(crate) fn has_something(&self) -> bool {
        self.ended || !self.plain.is_empty()
    }

    /// Bytes of memory that its buffers occupy.
    #[cfg(test)]
    pub(super) fn buffered(&self) -> usize {
        self.incoming.capacity() + self.plain.capacity() + self.outgoing.capacity()
    }

    /// There is room to read ahead of whoever takes plaintext.
    pub(crate) fn may_read_ahead(&self) -> bool {
        !self.ended && self.plain.len() < RECORD
    }

    /// The peer has asked for our certificate.
    pub(super) fn was_asked(&self) -> bool {
        self.asked
    }

    /// The peer has ended its direction.
    pub(super) fn has_ended(&self) -> bool {
        self.ended
    }

    /// Ciphertext that is to be written first.
    pub(crate) fn outgoing(&self) -> &[u8] {
        &self.outgoing
    }

    /// The socket has taken so many bytes of [`Engine::outgoing`].
    pub(crate) fn sent(&mut self, count: usize) {
        if count == self.outgoing.len() {
            // Its memory goes, too.
            self.outgoing = Vec::new();
        } else {
            self.outgoing.drain(..count);
        }
    }

    /// Plaintext that waits, at most `max` bytes; empty if there is none. It holds on to little more memory than its
    /// own.
    pub(crate) fn take(&mut self, max: usize) -> Bytes {
        if self.plain.len() > max {
            return Bytes::copy_from_slice(&self.plain.split_to(max));
        }
        fitted(std::mem::take(&mut self.plain))
    }

    /// Moves plaintext that waits into `buffer`.
    pub(crate) fn take_into(&mut self, buffer: &mut ReadBuf<'_>) {
        let count = self.plain.len().min(buffer.remaining());
        buffer.put_slice(&self.plain[..count]);
        if count == self.plain.len() {
            self.plain = BytesMut::new();
        } else {
            drop(self.plain.split_to(count));
        }
    }

    /// Reads the socket once, about `room` bytes, and handles what came. Afterwards there may be plaintext, or
    /// an end, or neither.
    pub(crate) fn poll_fill<T: AsyncRead + Unpin>(
        &mut self,
        cx: &mut Context<'_>,
        socket: &mut T,
        room: usize,
    ) -> Poll<Result<(), Fault>> {
        let room = room.clamp(LEAST_READ, MOST_READ);
        INPUT.with_borrow_mut(|buffer| {
            let kept = self.incoming.len();
            if buffer.len() < kept + room {
                buffer.resize(kept + room, 0);
            }
            let mut space = ReadBuf::new(&mut buffer[kept..kept + room]);
            ready!(Pin::new(socket).poll_read(cx, &mut space))?;
            let count = space.filled().len();
            if count == 0 {
                return Poll::Ready(self.end_of_file());
            }
            buffer[..kept].copy_from_slice(&self.incoming);
            let whole = &mut buffer[..kept + count];
            let (used, result) = self.process(whole);
            let rest = &whole[used.min(whole.len())..];
            if self.ended || rest.is_empty() {
                self.incoming = Vec::new();
            } else {
                self.incoming.clear();
                self.incoming.extend_from_slice(rest);
            }
            if let Err(error) = result {
                return Poll::Ready(Err(Fault::Tls(self.sort(error))));
            }
            if self.incoming.len() > MOST_KEPT {
                let text = "a message is too long".to_owned();
                return Poll::Ready(Err(Fault::Tls(TlsError::Failed(text))));
            }
            Poll::Ready(Ok(()))
        })
    }

    /// The end of the connection without `close_notify` counts as the end of the direction: many programs close
    /// like that. Within a record it does not.
    fn end_of_file(&mut self) -> Result<(), Fault> {
        if self.incoming.is_empty() {
            self.ended = true;
            return Ok(());
        }
        let text = "the connection ended within a record".to_owned();
        Err(Fault::Tls(TlsError::Failed(text)))
    }

    /// Handles what is in `incoming`, during the handshake.
    pub(super) fn process_incoming(&mut self) -> Result<(), TlsError> {
        verify::clear_notes();
        let mut incoming = std::mem::take(&mut self.incoming);
        let (used, result) = self.process(&mut incoming);
        self.asked |= verify::certificate_was_asked();
        incoming.drain(..used.min(incoming.len()));
        if !incoming.is_empty() {
            self.incoming = incoming;
        }
        result.map_err(|error| self.sort(error))
    }

    /// An alert before anything else was heard is the answer to our part of the handshake: with TLS 1.3 a
    /// server can refuse a client's certificate only then.
    fn sort(&self, error: Error) -> TlsError {
        if let Some(noted) = verify::take_note() {
            return noted;
        }
        if let Error::AlertReceived(alert) = error
            && !self.state().is_handshaking()
            && (self.heard || matches!(self.session, Session::Server(_)))
        {
            return TlsError::Failed(format!("the other end gave up with the alert {alert:?}"));
        }
        TlsError::of_rustls(error, self.asked)
    }

    /// Handles the whole records at the front of `input`; answers how many bytes they have.
    fn process(&mut self, input: &mut [u8]) -> (usize, Result<(), Error>) {
        let mut used = 0;
        let expected = input.len();
        let Self {
            session,
            plain,
            outgoing,
            ended,
            ..
        } = self;
        let result = loop {
            let rest = input.get_mut(used..).unwrap_or_default();
            let mut step = Step {
                plain: &mut *plain,
                expected,
                outgoing: &mut *outgoing,
                ended: &mut *ended,
                write: None,
            };
            let (discard, result) = match &mut *session {
                Session::Client(client) => step.take(client.process_tls_records(rest)),
                Session::Server(server) => step.take(server.process_tls_records(rest)),
            };
            used += discard;
            match result {
                Ok(true) => {}
                Ok(false) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        self.heard |= !self.plain.is_empty();
        if result.is_err() {
            self.queue_alert();
        }
        (used, result)
    }

    /// After an error: the alert that tells the peer goes into `outgoing`.
    fn queue_alert(&mut self) {
        let mut nothing = BytesMut::new();
        // What is to be sent comes before anything is read, so no input is needed; and none must be given, as what
        // failed would fail again.
        while self.state().wants_write() {
            let mut step = Step {
                plain: &mut nothing,
                expected: 0,
                outgoing: &mut self.outgoing,
                ended: &mut self.ended,
                write: None,
            };
            let (_, result) = match &mut self.session {
                Session::Client(client) => step.take(client.process_tls_records(&mut [])),
                Session::Server(server) => step.take(server.process_tls_records(&mut [])),
            };
            if result.is_err() {
                return;
            }
        }
    }

    /// Lets `write` use the session for sending; false if it no longer sends.
    fn with_traffic(&mut self, write: &mut Write<'_>) -> Result<bool, Fault> {
        let mut done = false;
        let mut wrapped = |seal: &mut dyn Seal| {
            done = true;
            write(seal)
        };
        let mut incoming = std::mem::take(&mut self.incoming);
        let mut result;
        loop {
            let mut step = Step {
                plain: &mut self.plain,
                expected: 0,
                outgoing: &mut self.outgoing,
                ended: &mut self.ended,
                write: Some(&mut wrapped),
            };
            let discard;
            (discard, result) = match &mut self.session {
                Session::Client(client) => step.take(client.process_tls_records(&mut incoming)),
                Session::Server(server) => step.take(server.process_tls_records(&mut incoming)),
            };
            incoming.drain(..discard.min(incoming.len()));
            if !matches!(result, Ok(true)) {
                break;
            }
        }
        self.incoming = incoming;
        match result {
            Ok(_) => Ok(done),
            Err(error) => Err(Fault::Tls(self.sort(error))),
        }
    }

    /// Seals plaintext of `pieces`, as much as makes a good write, and gives the ciphertext to `send`, which
    /// answers how much of it the socket has taken; the rest waits in `outgoing`, which must be empty before.
    /// Answers how much plaintext was sealed.
    pub(crate) fn write<'p>(
        &mut self,
        pieces: impl Iterator<Item = &'p [u8]>,
        send: impl FnOnce(&[u8]) -> io::Result<usize>,
    ) -> Result<usize, Fault> {
        debug_assert!(self.outgoing.is_empty(), "it is flushed first");
        OUTPUT.with_borrow_mut(|output| {
            let Output { sealed, record } = output;
            let (mut plain, mut length) = (0, 0);
            let mut pieces = pieces;
            let can = self.with_traffic(&mut |seal| {
                let mut batch = Batch {
                    seal,
                    sealed: &mut *sealed,
                    length: 0,
                };
                record.clear();
                for mut piece in pieces.by_ref() {
                    piece = &piece[..piece.len().min(MOST_SEALED - plain)];
                    plain += piece.len();
                    while !piece.is_empty() {
                        if record.is_empty() && piece.len() >= RECORD {
                            let (head, tail) = piece.split_at(RECORD);
                            batch.push(head)?;
                            piece = tail;
                            continue;
                        }
                        let (head, tail) = piece.split_at(piece.len().min(RECORD - record.len()));
                        record.extend_from_slice(head);
                        piece = tail;
                        if record.len() == RECORD {
                            batch.push(record)?;
                            record.clear();
                        }
                    }
                    if plain == MOST_SEALED {
                        break;
                    }
                }
                if !record.is_empty() {
                    batch.push(record)?;
                }
                length = batch.length;
                Ok(())
            })?;
            if !can {
                let text = "the session no longer sends".to_owned();
                return Err(Fault::Tls(TlsError::Failed(text)));
            }
            let sealed = &sealed[..length];
            // What TLS itself had to say in between comes first.
            let sent = if self.outgoing.is_empty() {
                send(sealed)?
            } else {
                0
            };
            self.outgoing.extend_from_slice(&sealed[sent..]);
            Ok(plain)
        })
    }

    /// Ends our direction: `close_notify` goes into `outgoing`. Again it does nothing.
    pub(crate) fn finish(&mut self) -> Result<(), Fault> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        let mut notice = [0; OVERHEAD];
        let mut length = 0;
        let mut result = Ok(0);
        self.with_traffic(&mut |seal| {
            result = seal
                .close_notify(&mut notice)
                .inspect(|count| length = *count);
            Ok(())
        })?;
        self.outgoing.extend_from_slice(&notice[..length]);
        match result {
            Ok(_) => Ok(()),
            Err(error) => Err(Fault::Tls(TlsError::Failed(error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_byte_does_not_hold_on_to_the_room_for_many() {
        for (length, room, kept) in [(1, 48_000, 1), (30_000, 48_000, 48_000)] {
            let mut bytes = BytesMut::with_capacity(room);
            bytes.resize(length, 7);
            let taken = fitted(bytes).try_into_mut().unwrap();
            assert_eq!((taken.len(), taken.capacity()), (length, kept));
        }
    }
}
