//! From bytes to records, and from records to frames. Nothing is left behind in the driver's buffer: what
//! is not complete is kept here.
//!
//! Two things are cut independently of each other: records by what one read of the transport gives, and
//! logged frames by records. A record that was received in part dies with its connection, the head of a
//! logged frame does not, because its bytes count as received (protocol 807).

use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};

use super::{Connection, Partial};
use crate::code::close;
use crate::error::Violation;
use crate::frame::{Frame, HEADER_LEN, Header, kind as frame_kind};
use crate::record::{OFFSET_LEN, RECORD_LEN, RecordHeader, is_unlogged, kind};

/// Received bytes from which on an ACK is due at once.
const ACK_BYTES: u64 = 128 * 1024;
/// Age of a received byte from which on an ACK is due.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// Where the input stands.
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// The record in the middle of which the input stands: its kind, and how much is to come.
    record: Option<(u8, usize)>,
    /// Header of a record that is not complete, with what an ACK or RESUME carries.
    head: Head,
    /// A logged frame that is not complete. From eight bytes on its header has been checked.
    logged: BytesMut,
    /// The same in an UNLOGGED record.
    unlogged: BytesMut,
    /// The next record must be RESUME.
    expects_resume: bool,
    /// Logged bytes that were received, and that the peer was told of.
    received: u64,
    told: u64,
    ack_at: Option<Instant>,
    ack_due: bool,
}

/// Collects the fixed bytes at the front of a record.
#[derive(Debug, Default)]
struct Head {
    bytes: [u8; RECORD_LEN + OFFSET_LEN],
    len: usize,
}

impl Head {
    /// Moves bytes in until there are `count`; false when the input ends before.
    fn fill(&mut self, count: usize, input: &mut BytesMut) -> bool {
        let take = (count - self.len).min(input.len());
        self.bytes[self.len..self.len + take].copy_from_slice(&input[..take]);
        self.len += take;
        input.advance(take);
        self.len == count
    }

    fn header(&self) -> [u8; RECORD_LEN] {
        let [a, b, c, d, ..] = self.bytes;
        [a, b, c, d]
    }

    fn offset(&self) -> u64 {
        let [_, _, _, _, offset @ ..] = self.bytes;
        u64::from_be_bytes(offset)
    }
}

impl Intake {
    pub(super) fn expects_resume(&self) -> bool {
        self.expects_resume
    }

    /// When an ACK becomes due.
    pub(super) fn ack_at(&self) -> Option<Instant> {
        self.ack_at
    }

    pub(super) fn ack_is_due(&self) -> bool {
        self.ack_due
    }

    pub(super) fn see_time(&mut self, now: Instant) {
        if self.ack_at.is_some_and(|at| at <= now) {
            self.ack_at = None;
            self.ack_due = true;
        }
    }

    /// The offset to tell the peer. The caller sends it.
    pub(super) fn tell(&mut self) -> u64 {
        self.told = self.received;
        self.ack_at = None;
        self.ack_due = false;
        self.received
    }

    /// Whether there is something to acknowledge.
    pub(super) fn has_news(&self) -> bool {
        self.told < self.received
    }

    /// Forgets what belonged to the connection.
    pub(super) fn detach(&mut self) {
        self.record = None;
        self.head.len = 0;
        self.unlogged = BytesMut::new();
        self.expects_resume = false;
        self.ack_at = None;
        self.ack_due = false;
    }

    pub(super) fn attach(&mut self) {
        self.expects_resume = true;
    }

    fn count(&mut self, bytes: usize, now: Instant) {
        self.received += bytes as u64;
        if self.received - self.told >= ACK_BYTES {
            self.ack_at = None;
            self.ack_due = true;
        } else if !self.ack_due && self.ack_at.is_none() {
            self.ack_at = Some(now + ACK_DELAY);
        }
    }
}

impl Connection {
    pub(super) fn read_records(
        &mut self,
        now: Instant,
        input: &mut BytesMut,
    ) -> Result<(), Violation> {
        while !input.is_empty() && self.closed.is_none() {
            let Some((kind, left)) = self.intake.record else {
                self.read_head(now, input)?;
                continue;
            };
            let take = left.min(input.len());
            self.intake.record = (left > take).then_some((kind, left - take));
            if kind == kind::LOGGED {
                self.read_logged(now, input, take)?;
                if !self.config.resume_time.is_zero() {
                    self.intake.count(take, now);
                }
            } else {
                self.read_unlogged(now, input, take)?;
            }
        }
        Ok(())
    }

