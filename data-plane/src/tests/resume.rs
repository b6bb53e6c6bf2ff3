//! Who may go on with a tunnel whose connection was lost, and who may not.

use std::time::Duration;

use sg_model::{GatewayId, Name, NodeObject};
use sg_proto::tunnel::{Accepted, Refused, ResumeOffer, control};
use sg_runtime::tls::{self, ClientStream};
use sg_tunnel_io::resume::{EXPORTER_LABEL, Secret};
use tokio::io::AsyncWriteExt as _;

use super::rig::{Answer, Client, Offer, Rig, exchange, expect_reset, open_gateway, say_hello};
use crate::app::drain;
use crate::reconcile::testing::acl;

/// The usual gateway, whose tunnels outlive their connection.
fn resumable(objects: Vec<NodeObject>, time: Duration) -> Vec<NodeObject> {
    let change = |object| match object {
        NodeObject::Gateway(mut gateway) => {
            gateway.resume_time = time;
            NodeObject::Gateway(gateway)
        }
        other => other,
    };
    objects.into_iter().map(change).collect()
}

async fn rig(time: Duration) -> Rig {
    let mut rig = Rig::new().await;
    rig.apply(2, |objects| resumable(objects, time)).await;
    rig
}

const LONG: Duration = Duration::from_secs(60);

/// What a client keeps of an answer.
struct Ticket {
    id: Vec<u8>,
    secret: Secret,
}

impl Ticket {
    fn of(accepted: &Accepted) -> Self {
        Self {
            id: accepted.tunnel_id.clone(),
            secret: Secret::take(accepted.resume_secret.clone()).unwrap(),
        }
    }

    fn for_connection(&self, io: &ClientStream) -> ResumeOffer {
        let mut exported = [0; 32];
        tls::exporter(io, EXPORTER_LABEL, &mut exported).unwrap();
        ResumeOffer {
            tunnel_id: self.id.clone(),
            proof: self.secret.prove(&exported).to_vec(),
        }
    }
}

/// A client that comes back with a ticket.
async fn come_back(
    rig: &Rig,
    offer: &Offer,
    ticket: &Ticket,
) -> Result<(ClientStream, Accepted), Refused> {
    let mut io = rig.tls(&offer.credentials).await;
    let mut hello = offer.hello.clone();
    hello.resume = Some(ticket.for_connection(&io));
    let accepted = say_hello(&mut io, &hello).await?;
    Ok((io, accepted))
}

fn results(rig: &Rig, result: &str) -> u64 {
    let name = format!("sg_tunnel_resumes_total{{gateway=\"gateway-g1\",result=\"{result}\"}}");
    rig.series(&name).map_or(0, |value| value.parse().unwrap())
}

fn tunnels(rig: &Rig) -> Option<String> {
    rig.series("sg_tunnels{gateway=\"gateway-g1\"}")
}

/// A client with one user's connection through it.
async fn connected(rig: &Rig) -> (Offer, Client, tokio::net::TcpStream) {
    let offer = Offer::new();
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let mut user = rig.user().await;
    exchange(&mut user, b"before").await;
    (offer, client, user)
}

/// Breaks a client's connection without a word, by a transport that is at its end in the middle of a record.
async fn detach(rig: &Rig, client: &Client) {
    let (near, far) = tokio::io::duplex(64);
    drop(far);
    // The node sees the old connection go, and the client a new one that breaks at once.
    client
        .tunnel
        .attach_with(Box::new(sg_tunnel_io::transport::Stream::bare(near)))
        .unwrap();
    rig.eventually(|rig| {
        let all = rig.node.registry.all();
        all.iter().any(|session| session.tunnel.is_detached()) && client.tunnel.is_detached()
    })
    .await;
}

#[tokio::test]
async fn a_detached_tunnel_is_nobodys_choice_and_goes_on_with_its_streams() {
    let rig = rig(LONG).await;
    let (offer, client, mut user) = connected(&rig).await;
    let mut ticket = Ticket::of(&client.accepted);
    assert_eq!(client.accepted.resume_ms, 60_000);
    for round in 1..=3_u64 {
        detach(&rig, &client).await;
        rig.eventually(|rig| tunnels(rig).as_deref() == Some("0"))
            .await;
        assert!(rig.node.registry.present().is_empty());
        assert_eq!(rig.series("sg_tunnels_detached").as_deref(), Some("1"));
        user.write_all(b"while detached").await.unwrap();

        let (io, accepted) = come_back(&rig, &offer, &ticket).await.unwrap();
        assert!(accepted.resumed);
        assert_eq!(accepted.tunnel_id, ticket.id);
        assert_ne!(accepted.resume_secret, ticket.secret.expose());
        ticket = Ticket::of(&accepted);
        client.tunnel.attach(io).unwrap();
        super::rig::expect(&mut user, b"while detached").await;
        exchange(&mut user, b"after").await;
        rig.eventually(|rig| tunnels(rig).as_deref() == Some("1"))
            .await;
        assert_eq!(results(&rig, "resumed"), round);
    }
    // New users are served on it as well.
    exchange(&mut rig.user().await, b"new").await;
    assert_eq!(rig.node.registry.all().len(), 1);
}

