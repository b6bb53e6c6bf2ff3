//! Compression of one stream's bytes between the two ends of a tunnel.
//!
//! What travels is a sequence of blocks, each of at most [`LONGEST`] bytes before compression:
//!
//! | bytes | |
//! |---|---|
//! | 1 | 0: the bytes as they are, and no compressed block comes after it; 1: compressed |
//! | 3 | length before compression, big-endian, 1 to 65,536 |
//! | 3 | length of what follows; for a block as it is, the same |
//!
//! The compressed contents of all blocks of a direction make up one frame of zstd (window of 128 KiB at
//! most) or of LZ4 (linked blocks of 64 KiB), flushed at the end of each block, so that nothing waits for
//! more. The stream ends between two blocks.
//!
//! A hostile sender can make the receiver work and nothing else: a block that would become longer than it
//! says is refused, the next one is not looked at before the last has left for the socket, and a frame
//! that asks for more memory than the agreed is refused, all with `DECOMPRESS`.
//!
//! Length tells: whoever sees how long the encrypted blocks are, and can put text of his choice beside a
//! secret, learns about the secret. That is why it is off unless asked for.
//!
//! Where to start: [`Grant`] is the permission to compress one stream; `stream` puts it around a tunnel's.

mod block;
mod decoder;
mod encoder;
mod stream;

use std::sync::atomic::{AtomicUsize, Ordering};

use sg_model::Compression;

pub(crate) use stream::Compressed;

/// Most bytes of a block before compression.
pub(crate) const LONGEST: usize = 64 * 1024;
/// Largest window of zstd, as a power of two.
const WINDOW_LOG: u32 = 17;
/// Streams that this process compresses at a time. Each needs up to about 1 MiB while both directions are in use.
const MOST_STREAMS: usize = 1024;

static STREAMS: AtomicUsize = AtomicUsize::new(0);

/// How bytes are compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Codec {
    Zstd,
    Lz4,
}

/// The permission to compress one stream, one of 1,024 at a time.
#[derive(Debug)]
pub struct Grant {
    codec: Codec,
}

impl Grant {
    /// A permission for this compression; `None` for none, or when there are as many as there may be.
    #[must_use]
    pub fn take(compression: Compression) -> Option<Self> {
        Self::take_of(&STREAMS, compression)
    }

