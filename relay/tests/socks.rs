//! Dialling through real SOCKS proxies: dante for 4 and 5 and its rules, microsocks for passwords.

#![allow(clippy::unwrap_used)]

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use sg_relay::{Dial, DialError, Dialled, Socks, SocksVersion, Via};
use sg_runtime::secret::Secret;
use sg_tests::Ports;
use sg_tests::backend::Echo;
use sg_tests::counterpart::proxies::{PASSWORD, ProxyServer, USER};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const LIMIT: Duration = Duration::from_secs(10);

fn socks(version: SocksVersion, address: &str, password: Option<&str>) -> Socks {
    Socks {
        version,
        address: address.parse().unwrap(),
        user: password.map(|_| USER.to_owned()).unwrap_or_default(),
        password: password.map(|text| Secret::new(text.as_bytes().to_vec())),
    }
}

async fn dial(socks: &Socks, resource: &str, limit: Duration) -> Result<Dialled, DialError> {
    let via = Via {
        socks,
        permit: &|_| true,
    };
    let resource = resource.parse().unwrap();
    let dial = Dial {
        resource: &resource,
        limit,
        permit: &|ip: &IpAddr| *ip != IpAddr::from([127, 0, 0, 9]),
        via: Some(via),
        keepalive: None,
    };
    dial.run().await
}

async fn echoes(mut dialled: Dialled) {
    dialled.tcp.write_all(b"hello").await.unwrap();
    let mut back = [0; 5];
    dialled.tcp.read_exact(&mut back).await.unwrap();
    assert_eq!(&back, b"hello");
}

fn word(result: Result<Dialled, DialError>) -> &'static str {
    result.expect_err("it is refused").as_str()
}

struct Rig {
    folder: TempDir,
    ports: Ports,
    echo: Echo,
}

impl Rig {
    async fn new() -> Result<Self> {
        Ok(Self {
            folder: tempfile::tempdir()?,
            ports: Ports::take()?,
            echo: Echo::start().await?,
        })
    }

    fn echo_at(&self, host: &str) -> String {
        let address = self.echo.address();
        format!("{host}:{}", address.rsplit(':').next().unwrap())
    }
}

#[tokio::test]
async fn dante_connects_by_address_and_by_name() -> Result<()> {
    let mut rig = Rig::new().await?;
    let (port, denied) = (rig.ports.server(), rig.ports.server());
    let rule = format!("socks block {{ from: 0/0 to: 127.0.0.1/32 port = {denied} }}");
    let dante = ProxyServer::dante(rig.folder.path(), port, &rule).await?;
    for version in [SocksVersion::V4, SocksVersion::V5] {
        let socks = socks(version, &dante.address(), None);
        for host in ["127.0.0.1", "localhost"] {
            let dialled = dial(&socks, &rig.echo_at(host), LIMIT).await;
            let dialled = dialled.unwrap_or_else(|error| panic!("{version:?} {host}: {error}"));
            let known = host == "127.0.0.1" || version == SocksVersion::V4;
            assert_eq!(dialled.address.is_some(), known, "{version:?} {host}");
            echoes(dialled).await;
        }
        let refused = dial(&socks, &format!("127.0.0.1:{denied}"), LIMIT).await;
        assert_eq!(word(refused), "socks-refused", "{version:?}");
    }
    // What SOCKS 5 can tell and SOCKS 4 cannot.
    let closed = format!("127.0.0.1:{}", rig.ports.server());
    let five = socks(SocksVersion::V5, &dante.address(), None);
    assert_eq!(word(dial(&five, &closed, LIMIT).await), "refused");
    let four = socks(SocksVersion::V4, &dante.address(), None);
    assert_eq!(word(dial(&four, &closed, LIMIT).await), "socks-refused");
    // The permit is asked about what is known here, and before the proxy is.
    let forbidden = dial(&five, "127.0.0.9:80", LIMIT).await;
    assert_eq!(word(forbidden), "acl-denied");
    assert_eq!(word(dial(&four, "[::1]:80", LIMIT).await), "socks-protocol");
    Ok(())
}

#[tokio::test]
async fn microsocks_asks_for_a_password() -> Result<()> {
    let mut rig = Rig::new().await?;
    let port = rig.ports.server();
    let proxy = ProxyServer::microsocks(rig.folder.path(), port, true).await?;
    let with = |password| socks(SocksVersion::V5, &proxy.address(), password);
    for host in ["127.0.0.1", "localhost"] {
        let dialled = dial(&with(Some(PASSWORD)), &rig.echo_at(host), LIMIT).await?;
        echoes(dialled).await;
    }
    for wrong in [None, Some("wrong")] {
        let refused = dial(&with(wrong), &rig.echo_at("127.0.0.1"), LIMIT).await;
        assert_eq!(word(refused), "socks-auth", "{wrong:?}");
    }
    let four = socks(SocksVersion::V4, &proxy.address(), None);
    let refused = dial(&four, &rig.echo_at("127.0.0.1"), LIMIT).await;
    assert!(["socks-protocol", "socks-refused"].contains(&word(refused)));
    Ok(())
}

#[tokio::test]
async fn a_proxy_that_is_away_silent_or_something_else_has_its_word() -> Result<()> {
    let mut rig = Rig::new().await?;
    let away = format!("127.0.0.1:{}", rig.ports.server());
    let resource = rig.echo_at("127.0.0.1");
    let at = |address: &str| socks(SocksVersion::V5, address, None);
    assert_eq!(
        word(dial(&at(&away), &resource, LIMIT).await),
        "socks-unreachable"
    );
    let unknown = dial(&at("does-not-exist.invalid:1080"), &resource, LIMIT).await;
    assert_eq!(word(unknown), "socks-unreachable");
    // It sends back what it got, which is no answer.
    let other = dial(&at(&rig.echo.address()), &resource, LIMIT).await;
    assert_eq!(word(other), "socks-protocol");

    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let address = silent.local_addr()?.to_string();
    let short = Duration::from_millis(200);
    assert_eq!(
        word(dial(&at(&address), &resource, short).await),
        "socks-timeout"
    );
    // One that is silent after it was asked may be waiting for the resource.
    let address = silent.local_addr()?.to_string();
    let proxy = async {
        // The connection of the attempt before.
        drop(silent.accept().await.unwrap());
        let (mut tcp, _) = silent.accept().await.unwrap();
        let mut greeting = [0; 3];
        tcp.read_exact(&mut greeting).await.unwrap();
        tcp.write_all(&[5, 0]).await.unwrap();
        std::future::pending::<()>().await;
    };
    let long_enough = Duration::from_secs(1);
    let waits = at(&address);
    tokio::select! {
        result = dial(&waits, &resource, long_enough) => assert_eq!(word(result), "connect-timeout"),
        () = proxy => unreachable!("it is pending"),
    }
    Ok(())
}
