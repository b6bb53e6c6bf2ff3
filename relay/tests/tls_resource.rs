//! What a resource must show, and what is said of one that shows something else.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod certs;

use std::sync::Arc;

use certs::{Ca, HOST, Own, Wish, connection, server, soon};
use rustls::ServerConfig;
use rustls::pki_types::CertificateDer;
use sg_relay::tls::{ResourceTls, ResourceTlsSettings, TlsError, TlsFacts, TlsStream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Duration, Instant};

fn settings(certificates: &[&CertificateDer<'static>]) -> ResourceTlsSettings {
    let mut settings = ResourceTlsSettings::new(HOST);
    settings.certificates = certificates.iter().map(|&one| one.clone()).collect();
    settings
}

/// Connects to a server of another make, which echoes.
async fn connect(
    settings: ResourceTlsSettings,
    server: Arc<ServerConfig>,
) -> Result<(TlsStream, TlsFacts, JoinSet<()>), TlsError> {
    let (near, far) = connection().await;
    let echo = async move {
        if let Ok(tls) = tokio_rustls::TlsAcceptor::from(server).accept(far).await {
            let (mut read, mut write) = tokio::io::split(tls);
            drop(tokio::io::copy(&mut read, &mut write).await);
            drop(write.shutdown().await);
        }
    };
    let tls = ResourceTls::new(settings).unwrap();
    let mut echoes = JoinSet::new();
    echoes.spawn(echo);
    let (stream, facts) = tls.connect(near, soon()).await?;
    Ok((stream, facts, echoes))
}

async fn expect(settings: ResourceTlsSettings, own: &Own, word: &str) -> String {
    for only_12 in [false, true] {
        let result = connect(settings.clone(), server(own, None, only_12)).await;
        match result {
            Ok((mut stream, facts, _echo)) => {
                assert_eq!(word, "ok");
                stream.write_all(b"hello").await.unwrap();
                stream.shutdown().await.unwrap();
                let mut answer = Vec::new();
                stream.read_to_end(&mut answer).await.unwrap();
                assert_eq!(answer, b"hello");
                assert_eq!(facts.version, if only_12 { "TLSv1.2" } else { "TLSv1.3" });
                assert_eq!(facts.peer.unwrap().der, *own.leaf());
            }
            Err(error) => {
                assert_eq!(error.as_str(), word, "{error}");
                if only_12 {
                    return error.to_string();
                }
            }
        }
    }
    String::new()
}

#[tokio::test]
async fn a_chain_to_an_uploaded_ca_is_accepted_and_the_rest_is_named() {
    let (ca, other) = (Ca::new("our ca"), Ca::new("another ca"));
    let good = ca.issue(&Wish::default());
    expect(settings(&[&ca.certificate]), &good, "ok").await;

    let text = expect(settings(&[&other.certificate]), &good, "tls-unknown-issuer").await;
    assert!(
        text.contains("CN=db.example") && text.contains("CN=our ca"),
        "{text}"
    );
    let expired = ca.issue(&Wish::expired());
    let text = expect(settings(&[&ca.certificate]), &expired, "tls-expired").await;
    assert!(text.contains("valid until 2"), "{text}");
    let early = ca.issue(&Wish::not_yet());
    expect(settings(&[&ca.certificate]), &early, "tls-not-yet-valid").await;
    let named = ca.issue(&Wish::named("web.example"));
    let text = expect(settings(&[&ca.certificate]), &named, "tls-name-mismatch").await;
    assert!(
        text.contains("\"db.example\"") && text.contains("web.example"),
        "{text}"
    );
    // The name that is asked for is the one that is checked.
    let mut asking = settings(&[&ca.certificate]);
    asking.sni = Some("web.example".to_owned());
    expect(asking, &named, "ok").await;
}

#[tokio::test]
async fn an_uploaded_certificate_is_accepted_as_such_with_its_dates_and_name() {
    for wish in [Wish::default(), Wish::ca_true()] {
        let own = Own::self_signed(&wish);
        expect(settings(&[own.leaf()]), &own, "ok").await;
        // Not by another that merely has the same names.
        let other = Own::self_signed(&wish);
        let text = expect(settings(&[other.leaf()]), &own, "tls-unknown-issuer").await;
        assert!(text.contains("upload this very certificate"), "{text}");
        let dated = Own::self_signed(&Wish {
            is_ca: wish.is_ca,
            ..Wish::expired()
        });
        let text = expect(settings(&[dated.leaf()]), &dated, "tls-expired").await;
        assert!(text.contains("CN=db.example"), "{text}");
        let named = Own::self_signed(&Wish {
            is_ca: wish.is_ca,
            ..Wish::named("web.example")
        });
        let text = expect(settings(&[named.leaf()]), &named, "tls-name-mismatch").await;
        assert!(text.contains("web.example"), "{text}");
        // A leaf of a CA that is not uploaded itself, too.
        let leaf = Ca::new("hidden ca").issue(&wish);
        expect(settings(&[leaf.leaf()]), &leaf, "ok").await;
    }
    let nameless = Own::self_signed(&Wish {
        names: Vec::new(),
        ..Wish::default()
    });
    let text = expect(settings(&[nameless.leaf()]), &nameless, "tls-name-mismatch").await;
    assert!(text.contains("CN=nobody and no alternative name"), "{text}");
}

#[tokio::test]
async fn one_of_many_uploaded_certificates_suffices() {
    let cas: Vec<_> = (0..7).map(|n| Ca::new(&format!("ca {n}"))).collect();
    let pem =
        |ca: &Ca| sg_runtime::identity::certificates_to_pem(std::slice::from_ref(&ca.certificate));
    // Four in one PEM bundle, three as DER.
    let bundle: String = cas[..4].iter().map(pem).collect();
    let mut files = vec![bundle.into_bytes()];
    files.extend(cas[4..].iter().map(|ca| ca.certificate.to_vec()));
    let mut asking = settings(&[]);
    for (n, file) in files.iter().enumerate() {
        let found = sg_runtime::tls::material::certificates(file, &format!("ca {n}")).unwrap();
        asking.certificates.extend(found);
    }
    assert_eq!(asking.certificates.len(), 7);
    for ca in [&cas[0], &cas[3], &cas[6]] {
        expect(asking.clone(), &ca.issue(&Wish::default()), "ok").await;
    }
}

#[tokio::test]
async fn addresses_are_checked_as_such_and_nothing_is_checked_when_that_is_asked_for() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::named("10.0.0.7"));
    let mut asking = settings(&[&ca.certificate]);
    asking.host = "10.0.0.7".to_owned();
    expect(asking.clone(), &own, "ok").await;
    asking.host = "10.0.0.8".to_owned();
    expect(asking, &own, "tls-name-mismatch").await;

    let mut anything = settings(&[]);
    anything.verify = false;
    let (_, facts, _) = connect(
        anything,
        server(&Own::self_signed(&Wish::expired()), None, false),
    )
    .await
    .unwrap();
    assert!(!facts.peer.unwrap().verified);
    assert_eq!(facts.sni.as_deref(), Some(HOST));
}

