//! What the fuzzers of the record layer do with their input. Shared by the entry points in `fuzz/`, for which the feature
//! `fuzzing` shows it, and by the tests here, which replay the committed inputs with a stable compiler. No part of a
//! program. The keys are fixed.
//!
//! * [`hostile_records`]: what a peer that has the keys may send: anything, in any reads.
//! * [`tampered_records`]: a conversation both ways, with somebody on the way who changes what one side sends.
//!
//! Where to start: `End`, the [`RecordStream`] under test with all that is known of what it hears.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::{Buf as _, BytesMut};
use rustls::CipherSuite;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::RecordStream;
use super::aead::Implementation;
use super::keys::{Suite, TrafficSecret};
use super::protect::{Fault, Opened, Opener, Sealer, content};
use super::stream::{BATCH, LARGE_BUFFER};
use crate::secret::Secret;

mod hostile;
mod tampered;

pub use self::hostile::hostile_records;
pub use self::tampered::tampered_records;

/// Operations of one input; longer ones teach nothing new.
const MOST_OPERATIONS: usize = 100;
/// Most that one read may ask for.
const MOST_READ: usize = LARGE_BUFFER;
/// Most memory of a connection: what it receives into, a batch to send, and a message in pieces.
const MOST_HELD: usize = LARGE_BUFFER + 2 * (BATCH + 4 * 1024) + 2 * 84 * 1024;
/// Reads that have the size which the input asks for; the rest takes what there is.
const CUT_READS: usize = 60;

/// The rest of the input, as choices.
struct Script<'a>(&'a [u8]);

impl<'a> Script<'a> {
    fn is_over(&self) -> bool {
        self.0.is_empty()
    }

    /// The next byte; 0 at the end.
    fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.0.split_first() else {
            return 0;
        };
        self.0 = rest;
        *first
    }

    /// One of `end` numbers; the first at the end.
    fn below(&mut self, end: usize) -> usize {
        let wide = match end {
            0..=256 => usize::from(self.byte()),
            _ => usize::from(self.byte()) << 8 | usize::from(self.byte()),
        };
        wide % end.max(1)
    }

    /// Small numbers are as likely as large ones.
    fn length(&mut self, end: usize) -> usize {
        match self.byte() {
            0..=127 => self.below(end.min(64)),
            _ => self.below(end),
        }
    }

    /// At most `most` bytes of the input itself.
    fn take(&mut self, most: usize) -> &'a [u8] {
        let (now, later) = self.0.split_at(most.min(self.0.len()));
        self.0 = later;
        now
    }
}

/// What both ends agreed on.
#[derive(Clone, Copy)]
struct Shape {
    suite: Suite,
    hash_length: usize,
    which: Implementation,
    /// The end under test may be sent tickets.
    tickets: bool,
    /// Numbers of the next records to the end under test, and from it.
    numbers: [u64; 2],
}

impl Shape {
    fn new(script: &mut Script<'_>) -> Self {
        let (suite, hash_length) = match script.below(3) {
            0 => (CipherSuite::TLS13_AES_128_GCM_SHA256, 32),
            1 => (CipherSuite::TLS13_AES_256_GCM_SHA384, 48),
            _ => (CipherSuite::TLS13_CHACHA20_POLY1305_SHA256, 32),
        };
        let flags = script.byte();
        Self {
            suite: Suite::of(suite).expect("invariant: a suite of tunnels"),
            hash_length,
            which: match flags & 1 {
                0 => Implementation::AwsLc,
                _ => Implementation::Ring,
            },
            tickets: flags & 2 == 0,
            // Near the last record under one key, too.
            numbers: [
                [0, 1, 255, 65_535][usize::from(flags >> 2 & 3)],
                [0, 1, 255, (1 << 23) - 2][usize::from(flags >> 4 & 3)],
            ],
        }
    }

