//! Which client carries a connection, and what happens when one cannot.

use std::time::{Duration, Instant};

use sg_tunnel_io::code;
use tokio::io::AsyncWriteExt as _;

use super::rig::{Answer, Offer, Rig, exchange, expect_reset};

#[tokio::test]
async fn bytes_travel_and_are_counted() {
    let rig = Rig::new().await;
    let client = rig.client(Answer::Relay).await;
    assert_eq!(client.accepted.gateway_name, "gateway-g1");
    let mut user = rig.user().await;
    exchange(&mut user, b"hello").await;
    assert_eq!(rig.opened("ok"), 1);
    let active = "sg_streams_active{gateway=\"gateway-g1\",destination=\"d1\"}";
    assert_eq!(rig.series(active).as_deref(), Some("1"));
    drop(user);
    rig.eventually(|rig| rig.series(active).as_deref() == Some("0"))
        .await;
    let bytes = |direction| {
        let labels = "gateway=\"gateway-g1\",destination=\"d1\"";
        rig.series(&format!(
            "sg_bytes_total{{{labels},direction=\"{direction}\"}}"
        ))
    };
    assert_eq!(bytes("to_resource").as_deref(), Some("5"));
    assert_eq!(bytes("to_user").as_deref(), Some("5"));
    assert_eq!(rig.node.streams.len(), 0);
}

#[tokio::test]
async fn thirty_connections_over_three_clients_are_ten_each() {
    let rig = Rig::new().await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(rig.client(Answer::Relay).await);
    }
    let mut users = Vec::new();
    for _ in 0..30 {
        let mut user = rig.user().await;
        exchange(&mut user, b"x").await;
        users.push(user);
    }
    let counts: Vec<_> = clients.iter().map(super::rig::Client::asked).collect();
    assert_eq!(counts, [10, 10, 10]);
}

#[tokio::test]
async fn a_client_that_cannot_now_is_passed_over_within_the_connection() {
    let rig = Rig::new().await;
    let busy = rig.client(Answer::Refuse(code::REFUSED_RETRY)).await;
    let good = rig.client(Answer::Relay).await;
    for _ in 0..6 {
        exchange(&mut rig.user().await, b"x").await;
    }
    assert_eq!(good.asked(), 6);
    assert!(busy.asked() > 0);
    assert_eq!(rig.opened("ok"), 6);
}

#[tokio::test]
async fn a_resource_that_refuses_is_final() {
    let rig = Rig::new().await;
    let one = rig.client(Answer::Refuse(code::REFUSED)).await;
    let two = rig.client(Answer::Refuse(code::REFUSED)).await;
    let started = Instant::now();
    expect_reset(&mut rig.user().await).await;
    assert!(started.elapsed() < Duration::from_secs(1));
    assert_eq!(
        one.asked() + two.asked(),
        1,
        "it is not tried on the other client"
    );
    rig.eventually(|rig| rig.opened("refused") == 1).await;
}

#[tokio::test]
async fn a_client_that_vanishes_costs_nobody_but_those_it_carried() {
    let rig = Rig::new().await;
    let one = rig.client(Answer::Relay).await;
    let _two = rig.client(Answer::Relay).await;
    let (mut a, mut b) = (rig.user().await, rig.user().await);
    exchange(&mut a, b"x").await;
    exchange(&mut b, b"x").await;
    one.vanish();
    // Exactly one of the two was carried by it.
    let (a, b) = tokio::join!(survives(a), survives(b));
    assert!(a != b, "one ends and one goes on");
    for _ in 0..5 {
        exchange(&mut rig.user().await, b"x").await;
    }
}

async fn survives(mut user: tokio::net::TcpStream) -> bool {
    use tokio::io::AsyncReadExt as _;
    for _ in 0..20 {
        let mut byte = [0; 1];
        let exchange = async {
            user.write_all(b"x").await?;
            user.read_exact(&mut byte).await
        };
        if exchange.await.is_err() {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    true
}

#[tokio::test]
async fn an_unanswered_open_goes_to_the_next_client_when_its_tunnel_dies() {
    let rig = Rig::new().await;
    let silent = rig.client(Answer::Silence).await;
    let mut user = rig.user().await;
    rig.eventually(|_| silent.asked() == 1).await;
    let good = rig.client(Answer::Relay).await;
    silent.vanish();
    exchange(&mut user, b"x").await;
    assert_eq!(good.asked(), 1);
}

#[tokio::test]
async fn a_connection_is_held_for_a_client_that_comes_back() {
    let rig = Rig::new().await;
    let offer = Offer::new();
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    client.vanish();
    rig.eventually(|rig| rig.node.registry.all().is_empty())
        .await;
    let mut user = rig.user().await;
    user.write_all(b"early").await.unwrap();
    rig.eventually(|rig| rig.node.streams.len() == 1).await;
    let _client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let mut back = [0; 5];
    let read = tokio::io::AsyncReadExt::read_exact(&mut user, &mut back);
    tokio::time::timeout(super::rig::LIMIT, read)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(&back, b"early");
}

#[tokio::test]
async fn a_connection_is_held_for_a_second_and_then_reset() {
    let rig = Rig::new().await;
    rig.client(Answer::Relay).await.vanish();
    rig.eventually(|rig| rig.node.registry.all().is_empty())
        .await;
    let started = Instant::now();
    expect_reset(&mut rig.user().await).await;
    let held = started.elapsed();
    assert!(held >= Duration::from_millis(900), "{held:?}");
    assert!(held < Duration::from_secs(3), "{held:?}");
    rig.eventually(|rig| rig.opened("no-client") == 1).await;
}

#[tokio::test]
async fn a_user_that_leaves_before_the_stream_is_open_takes_its_open_back() {
    let rig = Rig::new().await;
    let client = rig.client(Answer::Silence).await;
    let user = rig.user().await;
    rig.eventually(|_| client.asked() == 1).await;
    user.set_zero_linger().unwrap();
    drop(user);
    rig.eventually(|rig| rig.node.streams.len() == 0).await;
    assert_eq!(rig.opened("tcp-reset"), 1);
}

#[tokio::test]
async fn a_limit_of_connections_is_kept_and_given_back() {
    let mut rig = Rig::new().await;
    let limited = {
        let mut d = rig.destination();
        d.max_connections = Some(1);
        sg_model::NodeObject::Destination(d)
    };
    rig.apply(2, |mut objects| {
        objects.push(limited);
        objects
    })
    .await;
    let _client = rig.client(Answer::Relay).await;
    let mut first = rig.user().await;
    exchange(&mut first, b"x").await;
    expect_reset(&mut rig.user().await).await;
    rig.eventually(|rig| rig.opened("limit") == 1).await;
    drop(first);
    rig.eventually(|rig| rig.node.streams.len() == 0).await;
    exchange(&mut rig.user().await, b"x").await;
}

#[test]
fn what_a_waiting_connection_holds_is_small() {
    fn size<A, F>(_: impl FnOnce(A) -> F) -> usize {
        size_of::<F>()
    }
    let serve = size(|accepted: crate::listener::Accepted| {
        let node = super::rig::node().0;
        let destination = sg_model::DestinationId::new("d1").expect("an id");
        let occupancy = sg_runtime::places::Occupancy::default();
        crate::connection::serve(node, accepted, destination, occupancy)
    });
    assert!(serve < 2800, "{serve} bytes");
}
