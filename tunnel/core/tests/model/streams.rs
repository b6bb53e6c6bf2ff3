//! What the model knows of a stream, and what the applications do with it. The rules: delivered is a
//! prefix of sent, FIN comes once and behind everything, nothing comes after a reset, and the code
//! that is reported is the one that the other side gave.

use std::sync::OnceLock;

use bytes::Bytes;
use sg_tunnel::{Connection, Incoming, Key, OpenState, Peek, Read, StreamEnd, code};

use crate::world::World;

/// Codes of the model start here: every reset has one of its own.
const FIRST_CODE: u32 = 0x1000;
const READ: bool = true;
const WRITE: bool = false;

/// Length after which the content repeats; no stride of the protocol divides it.
const PERIOD: usize = 64_507;
/// Longest piece of content.
pub(crate) const LONGEST: usize = 66_000;

/// One stream or flow. Index 0 is the node's end, 1 the client's.
#[derive(Debug, Default)]
pub(crate) struct Stream {
    pub(crate) flow: bool,
    pub(crate) opener: usize,
    /// What the acceptor said in its answer.
    answer: Option<Bytes>,
    /// The last datagram of a flow has been sent.
    asked: bool,
    pub(crate) ends: [Half; 2],
}

/// One end of a stream.
#[derive(Debug, Default)]
pub(crate) struct Half {
    pub(crate) key: Option<Key>,
    /// Accepted here, or known to be accepted there.
    pub(crate) ready: bool,
    pub(crate) sent: u64,
    pub(crate) finished: bool,
    pub(crate) read: u64,
    pub(crate) fin_read: bool,
    /// How reading failed, nothing may follow; and how writing did.
    pub(crate) failed: Option<StreamEnd>,
    write_failed: Option<StreamEnd>,
    /// Read after the tunnel had ended: then it must have been complete.
    read_late: bool,
    /// The code with which this end reset or refused it.
    pub(crate) code: Option<u32>,
    /// The open failed by the core's own decision.
    refused: bool,
    /// A read found nothing, a write no room: an event must tell when that changes.
    pub(crate) waits_read: bool,
    pub(crate) waits_write: bool,
    /// Its reader has stopped.
    pub(crate) stalled: bool,
    /// Datagrams: number of the next one, and of the last one that came.
    datagrams: u64,
    last_datagram: Option<u64>,
}

impl Stream {
    fn broken(&self) -> bool {
        self.ends
            .iter()
            .any(|end| end.code.is_some() || end.refused)
    }
}

/// Content that differs everywhere: a piece of a long random table.
fn content(salt: u64, offset: u64, length: usize) -> Bytes {
    static TABLE: OnceLock<Bytes> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut random = crate::support::Random(7);
        let period: Vec<u8> = (0..PERIOD).map(|_| (random.next() >> 56) as u8).collect();
        let twice: Vec<u8> = period
            .iter()
            .copied()
            .cycle()
            .take(PERIOD + LONGEST)
            .collect();
        Bytes::from(twice)
    });
    let at = (offset.wrapping_add(salt.wrapping_mul(7919)) % PERIOD as u64) as usize;
    table.slice(at..at + length)
}

fn salt(number: usize, side: usize) -> u64 {
    number as u64 * 2 + side as u64
}

/// A datagram: who sent it, its number, its length, then content.
fn datagram(number: usize, side: usize, sequence: u64, length: usize) -> Bytes {
    let mut bytes = Vec::with_capacity(length);
    bytes.extend_from_slice(&(salt(number, side)).to_be_bytes());
    bytes.extend_from_slice(&sequence.to_be_bytes());
    bytes.extend_from_slice(&(length as u64).to_be_bytes());
    bytes.extend_from_slice(&content(salt(number, side), sequence, length - bytes.len()));
    Bytes::from(bytes)
}
/// Bytes of a datagram before its content.
pub(crate) const DATAGRAM_HEAD: usize = 24;

impl World {
    /// A code that nobody else uses.
    fn fresh_code(&mut self) -> u32 {
        self.codes += 1;
        FIRST_CODE + self.codes
    }

    pub(crate) fn open(&mut self, side: usize, flow: bool) {
        let number = self.streams.len();
        let mut metadata = (number as u32).to_be_bytes().to_vec();
        metadata.resize(4 + self.random.below(60), 0x55);
        let metadata = Bytes::from(metadata);
        let end = &mut self.ends[side].conn;
        let opened = if flow {
            end.open_flow(metadata)
        } else {
            end.open(metadata)
        };
        let Ok(key) = opened else {
            return;
        };
        assert!(!end.is_detached(), "an open while detached");
        let mut stream = Stream {
            flow,
            opener: side,
            ..Stream::default()
        };
        stream.ends[side].key = Some(key);
        stream.ends[side].stalled = self.random.chance(10);
        stream.ends[1 - side].stalled = self.random.chance(10);
        self.streams.push(stream);
        self.register(number, side, key);
        self.opening.push((number, side));
    }

