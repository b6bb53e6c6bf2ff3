//! Whole handshakes over an in-memory pipe: every trust against every certificate.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};

use super::*;
use crate::crypto;
use crate::identity::{KeyPair, self_signed, spki_sha256};

const ALPN: &[&[u8]] = &[b"test/1"];
const NODE: &str = "spiffe://secure-gateway/node/n1";

pub(super) struct Ca {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    pub(super) fn new() -> Self {
        crypto::install();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    fn pin(&self) -> [u8; 32] {
        spki_sha256(&self.root).unwrap()
    }

    /// Leaf and root, as our servers send them.
    fn issue(&self, uri: &str, change: impl FnOnce(&mut CertificateParams)) -> Credentials {
        let key = KeyPair::generate();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        change(&mut params);
        let leaf = params
            .signed_by(key.signing(), &self.issuer)
            .unwrap()
            .der()
            .clone();
        Credentials::new(vec![leaf, self.root.clone()], key)
    }

    pub(super) fn node(&self) -> Credentials {
        self.issue(NODE, |_| {})
    }

    pub(super) fn trust(&self) -> Trust {
        Trust::Roots(vec![self.root.clone()])
    }
}

pub(super) fn server(credentials: &Credentials, auth: &ClientAuth) -> ServerTls {
    server_config(&ServerCertificate::new(credentials).unwrap(), auth, ALPN).unwrap()
}

pub(super) fn client(trust: &Trust, credentials: Option<&Credentials>) -> ClientTls {
    client_config(trust, PeerKind::Node, credentials, ALPN).unwrap()
}

pub(super) fn self_signed_client() -> Credentials {
    let key = KeyPair::generate();
    Credentials::new(vec![self_signed(&key, "client")], key)
}

type Ends = (
    Result<(ClientStream<DuplexStream>, PeerInfo), Error>,
    Result<(ServerStream<DuplexStream>, PeerInfo), Error>,
);

async fn handshake(client: &ClientTls, server: &ServerTls) -> Ends {
    let (near, far) = duplex(64 * 1024);
    tokio::join!(connect(client, near, "198.51.100.7"), accept(server, far))
}

/// The reason why the client refused this server.
async fn refused(trust: &Trust, credentials: &Credentials) -> &'static str {
    let ends = handshake(
        &client(trust, None),
        &server(credentials, &ClientAuth::NoneAsked),
    )
    .await;
    let error = ends.0.map(|_| ()).unwrap_err();
    assert!(!error.retryable(), "{error}");
    let other = ends.1.map(|_| ()).unwrap_err();
    assert_eq!(other.reason(), "tls-alert", "{other}");
    error.reason()
}

#[tokio::test]
async fn the_right_ca_or_pin_is_trusted_whatever_the_name() {
    let ca = Ca::new();
    for trust in [
        ca.trust(),
        Trust::Pin(ca.pin()),
        Trust::Roots(vec![Ca::new().root, ca.root.clone()]),
    ] {
        let server = server(&ca.node(), &ClientAuth::NoneAsked);
        let (near, far) = handshake(&client(&trust, None), &server).await;
        let ((mut near, server_info), (mut far, client_info)) = (near.unwrap(), far.unwrap());
        assert_eq!(server_info.identity.unwrap().to_string(), NODE);
        assert_eq!(server_info.alpn.as_deref(), Some(ALPN[0]));
        assert_eq!(client_info.identity, None);
        assert_eq!(client_info.client_id(), None);
        near.write_all(b"ping").await.unwrap();
        near.flush().await.unwrap();
        let mut bytes = [0; 4];
        far.read_exact(&mut bytes).await.unwrap();
        assert_eq!(&bytes, b"ping");
    }
}

#[tokio::test]
async fn a_tunnel_is_tls_1_3_with_hybrid_key_exchange_and_aes_128() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::NoneAsked);
    let (near, far) = handshake(&client(&ca.trust(), None), &server).await;
    let _far = far.unwrap();
    let near = near.unwrap().0;
    let session = near.get_ref().1;
    assert_eq!(
        session.protocol_version(),
        Some(rustls::ProtocolVersion::TLSv1_3)
    );
    let suite = session.negotiated_cipher_suite().unwrap().suite();
    assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let group = session.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn a_wrong_ca_is_a_bad_certificate() {
    assert_eq!(
        refused(&Ca::new().trust(), &Ca::new().node()).await,
        "bad-certificate"
    );
}

