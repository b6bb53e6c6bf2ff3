//! Certificates for peers: an authority and one server for localhost, ECDSA P-256, made anew for
//! each run.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sg_tests::debian;

/// Password of the PKCS#12 file; it protects nothing.
pub(super) const PASSWORD: &str = "bench";

/// Two certificates of one name would pass for one that signed itself.
fn named(name: &str) -> DistinguishedName {
    let mut names = DistinguishedName::new();
    names.push(DnType::CommonName, name);
    names
}

/// Where the files are.
pub(super) struct Pki {
    folder: PathBuf,
}

impl Pki {
    pub(super) fn make(folder: &Path) -> Result<Self> {
        let authority_key = KeyPair::generate().context("key")?;
        let mut params = CertificateParams::new(Vec::new()).context("authority")?;
        params.distinguished_name = named("authority of a benchmark");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let authority = params.self_signed(&authority_key).context("authority")?;
        let issuer = Issuer::new(params, authority_key);

        let key = KeyPair::generate().context("key")?;
        let mut params =
            CertificateParams::new(vec!["localhost".to_owned()]).context("certificate")?;
        params.distinguished_name = named("localhost");
        params
            .subject_alt_names
            .push(SanType::IpAddress(Ipv4Addr::LOCALHOST.into()));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server = params.signed_by(&key, &issuer).context("certificate")?;

        let pki = Self {
            folder: folder.to_owned(),
        };
        let both = format!("{}{}", server.pem(), key.serialize_pem());
        for (path, text) in [
            (pki.authority(), authority.pem()),
            (pki.certificate(), server.pem()),
            (pki.key(), key.serialize_pem()),
            (pki.both(), both),
        ] {
            std::fs::write(path, text).context("writing a certificate")?;
        }
        Ok(pki)
    }

    /// The authority's certificate, PEM.
    pub(super) fn authority(&self) -> PathBuf {
        self.folder.join("ca.crt")
    }

    /// The server's certificate, PEM.
    pub(super) fn certificate(&self) -> PathBuf {
        self.folder.join("server.crt")
    }

    /// The server's key, PEM.
    pub(super) fn key(&self) -> PathBuf {
        self.folder.join("server.key")
    }

    /// The server's certificate and key in one file, PEM.
    pub(super) fn both(&self) -> PathBuf {
        self.folder.join("server.pem")
    }

    /// The server's certificate and key as PKCS#12, made by openssl when first asked for.
    pub(super) fn pkcs12(&self) -> Result<PathBuf> {
        let path = self.folder.join("server.p12");
        if !path.exists() {
            let status = Command::new(debian("openssl")?)
                .args(["pkcs12", "-export", "-inkey"])
                .arg(self.key())
                .arg("-in")
                .arg(self.certificate())
                .arg("-certfile")
                .arg(self.authority())
                .args(["-passout", &format!("pass:{PASSWORD}"), "-out"])
                .arg(&path)
                .stderr(Stdio::null())
                .status()
                .context("running openssl")?;
            ensure!(status.success(), "openssl pkcs12: {status}");
        }
        Ok(path)
    }
}