    /// The first secret to the end under test, or from it.
    fn secret(self, direction: u8) -> TrafficSecret {
        let secret = vec![direction; self.hash_length];
        TrafficSecret::new(self.suite, Secret::new(secret))
    }

    fn sealer(self, direction: u8) -> Sealer {
        let number = self.numbers[usize::from(direction)];
        Sealer::new(self.which, self.secret(direction), number).expect("invariant: a fitting key")
    }

    fn opener(self, direction: u8) -> Opener {
        let number = self.numbers[usize::from(direction)];
        Opener::new(self.which, self.secret(direction), number, self.tickets)
            .expect("invariant: a fitting key")
    }

    /// The other end, which has the other implementation.
    fn other(self) -> Self {
        let which = match self.which {
            Implementation::AwsLc => Implementation::Ring,
            Implementation::Ring => Implementation::AwsLc,
        };
        Self { which, ..self }
    }
}

const THERE: u8 = 0;
const BACK: u8 = 1;

/// What is between the ends.
#[derive(Default)]
struct Wire {
    input: BytesMut,
    /// The size of the next reads, and how many these are.
    cut: usize,
    cuts: usize,
    is_over: bool,
    output: BytesMut,
    /// Bytes that it takes before somebody makes room.
    room: usize,
}

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Wire>>);

impl AsyncRead for Shared {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        out: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let wire = &mut *self.0.borrow_mut();
        assert!(out.remaining() > 0 && out.remaining() <= MOST_READ);
        if wire.input.is_empty() && !wire.is_over {
            return Poll::Pending;
        }
        let mut count = wire.input.len().min(out.remaining());
        if wire.cuts > 0 {
            wire.cuts -= 1;
            count = count.min(wire.cut);
        }
        out.put_slice(&wire.input[..count]);
        wire.input.advance(count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let wire = &mut *self.0.borrow_mut();
        let count = wire.room.min(bytes.len());
        if count == 0 {
            return Poll::Pending;
        }
        wire.room -= count;
        wire.output.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What comes behind the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// Perhaps more.
    Pending,
    Closed,
    Fault(Fault),
    /// The transport ended and nobody had said so.
    Cut,
}

/// The end under test.
struct End {
    stream: RecordStream<Shared>,
    wire: Shared,
    /// Bytes that it heard.
    heard: usize,
    /// The first that was not [`Next::Pending`]: it stays.
    last: Next,
}

impl End {
    fn new(shape: Shape) -> Self {
        let wire = Shared::default();
        let (opener, sealer) = (shape.opener(THERE), shape.sealer(BACK));
        Self {
            stream: RecordStream::new(wire.clone(), opener, sealer),
            wire,
            heard: 0,
            last: Next::Pending,
        }
    }

    /// Bytes for it, the first of them in reads of `cut`.
    fn receives(&self, bytes: &[u8], cut: usize) {
        let wire = &mut *self.wire.0.borrow_mut();
        wire.input.extend_from_slice(bytes);
        (wire.cut, wire.cuts) = (cut.max(1), CUT_READS);
    }

    /// Reads as long as something comes, which is what stands in `said` and no more.
    fn hear(&mut self, said: &[u8]) -> Next {
        let next = loop {
            let mut pieces = VecDeque::new();
            let result = self.stream.poll_read(&mut context(), &mut pieces);
            assert!(self.stream.held() <= MOST_HELD);
            let mut count = 0;
            for piece in &pieces {
                let expected = said.get(self.heard..self.heard + piece.len());
                assert!(!piece.is_empty());
                assert!(expected == Some(&piece[..]), "what nobody has said");
                self.heard += piece.len();
                count += piece.len();
            }
            match result {
                Poll::Ready(Ok(0)) => break Next::Closed,
                Poll::Ready(Ok(more)) => assert_eq!(count, more),
                Poll::Ready(Err(error)) => break Self::fault(&error),
                Poll::Pending => break Next::Pending,
            }
            assert_eq!(self.last, Next::Pending, "bytes behind the end");
            assert!(count > 0);
        };
        assert!(self.last == Next::Pending || self.last == next);
        self.last = next;
        next
    }

