//! TLS at both ends, of another make than ours: authorities and certificates as files, users who speak it, and a
//! resource that does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::{Client, PATIENCE, Site, SiteSetup, bytes, eventually, within};

/// What certificates of resources are for, beside 127.0.0.1.
pub const HOST: &str = "db.example";

const DAY: Duration = Duration::from_secs(86_400);

/// A connection, with or without TLS.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}

impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// A certificate and its key, as files.
#[derive(Debug, Clone)]
pub struct Certified {
    pub chain: PathBuf,
    pub key: PathBuf,
}

/// Issues certificates.
#[derive(Debug)]
pub struct Authority {
    /// Its own certificate.
    pub file: PathBuf,
    folder: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// An authority whose files are in `folder`.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn new(folder: &Path, name: &str) -> Result<Self> {
        sg_runtime::crypto::install();
        let key = KeyPair::generate()?;
        let mut params = params(name, &[], (-1, 30))?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let file = folder.join(format!("{name}.pem"));
        std::fs::write(&file, params.self_signed(&key)?.pem())?;
        Ok(Self {
            file,
            folder: folder.to_owned(),
            issuer: Issuer::new(params, key),
        })
    }

    /// A certificate for these names, with `common` as common name and in the names of its files.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn issue(&self, common: &str, names: &[&str]) -> Result<Certified> {
        self.issue_for(common, names, (-1, 20))
    }

    /// As [`Authority::issue`], valid between these days from now.
    ///
    /// # Errors
    /// Files cannot be written.
    pub fn issue_for(&self, common: &str, names: &[&str], days: (i64, i64)) -> Result<Certified> {
        let key = KeyPair::generate()?;
        let certificate = params(common, names, days)?.signed_by(&key, &self.issuer)?;
        write(&self.folder, common, &certificate.pem(), &key)
    }
}

/// A certificate that has signed itself, and says that it may issue others, as many tools make them.
///
/// # Errors
/// Files cannot be written.
pub fn self_signed(folder: &Path, common: &str, names: &[&str]) -> Result<Certified> {
    sg_runtime::crypto::install();
    let key = KeyPair::generate()?;
    let mut params = params(common, names, (-1, 20))?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    write(folder, common, &params.self_signed(&key)?.pem(), &key)
}

fn params(common: &str, names: &[&str], days: (i64, i64)) -> Result<CertificateParams> {
    let names: Vec<String> = names.iter().map(|&name| name.to_owned()).collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common);
    let day = |days: i64| {
        let by = DAY * u32::try_from(days.unsigned_abs()).unwrap_or_default();
        let now = SystemTime::now();
        if days < 0 { now - by } else { now + by }
    };
    params.not_before = day(days.0).into();
    params.not_after = day(days.1).into();
    Ok(params)
}

fn write(folder: &Path, name: &str, chain: &str, key: &KeyPair) -> Result<Certified> {
    let files = Certified {
        chain: folder.join(format!("{name}.cert.pem")),
        key: folder.join(format!("{name}.key")),
    };
    std::fs::write(&files.chain, chain)?;
    std::fs::write(&files.key, key.serialize_pem())?;
    Ok(files)
}

impl Certified {
    fn read(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)> {
        let key = PrivateKeyDer::from_pem_file(&self.key).context("key")?;
        Ok((certificates(&self.chain)?, key))
    }
}

fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>> {
    let all = CertificateDer::pem_file_iter(file)
        .with_context(|| format!("certificates in {}", file.display()))?;
    all.collect::<Result<_, _>>().context("certificates")
}

fn roots(file: &Path) -> Result<Arc<RootCertStore>> {
    let mut roots = RootCertStore::empty();
    for one in certificates(file)? {
        roots.add(one)?;
    }
    Ok(Arc::new(roots))
}

/// How a resource speaks TLS: with this certificate, and only to whom this authority knows.
///
/// # Errors
/// A file cannot be read.
pub fn server(own: &Certified, users: Option<&Path>) -> Result<Arc<ServerConfig>> {
    sg_runtime::crypto::install();
    let builder = match users {
        None => ServerConfig::builder().with_no_client_auth(),
        Some(file) => {
            let verifier = rustls::server::WebPkiClientVerifier::builder(roots(file)?);
            ServerConfig::builder().with_client_cert_verifier(verifier.build()?)
        }
    };
    let (chain, key) = own.read()?;
    Ok(Arc::new(builder.with_single_cert(chain, key)?))
}

