//! A node behind a balancer: who connects is what the balancer says, and it has to say it.

use tokio::io::AsyncWriteExt as _;

use super::rig::{Answer, Rig, expect, expect_reset};
use crate::balancers::Balancers;

const HEADER: &[u8] = b"PROXY TCP4 192.0.2.7 198.51.100.1 51000 443\r\n";

async fn rig(trusted: &str) -> Rig {
    Rig::behind(Balancers::new(vec![trusted.parse().unwrap()])).await
}

#[tokio::test]
async fn clients_and_users_come_from_where_the_header_says() {
    let mut rig = rig("127.0.0.0/8").await;
    rig.header = HEADER;
    let _client = rig.client(Answer::Relay).await;
    let addresses: Vec<_> = rig
        .node
        .registry
        .all()
        .iter()
        .map(|session| session.address().to_string())
        .collect();
    assert_eq!(addresses, ["192.0.2.7:51000"]);

    // What comes right behind the header is the first of the user's bytes.
    let mut user = rig.user().await;
    let sent = [HEADER, b"hello"].concat();
    user.write_all(&sent).await.unwrap();
    expect(&mut user, b"hello").await;
}

#[tokio::test]
async fn a_trusted_balancer_must_send_it_and_a_probe_is_nobody() {
    let mut rig = rig("127.0.0.1").await;
    rig.header = HEADER;
    let _client = rig.client(Answer::Relay).await;
    for (sent, word) in [
        ("GET / HTTP/1.1\r\n", "proxy-header-missing"),
        ("PROXY TCP4 here there 1 2\r\n", "proxy-header-bad"),
    ] {
        let mut user = rig.user().await;
        user.write_all(sent.as_bytes()).await.unwrap();
        expect_reset(&mut user).await;
        rig.eventually(|rig| rig.opened(word) == 1).await;
    }
    let mut probe = rig.user().await;
    probe.shutdown().await.unwrap();
    expect_reset(&mut probe).await;
    assert_eq!(rig.opened("proxy-header-missing"), 1);
    assert_eq!(rig.opened("ok"), 0);

    let mut client = tokio::net::TcpStream::connect(rig.tunnel_address)
        .await
        .unwrap();
    client.write_all(b"\x16\x03\x01").await.unwrap();
    let refused = "sg_tunnels_refused_total{reason=\"proxy-header-missing\"}";
    rig.eventually(|rig| rig.series(refused).as_deref() == Some("1"))
        .await;
}

#[tokio::test]
async fn from_others_a_header_is_just_bytes() {
    let rig = rig("192.0.2.0/24").await;
    let _client = rig.client(Answer::Relay).await;
    let mut user = rig.user().await;
    user.write_all(HEADER).await.unwrap();
    expect(&mut user, HEADER).await;
}
