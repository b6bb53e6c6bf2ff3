//! Strangers at the tunnel port, and clients with the wrong papers: each is refused, counted and
//! logged without a secret, and nobody else notices.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustls::pki_types::ServerName;
use sg_tests::backend::Echo;
use sg_tests::bytes::Sequence;
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, Launch, PATIENCE, Site, SiteSetup, bytes, debian,
    eventually, prepare, within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// Counts, at the node, those who did not get a tunnel.
const REFUSED: &str = "sg_tunnels_refused_total";

/// A site with one good client, whose open connection must not notice anything.
struct Undisturbed {
    site: Site,
    gateway: Gateway,
    client: Client,
    destination: Destination,
    user: TcpStream,
    _resource: Echo,
}

impl Undisturbed {
    async fn start(setup: SiteSetup) -> Result<Self> {
        prepare();
        let resource = Echo::start().await?;
        let mut site = Site::with(setup).await?;
        let gateway = site.gateway("dev").await?;
        let client = site.client(&gateway).await?;
        let destination = site
            .destination(&gateway, "app", &resource.address(), &[])
            .await?;
        let mut user = destination.connect().await?;
        bytes::echo(&mut user, 1, 1000).await?;
        Ok(Self {
            site,
            gateway,
            client,
            destination,
            user,
            _resource: resource,
        })
    }

    async fn refused(&mut self) -> Result<f64> {
        Ok(self.site.node().metrics().await?.sum(REFUSED, &[]))
    }

    /// Waits until the node has counted one more than `before`, and logged it with this word.
    async fn counted_and_logged(&mut self, before: f64, word: &str) -> Result<()> {
        let node = self.site.node();
        eventually(
            PATIENCE,
            &format!("the node counts and logs {word}"),
            async || {
                let now = node.metrics().await?.sum(REFUSED, &[]);
                ensure!(now > before, "{REFUSED} is still {now}");
                let lines = node.lines()?;
                ensure!(
                    lines.iter().any(|line| line.mentions(word)),
                    "no line has {word}"
                );
                Ok(())
            },
        )
        .await
    }

    /// As [`Self::finish`], with a node that ends by itself: the library that bends its clock
    /// leaves shared memory behind otherwise.
    async fn finish_in_order(mut self) -> Result<()> {
        self.check().await?;
        drop(self.user);
        let status = self.site.node().stop(PATIENCE).await?;
        ensure!(status.success(), "{status}");
        self.site.finish()
    }

    /// The good client and its user have noticed nothing; no secret is in a log.
    async fn finish(mut self) -> Result<()> {
        self.check().await?;
        drop(self.client);
        self.site.finish()
    }

    async fn check(&mut self) -> Result<()> {
        bytes::echo(&mut self.user, 2, 100_000)
            .await
            .context("the open connection")?;
        let mut user = self.destination.connect().await?;
        bytes::echo(&mut user, 3, 1000)
            .await
            .context("a new connection")?;
        let rows = self.site.client_rows(&self.gateway).await?;
        ensure!(rows.len() == 1, "{rows:?}");
        let tunnels = rows[0]["tunnels"].as_array().context("tunnels")?;
        ensure!(tunnels.len() == 1, "{rows:?}");
        Ok(())
    }

    /// Starts a client with `--once`; it must end with a failure. Answers what it has logged.
    async fn refused_client(&mut self, setup: ClientSetup) -> Result<String> {
        let setup = ClientSetup {
            once: true,
            ..setup
        };
        let mut client = self.site.prepare_client(&self.gateway, setup)?;
        client.daemon.launch()?;
        let status = client.daemon.process()?.ended(PATIENCE).await?;
        ensure!(
            status.code() == Some(1),
            "{status}: {}",
            client.daemon.log()?
        );
        client.daemon.log()
    }
}

#[tokio::test]
async fn a_wrong_token_is_refused() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let wrong = format!("sgt_{}", "0123456789abcdef".repeat(4));
    let token_file: PathBuf = site.site.secret_file("wrong.token", &wrong)?;
    let setup = ClientSetup {
        token_file: Some(token_file),
        ..ClientSetup::default()
    };
    let log = site.refused_client(setup).await?;
    ensure!(log.contains("unauthenticated"), "{log}");
    site.counted_and_logged(before, "unauthenticated").await?;
    site.finish().await
}

#[tokio::test]
async fn a_token_of_another_gateway_is_refused() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let other = site.site.gateway("other").await?;
    let setup = ClientSetup {
        token_file: Some(other.token_file),
        ..ClientSetup::default()
    };
    let log = site.refused_client(setup).await?;
    ensure!(log.contains("unauthenticated"), "{log}");
    site.counted_and_logged(before, "unauthenticated").await?;
    site.finish().await
}

