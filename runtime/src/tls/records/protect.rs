//! Seals and opens the records of one connection: numbers, keys and their updates, kinds of content, alerts
//! (RFC 8446, 4.6.3, 5 and 6). No IO, no clock.

use bytes::{Buf as _, BytesMut};

use super::aead::{Aead, Broken, Implementation};
use super::keys::TrafficSecret;
use super::{HEADER, MOST_PLAIN, MOST_SEALED, TAG};

/// What a record carries.
pub(super) mod content {
    pub(in super::super) const ALERT: u8 = 21;
    pub(in super::super) const HANDSHAKE: u8 = 22;
    pub(in super::super) const DATA: u8 = 23;
}

const NEW_SESSION_TICKET: u8 = 4;
const KEY_UPDATE: u8 = 24;
const CLOSE_NOTIFY: u8 = 0;
const USER_CANCELED: u8 = 90;
/// A handshake message that comes after the handshake may be so long.
const LONGEST_MESSAGE: usize = 64 * 1024;
/// Records in a row that carry nothing.
const FRUITLESS: u32 = 32;

/// Why a connection cannot go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum Fault {
    #[error("a TLS record is not what the other end sent")]
    BadRecord,
    #[error("a TLS record is too long")]
    TooLong,
    #[error("what the other end sent is no TLS")]
    Malformed,
    #[error("a TLS message came that has no place here")]
    Unexpected,
    #[error("the other end ended TLS with alert {0}")]
    Alert(u8),
}

impl Fault {
    /// The alert to send; none in answer to one.
    pub(super) const fn alert(self) -> Option<u8> {
        match self {
            Self::BadRecord => Some(20),
            Self::TooLong => Some(22),
            Self::Malformed => Some(50),
            Self::Unexpected => Some(10),
            Self::Alert(_) => None,
        }
    }
}

/// One direction: its secret, what follows from it, and the number of the next record.
struct Direction {
    which: Implementation,
    secret: TrafficSecret,
    aead: Aead,
    iv: [u8; 12],
    number: u64,
}

impl Direction {
    fn new(which: Implementation, secret: TrafficSecret, number: u64) -> Result<Self, Broken> {
        let keys = secret.protection();
        Ok(Self {
            which,
            aead: keys.aead(which, secret.suite().cipher)?,
            iv: keys.iv,
            secret,
            number,
        })
    }

    fn update(&mut self) -> Result<(), Broken> {
        *self = Self::new(self.which, self.secret.next(), 0)?;
        Ok(())
    }

    fn next_nonce(&mut self) -> [u8; 12] {
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(self.number.to_be_bytes()) {
            *byte ^= number;
        }
        self.number += 1;
        nonce
    }
}

/// The sending direction.
pub(super) struct Sealer {
    direction: Direction,
    /// Records under one key.
    most: u64,
}

impl Sealer {
    pub(super) fn new(
        which: Implementation,
        secret: TrafficSecret,
        number: u64,
    ) -> Result<Self, Broken> {
        let most = secret.suite().cipher.most_records();
        Ok(Self {
            direction: Direction::new(which, secret, number)?,
            most,
        })
    }

    #[cfg(test)]
    pub(super) fn update_after(&mut self, records: u64) {
        self.most = records;
    }

