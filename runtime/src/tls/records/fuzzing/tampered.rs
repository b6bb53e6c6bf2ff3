//! A conversation of two ends that obey, and somebody on the way to one of them who changes, drops, repeats and swaps
//! what comes by. What is opened is what was sealed, up to the first byte that is not what was sent; behind that comes
//! nothing but a fault and its alert.

use std::collections::VecDeque;
use std::io::IoSlice;
use std::task::Poll;

use bytes::BytesMut;

use super::super::{HEADER, MOST_PLAIN, MOST_SEALED, TAG};
use super::{BACK, THERE, context};
use super::{End, Fault, MOST_OPERATIONS, Next, Script, Sealer, Shape, TrafficSecret};
use super::{answer, content, pattern};

/// Records in a row that may carry nothing.
const FRUITLESS: usize = 32;

/// What a record does to the end that opens it.
#[derive(Clone, Copy)]
enum Effect {
    Data(usize),
    Nothing,
    /// New keys, and the wish for new ones from the other side.
    Asks,
    Ends(Next),
}

/// What was sealed, and how much of it has come through.
struct Sent {
    bytes: Vec<u8>,
    /// The records that were not opened yet: where each ends, and what it does.
    records: VecDeque<(usize, Effect)>,
    /// Bytes that arrived, and the first of them that are those that were sealed.
    arrived: Vec<u8>,
    agree: usize,
    /// What follows from these.
    heard: usize,
    fruitless: usize,
    asked: bool,
    last: Next,
}

struct Run {
    shape: Shape,
    end: End,
    sealer: Sealer,
    /// The secret of the sealer.
    secret: TrafficSecret,
    /// Plaintext that was sealed for the end under test.
    said: Vec<u8>,
    sent: Sent,
    /// Sealed, and still to be sent: whole records, unless somebody cut them.
    held: VecDeque<Vec<u8>>,
    /// Bytes that the end under test took, and updates of keys that it owes for wishes.
    written: usize,
    updates: usize,
    /// The end under test has said how it ends.
    farewell: Option<Next>,
}

pub fn tampered_records(input: &[u8]) {
    let mut script = Script(input);
    let shape = Shape::new(&mut script);
    let mut run = Run::new(shape);
    for _ in 0..MOST_OPERATIONS {
        if script.is_over() {
            break;
        }
        run.operation(&mut script);
    }
    run.end_of_run(&mut script);
}

impl Run {
    fn new(shape: Shape) -> Self {
        Self {
            shape,
            end: End::new(shape),
            sealer: shape.other().sealer(THERE),
            secret: shape.other().secret(THERE),
            said: Vec::new(),
            sent: Sent::new(),
            held: VecDeque::new(),
            written: 0,
            updates: 0,
            farewell: None,
        }
    }

    fn operation(&mut self, script: &mut Script<'_>) {
        match script.below(20) {
            0..=2 => self.say(script),
            3 => self.seal(content::DATA, b"", Effect::Nothing),
            4 => self.say_padded(script),
            5 => self.update(0, Effect::Nothing),
            6 => self.update(1, Effect::Asks),
            7 => self.ticket(script),
            8 => self.alert(script),
            9 => {
                let plain = vec![7; MOST_PLAIN + 1 + script.length(400)];
                let effect = Effect::Ends(Next::Fault(Fault::TooLong));
                self.seal(content::DATA, &plain, effect);
            }
            16 => {
                let most = script.length(70_000);
                self.deliver(most, script);
            }
            17 => self.deliver(usize::MAX, script),
            18 => self.write(script),
            19 => self.shut_down(),
            how => self.tamper(how, script),
        }
    }

    fn say(&mut self, script: &mut Script<'_>) {
        let bytes = pattern(self.said.len(), script.length(20_000));
        let pieces = bytes.chunks(1 + script.length(20_000));
        let mut out = BytesMut::new();
        let taken = self.sealer.seal_data(pieces, usize::MAX, &mut out);
        assert_eq!(taken, Ok(bytes.len()));
        self.said.extend_from_slice(&bytes);
        while let Some(&[_, _, _, high, low]) = out.first_chunk::<HEADER>() {
            let length = usize::from(u16::from_be_bytes([high, low]));
            let record = out.split_to(HEADER + length);
            self.hold(&record, Effect::Data(length - TAG - 1));
        }
    }