#[tokio::test]
async fn a_wrong_pin_is_a_wrong_peer() {
    assert_eq!(
        refused(&Trust::Pin([7; 32]), &Ca::new().node()).await,
        "wrong-peer"
    );
}

#[tokio::test]
async fn a_pin_needs_the_root_in_the_chain() {
    let (ca, node) = (Ca::new(), Ca::new().node());
    let alone = Credentials::new(vec![node.chain()[0].clone()], node.key().clone());
    assert_eq!(refused(&Trust::Pin(ca.pin()), &alone).await, "wrong-peer");
}

#[tokio::test]
async fn a_pinned_root_beside_a_leaf_that_it_did_not_sign_is_worth_nothing() {
    let (pinned, stranger) = (Ca::new(), Ca::new().node());
    let chain = vec![stranger.chain()[0].clone(), pinned.root.clone()];
    let forged = Credentials::new(chain, stranger.key().clone());
    assert_eq!(
        refused(&Trust::Pin(pinned.pin()), &forged).await,
        "bad-certificate"
    );
}

#[tokio::test]
async fn another_kind_or_none_is_a_wrong_peer() {
    let ca = Ca::new();
    let control_plane = ca.issue("spiffe://secure-gateway/control-plane/a", |_| {});
    let nobody = ca.issue("https://example.com/", |_| {});
    for trust in [ca.trust(), Trust::Pin(ca.pin())] {
        assert_eq!(refused(&trust, &control_plane).await, "wrong-peer");
        assert_eq!(refused(&trust, &nobody).await, "wrong-peer");
    }
}

#[tokio::test]
async fn dates_and_purpose_are_checked() {
    let ca = Ca::new();
    let expired = ca.issue(NODE, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    let future = ca.issue(NODE, |params| {
        params.not_before = rcgen::date_time_ymd(2200, 1, 1)
    });
    let client_only = ca.issue(NODE, |params| {
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    });
    for trust in [ca.trust(), Trust::Pin(ca.pin())] {
        for credentials in [&expired, &future, &client_only] {
            assert_eq!(refused(&trust, credentials).await, "bad-certificate");
        }
    }
}

#[tokio::test]
async fn a_self_signed_server_is_refused_even_with_the_right_kind() {
    let ca = Ca::new();
    let key = KeyPair::generate();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(NODE.try_into().unwrap())];
    let certificate = params.self_signed(key.signing()).unwrap().der().clone();
    let forged = Credentials::new(vec![certificate], key);
    assert_eq!(refused(&ca.trust(), &forged).await, "bad-certificate");
}

#[tokio::test]
async fn a_self_signed_client_is_known_by_its_key_and_by_nothing_else() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::AnySelfSigned);
    let plain = self_signed_client();
    // A certificate that claims to be a node still counts by its key only.
    let key = KeyPair::generate();
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::URI(NODE.try_into().unwrap())];
    let claim = params.self_signed(key.signing()).unwrap().der().clone();
    for credentials in [plain, Credentials::new(vec![claim], key)] {
        let (near, far) = handshake(&client(&ca.trust(), Some(&credentials)), &server).await;
        near.unwrap();
        let info = far.unwrap().1;
        assert_eq!(info.key_sha256(), Some(credentials.key().spki_sha256()));
        assert_eq!(info.client_id(), Some(credentials.key().client_id()));
        assert_eq!(info.identity, None);
    }
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused_where_a_key_is_needed() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::AnySelfSigned);
    let (near, far) = handshake(&client(&ca.trust(), None), &server).await;
    assert_eq!(far.map(|_| ()).unwrap_err().reason(), "no-certificate");
    // With TLS 1.3 the client has finished by then; the refusal comes with its first read.
    let error = near.unwrap().0.read(&mut [0; 1]).await.unwrap_err();
    assert_eq!(Error::from_io(error).reason(), "tls-alert");
}

