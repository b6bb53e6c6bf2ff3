//! Bodies: framed anew, streamed, in order, with what comes before and after them.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::rig::{Chain, SOON, echo_heads, read_to_end, read_until};

#[tokio::test]
async fn requests_of_one_connection_are_answered_in_order_over_one_stream_and_one_connection() {
    let mut chain = Chain::http1();
    let world = chain.world.clone();
    let mut resources = chain.resources;
    let serves = tokio::spawn(async move { echo_heads(resources.recv().await.unwrap()).await });
    let pipelined: String = (0..50)
        .map(|n| format!("GET /n{n}. HTTP/1.1\r\nHost: a\r\n\r\n"))
        .collect();
    chain.user.write_all(pipelined.as_bytes()).await.unwrap();
    let answers = read_until(&mut chain.user, "GET /n49. ").await;
    let mut from = 0;
    for n in 0..50 {
        let at = answers[from..]
            .find(&format!("GET /n{n}. "))
            .expect("in order");
        from += at;
    }
    // And after a pause.
    tokio::task::yield_now().await;
    chain
        .user
        .write_all(b"GET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut chain.user, "GET /later ").await;
    assert_eq!(world.streams.load(Ordering::Relaxed), 1);
    assert_eq!(world.connections.load(Ordering::Relaxed), 1);
    serves.abort();
}

#[tokio::test]
async fn chunks_and_trailers_pass_both_ways() {
    for asks in ["", "TE: trailers\r\n"] {
        let mut chain = Chain::http1();
        chain
            .send(format!(
                "POST /c HTTP/1.1\r\nHost: a\r\n{asks}Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n\
                 5;ext=1\r\nhello\r\n6\r\n world\r\n0\r\nX-Sum: abc\r\n\r\n"
            ))
            .await;
        let mut resource = chain.resource().await;
        let request = read_until(&mut resource, "abc\r\n\r\n")
            .await
            .to_lowercase();
        assert!(
            request.contains("transfer-encoding: chunked\r\n"),
            "{request}"
        );
        assert!(request.contains("x-sum: abc\r\n\r\n"), "{request}");
        assert!(!request.contains("ext=1"), "{request}");
        assert!(
            request.contains("hello") && request.contains(" world"),
            "{request}"
        );
        assert_eq!(
            request.contains("te: trailers"),
            !asks.is_empty(),
            "{request}"
        );
        resource
            .write_all(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Done\r\n\r\n\
                  3\r\nabc\r\n0\r\nX-Done: yes\r\n\r\n",
            )
            .await
            .unwrap();
        let answer = read_until(&mut chain.user, "yes\r\n\r\n")
            .await
            .to_lowercase();
        assert!(
            answer.contains("transfer-encoding: chunked\r\n"),
            "{answer}"
        );
        assert!(
            answer.contains("3\r\nabc\r\n0\r\nx-done: yes\r\n\r\n"),
            "{answer}"
        );
        // The connection goes on.
        chain.send("GET /d HTTP/1.1\r\nHost: a\r\n\r\n").await;
        read_until(&mut resource, "GET /d HTTP/1.1\r\n").await;
    }
}

#[tokio::test]
async fn the_100_is_the_resources_own() {
    let mut chain = Chain::http1();
    chain
        .send("POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let mut resource = chain.resource().await;
    let head = read_until(&mut resource, "\r\n\r\n").await.to_lowercase();
    assert!(head.contains("expect: 100-continue\r\n"), "{head}");
    let mut byte = [0];
    let early = timeout(Duration::from_millis(200), chain.user.read(&mut byte)).await;
    assert!(early.is_err(), "something came before the resource said so");
    resource
        .write_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        .await
        .unwrap();
    read_until(&mut chain.user, "HTTP/1.1 100 Continue\r\n\r\n").await;
    chain.send("hello").await;
    read_until(&mut resource, "hello").await;
    resource
        .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 0\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 201 "), "{answer}");
}

#[tokio::test]
async fn a_resource_that_does_not_know_100_gets_the_body_after_a_while() {
    let mut chain = Chain::http1();
    chain
        .send("POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    read_until(&mut chain.user, "HTTP/1.1 100 Continue\r\n\r\n").await;
    chain.send("hello").await;
    read_until(&mut resource, "hello").await;
}

#[tokio::test]
async fn a_resource_may_refuse_instead_of_saying_100() {
    let mut chain = Chain::http1();
    chain
        .send("POST /e HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
        .await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 4\r\n\r\nlock")
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "lock").await;
    assert!(answer.starts_with("HTTP/1.1 401 "), "{answer}");
    assert!(!answer.contains("100 Continue"), "{answer}");
}

#[tokio::test]
async fn head_and_not_modified_keep_their_length_and_have_no_body() {
    let mut chain = Chain::http1();
    let mut resource = {
        chain.send("HEAD /h HTTP/1.1\r\nHost: a\r\n\r\n").await;
        chain.resource().await
    };
    read_until(&mut resource, "HEAD /h HTTP/1.1\r\n").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1234\r\nETag: \"x\"\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(answer.contains("Content-Length: 1234\r\n"), "{answer}");
    chain
        .send("GET /n HTTP/1.1\r\nHost: a\r\nIf-None-Match: \"x\"\r\n\r\n")
        .await;
    let head = read_until(&mut resource, "\r\n\r\n").await;
    assert!(head.contains("If-None-Match: \"x\"\r\n"), "{head}");
    resource
        .write_all(b"HTTP/1.1 304 Not Modified\r\nETag: \"x\"\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 304 "), "{answer}");
    // Still in step.
    chain
        .send("GET /r HTTP/1.1\r\nHost: a\r\nRange: bytes=0-2\r\n\r\n")
        .await;
    read_until(&mut resource, "Range: bytes=0-2\r\n").await;
    resource
        .write_all(
            b"HTTP/1.1 206 Partial Content\r\nContent-Range: bytes 0-2/9\r\nContent-Length: 3\r\n\r\nabc",
        )
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "abc").await;
    assert!(
        answer.contains("Content-Range: bytes 0-2/9\r\n"),
        "{answer}"
    );
}

#[tokio::test]
async fn a_body_that_ends_with_its_connection_is_whole_for_old_and_new_users() {
    for (version, framing) in [("1.1", "transfer-encoding: chunked"), ("1.0", "")] {
        let mut chain = Chain::http1();
        chain
            .send(format!("GET / HTTP/{version}\r\nHost: a\r\n\r\n"))
            .await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, "\r\n\r\n").await;
        resource
            .write_all(b"HTTP/1.0 200 OK\r\nContent-Type: text/plain\r\n\r\nall of it")
            .await
            .unwrap();
        resource.shutdown().await.unwrap();
        if version == "1.0" {
            let answer = read_to_end(&mut chain.user).await.unwrap();
            assert!(answer.ends_with("\r\n\r\nall of it"), "{answer}");
        } else {
            let answer = read_until(&mut chain.user, "\r\n0\r\n\r\n").await;
            assert!(
                answer.contains(framing) && answer.contains("all of it"),
                "{answer}"
            );
        }
    }
}