    fn read_head(&mut self, now: Instant, input: &mut BytesMut) -> Result<(), Violation> {
        if self.intake.head.len < RECORD_LEN && !self.intake.head.fill(RECORD_LEN, input) {
            return Ok(());
        }
        let RecordHeader { kind, length } = RecordHeader::parse(self.intake.head.header())?;
        if self.intake.expects_resume != (kind == kind::RESUME) {
            return Err(Violation::protocol(if kind == kind::RESUME {
                "RESUME where there is nothing to resume"
            } else {
                "RESUME is not the first record"
            }));
        }
        match kind {
            kind::LOGGED | kind::UNLOGGED => {
                self.intake.head.len = 0;
                if length == 0 {
                    return self.useless(now, "too many empty records");
                }
                self.intake.record = Some((kind, length));
                Ok(())
            }
            _ if self.config.resume_time.is_zero() => {
                Err(Violation::protocol("ACK in a tunnel that is not resumable"))
            }
            _ => {
                if !self.intake.head.fill(RECORD_LEN + OFFSET_LEN, input) {
                    return Ok(());
                }
                self.intake.head.len = 0;
                self.on_offset(now, kind, self.intake.head.offset())
            }
        }
    }

    fn on_offset(&mut self, now: Instant, kind: u8, offset: u64) -> Result<(), Violation> {
        let untrue = || Violation::protocol("offset that cannot be true");
        if kind == kind::RESUME {
            self.intake.expects_resume = false;
            return match self.log.resume(offset, now) {
                true => Ok(()),
                false => Err(untrue()),
            };
        }
        let min_rtt = self.keepalive.min_rtt();
        match self.log.acknowledge(offset, min_rtt, now) {
            Some(true) => Ok(()),
            Some(false) => self.useless(now, "too many ACK records without news"),
            None => Err(untrue()),
        }
    }

    /// Takes exactly `left` bytes of the logged stream, unless the tunnel ends in them.
    fn read_logged(
        &mut self,
        now: Instant,
        input: &mut BytesMut,
        mut left: usize,
    ) -> Result<(), Violation> {
        while left > 0 && self.closed.is_none() {
            if let Some(partial) = self.partial {
                left -= self.read_payload(partial, input, left);
                continue;
            }
            if self.intake.logged.is_empty()
                && let Some(header) = Header::peek(input).filter(|h| here(*h) <= left)
            {
                input.advance(HEADER_LEN);
                left -= here(header);
                if let Some(length) = self.on_logged_header(now, header)? {
                    // Copied: these live long, and must not hold on to the receive buffer.
                    let payload = Bytes::copy_from_slice(&input[..length]);
                    input.advance(length);
                    self.on_frame(now, Frame::parse(header, payload)?)?;
                }
                continue;
            }
            left -= self.collect_logged(now, input, left)?;
        }
        Ok(())
    }

    /// Collects a logged frame that something cuts; returns how many bytes it took, at least one.
    fn collect_logged(
        &mut self,
        now: Instant,
        input: &mut BytesMut,
        left: usize,
    ) -> Result<usize, Violation> {
        let had_header = self.intake.logged.len() >= HEADER_LEN;
        let (taken, complete) = collect(&mut self.intake.logged, input, left);
        let Some(header) = Header::peek(&self.intake.logged) else {
            return Ok(taken);
        };
        let wanted = if had_header {
            Some(usize::from(header.length))
        } else {
            self.on_logged_header(now, header)?
        };
        if wanted.is_none() {
            self.intake.logged = BytesMut::new();
        } else if complete && (had_header || wanted == Some(0)) {
            let mut payload = std::mem::take(&mut self.intake.logged);
            payload.advance(HEADER_LEN);
            self.on_frame(now, Frame::parse(header, payload.freeze())?)?;
        }
        Ok(taken)
    }