    fn say_padded(&mut self, script: &mut Script<'_>) {
        let length = script.length(MOST_PLAIN + 1);
        let mut plain = pattern(self.said.len(), length);
        self.said.extend_from_slice(&plain);
        plain.push(content::DATA);
        // One more becomes the kind.
        let zeros = script.length(MOST_SEALED - TAG - plain.len());
        plain.resize(plain.len() + zeros, 0);
        let effect = match length {
            0 => Effect::Nothing,
            _ => Effect::Data(length),
        };
        self.seal(0, &plain, effect);
    }

    fn update(&mut self, wanted: u8, effect: Effect) {
        self.seal(content::HANDSHAKE, &[24, 0, 0, 1, wanted], effect);
        let (which, next) = (self.shape.other().which, self.secret.next());
        self.secret = self.secret.next();
        self.sealer = Sealer::new(which, next, 0).expect("invariant: a fitting key");
    }

    /// A ticket, in one record or in two.
    fn ticket(&mut self, script: &mut Script<'_>) {
        let length = script.length(3000);
        let [_, high, low] = [0, length >> 8, length & 0xff].map(|n| n.to_le_bytes()[0]);
        let mut message = vec![4, 0, high, low];
        message.resize(4 + length, 5);
        let (front, rest) = message.split_at(script.below(4 + length));
        if !front.is_empty() {
            self.seal(content::HANDSHAKE, front, Effect::Nothing);
        }
        let effect = match self.shape.tickets {
            true => Effect::Nothing,
            false => Effect::Ends(Next::Fault(Fault::Unexpected)),
        };
        self.seal(content::HANDSHAKE, rest, effect);
    }

    fn alert(&mut self, script: &mut Script<'_>) {
        let (level, description) = (script.byte(), script.byte());
        let effect = match description {
            0 => Effect::Ends(Next::Closed),
            90 => Effect::Nothing,
            _ => Effect::Ends(Next::Fault(Fault::Alert(description))),
        };
        self.seal(content::ALERT, &[level, description], effect);
    }

    fn seal(&mut self, kind: u8, plain: &[u8], effect: Effect) {
        let mut out = BytesMut::new();
        let sealed = self.sealer.seal(kind, plain, &mut out);
        sealed.expect("invariant: short enough for a record");
        self.hold(&out, effect);
    }

    fn hold(&mut self, record: &[u8], effect: Effect) {
        self.sent.sealed(record, effect);
        self.held.push_back(record.to_vec());
    }

    /// Does something to what is still to be sent.
    fn tamper(&mut self, how: usize, script: &mut Script<'_>) {
        let count = self.held.len();
        let at = script.below(count);
        let Some(record) = self.held.get_mut(at) else {
            return;
        };
        match how {
            10 if !record.is_empty() => {
                let byte = script.below(record.len());
                record[byte] ^= 1 << script.below(8);
            }
            11 => {
                let cut = script.below(record.len() + 1);
                match script.below(2) {
                    0 => record.truncate(cut),
                    _ => drop(record.drain(..cut)),
                }
            }
            12 => {
                let copy = record.clone();
                self.held.insert(script.below(count + 1), copy);
            }
            13 => self.held.swap(at, script.below(count)),
            14 => drop(self.held.remove(at)),
            _ => {
                let length = script.below(32);
                let foreign = script.take(length).to_vec();
                self.held.insert(at, foreign);
            }
        }
    }

    /// Sends at most so many bytes of what is held.
    fn deliver(&mut self, most: usize, script: &mut Script<'_>) {
        let mut bytes = Vec::new();
        while bytes.len() < most
            && let Some(mut front) = self.held.pop_front()
        {
            let rest = front.split_off(front.len().min(most - bytes.len()));
            bytes.extend_from_slice(&front);
            if !rest.is_empty() {
                self.held.push_front(rest);
            }
        }
        self.arrives(&bytes, script.length(20_000));
    }

    fn arrives(&mut self, bytes: &[u8], cut: usize) {
        self.end.receives(bytes, cut);
        self.sent.arrives(bytes);
        self.hear();
    }

