//! A client and a node that tests play against the real program at the other end: they speak the tunnel's protocol by the
//! product's own library, and say whatever the test wants.
#![allow(dead_code, clippy::print_stdout)]

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use prost::Message as _;
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, SanType};
use sg_proto::tunnel::{Accepted, ClientHello, Refused, ServerHello, StreamOpen, server_hello};
use sg_runtime::identity::{KeyPair, certificates_to_pem, self_signed};
use sg_runtime::tls::{
    self, ClientAuth, Credentials, PeerKind, ServerCertificate, ServerStream, ServerTls, Trust,
    client_config, server_config,
};
use sg_tests::{Gateway, PATIENCE, Site, within};
use sg_tunnel_io::{Config, Incoming, OpenError, Side, Tunnel, start};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

const ALPN: &[u8] = b"sg-tunnel/1";

/// Numbers that a seed repeats.
pub(crate) struct Random(u64);

impl Random {
    /// Of `SEED`, or of the time; prints it.
    pub(crate) fn of_environment() -> Result<Self> {
        let seed = match std::env::var("SEED") {
            Ok(seed) => seed.parse().context("SEED")?,
            Err(_) => {
                let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
                u64::from(now.subsec_nanos()) | 1
            }
        };
        println!("SEED={seed} repeats this run");
        Ok(Self(seed))
    }

    pub(crate) fn next(&mut self) -> u64 {
        // splitmix64
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub(crate) fn below(&mut self, count: usize) -> usize {
        usize::try_from(self.next() % count as u64).expect("it is below a usize")
    }

    pub(crate) fn pick<'a, T>(&mut self, all: &'a [T]) -> &'a T {
        &all[self.below(all.len())]
    }

    pub(crate) fn port(&mut self) -> u16 {
        u16::try_from(self.next() % 65_535).expect("it is below 65,535") + 1
    }
}

/// Listeners that nobody may reach.
pub(crate) struct Untouched(Vec<TcpListener>);

impl Untouched {
    pub(crate) async fn bind(count: usize) -> Result<Self> {
        let mut all = Vec::new();
        for _ in 0..count {
            all.push(TcpListener::bind("127.0.0.1:0").await?);
        }
        Ok(Self(all))
    }

    pub(crate) fn ports(&self) -> Vec<u16> {
        let addresses = self.0.iter().filter_map(|one| one.local_addr().ok());
        addresses.map(|address| address.port()).collect()
    }

    /// Fails if somebody has connected.
    pub(crate) async fn check(&self) -> Result<()> {
        for listener in &self.0 {
            let moment = Duration::from_millis(20);
            if let Ok(found) = tokio::time::timeout(moment, listener.accept()).await {
                bail!("somebody has connected: {found:?}");
            }
        }
        Ok(())
    }
}

/// One end of a tunnel.
pub(crate) struct Played {
    pub(crate) tunnel: Tunnel,
    pub(crate) incoming: Incoming,
    _driver: JoinSet<()>,
}

impl Played {
    fn start<T>(io: T, side: Side, resume_ms: u32) -> Self
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let config = Config {
            resume_time: Duration::from_millis(resume_ms.into()),
            ..Config::default()
        };
        let (tunnel, incoming, driver) = start(io, side, config);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { drop(driver.await) });
        Self {
            tunnel,
            incoming,
            _driver: tasks,
        }
    }

    /// The code that a stream is refused with; `None`: it was not refused.
    pub(crate) async fn refusal(&self, open: &StreamOpen) -> Result<Option<u32>> {
        let opened = self.tunnel.open(open.encode_to_vec().into());
        match within(PATIENCE, "an answer to OPEN", opened).await? {
            Ok(_) => Ok(None),
            Err(OpenError::Reset { code }) => Ok(Some(code)),
            Err(other) => bail!("no answer: {other:?}"),
        }
    }
}

/// A client's hello with the gateway's token.
pub(crate) fn hello(gateway: &Gateway) -> ClientHello {
    ClientHello {
        version: 1,
        boot_id: vec![7; 16],
        gateway: gateway.id.clone(),
        token: gateway.token.clone(),
        client_name: "played".to_owned(),
        ..ClientHello::default()
    }
}

