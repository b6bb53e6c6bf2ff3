//! PROXY headers between this code and real programs: haproxy sends them and receives them, nginx receives them.

#![allow(clippy::unwrap_used)]

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sg_relay::proxy_protocol::{
    ClientCertificate, Conveyed, Facts, HEADER_LIMIT, TlsFacts, Version, receive, send,
};
use sg_tests::counterpart::proxies::ProxyServer;
use sg_tests::{Launch, PATIENCE, Ports, debian, eventually, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

fn facts() -> Facts {
    Facts {
        source: "192.0.2.7:51000".parse().unwrap(),
        destination: "198.51.100.1:443".parse().unwrap(),
        tls: Some(TlsFacts {
            version: "TLSv1.3".into(),
            cipher: "TLS_AES_256_GCM_SHA384".into(),
            server_name: "a.example".into(),
            alpn: b"http/1.1".to_vec(),
            client_certificate: Some(ClientCertificate {
                common_name: "me".into(),
                verified: true,
            }),
        }),
    }
}

#[tokio::test]
async fn haproxy_tells_who_the_user_is() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ports = Ports::take()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let ours = listener.local_addr()?;
    for options in [
        "send-proxy",
        "send-proxy-v2",
        "send-proxy-v2 proxy-v2-options crc32c,unique-id,authority",
        "send-proxy-v2-ssl-cn",
    ] {
        let (port, ready) = (ports.server(), ports.server());
        let sections = format!(
            "frontend f\n bind 127.0.0.1:{port}\n unique-id-format %Ts\n default_backend b\n\
             backend b\n server s {ours} {options}\n\
             frontend ready\n mode http\n bind 127.0.0.1:{ready}\n http-request return status 200\n"
        );
        let _haproxy = ProxyServer::haproxy(folder.path(), ready, &sections).await?;
        let mut user = TcpStream::connect(("127.0.0.1", port)).await?;
        user.write_all(b"hello").await?;
        let (mut tcp, _) = within(PATIENCE, "haproxy connects", listener.accept()).await??;
        let conveyed = receive(&mut tcp, HEADER_LIMIT).await?;
        let expected = Conveyed::Addresses {
            source: user.local_addr()?,
            destination: user.peer_addr()?,
        };
        ensure!(conveyed == expected, "{options}: {conveyed:?}");
        let mut first = [0; 5];
        tcp.read_exact(&mut first).await?;
        ensure!(&first == b"hello", "{options}: the user's bytes follow");
    }
    Ok(())
}

#[tokio::test]
async fn a_check_of_haproxy_is_nobodys_connection() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ports = Ports::take()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let ours = listener.local_addr()?;
    // Whoever looks whether it is there must not come out at our end.
    let (port, ready) = (ports.server(), ports.server());
    let sections = format!(
        "listen l\n bind 127.0.0.1:{port}\n option tcp-check\n tcp-check connect send-proxy\n tcp-check send x\n\
         server s {ours} send-proxy-v2 check-send-proxy check inter 200ms\n\
         frontend ready\n mode http\n bind 127.0.0.1:{ready}\n http-request return status 200\n"
    );
    let _haproxy = ProxyServer::haproxy(folder.path(), ready, &sections).await?;
    let (mut tcp, _) = within(PATIENCE, "haproxy checks", listener.accept()).await??;
    let conveyed = receive(&mut tcp, HEADER_LIMIT).await?;
    ensure!(conveyed == Conveyed::Nothing, "{conveyed:?}");
    Ok(())
}

/// What an HTTP server says to a user who comes with our header.
async fn told(address: SocketAddr, version: Version) -> Result<String> {
    let mut tcp = TcpStream::connect(address).await?;
    send(&mut tcp, &facts(), version, Duration::from_secs(5)).await?;
    tcp.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await?;
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await?;
    let (_, body) = answer.split_once("\r\n\r\n").context(answer.clone())?;
    Ok(body.to_owned())
}

const VERSIONS: [Version; 3] = [
    Version::V1,
    Version::V2 { checksum: false },
    Version::V2 { checksum: true },
];

#[tokio::test]
async fn haproxy_believes_our_header() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ports = Ports::take()?;
    let (port, ready) = (ports.server(), ports.server());
    let says = "%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority]";
    let sections = format!(
        "frontend f\n mode http\n bind 127.0.0.1:{port} accept-proxy\n\
         http-request return status 200 content-type text/plain lf-string \"{says}\"\n\
         frontend ready\n mode http\n bind 127.0.0.1:{ready}\n http-request return status 200\n"
    );
    let _haproxy = ProxyServer::haproxy(folder.path(), ready, &sections).await?;
    for version in VERSIONS {
        let said = told(([127, 0, 0, 1], port).into(), version).await?;
        let addresses = "192.0.2.7:51000 198.51.100.1:443";
        let expected = match version {
            Version::V1 => format!("{addresses} "),
            Version::V2 { .. } => format!("{addresses} a.example"),
        };
        ensure!(
            said.trim_end() == expected.trim_end(),
            "{version:?}: {said}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn nginx_believes_our_header() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut ports = Ports::take()?;
    let port = ports.server();
    let own = folder.path().display();
    let says = "$proxy_protocol_addr:$proxy_protocol_port $proxy_protocol_server_addr:$proxy_protocol_server_port";
    let configuration = format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{ worker_connections 64; }}\n\
         http {{ access_log off; default_type text/plain;\n\
           client_body_temp_path {own}/body; proxy_temp_path {own}/proxy; fastcgi_temp_path {own}/fastcgi;\n\
           uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
           server {{ listen 127.0.0.1:{port} proxy_protocol; location / {{ return 200 \"{says}\"; }} }} }}\n"
    );
    let file = folder.path().join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let _nginx = Launch::new("nginx", debian("nginx")?, folder.path())
        .option("-e", "stderr")
        .option("-c", &file)
        .start()?;
    eventually(PATIENCE, "nginx listens", async || {
        Ok(TcpStream::connect(("127.0.0.1", port)).await?)
    })
    .await?;
    for version in VERSIONS {
        let said = told(([127, 0, 0, 1], port).into(), version).await?;
        ensure!(
            said == "192.0.2.7:51000 198.51.100.1:443",
            "{version:?}: {said}"
        );
    }
    Ok(())
}
