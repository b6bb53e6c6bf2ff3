//! The frames of the tunnel as bytes: one header of eight bytes, then the payload.
//!
//! ```text
//!  0        1        2        3        4        5        6        7
//! +--------+--------+--------+--------+--------+--------+--------+--------+
//! |  type  | flags  |  length (u16)   |          stream id (u32)          |   big endian
//! +--------+--------+--------+--------+--------+--------+--------+--------+
//! ```
//!
//! DATA is written and read piecewise by `connection`, because its payload is never collected here;
//! all other frames are a [`Frame`]. What a frame *means* is not decided here.

use std::ops::DerefMut;

use bytes::{Buf, BufMut, Bytes};

use crate::code::close;
use crate::error::Violation;

/// Length of every frame header.
pub const HEADER_LEN: usize = 8;
/// Longest CONTROL message.
pub const MAX_CONTROL: usize = 16 * 1024;
/// Longest datagram: what IPv4 allows in UDP.
pub const MAX_DATAGRAM: usize = 65_507;
/// Longest text in a GOAWAY.
pub const MAX_MESSAGE: usize = 256;
/// Longest SETTINGS payload.
pub const MAX_SETTINGS: usize = 1024;
/// Largest stream id; the top bit is reserved.
pub const MAX_ID: u32 = 0x7fff_ffff;
/// Flag of DATA: the sender's direction ends after this frame.
pub const FIN: u8 = 0x01;
/// Flag of OPEN: the stream is a flow and carries datagrams instead of bytes.
pub const FLOW: u8 = 0x01;
/// Bytes of an OPEN payload in front of the metadata, and of an OPEN_OK in front of the answer.
pub const OPEN_PREFIX: usize = 4;
/// Longest answer in an OPEN_OK.
pub const MAX_ANSWER: usize = 256;

/// Frame types. Types up to 0x3f that are not listed here are violations, the others are skipped.
pub mod kind {
    /// Bytes of a stream.
    pub const DATA: u8 = 0x00;
    /// Opens a stream.
    pub const OPEN: u8 = 0x01;
    /// Accepts a stream.
    pub const OPEN_OK: u8 = 0x02;
    /// Ends both directions of a stream.
    pub const RESET: u8 = 0x03;
    /// Raises the credit of a stream.
    pub const WINDOW: u8 = 0x04;
    /// Asks for a PONG.
    pub const PING: u8 = 0x05;
    /// Answers a PING.
    pub const PONG: u8 = 0x06;
    /// Announces the drain or the end of the tunnel.
    pub const GOAWAY: u8 = 0x07;
    /// One whole datagram of a flow.
    pub const DATAGRAM: u8 = 0x08;
    /// A message between the owners of the tunnel.
    pub const CONTROL: u8 = 0x09;
    /// First frame in each direction.
    pub const SETTINGS: u8 = 0x0a;
    /// Raises the number of streams that the peer may have opened.
    pub const STREAMS: u8 = 0x0b;
    /// Reserved: the sender is out of credit.
    pub const BLOCKED: u8 = 0x0c;
    /// First type that a receiver skips when it does not know it.
    pub const FIRST_SKIPPED: u8 = 0x40;
}

/// The eight bytes in front of every payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// One of [`kind`].
    pub kind: u8,
    /// Zero, except [`FIN`] on DATA and [`FLOW`] on OPEN.
    pub flags: u8,
    /// Payload bytes that follow.
    pub length: u16,
    /// Stream id; 0 is the tunnel itself.
    pub id: u32,
}

impl Header {
    /// Reads a header from the front of `bytes`; `None` when there are fewer than eight.
    #[must_use]
    pub fn peek(mut bytes: &[u8]) -> Option<Self> {
        if bytes.len() < HEADER_LEN {
            return None;
        }
        Some(Self {
            kind: bytes.get_u8(),
            flags: bytes.get_u8(),
            length: bytes.get_u16(),
            id: bytes.get_u32(),
        })
    }

    /// The header as it travels.
    #[must_use]
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let [l0, l1] = self.length.to_be_bytes();
        let [i0, i1, i2, i3] = self.id.to_be_bytes();
        [self.kind, self.flags, l0, l1, i0, i1, i2, i3]
    }
}

/// What each side tells the other once, in its first frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Streams that the receiver of this may open before it gets STREAMS. Absent means 0.
    pub max_streams: u32,
    /// Largest DATA payload that the sender of this accepts. Absent means 16,376.
    pub max_frame: u32,
    /// Longest OPEN metadata that the sender of this accepts. Absent means 1,024.
    pub max_metadata: u32,
}

