//! Bytes that can be checked: a fixed, seeded sequence, the same at both ends.

use anyhow::{Context as _, Result, ensure};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// A seeded sequence of bytes (xorshift); not for secrets.
#[derive(Debug, Clone)]
pub struct Sequence(u64);

impl Sequence {
    /// The sequence of this seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        // Zero is the one state that xorshift cannot leave.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next bytes of it.
    pub fn fill(&mut self, buffer: &mut [u8]) {
        for chunk in buffer.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            let word = self.0.to_le_bytes();
            for (to, from) in chunk.iter_mut().zip(word) {
                *to = from;
            }
        }
    }

    /// The next `length` bytes of it.
    #[must_use]
    pub fn take(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.fill(&mut bytes);
        bytes
    }
}

/// How much is written and read at a time.
const CHUNK: usize = 16 * 1024;

/// Writes the first `length` bytes of the sequence of `seed`.
///
/// # Errors
/// The other end does not take them all.
pub async fn send(mut to: impl AsyncWrite + Unpin, seed: u64, length: usize) -> Result<()> {
    let mut sequence = Sequence::new(seed);
    let mut left = length;
    while left > 0 {
        let chunk = sequence.take(left.min(CHUNK));
        to.write_all(&chunk)
            .await
            .with_context(|| format!("writing, {left} bytes left"))?;
        left -= chunk.len();
    }
    Ok(())
}

/// Reads as many bytes and compares each with the sequence of `seed`.
///
/// # Errors
/// One differs, or the stream ends before.
pub async fn expect(mut from: impl AsyncRead + Unpin, seed: u64, length: usize) -> Result<()> {
    let mut sequence = Sequence::new(seed);
    let mut left = length;
    let mut buffer = vec![0; CHUNK];
    while left > 0 {
        let wanted = sequence.take(left.min(CHUNK));
        let got = buffer
            .get_mut(..wanted.len())
            .context("a chunk fits the buffer")?;
        from.read_exact(got)
            .await
            .with_context(|| format!("reading, {left} bytes left"))?;
        ensure!(
            got == wanted.as_slice(),
            "a byte differs within {CHUNK} of {}",
            length - left
        );
        left -= wanted.len();
    }
    Ok(())
}

/// Sends the sequence of `seed` to an echo and checks what comes back, both at the same time.
///
/// # Errors
/// As [`send`] and [`expect`].
pub async fn echo(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    seed: u64,
    length: usize,
) -> Result<()> {
    let (from, to) = tokio::io::split(stream);
    tokio::try_join!(send(to, seed, length), expect(from, seed, length)).map(drop)
}
