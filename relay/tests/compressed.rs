//! A compressed stream behaves as one that is not: the same bytes, the same ends; and whoever sends what
//! cannot be opened costs nobody memory.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod rig;

use bytes::Bytes;
use rig::{LIMIT, Rig, pattern, read_all};
use sg_model::Compression;
use sg_relay::EndReason;
use sg_tunnel_io::{StreamError, TunnelStream, code};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const CODECS: [Compression; 2] = [Compression::Zstd, Compression::Lz4];

/// Half noise, half text.
fn mixed(seed: u64, length: usize) -> Vec<u8> {
    let mut bytes = pattern(seed, length);
    for (index, byte) in bytes.iter_mut().enumerate() {
        if index / 10_000 % 2 == 0 {
            *byte = b"the quick brown fox "[index % 20];
        }
    }
    bytes
}

#[tokio::test]
async fn bytes_and_half_closes_are_the_same() {
    for codec in CODECS {
        let mut rig = Rig::compressing(codec).await;
        let mut pair = rig.connect().await;
        let (question, answer) = (mixed(1, 700_000), mixed(2, 900_000));
        // Each piece arrives before the next one is written: nothing waits for more.
        for piece in [&b"a"[..], b"few", b"small pieces"] {
            pair.user.write_all(piece).await.unwrap();
            let mut received = vec![0; piece.len()];
            let read = pair.resource.read_exact(&mut received);
            timeout(LIMIT, read).await.unwrap().unwrap();
            assert_eq!(received, piece);
        }
        let (mut user, mut resource) = (pair.user, pair.resource);
        let send = async {
            user.write_all(&question).await.unwrap();
            user.shutdown().await.unwrap();
        };
        let ((received, end), ()) = tokio::join!(read_all(&mut resource), send);
        end.unwrap();
        assert!(received == question, "{codec}");
        let send = async {
            resource.write_all(&answer).await.unwrap();
            resource.shutdown().await.unwrap();
        };
        let ((received, end), ()) = tokio::join!(read_all(&mut user), send);
        end.unwrap();
        assert!(received == answer, "{codec}");
        let ended = rig.node_end().await;
        assert_eq!(
            (ended.reason, ended.from_tcp, ended.to_tcp),
            (EndReason::Finished, 700_016, 900_000),
            "bytes are counted as the user sees them"
        );
        assert_eq!(rig.client_end().await.reason, EndReason::Finished);
    }
}

#[tokio::test]
async fn a_reset_is_passed_on_at_once() {
    for codec in CODECS {
        let mut rig = Rig::compressing(codec).await;
        let mut pair = rig.connect().await;
        pair.user.write_all(&mixed(3, 100_000)).await.unwrap();
        pair.resource.read_exact(&mut [0; 1000]).await.unwrap();
        pair.user.set_zero_linger().unwrap();
        drop(pair.user);
        let (_, result) = read_all(&mut pair.resource).await;
        assert!(result.is_err(), "a reset, not an end");
        assert_eq!(rig.node_end().await.reason, EndReason::TcpReset);
    }
}

/// A stream whose sender is the test itself, and the resource at its end.
async fn by_hand(rig: &mut Rig) -> (TunnelStream, TcpStream) {
    timeout(LIMIT, rig.open_raw()).await.unwrap()
}

async fn refused(codec: Compression, content: &[u8], finish: bool) {
    let mut rig = Rig::compressing(codec).await;
    let (mut stream, mut resource) = by_hand(&mut rig).await;
    stream
        .write_chunk(Bytes::copy_from_slice(content))
        .await
        .unwrap();
    if finish {
        stream.finish().unwrap();
    }
    let reset = std::future::poll_fn(|cx| stream.poll_reset(cx));
    let reset = timeout(LIMIT, reset).await.unwrap();
    assert_eq!(
        reset,
        StreamError::Reset {
            code: code::DECOMPRESS
        }
    );
    assert!(
        read_all(&mut resource).await.1.is_err(),
        "a reset, not an end"
    );
    let ended = rig.client_end().await;
    assert_eq!(ended.reason, EndReason::Ended(code::DECOMPRESS));
    assert_eq!(ended.reason.as_str(), "decompress");
}

#[tokio::test]
async fn what_cannot_be_opened_ends_the_stream_with_its_reason() {
    for codec in CODECS {
        refused(codec, b"plain text is no block", false).await;
        refused(codec, &[1, 0, 0, 4, 0, 0, 4, 9, 9, 9, 9], false).await;
        // An end within a block.
        refused(codec, &[0, 0, 0, 4, 0, 0, 4, 9, 9], true).await;
    }
}

/// Memory that this process has, in bytes.
#[cfg(target_os = "linux")]
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split_whitespace()
        .nth(1)
        .unwrap()
        .parse::<usize>()
        .unwrap()
        * 4096
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_gibibyte_of_zeros_costs_time_and_no_memory() {
    use std::io::Write as _;

    const BLOCK: usize = 64 * 1024;
    const BLOCKS: usize = (1 << 30) / BLOCK;
    let mut rig = Rig::compressing(Compression::Zstd).await;
    let (mut stream, mut resource) = by_hand(&mut rig).await;
    let before = resident();
    let sends = async {
        let mut encoder = zstd::stream::Encoder::new(Vec::new(), 1).unwrap();
        encoder.window_log(17).unwrap();
        let zeros = vec![0; BLOCK];
        for _ in 0..BLOCKS {
            encoder.write_all(&zeros).unwrap();
            encoder.flush().unwrap();
            let content = std::mem::take(encoder.get_mut());
            let length = u8::try_from(content.len()).unwrap();
            let mut block = vec![1, 1, 0, 0, 0, 0, length];
            block.extend_from_slice(&content);
            stream.write_chunk(block.into()).await.unwrap();
        }
        stream.finish().unwrap();
    };
    let reads = async {
        let mut buffer = vec![1; 1 << 20];
        let (mut total, mut most) = (0, 0);
        loop {
            let count = resource.read(&mut buffer).await.unwrap();
            if count == 0 {
                return (total, most);
            }
            assert!(buffer[..count].iter().all(|byte| *byte == 0));
            total += count;
            most = resident().max(most);
        }
    };
    let ((), (total, most)) = timeout(LIMIT * 3, async { tokio::join!(sends, reads) })
        .await
        .unwrap();
    assert_eq!(total, 1 << 30);
    let grown = most.saturating_sub(before);
    assert!(grown < 48 << 20, "{} MiB more than before", grown >> 20);
}
