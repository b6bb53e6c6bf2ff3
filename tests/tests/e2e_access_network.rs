//! Who may connect from where, and what stands between the ends: rules of sources, SOCKS proxies and the PROXY protocol
//! before resources, ports of clients, limits. In both directions.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use sg_tests::backend::{Echo, Manual};
use sg_tests::counterpart::nginx::Nginx;
use sg_tests::counterpart::proxies::{PASSWORD, ProxyServer, USER};
use sg_tests::secure::{self, Authority, text};
use sg_tests::{
    Client, ClientSetup, Gateway, PATIENCE, Site, SiteSetup, bytes, eventually, prepare,
    proxy_header, within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::Instant;

const KINDS: [&str; 2] = ["on-premises", "cloud"];
/// Where the client's ports are, apart from those of the node.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// How soon a change reaches what is open.
const SOON: Duration = Duration::from_secs(2);

struct Rig {
    site: Site,
    gateway: Gateway,
    client: Client,
    next_client_port: u16,
}

impl Rig {
    async fn start() -> Result<Self> {
        let mut site = site().await?;
        let gateway = site.gateway("dev").await?;
        let client = client(&mut site, &gateway, ClientSetup::default()).await?;
        let next_client_port = site.ports().destinations().0;
        Ok(Self {
            site,
            gateway,
            client,
            next_client_port,
        })
    }

    async fn allow_all(&self) -> Result<()> {
        let arguments = ["acl", "allow", &self.gateway.name, ":", "--wait", "10s"];
        self.site.sgctl.run(&arguments).await.map(drop)
    }

    async fn create(
        &mut self,
        kind: &str,
        name: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<SocketAddr> {
        let path = format!("dev/{name}");
        let port = self.next_client_port;
        if kind == "cloud" {
            self.next_client_port += 1;
            return create_cloud(&self.site, &path, port, resource, options).await;
        }
        let port = secure::create(&self.site, &path, resource, options).await?;
        Ok(SocketAddr::new(Site::node_host(0), port))
    }

    async fn sources(&self, arguments: &[&str]) -> Result<()> {
        let mut all = vec!["destination", "source"];
        all.extend(arguments);
        self.site.sgctl.run(&all).await.map(drop)
    }

    /// An access line of the accepting end says this of a destination's user.
    async fn says(&self, kind: &str, name: &str, word: &str) -> Result<()> {
        let daemon = match kind {
            "cloud" => &self.client.daemon,
            _ => self.site.nodes.first().context("node")?,
        };
        eventually(PATIENCE, &format!("{name} is {word}"), async || {
            let lines = daemon.access()?;
            let of = lines.iter().filter(|l| l.field("destination") == name);
            let words: Vec<String> = of.map(|line| line.field("reason")).collect();
            ensure!(words.iter().any(|one| one == word), "{words:?}");
            Ok(())
        })
        .await
    }

    fn finish(self) -> Result<()> {
        drop(self.client);
        self.site.finish()
    }
}

async fn site() -> Result<Site> {
    prepare();
    let allow = ("SG_CLOUD_ALLOW", "127.0.0.0/8,localhost".to_owned());
    Site::with(SiteSetup {
        node_environment: vec![allow],
        ..SiteSetup::default()
    })
    .await
}

async fn client(site: &mut Site, gateway: &Gateway, mut setup: ClientSetup) -> Result<Client> {
    let options = ["--client-address".to_owned(), CLIENT.to_string()];
    setup.options.extend(options);
    let mut client = site.prepare_client(gateway, setup)?;
    client.connect().await?;
    Ok(client)
}

/// A cloud destination whose port is not waited for.
async fn create_clashing(site: &Site, path: &str, port: u16, resource: &str) -> Result<()> {
    let port = port.to_string();
    let arguments = ["destination", "create", path, "--resource", resource];
    let listen = ["--kind", "cloud", "--client-port", &port];
    let all = [&arguments[..], &listen].concat();
    site.sgctl.run(&all).await.map(drop)
}

/// A cloud destination; its port may still be closed.
async fn create_cloud(
    site: &Site,
    path: &str,
    port: u16,
    resource: &str,
    options: &[&str],
) -> Result<SocketAddr> {
    let text = port.to_string();
    let mut all = vec!["--kind", "cloud", "--client-port", &text];
    all.extend(options);
    secure::create(site, path, resource, &all).await?;
    Ok(SocketAddr::new(CLIENT.into(), port))
}

async fn echo(address: SocketAddr) -> Result<TcpStream> {
    let mut user = TcpStream::connect(address).await?;
    let echo = bytes::echo(&mut user, 9, 1000);
    within(PATIENCE, "an echo", echo).await??;
    Ok(user)
}

async fn works(address: SocketAddr) -> Result<TcpStream> {
    eventually(PATIENCE, "users are let in", async || echo(address).await).await
}

async fn refused(address: SocketAddr) -> Result<()> {
    eventually(PATIENCE, "users are refused", async || {
        match echo(address).await {
            Ok(_) => bail!("a user was let in"),
            Err(_) => Ok(()),
        }
    })
    .await
}

async fn is_cut(user: &mut TcpStream, limit: Duration) -> Result<()> {
    let rest = within(limit, "an open stream is cut", user.read(&mut [0; 1])).await?;
    ensure!(matches!(rest, Ok(0) | Err(_)), "{rest:?}");
    Ok(())
}

#[tokio::test]
async fn sources_come_and_go_and_open_streams_with_them() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.allow_all().await?;
    let resource = Echo::start().await?;
    for kind in KINDS {
        let path = format!("dev/{kind}");
        let at = rig
            .create(kind, kind, &resource.address(), &["--restrict"])
            .await?;
        if kind == "cloud" {
            secure::listens(at).await?;
        }
        ensure!(echo(at).await.is_err(), "{kind}: none is allowed");
        rig.says(kind, kind, "source-denied").await?;

        rig.sources(&["add", &path, "127.0.0.1"]).await?;
        let mut user = works(at).await?;
        rig.sources(&["remove", &path, "127.0.0.1"]).await?;
        is_cut(&mut user, SOON).await?;
        rig.says(kind, kind, "policy-changed").await?;
        refused(at).await?;

        // The owner's next rule replaces its last one.
        let owner = ["--owner", "job:1"];
        rig.sources(&[&["add", &path, "127.0.0.0/8"], &owner[..]].concat())
            .await?;
        let mut user = works(at).await?;
        rig.sources(&[&["add", &path, "10.1.2.3"], &owner[..]].concat())
            .await?;
        is_cut(&mut user, SOON).await?;
        refused(at).await?;
        let listed = rig
            .site
            .sgctl
            .run(&["destination", "source", "list", &path])
            .await?
            .stdout;
        ensure!(
            listed.contains("10.1.2.3") && !listed.contains("127.0.0.0"),
            "{listed}"
        );
        rig.sources(&["remove", &path, "--owner", "job:1"]).await?;

        // Nobody takes this one away.
        let start = Instant::now();
        rig.sources(&["add", &path, "127.0.0.1", "--ttl", "3s"])
            .await?;
        let mut user = works(at).await?;
        is_cut(&mut user, Duration::from_secs(3) + SOON).await?;
        let lived = start.elapsed();
        ensure!(lived > Duration::from_millis(2900), "{kind}: {lived:?}");
        refused(at).await?;
    }
    rig.finish()
}

#[tokio::test]
async fn resources_are_reached_through_socks_proxies() -> Result<()> {
    let mut rig = Rig::start().await?;
    let folder = rig.site.folder().to_owned();
    let (first, second) = (rig.site.ports().server(), rig.site.ports().server());
    let asking = ProxyServer::microsocks(&folder, first, true).await?;
    let dante = ProxyServer::dante(&folder, second, "").await?;
    let resource = Echo::start().await?;
    let address = resource.address();
    let password = rig.site.secret_file("socks.password", PASSWORD)?;
    let wrong = rig.site.secret_file("wrong.password", "canary:wrong")?;
    // The list names the resource, and not yet the proxies.
    let allow = ["acl", "allow", "dev", &address, "--wait", "10s"];
    rig.site.sgctl.run(&allow).await?;
    let dante_5 = format!("5:{}", dante.address());
    let options = ["--socks", &dante_5];
    let at = rig
        .create("on-premises", "unlisted", &address, &options)
        .await?;
    ensure!(echo(at).await.is_err(), "a proxy that is not allowed");
    rig.says("on-premises", "unlisted", "acl-denied").await?;
    rig.allow_all().await?;
    drop(works(at).await?);

    for kind in KINDS {
        let micro = format!("5:{}", asking.address());
        let login = ["--socks", &micro, "--socks-user", USER];
        let with = [&login[..], &["--socks-password-file", text(&password)?]].concat();
        let name = format!("micro-{kind}");
        let at = rig.create(kind, &name, &address, &with).await?;
        drop(works(at).await?);
        for (name, bad) in [("wrong", Some(&wrong)), ("anonymous", None)] {
            let options = match bad {
                Some(file) => [&login[..], &["--socks-password-file", text(file)?]].concat(),
                None => vec!["--socks", &*micro],
            };
            let name = format!("{name}-{kind}");
            let at = rig.create(kind, &name, &address, &options).await?;
            secure::listens(at).await?;
            ensure!(echo(at).await.is_err(), "{name} is let through");
            rig.says(kind, &name, "socks-auth").await?;
        }
        for version in ["4", "4a", "5"] {
            let name = format!("dante-{version}-{kind}");
            let proxy = format!("{version}:{}", dante.address());
            let before = dante.output()?.len();
            let at = rig
                .create(kind, &name, &address, &["--socks", &proxy])
                .await?;
            drop(works(at).await.with_context(|| name.clone())?);
            let port = address.rsplit(':').next().context("port")?;
            eventually(PATIENCE, "the proxy has seen it", async || {
                let log = dante.output()?;
                ensure!(log.get(before..).is_some_and(|new| new.contains(port)));
                Ok(())
            })
            .await
            .with_context(|| name.clone())?;
        }
    }
    rig.finish()
}

#[tokio::test]
async fn resources_are_told_who_their_users_are() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.allow_all().await?;
    let folder = rig.site.folder().to_owned();
    let root = folder.join("www");
    std::fs::create_dir(&root)?;
    let port = rig.site.ports().server();
    let server = "listen 127.0.0.1:PORT proxy_protocol; \
                  location / { return 200 \"$proxy_protocol_addr:$proxy_protocol_port\"; }";
    let server = server.replace("PORT", &port.to_string());
    let nginx = Nginx::with(&folder, &format!("server {{ {server} }}"), port).await?;
    let manual = Manual::start()?;
    let authority = Authority::new(&folder, "authority")?;
    let alice = authority.issue("alice", &[])?;
    for kind in KINDS {
        for version in ["v1", "v2"] {
            for protocol in ["tcp", "http"] {
                let name = format!("{version}-{protocol}-{kind}");
                let options = ["--proxy-protocol", version, "--protocol", protocol];
                let at = rig.create(kind, &name, &nginx.address(), &options).await?;
                secure::listens(at).await?;
                let mut user = TcpStream::connect(at).await?;
                let own = user.local_addr()?;
                let (status, _, body) = secure::request(&mut user).await?;
                ensure!((status, &body) == (200, &own.to_string()), "{name}: {body}");
            }
        }
        let name = format!("tlvs-{kind}");
        let ca = text(&authority.file)?;
        let options = ["--proxy-protocol", "v2", "--protocol", "tls-mutual"];
        let options = [
            &options[..],
            &["--user-ca", ca, "--server-name", "db.app.example"],
        ]
        .concat();
        let at = rig
            .create(kind, &name, &manual.address()?, &options)
            .await?;
        secure::listens(at).await?;
        let out: PathBuf = folder.join(&name);
        let path = format!("dev/{name}");
        let arguments = ["destination", "certs", &path, "--out", text(&out)?];
        rig.site.sgctl.run(&arguments).await?;
        let config = secure::user(&out.join("ca.pem"), Some(&alice))?;
        let tcp = TcpStream::connect(at).await?;
        let own = tcp.local_addr()?;
        let mut user = secure::handshake(tcp, config, "db.app.example").await?;
        let (mut resource, _) = manual.accept().await?;
        let header = within(PATIENCE, "a header", proxy_header::read(&mut resource)).await??;
        ensure!(
            (header.from, header.to) == (own, at),
            "{name}: the addresses"
        );
        let text = |kind: u8| header.texts.get(&kind).map(Vec::as_slice);
        ensure!(text(0x02) == Some(b"db.app.example"), "{name}: AUTHORITY");
        let (fixed, inner) = text(0x20)
            .and_then(<[u8]>::split_first_chunk::<5>)
            .context("SSL")?;
        // TLS, a certificate in this connection, one in this session; and it was accepted.
        ensure!(
            fixed.first().is_some_and(|bits| bits & 0b011 == 0b011),
            "{fixed:?}"
        );
        ensure!(fixed.ends_with(&[0, 0, 0, 0]), "{fixed:?}");
        let inner = proxy_header::values(inner)?;
        let inner = |kind: u8| inner.get(&kind).map(Vec::as_slice);
        ensure!(inner(0x21) == Some(b"TLSv1.3"), "{name}: version");
        ensure!(inner(0x22) == Some(b"alice"), "{name}: common name");
        ensure!(inner(0x23).is_some(), "{name}: cipher");
        // The user's bytes are next.
        user.write_all(b"hello").await?;
        let mut got = [0; 5];
        within(PATIENCE, "bytes", resource.read_exact(&mut got)).await??;
        ensure!(&got == b"hello", "{got:?}");
    }
    rig.finish()
}

