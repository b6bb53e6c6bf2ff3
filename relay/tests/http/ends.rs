//! How one side's end is seen at the other, and what ends a connection from outside.

use std::time::{Duration, Instant};

use sg_relay::EndReason;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::rig::{Chain, Setup, read_to_end, read_until};

const BOUND: Duration = Duration::from_secs(2);

#[tokio::test]
async fn a_user_who_resets_an_upload_resets_the_resource() {
    for framing in ["Content-Length: 1000000", "Transfer-Encoding: chunked"] {
        // While the resource reads, and while it does not.
        for reads in [true, false] {
            let mut chain = Chain::http1();
            chain
                .send(format!(
                    "POST / HTTP/1.1\r\nHost: a\r\n{framing}\r\n\r\n5\r\nhello\r\n"
                ))
                .await;
            let mut resource = chain.resource().await;
            read_until(&mut resource, "hello").await;
            let reader = reads.then(|| {
                tokio::spawn(async move { (read_to_end(&mut resource).await, Instant::now()) })
            });
            let reset = Instant::now();
            chain.user.reset(0x101);
            if let Some(reader) = reader {
                let (end, at) = reader.await.unwrap();
                assert!(end.is_err(), "a clean end of half a body");
                assert!(at - reset < BOUND);
            }
            let reason = tokio::time::timeout(BOUND, chain.served)
                .await
                .unwrap()
                .unwrap();
            assert_eq!(reason, EndReason::StreamReset(0x101));
        }
    }
}

#[tokio::test]
async fn a_user_who_resets_a_stopped_upload_frees_the_resource() {
    let mut chain = Chain::http1();
    chain
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
        .await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    // Fills all there is between the two, while the resource reads nothing.
    let piece = vec![0; 1 << 20];
    let filled =
        tokio::time::timeout(Duration::from_millis(300), chain.user.write_all(&piece)).await;
    assert!(filled.is_err(), "a megabyte found room");
    let reset = Instant::now();
    chain.user.reset(0x101);
    assert!(read_to_end(&mut resource).await.is_err());
    assert!(reset.elapsed() < BOUND);
}

#[tokio::test]
async fn a_user_who_just_closes_in_an_upload_ends_the_resource() {
    let mut chain = Chain::http1();
    chain
        .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\nhello")
        .await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "hello").await;
    let closed = Instant::now();
    chain.user.shutdown().await.unwrap();
    assert!(
        read_to_end(&mut resource).await.is_err(),
        "a clean end of half a body"
    );
    assert!(closed.elapsed() < BOUND);
}

#[tokio::test]
async fn a_user_who_leaves_while_it_waits_frees_the_resource() {
    for stage in ["before the answer", "in the answer"] {
        for clean in [true, false] {
            let mut chain = Chain::http1();
            chain.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n").await;
            let mut resource = chain.resource().await;
            read_until(&mut resource, "\r\n\r\n").await;
            if stage == "in the answer" {
                resource
                    .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nsome")
                    .await
                    .unwrap();
                read_until(&mut chain.user, "some").await;
            }
            let left = Instant::now();
            if clean {
                chain.user.shutdown().await.unwrap();
            } else {
                chain.user.reset(0x101);
            }
            assert!(
                read_to_end(&mut resource).await.is_err(),
                "{stage}, clean: {clean}"
            );
            assert!(
                left.elapsed() < BOUND,
                "{stage}, clean: {clean}: {:?}",
                left.elapsed()
            );
        }
    }
}

#[tokio::test]
async fn a_half_closed_user_is_served_while_bytes_come() {
    let mut chain = Chain::http1();
    chain.send("GET /slow HTTP/1.1\r\nHost: a\r\n\r\n").await;
    chain.user.shutdown().await.unwrap();
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_millis(600)).await;
        resource.write_all(b"x").await.unwrap();
    }
    let answer = read_to_end(&mut chain.user).await.unwrap();
    assert!(answer.ends_with("\r\n\r\nxxxx"), "{answer}");
    assert_eq!(chain.ended().await, EndReason::Finished);
}

