//! What is changed in requests and answers.

use sg_relay::http::Forwarded;
use tokio::io::AsyncWriteExt;

use crate::rig::{Chain, Setup, echo_heads, read_to_end, read_until};

/// Sends one request through a chain; tells the head that arrived.
async fn arrived(setup: Setup, request: &str) -> String {
    let mut chain = setup.start();
    chain.send(request).await;
    let mut resource = chain.resource().await;
    let head = read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 204 "), "{answer}");
    head.to_lowercase()
}

#[tokio::test]
async fn the_resource_sees_its_own_host_and_who_the_user_is() {
    let request = "GET /a HTTP/1.1\r\nHost: shop.test\r\nX-Forwarded-For: 10.9.9.9\r\nForwarded: for=10.9.9.9\r\n\
                   X_Forwarded_For: 10.8.8.8\r\nX-Forwarded-Proto: https\r\n\r\n";
    let head = arrived(Setup::default(), request).await;
    assert!(head.contains("\r\nhost: resource.test:8080\r\n"), "{head}");
    assert!(
        head.contains("\r\nx-forwarded-for: 192.0.2.7\r\n"),
        "{head}"
    );
    assert!(head.contains("\r\nx-forwarded-proto: http\r\n"), "{head}");
    assert!(
        head.contains("\r\nx-forwarded-host: shop.test\r\n"),
        "{head}"
    );
    assert!(
        head.contains("\r\nforwarded: for=192.0.2.7;host=\"shop.test\";proto=http\r\n"),
        "{head}"
    );
    assert!(
        !head.contains("10.9.9.9") && !head.contains("10.8.8.8"),
        "{head}"
    );

    let trusting = Setup {
        forwarded: Forwarded::Append,
        ..Setup::default()
    };
    let head = arrived(trusting, request).await;
    assert!(
        head.contains("x-forwarded-for: 10.9.9.9, 192.0.2.7\r\n"),
        "{head}"
    );
    assert!(head.contains("x-forwarded-proto: https\r\n"), "{head}");

    let silent = Setup {
        forwarded: Forwarded::Off,
        ..Setup::default()
    };
    let head = arrived(silent, request).await;
    assert!(!head.contains("forwarded"), "{head}");
}

#[tokio::test]
async fn headers_of_one_hop_are_not_passed_on() {
    let request = "GET /a HTTP/1.1\r\nHost: shop.test\r\nConnection: keep-alive, X-Hop\r\nKeep-Alive: timeout=5\r\n\
                   X-Hop: a\r\nX-Stays: b\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic eA==\r\n\
                   TE: trailers, gzip\r\nAuthorization: Bearer t\r\nRange: bytes=0-3\r\n\r\n";
    let head = arrived(Setup::default(), request).await;
    for gone in ["keep-alive", "x-hop", "proxy-", "gzip"] {
        assert!(!head.contains(gone), "{gone} in {head}");
    }
    for stays in [
        "x-stays: b\r\n",
        "authorization: bearer t\r\n",
        "range: bytes=0-3\r\n",
        "te: trailers\r\n",
    ] {
        assert!(head.contains(stays), "{stays} not in {head}");
    }

    let mut chain = Chain::http1();
    chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    let mut resource = chain.resource().await;
    read_until(&mut resource, "\r\n\r\n").await;
    resource
        .write_all(
            b"HTTP/1.1 302 Found Here\r\nLocation: http://resource.test:8080/b\r\nConnection: X-Hop\r\nX-Hop: a\r\n\
              Keep-Alive: timeout=5\r\nX-Secure-Gateway-Error: refused\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\n\
              Content-Length: 0\r\n\r\n",
        )
        .await
        .unwrap();
    let answer = read_until(&mut chain.user, "\r\n\r\n").await;
    assert!(
        answer.starts_with("HTTP/1.1 302 Found Here\r\n"),
        "{answer}"
    );
    assert!(
        answer.contains("Location: http://resource.test:8080/b\r\n"),
        "{answer}"
    );
    assert_eq!(answer.matches("Set-Cookie: ").count(), 2, "{answer}");
    let lower = answer.to_lowercase();
    assert!(
        !lower.contains("x-hop") && !lower.contains("timeout=5"),
        "{answer}"
    );
    // Only we say so of ourselves.
    assert!(!lower.contains("x-secure-gateway-error"), "{answer}");
}