    /// Offers, messages and the drain.
    pub(crate) fn take_incoming(&mut self, side: usize) {
        while let Some(incoming) = self.ends[side].conn.poll_incoming() {
            match incoming {
                Incoming::Offer { key, metadata } => self.answer(side, key, &metadata),
                Incoming::Control(message) => {
                    let number = u32::from_be_bytes(message[..].try_into().unwrap());
                    assert_eq!(number, self.controls[1 - side].1, "order of the messages");
                    self.controls[1 - side].1 += 1;
                }
                Incoming::Draining => assert!(self.drained[1 - side], "nobody drains"),
            }
        }
    }

    fn answer(&mut self, side: usize, key: Key, metadata: &[u8]) {
        let number = u32::from_be_bytes(metadata[..4].try_into().unwrap()) as usize;
        assert!(metadata[4..].iter().all(|byte| *byte == 0x55), "metadata");
        let flow = self.ends[side].conn.is_flow(key);
        let stream = &mut self.streams[number];
        assert_eq!(flow, stream.flow, "what was opened");
        assert_eq!(stream.opener, 1 - side, "who opened");
        assert!(
            stream.answer.is_none() && stream.ends[side].key.is_none(),
            "offered twice"
        );
        if self.random.chance(10) {
            let code = self.fresh_code();
            self.streams[number].ends[side].code = Some(code);
            self.ends[side].conn.release(key, code);
            return;
        }
        let length = [0, self.random.below(257)][self.random.below(2)];
        let answer = content(number as u64, 1, length);
        let stream = &mut self.streams[number];
        self.ends[side].conn.accept(key, answer.clone());
        stream.answer = Some(answer);
        stream.ends[side].key = Some(key);
        stream.ends[side].ready = true;
        self.register(number, side, key);
        if self.random.chance(30) {
            self.ends[side]
                .conn
                .set_weight(key, [1, 4, 16][self.random.below(3)]);
        }
    }

    /// Looks after opens that wait for an answer.
    pub(crate) fn see_answers(&mut self) {
        let mut opening = std::mem::take(&mut self.opening);
        opening.retain(|(number, side)| self.still_opening(*number, *side));
        self.opening = opening;
    }

    fn still_opening(&mut self, number: usize, side: usize) -> bool {
        let Some(key) = self.streams[number].ends[side].key else {
            return false;
        };
        let end = &mut self.ends[side];
        let stream = &mut self.streams[number];
        match end.conn.open_state(key) {
            Ok(OpenState::Waiting) => return true,
            Ok(OpenState::Open) => {
                let answer = stream.answer.as_ref().expect("accepted by nobody");
                assert_eq!(&end.conn.answer(key), answer, "the answer");
                stream.ends[side].ready = true;
            }
            Err(StreamEnd::Lost) => assert!(end.conn.closed().is_some(), "lost for nothing"),
            Err(StreamEnd::Reset(reason)) => {
                let own = matches!(reason, code::LIMIT | code::REFUSED_RETRY);
                let given = stream.ends.iter().any(|end| end.code == Some(reason));
                assert!(own || given, "an open failed with {reason:#x}: {stream:?}");
                stream.ends[side].refused = own;
                stream.ends[side].key = None;
                end.conn.release(key, code::CANCEL);
            }
            Err(StreamEnd::Finished) => panic!("an open that has finished"),
        }
        false
    }

    pub(crate) fn forget_key(&mut self, number: usize, side: usize) {
        self.streams[number].ends[side].key = None;
    }

    pub(crate) fn write(&mut self, number: usize, side: usize, size: usize) {
        let half = &mut self.streams[number].ends[side];
        let key = half.key.unwrap();
        let mut piece = content(salt(number, side), half.sent, size);
        match self.ends[side].conn.write(key, &mut piece) {
            Ok(count) => {
                assert_eq!(half.write_failed, None, "a write after an error");
                assert_eq!(piece.len(), size - count, "what was not taken stays");
                half.waits_write = count == 0;
                half.sent += count as u64;
            }
            Err(StreamEnd::Finished) => assert!(half.finished),
            Err(end) => self.failed(number, side, end, WRITE),
        }
    }

