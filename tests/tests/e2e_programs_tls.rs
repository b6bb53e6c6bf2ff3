//! Programs that people have, through destinations that speak TLS and HTTP: psql, openssl, nginx, curl, WebSocket, gRPC.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use sg_tests::bytes::Sequence;
use sg_tests::counterpart::nginx::Nginx;
use sg_tests::counterpart::postgres::Postgres;
use sg_tests::secure::{self, Authority, HOST, text};
use sg_tests::{Client, Launch, PATIENCE, Process, Site, debian, eventually, within};
use tokio::net::TcpStream;

const KINDS: [&str; 2] = ["on-premises", "cloud"];
/// How much is sent each way in one body.
const LARGE: usize = 100_000_000;

struct Rig {
    site: Site,
    client: Client,
    folder: PathBuf,
}

impl Rig {
    async fn start() -> Result<Self> {
        let (site, client) = secure::open_site().await?;
        let folder = site.folder().to_owned();
        Ok(Self {
            site,
            client,
            folder,
        })
    }

    /// Makes a destination; answers its port on the node.
    async fn create(&self, name: &str, resource: &str, options: &[&str]) -> Result<u16> {
        secure::create(&self.site, &format!("dev/{name}"), resource, options).await
    }

    /// As [`Rig::create`], of this kind; answers HOST:PORT.
    async fn create_of(
        &mut self,
        kind: &str,
        name: &str,
        resource: &str,
        options: &[&str],
    ) -> Result<String> {
        let port = self.site.ports().server().to_string();
        let mut all = vec!["--kind", kind];
        if kind == "cloud" {
            all.extend(["--client-port", &port]);
        }
        all.extend(options);
        let port = self.create(name, resource, &all).await?;
        listening(port).await?;
        Ok(format!("127.0.0.1:{port}"))
    }

    /// The CA by which users verify what the product has issued.
    async fn ca(&self, name: &str) -> Result<PathBuf> {
        let out = self.folder.join(format!("certs-{name}"));
        let path = format!("dev/{name}");
        let arguments = ["destination", "certs", &path, "--out", text(&out)?];
        self.site.sgctl.run(&arguments).await?;
        Ok(out.join("ca.pem"))
    }

    fn curl(&self, ca: &Path) -> Result<Launch> {
        let curl = Launch::new("curl", debian("curl")?, &self.folder);
        Ok(curl
            .arg("--silent")
            .arg("--show-error")
            .arg("--fail")
            .option("--max-time", "60")
            .option("--cacert", ca))
    }

    /// A program of tests/python, which `./test` has given what it needs.
    fn python(&self, name: &str, arguments: &[&str]) -> Result<Launch> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let python = root.join("../.venv/bin/python");
        ensure!(python.exists(), "no .venv: ./test makes it");
        let script = root.join("python/through_http.py");
        let mut launch = Launch::new(name, python, &self.folder).arg(script);
        for argument in arguments {
            launch = launch.arg(*argument);
        }
        Ok(launch)
    }

    /// A server of tests/python, listening.
    async fn server(&mut self, what: &str) -> Result<(Process, String)> {
        let port = self.site.ports().server();
        let process = self.python(what, &[what, &port.to_string()])?.start()?;
        listening(port).await?;
        Ok((process, format!("127.0.0.1:{port}")))
    }

    fn finish(self) -> Result<()> {
        drop(self.client);
        self.site.finish()
    }
}

/// The name of the host that users connect to, in a certificate of the internal CA.
fn issued_for(kind: &str) -> &'static str {
    match kind {
        "cloud" => "localhost",
        _ => "127.0.0.1",
    }
}

async fn listening(port: u16) -> Result<()> {
    secure::listens(([127, 0, 0, 1], port).into()).await
}

async fn checksum(file: &Path) -> Result<String> {
    let folder = file.parent().context("folder")?;
    let sum = Launch::new("sha256sum", debian("sha256sum")?, folder).arg(file);
    let output = sum.run().await?;
    let sum = output.split_whitespace().next().context("checksum")?;
    Ok(sum.to_owned())
}

#[tokio::test]
async fn psql_verifies_the_destination_in_full() -> Result<()> {
    let mut rig = Rig::start().await?;
    let postgres = Postgres::start(rig.site.ports().server()).await?;
    let resource = postgres.address();
    for kind in KINDS {
        let options = ["--protocol", "tls", "--preface", "postgres"];
        let at = rig.create_of(kind, kind, &resource, &options).await?;
        let port = at.rsplit(':').next().context("port")?;
        let ca = rig.ca(kind).await?;
        let psql = |host: &str| -> Result<Launch> {
            let root = ca.display();
            let target = format!(
                "host={host} hostaddr=127.0.0.1 port={port} user=postgres dbname=postgres \
                 sslmode=verify-full sslrootcert={root} gssencmode=disable connect_timeout=10"
            );
            Ok(Launch::new("psql", debian("psql")?, &rig.folder)
                .arg("--no-psqlrc")
                .arg("--tuples-only")
                .arg("--no-align")
                .option("-c", "select 6 * 7")
                .arg(target))
        };
        ensure!(psql(issued_for(kind))?.run().await?.trim() == "42");
        let wrong = psql("db.example")?.run().await;
        let wrong = format!("{:#}", wrong.err().context("a wrong name is accepted")?);
        ensure!(wrong.contains("does not match host name"), "{wrong}");
    }
    drop(postgres);
    rig.finish()
}

