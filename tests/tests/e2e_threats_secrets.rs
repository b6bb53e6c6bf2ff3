//! Rows 28, 29 and 44 of the threat table: no secret of any kind is shown by anybody; the search for them finds what is
//! planted; a node's disk has nothing of another group. What stands in etcd's files is looked at by `e2e_identity.rs`.

use std::io::Write as _;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use prost::Message as _;
use sg_control_plane::store::Store as _;
use sg_control_plane::store::embedded::EmbeddedStore;
use sg_runtime::sealed::{self, Key, KeyRing};
use sg_tests::canaries::{self, Shown};
use sg_tests::secure::{self, Authority, text};
use sg_tests::{ClientSetup, Launch, PATIENCE, Site, SiteSetup, eventually, prepare, product};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

const CANARY: &str = "canary-0123456789abcdef-canary";

/// The search finds a secret wherever it was planted, and nothing where there is none.
#[tokio::test]
async fn threat_28_the_search_finds_a_planted_secret() -> Result<()> {
    prepare();
    for place in ["nowhere", "log", "command line", "page", "sgctl", "store"] {
        let mut site = Site::with(SiteSetup {
            nodes: 0,
            ..SiteSetup::default()
        })
        .await?;
        site.keep_secret(CANARY);
        let mut shown = Shown {
            name: "planted".to_owned(),
            pid: std::process::id(),
            ports: Vec::new(),
            given: Vec::new(),
        };
        let folder = site.folder().to_owned();
        let append = |name: &str| -> Result<()> {
            let mut file = std::fs::OpenOptions::new()
                .create(true)
                .append(true)
                .open(folder.join(name))?;
            Ok(writeln!(file, "something {CANARY} something")?)
        };
        let mut keep: Vec<Box<dyn std::any::Any>> = Vec::new();
        match place {
            "log" => append("planted.log")?,
            "store" => append("planted.redb")?,
            "sgctl" => {
                let answer = site.sgctl.call(&["gateway", "get", CANARY]).await?;
                ensure!(answer.code == 3, "{answer:?}");
            }
            "command line" => {
                let sleep = Launch::new("sleep", sg_tests::debian("sleep")?, &folder);
                let sleep = sleep.env("PLANTED", CANARY).arg("60").start()?;
                shown.pid = sleep.id();
                // setpriv becomes env, which becomes sleep.
                eventually(PATIENCE, "sleep runs", async || {
                    let comm = std::fs::read_to_string(format!("/proc/{}/comm", sleep.id()))?;
                    ensure!(comm.trim() == "sleep", "{comm}");
                    Ok(())
                })
                .await?;
                site.evidence().began(shown);
                keep.push(Box::new(sleep));
            }
            "page" => {
                let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
                shown.ports.push(listener.local_addr()?);
                // It answers from a thread of its own: the search waits for it.
                let server = std::thread::spawn(move || {
                    for stream in listener.incoming().take(5) {
                        let Ok(mut stream) = stream else { return };
                        let answer = format!("HTTP/1.1 200 OK\r\n\r\n{CANARY}");
                        drop(stream.write_all(answer.as_bytes()));
                    }
                });
                site.evidence().began(shown);
                keep.push(Box::new(server));
            }
            _ => {}
        }
        let found = site.finish();
        match place {
            "nowhere" => found?,
            _ => {
                let error = found.err().with_context(|| format!("{place}: not found"))?;
                ensure!(
                    error.to_string().contains("a secret in"),
                    "{place}: {error}"
                );
                ensure!(
                    !format!("{error:?}").contains(CANARY),
                    "{place}: the search shows it"
                );
            }
        }
        drop(keep);
    }
    Ok(())
}

/// Takes connections of clients and says whatever was sent to it, as a proxy does that refuses.
async fn refusing_proxy() -> Result<(String, tokio::task::JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap_or(0);
            let mut answer = b"HTTP/1.1 407 Proxy Authentication Required\r\nX-You-Said: ".to_vec();
            let said = String::from_utf8_lossy(&request[..read]).replace(['\r', '\n'], " ");
            answer.extend_from_slice(said.as_bytes());
            answer.extend_from_slice(b"\r\n\r\n");
            drop(stream.write_all(&answer).await);
        }
    });
    Ok((address, tasks))
}