    fn fault(error: &io::Error) -> Next {
        if error.kind() == io::ErrorKind::UnexpectedEof {
            return Next::Cut;
        }
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        let fault = error.get_ref().and_then(|inner| inner.downcast_ref());
        Next::Fault(*fault.expect("invariant: only faults are of this kind"))
    }

    /// Lets everything out that it has to say. Answers what that was.
    fn farewell(&mut self, opener: &mut Opener) -> Told {
        self.wire.0.borrow_mut().room = usize::MAX;
        let flushed = self.stream.poll_flush(&mut context());
        assert!(matches!(flushed, Poll::Ready(Ok(()))));
        let mut output = std::mem::take(&mut self.wire.0.borrow_mut().output);
        let mut told = Told::default();
        while told.next == Next::Pending {
            match opener.open(&mut output) {
                Ok(None) => break,
                Ok(Some(Opened::Data(piece))) => told.data.extend_from_slice(&piece),
                // Of what carries nothing it sends new keys only.
                Ok(Some(Opened::Nothing)) => told.updates += 1,
                Ok(Some(Opened::UpdateWanted)) => panic!("it has no need of that"),
                Ok(Some(Opened::Closed)) => told.next = Next::Closed,
                Err(fault) => told.next = Next::Fault(fault),
            }
        }
        assert!(output.is_empty(), "half a record, or one behind the last");
        told
    }
}

/// What the end under test said.
struct Told {
    data: Vec<u8>,
    updates: usize,
    next: Next,
}

impl Default for Told {
    fn default() -> Self {
        Self {
            data: Vec::new(),
            updates: 0,
            next: Next::Pending,
        }
    }
}

/// The alert that belongs to how the end under test fared, if it had not said goodbye before.
fn answer(fared: Next) -> Next {
    match fared {
        Next::Fault(fault) => fault
            .alert()
            .map_or(Next::Pending, |alert| Next::Fault(Fault::Alert(alert))),
        _ => Next::Pending,
    }
}

fn context() -> Context<'static> {
    Context::from_waker(Waker::noop())
}

/// Bytes of a stream from this place on: no two places near each other look the same.
fn pattern(from: usize, length: usize) -> Vec<u8> {
    (from..from + length)
        .map(|i| ((i * 31) ^ (i >> 8)).to_le_bytes()[0])
        .collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// Runs `target` over its inputs, and over what is left of each when its end is cut off.
    fn replay(name: &str, target: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../fuzz/corpus")
            .join(name);
        let mut count = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let input = std::fs::read(&path).unwrap();
            for end in [input.len(), input.len() / 2, input.len() / 3] {
                if let Err(panic) = std::panic::catch_unwind(|| target(&input[..end])) {
                    eprintln!("the input is {}, up to {end}", path.display());
                    std::panic::resume_unwind(panic);
                }
            }
            count += 1;
        }
        assert!(count > 10, "{name}: {count}");
    }

    #[test]
    fn hostile_records_of_the_corpus_are_stood() {
        replay("hostile_records", hostile_records);
    }

    #[test]
    fn tampered_records_of_the_corpus_are_noticed() {
        replay("tampered_records", tampered_records);
    }

    /// Inputs that no fuzzer has chosen, so that a corpus that has grown stale does not hide much.
    #[test]
    fn the_targets_stand_random_inputs() {
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        for number in 0..1000 {
            let mut input = Vec::new();
            for _ in 0..20 + number % 300 {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                input.push(random.to_le_bytes()[5]);
            }
            for target in [hostile_records, tampered_records] {
                if let Err(panic) = std::panic::catch_unwind(|| target(&input)) {
                    eprintln!("input {number}: {input:?}");
                    std::panic::resume_unwind(panic);
                }
            }
        }
    }
}
