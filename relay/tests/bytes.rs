//! Every byte arrives, in order, once: one stream with much, many streams with some, one stalled among others.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod rig;

use rig::{LIMIT, Rig, fill, pattern, read_all};
use sg_relay::EndReason;
use sg_tunnel_io::code;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::timeout;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn much_goes_both_ways_at_once() {
    const LENGTH: usize = 24 * 1024 * 1024;
    let mut rig = Rig::new().await;
    let pair = rig.connect().await;
    let (up, down) = (pattern(1, LENGTH), pattern(2, LENGTH));
    let (mut user_read, mut user_write) = pair.user.into_split();
    let (mut resource_read, mut resource_write) = pair.resource.into_split();
    let all = async {
        let (mut at_user, mut at_resource) = (Vec::new(), Vec::new());
        let (a, b, c, d) = tokio::join!(
            async {
                user_write.write_all(&up).await?;
                user_write.shutdown().await
            },
            async {
                resource_write.write_all(&down).await?;
                resource_write.shutdown().await
            },
            user_read.read_to_end(&mut at_user),
            resource_read.read_to_end(&mut at_resource),
        );
        for result in [a, b] {
            result.unwrap();
        }
        for result in [c, d] {
            result.unwrap();
        }
        (at_user, at_resource)
    };
    let (at_user, at_resource) = timeout(LIMIT, all).await.unwrap();
    assert!(at_user == down && at_resource == up);
    let ended = rig.node_end().await;
    let length = u64::try_from(LENGTH).unwrap();
    assert_eq!(
        (ended.reason, ended.from_tcp, ended.to_tcp),
        (EndReason::Finished, length, length)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_streams_keep_their_bytes_apart() {
    const STREAMS: u64 = 1000;
    const LENGTH: usize = 20_000;
    sg_runtime::net::raise_nofile_limit().unwrap();
    let mut rig = Rig::new().await;
    let mut tasks = JoinSet::new();
    for number in 0..STREAMS {
        let mut pair = rig.connect().await;
        tasks.spawn(async move {
            let user = async {
                pair.user.write_all(&pattern(number, LENGTH)).await.unwrap();
                pair.user.shutdown().await.unwrap();
                read_all(&mut pair.user).await.0
            };
            let resource = async {
                let (received, _) = read_all(&mut pair.resource).await;
                pair.resource.write_all(&received).await.unwrap();
                pair.resource
                    .write_all(&pattern(number + STREAMS, LENGTH))
                    .await
                    .unwrap();
                pair.resource.shutdown().await.unwrap();
            };
            let (received, ()) = tokio::join!(user, resource);
            let mut expected = pattern(number, LENGTH);
            expected.extend(pattern(number + STREAMS, LENGTH));
            assert!(received == expected, "stream {number}");
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
    for _ in 0..STREAMS {
        assert_eq!(rig.node_end().await.reason, EndReason::Finished);
    }
}

#[tokio::test]
async fn a_reader_that_sleeps_stops_nobody_and_loses_nothing() {
    let mut rig = Rig::new().await;
    let mut stalled = rig.connect().await;
    let written = fill(&mut stalled.user).await;
    let mut other = rig.connect().await;
    for _ in 0..100 {
        other.user.write_all(b"ping").await.unwrap();
        let mut buffer = [0; 4];
        timeout(LIMIT, other.resource.read_exact(&mut buffer))
            .await
            .unwrap()
            .unwrap();
    }
    stalled.user.shutdown().await.unwrap();
    let (received, end) = read_all(&mut stalled.resource).await;
    end.unwrap();
    assert_eq!(received.len(), written);
    assert!(received.iter().all(|byte| *byte == 7));
}

/// What the socket has not taken is with the tunnel, which bounds what it holds on to; the relay has nothing of it.
#[tokio::test]
async fn what_a_stopped_reader_leaves_stays_in_the_stream() {
    let mut rig = Rig::new().await;
    let mut pair = rig.connect().await;
    fill(&mut pair.user).await;
    let report = rig.client.report(1);
    let stream = report.list.first().unwrap();
    pair.end.end(code::DRAINED);
    let ended = rig.client_end().await;
    assert!(stream.unread > 0, "{stream:?}");
    assert_eq!(ended.to_tcp + stream.unread, stream.received);
}