#[tokio::test]
async fn large_headers_pass_up_to_their_limit() {
    let mut chain = Chain::http1();
    let value = "y".repeat(1_900);
    let mut request = String::from("GET / HTTP/1.1\r\nHost: a\r\n");
    for n in 0..33 {
        request.push_str(&format!("X-{n}: {value}\r\n"));
    }
    request.push_str("\r\n");
    assert!(request.len() > 60_000 && request.len() <= 65_536);
    let mut resource = chain.resources;
    let serves = tokio::spawn(async move { echo_heads(resource.recv().await.unwrap()).await });
    let sent = chain.user.write_all(request.as_bytes());
    sent.await.unwrap();
    let answer = read_until(&mut chain.user, "X-32: ").await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"));
    // As many headers as may be, before ours are added.
    let many: String = (0..254).map(|n| format!("X-{n}: y\r\n")).collect();
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{many}\r\n");
    chain.user.write_all(request.as_bytes()).await.unwrap();
    let answer = read_until(&mut chain.user, "X-253: y").await;
    assert!(answer.contains("HTTP/1.1 200 OK\r\n"));
    serves.abort();
}

#[tokio::test]
async fn a_path_is_decided_on_at_both_ends_and_forwarded_as_it_was_decided_on() {
    let setup = || Setup {
        forbidden: "/admin",
        ..Setup::default()
    };
    let head = arrived(
        setup(),
        "GET //a/./b/../c%41?q=%2F HTTP/1.1\r\nHost: a\r\n\r\n",
    )
    .await;
    assert!(head.starts_with("get /a/ca?q=%2f http/1.1\r\n"), "{head}");
    for (target, status, word) in [
        ("/admin", 403, "acl-denied"),
        ("/x/../admin/y", 403, "acl-denied"),
        ("/%61dmin", 403, "acl-denied"),
        ("//admin", 403, "acl-denied"),
        ("/x/..%2fadmin", 400, "bad-request"),
        ("/x/..;/admin", 400, "bad-request"),
        ("/%2561dmin", 400, "bad-request"),
        ("/..\\admin", 400, "bad-request"),
        ("/../admin", 400, "bad-request"),
        ("/a%00", 400, "bad-request"),
    ] {
        let mut chain = setup().start();
        chain
            .send(format!(
                "GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
            ))
            .await;
        let answer = read_to_end(&mut chain.user).await.unwrap();
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{target}: {answer}"
        );
        assert!(
            answer.contains(&format!("x-secure-gateway-error: {word}\r\n")),
            "{answer}"
        );
        assert!(chain.resources.try_recv().is_err(), "{target}");
    }
}

#[tokio::test]
async fn failures_are_answers_that_say_their_word() {
    for (word, status) in [
        ("refused", 502),
        ("unreachable", 502),
        ("name-unknown", 502),
        ("tls-name-mismatch", 502),
        ("acl-denied", 403),
        ("no-client", 503),
        ("limit", 503),
        ("disabled", 503),
        ("connect-timeout", 504),
    ] {
        let mut chain = Chain::http1();
        *chain.world.refused.lock().unwrap() = Some(word);
        chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let answer = read_until(&mut chain.user, &format!("\r\n\r\n{word}: ")).await;
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status} ")),
            "{answer}"
        );
        assert!(
            answer.contains(&format!("x-secure-gateway-error: {word}\r\n")),
            "{answer}"
        );
        assert_eq!(
            answer.contains("retry-after: 1\r\n"),
            status == 503,
            "{answer}"
        );
        // The next request is served over the same connection.
        *chain.world.refused.lock().unwrap() = None;
        chain.send("GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        let mut resource = chain.resource().await;
        read_until(&mut resource, "\r\n\r\n").await;
        resource
            .write_all(b"HTTP/1.1 204 No Content\r\n\r\n")
            .await
            .unwrap();
        read_until(&mut chain.user, "HTTP/1.1 204 ").await;
    }
}
