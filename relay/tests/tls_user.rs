//! How users are accepted: certificates by name, users' certificates, application protocols, PostgreSQL's
//! question, and what is said of those who do not begin with TLS.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod certs;

use std::sync::Arc;

use certs::{Ca, HOST, Own, Wish, client, connection, soon};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use sg_relay::tls::{Alpn, TlsError, TlsFacts, TlsStream, UserTls, UserTlsSettings};
use sg_relay::{RawEnd, ResetOnDrop};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{Duration, Instant};

type Peer = std::io::Result<tokio_rustls::client::TlsStream<TcpStream>>;

fn user_tls(servers: &[&Own], change: impl FnOnce(&mut UserTlsSettings)) -> UserTls {
    let mut settings = UserTlsSettings {
        servers: servers.iter().map(|own| own.pair()).collect(),
        ..UserTlsSettings::default()
    };
    change(&mut settings);
    UserTls::new(settings).unwrap()
}

/// A client of another make meets ours; it also reads a byte, so that a refusal after its handshake is seen.
async fn meet(
    tls: &UserTls,
    config: Arc<ClientConfig>,
    name: &str,
    choice: Option<&[u8]>,
) -> (Peer, Result<(TlsStream, TlsFacts), TlsError>) {
    let (near, far) = connection().await;
    let name = ServerName::try_from(name.to_owned()).unwrap();
    let peer = async {
        let connector = tokio_rustls::TlsConnector::from(config);
        let mut peer = connector.connect(name, near).await?;
        peer.read_exact(&mut [0]).await?;
        Ok(peer)
    };
    let ours = async {
        let hello = tls.accept(far, soon()).await?;
        let (mut stream, facts) = hello.finish(choice, soon()).await?;
        stream.write_all(b"x").await.unwrap();
        Ok((stream, facts))
    };
    tokio::join!(peer, ours)
}

fn shown(peer: Peer) -> Vec<u8> {
    peer.unwrap().get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

#[tokio::test]
async fn the_name_chooses_the_certificate() {
    let ca = Ca::new("our ca");
    let first = ca.issue(&Wish {
        names: vec!["first.example".to_owned(), "127.0.0.1".to_owned()],
        ..Wish::default()
    });
    let exact = ca.issue(&Wish::named("www.apps.example"));
    let star = ca.issue(&Wish::named("*.apps.example"));
    let tls = user_tls(&[&first, &star, &exact], |_| {});
    let config = client(&ca, None, &[]);
    for (name, own) in [
        ("first.example", &first),
        ("www.apps.example", &exact),
        ("WWW.apps.example", &exact),
        ("other.apps.example", &star),
        // No name: the first.
        ("127.0.0.1", &first),
    ] {
        let (peer, ours) = meet(&tls, Arc::clone(&config), name, None).await;
        assert_eq!(shown(peer), own.leaf().to_vec(), "{name}");
        let sni = ours.unwrap().1.sni;
        assert_eq!(sni.is_some(), name != "127.0.0.1");
    }
    // No match: the first, too, which this client refuses; its alert is ours to name.
    let (peer, ours) = meet(&tls, config, "nobody.example", None).await;
    peer.unwrap_err();
    let error = ours.unwrap_err();
    assert_eq!(error.as_str(), "tls-handshake-refused");
    assert!(error.to_string().contains("does not accept"), "{error}");
}

#[tokio::test]
async fn the_application_protocol_is_mirrored_or_from_a_list() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let mirror = user_tls(&[&own], |_| {});
    let fixed = user_tls(&[&own], |settings| {
        settings.alpn = Alpn::Fixed(vec![b"h2".to_vec(), b"http/1.1".to_vec()]);
    });
    let nothing: &[&str] = &[];
    for (tls, offer, choice, agreed) in [
        (&mirror, &["x", "y"][..], None, None),
        (&mirror, &["x"], None, Some("x")),
        (&mirror, &["x", "y"], Some("y"), Some("y")),
        (&mirror, &["x", "y"], Some("z"), None),
        (&mirror, nothing, Some("z"), None),
        (&mirror, nothing, None, None),
        (&fixed, &["http/1.1", "h2"], None, Some("h2")),
        (&fixed, &["http/1.1"], None, Some("http/1.1")),
        (&fixed, nothing, None, None),
    ] {
        let config = client(&ca, None, offer);
        let (peer, ours) = meet(tls, config, HOST, choice.map(str::as_bytes)).await;
        let agreed = agreed.map(str::as_bytes);
        assert_eq!(peer.unwrap().get_ref().1.alpn_protocol(), agreed);
        assert_eq!(ours.unwrap().1.alpn.as_deref(), agreed);
    }
    let (peer, ours) = meet(&fixed, client(&ca, None, &["x"]), HOST, None).await;
    peer.unwrap_err();
    assert_eq!(ours.unwrap_err().as_str(), "tls-failed");

    let (near, far) = connection().await;
    let connector = tokio_rustls::TlsConnector::from(client(&ca, None, &["x", "y"]));
    let name = ServerName::try_from(HOST).unwrap();
    let peer = connector.connect(name, near);
    let ours = async {
        let hello = mirror.accept(far, soon()).await.unwrap();
        assert_eq!(hello.sni(), Some(HOST));
        assert_eq!(hello.alpn(), [b"x".to_vec(), b"y".to_vec()]);
        assert!(hello.tcp().peer_addr().is_ok());
        hello.finish(None, soon()).await.unwrap()
    };
    let (peer, _ours) = tokio::join!(peer, ours);
    peer.unwrap();
}