#[tokio::test]
async fn a_rotated_token_is_refused_and_the_new_one_is_not() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let other = site.site.gateway("other").await?;
    let rotated = site
        .site
        .sgctl
        .json(&["gateway", "token", "rotate", "other"])
        .await?;
    let token = rotated["securityToken"].as_str().context("securityToken")?;
    let new = site.site.secret_file("new.token", token)?;
    let gateway = std::mem::replace(&mut site.gateway, other);
    // It tries again until the node has heard of the rotation, so the old one is out afterwards.
    let mut client = site.site.prepare_client(
        &site.gateway,
        ClientSetup {
            token_file: Some(new),
            ..ClientSetup::default()
        },
    )?;
    client.connect().await.context("the new token")?;
    let log = site.refused_client(ClientSetup::default()).await?;
    ensure!(log.contains("unauthenticated"), "{log}");
    site.gateway = gateway;
    site.finish().await
}

#[tokio::test]
async fn an_expired_token_is_refused() -> Result<()> {
    // The node's clock is two days ahead, so that a token of one day has expired.
    let library = ["x86_64-linux-gnu", "aarch64-linux-gnu"]
        .map(|kind| PathBuf::from(format!("/usr/lib/{kind}/faketime/libfaketimeMT.so.1")))
        .into_iter()
        .find(|path| path.is_file())
        .context("faketime is not installed: ./test installs what is missing")?;
    let ahead = vec![
        ("LD_PRELOAD", library.display().to_string()),
        ("FAKETIME", "+2d".to_owned()),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1".to_owned()),
    ];
    let setup = SiteSetup {
        node_environment: ahead,
        ..SiteSetup::default()
    };
    let mut site = Undisturbed::start(setup).await?;
    let before = site.refused().await?;
    let made = site
        .site
        .sgctl
        .json(&["gateway", "create", "short", "--token-days", "1"])
        .await?;
    let token = made["securityToken"].as_str().context("securityToken")?;
    let token_file = site.site.secret_file("short.token", token)?;
    let id = made["id"].as_str().context("id")?.to_owned();
    let setup = ClientSetup {
        token_file: Some(token_file),
        gateway: Some(id),
        ..ClientSetup::default()
    };
    let log = site.refused_client(setup).await?;
    ensure!(log.contains("token-expired"), "{log}");
    site.counted_and_logged(before, "token-expired").await?;
    site.finish_in_order().await
}

#[tokio::test]
async fn an_unknown_gateway_is_refused_as_a_wrong_token_is() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let setup = ClientSetup {
        gateway: Some("nosuchgateway".to_owned()),
        ..ClientSetup::default()
    };
    let log = site.refused_client(setup).await?;
    // Nobody can find out which gateways there are.
    ensure!(log.contains("unauthenticated"), "{log}");
    site.counted_and_logged(before, "unauthenticated").await?;
    site.finish().await
}

#[tokio::test]
async fn a_disabled_gateway_is_refused_and_its_tunnels_end() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let other = site.site.gateway("other").await?;
    let mut connected = site.site.client(&other).await?;
    site.site.clients_listed(&other, 1).await?;
    site.site
        .sgctl
        .run(&["gateway", "disable", "other"])
        .await?;
    site.site.clients_listed(&other, 0).await?;
    connected.daemon.process()?.check_running()?;

    let gateway = std::mem::replace(&mut site.gateway, other.clone());
    let log = site.refused_client(ClientSetup::default()).await?;
    ensure!(log.contains("gateway-disabled"), "{log}");
    site.gateway = gateway;
    site.counted_and_logged(before, "gateway-disabled").await?;

    // It has not given up: it is back when the gateway is.
    site.site.sgctl.run(&["gateway", "enable", "other"]).await?;
    site.site.clients_listed(&other, 1).await?;
    drop(connected);
    site.finish().await
}

#[tokio::test]
async fn a_client_with_the_wrong_ca_refuses_the_node() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let setup = ClientSetup {
        ca: Some(format!("sha256:{}", "ab".repeat(32))),
        ..ClientSetup::default()
    };
    let log = site.refused_client(setup).await?;
    ensure!(log.contains("wrong-peer"), "{log}");
    // The node has been told by the client's TLS.
    site.counted_and_logged(before, "tls-alert").await?;
    site.finish().await
}

#[tokio::test]
async fn a_client_with_the_right_pin_is_served() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let setup = ClientSetup {
        ca: Some(pin(&site.site.ca_file()).await?),
        ..ClientSetup::default()
    };
    let mut client = site.site.prepare_client(&site.gateway, setup)?;
    client.connect().await?;
    site.site.clients_listed(&site.gateway, 2).await?;
    client.daemon.kill()?;
    site.site.clients_listed(&site.gateway, 1).await?;
    site.finish().await
}

