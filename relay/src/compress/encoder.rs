//! Bytes → blocks. Gives up where it gains nothing.

use std::io::{self, Write as _};

use bytes::Bytes;
use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
use zstd::stream::raw::{CParameter, Encoder as ZstdEncoder, InBuffer, Operation as _, OutBuffer};

use super::block::{self, HEADER};
use super::{Codec, LONGEST, WINDOW_LOG};

/// The fastest that still gains much.
const ZSTD_LEVEL: i32 = 1;
/// Bytes after which it is looked at what compression has gained.
const TRIAL: usize = 64 * 1024;
/// Percentage of a trial below which it gains enough.
const ENOUGH: usize = 95;

/// One direction of a stream, at its sender.
pub(super) struct Encoder {
    codec: Codec,
    state: State,
    /// Bytes of the present trial, before and after.
    trial: (usize, usize),
}

enum State {
    /// Nothing was sent yet, so nothing is kept.
    Fresh,
    Zstd(ZstdEncoder<'static>),
    Lz4(Box<FrameEncoder<Vec<u8>>>),
    /// It gained too little.
    Off,
}

impl Encoder {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            state: State::Fresh,
            trial: (0, 0),
        }
    }

    /// One block of 1 to [`LONGEST`] bytes.
    ///
    /// # Errors
    /// The library failed, as for want of memory.
    pub(super) fn encode(&mut self, plain: &[u8]) -> io::Result<Bytes> {
        debug_assert!(
            (1..=LONGEST).contains(&plain.len()),
            "a block of a possible length"
        );
        if matches!(self.state, State::Fresh) {
            self.state = State::start(self.codec)?;
        }
        let mut out = vec![0; HEADER];
        match &mut self.state {
            State::Fresh | State::Off => {
                out.extend_from_slice(plain);
                return Ok(finish(out, block::STORED, plain.len()));
            }
            State::Zstd(encoder) => zstd_block(encoder, plain, &mut out)?,
            State::Lz4(encoder) => {
                *encoder.get_mut() = out;
                encoder.write_all(plain)?;
                encoder.flush()?;
                out = std::mem::take(encoder.get_mut());
            }
        }
        let block = finish(out, block::COMPRESSED, plain.len());
        self.judge(plain.len(), block.len());
        Ok(block)
    }

    /// Stops compressing when the last [`TRIAL`] bytes gained too little.
    fn judge(&mut self, before: usize, after: usize) {
        self.trial.0 += before;
        self.trial.1 += after;
        if self.trial.0 < TRIAL {
            return;
        }
        let (before, after) = std::mem::take(&mut self.trial);
        if after * 100 > before * ENOUGH {
            self.state = State::Off;
        }
    }

    #[cfg(test)]
    pub(super) fn is_compressing(&self) -> bool {
        !matches!(self.state, State::Off)
    }
}

impl State {
    fn start(codec: Codec) -> io::Result<Self> {
        Ok(match codec {
            Codec::Zstd => {
                let mut encoder = ZstdEncoder::new(ZSTD_LEVEL)?;
                encoder.set_parameter(CParameter::WindowLog(WINDOW_LOG))?;
                Self::Zstd(encoder)
            }
            Codec::Lz4 => {
                let info = FrameInfo::new()
                    .block_mode(BlockMode::Linked)
                    .block_size(BlockSize::Max64KB);
                Self::Lz4(Box::new(FrameEncoder::with_frame_info(info, Vec::new())))
            }
        })
    }
}

/// Appends what `plain` becomes.
fn zstd_block(
    encoder: &mut ZstdEncoder<'static>,
    plain: &[u8],
    out: &mut Vec<u8>,
) -> io::Result<()> {
    // Room for the worst case at first, then for the rest, should there be one.
    out.reserve(plain.len() + plain.len() / 128 + 512);
    let mut input = InBuffer::around(plain);
    loop {
        let start = out.len();
        let mut output = OutBuffer::around_pos(out, start);
        if input.pos < plain.len() {
            encoder.run(&mut input, &mut output)?;
        } else if encoder.flush(&mut output)? == 0 {
            return Ok(());
        }
        if out.capacity() - out.len() < 512 {
            out.reserve(4096);
        }
    }
}

fn finish(mut out: Vec<u8>, kind: u8, plain: usize) -> Bytes {
    let length = out.len() - HEADER;
    out[..HEADER].copy_from_slice(&block::header(kind, plain, length));
    // A small block must not keep the room for a large one.
    if out.capacity() > 2 * out.len() {
        out.shrink_to_fit();
    }
    out.into()
}