#[tokio::test]
async fn a_resource_that_wants_a_certificate_gets_ours_or_says_no() {
    let (ca, other) = (Ca::new("our ca"), Ca::new("another ca"));
    let own = ca.issue(&Wish::default());
    for only_12 in [false, true] {
        let wants = || server(&own, Some(&ca), only_12);
        let mut with = settings(&[&ca.certificate]);
        with.pair = Some(ca.issue(&Wish::named("client")).pair());
        connect(with.clone(), wants()).await.unwrap();
        let without = settings(&[&ca.certificate]);
        let error = connect(without, wants()).await.unwrap_err();
        assert_eq!(error.as_str(), "tls-handshake-refused", "{error}");
        assert!(
            error.to_string().contains("wants a client certificate"),
            "{error}"
        );
        with.pair = Some(other.issue(&Wish::named("client")).pair());
        let error = connect(with, wants()).await.unwrap_err();
        assert_eq!(error.as_str(), "tls-handshake-refused", "{error}");
        assert!(error.to_string().contains("does not accept"), "{error}");
    }
}

#[tokio::test]
async fn a_session_that_is_taken_up_again_is_no_way_around_the_dates() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let tls = ResourceTls::new(settings(&[&ca.certificate])).unwrap();
    let server = server(&own, None, false);
    for resumed in [false, true] {
        let (near, far) = connection().await;
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::clone(&server));
        let peer = async {
            let mut peer = acceptor.accept(far).await.unwrap();
            peer.write_all(b"x").await.unwrap();
            peer
        };
        let (connected, _peer) = tokio::join!(tls.connect(near, soon()), peer);
        let (mut stream, facts) = connected.unwrap();
        assert_eq!(facts.resumed, resumed);
        assert_eq!(facts.peer.unwrap().der, *own.leaf());
        stream.read_exact(&mut [0]).await.unwrap();
    }
}

