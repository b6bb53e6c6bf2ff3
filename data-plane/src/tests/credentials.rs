//! What lets a client in, and for how long: tokens and certificates, of this gateway and of others, of this client and of
//! others, before and after they are taken back.

use std::time::Duration;

use sg_model::{
    ClientCertificates, ClientId, Gateway, GatewayId, Name, NodeObject, Timestamp, TokenHash,
};
use sg_runtime::crypto;
use sg_runtime::identity::{KeyPair, self_signed};
use sg_runtime::tls::Credentials;
use sg_tunnel_io::CloseReason;
use sg_tunnel_io::code::close;

use super::rig::{Answer, Authority, Client, Offer, Rig, open_gateway};

const HOUR: Duration = Duration::from_secs(3600);

/// A client that shows a certificate and no token.
fn certified(authority: &Authority, gateway: &str, generation: u64, life: Duration) -> Offer {
    let mut offer = Offer::new();
    let key = offer.credentials.key();
    let uri = format!(
        "spiffe://secure-gateway/client/{gateway}.{generation}.{}",
        key.client_id()
    );
    offer.hello.certificates_der = vec![authority.certify(&uri, key, life).to_vec()];
    offer.hello.token.clear();
    offer
}

async fn refused(rig: &Rig, offer: &Offer) -> String {
    let refused = rig.connect(offer, Answer::Relay).await.err();
    refused.expect("it is not let in").reason
}

async fn revoked(client: &Client) {
    let reason = client.closed().await.reason;
    let CloseReason::Peer { code, .. } = reason else {
        panic!("{reason:?}");
    };
    assert_eq!(code, close::AUTH_REVOKED);
}

fn changed(change: impl FnOnce(&mut Gateway)) -> impl FnOnce(Vec<NodeObject>) -> Vec<NodeObject> {
    |mut objects| {
        for object in &mut objects {
            if let NodeObject::Gateway(gateway) = object {
                change(gateway);
                break;
            }
        }
        objects
    }
}

#[tokio::test]
async fn a_certificate_lets_its_holder_in_without_a_token() {
    let rig = Rig::new().await;
    let offer = certified(&rig.authority, "g1", 0, HOUR);
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let all = rig.node.registry.all();
    assert_eq!(all[0].credential().as_str(), "certificate");
    assert!(all[0].credential().certificate_ends().is_some());
    drop(client);

    // A token that holds helps where the certificate does not.
    let mut offer = certified(&Authority::new(), "g1", 0, HOUR);
    assert_eq!(refused(&rig, &offer).await, "unauthenticated");
    offer.hello.token = super::rig::TOKEN.to_owned();
    rig.connect(&offer, Answer::Relay).await.unwrap();
}

#[tokio::test]
async fn a_certificate_is_worth_nothing_without_its_key_or_beyond_its_bounds() {
    let rig = Rig::new().await;
    let good = certified(&rig.authority, "g1", 0, HOUR);
    let thief = KeyPair::generate();
    let mut stolen = good.clone();
    stolen.credentials = Credentials::new(vec![self_signed(&thief, "thief")], thief);
    assert_eq!(refused(&rig, &stolen).await, "unauthenticated");
    for (gateway, generation, word) in [
        ("g2", 0, "unauthenticated"),
        ("g1", 1, "certificate-withdrawn"),
    ] {
        let offer = certified(&rig.authority, gateway, generation, HOUR);
        assert_eq!(refused(&rig, &offer).await, word);
    }
    // Over before it is shown: its end is in the past, its begin too.
    let over = certified(&rig.authority, "g1", 0, Duration::ZERO);
    assert_eq!(refused(&rig, &over).await, "certificate-expired");
    let mut damaged = good;
    damaged.hello.certificates_der[0].pop();
    assert_eq!(refused(&rig, &damaged).await, "unauthenticated");
}

/// Row 1, the node's port: what is shown beside the key that the handshake proved counts for nothing.
#[tokio::test]
async fn threat_01_a_victims_certificate_beside_the_own_key_opens_nothing() {
    let rig = Rig::new().await;
    let victim = certified(&rig.authority, "g1", 0, HOUR);
    let victim_leaf = victim.hello.certificates_der[0].clone();
    let own = KeyPair::generate();
    let root = rig.authority.root.clone();
    let uri = |kind: &str| format!("spiffe://secure-gateway/{kind}/g1.0.{}", own.client_id());
    let node = rig.authority.certify(&uri("node"), &own, HOUR);
    let plane = rig.authority.certify(&uri("control-plane"), &own, HOUR);
    let forged = Authority::new().certify(&uri("client"), &own, HOUR);
    for leaf in [
        self_signed(&own, "own"),
        node.clone(),
        plane.clone(),
        forged.clone(),
    ] {
        // The victim's certificate as a filler of the handshake's chain, and in the hello.
        let chain = vec![leaf.clone(), victim_leaf.clone().into(), root.clone()];
        let mut offer = victim.clone();
        offer.credentials = Credentials::new(chain, own.clone());
        assert_eq!(refused(&rig, &offer).await, "unauthenticated");
        // The own one of another kind or authority in the hello.
        offer.hello.certificates_der = vec![leaf.to_vec()];
        assert_eq!(refused(&rig, &offer).await, "unauthenticated");
        offer.hello.certificates_der.clear();
        assert_eq!(refused(&rig, &offer).await, "unauthenticated");
    }
    // Even with a token that holds it is its own key that it is known by.
    let chain = vec![node, victim_leaf.into(), root];
    let mut offer = Offer::new();
    offer.credentials = Credentials::new(chain, own.clone());
    let _client = rig.connect(&offer, Answer::Relay).await.unwrap();
    assert_eq!(&*rig.node.registry.all()[0].client_id, own.client_id());
    assert!(rig.connect(&victim, Answer::Relay).await.is_ok());
}