/// Every kind of secret there is, at the most talkative level of every process, used rightly, wrongly and in the wrong place:
/// none is in a log, an error, a page, an answer of a reading call, a command line, or a store in the clear.
#[tokio::test(flavor = "multi_thread")]
async fn threat_28_no_kind_of_secret_is_shown() -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        node_environment: vec![
            ("SG_LOG", "trace".to_owned()),
            ("SG_CLOUD_ALLOW", "127.0.0.0/8".to_owned()),
        ],
        ..SiteSetup::default()
    })
    .await?;
    let plane = site.control_plane();
    ensure!(plane.stop(PATIENCE).await?.success());
    let launch = plane.launch_mut();
    *launch = launch.clone().option("--log-level", "trace");
    plane.start().await?;

    let folder = site.folder().to_owned();
    let gateway = site.gateway("plant").await?;
    let setup = |options: &[&str]| ClientSetup {
        options: options.iter().map(|&option| option.to_owned()).collect(),
        ..ClientSetup::default()
    };
    let mut client = site.prepare_client(&gateway, setup(&["--log-level", "trace"]))?;
    client.connect().await?;

    // Tokens of every kind, also such as never held.
    let out = folder.join("other.token");
    let create = ["token", "create", "ci", "--role", "editor", "--token-out"];
    site.sgctl
        .run(&[&create[..], &[text(&out)?]].concat())
        .await?;
    let ci = site.secret_file("ci.token", std::fs::read_to_string(&out)?.trim())?;
    let editor = site.sgctl_with(&ci);
    editor.run(&["acl", "allow", "plant", ":"]).await?;
    ensure!(editor.call(&["token", "list"]).await?.code == 4);
    let wrong_admin = format!("sga_{}", "5a".repeat(32));
    let wrong_admin = site.secret_file("wrong-admin.token", &wrong_admin)?;
    ensure!(
        site.sgctl_with(&wrong_admin)
            .call(&["gateway", "list"])
            .await?
            .code
            == 4
    );
    let rotated = site
        .sgctl
        .json(&["gateway", "token", "rotate", "plant"])
        .await?;
    let rotated = rotated["securityToken"]
        .as_str()
        .context("token")?
        .to_owned();
    let rotated_file = site.secret_file("rotated.token", &rotated)?;
    let join = site.sgctl.json(&["node", "token", "create"]).await?;
    let join = join["token"].as_str().context("token")?.to_owned();
    site.keep_secret(&join);

    // Tokens in the wrong place: as a gateway, as a name, as another kind of token.
    ensure!(
        site.sgctl
            .call(&["gateway", "create", "bad/name", "--description", "x"])
            .await?
            .code
            != 0
    );
    for (gateway_id, token_file) in [
        (Some(rotated.clone()), None),
        (None, Some(wrong_admin.clone())),
        (None, Some(gateway.token_file.clone())),
    ] {
        let setup = ClientSetup {
            once: true,
            gateway: gateway_id,
            token_file,
            options: vec!["--log-level".to_owned(), "trace".to_owned()],
            ..ClientSetup::default()
        };
        let mut bad = site.prepare_client(&gateway, setup)?;
        bad.daemon.launch()?;
        let status = bad.daemon.process()?.ended(PATIENCE).await?;
        ensure!(!status.success());
    }
    let stray = folder.join("stray");
    std::fs::create_dir(&stray)?;
    let join_file = site.secret_file("gateway-token-as-join-token", &rotated)?;
    let node = Launch::new("stray-node", product("sg-data-plane")?, &folder)
        .option("--control-plane", site.control_addresses().join(","))
        .option("--join-token-file", join_file)
        .option("--data-dir", &stray)
        .option("--tunnel-listen", "127.0.0.1:0")
        .option("--admin-listen", "127.0.0.1:0")
        .option("--log-level", "trace");
    let mut node = node.start()?;
    ensure!(!node.ended(PATIENCE).await?.success());

    // A proxy's password, in a URL from a file, to a proxy that repeats what it was told.
    let (proxy, _tasks) = refusing_proxy().await?;
    let password = "canary-password-of-a-proxy";
    site.keep_secret(password);
    let url = folder.join("proxy-url");
    std::fs::write(&url, format!("http://somebody:{password}@{proxy}\n"))?;
    let setup = ClientSetup {
        once: true,
        token_file: Some(rotated_file.clone()),
        options: vec![
            "--proxy-file".to_owned(),
            url.display().to_string(),
            "--log-level".to_owned(),
            "trace".to_owned(),
        ],
        ..ClientSetup::default()
    };
    let mut bad = site.prepare_client(&gateway, setup)?;
    bad.daemon.launch()?;
    ensure!(!bad.daemon.process()?.ended(PATIENCE).await?.success());

    // Keys that were uploaded, and a password for SOCKS; used by a user.
    let authority = Authority::new(&folder, "own-ca")?;
    let own = authority.issue("own", &["localhost"])?;
    let socks = site.secret_file("socks.password", "canary-password-of-socks")?;
    let (chain, key) = (text(&own.chain)?, text(&own.key)?);
    let socks_proxy = format!("5:{proxy}");
    let options = [
        ["--protocol", "tls-mutual"],
        ["--server-cert", chain],
        ["--server-key", key],
        ["--resource-tls", "mutual"],
        ["--resource-cert", chain],
        ["--resource-key", key],
        ["--socks", &socks_proxy],
        ["--socks-user", "somebody"],
        ["--socks-password-file", text(&socks)?],
    ]
    .concat();
    let port = secure::create(&site, "plant/secret", &proxy, &options).await?;
    let cloud = site.ports().server().to_string();
    let of_cloud = [&options[..], &["--kind", "cloud", "--client-port", &cloud]].concat();
    secure::create(&site, "plant/of-cloud", &proxy, &of_cloud).await?;
    let mut user = tokio::net::TcpStream::connect(("127.0.0.1", port)).await?;
    user.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
    drop(user.read_to_end(&mut Vec::new()).await);
    // A key that cannot be used: the error says which file, and not what is in it.
    let broken = folder.join("broken.pem");
    let pem = std::fs::read_to_string(&own.key)?;
    let lines: Vec<&str> = pem.lines().collect();
    let (first, last) = (lines.first().context("PEM")?, lines.last().context("PEM")?);
    let cut = lines.get(1).context("PEM")?;
    std::fs::write(&broken, format!("{first}\n{cut}\n{last}\n"))?;
    let bad = [
        "destination",
        "create",
        "plant/bad",
        "--resource",
        "localhost:1",
    ];
    let bad = [
        &bad[..],
        &[
            "--protocol",
            "tls",
            "--server-cert",
            chain,
            "--server-key",
            text(&broken)?,
        ],
    ];
    ensure!(site.sgctl.call(&bad.concat()).await?.code != 0);

    // Everything that reads.
    for command in [
        "gateway get plant",
        "gateway list",
        "destination get plant/secret",
        "destination get plant/of-cloud",
        "destination list plant",
        "acl get plant",
        "client list plant",
        "node list",
        "token list",
        "audit list --limit 1000",
        "audit verify",
        "status",
        "context list",
        "version",
    ] {
        for form in ["json", "yaml", "wide", "table"] {
            let words: Vec<&str> = command.split(' ').chain(["-o", form]).collect();
            let answer = site.sgctl.call(&words).await?;
            ensure!(
                [0, 2].contains(&answer.code),
                "{command} -o {form}: {answer:?}"
            );
        }
    }

    // The key of the authority, which no file has: out of the store, with the store's key.
    ensure!(site.control_plane().stop(PATIENCE).await?.success());
    let data = folder.join("control-plane-1");
    let ring = KeyRing::load(&data.join("store.key"))?;
    let store = EmbeddedStore::open(&data.join("store.redb"))?;
    let stored = store.get("v1/meta/ca").await?.1.context("the authority")?;
    let ca = sg_proto::store::CertificateAuthority::decode(stored.value.as_ref())?;
    let opened = ring.open(b"v1/meta/ca", &ca.sealed_key)?;
    let pem = String::from_utf8(opened.expose().clone())?;
    let lines: Vec<&str> = pem
        .lines()
        .filter(|line| !line.starts_with("-----") && line.len() > 30)
        .collect();
    ensure!(!lines.is_empty(), "the authority's key is PEM");
    for line in canaries::secret_lines(&lines) {
        site.keep_secret(*line);
    }
    drop(store);
    let kinds = site.canaries()?;
    ensure!(kinds.len() > 20, "{} secrets are looked for", kinds.len());
    for prefix in ["sga_", "sgt_", "sgj_"] {
        ensure!(
            kinds.iter().any(|secret| secret.starts_with(prefix)),
            "{prefix}"
        );
    }
    drop(client);
    site.finish()
}