/// Connects to the first node of a site and says hello.
pub(crate) async fn connect(
    site: &Site,
    hello: &ClientHello,
) -> Result<std::result::Result<(Accepted, Played), Refused>> {
    sg_runtime::crypto::install();
    let key = KeyPair::generate();
    let credentials = Credentials::new(vec![self_signed(&key, "client")], key);
    let trust = Trust::Ca(site.ca_file());
    let tls = client_config(&trust, PeerKind::Node, Some(&credentials), &[ALPN])?;
    let tcp = TcpStream::connect(site.tunnel_address(0)).await?;
    let (mut io, _) = tls::connect(&tls, tcp, "node").await?;
    let body = hello.encode_to_vec();
    io.write_u32(u32::try_from(body.len())?).await?;
    io.write_all(&body).await?;
    io.flush().await?;
    let length = within(PATIENCE, "the node's hello", io.read_u32()).await??;
    let mut body = vec![0; usize::try_from(length)?];
    io.read_exact(&mut body).await?;
    let answer = ServerHello::decode(body.as_slice())?.answer;
    Ok(match answer.context("an answer")? {
        server_hello::Answer::Accepted(accepted) => {
            let played = Played::start(io, Side::Client, accepted.resume_ms);
            Ok((accepted, played))
        }
        server_hello::Answer::Refused(refused) => Err(refused),
    })
}

/// A node that is none.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    listener: TcpListener,
    tls: ServerTls,
}

impl Node {
    /// With a certificate of an authority of its own, whose file is in the answer.
    pub(crate) async fn start(folder: &Path) -> Result<(Self, PathBuf)> {
        sg_runtime::crypto::install();
        let key = rcgen::KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key)?.der().clone();
        let ca = folder.join("played-ca.pem");
        std::fs::write(&ca, certificates_to_pem(std::slice::from_ref(&root)))?;
        let issuer = Issuer::new(params, key);
        let own = KeyPair::generate();
        let mut params = CertificateParams::default();
        let uri = "spiffe://secure-gateway/node/n1";
        params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let leaf = params.signed_by(own.signing(), &issuer)?.der().clone();
        let credentials = Credentials::new(vec![leaf, root], own);
        let certificate = ServerCertificate::new(&credentials)?;
        let tls = server_config(&certificate, &ClientAuth::AnySelfSigned, &[ALPN])?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let node = Self {
            address: listener.local_addr()?,
            listener,
            tls,
        };
        Ok((node, ca))
    }

    /// The next client that has said hello.
    pub(crate) async fn arrival(&self) -> Result<(ClientHello, ServerStream)> {
        let accepted = within(PATIENCE, "a client", self.listener.accept()).await?;
        let (mut io, _) = tls::accept(&self.tls, accepted?.0).await?;
        let length = io.read_u32().await?;
        let mut body = vec![0; usize::try_from(length)?];
        io.read_exact(&mut body).await?;
        Ok((ClientHello::decode(body.as_slice())?, io))
    }

    /// Accepts the next client, with these lines as the list.
    pub(crate) async fn tunnel(&self, acl: &str) -> Result<Played> {
        let (_, mut io) = self.arrival().await?;
        let accepted = accepted(acl)?;
        say(&mut io, server_hello::Answer::Accepted(accepted)).await?;
        Ok(Played::start(io, Side::Node, 0))
    }
}

/// An answer that accepts.
pub(crate) fn accepted(acl: &str) -> Result<Accepted> {
    let Ok(file) = sg_model::AclFile::parse(acl) else {
        bail!("{acl} is no list");
    };
    let mut list = file.acl;
    list.version = sg_model::AclVersion {
        epoch: 1,
        generation: 1,
    };
    Ok(Accepted {
        node_id: "n1".to_owned(),
        node_name: "played".to_owned(),
        gateway_id: "g1".to_owned(),
        gateway_name: "dev".to_owned(),
        acl: Some((&list).into()),
        endpoints: Some(sg_proto::tunnel::Endpoints::default()),
        ..Accepted::default()
    })
}

/// Says a node's hello.
pub(crate) async fn say(io: &mut ServerStream, answer: server_hello::Answer) -> Result<()> {
    let body = ServerHello {
        answer: Some(answer),
    }
    .encode_to_vec();
    io.write_u32(u32::try_from(body.len())?).await?;
    io.write_all(&body).await?;
    io.flush().await?;
    Ok(())
}

/// What a node asks for a stream.
pub(crate) fn stream_open(host: &str, port: u16) -> StreamOpen {
    StreamOpen {
        destination_id: "d1".to_owned(),
        destination: "db".to_owned(),
        protocol: "tcp".to_owned(),
        resource_host: host.to_owned(),
        resource_port: port.into(),
        connect_timeout_ms: 2000,
        acl_epoch: 1,
        acl_generation: 1,
        user_address: "192.0.2.1:4711".to_owned(),
        ..StreamOpen::default()
    }
}