#[tokio::test]
async fn openssl_is_served_at_both_ends() -> Result<()> {
    let mut rig = Rig::start().await?;
    let authority = Authority::new(&rig.folder, "authority")?;
    let own = authority.issue("resource", &[HOST])?;
    let alice = authority.issue("alice", &[])?;
    let port = rig.site.ports().server();
    // It sends each line back with its end first.
    let server = Launch::new("s_server", debian("openssl")?, &rig.folder)
        .arg("s_server")
        .arg("-rev")
        .arg("-quiet")
        .option("-accept", format!("127.0.0.1:{port}"))
        .option("-cert", &own.chain)
        .option("-key", &own.key)
        .option("-CAfile", &authority.file)
        .option("-Verify", "1")
        .arg("-verify_return_error")
        .start()?;
    listening(port).await?;
    let ca = text(&authority.file)?;
    let (chain, key) = (text(&alice.chain)?, text(&alice.key)?);
    let ours = [
        ["--protocol", "tls-mutual"],
        ["--user-ca", ca],
        ["--resource-tls", "mutual"],
        ["--resource-ca", ca],
        ["--resource-cert", chain],
        ["--resource-key", key],
        ["--sni", HOST],
    ]
    .concat();
    let resource = format!("127.0.0.1:{port}");
    for kind in KINDS {
        let at = rig.create_of(kind, kind, &resource, &ours).await?;
        let trusted = rig.ca(kind).await?;
        let name = match kind {
            "cloud" => "-verify_hostname localhost",
            _ => "-verify_ip 127.0.0.1",
        };
        for version in ["-tls1_2", "-tls1_3"] {
            // The server closes at the second line.
            let script = format!(
                "printf 'one way\\nCLOSE\\n' | openssl s_client -quiet {version} -connect {at} \
                 -CAfile '{}' -verify_return_error {name} -cert '{chain}' -key '{key}'",
                trusted.display()
            );
            let user = Launch::new("s_client", debian("sh")?, &rig.folder)
                .arg("-c")
                .arg(script);
            let output = within(PATIENCE, "s_client", user.run()).await??;
            ensure!(output.contains("yaw eno"), "{kind} {version}: {output}");
        }
    }
    drop(server);
    rig.finish()
}

#[tokio::test]
async fn virtual_hosts_of_nginx_are_told_apart() -> Result<()> {
    let mut rig = Rig::start().await?;
    let authority = Authority::new(&rig.folder, "authority")?;
    let port = rig.site.ports().server();
    let mut servers = String::new();
    for name in ["first.example", "localhost"] {
        let own = authority.issue(name, &[name])?;
        servers += &format!(
            "server {{ listen 127.0.0.1:{port} ssl http2; server_name {name}; \
             ssl_certificate {}; ssl_certificate_key {}; \
             location / {{ return 200 \"{name} $ssl_server_name $host $server_protocol\"; }} }}\n",
            own.chain.display(),
            own.key.display()
        );
    }
    let nginx = Nginx::with(&rig.folder, &servers, port).await?;
    let ca = text(&authority.file)?;
    let resource = format!("localhost:{port}");
    let versions = [("1", "HTTP/1.1"), ("2", "HTTP/2.0")];
    let cells = KINDS.iter().flat_map(|kind| versions.map(|v| (kind, v)));
    for (kind, (version, of_resource)) in cells {
        let name = format!("{kind}-{version}");
        let ends = ["--protocol", "https", "--resource-tls", "tls"];
        let more = ["--resource-ca", ca, "--resource-http", version];
        let at = rig
            .create_of(kind, &name, &resource, &[ends, more].concat())
            .await?;
        let trusted = rig.ca(&name).await?;
        let url = at.replace("127.0.0.1", issued_for(kind));
        let url = format!("https://{url}/x");
        for (option, of_user) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let curl = rig.curl(&trusted)?.arg(option);
            let curl = curl.option("--write-out", "\n%{http_version}").arg(&url);
            // Twice, on one connection.
            let answer = curl.arg(&url).run().await?;
            let expected = format!("localhost localhost localhost {of_resource}\n{of_user}");
            ensure!(answer == expected.repeat(2), "{name} {option}: {answer}");
        }
    }
    // The name in TLS alone, and the server's first host for a Host that it does not know.
    let ends = ["--protocol", "https", "--resource-tls", "tls"];
    let more = ["--resource-ca", ca, "--sni", "first.example"];
    let at = rig
        .create("first", &nginx.address(), &[ends, more].concat())
        .await?;
    let curl = rig.curl(&rig.ca("first").await?)?;
    let curl = curl.arg(format!("https://127.0.0.1:{at}/"));
    let answer = curl.run().await?;
    ensure!(
        answer.starts_with("first.example first.example 127.0.0.1"),
        "{answer}"
    );
    rig.finish()
}