#[tokio::test]
async fn a_user_must_show_a_certificate_where_one_is_demanded() {
    let (ca, users, more) = (Ca::new("our ca"), Ca::new("users"), Ca::new("more users"));
    let server = ca.issue(&Wish::default());
    let pinned = Own::self_signed(&Wish::ca_true());
    let expired = Own::self_signed(&Wish::expired());
    let tls = user_tls(&[&server], |settings| {
        settings.users = Some(vec![
            users.certificate.clone(),
            more.certificate.clone(),
            pinned.leaf().clone(),
            expired.leaf().clone(),
        ]);
    });
    let good = users.issue(&Wish::named("Alice"));
    let other = more.issue(&Wish::named("Bob"));
    for (own, name) in [(&good, "Alice"), (&other, "Bob"), (&pinned, HOST)] {
        let (peer, ours) = meet(&tls, client(&ca, Some(own), &[]), HOST, None).await;
        peer.unwrap();
        let shown = ours.unwrap().1.peer.unwrap();
        assert_eq!(shown.der, *own.leaf());
        assert_eq!((shown.common_name.as_str(), shown.verified), (name, true));
    }
    let stranger = Ca::new("strangers").issue(&Wish::named("Eve"));
    let old = users.issue(&Wish::expired());
    let unknown = Own::self_signed(&Wish::ca_true());
    for (own, word) in [
        (None, "no-certificate"),
        (Some(&stranger), "tls-unknown-issuer"),
        (Some(&unknown), "tls-unknown-issuer"),
        (Some(&old), "tls-expired"),
        (Some(&expired), "tls-expired"),
    ] {
        let (peer, ours) = meet(&tls, client(&ca, own, &[]), HOST, None).await;
        assert_eq!(ours.unwrap_err().as_str(), word);
        // The client is told by an alert, not by a reset.
        let error = peer.unwrap_err();
        let inner = error.get_ref().and_then(|inner| inner.downcast_ref());
        assert!(
            matches!(inner, Some(rustls::Error::AlertReceived(_))),
            "{word}: {error}"
        );
    }
    // Another set of certificates takes up no session of the first.
    let config = client(&ca, Some(&good), &[]);
    for again in [false, true] {
        let (peer, ours) = meet(&tls, Arc::clone(&config), HOST, None).await;
        peer.unwrap();
        let facts = ours.unwrap().1;
        assert_eq!(facts.resumed, again);
        assert_eq!(facts.peer.unwrap().common_name, "Alice");
    }
    let narrower = user_tls(&[&server], |settings| {
        settings.users = Some(vec![more.certificate.clone()]);
    });
    let (_, ours) = meet(&narrower, config, HOST, None).await;
    assert_eq!(ours.unwrap_err().as_str(), "tls-unknown-issuer");
}

/// What comes of a user who says this.
async fn says(tls: &UserTls, bytes: &[u8], limit: Duration) -> (TlsError, TcpStream) {
    let (mut near, far) = connection().await;
    near.write_all(bytes).await.unwrap();
    let deadline = Instant::now() + limit;
    let result = tls.accept(far, deadline).await;
    (result.map(drop).unwrap_err(), near)
}

