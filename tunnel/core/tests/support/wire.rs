//! A second reading of `docs/tunnel-protocol.md`: watches what one end writes, record by record and
//! frame by frame, over all connections of a tunnel, and panics at the first byte that the text
//! forbids. It shares no code with the core, so that an error in the core is not repeated here.
#![allow(dead_code, unreachable_pub, missing_debug_implementations)]

use std::collections::HashMap;

const LOGGED: u8 = 0;
const UNLOGGED: u8 = 1;
const ACK: u8 = 2;
const RESUME: u8 = 3;

const DATA: u8 = 0;
const OPEN: u8 = 1;
const OPEN_OK: u8 = 2;
const RESET: u8 = 3;
const PING: u8 = 5;
const PONG: u8 = 6;
const GOAWAY: u8 = 7;
const DGRAM: u8 = 8;
const BLOCKED: u8 = 12;

/// What the other end has said, as far as it matters here.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// LOGGED bytes that it has written.
    pub end: u64,
    /// Its RESUME on the present connection.
    pub resume: Option<u64>,
}

/// What one end has written.
pub struct Tap {
    /// Offset of the first byte that is kept, and the bytes from there to the end.
    base: u64,
    log: Vec<u8>,
    connection: Connection,
    logged: Frames,
    unlogged: Frames,
    streams: HashMap<u32, Stream>,
    /// Highest offset in an ACK or RESUME.
    acknowledged: u64,
    pub records: u64,
    /// Its RESUME on each link.
    resumes: HashMap<u32, u64>,
}

/// The connection that the end writes to now.
#[derive(Default)]
struct Connection {
    resumed: bool,
    any: bool,
    /// Header of a record that is not complete.
    header: Vec<u8>,
    record: Option<(u8, usize)>,
    /// Payload of an ACK or RESUME so far.
    small: Vec<u8>,
    /// Offset of the next LOGGED byte.
    position: Option<u64>,
    /// Offset that had been sent when the connection began: what is before is a replay.
    replay_end: u64,
    link: u32,
}

/// Frames of one kind of record, cut anywhere.
#[derive(Default)]
struct Frames {
    header: Vec<u8>,
    left: usize,
    first: bool,
}

#[derive(Default, Clone, Copy)]
struct Stream {
    ended: bool,
    reset: bool,
    /// The application has reset it: no DATA may be built any more.
    quiet: bool,
}

impl Tap {
    pub fn new() -> Self {
        Self {
            base: 0,
            log: Vec::new(),
            connection: Connection {
                position: Some(0),
                ..Connection::default()
            },
            logged: Frames::default(),
            unlogged: Frames::default(),
            streams: HashMap::new(),
            acknowledged: 0,
            records: 0,
            resumes: HashMap::new(),
        }
    }

    /// Offset behind the last LOGGED byte that was ever written.
    pub fn end(&self) -> u64 {
        self.base + self.log.len() as u64
    }

