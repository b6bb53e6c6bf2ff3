//! Where a chunked body ends, and whether its framing is written the one way that all readers agree on. hyper
//! decodes the same bytes; here nothing is decoded, but anything unusual is refused: signs, blanks, bare line
//! feeds, numbers longer than 16 digits, large extensions, trailers that are no trailers.

use super::head::header_line;
use super::refusal::Refusal;

/// Most bytes of the extensions of one body.
const MAX_EXTENSIONS: usize = 4096;
/// Most bytes of the trailers.
const MAX_TRAILERS: usize = 16 * 1024;
const MAX_DIGITS: u8 = 16;

/// Headers that say how a message is framed, routed or who sent it, and so must not come after it.
const NO_TRAILERS: [&[u8]; 14] = [
    b"content-length",
    b"transfer-encoding",
    b"host",
    b"trailer",
    b"te",
    b"connection",
    b"upgrade",
    b"authorization",
    b"cookie",
    b"forwarded",
    b"x-forwarded-for",
    b"x-forwarded-host",
    b"x-forwarded-proto",
    b"expect",
];

/// The state of a body between two pieces of it.
#[derive(Debug)]
pub(super) struct ChunkScan {
    state: State,
    extensions: usize,
    trailers: usize,
    /// The trailer line under way.
    line: Vec<u8>,
}

#[derive(Debug, Clone, Copy)]
enum State {
    Size { value: u64, digits: u8 },
    Extension { size: u64 },
    SizeLf { size: u64 },
    Data { left: u64 },
    DataCr,
    DataLf,
    Trailer,
    TrailerLf,
    Done,
}

const FIRST: State = State::Size {
    value: 0,
    digits: 0,
};

impl ChunkScan {
    pub(super) const fn new() -> Self {
        Self {
            state: FIRST,
            extensions: 0,
            trailers: 0,
            line: Vec::new(),
        }
    }

    /// Whether the body is complete.
    pub(super) const fn is_done(&self) -> bool {
        matches!(self.state, State::Done)
    }

    /// How many of `bytes` belong to the body: all of them, unless it ends before.
    pub(super) fn advance(&mut self, bytes: &[u8]) -> Result<usize, Refusal> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            self.state = match self.state {
                State::Done => break,
                State::Data { left } => {
                    let here = (bytes.len() - at) as u64;
                    let taken = left.min(here);
                    // No more than `here`, which is a usize.
                    at += usize::try_from(taken).unwrap_or(usize::MAX);
                    self.state = if taken == left {
                        State::DataCr
                    } else {
                        State::Data { left: left - taken }
                    };
                    continue;
                }
                state => self.framing(state, byte)?,
            };
            at += 1;
        }
        Ok(at)
    }

    fn framing(&mut self, state: State, byte: u8) -> Result<State, Refusal> {
        Ok(match (state, byte) {
            (State::Size { value, digits }, _) if byte.is_ascii_hexdigit() => {
                let digit = char::from(byte).to_digit(16).unwrap_or_default();
                if digits >= MAX_DIGITS || value >> 58 != 0 {
                    return Err(Refusal::bad("the size of a chunk is too long"));
                }
                State::Size {
                    value: value << 4 | u64::from(digit),
                    digits: digits + 1,
                }
            }
            (State::Size { value, digits: 1.. }, b'\r') => State::SizeLf { size: value },
            (State::Size { value, digits: 1.. }, b';') => State::Extension { size: value },
            (State::Size { .. }, _) => {
                return Err(Refusal::bad("the size of a chunk is not a number"));
            }
            (State::Extension { size }, b'\r') => State::SizeLf { size },
            (State::Extension { size }, b'\t' | 0x20..=0x7e) => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Refusal::bad("the extensions of chunks are too large"));
                }
                State::Extension { size }
            }
            (State::SizeLf { size: 0 }, b'\n') => State::Trailer,
            (State::SizeLf { size }, b'\n') => State::Data { left: size },
            (State::DataCr, b'\r') => State::DataLf,
            (State::DataLf, b'\n') => FIRST,
            (State::Trailer, b'\r') => State::TrailerLf,
            (State::Trailer, b'\t' | 0x20..=0x7e | 0x80..) => {
                self.trailers += 1;
                if self.trailers > MAX_TRAILERS {
                    return Err(Refusal::bad("the trailers are too large"));
                }
                self.line.push(byte);
                State::Trailer
            }
            (State::TrailerLf, b'\n') if self.line.is_empty() => State::Done,
            (State::TrailerLf, b'\n') => {
                let (name, _) = header_line(&self.line)?;
                if NO_TRAILERS.iter().any(|no| name.eq_ignore_ascii_case(no)) {
                    return Err(Refusal::bad("a trailer that must be a header"));
                }
                self.line.clear();
                State::Trailer
            }
            _ => return Err(Refusal::bad("the framing of a chunk is broken")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(body: &[u8]) -> Result<(usize, bool), Refusal> {
        let mut scan = ChunkScan::new();
        let whole = scan.advance(body).map(|n| (n, scan.is_done()));
        let mut scan = ChunkScan::new();
        let mut taken = 0;
        for byte in body {
            match scan.advance(&[*byte]) {
                Ok(n) => taken += n,
                Err(_) => {
                    assert!(whole.is_err());
                    return whole;
                }
            }
        }
        assert_eq!(whole, Ok((taken, scan.is_done())));
        whole
    }

    #[test]
    fn the_end_is_found_however_the_bytes_are_cut() {
        assert_eq!(scan(b"0\r\n\r\nGET"), Ok((5, true)));
        assert_eq!(scan(b"3\r\nabc\r\n0\r\n\r\nGET"), Ok((13, true)));
        assert_eq!(
            scan(b"A;x=\"y z\"\r\n0123456789\r\n00\r\nX: y\r\n\r\n"),
            Ok((35, true))
        );
        assert_eq!(scan(b"3\r\nab"), Ok((5, false)));
    }

    #[test]
    fn unusual_framing_is_refused() {
        for body in [
            &b"\r\n"[..],
            b"+3\r\nabc\r\n",
            b"-3\r\n",
            b"0x3\r\n",
            b"1_0\r\n",
            b" 3\r\n",
            b"3 \r\n",
            b"3\t;x\r\n",
            b"3\nabc\n",
            b"3\r\nabcd\r\n",
            b"3\r\nabc\n",
            b"3\rabc",
            b"3;\n",
            b"3;\x00\r\n",
            b"00000000000000003\r\n",
            b"fffffffffffffffff\r\n",
            b"ffffffffffffffff\r\n",
            b"0\r\n X: y\r\n",
            b"0\r\nContent-Length: 3\r\n",
            b"0\r\nX : y\r\n",
            b"0\r\nX\r\n",
            b"0\r\nX: y\n",
            b"0\n\n",
            b"g\r\n",
        ] {
            assert!(scan(body).is_err(), "{:?}", String::from_utf8_lossy(body));
        }
        let mut long = b"1;".to_vec();
        long.resize(MAX_EXTENSIONS + 10, b'x');
        assert!(scan(&long).is_err());
    }
}