#[tokio::test]
async fn who_does_not_begin_with_tls_is_told_apart() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let tls = user_tls(&[&own], |_| {});
    let long = Duration::from_secs(20);
    for (bytes, word, text) in [
        (&b"GET / HTTP/1.1\r\n\r\n"[..], "not-tls", "plain HTTP"),
        (b"SSH-2.0-x\r\n", "not-tls", "SSH"),
        (b"\0\0\0\x08\x04\xd2\x16\x2f", "postgres-preface", "preface"),
        (b"\0\0\0\x08\x04\xd2\x16\x30", "postgres-preface", "preface"),
        (b"\x16\x03\x01\xff\xff", "tls-failed", ""),
    ] {
        let (error, _near) = says(&tls, bytes, long).await;
        assert_eq!(error.as_str(), word, "{error}");
        assert!(error.to_string().contains(text), "{error}");
    }
    // Silence, and half a message.
    for bytes in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let (error, _near) = says(&tls, bytes, Duration::from_millis(100)).await;
        assert_eq!(error.as_str(), "tls-timeout");
    }
    let (near, far) = connection().await;
    drop(near);
    assert_eq!(
        tls.accept(far, soon()).await.unwrap_err().as_str(),
        "tls-closed"
    );
    // A first message without end: a record after the other, all of one message.
    let (mut near, far) = connection().await;
    let endless = async {
        let mut record = vec![0x16, 3, 1, 0x40, 0];
        record.extend([1, 0xff, 0xff, 0xff]);
        record.resize(5 + 0x4000, 0);
        while near.write_all(&record).await.is_ok() {}
    };
    let ours = async {
        let error = tls.accept(far, soon()).await.unwrap_err();
        assert_eq!(error.as_str(), "tls-failed");
    };
    tokio::join!(endless, ours);
    // One that says it is long is not waited for.
    let (error, _near) = says(&tls, b"\x16\x03\x01\x41\x00\x01\x00\x40\x01\x03", long).await;
    assert!(error.to_string().contains("too long"), "{error}");
    // A header that is spread over two records says nothing yet.
    let spread = b"\x16\x03\x01\x00\x01\x01\x16\x03\x01\x00\x03\x00\x00";
    let (error, _near) = says(&tls, spread, Duration::from_millis(100)).await;
    assert_eq!(error.as_str(), "tls-timeout");
}

#[tokio::test]
async fn a_refusal_waits_for_nobody() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let tls = user_tls(&[&own], |_| {});
    let (mut near, far) = connection().await;
    // Takes nothing: there is no room for an alert.
    let mut idle = 0;
    while idle < 3 {
        match far.try_write(&[b'S'; 65_536]) {
            Ok(_) => idle = 0,
            Err(_) => {
                idle += 1;
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }
    // A handshake message that is no ClientHello.
    let wrong = [0x16, 3, 1, 0, 5, 2, 0, 0, 1, 0];
    near.write_all(&wrong).await.unwrap();
    let accept = tls.accept(far, Instant::now() + Duration::from_secs(1));
    let refused = tokio::time::timeout(Duration::from_secs(5), accept).await;
    assert_eq!(refused.unwrap().unwrap_err().as_str(), "tls-failed");
}

#[tokio::test]
async fn a_postgresql_client_is_answered_where_that_is_asked_for() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let tls = user_tls(&[&own], |settings| settings.postgres = true);
    let questions: [&[&[u8]]; 3] = [
        &[],
        &[b"\0\0\0\x08\x04\xd2\x16\x2f"],
        &[b"\0\0\0\x08\x04\xd2\x16\x30", b"\0\0\0\x08\x04\xd2\x16\x2f"],
    ];
    for questions in questions {
        let (mut near, far) = connection().await;
        let peer = async {
            for question in questions {
                near.write_all(question).await.unwrap();
                let answer = near.read_u8().await.unwrap();
                assert_eq!(answer, if question[7] == 0x2f { b'S' } else { b'N' });
            }
            let name = ServerName::try_from(HOST).unwrap();
            tokio_rustls::TlsConnector::from(client(&ca, None, &[]))
                .connect(name, near)
                .await
                .unwrap()
        };
        let ours = async {
            let hello = tls.accept(far, soon()).await.unwrap();
            hello.finish(None, soon()).await.unwrap()
        };
        tokio::join!(peer, ours);
    }
    // Whoever asks for ever is not answered for ever.
    let (mut near, far) = connection().await;
    let peer = async {
        for answer in [Some(b'S'), None] {
            near.write_all(questions[1][0]).await.unwrap();
            assert_eq!(near.read_u8().await.ok(), answer);
        }
    };
    let ours = async { tls.accept(far, soon()).await.map(drop).unwrap_err() };
    let ((), error) = tokio::join!(peer, ours);
    assert_eq!(error.as_str(), "not-tls");
    // What came before our answer was not secured, and is not taken as if it were.
    let smuggled = b"\0\0\0\x08\x04\xd2\x16\x2f\x16\x03\x01";
    let (error, _near) = says(&tls, smuggled, Duration::from_secs(20)).await;
    assert_eq!(error.as_str(), "not-tls");
}

#[tokio::test]
async fn bytes_that_were_read_before_come_first() {
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let tls = user_tls(&[&own], |_| {});
    let (near, mut far) = connection().await;
    let name = ServerName::try_from(HOST).unwrap();
    let connector = tokio_rustls::TlsConnector::from(client(&ca, None, &[]));
    let peer = connector.connect(name, near);
    let ours = async {
        let mut front = vec![0; 20];
        far.read_exact(&mut front).await.unwrap();
        let io = RawEnd::with_front(ResetOnDrop::new(far), front.into());
        let hello = tls.accept(io, soon()).await.unwrap();
        hello.finish(None, soon()).await.unwrap()
    };
    let (peer, _ours) = tokio::join!(peer, ours);
    peer.unwrap();
}