/// Two gateways in one client.
async fn two() -> Result<(Site, Client, Echo)> {
    let mut site = site().await?;
    let one = site.gateway("one").await?;
    let two = site.gateway("two").await?;
    let tokens = format!("{}\n{}\n", one.token, two.token);
    let setup = ClientSetup {
        token_file: Some(site.secret_file("both.tokens", &tokens)?),
        options: vec![two.id.clone()],
        ..ClientSetup::default()
    };
    let client = client(&mut site, &one, setup).await?;
    for gateway in [&one, &two] {
        site.clients_listed(gateway, 1).await?;
    }
    Ok((site, client, Echo::start().await?))
}

async fn shows(site: &Site, path: &str, word: &str) -> Result<()> {
    eventually(PATIENCE, &format!("{path} shows {word}"), async || {
        let shown = site.sgctl.run(&["destination", "get", path]).await?.stdout;
        ensure!(shown.contains(word), "{shown}");
        Ok(())
    })
    .await
}

#[tokio::test]
async fn one_port_of_a_client_is_of_one_gateway_at_a_time() -> Result<()> {
    let (mut site, client, first) = two().await?;
    let second = Echo::start().await?;
    let port = site.ports().destinations().0;
    let at = create_cloud(&site, "one/a", port, &first.address(), &[]).await?;
    let mut user = works(at).await?;
    create_clashing(&site, "two/b", port, &second.address()).await?;
    shows(&site, "two/b", "client-port-clash").await?;
    let list = site.sgctl.run(&["client", "list", "two"]).await?.stdout;
    let told = format!("0/1 b ({port}) client-port-clash");
    ensure!(list.contains(&told), "{list}");
    let json = ["client", "list", "one", "-o", "json"];
    let list = site.sgctl.run(&json).await?.stdout;
    let list: serde_json::Value = serde_json::from_str(&list)?;
    let state = list.pointer("/clients/0/ports/0/state");
    ensure!(
        state.and_then(|s| s.as_str()) == Some("listening"),
        "{list}"
    );
    bytes::echo(&mut user, 4, 1000).await?;
    // Who has it lets go: the other one takes it over, and what was open ends.
    site.sgctl.run(&["destination", "delete", "one/a"]).await?;
    is_cut(&mut user, SOON).await?;
    shows(&site, "two/b", "listening").await?;
    drop(works(at).await?);
    create_clashing(&site, "one/c", port, &first.address()).await?;
    shows(&site, "one/c", "client-port-clash").await?;
    site.sgctl.run(&["destination", "disable", "two/b"]).await?;
    shows(&site, "one/c", "listening").await?;
    drop(works(at).await?);
    drop(client);
    site.finish()
}

