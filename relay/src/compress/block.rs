//! The header of a block.

use super::{Corrupt, LONGEST};

/// Bytes of a header.
pub(super) const HEADER: usize = 7;
/// The bytes as they are.
pub(super) const STORED: u8 = 0;
/// Compressed.
pub(super) const COMPRESSED: u8 = 1;
/// What compression may add to bytes that cannot be compressed.
const GROWTH: usize = 1024;

/// What a header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub(super) compressed: bool,
    /// Bytes before compression.
    pub(super) plain: usize,
    /// Bytes that follow.
    pub(super) length: usize,
}

/// Writes a header; both lengths are below 2^24.
pub(super) fn header(kind: u8, plain: usize, length: usize) -> [u8; HEADER] {
    let [.., p2, p1, p0] = plain.to_be_bytes();
    let [.., l2, l1, l0] = length.to_be_bytes();
    [kind, p2, p1, p0, l2, l1, l0]
}

impl Block {
    /// Reads a header.
    ///
    /// # Errors
    /// It says what no sender of ours says.
    pub(super) fn read(header: [u8; HEADER]) -> Result<Self, Corrupt> {
        let [kind, p2, p1, p0, l2, l1, l0] = header;
        let number = |bytes: [u8; 3]| bytes.iter().fold(0, |n, b| n << 8 | usize::from(*b));
        let (plain, length) = (number([p2, p1, p0]), number([l2, l1, l0]));
        if plain == 0 || plain > LONGEST {
            return Err(Corrupt("the length of a block is out of range"));
        }
        let compressed = match kind {
            STORED if length == plain => false,
            COMPRESSED if (1..=LONGEST + GROWTH).contains(&length) => true,
            STORED | COMPRESSED => return Err(Corrupt("the lengths of a block do not fit")),
            _ => return Err(Corrupt("a block of an unknown kind")),
        };
        Ok(Self {
            compressed,
            plain,
            length,
        })
    }
}