/// The state that a node keeps on its disk, opened with its own key.
fn state_of(data: &Path) -> Result<Vec<u8>> {
    let id = std::fs::read_dir(data)?.count();
    ensure!(id > 0, "the node's folder is not empty");
    let key = Key::load(&data.join("state.key"))?;
    let bytes = std::fs::read(data.join("last-good.sealed"))?;
    let certificates = sg_runtime::identity::read_certificates(&data.join("node.pem"))?;
    let leaf = certificates.first().context("the node's certificate")?;
    let identity = sg_runtime::identity::PeerIdentity::from_cert(leaf)?;
    let place = format!("secure-gateway/node/last-good/1/{}", identity.id);
    Ok(sealed::open(&key, place.as_bytes(), &bytes)?
        .expose()
        .clone())
}

/// Row 44: what a node of one group keeps on its disk has nothing of another group.
#[tokio::test(flavor = "multi_thread")]
async fn threat_44_the_disk_of_a_node_has_nothing_of_another_group() -> Result<()> {
    prepare();
    let mut site = Site::with(SiteSetup {
        node_environment: vec![("SG_GROUP", "group-x".to_owned())],
        ..SiteSetup::default()
    })
    .await?;
    let folder = site.folder().to_owned();
    let authority = Authority::new(&folder, "own-ca")?;
    let mut made = Vec::new();
    for group in ["group-x", "group-y"] {
        let gateway = site
            .gateway_with(&format!("gateway-{group}"), &["--group", group])
            .await?;
        let own = authority.issue(&format!("own-{group}"), &["localhost"])?;
        let path = format!("{}/destination-{group}", gateway.name);
        let resource = format!("resource-{group}.example:443");
        let password = format!("password-{group}");
        let password = site.secret_file(&format!("{group}.password"), &password)?;
        let user = format!("user-{group}");
        let arguments = [
            ["destination", "create"],
            [&path, "--resource"],
            [&resource, "--protocol"],
            ["tls", "--server-cert"],
            [text(&own.chain)?, "--server-key"],
            [text(&own.key)?, "--socks"],
            ["5:proxy.example:1080", "--socks-user"],
            [&user, "--socks-password-file"],
        ]
        .concat();
        site.sgctl
            .run(&[&arguments[..], &[text(&password)?]].concat())
            .await?;
        site.sgctl
            .run(&["acl", "allow", &gateway.name, &resource])
            .await?;
        made.push(gateway);
    }
    let data = folder.join("node-1");
    let holds = |bytes: &[u8], what: &[u8]| memchr::memmem::find(bytes, what).is_some();
    let state = eventually(PATIENCE, "the node has kept its own", async || {
        let state = state_of(&data)?;
        for what in [
            "destination-",
            "resource-",
            "password-",
            "user-",
            "gateway-",
        ] {
            let what = format!("{what}group-x");
            ensure!(holds(&state, what.as_bytes()), "no {what} yet");
        }
        Ok(state)
    })
    .await?;
    ensure!(!holds(&state, b"group-y"), "something of the other group");
    let [own, foreign] = made.as_slice() else {
        anyhow::bail!("two were made");
    };
    let hash = |token: &str| sg_runtime::crypto::sha256(token.as_bytes());
    ensure!(holds(&state, own.id.as_bytes()) && holds(&state, &hash(&own.token)));
    ensure!(!holds(&state, foreign.id.as_bytes()) && !holds(&state, &hash(&foreign.token)));
    // Nor anywhere else under its folder, nor in what it has logged.
    for entry in std::fs::read_dir(&data)? {
        let path = entry?.path();
        if path.is_file() {
            ensure!(
                !holds(&std::fs::read(&path)?, b"group-y"),
                "{}",
                path.display()
            );
        }
    }
    ensure!(!site.node().log()?.contains("group-y"));
    site.finish()
}