#[tokio::test]
async fn large_bodies_arrive_unchanged_both_ways() -> Result<()> {
    let mut rig = Rig::start().await?;
    let root = rig.folder.join("www");
    std::fs::create_dir(&root)?;
    let large = root.join("large");
    std::fs::write(&large, Sequence::new(11).take(LARGE))?;
    let sum = checksum(&large).await?;
    let nginx = Nginx::start(&rig.folder, &root, rig.site.ports().server()).await?;
    let (server, address) = rig.server("checksum-server").await?;
    for kind in KINDS {
        let options = ["--protocol", "https"];
        let (down, up) = (format!("{kind}-down"), format!("{kind}-up"));
        let from = rig
            .create_of(kind, &down, &nginx.address(), &options)
            .await?;
        let to = rig.create_of(kind, &up, &address, &options).await?;
        let trusted = rig.ca(&down).await?;
        let host = issued_for(kind);
        let url = |at: &str, path: &str| {
            let at = at.replace("127.0.0.1", host);
            format!("https://{at}/{path}")
        };
        for version in ["--http1.1", "--http2"] {
            let got = rig.folder.join("got");
            rig.curl(&trusted)?
                .arg(version)
                .option("--output", &got)
                .arg(url(&from, "large"))
                .run()
                .await?;
            ensure!(checksum(&got).await? == sum, "{version}: the file differs");
            let curl = rig.curl(&trusted)?.arg(version);
            // The answer of the resource to the expectation is waited for.
            let curl = match version {
                "--http1.1" => curl
                    .option("--header", "Expect: 100-continue")
                    .option("--expect100-timeout", "20"),
                _ => curl,
            };
            let seen = curl
                .option("--upload-file", &large)
                .arg(url(&to, "up"))
                .run()
                .await?;
            ensure!(seen == sum, "{version}: the resource got {seen}");
        }
    }
    drop(server);
    rig.finish()
}

#[tokio::test]
async fn websocket_messages_come_back() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (server, address) = rig.server("websocket-server").await?;
    for kind in KINDS {
        let options = ["--protocol", "http"];
        let at = rig.create_of(kind, kind, &address, &options).await?;
        let url = format!("ws://{at}/socket");
        let user = rig.python("websocket", &["websocket", &url])?;
        let output = within(PATIENCE * 2, "the messages", user.run()).await??;
        ensure!(output.trim() == "2000 messages", "{kind}: {output}");
    }
    drop(server);
    rig.finish()
}

#[tokio::test]
async fn grpc_streams_through_http_2() -> Result<()> {
    let mut rig = Rig::start().await?;
    let (server, address) = rig.server("grpc-server").await?;
    for kind in KINDS {
        let options = ["--protocol", "https", "--resource-http", "2"];
        let at = rig.create_of(kind, kind, &address, &options).await?;
        let trusted = rig.ca(kind).await?;
        let user = rig.python("grpc", &["grpc", &at, text(&trusted)?])?;
        let output = within(PATIENCE * 2, "the stream", user.run()).await??;
        ensure!(output.trim() == "500 messages", "{kind}: {output}");
    }
    drop(server);
    rig.finish()
}

#[tokio::test]
async fn a_user_keeps_one_connection_to_the_resource() -> Result<()> {
    let mut rig = Rig::start().await?;
    let port = rig.site.ports().server();
    let server = format!(
        "server {{ listen 127.0.0.1:{port}; \
         location / {{ return 200 \"$connection_requests\\n\"; }} }}"
    );
    let nginx = Nginx::with(&rig.folder, &server, port).await?;
    let at = rig
        .create("web", &nginx.address(), &["--protocol", "http"])
        .await?;
    let url = format!("http://127.0.0.1:{at}/[1-20]");
    let curl = Launch::new("curl", debian("curl")?, &rig.folder)
        .arg("--silent")
        .option("--max-time", "20")
        .arg(url);
    let answer = curl.run().await?;
    let expected: String = (1..=20).map(|number| format!("{number}\n")).collect();
    ensure!(answer == expected, "{answer}");
    // The next user has one of its own.
    let again = eventually(PATIENCE, "another user", async || {
        TcpStream::connect(("127.0.0.1", at)).await?;
        curl.run().await
    })
    .await?;
    ensure!(again == expected, "{again}");
    rig.finish()
}
