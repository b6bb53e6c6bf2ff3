//! Every protocol of users with every way to speak to a resource, in both directions; and what is refused of it, in
//! which words.

use std::any::Any;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use sg_tests::backend::Manual;
use sg_tests::secure::{self, Authority, Certified, HOST, Resource, text};
use sg_tests::{
    Client, ClientSetup, Gateway, PATIENCE, Site, SiteSetup, bytes, eventually, prepare, within,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const PROTOCOLS: [&str; 6] = ["tcp", "tls", "tls-mutual", "http", "https", "https-mutual"];
const MODES: [&str; 3] = ["none", "tls", "mutual"];
/// Where the client's ports are, apart from those of the node.
const CLIENT: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 9);
/// What certificates of resources are for.
const RESOURCE_NAMES: [&str; 3] = [HOST, "127.0.0.1", "localhost"];
/// What certificates for users are for.
const USER_NAMES: [&str; 1] = ["app.example"];

struct Rig {
    site: Site,
    gateway: Gateway,
    client: Client,
    /// Issues what resources, the destinations and users show.
    authority: Authority,
    folder: PathBuf,
    next_client_port: u16,
}

impl Rig {
    async fn start() -> Result<Self> {
        prepare();
        let allow = ("SG_CLOUD_ALLOW", "127.0.0.0/8".to_owned());
        let mut site = Site::with(SiteSetup {
            node_environment: vec![allow],
            ..SiteSetup::default()
        })
        .await?;
        let gateway = site.gateway("dev").await?;
        let options = vec!["--client-address".to_owned(), CLIENT.to_string()];
        let setup = ClientSetup {
            options,
            ..ClientSetup::default()
        };
        let mut client = site.prepare_client(&gateway, setup)?;
        client.connect().await?;
        site.sgctl
            .run(&["acl", "allow", "dev", ":", "--wait", "10s"])
            .await?;
        let folder = site.folder().to_owned();
        Ok(Self {
            authority: Authority::new(&folder, "authority")?,
            next_client_port: site.ports().destinations().0,
            folder,
            site,
            gateway,
            client,
        })
    }