    /// Checks the header of a logged frame. Returns the length of what must be collected before the frame
    /// can be handled, or `None` if its payload is taken piece by piece.
    fn on_logged_header(
        &mut self,
        now: Instant,
        header: Header,
    ) -> Result<Option<usize>, Violation> {
        if self.peer.is_none() && header.kind != frame_kind::SETTINGS {
            return Err(Violation::new(
                close::SETTINGS,
                "SETTINGS is not the first frame",
            ));
        }
        if header.kind == frame_kind::DATA {
            self.on_data(now, header)?;
            return Ok(None);
        }
        let length = usize::from(header.length);
        if !Frame::check_header(header, self.config.max_metadata)? {
            self.useless(now, "too many unknown frames")?;
            self.partial = (length > 0).then_some(Partial {
                key: None,
                left: length,
                fin: false,
            });
            return Ok(None);
        }
        if is_unlogged(header.kind) {
            return Err(Violation::protocol("unlogged frame in a LOGGED record"));
        }
        Ok(Some(length))
    }

    /// Takes exactly `left` bytes of an UNLOGGED record, unless the tunnel ends in them.
    fn read_unlogged(
        &mut self,
        now: Instant,
        input: &mut BytesMut,
        mut left: usize,
    ) -> Result<(), Violation> {
        while left > 0 && self.closed.is_none() {
            let whole = |h: Header| HEADER_LEN + usize::from(h.length);
            if self.intake.unlogged.is_empty()
                && let Some(header) = Header::peek(input).filter(|h| whole(*h) <= left)
            {
                self.check_unlogged(now, header)?;
                input.advance(HEADER_LEN);
                left -= whole(header);
                self.on_unlogged(now, header, input)?;
                continue;
            }
            let had_header = self.intake.unlogged.len() >= HEADER_LEN;
            let (taken, complete) = collect(&mut self.intake.unlogged, input, left);
            left -= taken;
            let Some(header) = Header::peek(&self.intake.unlogged) else {
                continue;
            };
            if !had_header {
                self.check_unlogged(now, header)?;
            }
            if complete && (had_header || header.length == 0) {
                let mut frame = std::mem::take(&mut self.intake.unlogged);
                frame.advance(HEADER_LEN);
                self.on_unlogged(now, header, &mut frame)?;
            }
        }
        if self.intake.record.is_none() && !self.intake.unlogged.is_empty() {
            return Err(Violation::protocol("frame cut by an UNLOGGED record"));
        }
        Ok(())
    }

    fn check_unlogged(&mut self, now: Instant, header: Header) -> Result<(), Violation> {
        if header.kind == frame_kind::DATA {
            return Err(Violation::protocol("logged frame in an UNLOGGED record"));
        }
        if !Frame::check_header(header, self.config.max_metadata)? {
            return self.useless(now, "too many unknown frames");
        }
        if !is_unlogged(header.kind) {
            return Err(Violation::protocol("logged frame in an UNLOGGED record"));
        }
        Ok(())
    }

    /// A frame whose payload lies at the front of `input`.
    fn on_unlogged(
        &mut self,
        now: Instant,
        header: Header,
        input: &mut BytesMut,
    ) -> Result<(), Violation> {
        let length = usize::from(header.length);
        match header.kind {
            frame_kind::DATAGRAM => self.on_datagram(now, header, input),
            frame_kind::FIRST_SKIPPED.. => {
                input.advance(length);
                Ok(())
            }
            _ => {
                let payload = Bytes::copy_from_slice(&input[..length]);
                input.advance(length);
                self.on_frame(now, Frame::parse(header, payload)?)
            }
        }
    }
}

/// Bytes of a logged frame that must be there before it can be handled.
fn here(header: Header) -> usize {
    match header.kind {
        frame_kind::DATA | frame_kind::FIRST_SKIPPED.. => HEADER_LEN,
        _ => HEADER_LEN + usize::from(header.length),
    }
}

/// Moves bytes of a frame from `input` into `frame`, at most `left`: up to the end of the header, or if
/// that is there, of the frame. Returns how many, and whether that end was reached.
fn collect(frame: &mut BytesMut, input: &mut BytesMut, left: usize) -> (usize, bool) {
    let whole = Header::peek(frame).map_or(HEADER_LEN, |h| HEADER_LEN + usize::from(h.length));
    let missing = whole - frame.len();
    let take = missing.min(left);
    frame.extend_from_slice(&input[..take]);
    input.advance(take);
    (take, take == missing)
}
