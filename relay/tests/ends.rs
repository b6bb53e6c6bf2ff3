//! How ends travel through a relay, with real sockets at both ends.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod rig;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use rig::{LIMIT, Rig, fill, pattern, read_all};
use sg_relay::EndReason;
use sg_tunnel_io::code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// A reset must arrive within a second; the rest is for a busy machine.
const PROMPT: Duration = Duration::from_secs(1);

async fn expect_reset(tcp: &mut TcpStream) {
    let started = Instant::now();
    let (_, result) = read_all(tcp).await;
    let kind = result.expect_err("a reset, not an end").kind();
    assert!(
        matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe),
        "{kind:?}"
    );
    assert!(started.elapsed() < PROMPT, "{:?}", started.elapsed());
}

fn reset(tcp: TcpStream) {
    tcp.set_zero_linger().unwrap();
    drop(tcp);
}

#[tokio::test]
async fn the_user_half_closes_and_still_gets_the_answer() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    let (question, answer) = (pattern(1, 300_000), pattern(2, 500_000));
    let user = async {
        pair.user.write_all(&question).await.unwrap();
        pair.user.shutdown().await.unwrap();
        read_all(&mut pair.user).await
    };
    let resource = async {
        let (received, end) = read_all(&mut pair.resource).await;
        end.unwrap();
        assert!(received == question);
        pair.resource.write_all(&answer).await.unwrap();
        pair.resource.shutdown().await.unwrap();
    };
    let ((received, end), ()) = tokio::join!(user, resource);
    end.unwrap();
    assert!(received == answer);
    let ended = rig.node_end().await;
    assert_eq!(
        (ended.reason, ended.from_tcp, ended.to_tcp),
        (EndReason::Finished, 300_000, 500_000)
    );
    assert_eq!(rig.client_end().await.reason, EndReason::Finished);
}

#[tokio::test]
async fn the_resource_half_closes_and_still_gets_the_rest() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    pair.resource.write_all(b"greeting").await.unwrap();
    pair.resource.shutdown().await.unwrap();
    let (greeting, end) = read_all(&mut pair.user).await;
    end.unwrap();
    assert_eq!(greeting, b"greeting");
    pair.user.write_all(&pattern(3, 100_000)).await.unwrap();
    pair.user.shutdown().await.unwrap();
    let (rest, end) = read_all(&mut pair.resource).await;
    end.unwrap();
    assert!(rest == pattern(3, 100_000));
    assert_eq!(rig.node_end().await.reason, EndReason::Finished);
}

#[tokio::test]
async fn a_reset_by_the_user_reaches_the_resource() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    reset(pair.user);
    expect_reset(&mut pair.resource).await;
    assert_eq!(rig.node_end().await.reason, EndReason::TcpReset);
    let reason = rig.client_end().await.reason;
    assert_eq!(reason, EndReason::StreamReset(code::PEER_RESET));
}

#[tokio::test]
async fn a_reset_by_the_resource_reaches_the_user() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    reset(pair.resource);
    expect_reset(&mut pair.user).await;
    assert_eq!(rig.client_end().await.reason, EndReason::TcpReset);
    let reason = rig.node_end().await.reason;
    assert_eq!(reason, EndReason::StreamReset(code::PEER_RESET));
}

#[tokio::test]
async fn a_reset_overtakes_data_that_nobody_reads_from_the_user() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    // The resource reads nothing: all buffers on the way are full, and the relay no longer reads the user.
    let written = fill(&mut pair.user).await;
    assert!(written > 100_000, "{written}");
    reset(pair.user);
    let ended = timeout(PROMPT, rig.node_ends.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.reason, EndReason::TcpReset);
    let ended = timeout(PROMPT, rig.client_ends.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.reason, EndReason::StreamReset(code::PEER_RESET));
    expect_reset(&mut pair.resource).await;
}