    pub(crate) fn read(&mut self, number: usize, side: usize, max: usize) {
        let [one, two] = &mut self.streams[number].ends;
        let (half, peer) = if side == 0 { (one, two) } else { (two, one) };
        let key = half.key.unwrap();
        let part = self.random.next();
        match take(&mut self.ends[side].conn, key, max, part) {
            Ok(Read::Chunk(chunk)) => {
                assert_eq!(half.failed, None, "bytes after an error");
                assert!(!half.fin_read, "bytes after FIN");
                assert!(!chunk.is_empty() && chunk.len() <= max);
                let expected = content(salt(number, 1 - side), half.read, chunk.len());
                assert!(
                    chunk == expected,
                    "wrong bytes at {} of {number}",
                    half.read
                );
                half.read += chunk.len() as u64;
                half.read_late |= self.ends[side].conn.closed().is_some();
                assert!(half.read <= peer.sent, "more than was sent");
            }
            Ok(Read::Fin) => {
                assert_eq!(half.failed, None, "FIN after an error");
                assert!(peer.finished, "FIN that nobody sent");
                assert_eq!(half.read, peer.sent, "FIN too early");
                half.fin_read = true;
            }
            Ok(Read::Pending) => {
                assert_eq!(half.failed, None, "silence after an error");
                assert!(!half.fin_read, "silence after FIN");
                half.waits_read = true;
            }
            Err(end) => self.failed(number, side, end, READ),
        }
    }

    pub(crate) fn finish(&mut self, number: usize, side: usize) {
        let key = self.streams[number].ends[side].key.unwrap();
        match self.ends[side].conn.finish(key) {
            Ok(()) => self.streams[number].ends[side].finished = true,
            Err(end) => self.failed(number, side, end, WRITE),
        }
    }

    /// Resets a stream; the key stays for a while, or goes at once.
    pub(crate) fn reset(&mut self, number: usize, side: usize, keep: bool) {
        let code = self.fresh_code();
        let key = self.streams[number].ends[side].key.unwrap();
        self.note_end(number, side, code);
        let id = self.ends[side].conn.wire_id(key);
        self.ends[side].tap.reset_called(id);
        self.ends[side].conn.reset(key, code);
        if !keep {
            self.forget_key(number, side);
            self.ends[side].conn.release(key, code::CANCEL);
        }
    }

    /// Lets go without a reset of its own: that is a reset unless both directions have finished.
    pub(crate) fn let_go(&mut self, number: usize, side: usize) {
        let code = self.fresh_code();
        let half = &self.streams[number].ends[side];
        let key = half.key.unwrap();
        // Whether FIN has come is the core's knowledge; a code that is not used harms nothing.
        self.note_end(number, side, code);
        self.forget_key(number, side);
        self.ends[side].conn.release(key, code);
    }

    fn note_end(&mut self, number: usize, side: usize, code: u32) {
        let half = &mut self.streams[number].ends[side];
        if half.code.is_none() && !matches!(half.failed, Some(StreamEnd::Reset(_))) {
            half.code = Some(code);
        }
    }

    fn failed(&mut self, number: usize, side: usize, end: StreamEnd, direction: bool) {
        let closed = self.ends[side].conn.closed().is_some();
        let stream = &mut self.streams[number];
        match end {
            StreamEnd::Reset(code) => {
                let given = stream.ends.iter().any(|end| end.code == Some(code));
                assert!(given, "reset with {code:#x} by nobody: {stream:?}");
            }
            StreamEnd::Lost => assert!(closed, "stream {number} is lost for nothing"),
            StreamEnd::Finished => panic!("finished"),
        }
        let half = &mut stream.ends[side];
        // A reset may still be followed by the loss of the tunnel, nothing else by anything else. The loss
        // leaves what has been received completely to be read.
        let reset = matches!(end, StreamEnd::Reset(_));
        for (failed, here) in [
            (&mut half.failed, direction == READ),
            (&mut half.write_failed, direction == WRITE),
        ] {
            if here || reset {
                let before = *failed.get_or_insert(end);
                let own = half.code.is_some_and(|code| end == StreamEnd::Reset(code));
                assert!(
                    before == end || end == StreamEnd::Lost || own,
                    "{before:?}, then {end:?}"
                );
            }
        }
        assert!(
            !half.read_late || half.fin_read || direction == WRITE || reset,
            "{end:?} in the middle"
        );
    }

    pub(crate) fn send_datagram(&mut self, number: usize, side: usize, length: usize) {
        let half = &mut self.streams[number].ends[side];
        let key = half.key.unwrap();
        let bytes = datagram(number, side, half.datagrams, length);
        match self.ends[side].conn.send_datagram(self.now, key, bytes) {
            Ok(()) => {
                assert_eq!(half.write_failed, None, "a datagram after an error");
                half.datagrams += 1;
            }
            Err(end) => self.failed(number, side, end, WRITE),
        }
    }