/// How a user speaks TLS: believing this authority, and showing this certificate.
///
/// # Errors
/// A file cannot be read.
pub fn user(ca: &Path, own: Option<&Certified>) -> Result<Arc<ClientConfig>> {
    sg_runtime::crypto::install();
    let builder = ClientConfig::builder().with_root_certificates(roots(ca)?);
    let config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => {
            let (chain, key) = own.read()?;
            builder.with_client_auth_cert(chain, key)?
        }
    };
    Ok(Arc::new(config))
}

/// Connects as a user who speaks TLS, or does not.
///
/// # Errors
/// Nobody listens, or the handshake fails.
pub async fn connect(
    address: SocketAddr,
    tls: Option<(Arc<ClientConfig>, &str)>,
) -> Result<Box<dyn Io>> {
    let tcp = TcpStream::connect(address).await.context("connecting")?;
    let Some((config, name)) = tls else {
        return Ok(Box::new(tcp));
    };
    let stream = handshake(tcp, config, name).await?;
    Ok(Box::new(stream))
}

/// A handshake as a user.
///
/// # Errors
/// It fails.
pub async fn handshake(
    tcp: TcpStream,
    config: Arc<ClientConfig>,
    name: &str,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let name = ServerName::try_from(name.to_owned())?;
    let connecting = TlsConnector::from(config).connect(name, tcp);
    within(PATIENCE, "the user's handshake", connecting)
        .await?
        .context("handshake of the user")
}

/// A resource that sends bytes back, and answers a request with the host that it asks for.
#[derive(Debug)]
pub struct Resource {
    address: SocketAddr,
    /// Ends with this value.
    _server: JoinSet<()>,
}

impl Resource {
    /// Listens on a loopback port.
    ///
    /// # Errors
    /// There is none.
    pub async fn start(tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        Self::on(TcpListener::bind("127.0.0.1:0").await?, tls)
    }

    /// Takes connections of this listener.
    ///
    /// # Errors
    /// It is broken.
    pub fn on(listener: TcpListener, tls: Option<Arc<ServerConfig>>) -> Result<Self> {
        let address = listener.local_addr()?;
        let mut server = JoinSet::new();
        server.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((tcp, _)) = listener.accept().await {
                connections.spawn(answer(tcp, tls.clone()));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self {
            address,
            _server: server,
        })
    }

    /// HOST:PORT.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.to_string()
    }
}

/// A server without TLS that speaks first, as many do; it ends with the value.
///
/// # Errors
/// There is no port.
pub async fn greeter() -> Result<(String, JoinSet<()>)> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    let mut server = JoinSet::new();
    server.spawn(async move {
        let mut greeted = Vec::new();
        while let Ok((mut tcp, _)) = listener.accept().await {
            // Whoever goes at once has not waited for it.
            drop(tcp.write_all(b"220 mail.example ready\r\n").await);
            greeted.push(tcp);
        }
    });
    Ok((address, server))
}

async fn answer(tcp: TcpStream, tls: Option<Arc<ServerConfig>>) {
    // Both fail where a test wants them to.
    match tls {
        None => drop(converse(tcp).await),
        Some(config) => {
            if let Ok(stream) = TlsAcceptor::from(config).accept(tcp).await {
                drop(converse(stream).await);
            }
        }
    }
}

async fn converse(mut stream: impl Io) -> Result<()> {
    let mut buffer = vec![0; 16 * 1024];
    let mut head = Vec::new();
    loop {
        let count = stream.read(&mut buffer).await?;
        let got = buffer.get(..count).unwrap_or_default();
        if count == 0 {
            stream.shutdown().await?;
            return Ok(());
        }
        if head.is_empty() && !got.starts_with(b"GET ") {
            stream.write_all(got).await?;
            stream.flush().await?;
            continue;
        }
        head.extend_from_slice(got);
        if head.ends_with(b"\r\n\r\n") {
            let text = String::from_utf8_lossy(&head).to_lowercase();
            let host = text.lines().find_map(|line| line.strip_prefix("host: "));
            let host = host.unwrap_or("nobody");
            let answer = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{host}",
                host.len()
            );
            stream.write_all(answer.as_bytes()).await?;
            stream.flush().await?;
            head.clear();
        }
    }
}

