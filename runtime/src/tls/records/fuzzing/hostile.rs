//! A peer that has the keys and sends anything: the end under test never panics, hears only what was sealed as data,
//! hears the same however the bytes are cut into reads, and nothing behind a fault.

use bytes::BytesMut;

use super::{BACK, THERE};
use super::{End, MOST_OPERATIONS, Next, Script, Sealer, Shape, answer, content, pattern};

/// Everything that the peer sends, and what of it is data, if it is opened at all.
struct Peer {
    shape: Shape,
    sealer: Sealer,
    bytes: BytesMut,
    said: Vec<u8>,
    /// Updates of keys.
    updates: usize,
}

/// The peer's bytes twice: as they come, and cut.
pub fn hostile_records(input: &[u8]) {
    let mut script = Script(input);
    let shape = Shape::new(&mut script);
    let cut = script.length(4096);
    let mut peer = Peer {
        shape: shape.other(),
        sealer: shape.other().sealer(THERE),
        bytes: BytesMut::new(),
        said: Vec::new(),
        updates: 0,
    };
    for _ in 0..MOST_OPERATIONS {
        if script.is_over() {
            break;
        }
        peer.operation(&mut script);
    }
    let whole = peer.heard_in_reads_of(shape, usize::MAX);
    let cut = peer.heard_in_reads_of(shape, cut);
    assert_eq!(whole, cut, "the reads made a difference");
}

impl Peer {
    fn operation(&mut self, script: &mut Script<'_>) {
        match script.below(8) {
            0 => {
                let length = script.length(200);
                self.bytes.extend_from_slice(script.take(length));
            }
            1 => {
                let (high, low) = (script.byte(), script.byte());
                self.bytes
                    .extend_from_slice(&[content::DATA, 3, 3, high, low]);
                let length = script.length(20_000);
                self.bytes.extend_from_slice(&pattern(0, length));
            }
            2 => self.update(),
            3 => {
                // A message of the handshake protocol, whole or not.
                let mut message = script.take(4).to_vec();
                let length = script.length(16_000);
                message.resize(message.len() + length, 7);
                self.seal(content::HANDSHAKE, &message);
            }
            4 => {
                let length = script.length(100);
                self.seal(content::HANDSHAKE, script.take(length));
            }
            5 => {
                let level = script.byte();
                self.seal(content::ALERT, &[level, script.byte()]);
            }
            6 => {
                let length = script.length(16_640);
                self.seal(content::DATA, &pattern(self.said.len(), length));
            }
            _ => {
                let (kind, zeros) = (script.byte(), script.length(17_000));
                let length = script.below(32);
                let mut plain = script.take(length).to_vec();
                plain.resize(plain.len() + zeros, 0);
                self.seal(kind, &plain);
            }
        }
    }

    fn seal(&mut self, kind: u8, plain: &[u8]) {
        // The record's kind is its last byte that is not 0.
        let kinds = plain.iter().copied().chain([kind]);
        let end = kinds.clone().rev().position(|byte| byte != 0);
        let end = end.map_or(0, |zeros| plain.len() - zeros);
        if kinds.clone().nth(end) == Some(content::DATA) {
            self.said.extend_from_slice(&plain[..end]);
        }
        let sealed = self.sealer.seal(kind, plain, &mut self.bytes);
        sealed.expect("invariant: short enough for a record");
    }

    fn update(&mut self) {
        self.updates += 1;
        let sealed = self.sealer.update(&mut self.bytes);
        sealed.expect("invariant: the keys are right");
    }

    /// How far the end under test hears it, and what ends that.
    fn heard_in_reads_of(&self, shape: Shape, cut: usize) -> (usize, Next) {
        let mut end = End::new(shape);
        end.wire.0.borrow_mut().room = usize::MAX;
        end.receives(&self.bytes, cut);
        let next = end.hear(&self.said);
        if next != Next::Pending {
            // Whatever comes: it has ended.
            end.receives(&self.bytes, cut);
            assert_eq!(end.hear(&self.said), next);
        }
        end.wire.0.borrow_mut().is_over = true;
        let next = end.hear(&self.said);
        assert_ne!(next, Next::Pending);
        let told = end.farewell(&mut self.shape.opener(BACK));
        assert_eq!((told.data.len(), told.updates), (0, 0));
        assert_eq!(told.next, answer(next));
        (end.heard, next)
    }
}