/// What comes of a peer that does this with its connection.
async fn strange(
    peer: impl AsyncFnOnce(&mut tokio::net::TcpStream),
    deadline: Duration,
) -> TlsError {
    let ca = Ca::new("our ca");
    let tls = ResourceTls::new(settings(&[&ca.certificate])).unwrap();
    let (near, mut far) = connection().await;
    let connect = tls.connect(near, Instant::now() + deadline);
    let (error, ()) = tokio::join!(connect, peer(&mut far));
    error.unwrap_err()
}

#[tokio::test]
async fn a_peer_without_tls_is_named_by_what_it_does() {
    let long = Duration::from_secs(20);
    for (says, shown) in [
        (
            "HTTP/1.1 400 Bad Request\r\n\r\n<html>",
            "HTTP/1.1 400 Bad Request",
        ),
        ("220 mail.example ESMTP\r\n", "220 mail.example ESMTP"),
        ("SSH-2.0-OpenSSH_9.2\r\n", "SSH-2.0-OpenSSH_9.2"),
    ] {
        let error = strange(
            async |tcp| tcp.write_all(says.as_bytes()).await.unwrap(),
            long,
        )
        .await;
        assert_eq!(error.as_str(), "tls-plain-text");
        assert!(error.to_string().contains(shown), "{error}");
    }
    let error = strange(async |tcp| tcp.shutdown().await.unwrap(), long).await;
    assert_eq!(error.as_str(), "tls-closed");
    let error = strange(async |_| {}, Duration::from_millis(100)).await;
    assert_eq!(error.as_str(), "tls-timeout");
    let alert = [21, 3, 3, 0, 2, 2, 70];
    let error = strange(async |tcp| tcp.write_all(&alert).await.unwrap(), long).await;
    assert_eq!(error.as_str(), "tls-handshake-refused");
    assert!(
        error.to_string().contains("neither TLS 1.2 nor 1.3"),
        "{error}"
    );
    let error = strange(
        async |tcp| {
            tcp.set_zero_linger().unwrap();
            tcp.read_u8().await.unwrap();
            let gone = std::mem::replace(tcp, connection().await.0);
            drop(gone);
        },
        long,
    )
    .await;
    assert_eq!(error.as_str(), "tcp-reset");
}

#[tokio::test]
async fn a_postgresql_server_is_asked_first() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let mut asking = settings(&[&ca.certificate]);
    asking.postgres = true;
    let tls = ResourceTls::new(asking).unwrap();
    for answer in [b'S', b'N'] {
        let (near, mut far) = connection().await;
        let server = server(&own, None, false);
        let peer = async {
            let mut question = [0; 8];
            far.read_exact(&mut question).await.unwrap();
            assert_eq!(question, [0, 0, 0, 8, 4, 210, 22, 47]);
            far.write_all(&[answer]).await.unwrap();
            if answer == b'S' {
                tokio_rustls::TlsAcceptor::from(server)
                    .accept(far)
                    .await
                    .unwrap();
            }
        };
        let (result, ()) = tokio::join!(tls.connect(near, soon()), peer);
        match answer {
            b'S' => drop(result.unwrap()),
            _ => assert_eq!(result.unwrap_err().as_str(), "tls-plain-text"),
        }
    }
}

#[test]
fn a_name_that_is_none_is_refused_at_once() {
    for host in ["", "a b", "a..b", "ä.example"] {
        let mut asking = settings(&[]);
        asking.host = host.to_owned();
        asking.verify = false;
        assert!(ResourceTls::new(asking).is_err(), "{host:?}");
    }
    for host in ["my_host", "a.example.", "[::1]", "::1"] {
        let mut asking = settings(&[]);
        asking.host = host.to_owned();
        asking.verify = false;
        ResourceTls::new(asking).unwrap();
    }
}
