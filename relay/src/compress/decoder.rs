//! Blocks → bytes, one block at a time and only when somebody asks for it.

use std::io::{self, Read};

use bytes::{Buf as _, Bytes};
use lz4_flex::frame::FrameDecoder;
use zstd::stream::raw::{DParameter, Decoder as ZstdDecoder, InBuffer, Operation as _, OutBuffer};

use super::block::{Block, HEADER};
use super::{Codec, Corrupt, WINDOW_LOG};

/// How the frames of LZ4 that we send begin: the magic number, the flags (version 1, linked blocks, nothing
/// else), blocks of at most 64 KiB. Others could ask for blocks of many megabytes.
const LZ4_BEGINNING: [u8; 6] = [0x04, 0x22, 0x4d, 0x18, 0x40, 0x40];

/// One direction of a stream, at its receiver.
pub(super) struct Decoder {
    codec: Codec,
    state: State,
    /// Received and not looked at.
    input: Bytes,
    /// The beginning of a header or of a block's contents, copied: what was received may be a few bytes each time,
    /// and hold on to a whole buffer.
    begun: Vec<u8>,
    /// The block whose contents are to come.
    block: Option<Block>,
}

enum State {
    /// Nothing was received yet, so nothing is kept.
    Fresh,
    Zstd(ZstdDecoder<'static>),
    Lz4(Box<FrameDecoder<Contents>>),
    /// The sender has given compression up.
    Off,
}

impl Decoder {
    pub(super) fn new(codec: Codec) -> Self {
        Self {
            codec,
            state: State::Fresh,
            input: Bytes::new(),
            begun: Vec::new(),
            block: None,
        }
    }

    /// Adds received bytes. Without a copy when [`Self::next`] wanted more.
    pub(super) fn push(&mut self, bytes: Bytes) {
        self.input = match self.input.is_empty() {
            true => bytes,
            false => [&self.input[..], &bytes[..]].concat().into(),
        };
    }

    /// Whether a stream may end here.
    pub(super) fn is_between_blocks(&self) -> bool {
        self.input.is_empty() && self.begun.is_empty() && self.block.is_none()
    }

    /// The contents of the next block, at most [`super::LONGEST`] bytes; `None`: more has to be received first.
    ///
    /// # Errors
    /// It is corrupt; nothing can be had from then on.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Corrupt> {
        let block = match self.block {
            Some(block) => block,
            None => {
                let Some(mut bytes) = self.take(HEADER) else {
                    return Ok(None);
                };
                let mut header = [0; HEADER];
                bytes.copy_to_slice(&mut header);
                *self.block.insert(Block::read(header)?)
            }
        };
        let Some(contents) = self.take(block.length) else {
            return Ok(None);
        };
        self.block = None;
        if !block.compressed {
            self.state = State::Off;
            return Ok(Some(contents));
        }
        if matches!(self.state, State::Fresh) {
            self.state = State::start(self.codec, &contents)?;
        }
        let plain = match &mut self.state {
            State::Fresh | State::Off => {
                return Err(Corrupt("a compressed block after one that is not"));
            }
            State::Zstd(decoder) => zstd_block(decoder, &contents, block.plain)?,
            State::Lz4(decoder) => lz4_block(decoder, contents, block.plain)?,
        };
        Ok(Some(plain.into()))
    }

    /// The next `length` received bytes, without copying if they came together; `None`, and no input is left, while there are fewer.
    fn take(&mut self, length: usize) -> Option<Bytes> {
        if self.begun.is_empty() && self.input.len() >= length {
            let taken = self.input.split_to(length);
            self.let_go();
            return Some(taken);
        }
        let more = self.input.len().min(length - self.begun.len());
        self.begun.extend_from_slice(&self.input[..more]);
        self.input.advance(more);
        self.let_go();
        (self.begun.len() == length).then(|| std::mem::take(&mut self.begun).into())
    }

    /// An empty slice keeps its buffer as well.
    fn let_go(&mut self) {
        if self.input.is_empty() {
            self.input = Bytes::new();
        }
    }
}

impl State {
    fn start(codec: Codec, contents: &[u8]) -> Result<Self, Corrupt> {
        let failed = |_: io::Error| Corrupt("there is no memory for it");
        Ok(match codec {
            Codec::Zstd => {
                let mut decoder = ZstdDecoder::new().map_err(failed)?;
                decoder
                    .set_parameter(DParameter::WindowLogMax(WINDOW_LOG))
                    .map_err(failed)?;
                Self::Zstd(decoder)
            }
            Codec::Lz4 if contents.starts_with(&LZ4_BEGINNING) => {
                Self::Lz4(Box::new(FrameDecoder::new(Contents(Bytes::new()))))
            }
            Codec::Lz4 => return Err(Corrupt("a frame of LZ4 that begins differently")),
        })
    }
}

fn zstd_block(
    decoder: &mut ZstdDecoder<'static>,
    contents: &[u8],
    plain: usize,
) -> Result<Vec<u8>, Corrupt> {
    let failed = |_: io::Error| Corrupt("not zstd, or with a larger window than agreed");
    let mut out = vec![0; plain];
    let mut input = InBuffer::around(contents);
    let mut output = OutBuffer::around(&mut out[..]);
    loop {
        let before = (input.pos, output.pos());
        decoder.run(&mut input, &mut output).map_err(failed)?;
        let after = (input.pos, output.pos());
        match after {
            (read, written) if read == contents.len() && written == plain => break,
            _ if after == before => {
                return Err(Corrupt("a block with another length than it says"));
            }
            _ => {}
        }
    }
    // Whatever the decoder still had would be more than the block says.
    let mut more = [0; 1];
    let mut output = OutBuffer::around(&mut more[..]);
    decoder
        .run(&mut InBuffer::around(&[]), &mut output)
        .map_err(failed)?;
    if output.pos() > 0 {
        return Err(Corrupt("a block with another length than it says"));
    }
    Ok(out)
}

fn lz4_block(
    decoder: &mut FrameDecoder<Contents>,
    contents: Bytes,
    plain: usize,
) -> Result<Vec<u8>, Corrupt> {
    let mut out = vec![0; plain];
    decoder.get_mut().0 = contents;
    decoder
        .read_exact(&mut out)
        .map_err(|_| Corrupt("not LZ4, or shorter than it says"))?;
    let rest = decoder.read(&mut [0; 1]).unwrap_or_default();
    // Also what is read to its end holds on to its buffer.
    let unread = std::mem::take(&mut decoder.get_mut().0);
    if rest > 0 || !unread.is_empty() {
        return Err(Corrupt("a block with another length than it says"));
    }
    Ok(out)
}

/// The contents of the present block.
struct Contents(Bytes);

impl Read for Contents {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = buffer.len().min(self.0.len());
        self.0.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
