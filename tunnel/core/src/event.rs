//! What a connection tells its driver.

use bytes::Bytes;

use crate::stream::Key;

/// Somebody who waits can go on. Produced only for what was asked: a read that found nothing, a
/// write that had no room, an open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The peer accepted a stream that we opened.
    Opened(Key),
    /// There is something to read, or the FIN.
    Readable(Key),
    /// There is room to write.
    Writable(Key),
    /// The stream was reset or lost; whoever waits for anything on it must look.
    Ended(Key),
    /// [`crate::Connection::poll_incoming`] has something.
    Incoming,
    /// The tunnel has lost its transport and waits for another one. The driver drops the transport.
    Detached,
    /// The tunnel has a new transport.
    Attached,
    /// The connection has ended: [`crate::Connection::closed`].
    Closed,
}

/// What the peer asks for, in the order in which it came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Incoming {
    /// A stream to accept or refuse.
    Offer {
        /// The new stream; it is held until released.
        key: Key,
        /// The metadata of its OPEN.
        metadata: Bytes,
    },
    /// A CONTROL message.
    Control(Bytes),
    /// The peer drains.
    Draining,
}

/// Answer to a read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Read {
    /// The next bytes, never empty.
    Chunk(Bytes),
    /// Nothing now; an event will tell.
    Pending,
    /// The peer has finished.
    Fin,
}

/// Answer to a look at what may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peek {
    /// So many bytes wait, at least 1.
    Bytes(usize),
    /// Nothing now; an event will tell.
    Pending,
    /// The peer has finished.
    Fin,
}

/// Where an open is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OpenState {
    /// No answer yet.
    Waiting,
    /// Accepted.
    Open,
}