#[tokio::test]
async fn a_reset_overtakes_data_that_nobody_reads_from_the_resource() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    fill(&mut pair.resource).await;
    reset(pair.resource);
    let ended = timeout(PROMPT, rig.client_ends.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.reason, EndReason::TcpReset);
    let ended = timeout(PROMPT, rig.node_ends.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.reason, EndReason::StreamReset(code::PEER_RESET));
    expect_reset(&mut pair.user).await;
}

#[tokio::test]
async fn a_reset_with_both_directions_blocked_arrives() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    tokio::join!(fill(&mut pair.user), fill(&mut pair.resource));
    reset(pair.user);
    expect_reset(&mut pair.resource).await;
    assert_eq!(rig.node_end().await.reason, EndReason::TcpReset);
}

#[tokio::test]
async fn a_reset_after_a_half_close_arrives() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    pair.user.write_all(b"x").await.unwrap();
    pair.user.shutdown().await.unwrap();
    let (received, end) = read_all(&mut pair.resource).await;
    end.unwrap();
    assert_eq!(received, b"x");
    // The user has closed its side and goes away for good: what the resource sends next is answered by a reset.
    reset(pair.user);
    let mut ended = None;
    for _ in 0..1000 {
        if pair.resource.write_all(&[1; 1024]).await.is_err() {
            ended = Some(rig.client_end().await.reason);
            break;
        }
        tokio::task::yield_now().await;
        if let Ok(how) = rig.client_ends.try_recv() {
            ended = Some(how.reason);
            break;
        }
    }
    let ended = match ended {
        Some(ended) => ended,
        None => rig.client_end().await.reason,
    };
    assert_eq!(ended, EndReason::StreamReset(code::PEER_RESET));
}

#[tokio::test]
async fn the_loss_of_the_tunnel_resets_both_ends() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    pair.user.write_all(b"x").await.unwrap();
    pair.resource.read_exact(&mut [0; 1]).await.unwrap();
    rig.node.close(code::close::NONE, "");
    expect_reset(&mut pair.user).await;
    expect_reset(&mut pair.resource).await;
    assert_eq!(rig.node_end().await.reason.as_str(), "tunnel-lost");
    assert_eq!(rig.client_end().await.reason.as_str(), "tunnel-lost");
}

#[tokio::test]
async fn whoever_ends_a_stream_from_outside_says_why() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    pair.end.end(code::POLICY_CHANGED);
    expect_reset(&mut pair.user).await;
    expect_reset(&mut pair.resource).await;
    assert_eq!(rig.node_end().await.reason.as_str(), "policy-changed");
    let reason = rig.client_end().await.reason;
    assert_eq!(reason, EndReason::StreamReset(code::POLICY_CHANGED));
}

#[tokio::test]
async fn an_idle_stream_ends_and_a_busy_one_does_not() {
    let mut rig = Rig::new().await;
    rig.idle_timeout = Some(Duration::from_millis(400));
    let mut pair = rig.connect().await;
    let started = Instant::now();
    while started.elapsed() < Duration::from_millis(1000) {
        pair.user.write_all(b"x").await.unwrap();
        let mut byte = [0; 1];
        timeout(LIMIT, pair.resource.read_exact(&mut byte))
            .await
            .unwrap()
            .unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(rig.node_ends.try_recv().is_err(), "it was not idle");
    let (_, result) = read_all(&mut pair.user).await;
    assert_eq!(result.unwrap_err().kind(), ErrorKind::ConnectionReset);
    assert_eq!(rig.node_end().await.reason, EndReason::IdleTimeout);
}

#[tokio::test]
async fn an_aborted_relay_looks_like_a_reset_not_like_an_end() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    pair.user.write_all(b"x").await.unwrap();
    pair.resource.read_exact(&mut [0; 1]).await.unwrap();
    drop(rig);
    expect_reset(&mut pair.user).await;
    expect_reset(&mut pair.resource).await;
}
