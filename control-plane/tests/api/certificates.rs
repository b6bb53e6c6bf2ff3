//! Certificates of nodes and clients: who gets which, and what each of them opens.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use sg_proto::node::certificate_request::Holder;
use sg_proto::node::control_message::Message as Down;
use sg_proto::node::node_message::Message as Up;
use sg_proto::{api, node};
use sg_runtime::identity::{self, CertificateDer, KeyPair, PeerIdentity, PeerKind};
use sg_runtime::tls::{self, Credentials, Trust};
use tonic::Code;

use super::harness::{Plane, reason, within};
use super::sync::Node;

fn client_key(key: &KeyPair, gateway: &str, token_generation: u64) -> Holder {
    let certificate = identity::self_signed(key, "client");
    Holder::Client(node::ClientKey {
        gateway_id: gateway.to_owned(),
        token_generation,
        public_key_der: identity::public_key_der(&certificate).unwrap(),
    })
}

/// Asks over the node's stream; the certificate, or the word of refusal.
async fn certify(node: &mut Node, holder: Holder) -> Result<CertificateDer<'static>, String> {
    node.say(Up::CertificateRequest(node::CertificateRequest {
        id: 7,
        holder: Some(holder),
    }))
    .await;
    loop {
        if let Down::Certificate(said) = node.message().await.unwrap() {
            assert_eq!(said.id, 7);
            let issued = said.certificates_der.into_iter().next();
            return issued.map(CertificateDer::from).ok_or(said.reason);
        }
    }
}

/// The word of refusal, once what was changed is known.
async fn refused(node: &mut Node, holder: &Holder) -> String {
    within("a refusal", async {
        loop {
            if let Err(word) = certify(node, holder.clone()).await {
                return word;
            }
        }
    })
    .await
}

#[tokio::test]
async fn a_client_gets_a_certificate_for_its_key_as_long_as_its_gateway_wants_it() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let (_, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let key = KeyPair::generate();
    let mine = client_key(&key, &gateway.id, 0);
    let issued = certify(&mut node, mine.clone()).await.unwrap();
    let identity = PeerIdentity::from_cert(&issued).unwrap();
    let client = key.client_id();
    assert_eq!(identity.kind, PeerKind::Client);
    assert_eq!(identity.id, format!("{}.0.{client}", gateway.id));
    assert_eq!(identity::spki_sha256(&issued).unwrap(), key.spki_sha256());

    for (gateway, generation) in [("nope", 0), (gateway.id.as_str(), 1)] {
        let holder = client_key(&key, gateway, generation);
        let refused = certify(&mut node, holder).await;
        assert_eq!(refused, Err("unauthenticated".to_owned()));
    }
    let garbage = Holder::Client(node::ClientKey {
        gateway_id: gateway.id.clone(),
        token_generation: 0,
        public_key_der: b"no key".to_vec(),
    });
    assert_eq!(certify(&mut node, garbage).await, Err("failed".to_owned()));

    let name = format!("gateways/dev/clients/{client}");
    let request = api::RevokeClientRequest {
        name: name.clone(),
        request_id: String::new(),
    };
    let revoked = admin
        .clients
        .revoke_client(request)
        .await
        .unwrap()
        .into_inner();
    assert!(revoked.revoked && revoked.revoke_time.is_some());
    assert_eq!(refused(&mut node, &mine).await, "unauthenticated");
    let request = api::ListClientsRequest {
        parent: "gateways/dev".to_owned(),
        ..api::ListClientsRequest::default()
    };
    let listed = admin
        .clients
        .list_clients(request)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(listed.clients.len(), 1);
    assert!(listed.clients[0].revoked && listed.clients[0].id == client);
    let request = api::RestoreClientRequest {
        name: name.clone(),
        request_id: String::new(),
    };
    admin.clients.restore_client(request.clone()).await.unwrap();
    let again = admin.clients.restore_client(request).await.unwrap_err();
    assert_eq!(again.code(), Code::NotFound);
    let bad = api::RevokeClientRequest {
        name: "gateways/dev/clients/me".to_owned(),
        request_id: String::new(),
    };
    let bad = admin.clients.revoke_client(bad).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);

    let request = api::RotateTokenRequest {
        name: "gateways/dev".to_owned(),
        ..api::RotateTokenRequest::default()
    };
    admin.gateways.rotate_token(request).await.unwrap();
    assert_eq!(refused(&mut node, &mine).await, "unauthenticated");
    let mine = client_key(&key, &gateway.id, 1);
    certify(&mut node, mine.clone()).await.unwrap();
    let request = api::UpdateGatewayRequest {
        gateway: Some(api::Gateway {
            id: gateway.id.clone(),
            client_certificates: "off".to_owned(),
            ..api::Gateway::default()
        }),
        force: true,
        ..api::UpdateGatewayRequest::default()
    };
    admin.gateways.update_gateway(request).await.unwrap();
    assert_eq!(refused(&mut node, &mine).await, "off");
    plane.stop().await.unwrap();
}

