//! Whatever should not become a tunnel does not, is counted by reason, and disturbs nobody.

use sg_runtime::tls::Credentials;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::rig::{Answer, LIMIT, Offer, Rig, exchange};

fn refused(rig: &Rig, reason: &str) -> u64 {
    let name = format!("sg_tunnels_refused_total{{reason=\"{reason}\"}}");
    rig.series(&name).map_or(0, |value| value.parse().unwrap())
}

async fn ends(tcp: &mut TcpStream) {
    let mut rest = Vec::new();
    // An end or a reset: either way the node is done with it.
    drop(timeout(LIMIT, tcp.read_to_end(&mut rest)).await.unwrap());
}

#[tokio::test]
async fn wrong_credentials_are_told_apart_in_the_metrics_only_as_far_as_they_should_be() {
    let rig = Rig::new().await;
    let answers = [("g1", "sgt_wrong"), ("nope", super::rig::TOKEN), ("g1", "")];
    for (gateway, token) in answers {
        let mut offer = Offer::new();
        offer.hello.gateway = gateway.to_owned();
        offer.hello.token = token.to_owned();
        let answer = rig.connect(&offer, Answer::Relay).await.err().unwrap();
        assert_eq!(
            (answer.reason.as_str(), answer.retry),
            ("unauthenticated", false)
        );
    }
    rig.eventually(|rig| refused(rig, "unauthenticated") == 3)
        .await;
    let mut offer = Offer::new();
    offer.hello.version = 9;
    let answer = rig.connect(&offer, Answer::Relay).await.err().unwrap();
    assert_eq!(answer.reason, "version");
}

#[tokio::test]
async fn what_is_no_client_is_closed_and_disturbs_nobody() {
    let rig = Rig::new().await;
    let _client = rig.client(Answer::Relay).await;
    for garbage in [
        &b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..],
        &[0xff; 64],
        b"SSH-2.0-x\r\n",
    ] {
        let mut tcp = TcpStream::connect(rig.tunnel_address).await.unwrap();
        tcp.write_all(garbage).await.unwrap();
        ends(&mut tcp).await;
    }
    rig.eventually(|rig| refused(rig, "not-tls") >= 1).await;

    let mut io = rig.tls(&Offer::new().credentials).await;
    io.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    drop(
        timeout(LIMIT, io.read_to_end(&mut Vec::new()))
            .await
            .unwrap(),
    );
    rig.eventually(|rig| refused(rig, "bad-request") == 1).await;

    let mut io = rig.tls(&Offer::new().credentials).await;
    io.shutdown().await.unwrap();
    rig.eventually(|rig| refused(rig, "hello-closed") == 1)
        .await;
    exchange(&mut rig.user().await, b"x").await;
}

#[tokio::test]
async fn a_client_is_known_by_its_key_alone() {
    let rig = Rig::new().await;
    let offer = Offer::new();
    let _client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let id = Credentials::key(&offer.credentials).client_id();
    let all = rig.node.registry.all();
    assert_eq!(&*all[0].client_id, id.as_str());
    assert_eq!(all[0].client_name, "test");
}