    pub(crate) fn receive_datagram(&mut self, number: usize, side: usize) -> bool {
        let [one, two] = &mut self.streams[number].ends;
        let (half, peer) = if side == 0 { (one, two) } else { (two, one) };
        let key = half.key.unwrap();
        match self.ends[side].conn.receive_datagram(key) {
            Ok(Some(bytes)) => {
                assert_eq!(half.failed, None, "a datagram after an error");
                let sequence = u64::from_be_bytes(bytes[8..16].try_into().unwrap());
                let whole = datagram(number, 1 - side, sequence, bytes.len());
                assert!(
                    bytes == whole,
                    "a datagram of {number} is not what was sent"
                );
                assert!(sequence < peer.datagrams, "a datagram that nobody sent");
                assert!(
                    Some(sequence) > half.last_datagram,
                    "a datagram twice, or out of order"
                );
                half.last_datagram = Some(sequence);
                true
            }
            Ok(None) => {
                half.waits_read = true;
                false
            }
            Err(end) => {
                self.failed(number, side, end, READ);
                false
            }
        }
    }

    /// Reads and finishes one end; true while it is not done.
    pub(crate) fn finish_one(&mut self, number: usize, side: usize) -> bool {
        if self.streams[number].ends[side].key.is_none() {
            return false;
        }
        if !self.streams[number].ends[side].ready {
            return true;
        }
        if self.streams[number].flow {
            return self.finish_flow(number, side);
        }
        self.finish(number, side);
        for _ in 0..50 {
            let half = &self.streams[number].ends[side];
            if half.failed.is_some() || half.fin_read {
                break;
            }
            self.read(number, side, usize::MAX);
            if self.streams[number].ends[side].waits_read {
                break;
            }
        }
        let half = &self.streams[number].ends[side];
        if half.fin_read || half.failed.is_some() {
            let key = half.key.unwrap();
            self.forget_key(number, side);
            self.ends[side].conn.release(key, code::CANCEL);
            return false;
        }
        true
    }

    /// A flow that is not broken delivers over a link that is idle; then it is reset.
    fn finish_flow(&mut self, number: usize, side: usize) -> bool {
        let other = 1 - side;
        while self.receive_datagram(number, side) {}
        let stream = &self.streams[number];
        if stream.ends[side].failed.is_some() {
            let key = stream.ends[side].key.unwrap();
            self.forget_key(number, side);
            self.ends[side].conn.release(key, code::CANCEL);
            return false;
        }
        let peer = &stream.ends[other];
        if peer.key.is_none() || !peer.ready || stream.broken() {
            return true;
        }
        // The node's end sends one more over the idle link; when the client's end has it, it ends the flow.
        if side == 1 {
            let [node, client] = &stream.ends;
            let arrived = client
                .last_datagram
                .is_some_and(|last| last + 1 == node.datagrams);
            if stream.asked && arrived {
                self.reset(number, 1, true);
            } else {
                self.streams[number].asked = true;
                self.send_datagram(number, 0, DATAGRAM_HEAD);
            }
        }
        true
    }

    /// Reads what is there.
    pub(crate) fn read_all(&mut self, number: usize, side: usize) {
        loop {
            let stream = &self.streams[number];
            let half = &stream.ends[side];
            let over = half.failed.is_some() || half.fin_read || half.key.is_none();
            if over || stream.flow || !half.ready {
                return;
            }
            self.read(number, side, usize::MAX);
            if self.streams[number].ends[side].waits_read {
                return;
            }
        }
    }

    /// The key of an end that nothing keeps from writing.
    pub(crate) fn healthy_writer(&self, number: usize, side: usize) -> Option<Key> {
        let stream = &self.streams[number];
        let open = self.ends.iter().all(|end| end.conn.closed().is_none());
        let ready = stream.ends.iter().all(|end| end.ready && end.key.is_some());
        let free = open && ready && !stream.flow && !stream.broken();
        let half = &stream.ends[side];
        half.key.filter(|_| free && !half.finished)
    }

    /// At the end: what had to arrive has arrived.
    pub(crate) fn assert_complete(&self) {
        for (number, stream) in self.streams.iter().enumerate() {
            let whole = stream.ends.iter().all(|end| end.fin_read);
            assert!(stream.broken() || whole, "{number}: {stream:?}");
        }
    }
}

/// Reads, or looks and takes a part of what it sees.
fn take(conn: &mut Connection, key: Key, max: usize, part: u64) -> Result<Read, StreamEnd> {
    if part.is_multiple_of(2) {
        return conn.read(key, max);
    }
    let mut shown = Vec::new();
    Ok(match conn.peek(key, max, &mut shown)? {
        Peek::Bytes(count) => {
            assert!(shown.iter().all(|piece| !piece.is_empty()));
            let all = shown.concat();
            assert_eq!(all.len(), count);
            let taken = 1 + (part / 2) as usize % count;
            conn.consume(key, taken);
            Read::Chunk(Bytes::from(all).slice(..taken))
        }
        Peek::Pending => Read::Pending,
        Peek::Fin => Read::Fin,
    })
}
