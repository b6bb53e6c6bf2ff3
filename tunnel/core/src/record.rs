//! The records between TLS and the frames as bytes: four bytes in front of everything else.
//!
//! ```text
//!  0        1        2        3
//! +--------+--------+--------+--------+
//! |  kind  |      length (u24)        |   big endian
//! +--------+--------+--------+--------+
//! ```
//!
//! LOGGED carries a piece of the one byte stream that outlives connections, UNLOGGED whole frames that
//! do not, ACK and RESUME an offset in the other direction's logged stream. Not here: what the frames
//! in them are (`frame`), what is kept until it is acknowledged (`log`).

use crate::code::close;
use crate::error::Violation;
use crate::frame::kind as frame_kind;

/// Length of every record header.
pub const RECORD_LEN: usize = 4;
/// Length of what an ACK or RESUME carries.
pub const OFFSET_LEN: usize = 8;
/// Largest length of a record.
pub const MAX_RECORD: usize = 0xff_ffff;

/// Record kinds. All others are violations.
pub mod kind {
    /// A piece of the logged stream of frames.
    pub const LOGGED: u8 = 0x00;
    /// Whole frames that are never sent again.
    pub const UNLOGGED: u8 = 0x01;
    /// Offset up to which logged bytes have been received.
    pub const ACK: u8 = 0x02;
    /// The same, first record of a resumed connection.
    pub const RESUME: u8 = 0x03;
}

/// The four bytes in front of a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordHeader {
    /// One of [`kind`].
    pub kind: u8,
    /// Bytes that follow.
    pub length: usize,
}

impl RecordHeader {
    /// The header of a record of `length` bytes, at most [`MAX_RECORD`].
    #[must_use]
    pub fn to_bytes(self) -> [u8; RECORD_LEN] {
        debug_assert!(self.length <= MAX_RECORD);
        #[allow(clippy::cast_possible_truncation)]
        let [_, a, b, c] = (self.length as u32).to_be_bytes();
        [self.kind, a, b, c]
    }

    /// Reads a header.
    ///
    /// # Errors
    ///
    /// A violation for an unknown kind, and for an ACK or RESUME whose length is not 8 (protocol 204).
    pub fn parse(bytes: [u8; RECORD_LEN]) -> Result<Self, Violation> {
        let [kind, a, b, c] = bytes;
        let length = u32::from_be_bytes([0, a, b, c]) as usize;
        match kind {
            kind::LOGGED | kind::UNLOGGED => {}
            kind::ACK | kind::RESUME if length == OFFSET_LEN => {}
            kind::ACK | kind::RESUME => {
                return Err(Violation::new(close::FRAME_SIZE, "length of a record"));
            }
            _ => return Err(Violation::protocol("unknown record kind")),
        }
        Ok(Self { kind, length })
    }
}

/// An ACK or RESUME as it travels.
#[must_use]
pub fn offset_record(kind: u8, offset: u64) -> [u8; RECORD_LEN + OFFSET_LEN] {
    let mut bytes = [0; RECORD_LEN + OFFSET_LEN];
    let (header, body) = bytes.split_at_mut(RECORD_LEN);
    let length = OFFSET_LEN;
    header.copy_from_slice(&RecordHeader { kind, length }.to_bytes());
    body.copy_from_slice(&offset.to_be_bytes());
    bytes
}

/// Whether frames of this type travel in UNLOGGED records (protocol 206). Types that are skipped may
/// travel in both.
#[must_use]
pub fn is_unlogged(frame_kind: u8) -> bool {
    matches!(
        frame_kind,
        frame_kind::PING | frame_kind::PONG | frame_kind::DATAGRAM | frame_kind::BLOCKED
    )
}