    /// Appends records with the bytes of `pieces`, at most `most`; answers how many they were. After an error nothing
    /// that was not sealed is left.
    pub(super) fn seal_data<'a>(
        &mut self,
        pieces: impl Iterator<Item = &'a [u8]>,
        most: usize,
        out: &mut BytesMut,
    ) -> Result<usize, Broken> {
        let mut taken = 0;
        let mut start = None;
        for mut piece in pieces {
            // What fits into one record goes into one: whoever gets it, gets it in one piece.
            if let Some(begin) = start
                && piece.len() > room(out, begin)
                && piece.len() <= MOST_PLAIN
            {
                self.end_record(out, begin, content::DATA)?;
                start = None;
            }
            while !piece.is_empty() && taken < most {
                let begin = match start {
                    Some(begin) => begin,
                    None => {
                        if self.direction.number >= self.most {
                            self.update(out)?;
                        }
                        *start.insert(begin_record(out))
                    }
                };
                let room = room(out, begin);
                let count = room.min(piece.len()).min(most - taken);
                let (now, later) = piece.split_at(count);
                out.extend_from_slice(now);
                piece = later;
                taken += count;
                if count == room {
                    self.end_record(out, begin, content::DATA)?;
                    start = None;
                }
            }
        }
        if let Some(begin) = start {
            self.end_record(out, begin, content::DATA)?;
        }
        Ok(taken)
    }

    /// Appends an alert; of two levels TLS 1.3 uses the first for an orderly end only.
    pub(super) fn seal_alert(&mut self, description: u8, out: &mut BytesMut) -> Result<(), Broken> {
        let level = if description == CLOSE_NOTIFY { 1 } else { 2 };
        self.seal(content::ALERT, &[level, description], out)
    }

    pub(super) fn seal_close_notify(&mut self, out: &mut BytesMut) -> Result<(), Broken> {
        self.seal_alert(CLOSE_NOTIFY, out)
    }

    /// Appends the announcement of new keys, which protect everything behind it.
    pub(super) fn update(&mut self, out: &mut BytesMut) -> Result<(), Broken> {
        self.seal(content::HANDSHAKE, &[KEY_UPDATE, 0, 0, 1, 0], out)?;
        self.direction.update()
    }

    pub(super) fn seal(
        &mut self,
        kind: u8,
        bytes: &[u8],
        out: &mut BytesMut,
    ) -> Result<(), Broken> {
        let begin = begin_record(out);
        out.extend_from_slice(bytes);
        self.end_record(out, begin, kind)
    }

    fn end_record(&mut self, out: &mut BytesMut, begin: usize, kind: u8) -> Result<(), Broken> {
        out.extend_from_slice(&[kind]);
        let nonce = self.direction.next_nonce();
        let (header, bytes) = out[begin..].split_at_mut(HEADER);
        // A record is never as long as this could be.
        let length = u16::try_from(bytes.len() + TAG).unwrap_or(u16::MAX);
        header[3..].copy_from_slice(&length.to_be_bytes());
        let tag = self.direction.aead.seal(nonce, header, bytes);
        let Ok(tag) = tag else {
            out.truncate(begin);
            return Err(Broken);
        };
        out.extend_from_slice(&tag);
        Ok(())
    }
}

/// Plaintext that the record which begins there still takes.
fn room(out: &BytesMut, begin: usize) -> usize {
    MOST_PLAIN.saturating_sub(out.len() - begin - HEADER)
}

/// Appends a header whose length is still to be told.
fn begin_record(out: &mut BytesMut) -> usize {
    let begin = out.len();
    out.extend_from_slice(&[content::DATA, 3, 3, 0, 0]);
    begin
}

/// What a record was.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Opened {
    /// Bytes, never none.
    Data(BytesMut),
    /// Nothing that anybody must do anything about.
    Nothing,
    /// The other end has new keys, and wants this end to take new ones, too.
    UpdateWanted,
    /// The other end sends nothing any more.
    Closed,
}

/// The receiving direction.
pub(super) struct Opener {
    direction: Direction,
    /// A handshake message whose rest is still to come.
    message: Vec<u8>,
    /// Records in a row that carried nothing.
    fruitless: u32,
    /// This end is the client, and may be sent tickets.
    tickets: bool,
}

impl Opener {
    pub(super) fn new(
        which: Implementation,
        secret: TrafficSecret,
        number: u64,
        tickets: bool,
    ) -> Result<Self, Broken> {
        Ok(Self {
            direction: Direction::new(which, secret, number)?,
            message: Vec::new(),
            fruitless: 0,
            tickets,
        })
    }