/// Status, error word and body of the answer to one request.
///
/// # Errors
/// There is none.
pub async fn request(stream: &mut (impl Io + ?Sized)) -> Result<(u16, String, String)> {
    within(PATIENCE, "an answer", ask(stream)).await?
}

async fn ask(stream: &mut (impl Io + ?Sized)) -> Result<(u16, String, String)> {
    let request = "GET /path HTTP/1.1\r\nHost: app.example\r\n\r\n";
    stream.write_all(request.as_bytes()).await?;
    stream.flush().await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("head of an answer")?);
    }
    let head = String::from_utf8(head)?;
    let field = |name: &str| {
        let lines = head.lines();
        let mut pairs = lines.filter_map(|line| line.split_once(": "));
        let found = pairs.find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.to_owned())
    };
    let length: usize = field("content-length").context(head.clone())?.parse()?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let status = head.split_whitespace().nth(1).context(head.clone())?;
    let word = field("x-secure-gateway-error").unwrap_or_default();
    Ok((status.parse()?, word, String::from_utf8(body)?))
}

/// A destination carries what it is for: bytes, or a request that the resource sees as its own.
///
/// # Errors
/// It does not.
pub async fn carries(
    stream: &mut (impl Io + ?Sized),
    protocol: &str,
    resource: &str,
) -> Result<()> {
    if !protocol.starts_with("http") {
        let mut stream = stream;
        let echo = bytes::echo(&mut stream, 5, 50_000);
        return within(PATIENCE, "bytes come back", echo).await?;
    }
    // Twice, on one connection.
    for _ in 0..2 {
        let answer = request(&mut *stream).await?;
        ensure!(
            answer == (200, String::new(), resource.to_owned()),
            "{answer:?}"
        );
    }
    Ok(())
}

/// An installation with a client of the gateway `dev`, whose list allows everything, and a node that may connect to
/// this machine.
///
/// # Errors
/// Something does not start.
pub async fn open_site() -> Result<(Site, Client)> {
    crate::prepare();
    let mut site = Site::with(SiteSetup {
        node_environment: vec![("SG_CLOUD_ALLOW", "127.0.0.0/8".to_owned())],
        ..SiteSetup::default()
    })
    .await?;
    let gateway = site.gateway("dev").await?;
    let client = site.client(&gateway).await?;
    site.sgctl
        .run(&["acl", "allow", "dev", ":", "--wait", "10s"])
        .await?;
    Ok((site, client))
}

/// `sgctl destination create` with these options; answers the port on the nodes, or the one on the client.
///
/// # Errors
/// It fails.
pub async fn create(site: &Site, path: &str, resource: &str, options: &[&str]) -> Result<u16> {
    let mut arguments = vec!["destination", "create", path, "--resource", resource];
    arguments.push("--wait");
    arguments.extend(options);
    let made = site.sgctl.json(&arguments).await?;
    let port = |name| made.get(name).and_then(Value::as_u64).filter(|&n| n > 0);
    let port = port("cloudPort").or_else(|| port("clientPort"));
    Ok(u16::try_from(port.with_context(|| made.to_string())?)?)
}

/// Waits until somebody listens there; ports of clients open after `sgctl` has come back.
///
/// # Errors
/// Nobody does in time.
pub async fn listens(address: SocketAddr) -> Result<()> {
    let what = format!("somebody listens on {address}");
    let connect = async || Ok(TcpStream::connect(address).await?);
    eventually(PATIENCE, &what, connect).await.map(drop)
}

/// The path of a file as text.
///
/// # Errors
/// It is none.
pub fn text(path: &Path) -> Result<&str> {
    match path.to_str() {
        Some(text) => Ok(text),
        None => bail!("{} is no text", path.display()),
    }
}
