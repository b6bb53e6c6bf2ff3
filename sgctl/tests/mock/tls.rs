//! A certificate authority of the test's own, and the listener that speaks TLS with its certificate.

use std::path::Path;
use std::pin::Pin;
use std::task::{Context, Poll};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, SanType};
use sg_runtime::identity::{self, CertificateDer, KeyPair};
use sg_runtime::tls::{self, ClientAuth, Credentials, ServerCertificate, ServerStream, ServerTls};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tonic::transport::server::Connected;

pub struct Ca {
    root: CertificateDer<'static>,
    issuer: Issuer<'static, rcgen::KeyPair>,
}

impl Ca {
    pub fn new() -> Self {
        sg_runtime::crypto::install();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let root = params.self_signed(&key).unwrap().der().clone();
        Self {
            root,
            issuer: Issuer::new(params, key),
        }
    }

    pub fn write(&self, path: &Path) {
        let pem = identity::certificates_to_pem(std::slice::from_ref(&self.root));
        std::fs::write(path, pem).unwrap();
    }

    /// What a server of this kind shows.
    pub fn server(&self, kind: &str) -> ServerTls {
        let key = KeyPair::generate();
        let signing = rcgen::KeyPair::from_pem(key.to_pem().expose()).unwrap();
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        let uri = format!("spiffe://secure-gateway/{kind}/test");
        params
            .subject_alt_names
            .push(SanType::URI(uri.try_into().unwrap()));
        let leaf = params
            .signed_by(&signing, &self.issuer)
            .unwrap()
            .der()
            .clone();
        let shown = Credentials::new(vec![leaf, self.root.clone()], key);
        let certificate = ServerCertificate::new(&shown).unwrap();
        tls::server_config(&certificate, &ClientAuth::NoneAsked, &[b"h2"]).unwrap()
    }
}

/// Accepts for as long as somebody receives.
pub async fn accept(listener: TcpListener, tls: ServerTls, out: mpsc::Sender<Io>) {
    while let Ok((tcp, _)) = listener.accept().await {
        // A peer that fails the handshake is a case of these tests and no reason to stop.
        if let Ok((stream, _)) = tls::accept(&tls, tcp).await
            && out.send(Io(stream)).await.is_err()
        {
            return;
        }
    }
}

pub struct Io(ServerStream);

impl Connected for Io {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Io {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<std::io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}
