//! What a user still gets when the tunnel is closed behind a stream that has ended cleanly.
#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    unreachable_pub,
    dead_code
)]

mod rig;

use std::time::Duration;

use bytes::Bytes;
use rig::{LIMIT, pattern, read_all};
use sg_relay::{EndReason, JoinOptions, join};
use sg_tunnel_io::{Config, Event, Side, code, start};
use socket2::SockRef;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpSocket};
use tokio::time::timeout;

/// The first credit of a stream, so that all of it and the FIN leave at once.
const ANSWER: usize = 60_000;

#[tokio::test]
async fn a_slow_user_gets_the_whole_answer_after_the_close() {
    let (near, far) = tokio::io::duplex(256 * 1024);
    let (node, _node_events, node_driver) = start(near, Side::Node, Config::default());
    let (client, mut events, client_driver) = start(far, Side::Client, Config::default());
    let drivers = [tokio::spawn(node_driver), tokio::spawn(client_driver)];

    // Sockets that hold much less than the answer.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener)
        .set_send_buffer_size(4 * 1024)
        .unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4 * 1024).unwrap();
    let connected = socket.connect(listener.local_addr().unwrap());
    let (user, accepted) = tokio::join!(connected, listener.accept());
    let (mut user, accepted) = (user.unwrap(), accepted.unwrap().0);

    let serve = async {
        let Some(Event::Open(offer)) = events.next().await else {
            panic!("no offer");
        };
        let mut stream = offer.accept();
        stream.write_chunk(pattern(1, ANSWER).into()).await.unwrap();
        stream.finish().unwrap();
        stream
    };
    let (stream, mut served) = tokio::join!(node.open(Bytes::new()), serve);
    let joined = tokio::spawn(join(accepted, stream.unwrap(), JoinOptions::default()));
    user.shutdown().await.unwrap();
    assert_eq!(served.read_chunk().await.unwrap(), None);
    drop(served);
    // All streams have ended for the client, which therefore leaves.
    let left = async {
        while client.active_streams() > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(LIMIT, left).await.unwrap();
    client.close(code::close::NONE, "");
    for driver in drivers {
        timeout(LIMIT, driver).await.unwrap().unwrap();
    }
    assert!(node.is_closed() && !joined.is_finished());

    let (received, end) = read_all(&mut user).await;
    end.unwrap();
    assert!(received == pattern(1, ANSWER), "{} bytes", received.len());
    let ended = timeout(Duration::from_secs(5), joined)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(ended.reason, EndReason::Finished);
}
