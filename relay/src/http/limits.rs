//! What one connection may take of memory and of its far side.

use super::head::HeadLimits;

/// Request line and headers of a user.
pub(super) const HEAD: HeadLimits = HeadLimits {
    bytes: 64 * 1024,
    headers: 256,
};
/// The same between the two ends, where headers were added.
pub(super) const TUNNEL_HEAD: HeadLimits = HeadLimits {
    bytes: 80 * 1024,
    headers: 272,
};
/// Headers of an answer in HTTP/2.
pub(super) const ANSWER_HEAD: u32 = 128 * 1024;
/// Longest name of a host that a user may ask for, with its port.
pub(super) const HOST: usize = 261;
/// Bytes that are read ahead or wait to be written, per direction of HTTP/1.1.
pub(super) const BUFFER: usize = 128 * 1024;

/// Requests of one HTTP/2 connection at a time.
pub(super) const STREAMS: usize = 100;
/// Bytes of one HTTP/2 exchange, per direction, that may be under way.
pub(super) const STREAM_WINDOW: u32 = 256 * 1024;
/// Bytes of all exchanges of one HTTP/2 connection, per direction, that may be under way.
pub(super) const CONNECTION_WINDOW: u32 = 2 * 1024 * 1024;
/// Bytes of one HTTP/2 exchange that wait to be written.
pub(super) const SEND_BUFFER: usize = 64 * 1024;
/// Exchanges that a user has reset and nobody has looked at yet; more end the connection.
pub(super) const PENDING_RESETS: usize = 20;
/// Exchanges that were reset here because the user broke the rules; more end the connection.
pub(super) const LOCAL_RESETS: usize = 256;
