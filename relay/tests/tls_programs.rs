//! The ends of TLS against the programs that people have: openssl as client and server, psql.
#![allow(clippy::unwrap_used, unreachable_pub, dead_code)]

mod certs;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use certs::{Ca, HOST, Own, Wish, soon};
use sg_relay::tls::{ResourceTls, ResourceTlsSettings, TlsError, UserTls, UserTlsSettings};
use sg_runtime::secret::Secret;
use sg_runtime::tls::material::{self, Pair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

const LIMIT: Duration = Duration::from_secs(30);

/// Runs a program to its end.
async fn run(program: &str, arguments: &[&str], dir: &Path) -> Output {
    let command = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    timeout(LIMIT, command).await.unwrap().unwrap()
}

fn write(dir: &Path, name: &str, text: &str) -> PathBuf {
    let path = dir.join(name);
    std::fs::write(&path, text).unwrap();
    path
}

fn files(dir: &Path, name: &str, own: &Own) {
    write(dir, &format!("{name}.pem"), &own.chain_pem());
    write(dir, &format!("{name}.key"), &own.key_pem());
}

/// openssl as a server that answers what it is sent in reverse, and the address it has.
async fn openssl_server(dir: &Path, arguments: &[&str]) -> (Child, SocketAddr) {
    let mut child = Command::new("openssl")
        .args(["s_server", "-accept", "127.0.0.1:0", "-rev"])
        .args(arguments)
        .current_dir(dir)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    let mut said = String::new();
    let address = async {
        loop {
            let mut buffer = [0; 256];
            let count = stdout.read(&mut buffer).await.unwrap();
            assert!(count > 0, "openssl ended: {said}");
            said.push_str(&String::from_utf8_lossy(&buffer[..count]));
            let line = said
                .split_once("ACCEPT ")
                .and_then(|(_, rest)| rest.split_once('\n'));
            if let Some((address, _)) = line {
                return address.trim().parse().unwrap();
            }
        }
    };
    let address = timeout(LIMIT, address).await.unwrap();
    child.stdout = Some(stdout);
    (child, address)
}

async fn ask(settings: ResourceTlsSettings, address: SocketAddr) -> Result<String, TlsError> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let tls = ResourceTls::new(settings).unwrap();
    let (mut stream, _) = tls.connect(tcp, soon()).await?;
    stream.write_all(b"hello\n").await.unwrap();
    let mut answer = [0; 6];
    timeout(LIMIT, stream.read_exact(&mut answer))
        .await
        .unwrap()
        .unwrap();
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

#[tokio::test]
async fn an_openssl_server_is_reached_in_every_version_and_its_refusals_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    files(dir, "server", &own);
    let ca_pem = sg_runtime::identity::certificates_to_pem(std::slice::from_ref(&ca.certificate));
    write(dir, "ca.pem", &ca_pem);
    let mut settings = ResourceTlsSettings::new(HOST);
    settings.certificates = vec![ca.certificate.clone()];
    let mut mutual = settings.clone();
    mutual.pair = Some(ca.issue(&Wish::named("client")).pair());
    let pair = ["-cert", "server.pem", "-key", "server.key"];
    for version in ["-tls1_2", "-tls1_3"] {
        let (_child, address) = openssl_server(dir, &[&pair[..], &[version]].concat()).await;
        assert_eq!(ask(settings.clone(), address).await.unwrap(), "olleh\n");

        let demands = ["-CAfile", "ca.pem", "-Verify", "1", "-verify_return_error"];
        let arguments = [&pair[..], &[version], &demands].concat();
        let (_child, address) = openssl_server(dir, &arguments).await;
        assert_eq!(ask(mutual.clone(), address).await.unwrap(), "olleh\n");
        let error = ask(settings.clone(), address).await.unwrap_err();
        assert_eq!(
            error.as_str(),
            "tls-handshake-refused",
            "{version}: {error}"
        );
    }
    let (_child, address) = openssl_server(
        dir,
        &[&pair[..], &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]].concat(),
    )
    .await;
    let error = ask(settings, address).await.unwrap_err();
    assert_eq!(error.as_str(), "tls-handshake-refused", "{error}");
    assert!(
        error.to_string().contains("neither TLS 1.2 nor 1.3"),
        "{error}"
    );
}

#[tokio::test]
async fn certificates_as_openssl_makes_them_are_accepted_as_such() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let subject = format!("/CN={HOST}");
    let request = |key: &'static str, name: &str| {
        let mut arguments = vec!["req", "-nodes", "-subj", subject.as_str(), "-newkey", key];
        if key == "ec" {
            arguments.extend(["-pkeyopt", "ec_paramgen_curve:P-256"]);
        }
        let tail = ["-keyout", "own.key", "-out"].map(str::to_owned);
        let mut arguments: Vec<String> = arguments.into_iter().map(str::to_owned).collect();
        arguments.extend(tail);
        arguments.push(name.to_owned());
        arguments
    };
    for key in ["rsa:2048", "ec"] {
        for version_1 in [false, true] {
            let mut arguments = request(key, if version_1 { "own.csr" } else { "own.pem" });
            if !version_1 {
                // The usual one: CA:TRUE, and no name but the common one.
                arguments.extend(["-x509".to_owned(), "-days".to_owned(), "10".to_owned()]);
            }
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            assert!(run("openssl", &arguments, dir).await.status.success());
            if version_1 {
                let sign = "x509 -req -in own.csr -signkey own.key -days 10 -out own.pem";
                let sign: Vec<&str> = sign.split(' ').collect();
                assert!(run("openssl", &sign, dir).await.status.success());
            }
            let (pem, private) = (
                std::fs::read(dir.join("own.pem")).unwrap(),
                std::fs::read(dir.join("own.key")).unwrap(),
            );
            Pair::parse(&pem, &Secret::new(private), "own").unwrap();
            let mut settings = ResourceTlsSettings::new(HOST);
            settings.certificates = material::certificates(&pem, "ca").unwrap();
            assert_eq!(material::is_version_1(&settings.certificates[0]), version_1);
            for version in ["-tls1_2", "-tls1_3"] {
                let arguments = ["-cert", "own.pem", "-key", "own.key", version];
                let (_child, address) = openssl_server(dir, &arguments).await;
                assert_eq!(
                    ask(settings.clone(), address).await.unwrap(),
                    "olleh\n",
                    "{key} {version} {version_1}"
                );
                let mut other = settings.clone();
                other.host = "other.example".to_owned();
                let error = ask(other, address).await.unwrap_err();
                assert_eq!(error.as_str(), "tls-name-mismatch", "{error}");
            }
        }
    }
}