impl Settings {
    const MAX_STREAMS: u16 = 1;
    const MAX_FRAME: u16 = 2;
    const MAX_METADATA: u16 = 3;

    /// What holds for a peer whose SETTINGS leave everything out.
    pub const DEFAULT: Self = Self {
        max_streams: 0,
        max_frame: 16_376,
        max_metadata: 1024,
    };

    fn put(self, out: &mut impl BufMut) {
        for (id, value) in [
            (Self::MAX_STREAMS, self.max_streams),
            (Self::MAX_FRAME, self.max_frame),
            (Self::MAX_METADATA, self.max_metadata),
        ] {
            out.put_u16(id);
            out.put_u16(4);
            out.put_u32(value);
        }
    }

    fn parse(mut payload: Bytes) -> Result<Self, Violation> {
        let bad = |detail| Violation::new(close::SETTINGS, detail);
        let mut settings = Self::DEFAULT;
        let mut last = 0;
        while !payload.is_empty() {
            let (Ok(id), Ok(length)) = (payload.try_get_u16(), payload.try_get_u16()) else {
                return Err(bad("SETTINGS cut off"));
            };
            if id <= last {
                return Err(bad("SETTINGS ids not increasing"));
            }
            last = id;
            let length = usize::from(length);
            if payload.len() < length {
                return Err(bad("SETTINGS cut off"));
            }
            let mut value = payload.split_to(length);
            let field = match id {
                Self::MAX_STREAMS => &mut settings.max_streams,
                Self::MAX_FRAME => &mut settings.max_frame,
                Self::MAX_METADATA => &mut settings.max_metadata,
                _ => continue,
            };
            if length != 4 {
                return Err(bad("SETTINGS value of wrong length"));
            }
            *field = value.get_u32();
        }
        if !(1024..=65_528).contains(&settings.max_frame) || settings.max_streams > MAX_ID / 2 {
            return Err(bad("SETTINGS value out of range"));
        }
        Ok(settings)
    }
}

/// Every frame but DATA. A connection handles DGRAM apart as well: its payload is not copied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// Opens stream `id`; its acceptor may send `credit` bytes.
    Open {
        /// New stream id.
        id: u32,
        /// Bytes that the acceptor may send from its OPEN_OK on; 0 for a flow.
        credit: u32,
        /// The stream carries datagrams.
        flow: bool,
        /// Meaning of the stream, opaque here.
        metadata: Bytes,
    },
    /// Accepts stream `id`; its opener may send `credit` bytes.
    OpenOk {
        /// Stream id of the OPEN.
        id: u32,
        /// Bytes that the opener may send; 0 for a flow.
        credit: u32,
        /// What the acceptor tells the opener, opaque here.
        answer: Bytes,
    },
    /// Ends both directions.
    Reset {
        /// Stream id.
        id: u32,
        /// One of [`crate::code`].
        code: u32,
    },
    /// The receiver of this may send up to `limit` bytes in the life of the stream.
    Window {
        /// Stream id.
        id: u32,
        /// Absolute limit in bytes.
        limit: u64,
    },
    /// Asks for a PONG with the same value.
    Ping(u64),
    /// Answers a PING.
    Pong(u64),
    /// Drain or end.
    Goaway {
        /// One of [`crate::code::close`].
        code: u32,
        /// UTF-8 text for the log.
        message: Bytes,
    },
    /// One datagram of a flow.
    Datagram {
        /// Id of the flow.
        id: u32,
        /// All of it, at most [`MAX_DATAGRAM`] bytes.
        payload: Bytes,
    },
    /// A message between the owners of the tunnel.
    Control(Bytes),
    /// Limits of the sender.
    Settings(Settings),
    /// The receiver of this may open `total` streams in the life of the tunnel.
    Streams {
        /// Absolute number of streams.
        total: u32,
    },
}

