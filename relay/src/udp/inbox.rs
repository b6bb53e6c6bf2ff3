//! Room to receive datagrams in, one for each thread.
//!
//! A datagram may have 64 KiB and seldom has. So it is read into a buffer that has room for any, and
//! copied into a smaller one that many share: no allocation for each, and no idle flow holds a buffer.

use std::cell::RefCell;
use std::io;

use bytes::{Bytes, BytesMut};

/// Longest datagram.
const LONGEST: usize = 64 * 1024;
/// Size of the buffers that datagrams share. One that waits keeps all of its buffer.
const SHARED: usize = 16 * 1024;
/// A datagram of at least this many bytes gets memory of its own.
const OWN: usize = 4 * 1024;

thread_local! {
    static ROOM: RefCell<Room> = RefCell::new(Room::new());
}

struct Room {
    buffer: Vec<u8>,
    shared: BytesMut,
}

impl Room {
    fn new() -> Self {
        Self {
            buffer: vec![0; LONGEST],
            shared: BytesMut::new(),
        }
    }

    fn keep(&mut self, length: usize) -> Bytes {
        let datagram = &self.buffer[..length];
        match length {
            0 => Bytes::new(),
            OWN.. => Bytes::copy_from_slice(datagram),
            _ => {
                if self.shared.capacity() < length {
                    self.shared.reserve(SHARED);
                }
                self.shared.extend_from_slice(datagram);
                self.shared.split().freeze()
            }
        }
    }
}

/// Receives one datagram with `read`, which answers its length and what else it knows of it.
///
/// # Errors
/// Those of `read`.
pub(super) fn receive<T>(
    read: impl FnOnce(&mut [u8]) -> io::Result<(usize, T)>,
) -> io::Result<(Bytes, T)> {
    ROOM.with_borrow_mut(|room| {
        let (length, more) = read(&mut room.buffer)?;
        Ok((room.keep(length.min(LONGEST)), more))
    })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn every_length_is_kept_as_it_came() {
        let mut kept = Vec::new();
        for length in [0, 1, 100, OWN - 1, OWN, OWN, 9000, 65_507, 65_535, 1, 0] {
            let fill = u8::try_from(length % 251).unwrap();
            let (datagram, mark) = receive(|buffer| {
                buffer[..length].fill(fill);
                Ok((length, length))
            })
            .unwrap();
            assert_eq!(mark, length);
            kept.push((datagram, length, fill));
        }
        // Later ones have not overwritten earlier ones.
        for (datagram, length, fill) in kept {
            assert_eq!(datagram.len(), length);
            assert!(datagram.iter().all(|byte| *byte == fill));
        }
    }

    #[test]
    fn a_failed_read_keeps_nothing() {
        let failed = receive::<()>(|_| Err(io::ErrorKind::WouldBlock.into()));
        assert_eq!(failed.unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