/// Accepts one user and answers `hello`.
async fn accept(listener: &TcpListener, tls: &UserTls) -> Result<(String, &'static str), TlsError> {
    let (tcp, _) = listener.accept().await.unwrap();
    let hello = tls.accept(tcp, soon()).await?;
    let (mut stream, facts) = hello.finish(None, soon()).await?;
    stream.write_all(b"hello\n").await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    drop(stream.read_to_end(&mut rest).await);
    let name = facts.peer.map(|peer| peer.common_name);
    Ok((name.unwrap_or_default(), facts.version))
}

#[tokio::test]
async fn an_openssl_client_is_served_and_told_why_it_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::default());
    let alice = ca.issue(&Wish::named("Alice"));
    files(dir, "alice", &alice);
    let ca_pem = sg_runtime::identity::certificates_to_pem(std::slice::from_ref(&ca.certificate));
    write(dir, "ca.pem", &ca_pem);
    let tls = UserTls::new(UserTlsSettings {
        servers: vec![own.pair()],
        users: Some(vec![alice.leaf().clone()]),
        ..UserTlsSettings::default()
    })
    .unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    let client = |more: &'static [&'static str]| {
        let address = address.clone();
        async move {
            let mut arguments = vec![
                "s_client",
                "-connect",
                address.as_str(),
                "-servername",
                HOST,
            ];
            arguments.extend(["-CAfile", "ca.pem", "-verify_return_error", "-quiet"]);
            arguments.extend(more);
            let output = run("openssl", &arguments, dir).await;
            String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
        }
    };
    for (version, expected) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let more: &'static [&'static str] = match version {
            "-tls1_2" => &[
                "-tls1_2",
                "-cert",
                "alice.pem",
                "-key",
                "alice.key",
                "-ign_eof",
            ],
            _ => &[
                "-tls1_3",
                "-cert",
                "alice.pem",
                "-key",
                "alice.key",
                "-ign_eof",
            ],
        };
        let (said, served) = tokio::join!(client(more), accept(&listener, &tls));
        assert!(said.contains("hello"), "{said}");
        assert_eq!(served.unwrap(), ("Alice".to_owned(), expected));
    }
    let (said, served) = tokio::join!(client(&["-tls1_3", "-ign_eof"]), accept(&listener, &tls));
    assert_eq!(served.unwrap_err().as_str(), "no-certificate");
    assert!(said.contains("certificate required"), "{said}");
    let (said, served) = tokio::join!(
        client(&["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]),
        accept(&listener, &tls)
    );
    let error = served.unwrap_err();
    assert_eq!(error.as_str(), "tls-failed");
    assert!(
        error.to_string().contains("no version (1.2 or 1.3)"),
        "{error}"
    );
    assert!(said.contains("alert"), "{said}");
}

/// Enough of a PostgreSQL server for psql to learn that it may not in.
async fn turn_away(listener: &TcpListener, tls: &UserTls) -> Result<String, TlsError> {
    let (tcp, _) = listener.accept().await.unwrap();
    let hello = tls.accept(tcp, soon()).await?;
    let (mut stream, _) = hello.finish(None, soon()).await?;
    let mut startup = vec![0; 1024];
    let count = stream.read(&mut startup).await.unwrap();
    let text = b"SERROR\0C28000\0Mnot today\0\0";
    let length = u32::try_from(text.len() + 4).unwrap().to_be_bytes();
    let answer = [&b"E"[..], &length, text].concat();
    stream.write_all(&answer).await.unwrap();
    // psql does not wait for it, and may be gone.
    stream.shutdown().await.ok();
    Ok(String::from_utf8_lossy(&startup[..count]).into_owned())
}

#[tokio::test]
async fn psql_finds_tls_where_its_question_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let ca = Ca::new("our ca");
    let own = ca.issue(&Wish::named("127.0.0.1"));
    let ca_pem = sg_runtime::identity::certificates_to_pem(std::slice::from_ref(&ca.certificate));
    write(dir, "ca.pem", &ca_pem);
    for postgres in [true, false] {
        let tls = UserTls::new(UserTlsSettings {
            servers: vec![own.pair()],
            postgres,
            ..UserTlsSettings::default()
        })
        .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let connection = format!(
            "host=127.0.0.1 port={port} user=alice dbname=db sslmode=verify-full sslrootcert=ca.pem"
        );
        let arguments = ["-w", "-c", "select 1", connection.as_str()];
        let psql = run("psql", &arguments, dir);
        let (output, served) = tokio::join!(psql, turn_away(&listener, &tls));
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if postgres {
            assert!(served.unwrap().contains("alice"));
            assert!(said.contains("not today"), "{said}");
        } else {
            assert_eq!(served.unwrap_err().as_str(), "postgres-preface");
        }
    }
}