/// The SHA-256 of the public key in a certificate, as openssl sees it.
async fn pin(ca: &std::path::Path) -> Result<String> {
    let script = format!(
        "openssl x509 -in '{}' -noout -pubkey | openssl pkey -pubin -outform DER | \
         openssl dgst -sha256 -r",
        ca.display()
    );
    let folder = ca.parent().context("folder")?;
    let shell = Launch::new("pin", debian("sh")?, folder);
    let output = shell.arg("-c").arg(script).run().await?;
    Ok(format!(
        "sha256:{}",
        output.split_whitespace().next().context("digest")?
    ))
}

/// Sends `bytes` to the tunnel port and waits until the node closes.
async fn stranger(site: &mut Undisturbed, bytes: &[u8]) -> Result<()> {
    let before = site.refused().await?;
    let mut stream = TcpStream::connect(site.site.tunnel_address(0)).await?;
    stream.write_all(bytes).await?;
    let closed = async {
        let mut buffer = [0; 4096];
        // An alert may come before the end, and the end may be a reset.
        while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
    };
    within(Duration::from_secs(2), "the node closes", closed).await?;
    site.counted_and_logged(before, "not-tls").await
}

#[tokio::test]
async fn plain_http_on_the_tunnel_port_is_refused() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    stranger(&mut site, b"GET / HTTP/1.1\r\nHost: example.com\r\n\r\n").await?;
    site.finish().await
}

#[tokio::test]
async fn garbage_on_the_tunnel_port_is_refused() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    for seed in 1..=20 {
        // A first byte that begins no TLS record, so that the node can tell at once.
        let mut garbage = Sequence::new(seed).take(2000);
        garbage[0] |= 0x80;
        stranger(&mut site, &garbage)
            .await
            .with_context(|| format!("seed {seed}"))?;
    }
    site.finish().await
}

#[tokio::test]
async fn who_stops_in_the_handshake_is_closed_after_ten_seconds() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let before = site.refused().await?;
    let start = Instant::now();
    // One says nothing at all, the other a whole ClientHello and then no more.
    let mut mute = TcpStream::connect(site.site.tunnel_address(0)).await?;
    let mut half = TcpStream::connect(site.site.tunnel_address(0)).await?;
    half.write_all(&client_hello()?).await?;
    ensure!(
        half.read(&mut [0; 1]).await? == 1,
        "the node answers a ClientHello"
    );
    for (stream, what) in [
        (&mut mute, "says nothing"),
        (&mut half, "stops after its hello"),
    ] {
        let closed = async {
            let mut buffer = [0; 4096];
            while stream.read(&mut buffer).await.is_ok_and(|count| count > 0) {}
        };
        within(Duration::from_secs(12), what, closed).await?;
        let after = start.elapsed();
        ensure!(
            after > Duration::from_secs(9),
            "who {what} was closed after {after:?}"
        );
    }
    let node = site.site.node();
    eventually(PATIENCE, "both are counted", async || {
        let metrics = node.metrics().await?;
        let late = metrics.sum(REFUSED, &[("reason", "tls-timeout")]);
        ensure!(
            metrics.sum(REFUSED, &[]) >= before + 2.0 && late > 1.5,
            "{late}"
        );
        Ok(())
    })
    .await?;
    site.finish().await
}

#[tokio::test]
async fn a_tls_client_that_is_none_of_ours_is_refused() -> Result<()> {
    let mut site = Undisturbed::start(SiteSetup::default()).await?;
    let address = site.site.tunnel_address(0).to_string();
    for (protocol, word) in [
        ("h2", "tls-incompatible"),
        ("sg-tunnel/1", "no-certificate"),
    ] {
        let before = site.refused().await?;
        let folder = site.site.folder().to_owned();
        // It has no certificate, and goes when the node does.
        let openssl = Launch::new("openssl", debian("openssl")?, &folder)
            .arg("s_client")
            .arg("-quiet")
            .option("-alpn", protocol)
            .option("-connect", &address);
        let mut process = openssl.start()?;
        let status = process.ended(Duration::from_secs(5)).await?;
        ensure!(!process.output()?.is_empty(), "{status}");
        site.counted_and_logged(before, word).await?;
    }
    site.finish().await
}

/// The first message of a TLS client that offers what tunnels offer.
fn client_hello() -> Result<Vec<u8>> {
    sg_runtime::crypto::install();
    let mut config = rustls::ClientConfig::builder()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    config.alpn_protocols = vec![b"sg-tunnel/1".to_vec()];
    let name = ServerName::try_from("localhost")?;
    let mut connection = rustls::ClientConnection::new(Arc::new(config), name)?;
    let mut hello = Vec::new();
    connection.write_tls(&mut hello)?;
    Ok(hello)
}