#[tokio::test]
async fn somebody_elses_certificate_does_not_prove_a_key() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::AnySelfSigned);
    let stolen = self_signed_client().chain().to_vec();
    let credentials = Credentials::new(stolen, KeyPair::generate());
    // The configuration already refuses: certificate and key do not belong together.
    let result = client_config(&ca.trust(), PeerKind::Node, Some(&credentials), ALPN);
    assert!(matches!(result, Err(SetupError::Credentials(_))));
    // An attacker who does without that check fails at the signature.
    let forged = stolen_client(&ca, credentials);
    let (_near, far) = handshake(&forged, &server).await;
    assert_eq!(far.map(|_| ()).unwrap_err().reason(), "bad-certificate");
}

/// A client that shows a certificate whose key it does not have.
fn stolen_client(ca: &Ca, credentials: Credentials) -> ClientTls {
    let provider = provider::provider();
    let key = provider
        .key_provider
        .load_private_key(credentials.key.private_der())
        .unwrap();
    let shown = std::sync::Arc::new(rustls::sign::CertifiedKey::new(credentials.chain, key));
    let anchor = verify::Anchor::Pin(ca.pin());
    let verifier = verify::IdentityVerifier::new(anchor, PeerKind::Node);
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(provider::VERSIONS)
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(std::sync::Arc::new(verifier))
        .with_client_cert_resolver(std::sync::Arc::new(rustls::sign::SingleCertAndKey::from(
            shown,
        )));
    config.alpn_protocols = protocols(ALPN);
    ClientTls::of(config)
}

#[tokio::test]
async fn a_client_certificate_of_the_ca_is_optional_and_gives_an_identity() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::OptionalCa(vec![ca.root.clone()]));
    let (near, far) = handshake(&client(&ca.trust(), None), &server).await;
    near.unwrap();
    assert_eq!(
        far.unwrap().1,
        PeerInfo {
            alpn: Some(ALPN[0].to_vec()),
            ..PeerInfo::default()
        }
    );
    let node = ca.issue("spiffe://secure-gateway/node/n2", |_| {});
    let (near, far) = handshake(&client(&ca.trust(), Some(&node)), &server).await;
    near.unwrap();
    assert_eq!(far.unwrap().1.identity.unwrap().id, "n2");
}

#[tokio::test]
async fn a_client_certificate_of_another_ca_or_out_of_date_is_refused() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::OptionalCa(vec![ca.root.clone()]));
    let expired = ca.issue(NODE, |params| {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1)
    });
    for credentials in [Ca::new().node(), self_signed_client(), expired] {
        let (_near, far) = handshake(&client(&ca.trust(), Some(&credentials)), &server).await;
        assert_eq!(far.map(|_| ()).unwrap_err().reason(), "bad-certificate");
    }
}

#[tokio::test]
async fn a_replaced_certificate_is_shown_from_then_on() {
    let (old, new) = (Ca::new(), Ca::new());
    let certificate = ServerCertificate::new(&old.node()).unwrap();
    let server = server_config(&certificate, &ClientAuth::NoneAsked, ALPN).unwrap();
    assert!(
        handshake(&client(&old.trust(), None), &server)
            .await
            .0
            .is_ok()
    );
    let mismatched = Credentials::new(new.node().chain().to_vec(), KeyPair::generate());
    assert!(certificate.replace(&mismatched).is_err());
    assert!(
        handshake(&client(&old.trust(), None), &server)
            .await
            .0
            .is_ok()
    );
    certificate.replace(&new.node()).unwrap();
    assert!(
        handshake(&client(&new.trust(), None), &server)
            .await
            .0
            .is_ok()
    );
    assert!(
        handshake(&client(&old.trust(), None), &server)
            .await
            .0
            .is_err()
    );
}

#[tokio::test]
async fn a_resumed_session_still_knows_the_client() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::AnySelfSigned);
    let credentials = self_signed_client();
    let client = client(&ca.trust(), Some(&credentials));
    for resumed in [false, true] {
        let (near, far) = handshake(&client, &server).await;
        let ((mut near, _), (mut far, info)) = (near.unwrap(), far.unwrap());
        assert_eq!(info.client_id(), Some(credentials.key().client_id()));
        let kind = far.get_ref().1.handshake_kind();
        assert_eq!(
            kind == Some(rustls::HandshakeKind::Resumed),
            resumed,
            "{kind:?}"
        );
        // The tickets come with the first bytes from the server.
        far.write_all(b"x").await.unwrap();
        far.flush().await.unwrap();
        near.read_exact(&mut [0; 1]).await.unwrap();
    }
}