#[tokio::test]
async fn gateways_of_one_client_do_not_disturb_each_other() -> Result<()> {
    let (mut site, client, resource) = two().await?;
    let port = site.ports().destinations().0;
    let address = resource.address();
    for name in ["one", "two"] {
        let arguments = ["acl", "allow", name, ":", "--wait", "10s"];
        site.sgctl.run(&arguments).await?;
    }
    let gone = create_cloud(&site, "one/a", port, &address, &[]).await?;
    let stays = create_cloud(&site, "two/b", port + 1, &address, &[]).await?;
    let here = secure::create(&site, "two/c", &address, &[]).await?;
    let here = SocketAddr::new(Site::node_host(0), here);
    let mut first = works(gone).await?;
    let (mut open, mut here) = (works(stays).await?, works(here).await?);
    let delete = ["gateway", "delete", "one", "--cascade"];
    site.sgctl.run(&delete).await?;
    is_cut(&mut first, SOON).await?;
    eventually(PATIENCE, "its port is closed", async || {
        ensure!(TcpStream::connect(gone).await.is_err(), "it is open");
        Ok(())
    })
    .await?;
    bytes::echo(&mut open, 5, 100_000).await?;
    bytes::echo(&mut here, 6, 100_000).await?;
    drop(echo(stays).await?);
    drop(client);
    site.finish()
}

#[tokio::test]
async fn limits_and_switches_hold_in_both_directions() -> Result<()> {
    let mut rig = Rig::start().await?;
    rig.allow_all().await?;
    let resource = Echo::start().await?;
    for kind in KINDS {
        let path = format!("dev/{kind}");
        let options = ["--max-connections", "2"];
        let at = rig
            .create(kind, kind, &resource.address(), &options)
            .await?;
        let (mut one, two) = (works(at).await?, works(at).await?);
        ensure!(echo(at).await.is_err(), "{kind}: a third is let in");
        rig.says(kind, kind, "limit").await?;
        drop(two);
        // Its place is free.
        let mut two = works(at).await?;
        let switch = ["destination", "disable", &path];
        rig.site.sgctl.run(&switch).await?;
        is_cut(&mut one, SOON).await?;
        is_cut(&mut two, SOON).await?;
        eventually(SOON, "the port is closed", async || {
            ensure!(TcpStream::connect(at).await.is_err(), "{kind}: it is open");
            Ok(())
        })
        .await?;
        let switch = ["destination", "enable", &path];
        rig.site.sgctl.run(&switch).await?;
        drop(works(at).await?);
    }
    rig.finish()
}