#[tokio::test]
async fn a_node_speaks_for_the_gateways_of_its_group_only() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let request = api::CreateGatewayRequest {
        gateway: Some(api::Gateway {
            name: "far".to_owned(),
            group: "other".to_owned(),
            ..api::Gateway::default()
        }),
        ..api::CreateGatewayRequest::default()
    };
    let far = admin
        .gateways
        .create_gateway(request)
        .await
        .unwrap()
        .into_inner();
    let (id, credentials) = plane.join(&mut admin, "node-1").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let holder = client_key(&KeyPair::generate(), &far.id, 0);
    assert_eq!(
        certify(&mut node, holder).await,
        Err("unauthenticated".to_owned())
    );

    // Its own certificate it may renew, and under no other name.
    let key = KeyPair::generate();
    let own = Holder::NodeCsrDer(identity::csr_der(&key));
    let renewed = certify(&mut node, own).await.unwrap();
    let identity = PeerIdentity::from_cert(&renewed).unwrap();
    assert_eq!(identity, PeerIdentity::new(PeerKind::Node, id).unwrap());
    let renewed = Credentials::new(vec![renewed], key);
    let mut node = Node::connect(&plane, Some(&renewed)).await.unwrap();
    let garbage = Holder::NodeCsrDer(b"no request".to_vec());
    assert_eq!(certify(&mut node, garbage).await, Err("failed".to_owned()));
    plane.stop().await.unwrap();
}

/// Row 1, the control plane's port: only the certificate whose key the handshake proved counts, and only that of a node.
#[tokio::test]
async fn threat_01_only_a_proved_leaf_of_a_node_opens_the_nodes_stream() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let gateway = admin.gateway("dev").await;
    let (victim, credentials) = plane.join(&mut admin, "victim").await;
    let mut node = Node::connect(&plane, Some(&credentials)).await.unwrap();
    let victim_leaf = credentials.chain()[0].clone();
    let root = credentials.chain()[1].clone();

    // The certificate of a client, which the same authority has issued: of another kind.
    let key = KeyPair::generate();
    let client = certify(&mut node, client_key(&key, &gateway.id, 0))
        .await
        .unwrap();
    // An authority of the attacker's own, under the name of ours.
    let ca_key = rcgen::KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "Secure Gateway CA");
    let forged_root = params.self_signed(&ca_key).unwrap().der().clone();
    let forger = Issuer::new(params, ca_key);
    let mut leaf = CertificateParams::default();
    let uri = format!("spiffe://secure-gateway/node/{victim}");
    leaf.subject_alt_names = vec![SanType::URI(uri.as_str().try_into().unwrap())];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    let forged = leaf
        .signed_by(key.signing(), &forger)
        .unwrap()
        .der()
        .clone();
    let own = identity::self_signed(&key, "attacker");

    for (what, chain) in [
        ("a client", vec![client.clone()]),
        (
            "a client, with the victim behind it",
            vec![client.clone(), victim_leaf.clone(), root.clone()],
        ),
        (
            "self-signed, with the victim behind it",
            vec![own, victim_leaf.clone(), root.clone()],
        ),
        ("forged", vec![forged.clone(), root.clone()]),
        (
            "forged, with the victim behind it",
            vec![forged, forged_root, victim_leaf.clone(), root.clone()],
        ),
    ] {
        let credentials = Credentials::new(chain, key.clone());
        let refused = plane.try_channel(&credentials).await;
        if let Ok(channel) = refused {
            let refused = Node::connect_on(channel)
                .await
                .err()
                .unwrap_or_else(|| panic!("{what} was let in"));
            assert!(
                matches!(
                    refused.code(),
                    Code::Unauthenticated
                        | Code::PermissionDenied
                        | Code::Unavailable
                        | Code::Unknown
                        | Code::Internal
                        | Code::Cancelled
                ),
                "{what}: {refused:?}"
            );
            assert_ne!(reason(&refused), "NODE_REMOVED", "{what}: taken for a node");
        }
    }
    // The victim's leaf first, with a key that is not its own, proves nothing: a handshake is not even begun with it.
    let borrowed = Credentials::new(vec![victim_leaf, root], key);
    let trust = Trust::Roots(vec![credentials.chain()[1].clone()]);
    let kind = PeerKind::ControlPlane;
    assert!(tls::client_config(&trust, kind, Some(&borrowed), &[b"h2"]).is_err());
    // The certificate of a control plane is one of ours, and no node's either; that of the victim still opens its stream.
    Node::connect(&plane, Some(&credentials)).await.unwrap();
    plane.stop().await.unwrap();
}