    /// Highest offset that this end has acknowledged.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged
    }

    /// The end begins to write to another connection of the same tunnel.
    pub fn attach(&mut self, link: u32) {
        self.connection = Connection {
            resumed: true,
            link,
            replay_end: self.end(),
            ..Connection::default()
        };
        self.unlogged = Frames::default();
    }

    /// The application has reset stream `id`: DATA that is built from now on is a fault.
    pub fn reset_called(&mut self, id: u32) {
        if id != 0 {
            self.streams.entry(id).or_default().quiet = true;
        }
    }

    /// What its peer on `link` must know of it.
    pub fn peer(&self, link: u32) -> Peer {
        Peer {
            end: self.end(),
            resume: self.resumes.get(&link).copied(),
        }
    }

    /// The other end has acknowledged everything before `offset`.
    pub fn forget(&mut self, offset: u64) {
        // In large steps, so that this costs nothing.
        let surplus = usize::try_from(offset.saturating_sub(self.base))
            .expect("invariant: offsets of a test are small");
        if surplus > 64 * 1024 {
            self.log.drain(..surplus);
            self.base = offset;
        }
    }

    /// `bytes` were built.
    pub fn write(&mut self, mut bytes: &[u8], peer: Peer) {
        if self.connection.position.is_none() {
            self.connection.position = peer.resume;
        }
        while !bytes.is_empty() {
            let Some((kind, left)) = self.connection.record else {
                let need = 4 - self.connection.header.len();
                let (now, later) = bytes.split_at(need.min(bytes.len()));
                self.connection.header.extend_from_slice(now);
                bytes = later;
                if self.connection.header.len() == 4 {
                    self.start_record();
                }
                continue;
            };
            let (now, later) = bytes.split_at(left.min(bytes.len()));
            bytes = later;
            match kind {
                LOGGED => self.logged_bytes(now),
                UNLOGGED => self.unlogged_bytes(now),
                _ => self.connection.small.extend_from_slice(now),
            }
            let left = left - now.len();
            self.connection.record = (left > 0).then_some((kind, left));
            if left == 0 {
                self.end_record(kind, peer);
            }
        }
    }

    /// Nothing is left in the middle: what the end wrote so far is complete records.
    pub fn assert_whole(&self) {
        assert!(self.connection.record.is_none() && self.connection.header.is_empty());
    }

    fn start_record(&mut self) {
        let header = std::mem::take(&mut self.connection.header);
        let kind = header[0];
        let length =
            usize::from(header[1]) << 16 | usize::from(header[2]) << 8 | usize::from(header[3]);
        let first = !std::mem::replace(&mut self.connection.any, true);
        assert_eq!(
            kind == RESUME,
            first && self.connection.resumed,
            "RESUME is the first record of a resumed connection, and stands nowhere else"
        );
        match kind {
            LOGGED => assert!(
                self.connection.position.is_some(),
                "LOGGED before the peer's RESUME"
            ),
            UNLOGGED => {}
            ACK | RESUME => assert_eq!(length, 8, "length of ACK or RESUME"),
            _ => panic!("record of kind {kind}"),
        }
        self.records += 1;
        self.connection.small.clear();
        self.connection.record = (length > 0).then_some((kind, length));
    }

    fn end_record(&mut self, kind: u8, peer: Peer) {
        match kind {
            UNLOGGED => assert!(
                self.unlogged.header.is_empty() && self.unlogged.left == 0,
                "a frame is cut by the end of an UNLOGGED record"
            ),
            ACK | RESUME => {
                let bytes = std::mem::take(&mut self.connection.small);
                let offset = u64::from_be_bytes(bytes.try_into().expect("invariant: eight bytes"));
                assert!(
                    offset <= peer.end,
                    "{offset} is acknowledged, {} was sent",
                    peer.end
                );
                assert!(offset >= self.acknowledged, "an acknowledgement goes back");
                self.acknowledged = offset;
                if kind == RESUME {
                    self.resumes.insert(self.connection.link, offset);
                }
            }
            _ => {}
        }
    }

    fn logged_bytes(&mut self, bytes: &[u8]) {
        let position = self
            .connection
            .position
            .as_mut()
            .expect("invariant: set by the record");
        let start =
            usize::try_from(*position - self.base).expect("invariant: offsets of a test are small");
        *position += bytes.len() as u64;
        assert!(start <= self.log.len(), "a gap in the logged stream");
        let known = (self.log.len() - start).min(bytes.len());
        let (replayed, new) = bytes.split_at(known);
        assert!(
            self.log[start..].starts_with(replayed),
            "a replay differs from what was sent first"
        );
        self.log.extend_from_slice(new);
        let mut rest = new;
        while let Some((header, after)) = self.logged.next(rest) {
            rest = after;
            if let Some(header) = header {
                self.logged_frame(header);
            }
        }
    }

    fn unlogged_bytes(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some((header, after)) = self.unlogged.next(rest) {
            rest = after;
            let Some([kind, ..]) = header else {
                continue;
            };
            assert!(
                matches!(kind, PING | PONG | DGRAM | BLOCKED),
                "frame {kind} in an UNLOGGED record"
            );
            let replayed = self
                .connection
                .position
                .is_some_and(|p| p >= self.connection.replay_end);
            assert!(
                kind != DGRAM || replayed,
                "a datagram before the replay has left"
            );
        }
    }

    fn logged_frame(&mut self, header: [u8; 8]) {
        let [kind, flags, _, _, id @ ..] = header;
        let id = u32::from_be_bytes(id);
        assert!(
            !matches!(kind, PING | PONG | DGRAM),
            "frame {kind} in a LOGGED record"
        );
        if id == 0 || id > 0x7fff_ffff {
            assert!(id == 0 && kind >= GOAWAY, "frame {kind} on stream {id}");
            return;
        }
        let stream = self.streams.entry(id).or_default();
        match kind {
            DATA => {
                assert!(!stream.ended, "DATA behind FIN or RESET on {id}");
                assert!(!stream.quiet, "DATA on {id}, although it was to be reset");
                stream.ended = flags & 1 != 0;
            }
            RESET => {
                assert!(!stream.reset, "a second RESET on {id}");
                stream.reset = true;
                stream.ended = true;
            }
            OPEN | OPEN_OK => assert!(!stream.ended, "{kind} behind the end of {id}"),
            _ => {}
        }
    }
}

impl Frames {
    /// Takes bytes up to the end of the next header or payload. `None` when there are no more.
    fn next<'a>(&mut self, bytes: &'a [u8]) -> Option<(Option<[u8; 8]>, &'a [u8])> {
        if bytes.is_empty() {
            return None;
        }
        if self.left > 0 {
            let step = self.left.min(bytes.len());
            self.left -= step;
            return Some((None, &bytes[step..]));
        }
        if self.header.is_empty() && bytes.len() >= 8 {
            let (header, rest) = bytes.split_at(8);
            let header: [u8; 8] = header.try_into().expect("invariant: eight bytes");
            self.left = usize::from(header[2]) << 8 | usize::from(header[3]);
            return Some((Some(header), rest));
        }
        let need = 8 - self.header.len();
        let (now, rest) = bytes.split_at(need.min(bytes.len()));
        self.header.extend_from_slice(now);
        if self.header.len() < 8 {
            return Some((None, rest));
        }
        let header: [u8; 8] = std::mem::take(&mut self.header)
            .try_into()
            .expect("invariant: eight bytes");
        self.left = usize::from(header[2]) << 8 | usize::from(header[3]);
        Some((Some(header), rest))
    }
}
