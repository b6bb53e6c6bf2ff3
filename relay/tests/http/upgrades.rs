//! Connections that change their protocol, as WebSocket does.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::pipe::Pipe;
use crate::rig::{Chain, read_to_end, read_until};

const REQUEST: &str = "GET /ws HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\
                       Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const AGREED: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                        Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

async fn upgraded() -> (Chain, Pipe) {
    let mut chain = Chain::http1();
    chain.send(REQUEST).await;
    let mut resource = chain.resource().await;
    let head = read_until(&mut resource, "\r\n\r\n").await.to_lowercase();
    assert!(head.contains("connection: upgrade\r\n"), "{head}");
    assert!(head.contains("upgrade: websocket\r\n"), "{head}");
    assert!(
        head.contains("sec-websocket-key: dghlihnhbxbszsbub25jzq==\r\n"),
        "{head}"
    );
    resource.write_all(AGREED).await.unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await.to_lowercase();
    assert!(answer.starts_with("http/1.1 101 "), "{answer}");
    assert!(answer.contains("upgrade: websocket\r\n"), "{answer}");
    assert!(
        answer.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"),
        "{answer}"
    );
    (chain, resource)
}

#[tokio::test]
async fn thousands_of_messages_are_echoed_and_each_direction_ends_by_itself() {
    let (mut chain, mut resource) = upgraded().await;
    let echoes = tokio::spawn(async move {
        let mut piece = [0; 1024];
        loop {
            let count = resource.read(&mut piece).await.unwrap();
            if count == 0 {
                break;
            }
            resource.write_all(&piece[..count]).await.unwrap();
        }
        // The user has ended; this direction still goes.
        resource.write_all(b"goodbye").await.unwrap();
        resource.shutdown().await.unwrap();
        resource
    });
    for n in 0..5_000_u32 {
        let message = format!("message {n}\0\r\n\r\n");
        chain.send(&message).await;
        let mut echo = vec![0; message.len()];
        chain.user.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, message.as_bytes());
    }
    chain.user.shutdown().await.unwrap();
    assert_eq!(read_to_end(&mut chain.user).await.unwrap(), "goodbye");
    let _resource = echoes.await.unwrap();
    assert_eq!(chain.ended().await, sg_relay::EndReason::Finished);
}

#[tokio::test]
async fn bytes_after_the_request_wait_for_the_101_and_are_a_request_without_it() {
    let mut chain = Chain::http1();
    chain
        .send(format!("{REQUEST}GET /early HTTP/1.1\r\nHost: a\r\n\r\n"))
        .await;
    let mut resource = chain.resource().await;
    let head = read_until(&mut resource, "\r\n\r\n").await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    let mut byte = [0; 1];
    let early = timeout(Duration::from_millis(200), resource.read(&mut byte)).await;
    assert!(early.is_err(), "bytes before the 101");
    // Refused: then it was the next request, and it is read as one.
    resource
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nno")
        .await
        .unwrap();
    read_until(&mut chain.user, "\r\n\r\nno").await;
    let next = read_until(&mut resource, "\r\n\r\n").await;
    assert!(next.starts_with("GET /early HTTP/1.1\r\n"), "{next}");
    assert!(next.contains("resource.test:8080"), "{next}");

    let mut chain = Chain::http1();
    chain.send(format!("{REQUEST}early")).await;
    let mut resource = chain.resource().await;
    let head = read_until(&mut resource, "\r\n\r\n").await;
    assert!(head.ends_with("\r\n\r\n"), "{head}");
    resource.write_all(AGREED).await.unwrap();
    read_until(&mut resource, "early").await;
}

#[tokio::test]
async fn resets_pass_after_an_upgrade() {
    let (chain, mut resource) = upgraded().await;
    chain.user.reset(0x101);
    assert!(read_to_end(&mut resource).await.is_err());

    let (mut chain, resource) = upgraded().await;
    resource.reset(0x101);
    assert!(read_to_end(&mut chain.user).await.is_err());
}

#[tokio::test]
async fn a_101_that_nobody_asked_for_is_no_answer() {
    let mut chain = Chain::http1();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource.write_all(AGREED).await.unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}
