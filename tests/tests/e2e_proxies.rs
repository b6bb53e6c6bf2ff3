//! Proxies around the product: clients behind HTTP CONNECT and SOCKS proxies, and a node behind a balancer that speaks
//! the PROXY protocol.

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Echo;
use sg_tests::counterpart::proxies::{PASSWORD, ProxyServer, USER};
use sg_tests::secure::{self, text};
use sg_tests::{
    Client, ClientSetup, Destination, Gateway, Launch, PATIENCE, Site, SiteSetup, bytes, debian,
    eventually, prepare, within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A site with a destination, and no client yet.
async fn site() -> Result<(Site, Gateway, Destination, Echo)> {
    prepare();
    let mut site = Site::start().await?;
    let echo = Echo::start().await?;
    let gateway = site.gateway("dev").await?;
    let destination = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    Ok((site, gateway, destination, echo))
}

/// As in a URL.
fn login(password: &str) -> String {
    // So much of it as needs no other spelling is spelled otherwise all the same.
    format!("{USER}:{}", password.replace('4', "%34"))
}

/// A client with these options that has connected.
async fn client(site: &mut Site, gateway: &Gateway, options: &[&str]) -> Result<Client> {
    let setup = ClientSetup {
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(gateway, setup)?;
    client.connect().await?;
    Ok(client)
}

/// A client with these options does not connect, and says this word.
async fn refused(site: &mut Site, gateway: &Gateway, options: &[&str], word: &str) -> Result<()> {
    let setup = ClientSetup {
        once: true,
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(gateway, setup)?;
    client.daemon.launch()?;
    client.daemon.process()?.ended(PATIENCE).await?;
    let lines = client.daemon.lines()?;
    let said = |line: &&sg_tests::LogLine| line.field("reason").as_deref() == Some(word);
    ensure!(
        lines.iter().any(|line| said(&line)),
        "no {word} in {lines:?}"
    );
    Ok(())
}

async fn carries(destination: &Destination) -> Result<()> {
    bytes::echo(&mut destination.connect().await?, 7, 2_000_000).await
}

fn url_file(folder: &Path, name: &str, url: &str) -> Result<String> {
    let path = folder.join(name);
    std::fs::write(&path, format!("{url}\n")).context("file")?;
    Ok(path.display().to_string())
}

#[tokio::test]
async fn a_client_behind_tinyproxy_or_squid() -> Result<()> {
    let (mut site, gateway, destination, _echo) = site().await?;
    // From here on the password must be in no log.
    site.secret_file("password", PASSWORD)?;
    let folder = site.folder().to_owned();
    let (port, squid_port) = (site.ports().server(), site.ports().server());
    let denied = site.ports().server();
    let tinyproxy = ProxyServer::tinyproxy(&folder, port).await?;
    let squid = ProxyServer::squid(&folder, squid_port, denied).await?;
    for proxy in [&tinyproxy, &squid] {
        let url = format!("http://{}@{}", login(PASSWORD), proxy.address());
        let file = url_file(&folder, "proxy-url", &url)?;
        let connected = client(&mut site, &gateway, &["--proxy-file", &file]).await?;
        carries(&destination).await?;
        drop(connected);

        for address in [
            proxy.address(),
            format!("http://{}@{}", login("wrong"), proxy.address()),
        ] {
            refused(&mut site, &gateway, &["-x", &address], "proxy-auth").await?;
        }
    }
    let url = format!("http://{}@{}", login(PASSWORD), squid.address());
    let file = url_file(&folder, "proxy-url", &url)?;
    let setup = ClientSetup {
        nodes: vec![format!("127.0.0.1:{denied}").parse()?],
        once: true,
        options: vec!["--proxy-file".to_owned(), file],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.daemon.launch()?;
    client.daemon.process()?.ended(PATIENCE).await?;
    ensure!(client.daemon.log()?.contains("proxy-refused"));
    let away = format!("http://127.0.0.1:{denied}");
    refused(
        &mut site,
        &gateway,
        &["--proxy", &away],
        "proxy-unreachable",
    )
    .await?;
    site.finish()
}

#[tokio::test]
async fn a_client_behind_a_socks_proxy() -> Result<()> {
    let (mut site, gateway, destination, _echo) = site().await?;
    site.secret_file("password", PASSWORD)?;
    let folder = site.folder().to_owned();
    let (port, dante_port) = (site.ports().server(), site.ports().server());
    let microsocks = ProxyServer::microsocks(&folder, port, true).await?;
    let dante = ProxyServer::dante(&folder, dante_port, "").await?;
    let url = format!("socks5://{}@{}", login(PASSWORD), microsocks.address());
    let file = url_file(&folder, "proxy-url", &url)?;
    let open = format!("socks5://{}", dante.address());
    for options in [["--proxy-file", &file], ["-x", &open]] {
        let connected = client(&mut site, &gateway, &options).await?;
        carries(&destination).await?;
        drop(connected);
    }
    let without = format!("socks5://{}", microsocks.address());
    refused(&mut site, &gateway, &["-x", &without], "proxy-auth").await?;
    // dante talks SOCKS, not HTTP.
    let wrong = format!("http://{}", dante.address());
    let setup = ClientSetup {
        once: true,
        options: vec!["-x".to_owned(), wrong],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.daemon.launch()?;
    client.daemon.process()?.ended(PATIENCE).await?;
    let log = client.daemon.log()?;
    ensure!(
        log.contains("proxy-protocol") || log.contains("proxy-refused"),
        "{log}"
    );
    site.finish()
}

#[tokio::test]
async fn a_client_behind_a_proxy_that_speaks_tls() -> Result<()> {
    let (mut site, gateway, destination, _echo) = site().await?;
    site.secret_file("password", PASSWORD)?;
    let folder = site.folder().to_owned();
    let (plain, secure) = (site.ports().server(), site.ports().server());
    let _tinyproxy = ProxyServer::tinyproxy(&folder, plain).await?;
    let (certificate, both) = (folder.join("proxy.pem"), folder.join("proxy-both.pem"));
    Launch::new("openssl", debian("openssl")?, &folder)
        .arg("req")
        .arg("-x509")
        .option("-newkey", "ec")
        .option("-pkeyopt", "ec_paramgen_curve:prime256v1")
        .arg("-nodes")
        .option("-subj", "/CN=proxy")
        .option("-addext", "subjectAltName=DNS:localhost")
        .option("-keyout", &both)
        .option("-out", &certificate)
        .run()
        .await?;
    let pair = [std::fs::read(&certificate)?, std::fs::read(&both)?].concat();
    std::fs::write(&both, pair)?;
    let sections = format!(
        "listen secure\n bind 127.0.0.1:{secure} ssl crt {}\n server s 127.0.0.1:{plain}\n",
        both.display()
    );
    let _haproxy = ProxyServer::haproxy(&folder, secure, &sections).await?;
    let url = format!("https://{}@localhost:{secure}", login(PASSWORD));
    let file = url_file(&folder, "proxy-url", &url)?;
    let ca = certificate.display().to_string();
    let options = ["--proxy-file", &file, "--proxy-ca", &ca];
    let connected = client(&mut site, &gateway, &options).await?;
    carries(&destination).await?;
    drop(connected);
    // The installation's own authority knows nothing of the proxy.
    let other = site.ca_file().display().to_string();
    let options = ["--proxy-file", &file, "--proxy-ca", &other];
    refused(&mut site, &gateway, &options, "proxy-tls").await?;
    let options = [
        "-x",
        &format!("https://127.0.0.1:{plain}"),
        "--proxy-ca",
        &ca,
    ];
    refused(&mut site, &gateway, &options, "proxy-tls").await?;
    site.finish()
}

#[tokio::test]
async fn a_node_behind_haproxy_sees_users_and_clients() -> Result<()> {
    prepare();
    // The balancer comes from an address of its own; users and clients that come from others are what they are.
    let setup = SiteSetup {
        node_environment: vec![("SG_TRUSTED_PROXIES", "127.0.0.77/32".to_owned())],
        ..SiteSetup::default()
    };
    let mut site = Site::with(setup).await?;
    let echo = Echo::start().await?;
    let gateway = site.gateway("dev").await?;
    let destination = site
        .destination(&gateway, "echo", &echo.address(), &[])
        .await?;
    let folder = site.folder().to_owned();
    let (users, tunnels, bare) = (
        site.ports().server(),
        site.ports().server(),
        site.ports().server(),
    );
    let (node, tunnel) = (destination.address, site.tunnel_address(0));
    let sections = format!(
        "listen users\n bind 127.0.0.1:{users}\n server s {node} source 127.0.0.77 send-proxy-v2\n\
         listen tunnels\n bind 127.0.0.1:{tunnels}\n server s {tunnel} source 127.0.0.77 send-proxy\n\
         listen bare\n bind 127.0.0.1:{bare}\n server s {node} source 127.0.0.77\n"
    );
    let _haproxy = ProxyServer::haproxy(&folder, users, &sections).await?;
    let setup = ClientSetup {
        nodes: vec![format!("127.0.0.1:{tunnels}").parse()?],
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup)?;
    client.connect().await?;
    let rows = site.clients_listed(&gateway, 1).await?;
    let address = rows
        .first()
        .and_then(|row| row.get("address"))
        .and_then(serde_json::Value::as_str)
        .context("address")?;
    ensure!(address.starts_with("127.0.0.1:"), "{address}");

    // Through the balancer, and past it.
    for port in [users, destination.port] {
        let mut user = TcpStream::connect(("127.0.0.1", port)).await?;
        let from = user.local_addr()?.to_string();
        bytes::echo(&mut user, 7, 100_000).await?;
        drop(user);
        eventually(PATIENCE, "the user has an access line", async || {
            let lines = site_access(&site)?;
            let found = lines.iter().any(|(user, _)| *user == from);
            found.then_some(()).context(format!("{from} in {lines:?}"))
        })
        .await?;
    }
    // A trusted balancer that says nothing is not let through.
    let mut user = TcpStream::connect(("127.0.0.1", bare)).await?;
    user.write_all(b"hello").await?;
    eventually(PATIENCE, "the missing header is told", async || {
        let lines = site_access(&site)?;
        let told = lines
            .iter()
            .find(|(_, reason)| reason == "proxy-header-missing");
        let (user, _) = told.context(format!("{lines:?}"))?;
        ensure!(user.starts_with("127.0.0.77:"), "{user}");
        Ok(())
    })
    .await?;
    drop(client);
    site.finish()
}

/// User and reason of each access line of the node.
fn site_access(site: &Site) -> Result<Vec<(String, String)>> {
    let node = site.nodes.first().context("node")?;
    let lines = node.access()?;
    Ok(lines
        .iter()
        .map(|line| (line.field("user"), line.field("reason")))
        .collect())
}

#[tokio::test]
async fn haproxy_reads_who_the_user_is() -> Result<()> {
    let (mut site, client) = secure::open_site().await?;
    let folder = site.folder().to_owned();
    let port = site.ports().server();
    // It takes nothing without a header of the PROXY protocol, and answers what it reads there.
    let section = format!(
        "frontend reads\n mode http\n bind 127.0.0.1:{port} accept-proxy\n http-request return status 200 \
         content-type text/plain lf-string \"%[src]:%[src_port] %[dst_port] %[fc_pp_authority]\""
    );
    let haproxy = ProxyServer::haproxy(&folder, port, &section).await?;
    for kind in ["on-premises", "cloud"] {
        for (version, protocol) in [("v1", "tcp"), ("v2", "tcp"), ("v2", "tls")] {
            let name = format!("{kind}-{version}-{protocol}");
            let client_port = site.ports().server().to_string();
            let mut options = vec!["--kind", kind, "--protocol", protocol];
            options.extend(["--proxy-protocol", version]);
            if kind == "cloud" {
                options.extend(["--client-port", &client_port]);
            }
            if protocol == "tls" {
                options.extend(["--server-name", "web.example"]);
            }
            let path = format!("dev/{name}");
            let at = secure::create(&site, &path, &haproxy.address(), &options).await?;
            secure::listens(([127, 0, 0, 1], at).into()).await?;
            let user = TcpStream::connect(("127.0.0.1", at)).await?;
            let from = user.local_addr()?;
            let mut user: Box<dyn secure::Io> = match protocol {
                "tls" => {
                    let out = folder.join(&name);
                    let arguments = ["destination", "certs", &path, "--out", text(&out)?];
                    site.sgctl.run(&arguments).await?;
                    let config = secure::user(&out.join("ca.pem"), None)?;
                    Box::new(secure::handshake(user, config, "web.example").await?)
                }
                _ => Box::new(user),
            };
            user.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                .await?;
            let mut answer = String::new();
            within(PATIENCE, &name, user.read_to_string(&mut answer)).await??;
            let sni = if protocol == "tls" { "web.example" } else { "" };
            let expected = format!("\r\n\r\n{from} {at} {sni}");
            ensure!(answer.ends_with(&expected), "{name}: {answer:?}");
        }
    }
    drop(client);
    site.finish()
}
