//! One step of a session: what it says is to be done, done; and records sealed behind one another.

use bytes::BytesMut;
use rustls::Error;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncryptError, UnbufferedStatus, WriteTraffic,
};

use super::OVERHEAD;

/// What is done with a session that can send.
pub(super) type Write<'a> = dyn FnMut(&mut dyn Seal) -> Result<(), EncryptError> + 'a;

/// One state of the session, handled.
pub(super) struct Step<'a> {
    pub(super) plain: &'a mut BytesMut,
    /// Plaintext that may come, for one allocation.
    pub(super) expected: usize,
    pub(super) outgoing: &'a mut Vec<u8>,
    pub(super) ended: &'a mut bool,
    /// What to do when the session can send.
    pub(super) write: Option<&'a mut Write<'a>>,
}

impl Step<'_> {
    /// Answers how much ciphertext is done with, and whether there may be more to do.
    pub(super) fn take<D>(
        &mut self,
        status: UnbufferedStatus<'_, '_, D>,
    ) -> (usize, Result<bool, Error>) {
        let mut discard = status.discard;
        let state = match status.state {
            Ok(state) => state,
            Err(error) => return (discard, Err(error)),
        };
        let more = match state {
            ConnectionState::ReadTraffic(mut traffic) => {
                while let Some(record) = traffic.next_record() {
                    let record = match record {
                        Ok(record) => record,
                        Err(error) => return (discard, Err(error)),
                    };
                    discard += record.discard;
                    let missing = self.expected.saturating_sub(self.plain.len());
                    if self.plain.capacity() - self.plain.len() < record.payload.len() {
                        self.plain.reserve(missing.max(record.payload.len()));
                    }
                    self.plain.extend_from_slice(record.payload);
                }
                true
            }
            ConnectionState::EncodeTlsData(mut data) => {
                let at = self.outgoing.len();
                if let Err(EncodeError::InsufficientSize(size)) = data.encode(&mut []) {
                    self.outgoing.resize(at + size.required_size, 0);
                    let written = data.encode(&mut self.outgoing[at..]).unwrap_or(0);
                    self.outgoing.truncate(at + written);
                }
                true
            }
            // It will be: `outgoing` is a queue, and keeps the order.
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                true
            }
            ConnectionState::PeerClosed => {
                *self.ended = true;
                true
            }
            ConnectionState::Closed => {
                *self.ended = true;
                false
            }
            ConnectionState::WriteTraffic(mut traffic) => {
                if let Some(write) = self.write.take()
                    && let Err(error) = write(&mut traffic)
                {
                    return (discard, Err(Error::General(error.to_string())));
                }
                false
            }
            ConnectionState::BlockedHandshake => false,
            // Early data is never agreed to.
            _ => return (discard, Err(Error::General("unexpected early data".into()))),
        };
        (discard, Ok(more))
    }
}

/// A session that can send, on either side.
pub(super) trait Seal {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError>;
    fn close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError>;
}

impl<D> Seal for WriteTraffic<'_, D> {
    fn encrypt(&mut self, plain: &[u8], out: &mut [u8]) -> Result<usize, EncryptError> {
        self.encrypt(plain, out)
    }

    fn close_notify(&mut self, out: &mut [u8]) -> Result<usize, EncryptError> {
        self.queue_close_notify(out)
    }
}

/// Records behind one another.
pub(super) struct Batch<'a> {
    pub(super) seal: &'a mut dyn Seal,
    pub(super) sealed: &'a mut Vec<u8>,
    pub(super) length: usize,
}

impl Batch<'_> {
    pub(super) fn push(&mut self, plain: &[u8]) -> Result<(), EncryptError> {
        let mut needed = plain.len() + OVERHEAD;
        loop {
            if self.sealed.len() < self.length + needed {
                self.sealed.resize(self.length + needed, 0);
            }
            match self.seal.encrypt(plain, &mut self.sealed[self.length..]) {
                Ok(count) => {
                    self.length += count;
                    return Ok(());
                }
                Err(EncryptError::InsufficientSize(size)) if size.required_size > needed => {
                    needed = size.required_size;
                }
                Err(error) => return Err(error),
            }
        }
    }
}