    /// Makes a destination; answers where its users connect.
    async fn create(
        &mut self,
        kind: &str,
        name: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<SocketAddr> {
        let path = format!("{}/{name}", self.gateway.name);
        let port = self.next_client_port.to_string();
        let mut all = vec!["--kind", kind];
        if kind == "cloud" {
            self.next_client_port += 1;
            all.extend(["--client-port", &port]);
        }
        all.extend(options);
        let port = secure::create(&self.site, &path, resource, &all).await?;
        let host = match kind {
            "cloud" => CLIENT.into(),
            _ => Site::node_host(0),
        };
        let address = SocketAddr::new(host, port);
        if kind == "cloud" {
            secure::listens(address).await?;
        }
        Ok(address)
    }

    /// The files that `sgctl destination certs` writes.
    async fn certs(&self, name: &str) -> Result<PathBuf> {
        let out = self.folder.join(format!("certs-{name}"));
        let path = format!("dev/{name}");
        let arguments = ["destination", "certs", &path, "--out", text(&out)?];
        self.site.sgctl.run(&arguments).await?;
        Ok(out)
    }

    async fn update(&self, name: &str, options: &[&str]) -> Result<()> {
        let path = format!("dev/{name}");
        let mut arguments = vec!["destination", "update", &path, "--wait"];
        arguments.extend(options);
        self.site.sgctl.run(&arguments).await.map(drop)
    }

    /// An access line of the accepting end says this of a destination's user.
    async fn says(&self, kind: &str, name: &str, word: &str) -> Result<()> {
        let daemon = match kind {
            "cloud" => &self.client.daemon,
            _ => self.site.nodes.first().context("node")?,
        };
        // Looking whether a client's port is open is a connection, too, and has its line.
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

/// Which options a cell has at the user's side, and how its users speak.
struct UserSide {
    options: Vec<String>,
    own: Option<Certified>,
}

fn user_side(rig: &Rig, protocol: &str, uploaded: bool) -> Result<UserSide> {
    let encrypted = protocol.starts_with("tls") || protocol.starts_with("https");
    let mut side = UserSide {
        options: vec!["--protocol".to_owned(), protocol.to_owned()],
        own: None,
    };
    if encrypted && uploaded {
        let pair = rig.authority.issue("app", &USER_NAMES)?;
        let files = [("--server-cert", pair.chain), ("--server-key", pair.key)];
        for (option, file) in files {
            side.options
                .extend([option.to_owned(), text(&file)?.to_owned()]);
        }
    }
    if protocol.ends_with("mutual") {
        let file = text(&rig.authority.file)?.to_owned();
        side.options.extend(["--user-ca".to_owned(), file]);
        side.own = Some(rig.authority.issue("alice", &[])?);
    }
    Ok(side)
}

/// Every cell of one direction, with certificates of the test's own where the resource speaks TLS, and else those that
/// the product issues.
async fn all_cells(kind: &str) -> Result<()> {
    let mut rig = Rig::start().await?;
    let own = rig.authority.issue("resource", &RESOURCE_NAMES)?;
    let ours = rig.authority.issue("ours", &[])?;
    let ca = text(&rig.authority.file)?.to_owned();
    let resources = [
        Resource::start(None).await?,
        Resource::start(Some(secure::server(&own, None)?)).await?,
        Resource::start(Some(secure::server(&own, Some(&rig.authority.file))?)).await?,
    ];
    for protocol in PROTOCOLS {
        for (mode, resource) in MODES.into_iter().zip(&resources) {
            let name = format!("{protocol}-{mode}");
            let uploaded = mode != "none";
            let side = user_side(&rig, protocol, uploaded)?;
            let mut options: Vec<&str> = side.options.iter().map(String::as_str).collect();
            options.extend(["--resource-tls", mode]);
            if mode != "none" {
                options.extend(["--resource-ca", &ca]);
            }
            if mode == "tls" {
                options.extend(["--sni", HOST]);
            }
            if mode == "mutual" {
                options.extend(["--resource-cert", text(&ours.chain)?]);
                options.extend(["--resource-key", text(&ours.key)?]);
            }
            let at = rig
                .create(kind, &name, &resource.address(), &options)
                .await
                .with_context(|| name.clone())?;
            let plain = matches!(protocol, "tcp" | "http");
            let address = at.ip().to_string();
            let tls = match (plain, uploaded) {
                (true, _) => None,
                (false, true) => {
                    let config = secure::user(&rig.authority.file, side.own.as_ref())?;
                    Some((config, USER_NAMES[0]))
                }
                (false, false) => {
                    let trusted = rig.certs(&name).await?.join("ca.pem");
                    // The issued certificate of a client's port is for the machine's own names.
                    let host = if kind == "cloud" {
                        "localhost"
                    } else {
                        &*address
                    };
                    Some((secure::user(&trusted, side.own.as_ref())?, host))
                }
            };
            let mut user = secure::connect(at, tls)
                .await
                .with_context(|| name.clone())?;
            secure::carries(&mut *user, protocol, &resource.address())
                .await
                .with_context(|| name.clone())?;
            user.shutdown().await?;
        }
    }
    rig.finish()
}

#[tokio::test]
async fn every_cell_carries_from_the_cloud_to_the_premises() -> Result<()> {
    all_cells("on-premises").await
}

#[tokio::test]
async fn every_cell_carries_from_the_premises_to_the_cloud() -> Result<()> {
    all_cells("cloud").await
}

#[tokio::test]
async fn generated_certificates_are_all_that_mutual_tls_needs() -> Result<()> {
    let mut rig = Rig::start().await?;
    let own = rig.authority.issue("resource", &RESOURCE_NAMES)?;
    let ca = text(&rig.authority.file)?.to_owned();
    for kind in ["on-premises", "cloud"] {
        for protocol in ["tls-mutual", "https-mutual"] {
            let name = format!("{kind}-{protocol}");
            // The resource is told whom to accept, and for that the destination is there first.
            let listener = TcpListener::bind("127.0.0.1:0").await?;
            let resource = listener.local_addr()?.to_string();
            let options = ["--protocol", protocol, "--resource-tls", "mutual"];
            let options = [&options[..], &["--resource-ca", &ca]].concat();
            let at = rig.create(kind, &name, &resource, &options).await?;
            let files = rig.certs(&name).await?;
            let accepted = files.join("resource_client_cert.pem");
            let _resource = Resource::on(listener, Some(secure::server(&own, Some(&accepted))?))?;
            let user = Certified {
                chain: files.join("user_cert.pem"),
                key: files.join("user_key.pem"),
            };
            let config = secure::user(&files.join("ca.pem"), Some(&user))?;
            let host = if kind == "cloud" {
                "localhost"
            } else {
                "127.0.0.1"
            };
            let mut stream = secure::connect(at, Some((config, host))).await?;
            secure::carries(&mut *stream, protocol, &resource)
                .await
                .with_context(|| name.clone())?;
        }
    }
    rig.finish()
}

/// What a resource is like, whom it is believed by, and what comes of it.
struct Bad {
    name: &'static str,
    resource: String,
    _server: Box<dyn Any>,
    options: Vec<String>,
    word: &'static str,
}

/// HOST:PORT of a server, and what it ends with.
type Running = (String, Box<dyn Any>);

fn bad(name: &'static str, server: Running, options: &[&str], word: &'static str) -> Bad {
    Bad {
        name,
        resource: server.0,
        _server: server.1,
        options: options.iter().map(|&one| one.to_owned()).collect(),
        word,
    }
}

async fn bad_resources(rig: &Rig) -> Result<Vec<Bad>> {
    let authority = &rig.authority;
    let stranger = Authority::new(&rig.folder, "stranger")?;
    let ca = text(&authority.file)?;
    let trust = ["--resource-ca", ca];
    let good = authority.issue("good", &RESOURCE_NAMES)?;
    let expired = authority.issue_for("expired", &RESOURCE_NAMES, (-9, -2))?;
    let early = authority.issue_for("early", &RESOURCE_NAMES, (2, 9))?;
    let other = authority.issue("other-name", &["other.example"])?;
    let foreign = stranger.issue("foreign", &RESOURCE_NAMES)?;
    let pinned = secure::self_signed(&rig.folder, "pinned", &RESOURCE_NAMES)?;
    let running = async |tls| {
        let resource = Resource::start(Some(tls)).await?;
        anyhow::Ok((resource.address(), Box::new(resource) as Box<dyn Any>))
    };
    let tls = async |own: &Certified| running(secure::server(own, None)?).await;
    let (address, server) = secure::greeter().await?;
    let plain: Running = (address, Box::new(server));
    let mutual = secure::server(&good, Some(&authority.file))?;
    let pin = ["--resource-ca", text(&pinned.chain)?];
    let skip = ["--insecure-skip-verify"];
    let name = ["--resource-ca", ca, "--sni", "wrong.example"];
    Ok(vec![
        bad("expired", tls(&expired).await?, &trust, "tls-expired"),
        bad("early", tls(&early).await?, &trust, "tls-not-yet-valid"),
        bad("name", tls(&other).await?, &trust, "tls-name-mismatch"),
        bad("sni", tls(&good).await?, &name, "tls-name-mismatch"),
        bad("issuer", tls(&foreign).await?, &trust, "tls-unknown-issuer"),
        bad("system", tls(&good).await?, &[], "tls-unknown-issuer"),
        bad("plain", plain, &trust, "tls-plain-text"),
        bad(
            "demands",
            running(mutual).await?,
            &trust,
            "tls-handshake-refused",
        ),
        bad("pinned", tls(&pinned).await?, &pin, ""),
        bad("skip", tls(&foreign).await?, &skip, ""),
    ])
}

#[tokio::test]
async fn a_resource_that_cannot_be_believed_is_refused_in_the_right_word() -> Result<()> {
    let mut rig = Rig::start().await?;
    for kind in ["on-premises", "cloud"] {
        for one in bad_resources(&rig).await? {
            let name = format!("{kind}-{}", one.name);
            let options = one.options.iter().map(String::as_str);
            let options: Vec<&str> = ["--resource-tls", "tls"]
                .into_iter()
                .chain(options)
                .collect();
            let resource = one.resource.clone();
            let at = rig.create(kind, &name, &resource, &options).await?;
            let mut user = secure::connect(at, None).await?;
            if one.word.is_empty() {
                secure::carries(&mut *user, "tcp", &resource)
                    .await
                    .with_context(|| name.clone())?;
                continue;
            }
            // A server that reads first must not keep the user waiting.
            drop(user.write_all(b"hello\r\n").await);
            let rest = within(PATIENCE, &name, user.read(&mut [0; 1])).await?;
            ensure!(matches!(rest, Ok(0) | Err(_)), "{name}: {rest:?}");
            rig.says(kind, &name, one.word).await?;
            // Of HTTP it is an answer.
            let name = format!("{name}-http");
            let options = [&options[..], &["--protocol", "http"]].concat();
            let at = rig.create(kind, &name, &resource, &options).await?;
            let mut user = secure::connect(at, None).await?;
            let (status, word, body) = secure::request(&mut *user).await?;
            ensure!(
                (status, word.as_str()) == (502, one.word),
                "{name}: {status} {word} {body}"
            );
        }
    }
    rig.finish()
}

#[tokio::test]
async fn users_without_the_right_certificate_are_refused() -> Result<()> {
    let mut rig = Rig::start().await?;
    let resource = Resource::start(None).await?;
    let second = Authority::new(&rig.folder, "second")?;
    let alice = rig.authority.issue("alice", &[])?;
    let bob = second.issue("bob", &[])?;
    let expired = rig.authority.issue_for("expired", &[], (-9, -2))?;
    let early = rig.authority.issue_for("early", &[], (2, 9))?;
    let ca = text(&rig.authority.file)?.to_owned();
    let other = text(&second.file)?.to_owned();
    for kind in ["on-premises", "cloud"] {
        for protocol in ["tls-mutual", "https-mutual"] {
            let name = format!("{kind}-{protocol}");
            let options = ["--protocol", protocol, "--user-ca", &ca];
            let at = rig
                .create(kind, &name, &resource.address(), &options)
                .await?;
            let trusted = rig.certs(&name).await?.join("ca.pem");
            let host = if kind == "cloud" {
                "localhost"
            } else {
                "127.0.0.1"
            };
            let attempt = async |own: Option<&Certified>| {
                let config = secure::user(&trusted, own)?;
                let mut user = secure::connect(at, Some((config, host))).await?;
                secure::carries(&mut *user, protocol, &resource.address()).await?;
                anyhow::Ok(user)
            };
            let mut open = attempt(Some(&alice)).await.with_context(|| name.clone())?;
            ensure!(attempt(None).await.is_err(), "{name}: nobody is let in");
            let stranger = attempt(Some(&bob)).await;
            ensure!(
                stranger.is_err(),
                "{name}: another authority's user is let in"
            );
            for own in [&expired, &early] {
                let attempt = attempt(Some(own)).await;
                ensure!(attempt.is_err(), "{name}: {own:?} is let in");
            }
            let words = ["no-certificate", "tls-unknown-issuer"];
            for word in words
                .into_iter()
                .chain(["tls-expired", "tls-not-yet-valid"])
            {
                rig.says(kind, &name, word).await?;
            }
            rig.update(&name, &["--user-ca", &other]).await?;
            eventually(PATIENCE, "the other authority counts", async || {
                attempt(Some(&bob)).await
            })
            .await?;
            let revoked = attempt(Some(&alice)).await;
            ensure!(
                revoked.is_err(),
                "{name}: whose authority was removed is let in"
            );
            // What is open does not notice.
            secure::carries(&mut *open, protocol, &resource.address()).await?;
        }
    }
    rig.finish()
}

#[tokio::test]
async fn a_changed_certificate_holds_for_new_connections() -> Result<()> {
    let mut rig = Rig::start().await?;
    let resource = Resource::start(None).await?;
    let first = rig.authority.issue("first", &USER_NAMES)?;
    let second = rig.authority.issue("second", &USER_NAMES)?;
    let config = secure::user(&rig.authority.file, None)?;
    for kind in ["on-premises", "cloud"] {
        let chain = text(&first.chain)?;
        let options = ["--protocol", "tls", "--server-cert", chain, "--server-key"];
        let options = [&options[..], &[text(&first.key)?]].concat();
        let name = format!("changing-{kind}");
        let at = rig
            .create(kind, &name, &resource.address(), &options)
            .await?;
        let connect = async || {
            let tcp = tokio::net::TcpStream::connect(at).await?;
            let stream = secure::handshake(tcp, Arc::clone(&config), USER_NAMES[0]).await?;
            let shown = stream.get_ref().1.peer_certificates().context("chain")?;
            let leaf = shown.first().context("leaf")?.to_vec();
            anyhow::Ok((stream, leaf))
        };
        let (mut open, before) = connect().await?;
        bytes::echo(&mut open, 1, 1000).await?;
        let chain = text(&second.chain)?;
        let options = ["--server-cert", chain, "--server-key", text(&second.key)?];
        rig.update(&name, &options).await?;
        eventually(PATIENCE, "the new one is shown", async || {
            let (mut stream, now) = connect().await?;
            ensure!(now != before, "the old one is shown");
            bytes::echo(&mut stream, 2, 1000).await
        })
        .await?;
        bytes::echo(&mut open, 3, 100_000).await?;
        // And back to the one of the internal CA.
        rig.update(&name, &["--server-cert", "none"]).await?;
        let ca = rig.certs(&name).await?.join("ca.pem");
        let host = if kind == "cloud" {
            "localhost"
        } else {
            "127.0.0.1"
        };
        let mut user = eventually(PATIENCE, "the issued one is shown", async || {
            let config = secure::user(&ca, None)?;
            secure::connect(at, Some((config, host))).await
        })
        .await?;
        secure::carries(&mut *user, "tls", &resource.address()).await?;
    }
    rig.finish()
}

#[tokio::test]
async fn a_resource_whose_authority_was_removed_is_refused() -> Result<()> {
    let mut rig = Rig::start().await?;
    let second = Authority::new(&rig.folder, "second")?;
    let own = rig.authority.issue("resource", &RESOURCE_NAMES)?;
    let resource = Resource::start(Some(secure::server(&own, None)?)).await?;
    let known = text(&rig.authority.file)?.to_owned();
    let both = [&known, text(&second.file)?];
    let first: Vec<&str> = both.iter().flat_map(|one| ["--resource-ca", one]).collect();
    for kind in ["on-premises", "cloud"] {
        let options = [&["--resource-tls", "tls"], &first[..]].concat();
        let at = rig
            .create(kind, kind, &resource.address(), &options)
            .await?;
        let mut open = secure::connect(at, None).await?;
        secure::carries(&mut *open, "tcp", &resource.address()).await?;
        rig.update(kind, &["--resource-ca", text(&second.file)?])
            .await?;
        eventually(PATIENCE, "new connections are refused", async || {
            let mut user = secure::connect(at, None).await?;
            let carried = secure::carries(&mut *user, "tcp", &resource.address()).await;
            ensure!(carried.is_err(), "it is still believed");
            Ok(())
        })
        .await?;
        rig.says(kind, kind, "tls-unknown-issuer").await?;
        // What is open does not notice.
        secure::carries(&mut *open, "tcp", &resource.address()).await?;
    }
    rig.finish()
}

#[tokio::test]
async fn a_user_who_speaks_no_tls_is_told_apart() -> Result<()> {
    let mut rig = Rig::start().await?;
    let resource = Manual::start()?;
    for kind in ["on-premises", "cloud"] {
        let name = format!("tls-{kind}");
        let resource = resource.address()?;
        let at = rig
            .create(kind, &name, &resource, &["--protocol", "tls"])
            .await?;
        let mut user = secure::connect(at, None).await?;
        user.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        let closed = async { while user.read(&mut [0; 64]).await.is_ok_and(|n| n > 0) {} };
        within(PATIENCE, "the user is refused", closed).await?;
        rig.says(kind, &name, "not-tls").await?;
    }
    rig.finish()
}