impl Frame {
    /// Appends the frame, header included.
    pub fn put<B>(&self, out: &mut B)
    where
        B: BufMut + DerefMut<Target = [u8]>,
    {
        let start = out.len();
        out.put_slice(&[0; HEADER_LEN]);
        let mut flags = 0;
        let (kind, id) = match self {
            Self::Open {
                id,
                credit,
                flow,
                metadata,
            } => {
                flags = if *flow { FLOW } else { 0 };
                out.put_u32(*credit);
                out.put_slice(metadata);
                (kind::OPEN, *id)
            }
            Self::OpenOk { id, credit, answer } => {
                out.put_u32(*credit);
                out.put_slice(answer);
                (kind::OPEN_OK, *id)
            }
            Self::Reset { id, code } => {
                out.put_u32(*code);
                (kind::RESET, *id)
            }
            Self::Window { id, limit } => {
                out.put_u64(*limit);
                (kind::WINDOW, *id)
            }
            Self::Ping(value) => {
                out.put_u64(*value);
                (kind::PING, 0)
            }
            Self::Pong(value) => {
                out.put_u64(*value);
                (kind::PONG, 0)
            }
            Self::Goaway { code, message } => {
                out.put_u32(*code);
                out.put_slice(message);
                (kind::GOAWAY, 0)
            }
            Self::Datagram { id, payload } => {
                out.put_slice(payload);
                (kind::DATAGRAM, *id)
            }
            Self::Control(message) => {
                out.put_slice(message);
                (kind::CONTROL, 0)
            }
            Self::Settings(settings) => {
                settings.put(out);
                (kind::SETTINGS, 0)
            }
            Self::Streams { total } => {
                out.put_u32(*total);
                (kind::STREAMS, 0)
            }
        };
        let length = u16::try_from(out.len() - start - HEADER_LEN)
            .expect("invariant: all payloads are bounded below 64 KiB when they are queued");
        let header = Header {
            kind,
            flags,
            length,
            id,
        };
        out[start..start + HEADER_LEN].copy_from_slice(&header.to_bytes());
    }

    /// Checks what the header alone tells; returns whether the receiver knows the type.
    ///
    /// # Errors
    ///
    /// A violation for lengths, flags and ids that the type forbids, and for types below 0x40 that
    /// this version does not define.
    pub fn check_header(header: Header, max_metadata: usize) -> Result<bool, Violation> {
        let range = match header.kind {
            kind::OPEN => OPEN_PREFIX..=OPEN_PREFIX + max_metadata,
            kind::OPEN_OK => OPEN_PREFIX..=OPEN_PREFIX + MAX_ANSWER,
            kind::RESET | kind::STREAMS => 4..=4,
            kind::WINDOW | kind::PING | kind::PONG => 8..=8,
            kind::GOAWAY => 4..=4 + MAX_MESSAGE,
            kind::DATAGRAM => 0..=MAX_DATAGRAM,
            kind::CONTROL => 0..=MAX_CONTROL,
            kind::SETTINGS => 0..=MAX_SETTINGS,
            kind::FIRST_SKIPPED..=u8::MAX => return Ok(false),
            _ => return Err(Violation::protocol("unknown frame type")),
        };
        if !range.contains(&usize::from(header.length)) {
            return Err(Violation::new(close::FRAME_SIZE, "length of a frame"));
        }
        let flags = if header.kind == kind::OPEN { FLOW } else { 0 };
        if header.flags & !flags != 0 {
            return Err(Violation::protocol("undefined flag"));
        }
        let on_stream = matches!(
            header.kind,
            kind::OPEN | kind::OPEN_OK | kind::RESET | kind::WINDOW | kind::DATAGRAM
        );
        if on_stream != (header.id != 0) || header.id > MAX_ID {
            return Err(Violation::new(close::STREAM_ID, "id of a frame"));
        }
        Ok(true)
    }

    /// Reads the payload of a frame whose header has passed [`Self::check_header`].
    ///
    /// # Errors
    ///
    /// A violation for a payload that does not fit its type.
    pub fn parse(header: Header, mut payload: Bytes) -> Result<Self, Violation> {
        let short = |_| Violation::new(close::FRAME_SIZE, "length of a frame");
        let id = header.id;
        Ok(match header.kind {
            kind::OPEN => Self::Open {
                id,
                credit: payload.try_get_u32().map_err(short)?,
                flow: header.flags & FLOW != 0,
                metadata: payload,
            },
            kind::OPEN_OK => Self::OpenOk {
                id,
                credit: payload.try_get_u32().map_err(short)?,
                answer: payload,
            },
            kind::RESET => Self::Reset {
                id,
                code: payload.try_get_u32().map_err(short)?,
            },
            kind::WINDOW => Self::Window {
                id,
                limit: payload.try_get_u64().map_err(short)?,
            },
            kind::PING => Self::Ping(payload.try_get_u64().map_err(short)?),
            kind::PONG => Self::Pong(payload.try_get_u64().map_err(short)?),
            kind::GOAWAY => Self::Goaway {
                code: payload.try_get_u32().map_err(short)?,
                message: payload,
            },
            kind::DATAGRAM => Self::Datagram { id, payload },
            kind::CONTROL => Self::Control(payload),
            kind::SETTINGS => Self::Settings(Settings::parse(payload)?),
            kind::STREAMS => Self::Streams {
                total: payload.try_get_u32().map_err(short)?,
            },
            _ => return Err(Violation::protocol("unknown frame type")),
        })
    }
}
