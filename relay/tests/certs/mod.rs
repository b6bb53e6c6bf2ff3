//! Certificates of every kind that people have, good and bad, and peers that use them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, SanType};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sg_relay::tls::Pair;
use sg_runtime::secret::Secret;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::Instant;

pub const DAY: Duration = Duration::from_secs(86_400);
pub const HOST: &str = "db.example";

pub fn soon() -> Instant {
    Instant::now() + Duration::from_secs(20)
}

/// How a certificate differs from a good one.
#[derive(Clone)]
pub struct Wish {
    pub names: Vec<String>,
    pub from: i64,
    pub until: i64,
    pub is_ca: bool,
}

impl Default for Wish {
    fn default() -> Self {
        Self {
            names: vec![HOST.to_owned()],
            from: -1,
            until: 30,
            is_ca: false,
        }
    }
}

impl Wish {
    pub fn named(name: &str) -> Self {
        Self {
            names: vec![name.to_owned()],
            ..Self::default()
        }
    }

    pub fn expired() -> Self {
        Self {
            from: -9,
            until: -2,
            ..Self::default()
        }
    }

    pub fn not_yet() -> Self {
        Self {
            from: 2,
            ..Self::default()
        }
    }

    pub fn ca_true() -> Self {
        Self {
            is_ca: true,
            ..Self::default()
        }
    }

    fn params(&self) -> CertificateParams {
        let day = |days: i64| -> SystemTime {
            let now = SystemTime::now();
            let by = DAY * u32::try_from(days.abs()).unwrap();
            if days < 0 { now - by } else { now + by }
        };
        let mut params = CertificateParams::default();
        for name in &self.names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.as_str().try_into().unwrap()),
            });
        }
        params.distinguished_name = rcgen::DistinguishedName::new();
        let common = self.names.first().map_or("nobody", String::as_str);
        params.distinguished_name.push(DnType::CommonName, common);
        params.not_before = day(self.from).into();
        params.not_after = day(self.until).into();
        if self.is_ca {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }
        params
    }
}

/// A certificate and its key, as files have them.
#[derive(Clone)]
pub struct Own {
    pub chain: Vec<CertificateDer<'static>>,
    pub key: Vec<u8>,
}

impl Own {
    pub fn self_signed(wish: &Wish) -> Self {
        let key = KeyPair::generate().unwrap();
        let certificate = wish.params().self_signed(&key).unwrap();
        Self {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }

    pub fn leaf(&self) -> &CertificateDer<'static> {
        &self.chain[0]
    }

    pub fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.clone()).into()
    }

    pub fn chain_pem(&self) -> String {
        sg_runtime::identity::certificates_to_pem(&self.chain)
    }

    pub fn key_pem(&self) -> String {
        self.pair().key().to_pem().expose().clone()
    }

    pub fn pair(&self) -> Pair {
        let chain = sg_runtime::identity::certificates_to_pem(&self.chain);
        Pair::parse(chain.as_bytes(), &Secret::new(self.key.clone()), "pair").unwrap()
    }
}

pub struct Ca {
    pub certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = Wish::ca_true().params();
        params.subject_alt_names.clear();
        params.distinguished_name.push(DnType::CommonName, name);
        let certificate = params.self_signed(&key).unwrap().der().clone();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn issue(&self, wish: &Wish) -> Own {
        let key = KeyPair::generate().unwrap();
        let certificate = wish.params().signed_by(&key, &self.issuer).unwrap();
        Own {
            chain: vec![certificate.der().clone()],
            key: key.serialize_der(),
        }
    }
}

/// A server's configuration, of another make than ours: rustls as everybody uses it.
pub fn server(own: &Own, users: Option<&Ca>, only_12: bool) -> Arc<ServerConfig> {
    sg_runtime::crypto::install();
    let versions: &[_] = if only_12 {
        &[&rustls::version::TLS12]
    } else {
        rustls::ALL_VERSIONS
    };
    let builder = ServerConfig::builder_with_protocol_versions(versions);
    let builder = match users {
        None => builder.with_no_client_auth(),
        Some(ca) => builder.with_client_cert_verifier(
            rustls::server::WebPkiClientVerifier::builder(Arc::new(roots(ca)))
                .build()
                .unwrap(),
        ),
    };
    let config = builder.with_single_cert(own.chain.clone(), own.key_der());
    Arc::new(config.unwrap())
}

/// A client's configuration.
pub fn client(ca: &Ca, own: Option<&Own>, alpn: &[&str]) -> Arc<ClientConfig> {
    sg_runtime::crypto::install();
    let builder = ClientConfig::builder().with_root_certificates(roots(ca));
    let mut config = match own {
        None => builder.with_no_client_auth(),
        Some(own) => builder
            .with_client_auth_cert(own.chain.clone(), own.key_der())
            .unwrap(),
    };
    config.alpn_protocols = alpn.iter().map(|one| one.as_bytes().to_vec()).collect();
    Arc::new(config)
}

pub fn roots(ca: &Ca) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.clone()).unwrap();
    roots
}

/// Two ends of a TCP connection.
pub async fn connection() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (near, far) = tokio::join!(TcpStream::connect(address), listener.accept());
    (near.unwrap(), far.unwrap().0)
}