#[tokio::test]
async fn a_new_connection_takes_over_from_one_that_is_believed_alive() {
    let rig = rig(LONG).await;
    let (offer, client, mut user) = connected(&rig).await;
    let first_address = rig.node.registry.all()[0].address();
    let (io, accepted) = come_back(&rig, &offer, &Ticket::of(&client.accepted))
        .await
        .unwrap();
    assert!(accepted.resumed);
    client.tunnel.attach(io).unwrap();
    exchange(&mut user, b"after").await;
    rig.eventually(|rig| rig.node.registry.all()[0].address() != first_address)
        .await;
    assert_eq!(tunnels(&rig).as_deref(), Some("1"));
}

#[tokio::test]
async fn an_answer_that_was_lost_does_not_lock_the_client_out() {
    let rig = rig(LONG).await;
    let (offer, client, mut user) = connected(&rig).await;
    detach(&rig, &client).await;
    let ticket = Ticket::of(&client.accepted);
    for _ in 0..3 {
        // The client never reads what the node says.
        let (io, accepted) = come_back(&rig, &offer, &ticket).await.unwrap();
        assert!(accepted.resumed);
        drop(io);
    }
    let (io, accepted) = come_back(&rig, &offer, &ticket).await.unwrap();
    client.tunnel.attach(io).unwrap();
    exchange(&mut user, b"after").await;

    // Now the new secret has arrived, and the old one is worth nothing.
    let refused = come_back(&rig, &offer, &ticket).await.err().unwrap();
    assert_eq!(refused.reason, "resume-proof");
    exchange(&mut user, b"untouched").await;
    let (io, _) = come_back(&rig, &offer, &Ticket::of(&accepted))
        .await
        .unwrap();
    client.tunnel.attach(io).unwrap();
    exchange(&mut user, b"again").await;
}

#[tokio::test]
async fn nobody_else_gets_at_the_streams() {
    let mut rig = rig(LONG).await;
    rig.apply(3, |mut objects| {
        let NodeObject::Gateway(mut other) = open_gateway(true) else {
            unreachable!("the helper makes a gateway")
        };
        other.id = GatewayId::new("g2").unwrap();
        other.name = Name::new("other").unwrap();
        objects.push(NodeObject::Gateway(other));
        resumable(objects, LONG)
    })
    .await;
    let (offer, client, mut user) = connected(&rig).await;
    let ticket = Ticket::of(&client.accepted);

    // The client's own key, and a proof made with another secret.
    let forged = Ticket {
        id: ticket.id.clone(),
        secret: Secret::new([7; 32]),
    };
    let refused = come_back(&rig, &offer, &forged).await.err().unwrap();
    assert_eq!(
        (refused.reason.as_str(), refused.retry),
        ("resume-proof", true)
    );
    // A proof that was right on another connection.
    let elsewhere = rig.tls(&offer.credentials).await;
    let mut io = rig.tls(&offer.credentials).await;
    let mut hello = offer.hello.clone();
    hello.resume = Some(ticket.for_connection(&elsewhere));
    let refused = say_hello(&mut io, &hello).await.err().unwrap();
    assert_eq!(refused.reason, "resume-proof");
    exchange(&mut user, b"untouched").await;

    // Whoever is somebody else gets a tunnel of his own, and no hint that there is another.
    let stranger = Offer {
        hello: offer.hello.clone(),
        ..Offer::new()
    };
    let mut elsewhere = offer.clone();
    elsewhere.hello.gateway = "g2".to_owned();
    let mut beside = offer.clone();
    beside.hello.connection = 1;
    for other in [stranger, elsewhere, beside] {
        let (_io, accepted) = come_back(&rig, &other, &ticket).await.unwrap();
        assert!(!accepted.resumed);
        assert_ne!(accepted.tunnel_id, ticket.id);
        exchange(&mut user, b"untouched").await;
    }
    // Without the gateway's token there is nothing at all.
    let mut without = offer.clone();
    without.hello.token = "sgt_wrong".to_owned();
    let refused = come_back(&rig, &without, &ticket).await.err().unwrap();
    assert_eq!(refused.reason, "unauthenticated");
    exchange(&mut user, b"untouched").await;
    assert_eq!(results(&rig, "resumed"), 0);
    assert_eq!(results(&rig, "refused"), 4);

    let (io, accepted) = come_back(&rig, &offer, &ticket).await.unwrap();
    assert!(accepted.resumed);
    client.tunnel.attach(io).unwrap();
    exchange(&mut user, b"the owner").await;
}