#[tokio::test]
async fn an_answer_may_come_before_the_request_is_read() {
    let mut chain = Chain::http1();
    chain
        .send("POST /big HTTP/1.1\r\nHost: a\r\nContent-Length: 10000000\r\n\r\n")
        .await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        .await
        .unwrap();
    resource.shutdown().await.unwrap();
    // The user sends on meanwhile, and still gets the answer.
    let answer = read_until(&mut chain.user, "big").await;
    assert!(answer.starts_with("HTTP/1.1 413 "), "{answer}");
}

#[tokio::test]
async fn a_connection_that_the_resource_closed_between_requests_is_opened_again() {
    let mut chain = Chain::http1();
    for n in 0..3 {
        chain
            .send(format!("GET /{n} HTTP/1.1\r\nHost: a\r\n\r\n"))
            .await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, &format!("GET /{n} ")).await;
        resource
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
            .unwrap();
        read_until(&mut chain.user, "\r\n\r\nok").await;
        resource.shutdown().await.unwrap();
    }
    // Closed in the very moment of the next request: a GET may be asked again.
    let mut resource = {
        chain.send("GET /a HTTP/1.1\r\nHost: a\r\n\r\n").await;
        chain.resource().await
    };
    read_until(&mut resource, "GET /a ").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await
        .unwrap();
    read_until(&mut chain.user, "\r\n\r\nok").await;
    chain.send("GET /b HTTP/1.1\r\nHost: a\r\n\r\n").await;
    read_until(&mut resource, "GET /b ").await;
    drop(resource);
    let mut resource = chain.resource().await;
    read_until(&mut resource, "GET /b ").await;
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        .await
        .unwrap();
    read_until(&mut chain.user, "\r\n\r\nok").await;
    // A POST is not: the resource may have done it.
    chain
        .send("POST /c HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx")
        .await;
    read_until(&mut resource, "POST /c ").await;
    resource.reset(0x101);
    let answer = read_until(&mut chain.user, "\r\n\r\npeer-").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
    assert!(chain.resources.try_recv().is_err());
}