/// Row 31: of a hundred that come with one token at once, one gets a certificate.
#[tokio::test(flavor = "multi_thread")]
async fn threat_31_a_join_token_lets_one_of_a_hundred_in() {
    let plane = Plane::start().await;
    let mut admin = plane.admin().await;
    let request = api::CreateJoinTokenRequest::default();
    let token = admin
        .tokens
        .create_join_token(request)
        .await
        .unwrap()
        .into_inner()
        .token;
    let attempts = (0..100).map(|number| {
        let (plane, token) = (&plane, token.as_str());
        async move {
            let key = KeyPair::generate();
            plane
                .join_with(token, &format!("node-{number}"), &key)
                .await
        }
    });
    let answers = within("all answers", futures_util::future::join_all(attempts)).await;
    let mut in_all = 0;
    for answer in answers {
        match answer {
            Ok(joined) => {
                in_all += 1;
                assert!(!joined.certificates_der.is_empty());
            }
            Err(refused) => assert_eq!(reason(&refused), "JOIN_TOKEN_UNKNOWN", "{refused:?}"),
        }
    }
    assert_eq!(in_all, 1);
    let request = api::ListNodesRequest::default();
    let nodes = admin.nodes.list_nodes(request).await.unwrap().into_inner();
    assert_eq!(nodes.nodes.len(), 1);
    plane.stop().await.unwrap();
}

/// The authorities that a node is told of, until there are so many.
async fn trusted(node: &mut Node, count: usize) -> Vec<CertificateDer<'static>> {
    loop {
        if let Down::Trust(said) = node.message().await.unwrap()
            && said.roots_der.len() == count
        {
            return said
                .roots_der
                .into_iter()
                .map(CertificateDer::from)
                .collect();
        }
    }
}

#[tokio::test]
async fn an_authority_takes_the_place_of_another_on_every_control_plane() {
    let one = Plane::start().await;
    let two = one.another("two").await;
    let mut admin = one.admin().await;
    let gateway = admin.gateway("dev").await;
    let (_, old) = one.join(&mut admin, "node-1").await;
    let mut at_two = Node::connect(&two, Some(&old)).await.unwrap();
    let first = trusted(&mut at_two, 1).await;
    assert_eq!(first[0], old.chain()[1]);

    let nothing = api::FinishAuthorityRotationRequest::default();
    let refused = admin
        .authority
        .finish_authority_rotation(nothing.clone())
        .await;
    assert_eq!(reason(&refused.unwrap_err()), "NO_ROTATION");
    let rotated = admin
        .authority
        .rotate_authority(api::RotateAuthorityRequest::default())
        .await;
    let rotated = rotated.unwrap().into_inner();
    let again = admin
        .authority
        .rotate_authority(api::RotateAuthorityRequest::default())
        .await;
    assert_eq!(reason(&again.unwrap_err()), "ROTATION_UNDER_WAY");
    let pin =
        |root: &CertificateDer<'_>| sg_runtime::crypto::hex(&identity::spki_sha256(root).unwrap());
    assert_eq!(rotated.previous_sha256, pin(&first[0]));
    assert_eq!(rotated.lagging_nodes.len(), 1);

    // The other control plane heard of it, and says so to a node that is connected.
    let both = trusted(&mut at_two, 2).await;
    assert_eq!(
        (pin(&both[0]), &both[1]),
        (rotated.sha256.clone(), &first[0])
    );
    // Whoever knows only the old authority still finds its control planes, and is known there.
    for plane in [&one, &two] {
        // At the second one this takes the place of the stream before.
        at_two = Node::connect(plane, Some(&old)).await.unwrap();
        trusted(&mut at_two, 2).await;
    }
    let key = old.key().clone();
    let own = Holder::NodeCsrDer(identity::csr_der(&key));
    let renewed = certify(&mut at_two, own).await.unwrap();
    let client = KeyPair::generate();
    certify(&mut at_two, client_key(&client, &gateway.id, 0))
        .await
        .unwrap();
    // A token for a node carries the new pin, and lets one in.
    let (_, joined) = two.join(&mut admin, "node-2").await;
    assert_eq!(joined.chain().len(), 4);

    let lags = admin.authority.finish_authority_rotation(nothing).await;
    assert_eq!(reason(&lags.unwrap_err()), "NODES_LAG");
    let forced = api::FinishAuthorityRotationRequest {
        force: true,
        ..api::FinishAuthorityRotationRequest::default()
    };
    let finished = admin.authority.finish_authority_rotation(forced).await;
    let finished = finished.unwrap().into_inner();
    assert!(finished.previous_sha256.is_empty() && finished.lagging_nodes.is_empty());
    let alone = trusted(&mut at_two, 1).await;
    assert_eq!(alone[0], both[0]);
    // The old certificate opens nothing any more, the new one does, on both.
    let renewed = Credentials::new(vec![renewed], key);
    for plane in [&one, &two] {
        within("the old certificate is refused", async {
            loop {
                let refused = match plane.try_channel(&old).await {
                    Ok(channel) => Node::connect_on(channel).await.err(),
                    Err(_) => return,
                };
                if refused.is_some() {
                    return;
                }
            }
        })
        .await;
        Node::connect(plane, Some(&renewed)).await.unwrap();
    }
    let pem = std::fs::read_to_string(one.dir.path().join("two/ca.pem")).unwrap();
    assert_eq!(pem, finished.certificates_pem);
    two.stop().await.unwrap();
    one.stop().await.unwrap();
}