#[tokio::test]
async fn another_run_of_the_client_ends_what_its_predecessor_left() {
    let rig = rig(LONG).await;
    let (offer, client, mut user) = connected(&rig).await;
    detach(&rig, &client).await;
    let mut restarted = offer.clone();
    restarted.hello.boot_id = vec![2; 16];
    let (_io, accepted) = come_back(&rig, &restarted, &Ticket::of(&client.accepted))
        .await
        .unwrap();
    assert!(!accepted.resumed, "another run is somebody else");
    expect_reset(&mut user).await;
    assert_eq!(results(&rig, "replaced"), 1);
    rig.eventually(|rig| rig.node.registry.all().len() == 1)
        .await;
    assert_eq!(rig.series("sg_tunnels_detached").as_deref(), Some("0"));
}

#[tokio::test]
async fn a_fresh_hello_of_the_same_run_ends_its_detached_tunnel() {
    let rig = rig(LONG).await;
    let (offer, client, mut user) = connected(&rig).await;
    detach(&rig, &client).await;
    let again = rig.connect(&offer, Answer::Relay).await.unwrap();
    expect_reset(&mut user).await;
    assert_ne!(again.accepted.tunnel_id, client.accepted.tunnel_id);
    exchange(&mut rig.user().await, b"new").await;
}

#[tokio::test]
async fn a_tunnel_whose_client_stays_away_expires() {
    let rig = rig(Duration::from_millis(300)).await;
    let (offer, client, mut user) = connected(&rig).await;
    detach(&rig, &client).await;
    expect_reset(&mut user).await;
    rig.eventually(|rig| results(rig, "expired") == 1).await;
    rig.eventually(|rig| rig.node.registry.all().is_empty())
        .await;
    let (_io, accepted) = come_back(&rig, &offer, &Ticket::of(&client.accepted))
        .await
        .unwrap();
    assert!(!accepted.resumed);
}

#[tokio::test]
async fn a_withdrawn_token_and_a_drain_end_detached_tunnels_too() {
    let mut withdrawn = rig(LONG).await;
    let (_offer, client, mut user) = connected(&withdrawn).await;
    detach(&withdrawn, &client).await;
    withdrawn
        .apply(3, |objects| {
            let without = |object| match object {
                NodeObject::Gateway(mut gateway) => {
                    gateway.tokens.clear();
                    NodeObject::Gateway(gateway)
                }
                other => other,
            };
            resumable(objects.into_iter().map(without).collect(), LONG)
        })
        .await;
    expect_reset(&mut user).await;

    let draining = rig(LONG).await;
    let (offer, client, mut user) = connected(&draining).await;
    detach(&draining, &client).await;
    draining.node.shutdown.begin();
    let refused = come_back(&draining, &offer, &Ticket::of(&client.accepted)).await;
    assert_eq!(refused.err().unwrap().reason, "draining");
    drain::run(&draining.node, &draining.tunnels, &draining.stop).await;
    expect_reset(&mut user).await;
}

#[tokio::test]
async fn what_has_changed_meanwhile_is_decided_and_told_before_the_streams_go_on() {
    let mut rig = rig(LONG).await;
    let (offer, mut client, mut user) = connected(&rig).await;
    detach(&rig, &client).await;
    rig.apply(3, |mut objects| {
        objects.push(acl("g1", 3, []));
        resumable(objects, LONG)
    })
    .await;
    expect_reset(&mut user).await;
    let (io, accepted) = come_back(&rig, &offer, &Ticket::of(&client.accepted))
        .await
        .unwrap();
    let told = accepted.acl.unwrap();
    assert_eq!((told.generation, told.entries.len()), (3, 0));
    client.tunnel.attach(io).unwrap();
    // A change after that is told on the resumed tunnel, and nothing twice.
    rig.apply(4, |objects| resumable(objects, LONG)).await;
    let control::Message::Acl(told) = client.next_control().await else {
        panic!("the list comes first");
    };
    assert_eq!(told.generation, 4);
}
