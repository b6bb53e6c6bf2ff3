//! Messages that are longer than one control message of a tunnel, in pieces.
//!
//! Control messages arrive whole and in order, so a piece needs no more than its number; what is not complete is given
//! up when another message begins.

use crate::tunnel::Piece;

/// Bytes in one piece: a control message has at most 16 KiB, and some of it is not ours.
const PIECE: usize = 15 * 1024;
/// Longest message, in bytes.
pub const LONGEST: usize = 8 * 1024 * 1024;

/// Cuts a message into pieces, at least one.
#[must_use]
pub fn cut(message: &[u8]) -> Vec<Piece> {
    let count = message.len().div_ceil(PIECE).max(1);
    let pieces = u32::try_from(count).unwrap_or(u32::MAX);
    (0..pieces)
        .zip(message.chunks(PIECE).chain(std::iter::repeat(&[][..])))
        .map(|(piece, data)| Piece {
            piece,
            pieces,
            data: data.to_vec(),
        })
        .collect()
}

/// Why pieces make no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PieceError {
    /// A piece is missing, or there is one too many.
    #[error("the pieces of a message do not follow each other")]
    Order,
    /// It is longer than it may be.
    #[error("a message in pieces is too long")]
    TooLong,
}

/// Puts a message together.
#[derive(Debug)]
pub struct Assembly {
    next: u32,
    data: Vec<u8>,
    longest: usize,
}

impl Default for Assembly {
    fn default() -> Self {
        Self::limited(LONGEST)
    }
}

impl Assembly {
    /// For messages of at most `longest` bytes.
    #[must_use]
    pub const fn limited(longest: usize) -> Self {
        Self {
            next: 0,
            data: Vec::new(),
            longest,
        }
    }

    /// Takes the next piece; answers the message when it is complete.
    ///
    /// # Errors
    /// [`PieceError`]: what was there is given up.
    pub fn take(&mut self, piece: &Piece) -> Result<Option<Vec<u8>>, PieceError> {
        if piece.piece == 0 {
            *self = Self::limited(self.longest);
        }
        let problem = if piece.piece != self.next || piece.piece >= piece.pieces {
            Some(PieceError::Order)
        } else if self.data.len() + piece.data.len() > self.longest {
            Some(PieceError::TooLong)
        } else {
            None
        };
        if let Some(problem) = problem {
            *self = Self::limited(self.longest);
            return Err(problem);
        }
        self.data.extend_from_slice(&piece.data);
        self.next += 1;
        if self.next < piece.pieces {
            return Ok(None);
        }
        self.next = 0;
        Ok(Some(std::mem::take(&mut self.data)))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn messages_come_together_again() {
        for length in [0, 1, PIECE - 1, PIECE, PIECE + 1, 5 * PIECE + 7] {
            let message: Vec<u8> = (0..length)
                .map(|n| u8::try_from(n % 251).unwrap())
                .collect();
            let pieces = cut(&message);
            let mut assembly = Assembly::default();
            let (last, first) = pieces.split_last().unwrap();
            for piece in first {
                assert_eq!(assembly.take(piece), Ok(None));
            }
            assert_eq!(assembly.take(last), Ok(Some(message)));
        }
    }

    #[test]
    fn what_does_not_follow_is_refused_and_a_new_message_begins_anew() {
        let old = cut(&vec![1; 3 * PIECE]);
        let new = cut(&[2]);
        let mut assembly = Assembly::default();
        assert_eq!(assembly.take(&old[0]), Ok(None));
        assert_eq!(assembly.take(&old[2]), Err(PieceError::Order));
        assert_eq!(assembly.take(&old[0]), Ok(None));
        assert_eq!(assembly.take(&new[0]), Ok(Some(vec![2])));
        assert_eq!(assembly.take(&old[1]), Err(PieceError::Order));
    }

    #[test]
    fn there_is_an_end_to_it() {
        let mut assembly = Assembly::default();
        let result = (0..).find_map(|piece| {
            let piece = Piece {
                piece,
                pieces: u32::MAX,
                data: vec![0; PIECE],
            };
            assembly.take(&piece).err()
        });
        assert_eq!(result, Some(PieceError::TooLong));
    }
}