/// Row 34: a token opens the gateway that it was made for, and no other, whatever is shown beside it.
#[tokio::test]
async fn threat_34_every_token_opens_its_own_gateway_only() {
    let mut rig = Rig::new().await;
    let names = ["g1", "g2", "g3"];
    let token = |gateway: &str| format!("sgt_of_{gateway}");
    rig.apply(2, |mut objects| {
        objects.retain(|object| !matches!(object, NodeObject::Gateway(_)));
        for name in names {
            let NodeObject::Gateway(mut gateway) = open_gateway(true) else {
                unreachable!("the helper makes a gateway")
            };
            gateway.id = GatewayId::new(name).unwrap();
            gateway.name = Name::new(format!("gateway-{name}")).unwrap();
            gateway.tokens = vec![TokenHash {
                sha256: crypto::sha256(token(name).as_bytes()),
                expires: None,
            }];
            objects.push(NodeObject::Gateway(gateway));
        }
        objects
    })
    .await;
    let authority = std::sync::Arc::clone(&rig.authority);
    for of in names {
        for to in names {
            for address in [to.to_owned(), format!("gateway-{to}")] {
                let mut by_token = Offer::new();
                by_token.hello.gateway = address.clone();
                by_token.hello.token = token(of);
                let mut by_certificate = certified(&authority, of, 0, HOUR);
                by_certificate.hello.gateway = address;
                for offer in [by_token, by_certificate] {
                    let answer = rig.connect(&offer, Answer::Relay).await;
                    match of == to {
                        true => assert_eq!(answer.unwrap().accepted.gateway_id, to),
                        false => {
                            let refused = answer.err().expect("a foreign gateway opens");
                            assert_eq!(refused.reason, "unauthenticated");
                        }
                    }
                }
            }
        }
    }
}

/// Row 45: a stolen key, with everything that its owner has, is cut off by a revocation and does not come back.
#[tokio::test]
async fn threat_45_a_revoked_client_is_cut_and_comes_back_with_nothing() {
    let mut rig = Rig::new().await;
    let offer = certified(&rig.authority, "g1", 0, HOUR);
    let id = ClientId::new(offer.credentials.key().client_id()).unwrap();
    let owner = rig.connect(&offer, Answer::Relay).await.unwrap();
    let mut thief = offer.clone();
    thief.hello.boot_id = vec![2; 16];
    thief.hello.connection = 1;
    let other = rig.client(Answer::Relay).await;
    rig.apply(
        2,
        changed(|gateway| {
            gateway.revoked.insert(id.clone(), Timestamp(0));
        }),
    )
    .await;
    revoked(&owner).await;
    for offer in [&offer, &thief] {
        assert_eq!(refused(&rig, offer).await, "client-revoked");
        let mut with_token = offer.clone();
        with_token.hello.token = super::rig::TOKEN.to_owned();
        assert_eq!(refused(&rig, &with_token).await, "client-revoked");
        with_token.hello.certificates_der.clear();
        assert_eq!(refused(&rig, &with_token).await, "client-revoked");
    }
    assert!(!other.tunnel.is_closed(), "nobody else is disturbed");
    rig.apply(3, |objects| objects).await;
    rig.connect(&offer, Answer::Relay).await.unwrap();
}

#[tokio::test]
async fn a_replaced_token_and_a_gateway_that_wants_none_end_tunnels_by_certificate() {
    let mut rig = Rig::new().await;
    let offer = certified(&rig.authority, "g1", 0, HOUR);
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    rig.apply(2, changed(|gateway| gateway.token_generation = 1))
        .await;
    revoked(&client).await;
    assert_eq!(refused(&rig, &offer).await, "certificate-withdrawn");
    let offer = certified(&rig.authority, "g1", 1, HOUR);
    let client = rig.connect(&offer, Answer::Relay).await.unwrap();
    let off = |gateway: &mut Gateway| {
        gateway.token_generation = 1;
        gateway.client_certificates = ClientCertificates::Off;
    };
    rig.apply(3, changed(off)).await;
    revoked(&client).await;
    assert_eq!(refused(&rig, &offer).await, "certificate-withdrawn");
}
