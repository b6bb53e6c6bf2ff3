//! The record layer of a TLS 1.3 connection whose handshake is over, without the copies that a library for any
//! purpose makes: what is received is decrypted where it was read to and handed on as slices of that buffer, what is
//! sent is encrypted where it is sent from. For tunnels, which carry everything; everything else uses rustls as it is.
//!
//! rustls does the handshake, over a [`RecordWise`], which never gives it a byte of a record that it did not ask
//! for. [`RecordStream::take_over`] then takes the connection out of its hands. What the peer sees is TLS 1.3 all the
//! same: alerts, `close_notify`, updates of keys in both directions.
//!
//! Where to start: [`RecordStream`]; `protect` seals and opens records and has no IO, `keys` is the key schedule after
//! the handshake, `aead` chooses the implementation of the cipher by the processor, `reading` is [`RecordWise`].
//! Why: `docs/decisions/0008-records-of-tunnels.md`.

mod aead;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod keys;
mod protect;
mod reading;
mod stream;

pub use self::aead::implementation;
pub use self::reading::RecordWise;
pub use self::stream::{RecordStream, TakeOverError};

/// Length of the header of a record.
const HEADER: usize = 5;
/// Length of the tag behind a record.
const TAG: usize = 16;
/// Most plaintext in a record (RFC 8446, 5.1).
const MOST_PLAIN: usize = 1 << 14;
/// Most bytes behind the header of a record (RFC 8446, 5.2).
const MOST_SEALED: usize = MOST_PLAIN + 256;

#[cfg(test)]
mod tests;