    /// It hears what was sealed and came through, and that is all.
    fn hear(&mut self) {
        let next = self.end.hear(&self.said);
        assert_eq!(self.end.heard, self.sent.heard);
        match self.sent.last {
            Next::Pending => {
                assert_ne!(next, Next::Closed);
                let fault = matches!(next, Next::Fault(_));
                assert!(!fault || self.sent.is_changed(), "{next:?}");
            }
            last => assert_eq!(next, last),
        }
        if let alert @ Next::Fault(_) = answer(next) {
            self.farewell.get_or_insert(alert);
        }
    }

    fn write(&mut self, script: &mut Script<'_>) {
        self.end.wire.0.borrow_mut().room = script.length(100_000);
        // Up to more than is sealed at a time.
        let bytes = pattern(self.written, 1 + 5 * script.length(60_000));
        let (front, rest) = bytes.split_at(script.below(bytes.len()));
        let slices = [IoSlice::new(front), IoSlice::new(rest)];
        match self.end.stream.poll_write(&mut context(), &slices) {
            Poll::Ready(Ok(count)) => {
                assert!(count > 0 && count <= bytes.len() && self.farewell.is_none());
                self.written += count;
                self.updates += usize::from(std::mem::take(&mut self.sent.asked));
            }
            Poll::Ready(Err(error)) => {
                assert!(self.farewell.is_some(), "{error}");
            }
            Poll::Pending => {}
        }
    }

    fn shut_down(&mut self) {
        self.farewell.get_or_insert(Next::Closed);
        if let Poll::Ready(result) = self.end.stream.poll_shutdown(&mut context()) {
            result.expect("invariant: the wire does not break");
        }
    }

    /// Everything arrives, and then either the transport ends or rubbish comes.
    fn end_of_run(mut self, script: &mut Script<'_>) {
        let rubbish = script.below(2) == 0;
        self.deliver(usize::MAX, script);
        if rubbish {
            self.arrives(&[0; HEADER + MOST_SEALED], usize::MAX);
            assert_ne!(
                self.end.last,
                Next::Pending,
                "a change that was not noticed"
            );
        }
        self.end.wire.0.borrow_mut().is_over = true;
        self.hear();
        assert_ne!(self.end.last, Next::Pending);
        let told = self.end.farewell(&mut self.shape.other().opener(BACK));
        assert!(told.data == pattern(0, self.written));
        assert_eq!(told.next, self.farewell.unwrap_or(Next::Pending));
        // Where the numbers began so high, it changed its keys of its own will once.
        let own = usize::from(self.shape.numbers[1] > 255);
        assert!((self.updates..=self.updates + own).contains(&told.updates));
    }
}

impl Sent {
    fn new() -> Self {
        Self {
            bytes: Vec::new(),
            records: VecDeque::new(),
            arrived: Vec::new(),
            agree: 0,
            heard: 0,
            fruitless: 0,
            asked: false,
            last: Next::Pending,
        }
    }

    fn sealed(&mut self, record: &[u8], effect: Effect) {
        // The header tells already what is too long.
        let needed = match record.len() > HEADER + MOST_SEALED {
            true => HEADER,
            false => record.len(),
        };
        self.records.push_back((self.bytes.len() + needed, effect));
        self.bytes.extend_from_slice(record);
    }

    fn arrives(&mut self, bytes: &[u8]) {
        self.arrived.extend_from_slice(bytes);
        let both = self.bytes[self.agree..]
            .iter()
            .zip(&self.arrived[self.agree..]);
        self.agree += both.take_while(|(sent, arrived)| sent == arrived).count();
        while self.last == Next::Pending
            && let Some(&(end, effect)) = self.records.front()
            && end <= self.agree
        {
            self.records.pop_front();
            self.opened(effect);
        }
    }

    fn opened(&mut self, effect: Effect) {
        if let Effect::Data(length) = effect {
            self.heard += length;
            self.fruitless = 0;
            return;
        }
        if let Effect::Ends(last @ Next::Fault(Fault::TooLong)) = effect {
            self.last = last;
            return;
        }
        self.fruitless += 1;
        if self.fruitless > FRUITLESS {
            self.last = Next::Fault(Fault::Unexpected);
            return;
        }
        match effect {
            Effect::Asks => self.asked = true,
            Effect::Ends(last) => self.last = last,
            Effect::Data(_) | Effect::Nothing => {}
        }
    }

    /// What arrived is not the beginning of what was sealed.
    fn is_changed(&self) -> bool {
        self.agree < self.arrived.len()
    }
}