    /// Bytes of memory that a message takes whose rest is still to come.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn held(&self) -> usize {
        self.message.capacity()
    }

    /// Takes the first record off `input` and opens it; `None` when it is not all there.
    pub(super) fn open(&mut self, input: &mut BytesMut) -> Result<Option<Opened>, Fault> {
        let Some(&header) = input.first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, version, _, high, low] = header;
        let length = usize::from(u16::from_be_bytes([high, low]));
        if version != 3 {
            return Err(Fault::Malformed);
        }
        if kind != content::DATA {
            return Err(Fault::Unexpected);
        }
        if length > MOST_SEALED {
            return Err(Fault::TooLong);
        }
        if length < TAG + 1 {
            return Err(Fault::Malformed);
        }
        if input.len() < HEADER + length {
            return Ok(None);
        }
        let mut record = input.split_to(HEADER + length);
        record.advance(HEADER);
        let nonce = self.direction.next_nonce();
        let plain = self
            .direction
            .aead
            .open(nonce, &header, &mut record)
            .map_err(|Broken| Fault::BadRecord)?;
        // Behind the content stand its kind and any number of zeros.
        let end = plain.iter().rposition(|byte| *byte != 0);
        let end = end.ok_or(Fault::Unexpected)?;
        let kind = plain[end];
        if end > MOST_PLAIN {
            return Err(Fault::TooLong);
        }
        record.truncate(end);
        if kind != content::HANDSHAKE && !self.message.is_empty() {
            return Err(Fault::Unexpected);
        }
        match kind {
            content::DATA if !record.is_empty() => {
                self.fruitless = 0;
                Ok(Some(Opened::Data(record)))
            }
            _ => {
                self.fruitless += 1;
                if self.fruitless > FRUITLESS {
                    return Err(Fault::Unexpected);
                }
                self.other(kind, &record).map(Some)
            }
        }
    }

    fn other(&mut self, kind: u8, bytes: &[u8]) -> Result<Opened, Fault> {
        match (kind, bytes) {
            (content::DATA, _) => Ok(Opened::Nothing),
            (content::ALERT, [_, CLOSE_NOTIFY]) => Ok(Opened::Closed),
            (content::ALERT, [_, USER_CANCELED]) => Ok(Opened::Nothing),
            (content::ALERT, [_, description]) => Err(Fault::Alert(*description)),
            (content::ALERT, _) => Err(Fault::Malformed),
            (content::HANDSHAKE, [_, ..]) => self.handshake(bytes),
            _ => Err(Fault::Unexpected),
        }
    }

    /// Messages of the handshake protocol that may come behind the handshake.
    fn handshake(&mut self, bytes: &[u8]) -> Result<Opened, Fault> {
        self.message.extend_from_slice(bytes);
        let mut opened = Opened::Nothing;
        while let Some(&[kind, a, b, c]) = self.message.first_chunk() {
            let length = usize::try_from(u32::from_be_bytes([0, a, b, c])).unwrap_or(usize::MAX);
            if length > LONGEST_MESSAGE {
                return Err(Fault::Unexpected);
            }
            let Some(body) = self.message.get(4..4 + length) else {
                break;
            };
            match (kind, body) {
                (NEW_SESSION_TICKET, _) if self.tickets => {
                    self.message.drain(..4 + length);
                }
                (KEY_UPDATE, [wanted @ (0 | 1)]) => {
                    // New keys begin with a new record (RFC 8446, 5.1).
                    if self.message.len() != 5 {
                        return Err(Fault::Unexpected);
                    }
                    if *wanted == 1 {
                        opened = Opened::UpdateWanted;
                    }
                    self.message = Vec::new();
                    self.direction.update().map_err(|Broken| Fault::BadRecord)?;
                }
                _ => return Err(Fault::Unexpected),
            }
        }
        Ok(opened)
    }
}
