//! What the model calls the canonical form of a path is what real servers serve. For each path of the table
//! `model/tests/data/paths.txt` that is forwarded, three servers are asked, for the canonical form and, where HTTP has room
//! for it, for the user's own spelling: nginx and the file server of Python tell which path they understood, HAProxy the form that its own
//! normalisation gives it.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use sg_tests::{Launch, PATIENCE, Ports, Process, debian, eventually, prepare, within};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A server that answers with the path it understood.
struct Server {
    _process: Process,
    port: u16,
    name: &'static str,
}

impl Server {
    async fn start(name: &'static str, launch: Launch, port: u16) -> Result<Self> {
        let process = launch.start()?;
        eventually(PATIENCE, &format!("{name} listens"), async || {
            Ok(TcpStream::connect(("127.0.0.1", port)).await?)
        })
        .await?;
        Ok(Self {
            _process: process,
            port,
            name,
        })
    }

    /// Status and body.
    async fn ask(&self, path: &str) -> Result<(String, Vec<u8>)> {
        let mut connection = TcpStream::connect(("127.0.0.1", self.port)).await?;
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
        connection.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        connection.read_to_end(&mut answer).await?;
        let end = answer
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .with_context(|| format!("{} answers {path}", self.name))?;
        let head = String::from_utf8_lossy(&answer[..end]).into_owned();
        let status = head.split(' ').nth(1).unwrap_or_default().to_owned();
        Ok((status, answer.split_off(end + 4)))
    }
}

async fn nginx(folder: &Path, port: u16) -> Result<Server> {
    let own = folder.display();
    let configuration = format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{ worker_connections 512; }}\n\
         http {{ access_log off;\n\
           client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
           fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
           server {{ listen 127.0.0.1:{port};\n\
             location / {{ default_type text/plain; return 200 \"$uri\"; }} }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, configuration)?;
    let launch = Launch::new("nginx", debian("nginx")?, folder)
        .option("-e", "stderr")
        .option("-c", &file);
    Server::start("nginx", launch, port).await
}

async fn haproxy(folder: &Path, port: u16) -> Result<Server> {
    let configuration = format!(
        "global\n  expose-experimental-directives\n\
         defaults\n  mode http\n  timeout client 10s\n  timeout connect 10s\n  timeout server 10s\n\
         frontend paths\n  bind 127.0.0.1:{port}\n\
         \x20 http-request normalize-uri percent-decode-unreserved\n\
         \x20 http-request normalize-uri percent-to-uppercase\n\
         \x20 http-request normalize-uri path-merge-slashes\n\
         \x20 http-request normalize-uri path-strip-dot\n\
         \x20 http-request normalize-uri path-strip-dotdot\n\
         \x20 http-request return status 200 content-type text/plain lf-string \"%[path]\"\n"
    );
    let file = folder.join("haproxy.cfg");
    std::fs::write(&file, configuration)?;
    let launch = Launch::new("haproxy", debian("haproxy")?, folder).option("-f", &file);
    Server::start("haproxy", launch, port).await
}

/// Python's file server, which says what file it would have served.
async fn python(folder: &Path, port: u16) -> Result<Server> {
    let program = "
import http.server, sys
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        body = self.translate_path(self.path).encode('utf-8', 'surrogateescape')
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
make = lambda *arguments: Handler(*arguments, directory='/files')
http.server.ThreadingHTTPServer(('127.0.0.1', int(sys.argv[1])), make).serve_forever()
";
    let launch = Launch::new("python", debian("python3")?, folder)
        .option("-c", program)
        .arg(port.to_string());
    Server::start("python", launch, port).await
}

fn decoded(path: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = path.as_bytes();
    while let Some((&byte, after)) = rest.split_first() {
        rest = after;
        if byte == b'%' {
            let (digits, after) = rest.split_at(2);
            let digits = std::str::from_utf8(digits).expect("a canonical path is ASCII");
            bytes.push(u8::from_str_radix(digits, 16).expect("two hexadecimal digits"));
            rest = after;
        } else {
            bytes.push(byte);
        }
    }
    bytes
}

/// Whether HTTP lets a client write it so.
fn can_be_sent(path: &str) -> bool {
    path.bytes()
        .all(|b| b.is_ascii_alphanumeric() || b"-._~!$&'()*+,;=:@/%".contains(&b))
}

#[tokio::test(flavor = "multi_thread")]
async fn canonical_paths_are_what_servers_serve() -> Result<()> {
    prepare();
    let folder = tempfile::tempdir()?;
    let mut ports = Ports::take()?;
    let (nginx, haproxy, python) = (
        nginx(folder.path(), ports.server()).await?,
        haproxy(folder.path(), ports.server()).await?,
        python(folder.path(), ports.server()).await?,
    );
    let table = include_str!("../../model/tests/data/paths.txt");
    let mut asked = 0;
    let mut wrong = Vec::new();
    for line in table.lines() {
        let Some((written, becomes)) = line.rsplit_once(" => ") else {
            continue;
        };
        if line.starts_with("# ") || becomes.starts_with('!') {
            continue;
        }
        let without_query = |path: &'static str| path.split('?').next().unwrap_or_default();
        let (written, canonical) = (without_query(written), without_query(becomes));
        let understood = decoded(canonical);
        let mut file = b"/files".to_vec();
        file.extend(understood.strip_suffix(b"/").unwrap_or(&understood));
        for path in [canonical, written] {
            if !can_be_sent(path) {
                continue;
            }
            for (server, expected) in [
                (&nginx, understood.as_slice()),
                (&haproxy, canonical.as_bytes()),
                (&python, file.as_slice()),
            ] {
                let (status, body) = within(PATIENCE, server.name, server.ask(path)).await??;
                // Python says of some paths whether they name a folder.
                let body = match server.name {
                    "python" => body.strip_suffix(b"/").unwrap_or(&body),
                    _ => &body,
                };
                if status != "200" || body != expected {
                    let body = String::from_utf8_lossy(body);
                    wrong.push(format!("{} {path}: {status} {body}", server.name));
                }
                asked += 1;
            }
        }
    }
    ensure!(wrong.is_empty(), "{wrong:#?}");
    ensure!(asked > 1_000, "only {asked} requests");
    Ok(())
}