#[tokio::test]
async fn a_stream_that_was_lost_between_requests_is_opened_again() {
    let mut chain = Chain::http1();
    for n in 1..4 {
        chain
            .send(format!(
                "POST /{n} HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\n\r\nx"
            ))
            .await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, &format!("POST /{n} ")).await;
        resource
            .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            .await
            .unwrap();
        read_until(&mut chain.user, "\r\n\r\nok").await;
        let end = chain.world.dialling.lock().unwrap().pop().unwrap();
        end.abort();
        assert!(end.await.unwrap_err().is_cancelled());
        assert!(read_to_end(&mut resource).await.is_err());
        assert_eq!(chain.world.streams.load(Ordering::Relaxed), n);
    }
}

/// Memory of this process that is in use.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = status.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

#[tokio::test]
async fn a_gigabyte_passes_each_way_in_little_memory() {
    const LENGTH: usize = 1 << 30;
    let before = resident();
    let started = Instant::now();
    let mut chain = Chain::http1();
    let mut resources = chain.resources;
    let resource = tokio::spawn(async move {
        let mut resource = resources.recv().await.unwrap();
        let head = read_until(&mut resource, "\r\n\r\n").await;
        let early = head.len() - head.find("\r\n\r\n").unwrap() - 4;
        let mut piece = vec![0; 256 * 1024];
        let mut read = early;
        let mut most = 0;
        while read < LENGTH {
            let count = resource.read(&mut piece).await.unwrap();
            assert!(count > 0);
            read += count;
            most = most.max(resident());
        }
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n");
        resource.write_all(answer.as_bytes()).await.unwrap();
        for _ in 0..LENGTH / piece.len() {
            resource.write_all(&piece).await.unwrap();
            most = most.max(resident());
        }
        // Dropped it would be reset, with what it holds.
        (most, resource)
    });
    let head = format!("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: {LENGTH}\r\n\r\n");
    chain.user.write_all(head.as_bytes()).await.unwrap();
    let mut piece = vec![0; 256 * 1024];
    for _ in 0..LENGTH / piece.len() {
        if let Err(error) = chain.user.write_all(&piece).await {
            panic!("{error}: {:?}", chain.served.await);
        }
    }
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    let mut read = answer.len() - answer.find("\r\n\r\n").unwrap() - 4;
    while read < LENGTH {
        let count = timeout(SOON, chain.user.read(&mut piece))
            .await
            .unwrap()
            .unwrap();
        assert!(count > 0);
        read += count;
    }
    assert_eq!(read, LENGTH);
    let (most, _resource) = resource.await.unwrap();
    let most = most.saturating_sub(before);
    assert!(most < 64 << 20, "{} MiB more at the most", most >> 20);
    eprintln!(
        "2 GiB in {:?}, {} KiB more at the most",
        started.elapsed(),
        most >> 10
    );
}