    fn take_of(streams: &AtomicUsize, compression: Compression) -> Option<Self> {
        let codec = match compression {
            Compression::None => return None,
            Compression::Zstd => Codec::Zstd,
            Compression::Lz4 => Codec::Lz4,
        };
        let more = |count| (count < MOST_STREAMS).then_some(count + 1);
        streams
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Self { codec })
    }

    /// What was permitted.
    #[must_use]
    pub fn compression(&self) -> Compression {
        match self.codec {
            Codec::Zstd => Compression::Zstd,
            Codec::Lz4 => Compression::Lz4,
        }
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        STREAMS.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What was received is no block, or does not become what it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what was received cannot be decompressed: {0}")]
struct Corrupt(&'static str);

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    use super::decoder::Decoder;
    use super::encoder::Encoder;
    use super::*;

    const CODECS: [Codec; 2] = [Codec::Zstd, Codec::Lz4];

    /// Bytes of which a share is random and the rest repeats.
    fn sample(length: usize, random_per_256: u8, seed: u64) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let words = b"select name, price from articles where ";
        let byte = |index: usize| match next() {
            [by, value, ..] if by < random_per_256 => value,
            _ => words[index % words.len()],
        };
        (0..length).map(byte).collect()
    }

    fn decoded(decoder: &mut Decoder) -> Vec<u8> {
        let mut plain = Vec::new();
        while let Some(piece) = decoder.next().unwrap() {
            assert!(piece.len() <= LONGEST);
            plain.extend_from_slice(&piece);
        }
        plain
    }

    /// What a compressed block with these contents, which says it has `plain` bytes, becomes.
    fn decode_one(codec: Codec, plain: usize, contents: &[u8]) -> Result<Option<Bytes>, Corrupt> {
        let mut wire = block::header(block::COMPRESSED, plain, contents.len()).to_vec();
        wire.extend_from_slice(contents);
        let mut decoder = Decoder::new(codec);
        decoder.push(wire.into());
        decoder.next()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn bytes_arrive_however_they_are_cut(
            zstd in any::<bool>(),
            writes in proptest::collection::vec((1usize..=LONGEST, any::<u8>(), any::<bool>()), 1..12),
            cuts in proptest::collection::vec(1usize..40_000, 1..40),
            seed in any::<u64>(),
        ) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let (mut encoder, mut decoder) = (Encoder::new(codec), Decoder::new(codec));
            let (mut sent, mut received) = (Vec::new(), Vec::new());
            let mut wire = BytesMut::new();
            let mut cuts = cuts.into_iter().cycle();
            for (length, random, deliver) in writes {
                // Short ones are as usual as long ones.
                let length = if random < 100 { length % 300 + 1 } else { length };
                let plain = sample(length, random, seed ^ sent.len() as u64);
                wire.extend_from_slice(&encoder.encode(&plain).unwrap());
                sent.extend_from_slice(&plain);
                if !deliver {
                    continue;
                }
                while !wire.is_empty() {
                    let cut = cuts.next().unwrap_or(1).min(wire.len());
                    decoder.push(wire.split_to(cut).freeze());
                    received.extend(decoded(&mut decoder));
                }
                // Nothing that was written waits for more.
                prop_assert_eq!(received.len(), sent.len());
            }
            decoder.push(wire.split().freeze());
            received.extend(decoded(&mut decoder));
            prop_assert!(received == sent);
            prop_assert!(decoder.is_between_blocks());
        }

        #[test]
        fn damage_is_noticed_or_harmless_and_never_grows(
            zstd in any::<bool>(),
            flips in proptest::collection::vec((any::<u16>(), 0u8..8), 1..6),
            seed in any::<u64>(),
        ) {
            let codec = if zstd { Codec::Zstd } else { Codec::Lz4 };
            let mut encoder = Encoder::new(codec);
            let mut wire = Vec::new();
            for part in 0..4_u64 {
                wire.extend_from_slice(&encoder.encode(&sample(3000, 40, seed ^ part)).unwrap());
            }
            for (at, bit) in flips {
                let at = usize::from(at) % wire.len();
                wire[at] ^= 1 << bit;
            }
            let mut decoder = Decoder::new(codec);
            decoder.push(wire.into());
            let mut total = 0;
            while let Ok(Some(piece)) = decoder.next() {
                prop_assert!(piece.len() <= LONGEST);
                total += piece.len();
            }
            prop_assert!(total <= 1 << 24);
        }
    }

    #[test]
    fn text_becomes_shorter_and_noise_is_left_alone() {
        for codec in CODECS {
            let mut encoder = Encoder::new(codec);
            let text = sample(LONGEST, 8, 1);
            let block = encoder.encode(&text).unwrap();
            assert!(
                block.len() * 3 < text.len() * 2,
                "{codec:?}: {}",
                block.len()
            );
            assert!(encoder.is_compressing());
            for seed in 2..6 {
                encoder.encode(&sample(LONGEST, 255, seed)).unwrap();
            }
            assert!(!encoder.is_compressing(), "{codec:?}");
            let block = encoder.encode(&text).unwrap();
            assert_eq!(block.len(), text.len() + block::HEADER);
        }
    }

    #[test]
    fn small_writes_profit_from_what_went_before() {
        for codec in CODECS {
            let mut encoder = Encoder::new(codec);
            let line = b"INSERT INTO measurements (machine, sensor, value) VALUES (17, 'temperature', 36.6)";
            let first = encoder.encode(line).unwrap().len();
            let second = encoder.encode(line).unwrap().len();
            assert!(second * 2 < first, "{codec:?}: {first}, then {second}");
        }
    }

    #[test]
    fn neither_the_beginning_of_a_block_nor_the_time_between_two_holds_on_to_a_buffer() {
        for codec in CODECS {
            let plain = sample(3000, 40, 1);
            let wire = Encoder::new(codec).encode(&plain).unwrap();
            let mut decoder = Decoder::new(codec);
            let (last, beginning) = wire.split_last().unwrap();
            for byte in beginning {
                let buffer = Bytes::from(vec![*byte; 4096]);
                decoder.push(buffer.slice(..1));
                assert!(decoder.next().unwrap().is_none());
                assert!(buffer.is_unique());
            }
            assert!(!decoder.is_between_blocks());
            decoder.push(vec![*last].into());
            assert_eq!(decoder.next().unwrap().unwrap(), plain);
            assert!(decoder.is_between_blocks());

            let mut buffer = wire.to_vec();
            buffer.resize(64 * 1024, 0);
            let buffer = Bytes::from(buffer);
            let mut decoder = Decoder::new(codec);
            decoder.push(buffer.slice(..wire.len()));
            assert_eq!(decoder.next().unwrap().unwrap(), plain);
            assert!(buffer.is_unique(), "{codec:?}");
        }
    }

    #[test]
    fn a_block_that_becomes_more_than_it_says_is_refused() {
        // 1 MiB of zeros, as one block that says it has 64 KiB.
        let bomb = zstd::stream::encode_all(&vec![0; 1 << 20][..], 1).unwrap();
        assert!(decode_one(Codec::Zstd, LONGEST, &bomb).is_err());
    }

    #[test]
    fn a_window_larger_than_agreed_is_refused() {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(20).unwrap();
        std::io::Write::write_all(&mut encoder, &sample(LONGEST, 30, 9)).unwrap();
        std::io::Write::flush(&mut encoder).unwrap();
        assert!(decode_one(Codec::Zstd, LONGEST, encoder.get_ref()).is_err());

        use lz4_flex::frame::{BlockMode, BlockSize, FrameEncoder, FrameInfo};
        let info = FrameInfo::new()
            .block_mode(BlockMode::Linked)
            .block_size(BlockSize::Max4MB);
        let mut encoder = FrameEncoder::with_frame_info(info, Vec::new());
        std::io::Write::write_all(&mut encoder, b"small").unwrap();
        std::io::Write::flush(&mut encoder).unwrap();
        assert!(decode_one(Codec::Lz4, 5, encoder.get_ref()).is_err());
    }

    #[test]
    fn what_is_no_block_is_refused() {
        let refused = |bytes: &[u8]| {
            let mut decoder = Decoder::new(Codec::Lz4);
            decoder.push(Bytes::copy_from_slice(bytes));
            // Until it wants more.
            loop {
                match decoder.next() {
                    Err(_) => return true,
                    Ok(None) => return false,
                    Ok(Some(_)) => {}
                }
            }
        };
        assert!(refused(&[2, 0, 0, 1, 0, 0, 1, 0]), "an unknown kind");
        assert!(refused(&[0, 0, 0, 0, 0, 0, 0]), "an empty block");
        assert!(refused(&[0, 1, 0, 1, 1, 0, 1]), "too long");
        assert!(
            refused(&[0, 0, 0, 2, 0, 0, 1]),
            "two lengths for the same bytes"
        );
        assert!(
            refused(&[1, 0, 0, 1, 2, 0, 0]),
            "longer than compression makes it"
        );
        assert!(
            refused(&[0, 0, 0, 1, 0, 0, 1, 7, 1, 0, 0, 1, 0, 0, 1, 7]),
            "compressed after stored"
        );
        assert!(!refused(&[0, 0, 0, 1, 0, 0, 1, 7]));
    }

    #[test]
    fn permissions_are_counted() {
        let streams = AtomicUsize::new(MOST_STREAMS - 1);
        assert!(Grant::take_of(&streams, Compression::None).is_none());
        let last = Grant::take_of(&streams, Compression::Zstd).unwrap();
        assert!(Grant::take_of(&streams, Compression::Lz4).is_none());
        // It was never counted in the process' own count, from which dropping it would take it.
        std::mem::forget(last);
    }
}