#[tokio::test]
async fn other_application_protocols_are_refused() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::NoneAsked);
    let client = client_config(&ca.trust(), PeerKind::Node, None, &[b"other"]).unwrap();
    let (near, far) = handshake(&client, &server).await;
    assert_eq!(near.map(|_| ()).unwrap_err().reason(), "tls-alert");
    assert_eq!(far.map(|_| ()).unwrap_err().reason(), "tls-incompatible");
}

#[tokio::test(start_paused = true)]
async fn a_handshake_that_stops_is_given_up_after_ten_seconds() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::NoneAsked);
    let (mut near, far) = duplex(64 * 1024);
    near.write_all(&[0x16, 3, 1, 2]).await.unwrap();
    let begin = tokio::time::Instant::now();
    let error = accept(&server, far).await.map(|_| ()).unwrap_err();
    assert_eq!((error.reason(), error.retryable()), ("tls-timeout", true));
    let elapsed = begin.elapsed();
    assert!(elapsed >= HANDSHAKE_TIMEOUT && elapsed < HANDSHAKE_TIMEOUT + Duration::from_secs(1));
    let (near, _silent) = duplex(64 * 1024);
    let error = connect(&client(&ca.trust(), None), near, "n")
        .await
        .map(|_| ())
        .unwrap_err();
    assert_eq!(error.reason(), "tls-timeout");
}

#[tokio::test]
async fn what_is_no_tls_is_told_apart_from_an_early_end() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::NoneAsked);
    let first_bytes: [(&[u8], &str); 4] = [
        (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", "not-tls"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "not-tls"),
        (&[0xff; 600], "not-tls"),
        (b"", "tls-closed"),
    ];
    for (bytes, reason) in first_bytes {
        let (mut near, far) = duplex(64 * 1024);
        near.write_all(bytes).await.unwrap();
        near.shutdown().await.unwrap();
        let error = accept(&server, far).await.map(|_| ()).unwrap_err();
        assert_eq!(error.reason(), reason, "{error}");
    }
}

#[test]
fn trust_is_read_from_a_file_name_or_a_hash() {
    let digits = "Ab".repeat(32);
    assert_eq!(
        format!("sha256:{digits}").parse(),
        Ok(Trust::Pin([0xab; 32]))
    );
    assert_eq!("ca.pem".parse(), Ok(Trust::Ca("ca.pem".into())));
    for bad in ["", "sha256:", "sha256:abcd", &format!("sha256:{digits}00")] {
        assert_eq!(bad.parse::<Trust>(), Err(ParseTrustError), "{bad}");
    }
}

#[test]
fn a_ca_file_that_is_missing_or_empty_is_named() {
    crypto::install();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ca.pem");
    for content in [
        None,
        Some(""),
        Some("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
    ] {
        if let Some(content) = content {
            std::fs::write(&path, content).unwrap();
        }
        let error =
            client_config(&Trust::Ca(path.clone()), PeerKind::Node, None, ALPN).unwrap_err();
        assert!(error.to_string().contains("ca.pem"), "{error}");
    }
}

#[tokio::test]
async fn both_ends_export_the_same_and_every_connection_something_else() {
    let ca = Ca::new();
    let server = server(&ca.node(), &ClientAuth::NoneAsked);
    let client = client(&ca.trust(), None);
    let mut seen = Vec::new();
    // The second handshake resumes the TLS session of the first.
    for _ in 0..2 {
        let (near, far) = handshake(&client, &server).await;
        let ((near, _), (far, _)) = (near.unwrap(), far.unwrap());
        for label in [b"EXPORTER-one".as_slice(), b"EXPORTER-two"] {
            let (mut here, mut there) = ([0; 32], [0; 32]);
            exporter(&near, label, &mut here).unwrap();
            exporter(&far, label, &mut there).unwrap();
            assert_eq!(here, there);
            assert!(!seen.contains(&here));
            seen.push(here);
        }
    }
}