#[tokio::test]
async fn a_resource_that_dies_in_its_answer_resets_the_user() {
    for answer in [
        "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n",
        "HTTP/1.1 200 OK\r\n\r\nhalf",
    ] {
        for version in ["1.1", "1.0"] {
            let mut chain = Chain::http1();
            chain
                .send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"))
                .await;
            let mut resource = chain.resource().await;
            read_until(&mut resource, "\r\n\r\n").await;
            resource.write_all(answer.as_bytes()).await.unwrap();
            read_until(&mut chain.user, "half").await;
            let died = Instant::now();
            resource.reset(0x101);
            let end = read_to_end(&mut chain.user).await;
            assert!(
                end.is_err(),
                "{answer:?} to {version}: a clean end: {end:?}"
            );
            assert!(died.elapsed() < BOUND);
            assert_eq!(chain.served.await.unwrap(), EndReason::StreamReset(0x101));
        }
    }
    // A body of known length that just ends is not whole either.
    let mut chain = Chain::http1();
    chain.send("GET / HTTP/1.0\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf")
        .await
        .unwrap();
    resource.shutdown().await.unwrap();
    assert!(read_to_end(&mut chain.user).await.is_err());
}

#[tokio::test]
async fn a_resource_that_dies_before_its_answer_is_a_502() {
    for clean in [true, false] {
        let mut chain = Chain::http1();
        chain
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
            .await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, "\r\n\r\nx").await;
        let word = if clean {
            resource.shutdown().await.unwrap();
            "peer-closed"
        } else {
            resource.reset(0x101);
            "peer-reset"
        };
        let answer = read_until(&mut chain.user, &format!("\r\n\r\n{word}: ")).await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_http_is_a_502() {
    for bytes in [
        "SSH-2.0-OpenSSH\r\n",
        "HTTP/1.1 200 OK\r\nX Y: z\r\n\r\n",
        "HTTP/1.1 2000 OK\r\n\r\n",
    ] {
        let mut chain = Chain::http1();
        chain
            .send("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n")
            .await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, "\r\n\r\n").await;
        resource.write_all(bytes.as_bytes()).await.unwrap();
        let answer = read_until(&mut chain.user, "\r\n\r\nbad-answer: ").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    }
}

#[tokio::test]
async fn an_idle_connection_ends_and_whoever_waits_is_told() {
    let idle = || Setup {
        idle: Some(Duration::from_millis(300)),
        ..Setup::default()
    };
    let mut chain = idle().start();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    let answer = read_to_end(&mut chain.user).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 504 "), "{answer}");
    assert!(answer.contains("idle-timeout"), "{answer}");
    let mut piece = [0; 10];
    assert!(matches!(resource.read(&mut piece).await, Ok(0) | Err(_)));
    drop(chain.user);
    assert_eq!(chain.served.await.unwrap(), EndReason::IdleTimeout);

    // Between requests it just ends.
    let mut chain = idle().start();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    let answer = read_to_end(&mut chain.user).await.unwrap();
    assert!(answer.ends_with("\r\n\r\n"), "{answer}");
    drop(chain.user);
    assert_eq!(chain.served.await.unwrap(), EndReason::IdleTimeout);
}

#[tokio::test]
async fn a_drain_ends_the_connection_after_the_answer_under_way() {
    let mut chain = Chain::http1();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    chain.world.drain.cancel();
    tokio::time::sleep(Duration::from_millis(100)).await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nlast")
        .await
        .unwrap();
    let answer = read_to_end(&mut chain.user).await.unwrap();
    assert!(answer.ends_with("last"), "{answer}");
    assert!(
        answer.to_lowercase().contains("connection: close\r\n"),
        "{answer}"
    );
    drop(chain.user);
    assert_eq!(chain.served.await.unwrap(), EndReason::Finished);
}

#[tokio::test]
async fn a_head_that_does_not_end_is_given_up() {
    let slow = || Setup {
        head: Duration::from_millis(300),
        ..Setup::default()
    };
    let mut chain = slow().start();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\nX: ").await;
    let answer = read_to_end(&mut chain.user).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    // Nothing at all: no answer either.
    let mut chain = slow().start();
    assert_eq!(read_to_end(&mut chain.user).await.unwrap(), "");
}
